//! Fault tolerance without I/O: what a protected machine's log holds, how it is framed, when an
//! output may leave, and how two replicas agree on who is live.
//!
//! Nothing in this crate reads a clock, opens a socket or starts a thread: callers pass bytes,
//! messages and the time in, and carry out what comes back. That is what lets a simulator run both
//! replicas, the network and the arbiter in one thread from one seed.
//!
//! The order to read it in: [`event`] and [`record`] (the vocabulary), [`codec`], [`chunk`] and
//! [`frame`] (its bytes), [`recorder`] and [`replay`] (the two ends of a log), [`gate`] (output
//! commit), then [`message`], [`primary`], [`backup`] and [`takeover`] (the replicas) and
//! [`standbys`] (who is joined next). It does not own the machine, its state's encoding, or the
//! sockets.
#![cfg_attr(not(any(test, feature = "std")), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod action;
pub mod arbiter;
pub mod backup;
mod bytes;
pub mod chunk;
pub mod codec;
pub mod error;
pub mod event;
mod flight;
pub mod frame;
pub mod gate;
pub mod kept;
pub mod message;
pub mod packing;
mod page_cache;
mod patch;
pub mod primary;
pub mod prologue;
pub mod record;
pub mod recorder;
pub mod replay;
pub mod settings;
pub mod standbys;
pub mod takeover;
mod watch;

pub use action::{Action, Event, HaltReason, Happening, LossCause, SoloReason};
pub use arbiter::Answer;
pub use backup::{Backup, BackupState};
pub use chunk::{Batch, Chunk};
pub use codec::{Decoder, Encoder};
pub use error::{DecodeError, Divergence, FrameError, Mismatch, RecordError};
pub use event::{BlockOp, Input, Output, Trail};
pub use frame::{Frame, FrameReader, FrameWriter, Kind};
pub use gate::{Gate, Weight};
pub use kept::{KEPT_AT_ONCE_MAX, KeptPages, PageDigest, TOUCHED_AT_ONCE_MAX};
pub use message::{Ack, Heartbeat, Link, Message, MessageError, Role, Word};
pub use packing::Compression;
pub use primary::{Primary, PrimaryState, Progress, RequestError};
pub use prologue::{Assumptions, Prologue};
pub use record::{EndReason, PAGE_SIZE, Page, Record, RegisterValues};
pub use recorder::{DigestMode, Recorder};
pub use replay::{Replay, Start, Step};
pub use settings::{AckMode, Purpose, Settings};
pub use standbys::{Patience, Standby, StandbyError, Standbys, TryJoin};
pub use takeover::Ledger;

#[cfg(test)]
mod log_tests;
