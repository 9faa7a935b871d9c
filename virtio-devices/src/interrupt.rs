//! MSI-X: the vector table, masks and pending bits of one device (PCI 3.0, section 6.8.2).
//!
//! Owns when a message is sent, held back or dropped. Where the table lies in the BAR is the
//! transport's business; what becomes of a message is the machine's.

use serde::{Deserialize, Serialize};

use crate::effect::Effect;

/// The vector number that means "no interrupt" (virtio 1.2, section 4.1.5.1.2.1).
pub(crate) const NO_VECTOR: u16 = 0xffff;

/// Bytes of one entry of the vector table.
pub(crate) const ENTRY_BYTES: usize = 16;

/// One entry of the vector table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MsixEntry {
    /// Address of the message.
    pub address: u64,
    /// Data of the message.
    pub data: u32,
    /// Whether the vector is masked.
    pub masked: bool,
}

impl MsixEntry {
    fn encode(&self) -> [u8; ENTRY_BYTES] {
        let mut bytes = [0; ENTRY_BYTES];
        bytes[..8].copy_from_slice(&self.address.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.data.to_le_bytes());
        bytes[12] = u8::from(self.masked);
        bytes
    }

    fn decode(bytes: [u8; ENTRY_BYTES]) -> Self {
        let word = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        Self {
            address: u64::from(word(4)) << 32 | u64::from(word(0) & !3),
            data: word(8),
            masked: word(12) & 1 != 0,
        }
    }
}

/// The MSI-X state of a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MsixState {
    /// Whether the guest enabled MSI-X.
    pub enabled: bool,
    /// Whether the guest masked the whole function.
    pub masked: bool,
    /// The vector table.
    pub entries: Vec<MsixEntry>,
    /// Messages held back by a mask, a bit a vector.
    pub pending: u64,
}

impl MsixState {
    /// A table of `vectors` (at most 64) masked entries, as after power-on.
    pub(crate) fn new(vectors: usize) -> Self {
        let entry = MsixEntry { address: 0, data: 0, masked: true };
        Self { enabled: false, masked: false, entries: vec![entry; vectors.min(64)], pending: 0 }
    }

    /// Whether `vector` names an entry.
    pub(crate) fn has(&self, vector: u16) -> bool {
        usize::from(vector) < self.entries.len()
    }

    /// Sends the message of `vector`, or holds it back while it is masked.
    pub(crate) fn fire(&mut self, vector: u16, effects: &mut Vec<Effect>) {
        let Some(entry) = self.entries.get(usize::from(vector)) else {
            return;
        };
        if !self.enabled {
            return;
        }
        if self.masked || entry.masked {
            self.pending |= 1 << vector;
        } else {
            effects.push(Effect::Msi { address: entry.address, data: entry.data });
        }
    }

    /// Takes over the enable and function mask bits of the capability.
    pub(crate) fn set_control(&mut self, enabled: bool, masked: bool, effects: &mut Vec<Effect>) {
        self.enabled = enabled;
        self.masked = masked;
        self.release(effects);
    }

    /// Reads from the vector table; beyond it there are zeros.
    pub(crate) fn read_table(&self, offset: usize, data: &mut [u8]) {
        let table: Vec<u8> = self.entries.iter().flat_map(MsixEntry::encode).collect();
        super::pci::read_image(&table, offset, data);
    }

    /// Writes to the vector table. An access across entries is none that PCI allows: it is ignored.
    pub(crate) fn write_table(&mut self, offset: usize, data: &[u8], effects: &mut Vec<Effect>) {
        let Some(entry) = self.entries.get_mut(offset / ENTRY_BYTES) else {
            return;
        };
        let mut bytes = entry.encode();
        let start = offset % ENTRY_BYTES;
        let Some(place) = bytes.get_mut(start..start.saturating_add(data.len())) else {
            return;
        };
        place.copy_from_slice(data);
        *entry = MsixEntry::decode(bytes);
        self.release(effects);
    }

    /// Sends what is pending and no longer masked.
    fn release(&mut self, effects: &mut Vec<Effect>) {
        if self.pending == 0 || !self.enabled || self.masked {
            return;
        }
        for (vector, entry) in self.entries.iter().enumerate() {
            let bit = 1 << vector;
            if self.pending & bit != 0 && !entry.masked {
                self.pending &= !bit;
                effects.push(Effect::Msi { address: entry.address, data: entry.data });
            }
        }
    }

    /// Whether this is the state of a table with `vectors` entries.
    pub(crate) fn is_consistent(&self, vectors: usize) -> bool {
        self.entries.len() == vectors && vectors < 64 && self.pending >> vectors == 0
    }
}
