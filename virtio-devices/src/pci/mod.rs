//! The modern virtio PCI transport (virtio 1.2, section 4.1): one device as the guest meets it.
//!
//! Owns the BAR's layout, negotiation, reset, notification and the joining of inputs to models.
//! One 32-bit memory BAR holds everything. The `inputs` module has what the world may tell a device.

pub(crate) mod common;
pub(crate) mod config;
mod inputs;
mod registers;

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use crate::effect::Effect;
use crate::interrupt::{MsixState, NO_VECTOR};
use crate::model::block::{BlockConfig, BlockState};
use crate::model::console::ConsoleState;
use crate::model::net::{NetConfig, NetState};
use crate::model::rng::RngState;
use crate::model::{Context, DeviceModel};
use crate::queue::{Malformed, QueueState};
use crate::{Error, GuestMemory, Result};
use common::{CommonState, status};
use config::{CONFIG_BYTES, Identity, PciSlot, PciState, WINDOW_DATA};

/// Bytes of BAR 0.
pub const BAR_BYTES: u32 = 0x8000;

/// Where things lie in BAR 0, in bytes.
pub(crate) mod layout {
    pub(crate) const COMMON_OFFSET: u32 = 0x0000;
    pub(crate) const COMMON_BYTES: u32 = 0x40;
    pub(crate) const ISR_OFFSET: u32 = 0x1000;
    pub(crate) const DEVICE_OFFSET: u32 = 0x2000;
    pub(crate) const NOTIFY_OFFSET: u32 = 0x3000;
    /// Bytes from one queue's notify register to the next.
    pub(crate) const NOTIFY_MULTIPLIER: u32 = 4;
    pub(crate) const MSIX_TABLE_OFFSET: u32 = 0x4000;
    pub(crate) const MSIX_PENDING_OFFSET: u32 = 0x5000;
    /// Every area above has this size; what it does not fill reads as zeros.
    pub(crate) const AREA_BYTES: u32 = 0x1000;
}

/// Features of the transport and the rings, offered by every device.
const TRANSPORT_FEATURES: u64 =
    1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC;

/// Everything about a virtio device that can ever differ between two moments.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VirtioPciState {
    /// Number of the device among all virtio devices of the machine; every effect carries it.
    pub device: u16,
    /// PCI configuration space.
    pub pci: PciState,
    /// MSI-X.
    pub msix: MsixState,
    /// The transport's registers.
    pub common: CommonState,
    /// The virtqueues.
    pub queues: Vec<QueueState>,
    /// The device behind the transport.
    pub model: DeviceModel,
}

/// A virtio device behind the PCI transport.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VirtioPci {
    /// All there is: to save the device is to clone this.
    pub state: VirtioPciState,
}

impl VirtioPci {
    /// A disk. Fails if the configuration or the slot is not possible.
    pub fn new_block(device: u16, config: BlockConfig, slot: PciSlot) -> Result<Self> {
        Self::new(device, DeviceModel::Block(BlockState::new(config)), slot)
    }

    /// A network card with one pair of queues. Fails if the slot is not possible.
    pub fn new_net(device: u16, config: NetConfig, slot: PciSlot) -> Result<Self> {
        Self::new(device, DeviceModel::Net(NetState::new(config)), slot)
    }

    /// A console with one port. Fails if the slot is not possible.
    pub fn new_console(device: u16, slot: PciSlot) -> Result<Self> {
        Self::new(device, DeviceModel::Console(ConsoleState::default()), slot)
    }

    /// A source of random bytes. Fails if the slot is not possible.
    pub fn new_rng(device: u16, slot: PciSlot) -> Result<Self> {
        Self::new(device, DeviceModel::Rng(RngState::default()), slot)
    }

    fn new(device: u16, model: DeviceModel, slot: PciSlot) -> Result<Self> {
        if !slot.is_possible() {
            let reason = "its PCI slot number is above 31 or its BAR is not aligned";
            return Err(Error::Config { device, reason });
        }
        model.check().map_err(|reason| Error::Config { device, reason })?;
        let queues: Vec<_> =
            model.queue_sizes().iter().map(|size| QueueState::new(*size)).collect();
        let msix = MsixState::new(queues.len() + 1);
        let pci = PciState::new(slot);
        let state = VirtioPciState { device, pci, msix, common: CommonState::new(), queues, model };
        Ok(Self { state })
    }

    /// A device in a saved state. Has no side effects.
    ///
    /// Fails if the state is one that no guest could have led a device to, so that a damaged or
    /// forged state is refused here and never found out later.
    pub fn restore(state: VirtioPciState) -> Result<Self> {
        let refuse = |reason| Err(Error::Restore { device: state.device, reason });
        let sizes = state.model.queue_sizes();
        if let Err(reason) = state.model.check() {
            return refuse(reason);
        }
        if state.queues.len() != sizes.len() {
            return refuse("it has the wrong number of queues");
        }
        if !state.pci.is_consistent() {
            return refuse("its PCI registers hold values that they can't");
        }
        if !state.msix.is_consistent(sizes.len() + 1) {
            return refuse("its MSI-X table is not that of such a device");
        }
        for (queue, size) in state.queues.iter().zip(sizes) {
            if queue.size_max != *size || !queue.is_consistent() {
                return refuse("one of its queues has an impossible size or address");
            }
        }
        Ok(Self { state })
    }

    /// The device after the machine's reset: as new, but disk requests that are open stay open
    /// until they are completed, and their tokens are not used again.
    pub fn power_cycle(&mut self, effects: &mut Vec<Effect>) {
        let mut model = self.state.model.clone();
        model.reset(self.state.device, effects);
        // What was possible when the device was made is so still.
        if let Ok(fresh) = Self::new(self.state.device, model, self.state.pci.slot) {
            *self = fresh;
        }
    }

    /// Number of the device.
    pub fn device(&self) -> u16 {
        self.state.device
    }

    /// Where the board put the device.
    pub fn slot(&self) -> PciSlot {
        self.state.pci.slot
    }

    /// BAR 0 as address and size in bytes, while the guest has memory decoding enabled.
    pub fn bars(&self) -> Option<(u64, u64)> {
        self.state.pci.decoded_bar().map(|address| (address, u64::from(BAR_BYTES)))
    }

    /// Reads PCI configuration space. What lies beyond its 256 bytes reads as zeros.
    pub fn config_read(&mut self, offset: u16, data: &mut [u8]) {
        let mut image = self.state.pci.image(&self.identity());
        let end = usize::from(offset).saturating_add(data.len());
        if usize::from(offset) < WINDOW_DATA + 4
            && end > WINDOW_DATA
            && let Some((target, length)) = self.state.pci.window_target()
        {
            self.bar_read(target, &mut image[WINDOW_DATA..WINDOW_DATA + length]);
        }
        read_image(&image, usize::from(offset), data);
    }

    /// Writes PCI configuration space.
    ///
    /// Needs memory and effects as a BAR access does: enabling MSI-X can release pending messages,
    /// and the guest may reach the BAR through the configuration access capability.
    pub fn config_write(
        &mut self,
        memory: &GuestMemory,
        offset: u16,
        data: &[u8],
        effects: &mut Vec<Effect>,
    ) {
        let identity = self.identity();
        let written = self.state.pci.write(&identity, usize::from(offset), data);
        if let Some((enabled, masked)) = written.msix {
            self.state.msix.set_control(enabled, masked, effects);
        }
        if let Some((target, bytes, length)) = written.window {
            self.bar_write(memory, target, &bytes[..length], effects);
        }
    }

    fn identity(&self) -> Identity {
        Identity {
            device_type: self.state.model.device_type(),
            class: self.state.model.class(),
            device_config_bytes: self.state.model.config_image().as_ref().len() as u32,
            vectors: self.state.queues.len() as u16 + 1,
            msix_enabled: self.state.msix.enabled,
            msix_masked: self.state.msix.masked,
        }
    }

    fn offered_features(&self) -> u64 {
        TRANSPORT_FEATURES | self.state.model.features()
    }

    /// Runs `work` on the model with all it may reach; a broken queue ends in NEEDS_RESET.
    fn with_model(
        &mut self,
        memory: &GuestMemory,
        effects: &mut Vec<Effect>,
        work: impl FnOnce(&mut DeviceModel, &mut Context<'_>) -> std::result::Result<(), Malformed>,
    ) {
        let state = &mut self.state;
        let mut context = Context {
            memory,
            device: state.device,
            features: state.common.driver_features,
            queues: &mut state.queues,
            common: &mut state.common,
            msix: &mut state.msix,
            effects,
        };
        if work(&mut state.model, &mut context).is_err() {
            self.fail(effects);
        }
    }

    /// The guest broke the device: nothing moves until it resets it (virtio 1.2, section 2.1.2).
    fn fail(&mut self, effects: &mut Vec<Effect>) {
        let state = &mut self.state;
        let told = state.common.has(status::DRIVER_OK);
        state.common.status |= status::NEEDS_RESET;
        if told {
            state.common.notify_config_change(&mut state.msix, effects);
        }
    }

    fn reset(&mut self, effects: &mut Vec<Effect>) {
        let state = &mut self.state;
        let generation = state.common.config_generation;
        state.common = CommonState { config_generation: generation, ..CommonState::new() };
        for queue in &mut state.queues {
            *queue = QueueState::new(queue.size_max);
        }
        state.msix.pending = 0;
        state.model.reset(state.device, effects);
    }
}

impl CommonState {
    /// Tells the driver that the device's configuration changed.
    pub(crate) fn notify_config_change(&mut self, msix: &mut MsixState, effects: &mut Vec<Effect>) {
        self.config_generation = self.config_generation.wrapping_add(1);
        if msix.enabled {
            msix.fire(self.config_vector, effects);
        } else {
            self.interrupt_status |= 2;
        }
    }

    /// Tells the driver that the queue with interrupt vector `vector` has used buffers.
    pub(crate) fn notify_queue(
        &mut self,
        msix: &mut MsixState,
        vector: u16,
        effects: &mut Vec<Effect>,
    ) {
        if msix.enabled {
            msix.fire(vector, effects);
        } else {
            self.interrupt_status |= 1;
        }
    }
}

/// A vector as the device stores it: one that does not exist becomes none (virtio 1.2, section
/// 4.1.5.1.2.1).
fn vector_or_none(msix: &MsixState, vector: u16) -> u16 {
    if msix.has(vector) { vector } else { NO_VECTOR }
}

/// Copies from `image` at `offset`; beyond it there are zeros.
pub(crate) fn read_image(image: &[u8], offset: usize, data: &mut [u8]) {
    let rest = image.get(offset..).unwrap_or_default();
    let length = rest.len().min(data.len());
    data[..length].copy_from_slice(&rest[..length]);
    data[length..].fill(0);
}

const _: () = assert!(CONFIG_BYTES >= WINDOW_DATA + 4);
