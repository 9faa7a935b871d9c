//! The I/O APIC: 24 pins, each with an entry that says which vector goes to which processor.
//!
//! Owns the pins' levels and the redirection table. Modelled after the 82093AA with the end-of-
//! interrupt register of version 0x20, which spares Linux the detour it takes for older versions.
//! Entries in external (8259) mode deliver nothing: that path goes through the local APIC's LINT0.

use serde::{Deserialize, Serialize};

use super::lapic::{InterruptMessage, LapicState};
use crate::board::layout::{IOAPIC_ID, IOAPIC_PINS};

const PINS: usize = IOAPIC_PINS as usize;
const VERSION: u32 = (IOAPIC_PINS as u32 - 1) << 16 | 0x20;

const REMOTE_IRR: u64 = 1 << 14;
const LEVEL: u64 = 1 << 15;
const MASKED: u64 = 1 << 16;
const WRITABLE: u64 = 0xff00_0000_0001_afff;

/// Registers of the I/O APIC.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoApicState {
    /// APIC id, 4 bit.
    pub id: u8,
    /// Index register.
    pub select: u8,
    /// Levels of the pins, a bit each.
    pub lines: u32,
    /// Redirection table.
    pub entries: [u64; PINS],
}

impl IoApicState {
    /// After reset: every pin masked.
    pub(super) fn new() -> Self {
        Self { id: IOAPIC_ID, select: 0, lines: 0, entries: [MASKED; PINS] }
    }

    /// Whether a rising edge at `pin` would go anywhere.
    pub(super) fn unmasked(&self, pin: u8) -> bool {
        self.entries.get(usize::from(pin)).is_some_and(|entry| entry & MASKED == 0)
    }

    /// Sets the level of a pin. Pins past the last do not exist.
    pub(super) fn set_line(&mut self, pin: u8, level: bool, lapic: &mut LapicState) {
        if pin >= IOAPIC_PINS {
            return;
        }
        let bit = 1u32 << pin;
        let rising = level && self.lines & bit == 0;
        self.lines = if level { self.lines | bit } else { self.lines & !bit };
        let entry = self.entries[usize::from(pin)];
        // An edge at a masked pin is lost, as the 82093AA's data sheet says.
        if entry & LEVEL != 0 {
            self.serve_level(pin, lapic);
        } else if rising && entry & MASKED == 0 {
            lapic.receive(&message(entry));
        }
    }

    fn serve_level(&mut self, pin: u8, lapic: &mut LapicState) {
        let entry = &mut self.entries[usize::from(pin)];
        let idle = *entry & (LEVEL | MASKED | REMOTE_IRR) == LEVEL;
        if idle && self.lines & 1 << pin != 0 && lapic.receive(&message(*entry)) {
            *entry |= REMOTE_IRR;
        }
    }

    /// A processor has served `vector`.
    pub(super) fn end_of_interrupt(&mut self, vector: u8, lapic: &mut LapicState) {
        for pin in 0..IOAPIC_PINS {
            let entry = &mut self.entries[usize::from(pin)];
            if *entry & (LEVEL | REMOTE_IRR) == LEVEL | REMOTE_IRR && *entry as u8 == vector {
                *entry &= !REMOTE_IRR;
                self.serve_level(pin, lapic);
            }
        }
    }

    /// Reads at `offset` into the page.
    pub(super) fn read(&self, offset: u16) -> u32 {
        match offset {
            0x00 => u32::from(self.select),
            0x10 => self.read_selected(),
            _ => 0,
        }
    }

    fn read_selected(&self) -> u32 {
        match self.select {
            0x00 | 0x02 => u32::from(self.id) << 24,
            0x01 => VERSION,
            _ => self.selected_pin().map_or(0, |pin| {
                let entry = self.entries[pin];
                if self.select & 1 == 0 { entry as u32 } else { (entry >> 32) as u32 }
            }),
        }
    }

    fn selected_pin(&self) -> Option<usize> {
        let pin = usize::from(self.select.checked_sub(0x10)? >> 1);
        (pin < PINS).then_some(pin)
    }

    /// Writes at `offset` into the page.
    pub(super) fn write(&mut self, offset: u16, value: u32, lapic: &mut LapicState) {
        match offset {
            0x00 => self.select = value as u8,
            0x10 => self.write_selected(value, lapic),
            0x40 => self.end_of_interrupt(value as u8, lapic),
            _ => {}
        }
    }

    fn write_selected(&mut self, value: u32, lapic: &mut LapicState) {
        if self.select == 0 {
            self.id = (value >> 24) as u8 & 0xf;
        }
        let Some(pin) = self.selected_pin() else { return };
        let old = self.entries[pin];
        let new = if self.select & 1 == 0 {
            old & !0xffff_ffff | u64::from(value)
        } else {
            old & 0xffff_ffff | u64::from(value) << 32
        };
        // Going to edge-triggered forgets that a level-triggered interrupt is being served.
        let kept = if new & LEVEL != 0 { old & REMOTE_IRR } else { 0 };
        self.entries[pin] = new & WRITABLE | kept;
        self.serve_level(pin as u8, lapic);
    }
}

fn message(entry: u64) -> InterruptMessage {
    InterruptMessage {
        vector: entry as u8,
        delivery: (entry >> 8 & 0b111) as u8,
        logical: entry & 1 << 11 != 0,
        destination: (entry >> 56) as u8,
        level_triggered: entry & LEVEL != 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct NoClock;
    impl super::super::Clock for NoClock {
        fn now(&mut self) -> u64 {
            panic!("no register here needs the time")
        }
    }

    fn enabled_lapic() -> LapicState {
        let mut lapic = LapicState::new(0);
        lapic.write(0x0f0, 0x1ff, &mut NoClock);
        lapic
    }

    fn write(ioapic: &mut IoApicState, lapic: &mut LapicState, register: u8, value: u32) {
        ioapic.write(0x00, u32::from(register), lapic);
        ioapic.write(0x10, value, lapic);
    }

    fn end(ioapic: &mut IoApicState, lapic: &mut LapicState) {
        if let Some(vector) = lapic.write(0x0b0, 0, &mut NoClock) {
            ioapic.end_of_interrupt(vector, lapic);
        }
    }

    #[test]
    fn an_edge_is_delivered_once_and_lost_when_masked() {
        let (mut ioapic, mut lapic) = (IoApicState::new(), enabled_lapic());
        ioapic.set_line(4, true, &mut lapic);
        write(&mut ioapic, &mut lapic, 0x10 + 8, 0x31);
        assert_eq!(lapic.acknowledge(), None);
        ioapic.set_line(4, false, &mut lapic);
        ioapic.set_line(4, true, &mut lapic);
        ioapic.set_line(4, true, &mut lapic);
        assert_eq!(lapic.acknowledge(), Some(0x31));
        end(&mut ioapic, &mut lapic);
        assert_eq!(lapic.acknowledge(), None);
    }

    #[test]
    fn a_level_comes_back_until_it_falls() {
        let (mut ioapic, mut lapic) = (IoApicState::new(), enabled_lapic());
        ioapic.set_line(9, true, &mut lapic);
        write(&mut ioapic, &mut lapic, 0x10 + 18, 0x8000 | 0x39);
        assert_eq!(lapic.acknowledge(), Some(0x39));
        ioapic.write(0x00, 0x10 + 18, &mut lapic);
        assert_eq!(ioapic.read(0x10), 0xc039);
        end(&mut ioapic, &mut lapic);
        assert_eq!(lapic.acknowledge(), Some(0x39));
        ioapic.set_line(9, false, &mut lapic);
        end(&mut ioapic, &mut lapic);
        assert_eq!(lapic.acknowledge(), None);
        assert_eq!(ioapic.read(0x10), 0x8039);
    }

    #[test]
    fn switching_to_edge_and_back_clears_remote_irr() {
        let (mut ioapic, mut lapic) = (IoApicState::new(), enabled_lapic());
        write(&mut ioapic, &mut lapic, 0x10 + 18, 0x8000 | 0x39);
        ioapic.set_line(9, true, &mut lapic);
        ioapic.set_line(9, false, &mut lapic);
        write(&mut ioapic, &mut lapic, 0x10 + 18, 0x1_0000 | 0x39);
        write(&mut ioapic, &mut lapic, 0x10 + 18, 0x8000 | 0x39);
        assert_eq!(ioapic.read(0x10), 0x8039);
    }

    #[test]
    fn registers_that_do_not_exist_read_as_zero() {
        let (mut ioapic, mut lapic) = (IoApicState::new(), enabled_lapic());
        for register in [0x03, 0x0f, 0x10 + 2 * IOAPIC_PINS, 0xff] {
            write(&mut ioapic, &mut lapic, register, u32::MAX);
            assert_eq!(ioapic.read(0x10), 0, "{register:#x}");
        }
        ioapic.write(0x00, 0x01, &mut lapic);
        assert_eq!(ioapic.read(0x10), 0x0017_0020);
    }
}
