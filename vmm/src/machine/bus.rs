//! Where an address leads: ports and memory-mapped registers to platform and PCI functions.
//!
//! Owns the routing and the translation of device effects into interrupts and outputs. Does not
//! own addresses (`crate::board`) or any register.

use ft::{BlockOp, Output};
use virtio_devices::{BlockKind, Effect, VirtioPci};

use super::{Machine, Next};
use crate::devices::{Clock, Effect as PlatformEffect};

impl Machine {
    pub(super) fn io_read(&mut self, port: u16, data: &mut [u8], clock: &mut dyn Clock) {
        if let Some((slot, offset)) = self.pci_target(port, data.len()) {
            match slot_index(slot).and_then(|index| self.virtio.get_mut(index)) {
                Some(function) => function.config_read(offset, data),
                None => data.fill(0xff),
            }
        } else if !self.platform.io_read(port, data, clock) {
            data.fill(0xff);
        }
    }

    pub(super) fn io_write(&mut self, port: u16, data: &[u8], clock: &mut dyn Clock) -> Next {
        if let Some((slot, offset)) = self.pci_target(port, data.len()) {
            if let Some(index) = slot_index(slot).filter(|index| *index < self.virtio.len()) {
                self.with_device(index, |device, memory, effects| {
                    device.config_write(memory, offset, data, effects);
                });
            }
            return Next::Run;
        }
        let mut effects = Vec::new();
        self.platform.io_write(port, data, clock, &mut effects);
        self.carry_out_platform(effects)
    }

    pub(super) fn mmio_read(&mut self, address: u64, data: &mut [u8], clock: &mut dyn Clock) {
        if self.platform.mmio_read(address, data, clock) {
            return;
        }
        match self.function_at(address, data.len()) {
            Some((index, offset)) => self.virtio[index].bar_read(offset, data),
            None => data.fill(0xff),
        }
    }

    pub(super) fn mmio_write(&mut self, address: u64, data: &[u8], clock: &mut dyn Clock) -> Next {
        let mut effects = Vec::new();
        if self.platform.mmio_write(address, data, clock, &mut effects) {
            return self.carry_out_platform(effects);
        }
        if let Some((index, offset)) = self.function_at(address, data.len()) {
            self.with_device(index, |device, memory, effects| {
                device.bar_write(memory, offset, data, effects);
            });
        }
        Next::Run
    }

    /// The virtio function and register behind a data port of the PCI configuration mechanism.
    /// Slot 0 is the host bridge, which the platform answers for.
    fn pci_target(&self, port: u16, length: usize) -> Option<(u8, u16)> {
        let target = self.platform.state.pci_host.decode(port, length)?;
        (target.slot > 0 && target.function == 0).then_some((target.slot, target.offset.into()))
    }

    /// Calls one virtio function and carries out what it wants.
    pub(super) fn with_device<T>(
        &mut self,
        index: usize,
        call: impl FnOnce(
            &mut virtio_devices::VirtioPci,
            &hypervisor::GuestMemory,
            &mut Vec<Effect>,
        ) -> T,
    ) -> T {
        let mut effects = std::mem::take(&mut self.effects);
        let result = call(&mut self.virtio[index], &self.memory, &mut effects);
        for effect in effects.drain(..) {
            self.carry_out(effect);
        }
        self.effects = effects;
        result
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Msi { address, data } => self.platform.msi(address, data),
            Effect::Packet { .. }
            | Effect::NetOffloads { .. }
            | Effect::Block { .. }
            | Effect::Console { .. }
            | Effect::Entropy { .. } => self.outputs.extend(output(effect)),
        }
    }

    /// What a new shell has to do to take the place of one that is gone: requests of the guest
    /// that have no answer yet, and how its back ends are to behave.
    pub fn standing_outputs(&self) -> Vec<Output> {
        self.virtio.iter().flat_map(VirtioPci::standing_effects).filter_map(output).collect()
    }

    fn carry_out_platform(&mut self, effects: Vec<PlatformEffect>) -> Next {
        let mut next = Next::Run;
        for effect in effects {
            match effect {
                PlatformEffect::Serial(bytes) => self.push_serial(&bytes),
                PlatformEffect::Reset => next = Next::Reset,
                PlatformEffect::PowerOff => next = Next::PowerOff,
            }
        }
        next
    }

    /// A UART sends byte by byte: bytes of one batch of outputs are joined.
    fn push_serial(&mut self, bytes: &[u8]) {
        if let Some(Output::Serial { bytes: last }) = self.outputs.last_mut() {
            last.extend_from_slice(bytes);
        } else {
            self.outputs.push(Output::Serial { bytes: bytes.to_vec() });
        }
    }

    /// The virtio function whose BAR holds the whole access, and the offset into it.
    fn function_at(&self, address: u64, length: usize) -> Option<(usize, u64)> {
        self.virtio.iter().enumerate().find_map(|(index, function)| {
            let (start, size) = function.bars()?;
            let offset = address.checked_sub(start)?;
            (offset.checked_add(length as u64)? <= size).then_some((index, offset))
        })
    }
}

/// The output that an effect asks for; an interrupt stays inside the machine.
fn output(effect: Effect) -> Option<Output> {
    Some(match effect {
        Effect::Msi { .. } => return None,
        Effect::Packet { device, bytes } => Output::Packet { device, bytes },
        Effect::NetOffloads { device, offloads } => Output::NetOffloads { device, offloads },
        Effect::Block { device, request } => {
            let op = match request.kind {
                BlockKind::Read { sector, length } => BlockOp::Read { sector, length },
                BlockKind::Write { sector, data } => BlockOp::Write { sector, data },
                BlockKind::Flush => BlockOp::Flush,
            };
            Output::Block { device, token: request.token, op }
        }
        Effect::Console { device, bytes } => Output::Console { device, bytes },
        Effect::Entropy { device, length } => Output::Entropy { device, length },
    })
}

/// The place of a PCI slot's function; slot 0 is the host bridge.
fn slot_index(slot: u8) -> Option<usize> {
    slot.checked_sub(1).map(usize::from)
}
