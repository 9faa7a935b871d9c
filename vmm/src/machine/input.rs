//! What an input does to the machine. With the guest and its exits, the only thing that may.

use ft::Input;

use super::{Machine, Next};
use virtio_devices::BlockStatus;

impl Machine {
    /// Applies one input at the current moment.
    ///
    /// Inputs that name a device which does not exist, or that a device cannot take now, change
    /// nothing: the caller asks [`Machine::can_take`] first where that matters.
    pub fn apply(&mut self, input: &Input) -> Next {
        match input {
            // A read of time was consumed by the exit handler that asked for it.
            Input::TimeRead { .. } => {}
            Input::Tick { now_ns } => self.platform.advance(*now_ns),
            Input::Packet { device, bytes } => {
                self.on_device(*device, |d, m, e| {
                    d.receive(m, bytes, e);
                });
            }
            Input::BlockDone { device, token, status, data } => {
                let status = status_of(*status);
                self.on_device(*device, |d, m, e| d.complete(m, *token, status, data, e));
            }
            Input::Console { device, bytes } => {
                self.on_device(*device, |d, m, e| {
                    d.console_input(m, bytes, e);
                });
            }
            Input::Serial { bytes } => {
                self.platform.serial_input(bytes);
            }
            Input::Entropy { device, bytes } => {
                self.on_device(*device, |d, m, e| d.entropy(m, bytes, e));
            }
            Input::Announce { device } => self.on_device(*device, |d, _, e| d.announce(e)),
            Input::PowerButton => self.platform.power_button(),
            Input::Reset => return Next::Reset,
        }
        Next::Run
    }

    /// Whether an input would find room in its device now. A packet or a key stroke that does not
    /// waits in the shell's buffer, which is part of no machine.
    pub fn can_take(&self, input: &Input) -> bool {
        match input {
            Input::Packet { device, bytes } => self
                .virtio
                .get(usize::from(*device))
                .is_none_or(|d| d.can_receive_packet(&self.memory, bytes.len())),
            Input::Console { device, .. } => self
                .virtio
                .get(usize::from(*device))
                .is_none_or(|d| d.can_take_console_input(&self.memory)),
            Input::Serial { bytes } => self.platform.serial_room() >= bytes.len(),
            Input::TimeRead { .. }
            | Input::Tick { .. }
            | Input::BlockDone { .. }
            | Input::Entropy { .. }
            | Input::Announce { .. }
            | Input::PowerButton
            | Input::Reset => true,
        }
    }

    fn on_device(
        &mut self,
        device: u16,
        call: impl FnOnce(
            &mut virtio_devices::VirtioPci,
            &hypervisor::GuestMemory,
            &mut Vec<virtio_devices::Effect>,
        ),
    ) {
        let index = usize::from(device);
        if index < self.virtio.len() {
            self.with_device(index, call);
        }
    }
}

/// How a disk request ended, as the log's byte. What nobody writes is a failure.
pub fn status_byte(status: BlockStatus) -> u8 {
    match status {
        BlockStatus::Ok => 0,
        BlockStatus::IoError => 1,
        BlockStatus::Unsupported => 2,
    }
}

fn status_of(byte: u8) -> BlockStatus {
    match byte {
        0 => BlockStatus::Ok,
        2 => BlockStatus::Unsupported,
        _ => BlockStatus::IoError,
    }
}
