//! Everything that can enter a machine ([`Input`]) and everything that can leave it ([`Output`]).
//!
//! Nothing else may change a machine or be seen of it, so a new kind of non-determinism starts as
//! a new variant here and does not compile until the codec, the recorder, the replay and the
//! simulator treat it. How the bytes look belongs to `codec`; what to do with an output belongs to
//! the shell.

use alloc::vec::Vec;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// One thing from outside, applied to the machine at a moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// The time that a device model asked for while handling an exit, in nanoseconds of the
    /// machine's clock. The only input that is consumed inside an exit handler.
    TimeRead {
        /// Nanoseconds since the machine was created.
        now_ns: u64,
    },
    /// Time passed: timers that are due by `now_ns` fire.
    Tick {
        /// Nanoseconds since the machine was created.
        now_ns: u64,
    },
    /// A packet from the network for a network device.
    Packet {
        /// Number of the device within the machine.
        device: u16,
        /// The Ethernet frame with its virtio header, as the device puts it into guest memory.
        bytes: Vec<u8>,
    },
    /// A disk request has been carried out.
    BlockDone {
        /// Number of the device within the machine.
        device: u16,
        /// The token of the request's [`Output::Block`].
        token: u64,
        /// The virtio-blk status byte.
        status: u8,
        /// What a read returned; empty for other requests.
        data: Vec<u8>,
    },
    /// Bytes typed at a virtio console.
    Console {
        /// Number of the device within the machine.
        device: u16,
        /// The bytes, in order.
        bytes: Vec<u8>,
    },
    /// Bytes typed at the serial port.
    Serial {
        /// The bytes, in order.
        bytes: Vec<u8>,
    },
    /// Random bytes for a virtio entropy device.
    Entropy {
        /// Number of the device within the machine.
        device: u16,
        /// As many as were asked for, or fewer.
        bytes: Vec<u8>,
    },
    /// Ask the guest to announce a network device's address to its network.
    Announce {
        /// Number of the device within the machine.
        device: u16,
    },
    /// The power button was pressed.
    PowerButton,
    /// A reboot was asked for from outside.
    Reset,
}

/// What a disk request asks for. Sectors are 512 bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BlockOp {
    /// Read `length` bytes from `sector` on.
    Read {
        /// First sector.
        sector: u64,
        /// Bytes.
        length: u32,
    },
    /// Write `data` from `sector` on.
    Write {
        /// First sector.
        sector: u64,
        /// Whole sectors.
        data: Vec<u8>,
    },
    /// Make all completed writes durable.
    Flush,
}

/// One thing that the machine wants the outside world to see or to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Output {
    /// A packet that a network device sends.
    Packet {
        /// Number of the device within the machine.
        device: u16,
        /// The Ethernet frame with its virtio header.
        bytes: Vec<u8>,
    },
    /// A disk request.
    Block {
        /// Number of the device within the machine.
        device: u16,
        /// Names the request until its [`Input::BlockDone`]; unique while that is open.
        token: u64,
        /// What is asked for.
        op: BlockOp,
    },
    /// Bytes written to a virtio console.
    Console {
        /// Number of the device within the machine.
        device: u16,
        /// The bytes, in order.
        bytes: Vec<u8>,
    },
    /// Bytes written to the serial port.
    Serial {
        /// The bytes, in order.
        bytes: Vec<u8>,
    },
    /// An entropy device asks for random bytes.
    Entropy {
        /// Number of the device within the machine.
        device: u16,
        /// Bytes wanted.
        length: u32,
    },
    /// The guest's driver chose its offloads: the shell sets the tap's.
    NetOffloads {
        /// Number of the device within the machine.
        device: u16,
        /// `TUN_F_*` bits.
        offloads: u32,
    },
    /// The guest asked for a reset of the machine.
    Reset,
    /// The guest powered the machine off.
    PowerOff,
}

impl Input {
    /// What to call this kind of input in counts and listings.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::TimeRead { .. } => "time-read",
            Self::Tick { .. } => "tick",
            Self::Packet { .. } => "packet",
            Self::BlockDone { .. } => "block-done",
            Self::Console { .. } => "console",
            Self::Serial { .. } => "serial",
            Self::Entropy { .. } => "entropy",
            Self::Announce { .. } => "announce",
            Self::PowerButton => "power-button",
            Self::Reset => "reset",
        }
    }
}

impl Output {
    /// Whether this output has to wait until the log that leads to it is acknowledged.
    ///
    /// What the world could remember waits. Reads of a disk, asks for entropy and settings of this
    /// host's tap leave no trace outside and come back only as an input, which is logged itself.
    #[must_use]
    pub fn is_gated(&self) -> bool {
        match self {
            Self::Packet { .. }
            | Self::Console { .. }
            | Self::Serial { .. }
            | Self::Reset
            | Self::PowerOff
            | Self::Block { op: BlockOp::Write { .. } | BlockOp::Flush, .. } => true,
            Self::Block { op: BlockOp::Read { .. }, .. }
            | Self::Entropy { .. }
            | Self::NetOffloads { .. } => false,
        }
    }

    /// Folds this output into a rolling digest of all outputs before it.
    #[must_use]
    pub fn fold_digest(&self, digest: u64) -> u64 {
        match self {
            Self::Packet { device, bytes } => fold(digest, 1, *device, [0; 3], bytes),
            Self::Block { device, token, op } => match op {
                BlockOp::Read { sector, length } => {
                    fold(digest, 2, *device, [*token, *sector, u64::from(*length)], &[])
                }
                BlockOp::Write { sector, data } => {
                    fold(digest, 3, *device, [*token, *sector, 0], data)
                }
                BlockOp::Flush => fold(digest, 4, *device, [*token, 0, 0], &[]),
            },
            Self::Console { device, bytes } => fold(digest, 5, *device, [0; 3], bytes),
            Self::Serial { bytes } => fold(digest, 6, 0, [0; 3], bytes),
            Self::Entropy { device, length } => {
                fold(digest, 7, *device, [u64::from(*length), 0, 0], &[])
            }
            Self::NetOffloads { device, offloads } => {
                fold(digest, 8, *device, [u64::from(*offloads), 0, 0], &[])
            }
            Self::Reset => fold(digest, 9, 0, [0; 3], &[]),
            Self::PowerOff => fold(digest, 10, 0, [0; 3], &[]),
        }
    }

    /// Bytes of payload, for bounds and statistics.
    #[must_use]
    pub fn payload_length(&self) -> usize {
        match self {
            Self::Packet { bytes, .. } | Self::Console { bytes, .. } | Self::Serial { bytes } => {
                bytes.len()
            }
            Self::Block { op: BlockOp::Write { data, .. }, .. } => data.len(),
            Self::Block { op: BlockOp::Read { .. } | BlockOp::Flush, .. }
            | Self::Entropy { .. }
            | Self::NetOffloads { .. }
            | Self::Reset
            | Self::PowerOff => 0,
        }
    }
}

/// Hashes a fixed head and then the payload, each seeded with what came before, so that no two
/// sequences of outputs share bytes by moving a boundary.
fn fold(digest: u64, tag: u8, device: u16, fields: [u64; 3], payload: &[u8]) -> u64 {
    let mut head = [0; 36];
    let (first, rest) = head.split_at_mut(4);
    first.copy_from_slice(&(u32::from(tag) << 16 | u32::from(device)).to_le_bytes());
    let numbers = fields.into_iter().chain([payload.len() as u64]);
    for (slot, number) in rest.chunks_exact_mut(8).zip(numbers) {
        slot.copy_from_slice(&number.to_le_bytes());
    }
    let digest = xxh3_64_with_seed(&head, digest);
    if payload.is_empty() { digest } else { xxh3_64_with_seed(payload, digest) }
}

/// How many outputs a machine has produced since its log began, and what they were: equal trails
/// mean equal outputs in equal order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trail {
    /// Outputs so far, gated or not. The first output of a log has sequence 1.
    pub count: u64,
    /// Rolling digest over all of them.
    pub digest: u64,
}

impl Trail {
    /// Adds one output and returns its sequence.
    pub fn note(&mut self, output: &Output) -> u64 {
        // A hostile log can start anywhere; an honest one never gets to the end.
        self.count = self.count.wrapping_add(1);
        self.digest = output.fold_digest(self.digest);
        self.count
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    #[test]
    fn what_the_world_could_remember_is_gated() {
        let gated = [
            Output::Packet { device: 0, bytes: vec![1] },
            Output::Console { device: 0, bytes: vec![1] },
            Output::Serial { bytes: vec![1] },
            Output::Block { device: 0, token: 1, op: BlockOp::Flush },
            Output::Block { device: 0, token: 1, op: BlockOp::Write { sector: 0, data: vec![] } },
            Output::Reset,
            Output::PowerOff,
        ];
        assert!(gated.iter().all(Output::is_gated));
        let free = [
            Output::Block { device: 0, token: 1, op: BlockOp::Read { sector: 0, length: 512 } },
            Output::Entropy { device: 0, length: 8 },
            Output::NetOffloads { device: 0, offloads: 1 },
        ];
        assert!(!free.iter().any(Output::is_gated));
    }

    #[test]
    fn trails_tell_order_boundaries_devices_and_kinds_apart() {
        let trail = |outputs: &[Output]| {
            let mut trail = Trail::default();
            for output in outputs {
                trail.note(output);
            }
            trail
        };
        let packet = |device, bytes: &[u8]| Output::Packet { device, bytes: bytes.to_vec() };
        let all = [
            trail(&[packet(0, b"ab"), packet(0, b"c")]),
            trail(&[packet(0, b"a"), packet(0, b"bc")]),
            trail(&[packet(0, b"c"), packet(0, b"ab")]),
            trail(&[packet(0, b"ab"), packet(1, b"c")]),
            trail(&[packet(0, b"ab"), Output::Console { device: 0, bytes: b"c".to_vec() }]),
            trail(&[packet(0, b"abc"), packet(0, b"")]),
        ];
        for (index, left) in all.iter().enumerate() {
            assert_eq!(left.count, 2);
            assert!(all.iter().skip(index + 1).all(|right| right.digest != left.digest));
        }
    }
}
