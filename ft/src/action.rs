//! What a replica is told ([`Event`]) and what it wants done ([`Action`]).
//!
//! A driver feeds events in and carries actions out, in order; it decides nothing.

use alloc::{boxed::Box, string::String, vec::Vec};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::arbiter::Answer;
use crate::chunk::Batch;
use crate::error::Divergence;
use crate::kept::PageDigest;
use crate::message::{Heartbeat, Message, Word};
use crate::prologue::Prologue;

/// Something that happened to a replica. The time that goes with it is the time at which it is
/// handed in, read after it was received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A message came on the stream.
    Message(Message),
    /// The stream was closed by the other side or the network; everything before is handed in.
    Closed,
    /// The stream carried something that is not the protocol.
    Damaged {
        /// A sentence for the user.
        why: String,
    },
    /// A heartbeat came.
    Heartbeat(Heartbeat),
    /// The peer's host says that nobody listens for heartbeats there (a refused datagram): its
    /// process has ended.
    PeerGone,
    /// The arbiter answered an [`Action::AskArbiter`], or could not be reached. An answer to a
    /// question that is not open any more may come late, and counts for nothing.
    Arbiter {
        /// The generation that was asked for.
        generation: u64,
        /// What it said.
        answer: Answer,
    },
    /// At a primary, after the last [`Action::Hold`]: no output is being carried out any more.
    Quiet,
}

/// Something to be done for a replica, in the order given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send on the stream.
    Send(Message),
    /// Send in a datagram; nobody waits for it.
    SendHeartbeat(Heartbeat),
    /// Close the stream. What was sent before still goes out.
    CloseStream,
    /// Primary: note these pages of the backup's memory, with [`KeptPages`](crate::KeptPages); the join
    /// that follows need not send those that are the same here. A list that does not fit is
    /// [`Event::Damaged`].
    NoteKept {
        /// The frame of the first page.
        first_frame: u64,
        /// The digests of the pages from there on.
        digests: Vec<PageDigest>,
    },
    /// Primary: note these pages, which the backup may have otherwise than this side. A page that the
    /// machine does not have is [`Event::Damaged`].
    NoteTouched {
        /// Their frames.
        frames: Vec<u64>,
    },
    /// Primary: the backup's copy is to be healed. Between two intervals, and whether or not the
    /// machine is stalled, append the delta that does it
    /// ([`Recorder::heal`](crate::Recorder::heal)); its pages are those written since the last delta,
    /// and of those noted the ones that differ here or are not known not to. With it, before anything
    /// else of the backup is heard, call `Primary::healing`. Until the backup has it no output
    /// leaves. Where that cannot be done, `Primary::disable` ends the protection.
    Heal,
    /// Primary: the backup is ready for the machine. Start a recorder and append the machine's pages,
    /// in as many chunks as it takes, while the machine runs on and nothing else of it is recorded;
    /// then stop it, append what it has written meanwhile and a delta with machine state, record
    /// everything from there on, and let it go on.
    StartJoin,
    /// Primary: from here on outputs wait in the gate. First carry out every output that was made
    /// before, in order: once the backup may take over, nobody else would.
    CloseGate,
    /// Primary: outputs that wait for chunks up to this one may leave. Right before each is carried
    /// out, `Primary::may_carry_out` has a last word: where it says no, wait until it says yes or
    /// until [`Action::Hold`].
    Release {
        /// The chunk.
        through: u64,
    },
    /// Primary: carry no output out any more, those released and still waiting included. Say
    /// [`Event::Quiet`] once none is under way: no disk write is left that could still land.
    Hold,
    /// Primary: the log must not grow: stop the machine. Where the machine runs while its pages are
    /// copied, it is the copying that stops.
    Stall,
    /// Primary: the machine, or the copying, may go on.
    Unstall,
    /// Primary: go on alone. Nothing is to be recorded, every output held may leave, and a machine
    /// that was stopped for a join or a handover runs.
    GoSolo {
        /// The generation from now on.
        generation: u64,
    },
    /// Backup: build the machine that this describes; answer with `Backup::prepared`. Its memory is
    /// zero, or what is left of the same machine, all of which is told by `Backup::kept` before.
    Prepare(Box<Prologue>),
    /// Backup: a part of the log for the replay.
    Deliver(Batch),
    /// Backup: let the replay skip the log to the delta that heals it
    /// ([`Replay::heal`](crate::Replay::heal)), and tell the primary how this copy may differ from
    /// its: by `Backup::touched` the pages that were written since an earlier delta, or by
    /// `Backup::kept` the `whole` memory. Then call `Backup::told`.
    TellCopy {
        /// The pages written of late are not enough.
        whole: bool,
    },
    /// Backup: throw the half-built machine away.
    Discard,
    /// Backup: replay everything that was delivered, then call `Backup::drained`.
    Drain,
    /// Either: ask the arbiter for this generation; answer with [`Event::Arbiter`], always, and with
    /// the same generation. An earlier question may still be open then.
    AskArbiter {
        /// The generation asked for.
        generation: u64,
    },
    /// Backup: the machine is live here: redo what the ledger holds, run on. A stream that is still
    /// open (after a handover) is of use for one more [`Word::Live`], and for nothing after it.
    GoLive {
        /// The generation from now on.
        generation: u64,
    },
    /// Either: the machine must never do anything visible here again.
    Halt(HaltReason),
    /// Either: tell the user, with the time.
    Report(Happening),
}

impl From<Word> for Action {
    fn from(word: Word) -> Self {
        Self::Send(Message::Word(word))
    }
}

/// Why a replica halts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Error)]
pub enum HaltReason {
    /// The arbiter gave the generation to the other side.
    #[error("the arbiter decided for the other side (generation {generation})")]
    Lost {
        /// The generation asked for.
        generation: u64,
    },
    /// A planned failover is complete.
    #[error("the machine was handed over to the backup (generation {generation})")]
    HandedOver {
        /// The backup's generation.
        generation: u64,
    },
    /// The primary ended the protection.
    #[error("the primary ended the protection")]
    Left,
    /// This copy is not the machine.
    #[error("this copy is no longer the machine: {0}")]
    Diverged(Divergence),
}

/// How the peer was found to be lost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Error)]
pub enum LossCause {
    /// The stream was closed.
    #[error("the channel was closed")]
    Closed,
    /// The stream carried something else.
    #[error("the channel carried something that does not belong there: {why}")]
    Damaged {
        /// What.
        why: String,
    },
    /// Nothing at all was heard.
    #[error("nothing was heard for {silent_ms} ms")]
    Silent {
        /// Milliseconds.
        silent_ms: u64,
    },
    /// Heartbeats came, but nothing on the stream.
    #[error("the channel was silent for {silent_ms} ms, though heartbeats came")]
    StreamSilent {
        /// Milliseconds.
        silent_ms: u64,
    },
    /// The stream lives, but a chunk is not acknowledged.
    #[error("the log was not acknowledged for {waited_ms} ms")]
    NoAcknowledgement {
        /// Milliseconds.
        waited_ms: u64,
    },
    /// The backup does not keep up.
    #[error("the backup was {behind_ms} ms behind")]
    Lagging {
        /// Milliseconds.
        behind_ms: u64,
    },
    /// The primary said that it holds its outputs and asks the arbiter.
    #[error("the primary counted this side as lost")]
    CountedAsLost,
    /// The primary hands the machine over.
    #[error("the primary handed the machine over")]
    Yielded,
}

/// Something a user wants to read about, in `ft-info` and the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Error)]
pub enum Happening {
    /// A standby was asked.
    #[error("joining a backup")]
    Joining,
    /// The join did not come about; the machine is unprotected.
    #[error("the join failed: {why}")]
    JoinFailed {
        /// A sentence.
        why: String,
    },
    /// The backup can take over.
    #[error("protected in generation {generation}")]
    Protected {
        /// The generation.
        generation: u64,
    },
    /// The peer is lost.
    #[error("the peer was lost: {0}")]
    PeerLost(LossCause),
    /// The arbiter does not answer.
    #[error("the arbiter could not be reached; outputs stay held and the asking goes on")]
    ArbiterUnreachable,
    /// The machine was yielded and it is not known whether the peer has it: it goes on here only by
    /// `Primary::reclaim`.
    #[error(
        "it is not known whether the machine lives at the other side; it goes on here only by the \
         user's word"
    )]
    Undecided,
    /// The machine runs unprotected.
    #[error("unprotected since {why}, generation {generation}")]
    Solo {
        /// The generation.
        generation: u64,
        /// What led to it.
        why: SoloReason,
    },
    /// The copies differ.
    #[error("the backup's copy diverged: {0}")]
    Diverged(Divergence),
    /// The copies are equal again, and the backup can take over.
    #[error("the backup's copy was healed")]
    Healed,
    /// This side took over.
    #[error("took over in generation {generation}")]
    Live {
        /// The generation.
        generation: u64,
    },
    /// This side halted.
    #[error("halted: {0}")]
    Halted(HaltReason),
    /// The log was full.
    #[error("the machine was stopped because the backup is {bytes} bytes of log behind")]
    Stalled {
        /// Bytes of log not yet executed.
        bytes: u64,
    },
    /// This process did not run for a while.
    #[error("this process was stopped for {paused_ms} ms")]
    Paused {
        /// Milliseconds.
        paused_ms: u64,
    },
}

/// Why a primary goes on alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Error)]
pub enum SoloReason {
    /// The arbiter decided for this side.
    #[error("the arbiter decided for this side")]
    Won,
    /// The backup promised never to go live.
    #[error("the backup was dismissed")]
    Left,
    /// The backup's copy was not the machine.
    #[error("the backup diverged")]
    Diverged,
    /// The backup had not started to protect yet, or was to take the machine over by a word that
    /// was not given.
    #[error("the join ended")]
    NotJoined,
    /// The user knows that the machine does not live at the other side.
    #[error("the user said that the other side does not have it")]
    Reclaimed,
}
