//! Buffers of a descriptor chain, and copying between them and the VMM's own memory.
//!
//! A chain is kept as plain addresses, so that a device can hold it in its state while a request is
//! under way. Every copy looks the addresses up again: a saved chain is never trusted.

use serde::{Deserialize, Serialize};
use vm_memory::{Bytes, GuestAddress};

use crate::GuestMemory;
use crate::queue::Malformed;

/// One buffer in guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// Guest-physical address.
    pub address: u64,
    /// Length in bytes.
    pub length: u32,
}

/// A descriptor chain taken from a queue and not yet returned.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chain {
    /// Index of the first descriptor: how the driver knows the chain.
    pub head: u16,
    /// What the device may read, in order.
    pub readable: Vec<Segment>,
    /// What the device may write, in order.
    pub writable: Vec<Segment>,
}

impl Chain {
    /// Bytes the device may read.
    pub(crate) fn readable_bytes(&self) -> u64 {
        total(&self.readable)
    }

    /// Bytes the device may write.
    pub(crate) fn writable_bytes(&self) -> u64 {
        total(&self.writable)
    }

    /// Copies from the readable bytes, `skip` bytes in, and fills `buffer`.
    pub(crate) fn read(
        &self,
        memory: &GuestMemory,
        skip: u64,
        mut buffer: &mut [u8],
    ) -> Result<(), Malformed> {
        for part in parts(&self.readable, skip) {
            if buffer.is_empty() {
                break;
            }
            let length = buffer.len().min(part.length as usize);
            let (now, later) = buffer.split_at_mut(length);
            memory.read_slice(now, GuestAddress(part.address)).map_err(|_| Malformed)?;
            buffer = later;
        }
        if buffer.is_empty() { Ok(()) } else { Err(Malformed) }
    }

    /// Copies `data` to the writable bytes, `skip` bytes in.
    pub(crate) fn write(
        &self,
        memory: &GuestMemory,
        skip: u64,
        mut data: &[u8],
    ) -> Result<(), Malformed> {
        for part in parts(&self.writable, skip) {
            if data.is_empty() {
                break;
            }
            let length = data.len().min(part.length as usize);
            let (now, later) = data.split_at(length);
            memory.write_slice(now, GuestAddress(part.address)).map_err(|_| Malformed)?;
            data = later;
        }
        if data.is_empty() { Ok(()) } else { Err(Malformed) }
    }
}

fn total(segments: &[Segment]) -> u64 {
    segments.iter().map(|segment| u64::from(segment.length)).sum()
}

/// The segments without their first `skip` bytes. Empty parts are left out; a part whose address
/// would wrap keeps its address and fails when it is looked up.
fn parts(segments: &[Segment], mut skip: u64) -> impl Iterator<Item = Segment> {
    segments.iter().filter_map(move |segment| {
        let length = u64::from(segment.length);
        if skip >= length {
            skip -= length;
            return None;
        }
        let part = Segment {
            address: segment.address.saturating_add(skip),
            length: (length - skip) as u32,
        };
        skip = 0;
        Some(part)
    })
}
