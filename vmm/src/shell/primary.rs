//! The pair, seen from the side that runs the VM.
//!
//! Owns what the primary's actions do here: the gate in front of the world, the stream to the
//! backup, the lease. Which action when is `ft::Primary`'s decision alone.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use ft::recorder::Noted;
use ft::{
    Action, Chunk, DigestMode, Event, Gate, Happening, KeptPages, Link, Output, Primary,
    PrimaryState, Purpose,
};
use hypervisor::monotonic_ns;

use super::lag_loop::LagLoop;
use super::logged::prologue;
use super::method::choose;
use super::primary_side::{
    Brakes, GATE_LIMIT_BYTES, Handover, Held, PrimarySide, ask_arbiter, now_ms, settings,
};
use super::protection::Protection;
use super::{Interest, Shell, Source};
use crate::board::layout;
use crate::config::{Arbiter, FtConfig, PeerAddress, VmConfig};
use crate::engine::{JoinKind, Message, RecordPlan};
use crate::error::Error;
use crate::identity::random_id;
use crate::machine::PAGE_SIZE;
use crate::replica::{Channel, Heartbeats, Helped, Helpers, Question, Whom, open_arbiter};

impl Shell {
    pub(super) fn primary_side(&mut self) -> Option<&mut PrimarySide> {
        match &mut self.protection {
            Protection::Primary(side) => Some(side),
            Protection::None
            | Protection::Recording(_)
            | Protection::Replaying(_)
            | Protection::Backup(_) => None,
        }
    }

    /// Looks for the backup; what comes of it is reported later.
    pub(super) fn seek_backup(
        &mut self,
        ft: &FtConfig,
        peer: &PeerAddress,
        purpose: Purpose,
    ) -> Result<(), Error> {
        let identity = match &self.protection {
            Protection::Primary(side) => Some((side.vm_id, side.primary.generation())),
            Protection::Backup(side) => Some(side.identity()),
            Protection::None | Protection::Recording(_) | Protection::Replaying(_) => None,
        };
        let (vm_id, generation) = match identity {
            Some(identity) => identity,
            None => (random_id()?, 1),
        };
        let method = choose(ft, self.succession.unreplayable.as_ref())?;
        let arbiter = open_arbiter(ft.arbiter.as_ref())?;
        let helpers = Helpers::new()?;
        self.poller().watch(helpers.as_raw_fd(), Source::Helpers, Interest::Read)?;
        let timeout = Duration::from_millis(ft.timings.connect_timeout_ms);
        let whom = if purpose.is_move() { Whom::Receiver } else { Whom::Backup };
        helpers.connect(whom, peer.to_string(), timeout, arbiter.clone())?;
        self.leave_protection();
        let starting = !self.started;
        self.protection = Protection::Primary(Box::new(PrimarySide {
            primary: Primary::new(now_ms(), vm_id, generation),
            purpose,
            config: ft.clone(),
            peer: peer.to_string(),
            vm_id,
            method,
            claimant: random_id()?,
            arbiter,
            helpers,
            channel: None,
            heartbeats: None,
            kept: KeptPages::default(),
            touched: Vec::new(),
            gate: Gate::new(GATE_LIMIT_BYTES),
            gate_closed: false,
            logging: false,
            leaving: VecDeque::new(),
            brakes: Brakes::default(),
            lag_loop: LagLoop::default(),
            starting,
            handing_over: None,
            chunk_ends: VecDeque::new(),
            appended_bytes: 0,
            holding: false,
            connecting: true,
        }));
        Ok(())
    }

    pub(super) fn on_primary_ready(&mut self, source: Source) -> Result<(), Error> {
        match source {
            Source::Helpers => {
                while let Some(helped) = self.primary_side().and_then(|side| side.helpers.take()) {
                    match helped {
                        Helped::Connected(result) => self.on_connected(result)?,
                        Helped::Arbiter { generation, answer } => {
                            self.step_primary(Event::Arbiter { generation, answer })?;
                        }
                    }
                }
                Ok(())
            }
            Source::Channel => self.on_primary_channel(),
            Source::Heartbeat => self.on_primary_heartbeats(),
            Source::Engine
            | Source::Api
            | Source::Signals
            | Source::Tap(_)
            | Source::SerialInput
            | Source::ConsoleInput(_)
            | Source::Listener => Ok(()),
        }
    }

    fn on_connected(&mut self, result: Result<std::net::TcpStream, String>) -> Result<(), Error> {
        let Some(side) = self.primary_side() else { return Ok(()) };
        // Cancelled meanwhile.
        if !std::mem::take(&mut side.connecting) {
            return Ok(());
        }
        let joined = match result {
            Ok(stream) => self.greet(stream),
            Err(why) => Err(Error::Channel(why)),
        };
        if let Err(error) = joined {
            self.join_failed(&error.to_string());
        }
        Ok(())
    }

    fn greet(&mut self, stream: std::net::TcpStream) -> Result<(), Error> {
        let (Some(config), Some(running)) = (&self.config, &self.running) else {
            return Err(Error::Refused("the VM has ended".into()));
        };
        let Protection::Primary(side) = &mut self.protection else { return Ok(()) };
        let settings = settings(&side.config, side.purpose);
        let described = self.succession.described.as_ref().unwrap_or(config);
        // Who gets the VM for good is not told how to protect it.
        let ft = Some(&side.config).filter(|_| !side.purpose.is_move());
        let protection = (ft, self.succession.unreplayable.as_ref());
        let mut prologue =
            prologue(described, running, DigestMode::EveryChunk, settings, protection)?;
        prologue.arbiter =
            side.config.arbiter.as_ref().map_or_else(String::new, Arbiter::to_options);
        let link = Link::primary(side.primary.generation()).packing(side.config.compression);
        let channel = Channel::new(stream, link)?;
        let peer =
            channel.peer().ok_or_else(|| Error::Channel("the backup hung up at once".into()))?;
        let port = side.config.udp_port.unwrap_or(peer.port());
        let heartbeats = Heartbeats::connect(SocketAddr::new(peer.ip(), port))?;
        self.poller.watch(channel.as_raw_fd(), Source::Channel, Interest::Read)?;
        self.poller.watch(heartbeats.as_raw_fd(), Source::Heartbeat, Interest::Read)?;
        side.channel = Some(channel);
        side.heartbeats = Some(heartbeats);
        let actions = side
            .primary
            .join(now_ms(), prologue)
            .map_err(|error| Error::Refused(error.to_string()))?;
        self.act_primary(actions)
    }

    fn on_primary_channel(&mut self) -> Result<(), Error> {
        let Some(channel) = self.primary_side().and_then(|side| side.channel.as_mut()) else {
            return Ok(());
        };
        channel.flush();
        let received = channel.receive();
        for message in received.messages {
            self.step_primary(Event::Message(message))?;
        }
        if let Some(why) = received.damaged {
            self.step_primary(Event::Damaged { why })?;
        }
        if received.closed {
            self.step_primary(Event::Closed)?;
            let poller = &self.poller;
            if let Protection::Primary(side) = &mut self.protection
                && let Some(channel) = side.channel.take()
            {
                poller.forget(channel.as_raw_fd());
            }
        }
        self.watch_channel()
    }

    /// Asks for room to write only while something waits for it.
    fn watch_channel(&mut self) -> Result<(), Error> {
        let Protection::Primary(side) = &self.protection else { return Ok(()) };
        let Some(channel) = &side.channel else { return Ok(()) };
        let interest = if channel.wants_write() { Interest::ReadWrite } else { Interest::Read };
        self.poller.watch(channel.as_raw_fd(), Source::Channel, interest)
    }

    fn on_primary_heartbeats(&mut self) -> Result<(), Error> {
        let Some(heartbeats) = self.primary_side().and_then(|side| side.heartbeats.as_mut()) else {
            return Ok(());
        };
        let beats = heartbeats.receive();
        for heartbeat in beats.heartbeats {
            self.step_primary(Event::Heartbeat(heartbeat))?;
        }
        if beats.refused {
            self.step_primary(Event::PeerGone)?;
        }
        Ok(())
    }

    pub(super) fn step_primary(&mut self, event: Event) -> Result<(), Error> {
        let Some(side) = self.primary_side() else { return Ok(()) };
        let actions = side.primary.step(now_ms(), event);
        self.act_primary(actions)
    }

    pub(super) fn tick_primary(&mut self) -> Result<(), Error> {
        let Some(side) = self.primary_side() else { return Ok(()) };
        let actions = side.primary.tick(now_ms());
        self.act_primary(actions)?;
        self.say_when_quiet()
    }

    /// Log and outputs of the machine: to the backup, and into the gate.
    pub(super) fn ship(
        &mut self,
        chunks: Vec<Chunk>,
        outputs: Vec<(Noted, Output)>,
    ) -> Result<(), Error> {
        for chunk in chunks {
            let Some(side) = self.primary_side() else { return Ok(()) };
            side.chunk_ends.push_back((chunk.number, chunk.end_moment));
            side.appended_bytes += chunk.records.len() as u64;
            let actions = side.primary.append(now_ms(), chunk);
            self.act_primary(actions)?;
        }
        for (noted, output) in outputs {
            self.hold_or_let_go(noted, output);
        }
        self.let_leave();
        self.brake();
        Ok(())
    }

    fn hold_or_let_go(&mut self, noted: Noted, output: Output) {
        let Protection::Primary(side) = &mut self.protection else { return };
        let holds = side.holds(noted);
        let free = if holds {
            let must_wait = self.held.must_wait(&output);
            let held = Held { sequence: noted.sequence, output };
            side.gate.push(held, must_wait, noted.chunk, monotonic_ns() / 1_000)
        } else {
            Some(Held { sequence: noted.sequence, output })
        };
        match free {
            // What passes the gate at once must not overtake what has been released before it.
            Some(held) if held.output.is_gated() && holds => {
                side.leaving.push_back(held);
            }
            Some(held) => self.let_go([held.output]),
            None => {}
        }
    }

    /// Lets released outputs leave, as long as the lease lasts.
    pub(super) fn let_leave(&mut self) {
        let (Protection::Primary(side), Some(running)) = (&mut self.protection, &mut self.running)
        else {
            return;
        };
        // What has not left when the log ends for a planned move is the backup's to send.
        let until_ms = match side.handing_over {
            Some(Handover::Ended { .. } | Handover::Yielded) => 0,
            Some(Handover::Stopping | Handover::Emptying { .. }) | None => {
                side.primary.may_carry_out_until_ms()
            }
        };
        running.lease.set_until_ms(until_ms);
        let mut last = None;
        while now_ms() < until_ms
            && let Some(held) = side.leaving.pop_front()
        {
            self.held.released(&held.output);
            last = Some(held.sequence);
            running.carry_out(held.output);
        }
        if let Some(sequence) = last {
            running.engine.set_released(sequence);
        }
    }

    /// Stops the machine, or lets it go on, as the brakes say.
    fn brake(&mut self) {
        let Some(side) = self.primary_side() else { return };
        side.brakes.gate = side.gate.is_over_limit();
        if let Some(on) = side.brakes.change() {
            self.send(Message::Stall(on));
        }
    }

    pub(super) fn act_primary(&mut self, actions: Vec<Action>) -> Result<(), Error> {
        for action in actions {
            self.act_primary_once(action)?;
        }
        self.note_progress();
        self.let_leave();
        self.brake();
        self.watch_channel()
    }

    fn act_primary_once(&mut self, action: Action) -> Result<(), Error> {
        let Protection::Primary(side) = &mut self.protection else { return Ok(()) };
        match action {
            Action::Send(message) => {
                if let Some(channel) = &mut side.channel {
                    channel.send(&message)?;
                }
            }
            Action::SendHeartbeat(heartbeat) => {
                if let Some(heartbeats) = &side.heartbeats {
                    heartbeats.send(&heartbeat);
                }
            }
            Action::CloseStream => {
                if let Some(mut channel) = side.channel.take() {
                    channel.flush();
                    self.poller.forget(channel.as_raw_fd());
                }
            }
            Action::NoteKept { first_frame, digests } => {
                let frames_end = self.config.as_ref().map_or(0, frames_end);
                if !side.kept.note(first_frame, digests, frames_end) {
                    let why = "a list of pages that the VM does not have".to_owned();
                    return self.step_primary(Event::Damaged { why });
                }
            }
            Action::NoteTouched { frames } => return self.note_touched(frames),
            Action::Heal => return self.heal_backup(),
            Action::StartJoin => self.start_join(),
            Action::CloseGate => side.gate_closed = true,
            Action::Release { through } => {
                let released = side.gate.release(through, monotonic_ns() / 1_000);
                side.leaving.extend(released);
            }
            Action::Hold => side.holding = true,
            Action::Stall | Action::Unstall => {
                side.brakes.log = action == Action::Stall;
            }
            Action::GoSolo { .. } => self.go_solo(),
            Action::AskArbiter { generation } => {
                let PrimarySide { vm_id, claimant, .. } = **side;
                let question = Question { vm_id, generation, claimant };
                let answer = ask_arbiter(&side.helpers, side.arbiter.as_ref(), question);
                if let Some(answer) = answer {
                    return self.step_primary(Event::Arbiter { generation, answer });
                }
            }
            Action::Halt(reason) => self.halt_primary(&reason),
            Action::Report(happening) => self.on_primary_happening(&happening),
            // Only a backup is asked for these.
            Action::Prepare(_)
            | Action::Deliver(_)
            | Action::TellCopy { .. }
            | Action::Discard
            | Action::Drain
            | Action::GoLive { .. } => {}
        }
        Ok(())
    }

    fn start_join(&mut self) {
        let Protection::Primary(side) = &mut self.protection else { return };
        // Whatever the last log left in the gate has gone when that protection ended.
        side.gate.restart();
        side.chunk_ends.clear();
        side.appended_bytes = 0;
        side.logging = true;
        let plan = RecordPlan {
            kind: JoinKind::Pair,
            digest_every: side.config.digest_every,
            checkpoint_ns: side.checkpoint_ns(),
            bytes_per_second: side.config.join_bandwidth,
        };
        let starting = std::mem::take(&mut side.starting);
        let kept = std::mem::take(&mut side.kept);
        side.touched.clear();
        self.statistics.begin(Instant::now());
        self.report_method();
        self.send(Message::Record(plan, kept));
        if starting {
            self.started = true;
            self.send(Message::Resume);
        }
    }

    fn on_primary_happening(&mut self, happening: &Happening) {
        self.observe(happening);
        self.note_relapse(happening);
        if !matches!(happening, Happening::JoinFailed { .. }) {
            self.statistics.happened(happening.to_string());
        }
        self.report_happening(happening);
        if self.on_move_happening(happening) {
            return;
        }
        match happening {
            Happening::Protected { .. } => self.answer_protected(),
            Happening::JoinFailed { why } => {
                let peer = self.primary_side().map(|side| side.peer.clone()).unwrap_or_default();
                self.join_failed(&format!("the backup at {peer} could not be joined: {why}"));
            }
            Happening::Diverged(_)
            | Happening::Healed
            | Happening::Joining
            | Happening::PeerLost(_)
            | Happening::ArbiterUnreachable
            | Happening::Undecided
            | Happening::Solo { .. }
            | Happening::Live { .. }
            | Happening::Halted(_)
            | Happening::Stalled { .. }
            | Happening::Paused { .. } => {}
        }
    }

    fn note_progress(&mut self) {
        let Protection::Primary(side) = &mut self.protection else { return };
        let progress = side.primary.progress(now_ms());
        while let Some((number, end)) = side.chunk_ends.front()
            && *number <= progress.received
        {
            self.statistics.acknowledged_moment = *end;
            side.chunk_ends.pop_front();
        }
        self.statistics.lag_ms = progress.lag_ms;
        if let Some(running) = &self.running {
            let executed_bytes = side.appended_bytes.saturating_sub(progress.unexecuted_bytes);
            running.engine.set_executed_bytes(executed_bytes);
        }
        // A copy that is being healed is behind until it is, and no further then.
        let follows = side.primary.state() == PrimaryState::Protected && !side.primary.is_healing();
        let lag_ms = if follows { progress.lag_ms } else { 0 };
        let most_ms = side.config.timings.max_lag_ms;
        side.brakes.note_lag(lag_ms, most_ms);
        let before = side.lag_loop.percent();
        if let Some(percent) = side.lag_loop.note(now_ms(), lag_ms, most_ms) {
            self.slow_down(before, percent);
        }
    }

    fn slow_down(&mut self, before: u64, percent: u64) {
        if before == 0 {
            log::info!("the backup executes more slowly than this host: the VM is slowed down");
        } else if percent == 0 {
            log::info!("the backup keeps up again: the VM has all of its speed");
        }
        self.send(Message::SlowDown(percent));
    }
}

/// The first frame behind the VM's RAM.
fn frames_end(config: &VmConfig) -> u64 {
    let regions = layout::ram_regions(config.memory.size);
    regions.iter().map(|(start, length)| (start + length) / PAGE_SIZE).max().unwrap_or(0)
}
