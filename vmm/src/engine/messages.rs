//! What shell and engine say to each other, and the two queues they say it through.
//!
//! Owns the queues and the rule that a message never waits unseen: whoever sends also sees to it
//! that a vCPU inside the guest is kicked, at once or after the patience that recording grants.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use ft::recorder::Noted;
use ft::{Batch, Chunk, Divergence, EndReason, Input, KeptPages, Output, Trail};
use hypervisor::{Kicker, monotonic_ns};
use vmm_sys_util::eventfd::EventFd;

use super::healing::HealPlan;
use crate::error::Error;

/// Where an output stands that no log leads to.
pub(super) const NOT_LOGGED: Noted = Noted { sequence: 0, chunk: 0 };

/// Why a recording starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JoinKind {
    /// Into a file: registers at every moment.
    File,
    /// For a backup: one digest a chunk.
    Pair,
}

/// How a log is to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordPlan {
    /// What for.
    pub kind: JoinKind,
    /// Moments from one digest of all device state to the next.
    pub digest_every: u64,
    /// For a backup that executes nothing: checkpoints instead of inputs, so many ns apart.
    pub checkpoint_ns: Option<u64>,
    /// At most so many bytes a second while memory is copied for a backup.
    pub bytes_per_second: Option<u64>,
}

/// How far the copying of a machine is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CopyProgress {
    /// Rounds begun; the first is over all pages.
    pub round: u32,
    /// Pages read, each time they were.
    pub pages: u64,
    /// Of those, pages of zeros.
    pub zero_pages: u64,
    /// Pages that the backup had already, and that were not sent.
    pub kept_pages: u64,
    /// Pages of this round still to be read.
    pub pages_left: u64,
    /// Bytes of log that hold them.
    pub bytes: u64,
    /// Share of the guest's time that the copy may take.
    pub throttle_percent: u64,
    /// Nanoseconds since it began.
    pub elapsed_ns: u64,
    /// It is done, and the machine stood still so long for the last pages.
    pub pause_ns: Option<u64>,
}

/// From the shell to the engine.
pub enum Message {
    /// Something happened that the machine should see.
    Input(Input),
    /// Stop the guest and machine time; answered with [`Report::Paused`].
    Pause,
    /// Let both go on; answered with [`Report::Resumed`].
    Resume,
    /// Log everything, beginning with the whole state; for a backup whose memory has these pages.
    Record(RecordPlan, KeptPages),
    /// Log nothing any more; `Some` writes an end into the log first.
    StopRecording(Option<EndReason>),
    /// A piece of log to replay.
    Log(Batch),
    /// Report [`Report::Drained`] once everything in hand has been replayed.
    Drain,
    /// Stop replaying, go on alone.
    GoLive,
    /// Whether the log's buffer is full: the guest does not run while it is.
    Stall(bool),
    /// The guest has to rest this part of the time, in percent, while it is logged: its follower is
    /// slower than it.
    SlowDown(u64),
    /// The copy that follows differs, as far as this says: a delta is to make it the machine again;
    /// answered with [`Report::Healing`] or [`Report::TooFarApart`].
    Heal(HealPlan),
    /// End the log for a planned move, then hold the machine still.
    HandOver,
    /// Look at the machine from inside its thread.
    Inspect(Inspect),
    /// End the engine.
    Stop,
}

/// A question about the machine.
pub type Inspect = Box<dyn FnOnce(&Inspection) + Send>;

/// What a question may see.
#[derive(Clone, Copy, Debug)]
pub struct Inspection {
    /// The current moment.
    pub moment: u64,
    /// Machine time in ns.
    pub now_ns: u64,
    /// Deltas taken or applied.
    pub deltas: u64,
    /// Their pages.
    pub delta_pages: u64,
}

/// Two states that should be equal and are not.
#[derive(Clone, Debug)]
pub struct DivergenceReport {
    /// The first moment that is known to differ.
    pub moment: u64,
    /// What differs, for the other replica.
    pub divergence: Divergence,
    /// A report for people: what differs, both states, the guest's instruction.
    pub text: String,
    /// If a delta with all state can heal the copy, which waits for it then: the pages that were
    /// written here since an earlier delta.
    pub touched: Option<Vec<u64>>,
}

/// How an engine ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The guest switched itself off.
    PowerOff,
    /// The shell said so.
    Stopped,
    /// The machine cannot go on.
    Failed(String),
}

/// From the engine to the shell.
pub enum Report {
    /// Outputs, and in a recording the piece of log that leads to them.
    Emission {
        /// The log since the last emission.
        chunks: Vec<Chunk>,
        /// Outputs since the last emission, and where in the log they stand.
        outputs: Vec<(Noted, Output)>,
    },
    /// The chunk that ends with it leads to all outputs reported so far: a checkpoint was taken.
    Covered {
        /// The chunk's number.
        chunk: u64,
    },
    /// A delta was taken or applied.
    Delta {
        /// Pages that came with it.
        pages: u64,
    },
    /// The delta that heals a copy was taken, and is emitted next.
    Healing {
        /// The chunk that ends with it.
        chunk: u64,
        /// Its pages.
        pages: u64,
    },
    /// The copy differs in more pages than a healing may send.
    TooFarApart {
        /// So many.
        pages: u64,
    },
    /// The chunk with this number has been executed.
    Executed {
        /// The chunk's number.
        number: u64,
        /// Where the machine is now.
        moment: u64,
        /// Machine time of the last input replayed, ns.
        now_ns: u64,
        /// All outputs so far.
        outputs: Trail,
    },
    /// The primary confirmed its outputs up to this one.
    Released {
        /// Sequence within the log.
        output: u64,
    },
    /// The log that is replayed ended on purpose.
    LogEnd(EndReason),
    /// Everything in hand was replayed.
    Drained(u64),
    /// The machine is live.
    Live(u64),
    /// Replay and record differ.
    Diverged(DivergenceReport),
    /// The guest was reset.
    Reset,
    /// The guest stands still.
    Paused,
    /// The guest goes on.
    Resumed,
    /// The machine is being copied, or has been.
    Copying(CopyProgress),
    /// A log begins with the state at this moment.
    Recording(u64),
    /// The log was ended for a planned move; the machine stands still.
    HandedOver(u64),
    /// The engine's thread ends.
    Ended(Ended),
}

/// State that both threads look at.
pub struct Shared {
    kicker: OnceLock<Kicker>,
    patience_ns: AtomicU64,
    /// The engine sleeps or will look at its inbox before it enters the guest again.
    attentive: AtomicBool,
    /// Packets sent to the engine and not applied yet.
    packets_waiting: AtomicUsize,
    /// The last output that has left, for the log to tell the backup.
    released: AtomicU64,
    /// Bytes of the log that the backup has executed.
    executed_bytes: AtomicU64,
}

impl Shared {
    /// Patience of a plain VM.
    pub(super) const AT_ONCE: u64 = 0;
    /// Patience of a replay: messages are seen when it next waits.
    pub(super) const NEVER: u64 = u64::MAX;

    pub(super) fn set_kicker(&self, kicker: Kicker) {
        let _ = self.kicker.set(kicker);
    }

    pub(super) fn set_patience(&self, patience_ns: u64) {
        self.patience_ns.store(patience_ns, Ordering::SeqCst);
    }

    pub(super) fn released(&self) -> u64 {
        self.released.load(Ordering::Relaxed)
    }

    pub(super) fn executed_bytes(&self) -> u64 {
        self.executed_bytes.load(Ordering::Relaxed)
    }

    /// A new log counts its outputs from 1, and its bytes from 0.
    pub(super) fn forget_log(&self) {
        self.released.store(0, Ordering::Relaxed);
        self.executed_bytes.store(0, Ordering::Relaxed);
    }

    pub(super) fn packet_taken(&self) {
        self.packets_waiting.fetch_sub(1, Ordering::Relaxed);
    }

    fn wake(&self, urgent: bool) {
        if self.attentive.load(Ordering::SeqCst) {
            return;
        }
        let Some(kicker) = self.kicker.get() else { return };
        match self.patience_ns.load(Ordering::SeqCst) {
            Self::AT_ONCE => kicker.kick(),
            _ if urgent => kicker.kick(),
            Self::NEVER => {}
            patience => kicker.kick_by(monotonic_ns().saturating_add(patience)),
        }
    }
}

/// The shell's end of the queue to the engine.
#[derive(Clone)]
pub struct EngineHandle {
    sender: Sender<Message>,
    shared: Arc<Shared>,
}

impl EngineHandle {
    /// A connected pair.
    pub fn new() -> (Self, Inbox) {
        let (sender, receiver) = channel();
        let shared = Arc::new(Shared {
            kicker: OnceLock::new(),
            patience_ns: AtomicU64::new(Shared::AT_ONCE),
            attentive: AtomicBool::new(true),
            packets_waiting: AtomicUsize::new(0),
            released: AtomicU64::new(0),
            executed_bytes: AtomicU64::new(0),
        });
        let inbox = Inbox { receiver, shared: Arc::clone(&shared), next: None };
        (Self { sender, shared }, inbox)
    }

    /// Sends a message. A message to an engine that has ended is dropped: its end was reported.
    pub fn send(&self, message: Message) {
        let urgent = matches!(message, Message::Stop | Message::GoLive | Message::Heal(_));
        if matches!(message, Message::Input(Input::Packet { .. })) {
            self.shared.packets_waiting.fetch_add(1, Ordering::Relaxed);
        }
        if self.sender.send(message).is_ok() {
            self.shared.wake(urgent);
        }
    }
}

impl EngineHandle {
    /// All outputs up to this sequence of the log have left. The log tells the backup.
    pub fn set_released(&self, sequence: u64) {
        self.shared.released.store(sequence, Ordering::Relaxed);
    }

    /// So many bytes of the log have been executed by the backup: the copy keeps within a window.
    pub fn set_executed_bytes(&self, bytes: u64) {
        self.shared.executed_bytes.store(bytes, Ordering::Relaxed);
    }

    /// Packets that the machine has not taken yet: the shell reads no more when they are many.
    pub fn packets_waiting(&self) -> usize {
        self.shared.packets_waiting.load(Ordering::Relaxed)
    }
}

/// The engine's end of the queue from the shell.
pub struct Inbox {
    receiver: Receiver<Message>,
    shared: Arc<Shared>,
    next: Option<Message>,
}

impl Inbox {
    pub(super) fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.shared)
    }

    /// The next message, if one is there.
    pub(super) fn take(&mut self) -> Option<Message> {
        self.next.take().or_else(|| match self.receiver.try_recv() {
            Ok(message) => Some(message),
            Err(TryRecvError::Empty) => None,
            // Nobody is left to speak to the machine.
            Err(TryRecvError::Disconnected) => Some(Message::Stop),
        })
    }

    /// Whether a message waits.
    pub(super) fn has_message(&mut self) -> bool {
        if self.next.is_none() {
            self.next = self.take();
        }
        self.next.is_some()
    }

    /// Sleeps until a message is there or `timeout` has passed (`None`: until a message is there).
    pub(super) fn wait(&mut self, timeout: Option<Duration>) {
        if self.next.is_some() {
            return;
        }
        self.next = match timeout {
            Some(timeout) => match self.receiver.recv_timeout(timeout) {
                Ok(message) => Some(message),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => Some(Message::Stop),
            },
            None => Some(self.receiver.recv().unwrap_or(Message::Stop)),
        };
    }

    /// Announces that the guest is about to be entered: from now on senders kick. Returns false
    /// when a message came in between, which must be looked at first.
    pub(super) fn enter_guest(&mut self) -> bool {
        self.shared.attentive.store(false, Ordering::SeqCst);
        if self.has_message() {
            self.shared.attentive.store(true, Ordering::SeqCst);
            return false;
        }
        true
    }

    /// The opposite of [`Inbox::enter_guest`].
    pub(super) fn leave_guest(&self) {
        self.shared.attentive.store(true, Ordering::SeqCst);
    }
}

/// The engine's end of the queue to the shell.
pub struct ReportSink {
    sender: Sender<Report>,
    event: EventFd,
}

impl ReportSink {
    /// A connected pair, and the event that is written whenever a report was sent.
    ///
    /// # Errors
    /// No eventfd could be made.
    pub fn new() -> Result<(Self, Receiver<Report>, EventFd), Error> {
        let (sender, receiver) = channel();
        let event = EventFd::new(libc::EFD_NONBLOCK).map_err(Error::EventFd)?;
        let other = event.try_clone().map_err(Error::EventFd)?;
        Ok((Self { sender, event }, receiver, other))
    }

    /// Sends a report. The shell may be gone at the very end: nobody is left to tell then.
    pub(super) fn send(&self, report: Report) {
        if self.sender.send(report).is_ok() {
            let _ = self.event.write(1);
        }
    }
}
