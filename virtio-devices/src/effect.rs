//! What a device wants of the world: plain data, joined to its device by number and token.
//!
//! This file owns the vocabulary between models and backends and nothing that acts on it.

use serde::{Deserialize, Serialize};

/// Bytes in a sector, the unit of every disk address (virtio 1.2, section 5.2.4).
pub const SECTOR_BYTES: u64 = 512;

/// Bytes of `struct virtio_net_hdr` in front of every packet (virtio 1.2, section 5.1.6).
pub const NET_HEADER_BYTES: usize = 12;

/// The largest packet with its header, in bytes: what a tap with segmentation offload can hand over.
pub const NET_PACKET_BYTES_MAX: usize = NET_HEADER_BYTES + 65550;

/// Something a device wants done. Effects are carried out in the order in which they were returned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Effect {
    /// Deliver an MSI-X message: a write of `data` to `address`.
    Msi {
        /// Address of the message, as the guest programmed it.
        address: u64,
        /// Data of the message, as the guest programmed it.
        data: u32,
    },
    /// Send a packet.
    Packet {
        /// Number of the device.
        device: u16,
        /// The 12-byte virtio-net header, then the Ethernet frame.
        #[serde(with = "serde_bytes")]
        bytes: Vec<u8>,
    },
    /// The guest can from now on receive packets with these offloads (`TUN_F_*` bits).
    NetOffloads {
        /// Number of the device.
        device: u16,
        /// The bits, as `TUNSETOFFLOAD` takes them.
        offloads: u32,
    },
    /// Execute a disk request; it is answered by [`VirtioPci::complete`](crate::VirtioPci::complete).
    Block {
        /// Number of the device.
        device: u16,
        /// The request.
        request: BlockRequest,
    },
    /// Write bytes to the console.
    Console {
        /// Number of the device.
        device: u16,
        /// What the guest wrote.
        #[serde(with = "serde_bytes")]
        bytes: Vec<u8>,
    },
    /// Fetch random bytes; answered by [`VirtioPci::entropy`](crate::VirtioPci::entropy).
    Entropy {
        /// Number of the device.
        device: u16,
        /// How many bytes, at least one.
        length: u32,
    },
}

/// A disk request, complete in itself: executing it twice does what executing it once does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockRequest {
    /// Names the request; never used twice by one device.
    pub token: u64,
    /// What to do.
    pub kind: BlockKind,
}

/// What a disk request does. The model has checked that it lies within the disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BlockKind {
    /// Read `length` bytes, a multiple of the sector size.
    Read {
        /// First sector.
        sector: u64,
        /// Bytes to read.
        length: u32,
    },
    /// Write `data`, a multiple of the sector size.
    Write {
        /// First sector.
        sector: u64,
        /// Bytes to write.
        #[serde(with = "serde_bytes")]
        data: Vec<u8>,
    },
    /// Make every write that completed before durable.
    Flush,
}

impl BlockKind {
    /// Bytes that travel between guest and disk for this request.
    pub fn transfer_bytes(&self) -> u64 {
        match self {
            Self::Read { length, .. } => u64::from(*length),
            Self::Write { data, .. } => data.len() as u64,
            Self::Flush => 0,
        }
    }
}

/// How a disk request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BlockStatus {
    /// Done.
    Ok,
    /// The disk failed; the guest sees an I/O error.
    IoError,
    /// The disk can't do this.
    Unsupported,
}
