//! All platform devices together: their state, their interrupt lines, their timers.
//!
//! Owns the composition and nothing else. Who answers at which address is in [`super::bus`]; each
//! device's behaviour is in its own file.

use serde::{Deserialize, Serialize};

use super::{
    AcpiPmState, IoApicState, LapicState, PciHostState, PicState, PitState, RtcState, UartState,
    lapic::InterruptMessage,
};
use crate::board::layout::{LAPIC_ADDRESS, RTC_IRQ, SCI_IRQ, SERIAL_IRQ, TIMER_GSI};

/// The timer's interrupt, as the 8259 counts.
pub(super) const TIMER_IRQ: u8 = 0;

/// What the platform depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlatformConfig {
    /// Whether the first serial line exists.
    pub serial: bool,
    /// What the real-time clock shows at machine time 0, in nanoseconds since 1970, UTC.
    pub boot_time_unix_ns: i64,
}

/// The state of every platform device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlatformState {
    /// 8259 interrupt controllers.
    pub pic: PicState,
    /// 8254 interval timer.
    pub pit: PitState,
    /// Real-time clock.
    pub rtc: RtcState,
    /// First serial line, if there is one.
    pub uart: Option<UartState>,
    /// ACPI registers.
    pub acpi_pm: AcpiPmState,
    /// Local APIC of the only processor.
    pub lapic: LapicState,
    /// I/O APIC.
    pub ioapic: IoApicState,
    /// PCI configuration mechanism.
    pub pci_host: PciHostState,
}

/// The platform devices and their wiring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Platform {
    /// Everything that there is to know of it.
    pub state: PlatformState,
}

impl Platform {
    /// The platform after power-on.
    #[must_use]
    pub fn new(config: PlatformConfig) -> Self {
        let state = PlatformState {
            pic: PicState::new(1 << SCI_IRQ),
            pit: PitState::new(),
            rtc: RtcState::new(config.boot_time_unix_ns),
            uart: config.serial.then(UartState::new),
            acpi_pm: AcpiPmState::new(),
            lapic: LapicState::new(0),
            ioapic: IoApicState::new(),
            pci_host: PciHostState::default(),
        };
        Self { state }
    }

    /// The platform in a given state.
    ///
    /// # Errors
    ///
    /// The state is one that no guest could have led a platform to, and that the models could not
    /// go on from: which device's it is. A damaged or forged state is found out here and never later.
    pub fn restore(state: PlatformState) -> Result<Self, &'static str> {
        let PlatformState { pic, pit, rtc, uart, .. } = &state;
        // Of the others every value of every field is one that a model can go on from.
        let parts = [
            ("the interrupt controller", pic.is_consistent()),
            ("the interval timer", pit.is_consistent()),
            ("the real-time clock", rtc.is_consistent()),
            ("the serial line", uart.as_ref().is_none_or(UartState::is_consistent)),
        ];
        match parts.into_iter().find(|(_, consistent)| !consistent) {
            Some((device, _)) => Err(device),
            None => Ok(Self { state }),
        }
    }

    /// A copy of its state.
    #[must_use]
    pub fn state(&self) -> PlatformState {
        self.state.clone()
    }

    /// After an access: what is due at the time it saw happens, then the lines follow the devices.
    ///
    /// A guest therefore never sees a time whose timer interrupt is not pending yet.
    pub(super) fn settle(&mut self, time: Option<u64>) {
        if let Some(now) = time {
            self.advance(now);
        } else {
            self.update_lines();
        }
    }

    /// The platform after the machine's reset. The clock's battery keeps it going.
    pub fn power_cycle(&mut self) {
        let serial = self.state.uart.is_some();
        let rtc = self.state.rtc.clone();
        *self = Self::new(PlatformConfig { serial, boot_time_unix_ns: 0 });
        self.state.rtc = rtc;
    }

    /// Fires every timer due at or before `now`, in ns of machine time. A periodic timer that is
    /// several periods late fires once.
    pub fn advance(&mut self, now: u64) {
        if self.state.pit.advance(now) {
            self.set_isa_line(TIMER_IRQ, false);
            self.set_isa_line(TIMER_IRQ, true);
        }
        self.state.rtc.advance(now);
        self.state.acpi_pm.advance(now);
        self.state.lapic.advance(now);
        self.update_lines();
    }

    /// When [`Self::advance`] is next needed, in ns of machine time. May lie in the past.
    ///
    /// Timers whose interrupt nobody would see do not count, so an idle guest is left alone.
    #[must_use]
    pub fn next_deadline(&self) -> Option<u64> {
        let state = &self.state;
        let pit_seen = !state.pit.periodic() || self.timer_unmasked();
        let deadlines = [
            state.pit.next_deadline().filter(|_| pit_seen),
            state.rtc.next_deadline(),
            state.acpi_pm.next_deadline(),
            state.lapic.next_deadline(),
        ];
        deadlines.into_iter().flatten().min()
    }

    fn timer_unmasked(&self) -> bool {
        let state = &self.state;
        let by_pic = state.lapic.passes_external() && state.pic.unmasked(TIMER_IRQ);
        by_pic || state.ioapic.unmasked(TIMER_GSI)
    }

    fn update_lines(&mut self) {
        let serial = self.state.uart.as_ref().is_some_and(UartState::interrupt);
        self.set_isa_line(SERIAL_IRQ, serial);
        self.set_isa_line(RTC_IRQ, self.state.rtc.interrupt());
        self.set_isa_line(SCI_IRQ, self.state.acpi_pm.interrupt());
    }

    pub(super) fn set_isa_line(&mut self, irq: u8, level: bool) {
        let PlatformState { pic, ioapic, lapic, .. } = &mut self.state;
        pic.set_line(irq, level);
        ioapic.set_line(if irq == TIMER_IRQ { TIMER_GSI } else { irq }, level, lapic);
    }

    /// Sets the level of a global system interrupt, 0 to 23.
    ///
    /// Those of the platform's own devices (2, 4, 8 and 9) follow the devices.
    pub fn set_line(&mut self, gsi: u8, level: bool) {
        if gsi < 16 && gsi != TIMER_GSI {
            self.state.pic.set_line(gsi, level);
        }
        self.state.ioapic.set_line(gsi, level, &mut self.state.lapic);
    }

    /// A PCI function writes `data` to `address`: a message-signalled interrupt (Intel SDM volume
    /// 3, section 11.11), if the address is one of theirs.
    pub fn msi(&mut self, address: u64, data: u32) {
        if address >> 20 != LAPIC_ADDRESS >> 20 {
            return;
        }
        self.state.lapic.receive(&InterruptMessage {
            vector: data as u8,
            delivery: (data >> 8 & 0b111) as u8,
            logical: address & 1 << 2 != 0,
            destination: (address >> 12) as u8,
            level_triggered: data & 1 << 15 != 0,
        });
    }

    /// Whether an interrupt waits that the processor can be given as soon as it takes any.
    #[must_use]
    pub fn pending_interrupt(&self) -> bool {
        self.external_pending() || self.state.lapic.deliverable().is_some()
    }

    fn external_pending(&self) -> bool {
        self.state.lapic.passes_external() && self.state.pic.pending()
    }

    /// The processor takes an interrupt: its vector. `None` if none waits.
    pub fn acknowledge(&mut self) -> Option<u8> {
        if self.external_pending() {
            return self.state.pic.acknowledge();
        }
        self.state.lapic.acknowledge()
    }

    /// The task priority register, 8 bit. CR8 is its upper half: `tpr() >> 4`.
    #[must_use]
    pub fn tpr(&self) -> u8 {
        self.state.lapic.task_priority
    }

    /// Sets the task priority register. For a new CR8, pass `cr8 << 4`.
    pub fn set_tpr(&mut self, task_priority: u8) {
        self.state.lapic.task_priority = task_priority;
    }

    /// Bytes arrive on the serial line; how many it took. Without a line it takes all.
    pub fn serial_input(&mut self, bytes: &[u8]) -> usize {
        let taken = self.state.uart.as_mut().map_or(bytes.len(), |uart| uart.receive(bytes));
        self.update_lines();
        taken
    }

    /// Bytes that [`Self::serial_input`] would take now.
    #[must_use]
    pub fn serial_room(&self) -> usize {
        self.state.uart.as_ref().map_or(usize::MAX, UartState::room)
    }

    /// Somebody presses the power button.
    pub fn power_button(&mut self) {
        self.state.acpi_pm.press_power_button();
        self.update_lines();
    }
}
