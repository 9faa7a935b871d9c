//! The platform devices: what a PC has besides its processor, memory and PCI functions.
//!
//! Pure register machines. They change only because the guest accessed a register or because the
//! machine applied an input; they know no clock (time is an argument), no file and no thread. Every
//! device *is* its state, a plain struct that can be cloned, compared and serialised, and
//! [`PlatformState`] names them all.
//!
//! Not here: virtio (crate `virtio-devices`) and the addresses of things (`board::layout`).

mod acpi_pm;
mod bus;
mod calendar;
mod ioapic;
mod lapic;
mod lapic_timer;
mod pci_host;
mod pic;
mod pit;
mod platform;
mod reset;
mod rtc;
mod ticks;
mod uart;

#[cfg(test)]
mod linux_tests;
#[cfg(test)]
mod property_tests;

pub use acpi_pm::AcpiPmState;
pub use ioapic::IoApicState;
pub use lapic::LapicState;
pub use lapic_timer::LapicTimerState;
pub use pci_host::{PciHostState, PciTarget};
pub use pic::PicState;
pub use pit::PitState;
pub use platform::{Platform, PlatformConfig, PlatformState};
pub use rtc::RtcState;
pub use uart::UartState;

/// Where a device model gets the time from when a register access needs it.
///
/// The machine records each answer, so a model asks at most once in an access, and only if the
/// access cannot be answered without.
pub trait Clock {
    /// Machine time in nanoseconds: 0 when the machine was created, never going back.
    fn now(&mut self) -> u64;
}

/// What a register access asks of the world outside the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Bytes leave the serial line.
    Serial(Vec<u8>),
    /// The guest reset the machine.
    Reset,
    /// The guest switched the machine off.
    PowerOff,
}

/// Periodic timers raise at most one interrupt in this time, however short their period.
///
/// A guest could otherwise keep the machine busy with timer inputs for ever.
const PERIODIC_MINIMUM_NS: u64 = 100_000;
