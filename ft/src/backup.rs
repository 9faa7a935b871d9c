//! The backup: follows a primary's log, and takes the machine over when the primary is lost.
//!
//! ```text
//!            Hello              prepared           Protect            lost, Yield
//!   Waiting ───────► Preparing ──────────► Joining ────────► Following ──────────► Draining
//!      ▲                 │ lost               │ lost          │ Leave,                │ drained
//!      └─────────────────┴────────────────────┘               │ diverged              ▼
//!                                                             ▼          Lost       Asking
//!                                                           Halted ◄─────────────────┤ Won
//!                                                                      fenced        ▼
//!                                                             Live ◄─────────────── Won
//! ```
//!
//! A follower whose copy is found to differ goes on following: it asks to be healed, and skips the log
//! until it is. If its primary is lost before that, it halts.
//!
//! One that the machine moves to ([`Purpose::Move`](crate::Purpose::Move)) drains by `Yield` alone:
//! if its primary is lost before, it waits for the next one, and if there is no arbiter it asks
//! nobody.
//!
//! It reads no clock and opens no socket: the driver hands in events with the time and carries the
//! actions out. The machine and its replay are the driver's. Why this is safe is argued in
//! `docs/PROTOCOL.md`.

mod healing;

use alloc::{
    boxed::Box, collections::VecDeque, format, string::String, string::ToString, vec, vec::Vec,
};
use serde::{Deserialize, Serialize};

use crate::action::{Action, Event, HaltReason, Happening, LossCause};
use crate::arbiter::{Answer, Contest};
use crate::chunk::Chunk;
use crate::error::Divergence;
use crate::event::Trail;
use crate::kept::PageDigest;
use crate::message::{Ack, Heartbeat, Message, Role, Word};
use crate::prologue::{Assumptions, Prologue};
use crate::settings::{AckMode, Purpose, Settings};
use crate::watch::Watch;

/// Bytes of log that a primary may send above its limit before it notices.
const BACKLOG_BYTES: u64 = 16 << 20;

/// Where a backup stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BackupState {
    /// Nobody has asked for it.
    Waiting,
    /// Builds the machine that the primary described.
    Preparing,
    /// Receives the machine's state. Cannot take over.
    Joining,
    /// Takes over if the primary is lost.
    Following,
    /// Replays all that it holds.
    Draining,
    /// Waits for the arbiter.
    Asking,
    /// The generation is this side's; waits until the primary cannot speak any more.
    Won,
    /// The machine is here.
    Live,
    /// Never goes live.
    Halted,
}

/// One standby's side, from the first greeting to the end.
#[derive(Clone, Debug)]
pub struct Backup {
    assumptions: Assumptions,
    state: BackupState,
    settings: Settings,
    vm_id: [u8; 16],
    generation: u64,
    watch: Watch,
    beat_ms: Option<u64>,
    stream_open: bool,
    progress: Ack,
    /// Where the last chunk ended, once there was one.
    end_moment: Option<u64>,
    ready: bool,
    /// Chunks delivered and not executed: number and bytes.
    unexecuted: VecDeque<(u64, u64)>,
    unexecuted_bytes: u64,
    contest: Option<Contest>,
    /// Not to go live before this time: until then the primary may hold a lease.
    fence_until_ms: u64,
    /// What differs, while the delta that heals this copy is not here.
    healing: Option<Divergence>,
    /// How this copy may differ is still being told.
    telling: bool,
    /// The next delta with machine state is that one.
    announced: bool,
    /// When the copy was last healed by the pages written of late.
    healed_ms: Option<u64>,
}

impl Backup {
    /// A standby with these assumptions.
    #[must_use]
    pub fn new(now_ms: u64, assumptions: Assumptions) -> Self {
        Self {
            assumptions,
            state: BackupState::Waiting,
            settings: Settings::default(),
            vm_id: [0; 16],
            generation: 0,
            watch: Watch::new(now_ms),
            beat_ms: None,
            stream_open: false,
            progress: Ack::default(),
            end_moment: None,
            ready: false,
            unexecuted: VecDeque::new(),
            unexecuted_bytes: 0,
            contest: None,
            fence_until_ms: 0,
            healing: None,
            telling: false,
            announced: false,
            healed_ms: None,
        }
    }

    /// Where it stands.
    #[must_use]
    pub fn state(&self) -> BackupState {
        self.state
    }

    /// The generation it is in: the primary's until it goes live, then its own.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The machine it follows; zeros before the first greeting.
    #[must_use]
    pub fn vm_id(&self) -> [u8; 16] {
        self.vm_id
    }

    /// How far it is.
    #[must_use]
    pub fn progress(&self) -> Ack {
        self.progress
    }

    /// Before [`Backup::prepared`]: the machine's memory is what is left of an earlier join, and its
    /// pages from `first_frame` on digest like this. To be told of all of it, in ascending order. So
    /// it is before [`Backup::told`] if the [`Action::TellCopy`] was for the whole memory.
    pub fn kept(&mut self, now_ms: u64, first_frame: u64, digests: Vec<PageDigest>) -> Vec<Action> {
        let mut out = self.attend(now_ms);
        let asked = self.state == BackupState::Preparing || self.is_telling();
        if asked && self.stream_open {
            out.push(Word::Kept { first_frame, digests }.into());
        }
        out
    }

    /// The driver has built the machine of [`Action::Prepare`], or could not, with a sentence why.
    pub fn prepared(&mut self, now_ms: u64, result: Result<(), String>) -> Vec<Action> {
        let mut out = self.attend(now_ms);
        if self.state == BackupState::Preparing {
            match result {
                Ok(()) => {
                    self.state = BackupState::Joining;
                    out.push(Word::Welcome.into());
                }
                Err(why) => self.refuse(why, &mut out),
            }
        }
        out
    }

    /// The replay has taken over the first whole state of the machine.
    pub fn ready(&mut self, now_ms: u64) -> Vec<Action> {
        let mut out = self.attend(now_ms);
        if self.state == BackupState::Joining && !self.ready {
            self.ready = true;
            out.push(Word::Ready.into());
        }
        out
    }

    /// The replay has consumed a chunk and its outputs were those recorded.
    pub fn executed(&mut self, now_ms: u64, number: u64, outputs: Trail) -> Vec<Action> {
        let mut out = self.attend(now_ms);
        self.progress.executed = number;
        while let Some((_, bytes)) = self.unexecuted.pop_front_if(|(at, _)| *at <= number) {
            self.unexecuted_bytes -= bytes;
        }
        self.progress.outputs = outputs;
        // Where only receipt counts, the answer to the next ping is soon enough; but a copy is sent
        // no faster than it is written to memory here.
        let paces = self.settings.ack == AckMode::Verified || self.state == BackupState::Joining;
        let waited_for = paces && self.stream_open;
        if waited_for && matches!(self.state, BackupState::Joining | BackupState::Following) {
            self.acknowledge(&mut out);
        }
        out
    }

    /// The replay found that this copy is not the machine. `curable`: a delta with machine state can
    /// make it that again.
    pub fn diverged(&mut self, now_ms: u64, divergence: Divergence, curable: bool) -> Vec<Action> {
        let mut out = self.attend(now_ms);
        match self.state {
            BackupState::Waiting | BackupState::Live | BackupState::Halted => {}
            BackupState::Following if curable && self.may_ask_for_healing(&divergence) => {
                self.ask_for_healing(now_ms, divergence, &mut out);
            }
            BackupState::Preparing
            | BackupState::Joining
            | BackupState::Following
            | BackupState::Draining
            | BackupState::Asking
            | BackupState::Won => {
                if self.stream_open {
                    out.push(Word::Diverged(divergence.clone()).into());
                }
                out.push(Action::Report(Happening::Diverged(divergence.clone())));
                self.halt(HaltReason::Diverged(divergence), &mut out);
            }
        }
        out
    }

    /// Everything that was delivered is replayed, after [`Action::Drain`].
    pub fn drained(&mut self, now_ms: u64) -> Vec<Action> {
        let mut out = self.attend(now_ms);
        let asks_nobody = self.settings.purpose == Purpose::Move { arbiter: false };
        if self.state == BackupState::Draining && asks_nobody {
            // Only the primary's word leads here, and it goes on only if the user tells it to.
            self.state = BackupState::Won;
            self.go_live_if_fenced(now_ms, &mut out);
        } else if self.state == BackupState::Draining {
            let generation = self.generation + 1;
            self.state = BackupState::Asking;
            self.contest = Some(Contest::new(generation, self.settings.arbiter_retry_ms));
            out.push(Action::AskArbiter { generation });
        }
        out
    }

    /// Something happened.
    pub fn step(&mut self, now_ms: u64, event: Event) -> Vec<Action> {
        let mut out = self.attend(now_ms);
        match event {
            Event::Message(message) => self.on_message(now_ms, message, &mut out),
            Event::Closed => {
                self.stream_open = false;
                self.lost(now_ms, LossCause::Closed, &mut out);
            }
            Event::Damaged { why } => self.lost(now_ms, LossCause::Damaged { why }, &mut out),
            Event::Heartbeat(heartbeat) => self.on_heartbeat(now_ms, &heartbeat, &mut out),
            Event::PeerGone => self.on_proof(now_ms, &mut out),
            Event::Arbiter { generation, answer } => {
                self.on_answer(now_ms, generation, answer, &mut out);
            }
            Event::Quiet => {}
        }
        out
    }

    /// Time passed. To be called at least every `heartbeat_ms / 2`.
    pub fn tick(&mut self, now_ms: u64) -> Vec<Action> {
        let mut out = self.attend(now_ms);
        if self.has_peer() {
            if self
                .beat_ms
                .is_none_or(|at_ms| now_ms >= at_ms.saturating_add(self.settings.heartbeat_ms))
            {
                self.beat(now_ms, &mut out);
            }
            if let Some(cause) = self.overdue(now_ms) {
                self.lost(now_ms, cause, &mut out);
            }
        }
        if let Some(contest) = &mut self.contest
            && contest.is_due(now_ms)
        {
            out.push(Action::AskArbiter { generation: contest.generation });
        }
        self.go_live_if_fenced(now_ms, &mut out);
        out
    }

    fn attend(&mut self, now_ms: u64) -> Vec<Action> {
        let gap = self.watch.attend(now_ms, &self.settings);
        // The fence is a length of time, and a clock that was set on does not shorten it.
        if self.fence_until_ms > gap.since_ms {
            self.fence_until_ms = self.fence_until_ms.saturating_add(gap.missed_ms);
        }
        match gap.paused_ms {
            Some(paused_ms) if self.has_peer() => {
                vec![Action::Report(Happening::Paused { paused_ms })]
            }
            Some(_) | None => vec![],
        }
    }

    fn has_peer(&self) -> bool {
        match self.state {
            BackupState::Preparing
            | BackupState::Joining
            | BackupState::Following
            | BackupState::Draining
            | BackupState::Asking
            | BackupState::Won => true,
            BackupState::Waiting | BackupState::Live | BackupState::Halted => false,
        }
    }

    fn on_message(&mut self, now_ms: u64, message: Message, out: &mut Vec<Action>) {
        use BackupState::{Asking, Draining, Following, Joining, Preparing, Waiting, Won};
        if let (Message::Hello(prologue), Waiting) = (&message, self.state) {
            return self.on_hello(now_ms, prologue, out);
        }
        if !self.has_peer() || !self.stream_open {
            return;
        }
        self.watch.heard_stream(now_ms);
        match (message, self.state) {
            (Message::Append(chunk), Joining | Following) => self.on_append(now_ms, &chunk, out),
            (Message::Word(Word::Ping { stamp_ms }), _) => {
                self.hear(stamp_ms);
                self.acknowledge(out);
            }
            (Message::Word(Word::Protect), Joining) if self.ready => {
                self.state = Following;
                out.push(Word::Following.into());
                let generation = self.generation;
                out.push(Action::Report(Happening::Protected { generation }));
            }
            (Message::Word(Word::Leave), Joining | Following) => {
                out.push(Word::Left.into());
                self.halt(HaltReason::Left, out);
            }
            (Message::Word(Word::Yield { .. }), Following) if self.is_healing() => {
                self.halt_unhealed(out);
            }
            (Message::Word(Word::Yield { chunk }), Following)
                if chunk == self.progress.received =>
            {
                self.drain(LossCause::Yielded, out);
                self.fence_until_ms = 0;
            }
            (message, Preparing | Joining | Following) => {
                let why = format!("{} while {:?}", name(&message), self.state);
                self.lost(now_ms, LossCause::Damaged { why }, out);
            }
            (_, Waiting | Draining | Asking | Won | BackupState::Live | BackupState::Halted) => {}
        }
    }

    fn on_hello(&mut self, now_ms: u64, prologue: &Prologue, out: &mut Vec<Action>) {
        self.watch = Watch::new(now_ms);
        self.beat_ms = None;
        self.stream_open = true;
        self.progress = Ack::default();
        self.end_moment = None;
        self.ready = false;
        self.unexecuted.clear();
        self.unexecuted_bytes = 0;
        self.healing = None;
        self.telling = false;
        self.announced = false;
        self.healed_ms = None;
        self.settings = prologue.settings.clone();
        self.vm_id = prologue.vm_id;
        self.generation = prologue.generation;
        let checked = prologue
            .check(&self.assumptions)
            .map_err(|mismatch| mismatch.to_string())
            .and_then(|()| prologue.settings.check());
        match checked {
            Ok(()) => {
                self.state = BackupState::Preparing;
                out.push(Action::Prepare(Box::new(prologue.clone())));
            }
            Err(why) => self.refuse(why, out),
        }
    }

    fn on_append(&mut self, now_ms: u64, chunk: &Chunk, out: &mut Vec<Action>) {
        let follows = chunk.number == self.progress.received + 1
            && self.end_moment.is_none_or(|moment| moment == chunk.start_moment);
        let decoded = chunk.decode().map_err(|error| error.to_string());
        match decoded {
            Ok(batch) if follows => {
                self.progress.received = chunk.number;
                self.end_moment = Some(chunk.end_moment);
                let bytes = chunk.records.len() as u64;
                self.unexecuted.push_back((chunk.number, bytes));
                self.unexecuted_bytes += bytes;
                let is_healed = self.is_healed_by(&batch);
                out.push(Action::Deliver(batch));
                out.extend(is_healed.then_some(Action::Report(Happening::Healed)));
                self.acknowledge(out);
                self.check_backlog(now_ms, out);
            }
            Ok(_) => {
                let why = format!("chunk {} is not the next one", chunk.number);
                self.lost(now_ms, LossCause::Damaged { why }, out);
            }
            Err(why) => self.lost(now_ms, LossCause::Damaged { why }, out),
        }
    }

    /// A primary stops long before this: one that does not is not to be believed. While the machine
    /// is being copied the driver's reading sets the pace.
    fn check_backlog(&mut self, now_ms: u64, out: &mut Vec<Action>) {
        let held = self.unexecuted_bytes;
        let limit = self.settings.log_limit_bytes.saturating_mul(2).saturating_add(BACKLOG_BYTES);
        if held > limit && self.state == BackupState::Following {
            let why = format!("{held} bytes of log, where the primary promised at most {limit}");
            self.lost(now_ms, LossCause::Damaged { why }, out);
        }
    }

    fn on_heartbeat(&mut self, now_ms: u64, heartbeat: &Heartbeat, out: &mut Vec<Action>) {
        let ours = heartbeat.vm_id == self.vm_id && heartbeat.generation == self.generation;
        if !ours || heartbeat.role != Role::Primary || !self.has_peer() {
            return;
        }
        if heartbeat.holds && self.state == BackupState::Following {
            self.lost(now_ms, LossCause::CountedAsLost, out);
        }
        if heartbeat.holds {
            self.on_proof(now_ms, out);
        }
        // Once the primary is lost its words count for nothing: the fence must not move.
        if self.stream_open {
            self.watch.heard_datagram(now_ms);
            self.hear(heartbeat.stamp_ms);
        }
    }

    fn hear(&mut self, stamp_ms: u64) {
        self.progress.echo_ms = self.progress.echo_ms.max(Some(stamp_ms));
    }

    fn acknowledge(&self, out: &mut Vec<Action>) {
        out.push(Word::Ack(self.progress).into());
    }

    /// The primary cannot carry out any output of this generation any more.
    fn on_proof(&mut self, now_ms: u64, out: &mut Vec<Action>) {
        match self.state {
            BackupState::Draining | BackupState::Asking | BackupState::Won => {
                self.fence_until_ms = 0;
                self.go_live_if_fenced(now_ms, out);
            }
            BackupState::Waiting
            | BackupState::Preparing
            | BackupState::Joining
            | BackupState::Following
            | BackupState::Live
            | BackupState::Halted => {}
        }
    }

    fn on_answer(&mut self, now_ms: u64, generation: u64, answer: Answer, out: &mut Vec<Action>) {
        let Some(contest) = self.contest.as_mut().filter(|open| open.generation == generation)
        else {
            return;
        };
        match answer {
            Answer::Won => {
                self.state = BackupState::Won;
                self.contest = None;
                self.go_live_if_fenced(now_ms, out);
            }
            Answer::Lost => {
                self.halt(HaltReason::Lost { generation }, out);
            }
            Answer::Unreachable => {
                contest.unanswered(now_ms);
                out.push(Action::Report(Happening::ArbiterUnreachable));
            }
        }
    }

    fn go_live_if_fenced(&mut self, now_ms: u64, out: &mut Vec<Action>) {
        if self.state != BackupState::Won || now_ms < self.fence_until_ms {
            return;
        }
        self.state = BackupState::Live;
        self.generation += 1;
        let generation = self.generation;
        out.push(Action::GoLive { generation });
        if self.stream_open {
            out.push(Word::Live { generation }.into());
        }
        out.push(Action::Report(Happening::Live { generation }));
    }

    fn beat(&mut self, now_ms: u64, out: &mut Vec<Action>) {
        self.beat_ms = Some(now_ms);
        out.push(Action::SendHeartbeat(Heartbeat {
            vm_id: self.vm_id,
            generation: self.generation,
            role: Role::Backup,
            stamp_ms: now_ms,
            // A backup that has given its primary up must not prolong the primary's lease.
            echo_ms: self.progress.echo_ms.filter(|_| self.stream_open),
            holds: false,
        }));
    }

    fn overdue(&self, now_ms: u64) -> Option<LossCause> {
        match self.state {
            BackupState::Following => self.watch.silence(now_ms, &self.settings),
            BackupState::Preparing | BackupState::Joining => {
                let silent_ms = now_ms.saturating_sub(self.watch.heard_ms());
                (silent_ms >= self.settings.lag_limit_ms).then_some(LossCause::Silent { silent_ms })
            }
            BackupState::Waiting
            | BackupState::Draining
            | BackupState::Asking
            | BackupState::Won
            | BackupState::Live
            | BackupState::Halted => None,
        }
    }

    fn lost(&mut self, now_ms: u64, cause: LossCause, out: &mut Vec<Action>) {
        match self.state {
            BackupState::Preparing | BackupState::Joining => self.give_up(&cause, out),
            BackupState::Following if self.settings.purpose.is_move() => {
                self.give_up(&cause, out);
            }
            BackupState::Following if self.is_healing() => {
                out.push(Action::Report(Happening::PeerLost(cause)));
                self.halt_unhealed(out);
            }
            BackupState::Following => {
                self.fence_until_ms =
                    self.watch.heard_ms().saturating_add(self.settings.timeout_ms);
                self.close_stream(out);
                self.drain(cause, out);
                // Ask at once whether anybody still lives there.
                self.beat(now_ms, out);
            }
            BackupState::Waiting
            | BackupState::Draining
            | BackupState::Asking
            | BackupState::Won
            | BackupState::Live
            | BackupState::Halted => {}
        }
    }

    /// The machine does not come here; another may.
    fn give_up(&mut self, cause: &LossCause, out: &mut Vec<Action>) {
        self.state = BackupState::Waiting;
        self.close_stream(out);
        out.push(Action::Discard);
        out.push(Action::Report(Happening::JoinFailed { why: cause.to_string() }));
    }

    fn drain(&mut self, cause: LossCause, out: &mut Vec<Action>) {
        self.state = BackupState::Draining;
        out.push(Action::Report(Happening::PeerLost(cause)));
        out.push(Action::Drain);
    }

    fn close_stream(&mut self, out: &mut Vec<Action>) {
        if core::mem::take(&mut self.stream_open) {
            out.push(Action::CloseStream);
        }
    }

    fn refuse(&mut self, why: String, out: &mut Vec<Action>) {
        self.state = BackupState::Waiting;
        out.push(Word::Refuse { why: why.clone() }.into());
        self.close_stream(out);
        out.push(Action::Report(Happening::JoinFailed { why }));
    }

    fn halt(&mut self, reason: HaltReason, out: &mut Vec<Action>) {
        self.state = BackupState::Halted;
        self.contest = None;
        out.push(Action::Halt(reason.clone()));
        self.close_stream(out);
        out.push(Action::Report(Happening::Halted(reason)));
    }
}

fn name(message: &Message) -> String {
    match message {
        Message::Hello(_) => String::from("a second prologue"),
        Message::Append(chunk) => format!("chunk {}", chunk.number),
        Message::Word(word) => word.brief(),
    }
}
