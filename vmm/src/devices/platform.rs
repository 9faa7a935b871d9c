//! All platform devices together: who answers at which address, and how interrupts are wired.
//!
//! Owns the composition and nothing else; each device's behaviour is in its own file.

use serde::{Deserialize, Serialize};

use super::{
    AcpiPmState, Clock, Effect, IoApicState, LapicState, PciHostState, PicState, PitState,
    RtcState, UartState,
    lapic::InterruptMessage,
    pci_host::{self, ADDRESS_PORT, DATA_PORT},
    reset,
};
use crate::board::layout::{
    APIC_PAGE_SIZE, GPE0_PORT, IOAPIC_ADDRESS, LAPIC_ADDRESS, PM_TIMER_PORT, PM1_EVENT_PORT,
    RESET_PORT, RTC_IRQ, SCI_IRQ, SERIAL_IRQ, SERIAL_PORT, TIMER_GSI,
};

/// The timer's interrupt, as the 8259 counts.
const TIMER_IRQ: u8 = 0;

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

/// A clock that asks the real one at most once, so that an access has one time.
struct AccessClock<'a> {
    source: &'a mut dyn Clock,
    time: Option<u64>,
}

impl Clock for AccessClock<'_> {
    fn now(&mut self) -> u64 {
        *self.time.get_or_insert_with(|| self.source.now())
    }
}

impl Platform {
    /// The platform after power-on.
    #[must_use]
    pub fn new(config: &PlatformConfig) -> Self {
        Self::restore(PlatformState {
            pic: PicState::new(1 << SCI_IRQ),
            pit: PitState::new(),
            rtc: RtcState::new(config.boot_time_unix_ns),
            uart: config.serial.then(UartState::new),
            acpi_pm: AcpiPmState::new(),
            lapic: LapicState::new(0),
            ioapic: IoApicState::new(),
            pci_host: PciHostState::default(),
        })
    }

    /// The platform in a given state.
    #[must_use]
    pub fn restore(state: PlatformState) -> Self {
        Self { state }
    }

    /// A copy of its state.
    #[must_use]
    pub fn state(&self) -> PlatformState {
        self.state.clone()
    }

    /// The guest reads `data.len()` bytes from `port`. Whether anything answers; if not, `data` is
    /// untouched and the guest is to see ones.
    ///
    /// Configuration accesses to PCI slots other than the host bridge are not answered: the machine
    /// looks at [`PciHostState::decode`] first.
    pub fn io_read(&mut self, port: u16, data: &mut [u8], clock: &mut dyn Clock) -> bool {
        let mut clock = AccessClock { source: clock, time: None };
        let claimed = self.read_port(port, data, &mut clock);
        self.settle(clock.time);
        claimed
    }

    fn read_port(&mut self, port: u16, data: &mut [u8], clock: &mut dyn Clock) -> bool {
        match port {
            PM1_EVENT_PORT..=0x60b | GPE0_PORT..=0x623 => {
                self.state.acpi_pm.read(port, data, clock)
            }
            ADDRESS_PORT if data.len() == 4 => {
                data.copy_from_slice(&self.state.pci_host.address_read().to_le_bytes());
                true
            }
            DATA_PORT..=0xcff => match self.state.pci_host.decode(port, data.len()) {
                Some(target) if target.slot == 0 && target.function == 0 => {
                    pci_host::read_host_bridge(target.offset, data);
                    true
                }
                _ => false,
            },
            _ => self.read_bytes(port, data, clock),
        }
    }

    /// A wide access to devices of a byte's width is one access to each port.
    fn read_bytes(&mut self, port: u16, data: &mut [u8], clock: &mut dyn Clock) -> bool {
        let mut claimed = false;
        for (index, byte) in data.iter_mut().enumerate() {
            let value = self.read_byte(port.wrapping_add(index as u16), clock);
            if value.is_none() && !claimed {
                return false;
            }
            claimed = true;
            *byte = value.unwrap_or(0xff);
        }
        claimed
    }

    fn read_byte(&mut self, port: u16, clock: &mut dyn Clock) -> Option<u8> {
        let state = &mut self.state;
        Some(match port {
            0x20 | 0x21 | 0xa0 | 0xa1 | 0x4d0 | 0x4d1 => state.pic.read(port),
            0x40..=0x43 | 0x61 => state.pit.read(port, clock),
            0x70 | 0x71 => state.rtc.read(port, clock),
            reset::KEYBOARD_PORT | reset::CONTROL_PORT | RESET_PORT => reset::read(port),
            SERIAL_PORT..=0x3ff => state.uart.as_mut()?.read(port - SERIAL_PORT),
            _ => return None,
        })
    }

    /// The guest writes to `port`; what the world has to do is appended to `effects`. Whether
    /// anything took the write.
    pub fn io_write(
        &mut self,
        port: u16,
        data: &[u8],
        clock: &mut dyn Clock,
        effects: &mut Vec<Effect>,
    ) -> bool {
        let mut clock = AccessClock { source: clock, time: None };
        let claimed = self.write_port(port, data, &mut clock, effects);
        self.settle(clock.time);
        claimed
    }

    fn write_port(
        &mut self,
        port: u16,
        data: &[u8],
        clock: &mut dyn Clock,
        effects: &mut Vec<Effect>,
    ) -> bool {
        match (port, data) {
            (PM1_EVENT_PORT..=0x60b | GPE0_PORT..=0x623, _) => {
                self.state.acpi_pm.write(port, data, clock, effects)
            }
            (ADDRESS_PORT, &[a, b, c, d]) => {
                self.state.pci_host.address_write(u32::from_le_bytes([a, b, c, d]));
                true
            }
            // Nothing in the host bridge can be written.
            (DATA_PORT..=0xcff, _) => {
                let target = self.state.pci_host.decode(port, data.len());
                target.is_some_and(|target| target.slot == 0 && target.function == 0)
            }
            _ => data.iter().enumerate().fold(false, |claimed, (index, byte)| {
                let port = port.wrapping_add(index as u16);
                self.write_byte(port, *byte, clock, effects) || claimed
            }),
        }
    }

    fn write_byte(
        &mut self,
        port: u16,
        value: u8,
        clock: &mut dyn Clock,
        effects: &mut Vec<Effect>,
    ) -> bool {
        let state = &mut self.state;
        match port {
            0x20 | 0x21 | 0xa0 | 0xa1 | 0x4d0 | 0x4d1 => state.pic.write(port, value),
            0x40..=0x43 | 0x61 => {
                if state.pit.write(port, value, clock) {
                    self.set_isa_line(TIMER_IRQ, false);
                }
            }
            0x70 | 0x71 => state.rtc.write(port, value, clock),
            // Delays of old drivers end here.
            0x80 => {}
            reset::KEYBOARD_PORT | reset::CONTROL_PORT | RESET_PORT => {
                if reset::resets(port, value) {
                    effects.push(Effect::Reset);
                }
            }
            SERIAL_PORT..=0x3ff => {
                let Some(uart) = &mut state.uart else { return false };
                if let Some(byte) = uart.write(port - SERIAL_PORT, value) {
                    push_serial(effects, byte);
                }
            }
            _ => return false,
        }
        true
    }

    /// The guest reads device memory. As [`Self::io_read`].
    pub fn mmio_read(&mut self, address: u64, data: &mut [u8], clock: &mut dyn Clock) -> bool {
        let mut clock = AccessClock { source: clock, time: None };
        let value = match page(address) {
            Some((LAPIC_ADDRESS, offset)) => self.state.lapic.read(offset & !0xf, &mut clock),
            Some((_, offset)) => self.state.ioapic.read(offset & !0xf),
            None => return false,
        };
        for (index, byte) in data.iter_mut().enumerate() {
            // Registers are 32 bits wide and 16 bytes apart; between them there is nothing.
            let offset = (address as usize & 0xf) + index;
            *byte = value.to_le_bytes().get(offset).copied().unwrap_or(0);
        }
        self.settle(clock.time);
        true
    }

    /// The guest writes to device memory. As [`Self::io_write`].
    ///
    /// Both APICs take only aligned 32-bit writes, as the manual demands; others are dropped.
    pub fn mmio_write(
        &mut self,
        address: u64,
        data: &[u8],
        clock: &mut dyn Clock,
        _effects: &mut Vec<Effect>,
    ) -> bool {
        let Some((base, offset)) = page(address) else { return false };
        let &[a, b, c, d] = data else { return true };
        if offset & 0xf != 0 {
            return true;
        }
        let value = u32::from_le_bytes([a, b, c, d]);
        let mut clock = AccessClock { source: clock, time: None };
        let PlatformState { lapic, ioapic, .. } = &mut self.state;
        if base == LAPIC_ADDRESS {
            if let Some(vector) = lapic.write(offset, value, &mut clock) {
                ioapic.end_of_interrupt(vector, lapic);
            }
        } else {
            ioapic.write(offset, value, lapic);
        }
        self.settle(clock.time);
        true
    }

    /// After an access: what is due at the time it saw happens, then the lines follow the devices.
    ///
    /// A guest therefore never sees a time whose timer interrupt is not pending yet.
    fn settle(&mut self, time: Option<u64>) {
        if let Some(now) = time {
            self.advance(now);
        } else {
            self.update_lines();
        }
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

    fn set_isa_line(&mut self, irq: u8, level: bool) {
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

/// Start of the APIC page that `address` is in, and the offset into it.
fn page(address: u64) -> Option<(u64, u16)> {
    let base = address & !(APIC_PAGE_SIZE - 1);
    matches!(base, LAPIC_ADDRESS | IOAPIC_ADDRESS).then_some((base, (address - base) as u16))
}

fn push_serial(effects: &mut Vec<Effect>, byte: u8) {
    if let Some(Effect::Serial(bytes)) = effects.last_mut() {
        bytes.push(byte);
    } else {
        effects.push(Effect::Serial(vec![byte]));
    }
}

const _: () = {
    // The port ranges in the matches above.
    assert!(PM_TIMER_PORT + 4 == 0x60c && GPE0_PORT + 4 == 0x624 && SERIAL_PORT + 8 == 0x400);
};
