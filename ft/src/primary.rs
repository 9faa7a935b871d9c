//! The primary: runs the machine for real, and lets no output leave that its backup could not
//! account for.
//!
//! ```text
//!              join             Welcome           Ready              Following
//!   Solo ──────────► Greeting ─────────► Copying ───────► Protecting ──────────► Protected
//!    ▲                   │ lost              │ lost           │ lost              │   │   │
//!    ├───────────────────┴───────────────────┘                ▼                   │   │   │
//!    │◄──── Won ──────────────────────────────────────────  Holding ◄──── lost ───┘   │   │
//!    │                                              Lost │    ▲ lost                  │   │
//!    │◄──── Left ──── Leaving ◄──── disable ─────────────┼────┼───────────────────────┘   │
//!    │                                                   ▼    │ lost                      │
//!    └◄──── Diverged ─────────────────────── Halted ◄─ Live ─ Yielding ◄──── failover ────┘
//! ```
//!
//! It reads no clock and opens no socket: the driver hands in events with the time and carries the
//! actions out. Why this is safe is argued in `docs/PROTOCOL.md`.

use alloc::{boxed::Box, string::String, string::ToString, vec, vec::Vec};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::action::{Action, Event, HaltReason, Happening, LossCause, SoloReason};
use crate::arbiter::{Answer, Contest};
use crate::chunk::Chunk;
use crate::error::Divergence;
use crate::flight::{BadAck, Flight};
use crate::message::{Ack, Heartbeat, Message, Role, Word};
use crate::prologue::Prologue;
use crate::settings::{AckMode, Settings};
use crate::watch::Watch;

/// Where a primary stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PrimaryState {
    /// Unprotected; outputs leave at once.
    Solo,
    /// Asked a standby. Outputs leave at once.
    Greeting,
    /// Sends the machine's state. Outputs leave at once.
    Copying,
    /// The backup may take over from now on, but has not said so. Outputs wait.
    Protecting,
    /// The backup takes over if this side is lost. Outputs wait.
    Protected,
    /// Asked the backup for its promise never to go live. Outputs wait.
    Leaving,
    /// Handed the machine over; waits to hear that it is live there. Nothing leaves.
    Yielding,
    /// Lost the backup; waits for the arbiter. Nothing leaves.
    Holding,
    /// The machine is not here any more. Nothing leaves ever again.
    Halted,
}

/// A request that does not fit the state.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RequestError {
    /// Asked for protection where there is some, or is being sought.
    #[error("the machine cannot join a backup now: it is {state:?}")]
    NotSolo {
        /// The state.
        state: PrimaryState,
    },
    /// Asked for something only a protected machine can do.
    #[error("the machine is not protected: it is {state:?}")]
    NotProtected {
        /// The state.
        state: PrimaryState,
    },
    /// Settings that contradict each other.
    #[error("these settings cannot work: {why}")]
    Settings {
        /// Which and why.
        why: String,
    },
}

/// One machine's primary side, through all its backups.
#[derive(Clone, Debug)]
pub struct Primary {
    vm_id: [u8; 16],
    generation: u64,
    settings: Settings,
    state: PrimaryState,
    watch: Watch,
    beat_ms: Option<u64>,
    /// Outputs may leave before this time.
    lease_until_ms: u64,
    flight: Flight,
    /// Outputs up to this chunk were allowed to leave.
    released: u64,
    /// The backup's outputs differed: its acknowledgements count for nothing any more.
    distrusted: bool,
    stalled: bool,
    contest: Option<Contest>,
    /// In `Holding`: no output is being carried out any more.
    quiet: bool,
}

impl Primary {
    /// An unprotected machine of this generation (1 for one that was just created).
    #[must_use]
    pub fn new(now_ms: u64, vm_id: [u8; 16], generation: u64) -> Self {
        Self {
            vm_id,
            generation,
            settings: Settings::default(),
            state: PrimaryState::Solo,
            watch: Watch::new(now_ms),
            beat_ms: None,
            lease_until_ms: 0,
            flight: Flight::default(),
            released: 0,
            distrusted: false,
            stalled: false,
            contest: None,
            quiet: false,
        }
    }

    /// Where it stands.
    #[must_use]
    pub fn state(&self) -> PrimaryState {
        self.state
    }

    /// The generation it is in.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// How far the backup is.
    #[must_use]
    pub fn progress(&self, now_ms: u64) -> Progress {
        Progress {
            sent: self.flight.last_sent(),
            received: self.flight.received(),
            executed: self.flight.executed(),
            executed_moment: self.flight.executed_moment(),
            unexecuted_bytes: self.flight.bytes(),
            lag_ms: self.flight.waiting_ms(self.flight.executed(), now_ms),
        }
    }

    /// Whether an output that was released may still be carried out at `now_ms`. Workers ask right
    /// before each packet and each disk write: time may have passed since [`Action::Release`].
    #[must_use]
    pub fn may_carry_out(&self, now_ms: u64) -> bool {
        match self.state {
            PrimaryState::Solo | PrimaryState::Greeting | PrimaryState::Copying => true,
            PrimaryState::Protecting | PrimaryState::Protected | PrimaryState::Leaving => {
                now_ms < self.lease_until_ms
            }
            PrimaryState::Yielding | PrimaryState::Holding | PrimaryState::Halted => false,
        }
    }

    /// The stream to a standby is open: ask it. `prologue` must carry this side's identity and
    /// generation.
    ///
    /// # Errors
    ///
    /// When there is a backup already, or the settings cannot work.
    pub fn join(&mut self, now_ms: u64, prologue: Prologue) -> Result<Vec<Action>, RequestError> {
        if self.state != PrimaryState::Solo {
            return Err(RequestError::NotSolo { state: self.state });
        }
        prologue.settings.check().map_err(|why| RequestError::Settings { why })?;
        self.settings = prologue.settings.clone();
        self.state = PrimaryState::Greeting;
        self.watch = Watch::new(now_ms);
        self.beat_ms = None;
        self.lease_until_ms = 0;
        self.flight = Flight::default();
        self.released = 0;
        self.distrusted = false;
        self.stalled = false;
        let prologue = Prologue { vm_id: self.vm_id, generation: self.generation, ..prologue };
        let hello = Action::Send(Message::Hello(Box::new(prologue)));
        Ok(vec![hello, Action::Report(Happening::Joining)])
    }

    /// End the protection. Outputs go on waiting until the backup has promised to stay out.
    ///
    /// # Errors
    ///
    /// When there is none.
    pub fn disable(&mut self, now_ms: u64) -> Result<Vec<Action>, RequestError> {
        let mut out = self.attend(now_ms);
        match self.state {
            PrimaryState::Greeting | PrimaryState::Copying => {
                self.join_failed("it was cancelled", &mut out);
            }
            PrimaryState::Protecting | PrimaryState::Protected => {
                self.state = PrimaryState::Leaving;
                out.push(Word::Leave.into());
            }
            PrimaryState::Solo
            | PrimaryState::Leaving
            | PrimaryState::Yielding
            | PrimaryState::Holding
            | PrimaryState::Halted => {
                return Err(RequestError::NotProtected { state: self.state });
            }
        }
        Ok(out)
    }

    /// Hand the machine over. The driver has stopped it, appended the last chunk, and no released
    /// output is still being carried out.
    ///
    /// # Errors
    ///
    /// When there is no backup that could take it.
    pub fn failover(&mut self, now_ms: u64) -> Result<Vec<Action>, RequestError> {
        if self.state != PrimaryState::Protected {
            return Err(RequestError::NotProtected { state: self.state });
        }
        let mut out = self.attend(now_ms);
        self.state = PrimaryState::Yielding;
        out.push(Word::Yield { chunk: self.flight.last_sent() }.into());
        Ok(out)
    }

    /// The recorder closed a chunk. It is sent where there is somebody to send it to.
    pub fn append(&mut self, now_ms: u64, chunk: Chunk) -> Vec<Action> {
        let mut out = self.attend(now_ms);
        match self.state {
            PrimaryState::Copying | PrimaryState::Protecting | PrimaryState::Protected => {
                self.flight.send(&chunk, now_ms);
                out.push(Action::Send(Message::Append(chunk)));
                let bytes = self.flight.bytes();
                if !self.stalled && bytes > self.settings.log_limit_bytes {
                    self.stalled = true;
                    out.push(Action::Stall);
                    out.push(Action::Report(Happening::Stalled { bytes }));
                }
            }
            PrimaryState::Solo
            | PrimaryState::Greeting
            | PrimaryState::Leaving
            | PrimaryState::Yielding
            | PrimaryState::Holding
            | PrimaryState::Halted => {}
        }
        out
    }

    /// Something happened.
    pub fn step(&mut self, now_ms: u64, event: Event) -> Vec<Action> {
        let mut out = self.attend(now_ms);
        match event {
            Event::Message(message) => self.on_message(now_ms, message, &mut out),
            Event::Closed => self.lost(LossCause::Closed, &mut out),
            Event::Damaged { why } => self.lost(LossCause::Damaged { why }, &mut out),
            Event::Heartbeat(heartbeat) => self.on_heartbeat(now_ms, &heartbeat),
            // The stream tells the same, and tells it of this very backup.
            Event::PeerGone => {}
            Event::Arbiter(answer) => self.on_answer(now_ms, answer, &mut out),
            Event::Quiet => {
                self.quiet = self.state == PrimaryState::Holding;
                self.beat_ms = None;
            }
        }
        self.release(now_ms, &mut out);
        out
    }

    /// Time passed. To be called at least every `heartbeat_ms / 2`.
    pub fn tick(&mut self, now_ms: u64) -> Vec<Action> {
        let mut out = self.attend(now_ms);
        self.beat(now_ms, &mut out);
        if let Some(cause) = self.overdue(now_ms) {
            self.lost(cause, &mut out);
        }
        if let Some(contest) = &mut self.contest
            && contest.is_due(now_ms)
        {
            out.push(Action::AskArbiter { generation: contest.generation });
        }
        self.release(now_ms, &mut out);
        out
    }

    fn attend(&mut self, now_ms: u64) -> Vec<Action> {
        match self.watch.attend(now_ms, &self.settings) {
            Some(paused_ms) if self.talks() => {
                vec![Action::Report(Happening::Paused { paused_ms })]
            }
            Some(_) | None => vec![],
        }
    }

    /// Whether there is a stream that messages go out on.
    fn talks(&self) -> bool {
        match self.state {
            PrimaryState::Greeting
            | PrimaryState::Copying
            | PrimaryState::Protecting
            | PrimaryState::Protected
            | PrimaryState::Leaving
            | PrimaryState::Yielding => true,
            PrimaryState::Solo | PrimaryState::Holding | PrimaryState::Halted => false,
        }
    }

    fn on_message(&mut self, now_ms: u64, message: Message, out: &mut Vec<Action>) {
        if !self.talks() && self.state != PrimaryState::Holding {
            return;
        }
        self.watch.heard_stream(now_ms);
        let Message::Word(word) = message else {
            return self.nonsense("a log from the backup", out);
        };
        use PrimaryState::{Copying, Greeting, Holding, Leaving, Protected, Protecting, Yielding};
        match (word, self.state) {
            (Word::Welcome, Greeting) => {
                self.state = Copying;
                out.push(Action::StartJoin);
            }
            (Word::Refuse { why }, Greeting | Copying) => self.join_failed(&why, out),
            (Word::Ready, Copying) => {
                self.state = Protecting;
                out.push(Action::CloseGate);
                out.push(Word::Protect.into());
            }
            (Word::Following, Protecting) => {
                self.state = Protected;
                let generation = self.generation;
                out.push(Action::Report(Happening::Protected { generation }));
            }
            // It was asked to leave before it had answered to the request to protect.
            (Word::Following, Leaving) => {}
            (Word::Ack(ack), Greeting | Copying | Protecting | Protected | Leaving | Yielding) => {
                self.on_ack(now_ms, &ack, out);
            }
            (Word::Left, Leaving) => {
                self.go_solo(self.generation, SoloReason::Left, out);
            }
            (Word::Diverged(divergence), Copying | Protecting | Protected | Leaving | Yielding) => {
                out.push(Action::Report(Happening::Diverged(divergence)));
                self.go_solo(self.generation, SoloReason::Diverged, out);
            }
            // A claim may have been made in this side's name: the generation is used up.
            (Word::Left, Holding) => self.go_solo(self.generation + 1, SoloReason::Left, out),
            (Word::Diverged(divergence), Holding) => {
                out.push(Action::Report(Happening::Diverged(divergence)));
                self.go_solo(self.generation + 1, SoloReason::Diverged, out);
            }
            (Word::Live { generation }, Yielding | Holding) => {
                self.halt(HaltReason::HandedOver { generation }, out);
            }
            (_, Holding) => {}
            (word, state) => {
                let why = alloc::format!("{word:?} while {state:?}");
                self.nonsense(&why, out);
            }
        }
    }

    fn on_ack(&mut self, now_ms: u64, ack: &Ack, out: &mut Vec<Action>) {
        if self.distrusted {
            return;
        }
        match self.flight.acknowledge(ack) {
            Ok(()) => {}
            Err(BadAck::Nonsense) => return self.nonsense("an impossible acknowledgement", out),
            Err(BadAck::Outputs { moment, recorded }) => {
                let divergence = Divergence::Outputs {
                    moment,
                    recorded_count: recorded.count,
                    recorded: recorded.digest,
                    replayed_count: ack.outputs.count,
                    replayed: ack.outputs.digest,
                };
                return self.distrust(divergence, out);
            }
        }
        self.echo(now_ms, ack.echo_ms);
        if self.stalled && self.flight.bytes() <= self.settings.log_limit_bytes / 2 {
            self.stalled = false;
            out.push(Action::Unstall);
        }
    }

    fn on_heartbeat(&mut self, now_ms: u64, heartbeat: &Heartbeat) {
        let ours = heartbeat.vm_id == self.vm_id && heartbeat.generation == self.generation;
        if ours && heartbeat.role == Role::Backup && self.talks() {
            self.watch.heard_datagram(now_ms);
            self.echo(now_ms, heartbeat.echo_ms);
        }
    }

    /// The backup heard, no earlier than at `echo_ms` of this side's clock, that this side lives: it
    /// will not go live for a whole timeout after that.
    fn echo(&mut self, now_ms: u64, echo_ms: Option<u64>) {
        if let Some(echo_ms) = echo_ms.filter(|echo_ms| *echo_ms <= now_ms) {
            let until_ms = echo_ms.saturating_add(self.settings.lease_ms);
            self.lease_until_ms = self.lease_until_ms.max(until_ms);
        }
    }

    fn on_answer(&mut self, now_ms: u64, answer: Answer, out: &mut Vec<Action>) {
        if self.state != PrimaryState::Holding {
            return;
        }
        let Some(contest) = &mut self.contest else {
            return;
        };
        let generation = contest.generation;
        match answer {
            Answer::Won => self.go_solo(generation, SoloReason::Won, out),
            Answer::Lost => self.halt(HaltReason::Lost { generation }, out),
            Answer::Unreachable => {
                contest.unanswered(now_ms);
                out.push(Action::Report(Happening::ArbiterUnreachable));
            }
        }
    }

    /// The chunk up to which the user's mode lets outputs leave.
    fn acknowledged(&self) -> u64 {
        match self.settings.ack {
            AckMode::Received => self.flight.received(),
            AckMode::Verified => self.flight.executed(),
        }
    }

    fn release(&mut self, now_ms: u64, out: &mut Vec<Action>) {
        let waits = match self.state {
            PrimaryState::Protecting | PrimaryState::Protected | PrimaryState::Leaving => true,
            PrimaryState::Solo
            | PrimaryState::Greeting
            | PrimaryState::Copying
            | PrimaryState::Yielding
            | PrimaryState::Holding
            | PrimaryState::Halted => false,
        };
        let through = self.acknowledged();
        if waits && !self.distrusted && through > self.released && self.may_carry_out(now_ms) {
            self.released = through;
            out.push(Action::Release { through });
        }
    }

    fn beat(&mut self, now_ms: u64, out: &mut Vec<Action>) {
        let due = self.beat_ms.is_none_or(|at_ms| now_ms >= at_ms + self.settings.heartbeat_ms);
        if !due || !(self.talks() || self.state == PrimaryState::Holding) {
            return;
        }
        self.beat_ms = Some(now_ms);
        if self.talks() {
            out.push(Word::Ping { stamp_ms: now_ms }.into());
        }
        out.push(Action::SendHeartbeat(Heartbeat {
            vm_id: self.vm_id,
            generation: self.generation,
            role: Role::Primary,
            stamp_ms: now_ms,
            echo_ms: None,
            holds: self.quiet,
        }));
    }

    fn overdue(&self, now_ms: u64) -> Option<LossCause> {
        let settings = &self.settings;
        match self.state {
            PrimaryState::Solo | PrimaryState::Holding | PrimaryState::Halted => None,
            // A standby that builds a machine may be busy; nothing depends on it yet.
            PrimaryState::Greeting | PrimaryState::Copying => {
                let silent_ms = now_ms.saturating_sub(self.watch.heard_ms());
                (silent_ms >= settings.lag_limit_ms).then_some(LossCause::Silent { silent_ms })
            }
            PrimaryState::Protecting
            | PrimaryState::Protected
            | PrimaryState::Leaving
            | PrimaryState::Yielding => {
                let silence = self.watch.silence(now_ms, settings);
                let waited_ms = self.flight.waiting_ms(self.flight.received(), now_ms);
                let behind_ms = self.flight.waiting_ms(self.flight.executed(), now_ms);
                if silence.is_some() {
                    silence
                } else if waited_ms >= settings.silence_ms {
                    Some(LossCause::NoAcknowledgement { waited_ms })
                } else {
                    (behind_ms >= settings.lag_limit_ms).then_some(LossCause::Lagging { behind_ms })
                }
            }
        }
    }

    fn nonsense(&mut self, why: &str, out: &mut Vec<Action>) {
        self.lost(LossCause::Damaged { why: why.to_string() }, out);
    }

    fn lost(&mut self, cause: LossCause, out: &mut Vec<Action>) {
        match self.state {
            PrimaryState::Solo | PrimaryState::Holding | PrimaryState::Halted => {}
            PrimaryState::Greeting | PrimaryState::Copying => {
                self.join_failed(&cause.to_string(), out);
            }
            PrimaryState::Protecting
            | PrimaryState::Protected
            | PrimaryState::Leaving
            | PrimaryState::Yielding => {
                let generation = self.generation + 1;
                self.state = PrimaryState::Holding;
                self.quiet = false;
                self.contest = Some(Contest::new(generation, self.settings.arbiter_retry_ms));
                out.push(Action::Hold);
                out.push(Action::Report(Happening::PeerLost(cause)));
                out.push(Action::AskArbiter { generation });
            }
        }
    }

    /// The backup produced other outputs than this side. Nothing it acknowledged since counts, and
    /// it is asked to leave; until it has, or the arbiter has spoken, outputs are held.
    fn distrust(&mut self, divergence: Divergence, out: &mut Vec<Action>) {
        out.push(Action::Report(Happening::Diverged(divergence)));
        self.distrusted = true;
        match self.state {
            PrimaryState::Protecting | PrimaryState::Protected => {
                self.state = PrimaryState::Leaving;
                out.push(Word::Leave.into());
            }
            PrimaryState::Greeting | PrimaryState::Copying => {
                self.join_failed("the backup's outputs differed", out);
            }
            PrimaryState::Yielding => self.nonsense("the backup's outputs differed", out),
            PrimaryState::Solo
            | PrimaryState::Leaving
            | PrimaryState::Holding
            | PrimaryState::Halted => {}
        }
    }

    fn join_failed(&mut self, why: &str, out: &mut Vec<Action>) {
        out.push(Action::Report(Happening::JoinFailed { why: why.to_string() }));
        self.go_solo(self.generation, SoloReason::NotJoined, out);
    }

    fn go_solo(&mut self, generation: u64, why: SoloReason, out: &mut Vec<Action>) {
        self.state = PrimaryState::Solo;
        self.generation = generation;
        self.contest = None;
        self.quiet = false;
        if core::mem::take(&mut self.stalled) {
            out.push(Action::Unstall);
        }
        out.push(Action::GoSolo { generation });
        out.push(Action::CloseStream);
        out.push(Action::Report(Happening::Solo { generation, why }));
    }

    fn halt(&mut self, reason: HaltReason, out: &mut Vec<Action>) {
        self.state = PrimaryState::Halted;
        self.contest = None;
        out.push(Action::Halt(reason.clone()));
        out.push(Action::CloseStream);
        out.push(Action::Report(Happening::Halted(reason)));
    }
}

/// How far a backup is behind its primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// The last chunk sent.
    pub sent: u64,
    /// The last chunk the backup holds.
    pub received: u64,
    /// The last chunk the backup has executed.
    pub executed: u64,
    /// The moment that chunk ends at.
    pub executed_moment: u64,
    /// Bytes of log not yet executed.
    pub unexecuted_bytes: u64,
    /// Milliseconds since the oldest chunk not yet executed was sent.
    pub lag_ms: u64,
}
