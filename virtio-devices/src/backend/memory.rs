//! A disk and a network in memory, for tests and simulations.

use std::collections::VecDeque;
use std::io;

use super::{BlockBackend, NetBackend};
use crate::effect::{BlockKind, BlockStatus, SECTOR_BYTES};

/// A disk in memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryDisk {
    /// Its content.
    pub bytes: Vec<u8>,
    /// How many flushes it has seen.
    pub flushes: u64,
    /// While set, every request fails.
    pub broken: bool,
}

impl MemoryDisk {
    /// A disk of zeros.
    pub fn new(sectors: usize) -> Self {
        let bytes = vec![0; sectors * SECTOR_BYTES as usize];
        Self { bytes, flushes: 0, broken: false }
    }

    fn place(&mut self, sector: u64, length: usize) -> Option<&mut [u8]> {
        let start = usize::try_from(sector.checked_mul(SECTOR_BYTES)?).ok()?;
        self.bytes.get_mut(start..start.checked_add(length)?)
    }

    fn try_execute(&mut self, kind: &BlockKind) -> Option<Vec<u8>> {
        if self.broken {
            return None;
        }
        match kind {
            BlockKind::Read { sector, length } => {
                self.place(*sector, *length as usize).map(|bytes| bytes.to_vec())
            }
            BlockKind::Write { sector, data } => {
                self.place(*sector, data.len())?.copy_from_slice(data);
                Some(Vec::new())
            }
            BlockKind::Flush => {
                self.flushes += 1;
                Some(Vec::new())
            }
        }
    }
}

impl BlockBackend for MemoryDisk {
    fn capacity_sectors(&self) -> u64 {
        self.bytes.len() as u64 / SECTOR_BYTES
    }

    fn execute(&mut self, kind: &BlockKind) -> (BlockStatus, Vec<u8>) {
        match self.try_execute(kind) {
            Some(data) => (BlockStatus::Ok, data),
            None => (BlockStatus::IoError, Vec::new()),
        }
    }
}

/// A network in memory: what arrives is put into one queue, what is sent is found in the other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PacketQueue {
    /// Packets on their way to the guest.
    pub arriving: VecDeque<Vec<u8>>,
    /// Packets the guest has sent.
    pub sent: Vec<Vec<u8>>,
    /// Offloads that were last set.
    pub offloads: u32,
    current: Vec<u8>,
}

impl NetBackend for PacketQueue {
    fn send(&mut self, packet: &[u8]) -> io::Result<bool> {
        self.sent.push(packet.to_vec());
        Ok(true)
    }

    fn receive(&mut self) -> io::Result<Option<&[u8]>> {
        Ok(self.arriving.pop_front().map(|packet| {
            self.current = packet;
            self.current.as_slice()
        }))
    }

    fn set_offloads(&mut self, offloads: u32) -> crate::Result<()> {
        self.offloads = offloads;
        Ok(())
    }
}
