//! The devices behind the transport, as one closed set.
//!
//! Owns what all models have in common: what they may reach while they run, and which questions the
//! transport asks them. No `dyn`: a new kind of device does not compile until every match knows it.

pub(crate) mod block;
pub(crate) mod console;
pub(crate) mod net;
pub(crate) mod rng;

use serde::{Deserialize, Serialize};

use crate::GuestMemory;
use crate::effect::Effect;
use crate::interrupt::MsixState;
use crate::pci::common::CommonState;
use crate::queue::{Malformed, QueueState, Walk};

/// The device behind the transport.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceModel {
    /// A disk.
    Block(block::BlockState),
    /// A network card.
    Net(net::NetState),
    /// A console.
    Console(console::ConsoleState),
    /// A source of random bytes.
    Rng(rng::RngState),
}

/// All that a model may reach while it runs.
pub(crate) struct Context<'a> {
    pub(crate) memory: &'a GuestMemory,
    /// Number of the device, for its effects.
    pub(crate) device: u16,
    /// Negotiated features.
    pub(crate) features: u64,
    pub(crate) queues: &'a mut [QueueState],
    pub(crate) common: &'a mut CommonState,
    pub(crate) msix: &'a mut MsixState,
    pub(crate) effects: &'a mut Vec<Effect>,
}

impl<'a> Context<'a> {
    /// Whether a feature, given by its bit number, was negotiated.
    pub(crate) fn negotiated(&self, feature: u32) -> bool {
        has(self.features, feature)
    }

    /// Starts a walk over a queue; none if the driver has not enabled it.
    pub(crate) fn walk(&self, queue: usize) -> Result<Option<Walk<'a>>, Malformed> {
        match self.queues.get(queue) {
            Some(state) if state.ready => state.walk(self.memory).map(Some),
            Some(_) | None => Ok(None),
        }
    }

    /// Ends a walk and interrupts the driver if it wants to know; see [`Walk::finish`].
    pub(crate) fn finish(
        &mut self,
        queue: usize,
        walk: Walk<'_>,
        low_water: u16,
    ) -> Result<(), Malformed> {
        let state = self.queues.get_mut(queue).ok_or(Malformed)?;
        if walk.finish(state, low_water)? {
            self.common.notify_queue(self.msix, state.vector, self.effects);
        }
        Ok(())
    }
}

/// Whether `features` has the bit with this number.
pub(crate) fn has(features: u64, feature: u32) -> bool {
    features >> feature & 1 != 0
}

/// The bytes of a device's configuration, at most 60.
pub(crate) struct ConfigImage {
    bytes: [u8; 60],
    length: usize,
}

impl ConfigImage {
    fn new(length: usize) -> Self {
        Self { bytes: [0; 60], length: length.min(60) }
    }

    fn put(mut self, at: usize, bytes: &[u8]) -> Self {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }
}

impl AsRef<[u8]> for ConfigImage {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

impl DeviceModel {
    /// Virtio device type (virtio 1.2, section 5).
    pub(crate) fn device_type(&self) -> u16 {
        match self {
            Self::Net(_) => 1,
            Self::Block(_) => 2,
            Self::Console(_) => 3,
            Self::Rng(_) => 4,
        }
    }

    /// PCI class, subclass and programming interface.
    pub(crate) fn class(&self) -> u32 {
        match self {
            Self::Net(_) => 0x02_00_00,
            Self::Block(_) => 0x01_80_00,
            Self::Console(_) => 0x07_80_00,
            Self::Rng(_) => 0x00_ff_00,
        }
    }

    /// Features of the device, without those of the transport.
    pub(crate) fn features(&self) -> u64 {
        match self {
            Self::Net(net) => net.features(),
            Self::Block(block) => block.features(),
            Self::Console(_) | Self::Rng(_) => 0,
        }
    }

    /// The largest size of each queue, in descriptors.
    pub(crate) fn queue_sizes(&self) -> &'static [u16] {
        match self {
            Self::Net(_) => &[256, 256, 64],
            Self::Block(_) => &[block::QUEUE_SIZE],
            Self::Console(_) => &[64, 64],
            Self::Rng(_) => &[rng::QUEUE_SIZE],
        }
    }

    /// The device's configuration as the driver reads it.
    pub(crate) fn config_image(&self) -> ConfigImage {
        match self {
            Self::Net(net) => net.config_image(),
            Self::Block(block) => block.config_image(),
            Self::Console(console) => console.config_image(),
            Self::Rng(_) => ConfigImage::new(0),
        }
    }

    /// Whether a guest could have led a device to this state; if not, why.
    pub(crate) fn check(&self) -> Result<(), &'static str> {
        match self {
            Self::Net(net) => net.check(),
            Self::Block(block) => block.check(),
            Self::Console(_) => Ok(()),
            Self::Rng(rng) => rng.check(),
        }
    }

    /// The driver says that it made buffers available in `queue`, which is ready.
    pub(crate) fn kick(
        &mut self,
        queue: usize,
        context: &mut Context<'_>,
    ) -> Result<(), Malformed> {
        match self {
            Self::Net(net) => net.kick(queue, context),
            Self::Block(block) => block.process(context),
            Self::Console(console) => console.kick(queue, context),
            Self::Rng(rng) => rng.kick(context),
        }
    }

    /// The driver set DRIVER_OK.
    pub(crate) fn activate(&mut self, context: &mut Context<'_>) -> Result<(), Malformed> {
        match self {
            Self::Net(net) => {
                net.activate(context);
                Ok(())
            }
            Self::Block(_) | Self::Console(_) | Self::Rng(_) => Ok(()),
        }
    }

    /// The driver reset the device.
    pub(crate) fn reset(&mut self, device: u16, effects: &mut Vec<Effect>) {
        match self {
            Self::Net(net) => net.reset(device, effects),
            Self::Block(block) => block.reset(),
            Self::Console(_) => {}
            Self::Rng(rng) => rng.pending.clear(),
        }
    }
}
