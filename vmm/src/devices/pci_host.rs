//! PCI configuration mechanism #1 (PCI local bus specification 3.0, section 3.2.2.3.2) and the host
//! bridge in slot 0.
//!
//! Owns the address register at port 0xcf8. Whose configuration space an access to the data ports
//! 0xcfc to 0xcff goes to is decided here; the functions themselves belong to others.

use serde::{Deserialize, Serialize};

/// The address register.
pub(super) const ADDRESS_PORT: u16 = 0xcf8;
/// First of the four data ports.
pub(super) const DATA_PORT: u16 = 0xcfc;

const ENABLE: u32 = 1 << 31;

/// The bytes of a configuration space that an access goes to, all in one 32-bit register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PciTarget {
    /// Slot on bus 0, 0 to 31.
    pub slot: u8,
    /// Function, 0 to 7.
    pub function: u8,
    /// Offset of the first byte in the configuration space, 0 to 255.
    pub offset: u8,
}

/// State of the configuration mechanism.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PciHostState {
    address: u32,
}

impl PciHostState {
    /// Reads the address register; only 32-bit accesses reach it.
    #[must_use]
    pub fn address_read(&self) -> u32 {
        self.address
    }

    /// Writes it.
    pub fn address_write(&mut self, value: u32) {
        self.address = value & (ENABLE | 0x00ff_fffc);
    }

    /// What an access of `length` bytes at `port` goes to.
    ///
    /// `None` if the port is not a data port, the access leaves them, the mechanism is disabled or
    /// the bus is not 0: such a read gives ones.
    #[must_use]
    pub fn decode(&self, port: u16, length: usize) -> Option<PciTarget> {
        let within = port.checked_sub(DATA_PORT)?;
        let bus = self.address >> 16 & 0xff;
        if usize::from(within) + length > 4 || self.address & ENABLE == 0 || bus != 0 {
            return None;
        }
        Some(PciTarget {
            slot: (self.address >> 11 & 0x1f) as u8,
            function: (self.address >> 8 & 0b111) as u8,
            offset: (self.address & 0xfc) as u8 | within as u8,
        })
    }
}

/// Reads the host bridge's configuration space, which holds nothing that can be written.
pub(super) fn read_host_bridge(offset: u8, data: &mut [u8]) {
    // Red Hat's generic host bridge: no operating system has a quirk for it.
    let registers: [u32; 4] = [0x0008_1b36, 0x0000_0000, 0x0600_0000, 0x0000_0000];
    for (byte, offset) in data.iter_mut().zip(usize::from(offset)..) {
        let register = registers.get(offset >> 2).copied().unwrap_or(0);
        *byte = register.to_le_bytes()[offset & 3];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_access_is_decoded_down_to_the_byte() {
        let mut host = PciHostState::default();
        assert_eq!(host.decode(0xcfc, 4), None);
        host.address_write(0x8000_1a3f);
        assert_eq!(host.address_read(), 0x8000_1a3c);
        let target = |offset| Some(PciTarget { slot: 3, function: 2, offset });
        assert_eq!(host.decode(0xcfc, 4), target(0x3c));
        assert_eq!(host.decode(0xcfe, 2), target(0x3e));
        assert_eq!(host.decode(0xcff, 1), target(0x3f));
        assert_eq!(host.decode(0xcff, 2), None);
        assert_eq!(host.decode(0xcf8, 4), None);
        host.address_write(0x8001_0000);
        assert_eq!(host.decode(0xcfc, 4), None);
    }

    #[test]
    fn the_host_bridge_passes_the_checks_of_linux() {
        let mut class = [0; 2];
        read_host_bridge(0x0a, &mut class);
        assert_eq!(class, [0x00, 0x06]);
        let mut header = [0xff; 1];
        read_host_bridge(0x0e, &mut header);
        assert_eq!(header, [0]);
        read_host_bridge(0xff, &mut [0; 4]);
    }
}
