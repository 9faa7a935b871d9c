//! The guest's accesses to ports and device memory, taken to the device that answers.
//!
//! Owns the decoding of addresses, and that one access sees one time. Port numbers that the PC
//! settled forty years ago are spelled out in the matches; those the board chose have names in
//! `board::layout`.

use super::{
    Clock, Effect, Platform, PlatformState,
    pci_host::{self, ADDRESS_PORT, DATA_PORT},
    platform::TIMER_IRQ,
    reset,
};
use crate::board::layout::{
    APIC_PAGE_SIZE, GPE0_PORT, IOAPIC_ADDRESS, LAPIC_ADDRESS, PM_TIMER_PORT, PM1_EVENT_PORT,
    RESET_PORT, SERIAL_PORT,
};

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
