//! The real world's half of a device. Used by the shell of the VMM only, joined to models by token.
//!
//! Owns files, taps and threads. No backend sees guest memory or a device model: requests and
//! packets arrive as owned bytes and leave as owned bytes, and the machine copies them in at a
//! moment of its choosing.

pub mod announcement;
pub mod file;
pub mod memory;
pub mod tap;
pub mod worker;

use std::io;

use crate::effect::{BlockKind, BlockStatus};

/// Something that executes disk requests, one at a time.
pub trait BlockBackend {
    /// Size in sectors of 512 bytes.
    fn capacity_sectors(&self) -> u64;

    /// Executes a request. Returns what a read has read, exactly as long as asked for; empty for
    /// every other kind and for every status but [`BlockStatus::Ok`].
    fn execute(&mut self, kind: &BlockKind) -> (BlockStatus, Vec<u8>);
}

/// A network as a card sees it. Packets start with the 12-byte virtio-net header.
pub trait NetBackend {
    /// Sends a packet. Returns false if the network did not take it and it is lost, as packets are
    /// when a link is down, a queue is full or a header makes no sense. An error means that no
    /// further packet will get through either.
    fn send(&mut self, packet: &[u8]) -> io::Result<bool>;

    /// The next packet that has arrived, if there is one; never waits.
    fn receive(&mut self) -> io::Result<Option<&[u8]>>;

    /// From now on the guest can receive packets with these offloads (`TUN_F_*` bits).
    fn set_offloads(&mut self, offloads: u32) -> crate::Result<()>;
}
