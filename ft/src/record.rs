//! Everything a log can hold, each at a moment.
//!
//! The meaning of a record at moment *m* for a replay:
//!
//! * [`Input::TimeRead`] is consumed by the handler of exit *m*, in order.
//! * A [`Record::Delta`] **is** moment *m*: it ends the interval after *m* - 1, which the replay
//!   has not run, and is the first record at *m*. The pages it commits come before it, at *m* - 1
//!   or earlier.
//! * Everything else is applied after the handler of exit *m* has finished, in order.
//!
//! `recorder` writes logs of that form only; `chunk` refuses others.

use alloc::{boxed::Box, vec::Vec};
use serde::{Deserialize, Serialize};

use crate::event::{Input, Trail};

/// Bytes of one guest page.
pub const PAGE_SIZE: usize = 4096;

/// Pages a [`Record::Pages`] may hold.
pub const PAGES_PER_RECORD_MAX: usize = 256;

/// Registers in a [`Record::Registers`].
pub const REGISTERS: usize = 18;

/// The vCPU's general registers, instruction pointer and flags, in its owner's order.
pub type RegisterValues = [u64; REGISTERS];

/// One page of guest memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Page {
    /// All bytes are zero.
    Zero,
    /// The bytes.
    Data(Box<[u8; PAGE_SIZE]>),
}

impl Page {
    /// Takes a copy of one page, finding out whether it is zero.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; PAGE_SIZE]) -> Self {
        // A join looks at every page of a machine, and most of many are zero: not byte by byte.
        let (blocks, _) = bytes.as_chunks::<64>();
        let is_zero = |block: &[u8; 64]| block.iter().fold(0, |all, byte| all | byte) == 0;
        if blocks.iter().all(is_zero) { Self::Zero } else { Self::Data(Box::new(*bytes)) }
    }
}

/// Why a log ends on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EndReason {
    /// The guest powered the machine off, or the VM was shut down.
    PowerOff,
    /// The recording was stopped; the machine went on.
    Stopped,
    /// The machine goes on at the backup.
    Failover,
}

/// One entry of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// Something entered the machine.
    Input(Input),
    /// The digests of the vCPU's registers at every moment since the previous such record (or since
    /// the last [`Record::Delta`] with machine state), folded into one.
    Digest {
        /// See [`fold_registers`].
        value: u64,
    },
    /// The vCPU's registers at the natural exit of this moment, before its handler.
    Registers(Box<RegisterValues>),
    /// The state of all device models, encoded by their owner, once everything before this record
    /// is applied: to be compared, and to be shown where it differs.
    Devices {
        /// The encoding, the same on both sides.
        state: Vec<u8>,
    },
    /// Digests of the machine's state once everything before this record is applied.
    StateDigest {
        /// Over all device models.
        devices: u64,
        /// Over all guest memory, where it was taken.
        memory: Option<u64>,
    },
    /// Pages that the next [`Record::Delta`] commits. A later copy of a page replaces an earlier.
    Pages {
        /// Guest page number (guest physical address / 4096) and content.
        pages: Vec<(u64, Page)>,
    },
    /// Like [`Record::Pages`], for pages that the log has had before: what changed in each since
    /// then.
    Patches {
        /// Guest page number and the runs of words that changed.
        patches: Vec<(u64, Vec<u8>)>,
    },
    /// A part of the device models' encoding that the next [`Record::Delta`] ends: the data of writes
    /// that are under way can make it longer than a record may be.
    Models {
        /// The bytes, in order.
        part: Vec<u8>,
    },
    /// The next [`Record::Delta`] with machine state makes a copy equal that was found to differ: it
    /// has all pages in which that may differ, which no other delta has.
    Heals,
    /// The state at this moment; the interval before it is not to be run.
    Delta {
        /// The vCPU's whole state, encoded by its owner.
        vcpu: Vec<u8>,
        /// All device models, encoded by their owner, or the last part of them: at a join, after a
        /// reset, and in each delta of a machine that is kept by checkpoints.
        machine: Option<Vec<u8>>,
        /// The outputs so far. A replay adopts them where `machine` is given and compares them
        /// where it is not.
        outputs: Trail,
    },
    /// Outputs up to this sequence have left the primary's host.
    Released {
        /// Sequence within the log, see [`Trail::count`].
        output: u64,
    },
    /// The log ends here on purpose.
    End {
        /// Why.
        reason: EndReason,
    },
}

impl Record {
    /// What to call this kind of record in counts and listings.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Input(input) => input.name(),
            Self::Digest { .. } => "digest",
            Self::Registers(_) => "registers",
            Self::Devices { .. } => "devices",
            Self::StateDigest { .. } => "state-digest",
            Self::Pages { .. } => "pages",
            Self::Patches { .. } => "patches",
            Self::Models { .. } => "models",
            Self::Heals => "heals",
            Self::Delta { .. } => "delta",
            Self::Released { .. } => "released",
            Self::End { .. } => "end",
        }
    }
}

/// Folds the register digest of one more moment into those since the last [`Record::Digest`].
#[must_use]
pub fn fold_registers(fold: u64, registers: u64) -> u64 {
    xxhash_rust::xxh3::xxh3_64_with_seed(&registers.to_le_bytes(), fold)
}
