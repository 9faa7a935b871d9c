//! What can be wrong with bytes, logs and replays, as sentences for the user.

use alloc::{boxed::Box, string::String};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::record::RegisterValues;

/// Bytes that are not a chunk of a log.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DecodeError {
    /// A field claims more bytes than there are.
    #[error("the log is damaged: a record ends before its {what}")]
    Truncated {
        /// The field.
        what: &'static str,
    },
    /// A number is longer than 64 bits or out of its field's range.
    #[error("the log is damaged: {what} is out of range")]
    OutOfRange {
        /// The field.
        what: &'static str,
    },
    /// A record kind or value that this format version does not have.
    #[error("the log holds {what} number {value}, which format version 1 does not have")]
    Unknown {
        /// The field.
        what: &'static str,
        /// Its value.
        value: u8,
    },
    /// Records whose moments contradict their chunk or each other.
    #[error("the log is damaged: {what} at moment {moment} is out of order")]
    OutOfOrder {
        /// The record.
        what: &'static str,
        /// Its moment.
        moment: u64,
    },
    /// More records than a chunk may hold.
    #[error("the log is damaged: a chunk holds more than {max} records")]
    TooMany {
        /// The bound.
        max: usize,
    },
}

/// Something that does not fit into a log.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RecordError {
    /// One record is larger than any may be.
    #[error(
        "a record of {length} bytes does not fit into the log, which takes {max} bytes a record; \
         a device must split its requests"
    )]
    TooLong {
        /// Bytes of the record.
        length: usize,
        /// The bound.
        max: usize,
    },
}

/// Bytes that are not a frame, or not the one that belongs here.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum FrameError {
    /// The bytes do not start with the magic.
    #[error("this is not a fault tolerance log or channel: it does not start with CHFT")]
    Magic,
    /// A format version that this build does not read.
    #[error("the frame has format version {found}, this build reads version {known}")]
    Version {
        /// The frame's.
        found: u16,
        /// Ours.
        known: u16,
    },
    /// The header's checksum or its reserved fields are wrong.
    #[error("a frame header is damaged (after frame {after})")]
    Header {
        /// Sequence that the frame should have had.
        after: u64,
    },
    /// The body's checksum is wrong.
    #[error("the body of frame {sequence} is damaged")]
    Body {
        /// The frame.
        sequence: u64,
    },
    /// A way of packing that this build does not know.
    #[error("frame {sequence} is packed in way {packing}, which this build does not know")]
    Packing {
        /// The frame.
        sequence: u64,
        /// How its body is packed.
        packing: u8,
    },
    /// A packed body that is not what it claims to be, or where none may be.
    #[error(
        "the {length} bytes in frame {sequence} do not unpack to the {plain} bytes that it claims, \
         or may not be packed"
    )]
    Unpacked {
        /// The frame.
        sequence: u64,
        /// Bytes of the packed body.
        length: usize,
        /// Bytes it claims to unpack to.
        plain: usize,
    },
    /// A kind of frame that this build does not know.
    #[error("frame {sequence} is of kind {kind}, which this build does not know")]
    Kind {
        /// The frame.
        sequence: u64,
        /// Its kind.
        kind: u8,
    },
    /// The body is larger than any may be.
    #[error("a frame of {length} bytes is larger than the {max} bytes allowed")]
    TooLong {
        /// Claimed bytes of the body.
        length: usize,
        /// The bound.
        max: usize,
    },
    /// A frame is missing, doubled or from another log.
    #[error("frame {found} came where frame {expected} belongs")]
    Sequence {
        /// What should have come.
        expected: u64,
        /// What came.
        found: u64,
    },
    /// The frame does not continue the one before it.
    #[error("frame {sequence} does not continue the frame before it: the log has been altered")]
    Chain {
        /// The frame.
        sequence: u64,
    },
}

/// An assumption that the two sides of a log do not share.
#[derive(Clone, Debug, PartialEq, Eq, Error, Serialize, Deserialize)]
pub enum Mismatch {
    /// Log format.
    #[error("the other side writes log format {theirs}, this side reads {mine}")]
    Format {
        /// The prologue's.
        theirs: u16,
        /// This side's.
        mine: u16,
    },
    /// What counts as a moment.
    #[error("the other side counts moments by rule {theirs}, this side by rule {mine}")]
    Moments {
        /// The prologue's.
        theirs: u16,
        /// This side's.
        mine: u16,
    },
    /// Build.
    #[error("the other side is build {theirs}, this side is build {mine}: both must be the same")]
    Build {
        /// The prologue's.
        theirs: String,
        /// This side's.
        mine: String,
    },
    /// CPU features the guest sees.
    #[error(
        "the guest's CPUID cannot be the same on both sides ({theirs:016x} there, {mine:016x} \
         here): the hosts' CPUs or kernels differ in a feature the guest sees"
    )]
    Cpuid {
        /// The prologue's.
        theirs: u64,
        /// This side's.
        mine: u64,
    },
    /// The prologue cannot be read.
    #[error("the prologue cannot be read: {why}")]
    Unreadable {
        /// What is wrong with it.
        why: String,
    },
    /// Timers or limits that contradict each other.
    #[error("the other side's settings cannot work: {why}")]
    Settings {
        /// What is wrong with them.
        why: String,
    },
}

/// The replay is not the machine that was recorded. Never to be swallowed: it stops the replica.
#[derive(Clone, Debug, PartialEq, Eq, Error, Serialize, Deserialize)]
pub enum Divergence {
    /// The vCPU's registers differ at this moment or one since the previous digest.
    #[error(
        "the vCPU's registers diverged at or before moment {moment}: recorded digest \
         {recorded:016x}, replayed {replayed:016x}"
    )]
    Registers {
        /// Moment of the digest record.
        moment: u64,
        /// The log's.
        recorded: u64,
        /// This side's.
        replayed: u64,
    },
    /// The device models differ.
    #[error(
        "the devices diverged at or before moment {moment}: recorded digest {recorded:016x}, \
         replayed {replayed:016x}"
    )]
    Devices {
        /// Moment of the digest record.
        moment: u64,
        /// The log's.
        recorded: u64,
        /// This side's.
        replayed: u64,
    },
    /// Guest memory differs.
    #[error(
        "guest memory diverged at or before moment {moment}: recorded digest {recorded:016x}, \
         replayed {replayed:016x}"
    )]
    Memory {
        /// Moment of the digest record.
        moment: u64,
        /// The log's.
        recorded: u64,
        /// This side's.
        replayed: u64,
    },
    /// The outputs differ.
    #[error(
        "the outputs diverged at or before moment {moment}: recorded {recorded_count} with digest \
         {recorded:016x}, replayed {replayed_count} with digest {replayed:016x}"
    )]
    Outputs {
        /// Moment of the comparison.
        moment: u64,
        /// Outputs the primary had produced.
        recorded_count: u64,
        /// Their digest.
        recorded: u64,
        /// Outputs this side has produced.
        replayed_count: u64,
        /// Their digest.
        replayed: u64,
    },
    /// A device asked for the time where the recorded one did not.
    #[error("a device asked for the time at moment {moment}, the recorded machine did not")]
    TimeAsked {
        /// The exit being handled.
        moment: u64,
    },
    /// A device did not ask for the time where the recorded one did.
    #[error("no device asked for the time at moment {moment}, the recorded machine did")]
    TimeNotAsked {
        /// The exit that has been handled.
        moment: u64,
    },
    /// The machine is past a record or a chunk it should have stopped for.
    #[error("the replay is at moment {moment}, past moment {recorded} of the log")]
    Overrun {
        /// The machine's moment.
        moment: u64,
        /// The log's.
        recorded: u64,
    },
    /// The vCPU's registers differ at this moment, and both sides' are known.
    #[error("the vCPU's registers diverged at moment {moment}")]
    RegisterValues {
        /// The exit at which they differ.
        moment: u64,
        /// The log's.
        recorded: Box<RegisterValues>,
        /// This side's.
        replayed: Box<RegisterValues>,
    },
    /// The log cannot be followed from here.
    #[error("the log cannot be replayed at moment {moment}: {why}")]
    Log {
        /// The machine's moment.
        moment: u64,
        /// What is wrong.
        why: String,
    },
    /// The guest waits for an interrupt here, and went on where it was recorded.
    #[error("the guest is halted at moment {moment}, the recorded one ran on")]
    Halted {
        /// The machine's moment.
        moment: u64,
    },
}
