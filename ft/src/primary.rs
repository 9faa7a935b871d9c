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
//! A pair that is there to move the machine ([`Purpose::Move`](crate::Purpose::Move)) differs in
//! two places: a loss before `Yielding` leads back to `Solo`, as nobody takes over unasked; one
//! after it leads to a `Holding` that only the user ends, unless there is an arbiter.
//!
//! It reads no clock and opens no socket: the driver hands in events with the time and carries the
//! actions out. Why this is safe is argued in `docs/PROTOCOL.md`.

mod events;
mod healing;

use alloc::{boxed::Box, string::String, vec, vec::Vec};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::action::{Action, Event, Happening, LossCause, SoloReason};
use crate::arbiter::Contest;
use crate::chunk::Chunk;
use crate::flight::Flight;
use crate::message::{Message, Word};
use crate::prologue::Prologue;
use crate::settings::Settings;
use crate::watch::Watch;
use healing::Healing;

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
    /// Lost the backup; waits for the arbiter, or for the user if there is none to decide a move.
    /// Nothing leaves.
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
    /// Asked to go on alone where that is not the user's to decide.
    #[error("it is not the user who decides where the machine goes on: it is {state:?}")]
    NotUndecided {
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
    /// While it is under way no output is released.
    healing: Healing,
    /// Since when, if one is.
    healing_since_ms: u64,
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
            healing: Healing::Sound,
            healing_since_ms: 0,
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

    /// Until when an output that was released may be carried out, on the clock that is handed in:
    /// 0 while none may, `u64::MAX` while there is nobody to wait for.
    #[must_use]
    pub fn may_carry_out_until_ms(&self) -> u64 {
        match self.state {
            PrimaryState::Solo | PrimaryState::Greeting | PrimaryState::Copying => u64::MAX,
            PrimaryState::Protecting | PrimaryState::Protected | PrimaryState::Leaving => {
                self.lease_until_ms
            }
            PrimaryState::Yielding | PrimaryState::Holding | PrimaryState::Halted => 0,
        }
    }

    /// Whether an output that was released may still be carried out at `now_ms`. Workers ask right
    /// before each packet and each disk write: time may have passed since [`Action::Release`].
    #[must_use]
    pub fn may_carry_out(&self, now_ms: u64) -> bool {
        now_ms < self.may_carry_out_until_ms()
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
        self.healing = Healing::Sound;
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

    /// Whether nobody but the user can tell where the machine is.
    #[must_use]
    pub fn is_undecided(&self) -> bool {
        self.state == PrimaryState::Holding && self.contest.is_none()
    }

    /// The user knows that the other side does not have the machine and never will: go on here.
    ///
    /// # Errors
    ///
    /// When it is somebody else who decides, or nobody has to.
    pub fn reclaim(&mut self, now_ms: u64) -> Result<Vec<Action>, RequestError> {
        if !self.is_undecided() {
            return Err(RequestError::NotUndecided { state: self.state });
        }
        let mut out = self.attend(now_ms);
        self.go_solo(self.generation + 1, SoloReason::Reclaimed, &mut out);
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
            Event::Arbiter { generation, answer } => {
                self.on_answer(now_ms, generation, answer, &mut out);
            }
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
        match self.watch.attend(now_ms, &self.settings).paused_ms {
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
