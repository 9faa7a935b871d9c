//! The pair, seen from the side that runs the VM.
//!
//! Owns what the primary's actions do here: the gate in front of the world, the stream to the
//! backup, the lease. Which action when is `ft::Primary`'s decision alone.

use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::time::Duration;

use ft::recorder::Noted;
use ft::{
    Action, Answer, Chunk, DigestMode, Event, Gate, HaltReason, Happening, Link, Output, Primary,
    PrimaryState, Settings, Weight,
};
use hypervisor::{boottime_ms, monotonic_ns};
use serde_json::json;

use super::logged::prologue;
use super::protection::Protection;
use super::{Awaits, Interest, Outcome, Poller, Shell, Source};
use crate::api::ApiError;
use crate::config::{AckMode, Arbiter, FtConfig, PeerAddress};
use crate::engine::{Ended, JoinKind, Message};
use crate::error::Error;
use crate::identity::{hex, random_id};
use crate::replica::{Channel, Heartbeats, Helped, Helpers};

/// A VM that ends waits at most this long for its backup's last word, ms.
const LAST_WORDS_MS: u64 = 5_000;
const LAST_WORDS_TICK_MS: i32 = 5;
/// Outputs held beyond this many bytes stop the machine.
const GATE_LIMIT_BYTES: usize = 64 << 20;

/// An output that waits, and its place in the log.
struct Held {
    sequence: u64,
    output: Output,
}

impl Weight for Held {
    fn weight_bytes(&self) -> usize {
        self.output.weight_bytes()
    }
}

/// How far a planned move is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Handover {
    /// The machine was told to stop and to end its log.
    Stopping,
    /// It did, at this moment.
    Ended { moment: u64 },
    /// The backup was told to go on.
    Yielded,
}

/// What the shell keeps for a VM that is protected, or was or is to be.
pub(super) struct PrimarySide {
    pub primary: Primary,
    config: FtConfig,
    pub peer: String,
    vm_id: [u8; 16],
    /// Tells this process from the other side when the arbiter is asked.
    claimant: String,
    helpers: Helpers,
    channel: Option<Channel>,
    heartbeats: Option<Heartbeats>,
    gate: Gate<Held>,
    gate_closed: bool,
    /// Outputs that may leave as soon as the lease says so.
    leaving: std::collections::VecDeque<Held>,
    stalled_by_gate: bool,
    stalled_by_log: bool,
    /// The VM stands still until its log begins.
    starting: bool,
    /// A planned move is under way.
    handing_over: Option<Handover>,
    /// End moments of chunks that are not acknowledged yet.
    chunk_ends: std::collections::VecDeque<(u64, u64)>,
    holding: bool,
    connecting: bool,
}

/// Milliseconds of the clock that all of a replica's timers share.
pub(super) fn now_ms() -> u64 {
    boottime_ms()
}

pub(super) fn settings(config: &FtConfig) -> Settings {
    Settings {
        ack: match config.ack {
            AckMode::Received => ft::AckMode::Received,
            AckMode::Verified => ft::AckMode::Verified,
        },
        heartbeat_ms: config.timings.heartbeat_ms,
        timeout_ms: config.timings.timeout_ms,
        lease_ms: config.timings.timeout_ms / 2,
        silence_ms: config.timings.timeout_ms.saturating_mul(2).max(2_000),
        lag_limit_ms: config.timings.timeout_ms.saturating_mul(4).max(10_000),
        log_limit_bytes: config.log_buffer,
        ..Settings::default()
    }
}

/// The directory of a `file:` arbiter; `None` where the user wants no arbiter.
pub(super) fn arbiter_directory(arbiter: Option<&Arbiter>) -> Option<PathBuf> {
    match arbiter {
        Some(Arbiter::File { path }) => Some(path.clone()),
        Some(Arbiter::None) | None => None,
    }
}

/// Asks the arbiter on a thread; without one the answer is yes at once.
pub(super) fn ask_arbiter(
    helpers: &Helpers,
    directory: Option<PathBuf>,
    vm_id: [u8; 16],
    generation: u64,
    claimant: &str,
) -> Option<Answer> {
    let Some(directory) = directory else { return Some(Answer::Won) };
    match helpers.ask_arbiter(directory, hex(&vm_id), generation, claimant.to_owned()) {
        Ok(()) => None,
        Err(error) => {
            log::error!("the arbiter cannot be asked: {error}");
            Some(Answer::Unreachable)
        }
    }
}

impl PrimarySide {
    pub(super) fn is_solo(&self) -> bool {
        self.primary.state() == PrimaryState::Solo && !self.connecting
    }

    /// Whether there is a backup that protects the VM.
    fn talks(&self) -> bool {
        matches!(self.primary.state(), PrimaryState::Protected | PrimaryState::Protecting)
    }

    pub(super) fn needs_ticks(&self) -> bool {
        !self.is_solo() || !self.leaving.is_empty()
    }

    /// Outputs held now.
    pub(super) fn outputs_held(&self) -> u64 {
        (self.gate.len() + self.leaving.len()) as u64
    }

    /// How long half of the outputs and 99 in 100 of them waited at most, in µs.
    pub(super) fn delays_us(&self) -> (u64, u64) {
        let quantile = |per_mille| self.gate.delays().quantile_us(per_mille).unwrap_or(0);
        (quantile(500), quantile(990))
    }

    pub(super) fn ack(&self) -> AckMode {
        self.config.ack
    }

    pub(super) fn connecting(&self) -> bool {
        self.connecting
    }

    pub(super) fn close(mut self, poller: &Poller) {
        self.close_channel(poller);
        poller.forget(self.helpers.as_raw_fd());
    }

    fn close_channel(&mut self, poller: &Poller) {
        if let Some(mut channel) = self.channel.take() {
            channel.flush();
            poller.forget(channel.as_raw_fd());
        }
        if let Some(heartbeats) = self.heartbeats.take() {
            poller.forget(heartbeats.as_raw_fd());
        }
    }
}

impl Shell {
    fn primary_side(&mut self) -> Option<&mut PrimarySide> {
        match &mut self.protection {
            Protection::Primary(side) => Some(side),
            Protection::None
            | Protection::Recording(_)
            | Protection::Replaying(_)
            | Protection::Backup(_) => None,
        }
    }

    /// Looks for the backup; what comes of it is reported later.
    pub(super) fn seek_backup(&mut self, ft: &FtConfig, peer: &PeerAddress) -> Result<(), Error> {
        let identity = match &self.protection {
            Protection::Primary(side) => Some((side.vm_id, side.primary.generation())),
            Protection::Backup(side) => Some(side.identity()),
            Protection::None | Protection::Recording(_) | Protection::Replaying(_) => None,
        };
        let (vm_id, generation) = match identity {
            Some(identity) => identity,
            None => (random_id()?, 1),
        };
        if let Some(directory) = arbiter_directory(ft.arbiter.as_ref())
            && !directory.is_dir()
        {
            return Err(Error::Refused(format!(
                "the arbiter's directory {} is not there; mount the storage that both hosts share, \
                 or make the directory",
                directory.display()
            )));
        }
        let helpers = Helpers::new()?;
        self.poller().watch(helpers.as_raw_fd(), Source::Helpers, Interest::Read)?;
        let timeout = Duration::from_millis(ft.timings.connect_timeout_ms);
        helpers.connect(peer.to_string(), timeout)?;
        self.leave_protection();
        let starting = !self.started;
        self.protection = Protection::Primary(Box::new(PrimarySide {
            primary: Primary::new(now_ms(), vm_id, generation),
            config: ft.clone(),
            peer: peer.to_string(),
            vm_id,
            claimant: hex(&random_id()?),
            helpers,
            channel: None,
            heartbeats: None,
            gate: Gate::new(GATE_LIMIT_BYTES),
            gate_closed: false,
            leaving: std::collections::VecDeque::new(),
            stalled_by_gate: false,
            stalled_by_log: false,
            starting,
            handing_over: None,
            chunk_ends: std::collections::VecDeque::new(),
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
                        Helped::Arbiter(answer) => self.step_primary(Event::Arbiter(answer))?,
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
        if let Some(side) = self.primary_side() {
            side.connecting = false;
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

    /// The join did not come about: a VM that runs runs on; one that was to start protected does
    /// not start.
    fn join_failed(&mut self, why: &str) {
        self.statistics.happened(format!("Joining failed: {why}"));
        self.refuse_protection(why);
        let starting = self.primary_side().is_some_and(|side| side.starting);
        if starting {
            self.outcome = Some(Outcome::Badly(why.to_owned()));
        }
    }

    fn greet(&mut self, stream: std::net::TcpStream) -> Result<(), Error> {
        let (Some(config), Some(running)) = (&self.config, &self.running) else {
            return Err(Error::Refused("the VM has ended".into()));
        };
        let Protection::Primary(side) = &mut self.protection else { return Ok(()) };
        let settings = settings(&side.config);
        let mut prologue = prologue(config, &running.cpuid, DigestMode::EveryChunk, settings)?;
        prologue.arbiter =
            side.config.arbiter.as_ref().map_or_else(String::new, ToString::to_string);
        let channel = Channel::new(stream, Link::primary(side.primary.generation()))?;
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

    fn step_primary(&mut self, event: Event) -> Result<(), Error> {
        let Some(side) = self.primary_side() else { return Ok(()) };
        let actions = side.primary.step(now_ms(), event);
        self.act_primary(actions)
    }

    pub(super) fn tick_primary(&mut self) -> Result<(), Error> {
        let Some(side) = self.primary_side() else { return Ok(()) };
        let actions = side.primary.tick(now_ms());
        self.act_primary(actions)?;
        self.say_when_quiet()?;
        self.statistics.tick(std::time::Instant::now());
        Ok(())
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
            let actions = side.primary.append(now_ms(), chunk);
            self.act_primary(actions)?;
        }
        for (noted, output) in outputs {
            self.hold_or_let_go(noted, output);
        }
        self.let_leave();
        self.stall_when_full();
        Ok(())
    }

    fn hold_or_let_go(&mut self, noted: Noted, output: Output) {
        let Protection::Primary(side) = &mut self.protection else { return };
        let free = if side.gate_closed {
            let must_wait = self.held.must_wait(&output);
            let held = Held { sequence: noted.sequence, output };
            side.gate.push(held, must_wait, noted.chunk, monotonic_ns() / 1_000)
        } else {
            Some(Held { sequence: noted.sequence, output })
        };
        match free {
            // What passes the gate at once must not overtake what has been released before it.
            Some(held) if held.output.is_gated() && side.gate_closed => {
                side.leaving.push_back(held);
            }
            Some(held) => self.let_go([held.output]),
            None => {}
        }
    }

    /// Lets released outputs leave, as long as the lease lasts.
    fn let_leave(&mut self) {
        let (Protection::Primary(side), Some(running)) = (&mut self.protection, &mut self.running)
        else {
            return;
        };
        // What has not left when the log ends for a planned move is the backup's to send.
        let until_ms = match side.handing_over {
            Some(Handover::Ended { .. } | Handover::Yielded) => 0,
            Some(Handover::Stopping) | None => side.primary.may_carry_out_until_ms(),
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

    /// Outputs that nobody acknowledges must not pile up without bound.
    fn stall_when_full(&mut self) {
        let Some(side) = self.primary_side() else { return };
        let full = side.gate.is_over_limit();
        if full != side.stalled_by_gate {
            side.stalled_by_gate = full;
            let stalled = full || side.stalled_by_log;
            self.send(Message::Stall(stalled));
        }
    }

    fn act_primary(&mut self, actions: Vec<Action>) -> Result<(), Error> {
        for action in actions {
            self.act_primary_once(action)?;
        }
        self.note_progress();
        self.let_leave();
        self.stall_when_full();
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
            Action::StartJoin => self.start_join(),
            Action::CloseGate => side.gate_closed = true,
            Action::Release { through } => {
                let released = side.gate.release(through, monotonic_ns() / 1_000);
                side.leaving.extend(released);
            }
            Action::Hold => side.holding = true,
            Action::Stall | Action::Unstall => {
                side.stalled_by_log = action == Action::Stall;
                let stalled = side.stalled_by_log || side.stalled_by_gate;
                self.send(Message::Stall(stalled));
            }
            Action::GoSolo { .. } => self.go_solo(),
            Action::AskArbiter { generation } => {
                let directory = arbiter_directory(side.config.arbiter.as_ref());
                let answer =
                    ask_arbiter(&side.helpers, directory, side.vm_id, generation, &side.claimant);
                if let Some(answer) = answer {
                    return self.step_primary(Event::Arbiter(answer));
                }
            }
            Action::Halt(reason) => self.halt_primary(&reason),
            Action::Report(happening) => self.on_primary_happening(&happening),
            // Only a backup is asked for these.
            Action::Prepare(_)
            | Action::Deliver(_)
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
        let digest_every = side.config.digest_every;
        let starting = std::mem::take(&mut side.starting);
        self.send(Message::Record(JoinKind::Pair, digest_every));
        if starting {
            self.started = true;
            self.send(Message::Resume);
        }
    }

    /// Nobody follows any more: everything held may leave, nothing is logged.
    fn go_solo(&mut self) {
        let handed = {
            let Protection::Primary(side) = &mut self.protection else { return };
            side.gate_closed = false;
            side.holding = false;
            (side.stalled_by_gate, side.stalled_by_log) = (false, false);
            let held = side.gate.release(u64::MAX, monotonic_ns() / 1_000);
            side.leaving.extend(held);
            side.gate.restart();
            side.close_channel(&self.poller);
            side.handing_over.take()
        };
        self.let_leave();
        self.send(Message::StopRecording(None));
        self.send(Message::Stall(false));
        if handed.is_some() {
            self.send(Message::Resume);
            self.answer(
                Awaits::HandedOver,
                &Err(ApiError::failed(
                    "The backup was lost before it had the VM; it runs on here.",
                )),
            );
        }
        self.answer(Awaits::Unprotected, &Ok(()));
    }

    /// The VM is somewhere else from now on, or must never speak again here.
    fn halt_primary(&mut self, reason: &HaltReason) {
        let outcome = match reason {
            HaltReason::HandedOver { .. } => {
                self.answer(Awaits::HandedOver, &Ok(()));
                Outcome::Well
            }
            HaltReason::Lost { .. } | HaltReason::Left | HaltReason::Diverged(_) => {
                Outcome::Badly(format!("this side halts: {reason}"))
            }
        };
        if let Some(running) = &self.running {
            running.lease.set_until_ms(0);
            running.lease.revoke();
        }
        self.end_vm();
        self.leave_protection();
        self.outcome = Some(outcome);
    }

    fn on_primary_happening(&mut self, happening: &Happening) {
        self.statistics.happened(happening.to_string());
        self.events.report("ft", "happened", &json!({ "what": happening.to_string() }));
        match happening {
            Happening::Protected { .. } => self.answer(Awaits::Protected, &Ok(())),
            Happening::JoinFailed { why } => self.join_failed(why),
            Happening::Diverged(_) => self.statistics.divergences += 1,
            Happening::Joining
            | Happening::PeerLost(_)
            | Happening::ArbiterUnreachable
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
    }

    /// While outputs are held, the protocol wants to know when none is under way any more; a
    /// planned move waits for the same.
    fn say_when_quiet(&mut self) -> Result<(), Error> {
        let quiet = self.running.as_ref().is_none_or(|running| running.lease.is_quiet());
        let Protection::Primary(side) = &mut self.protection else { return Ok(()) };
        if !quiet {
            return Ok(());
        }
        if std::mem::take(&mut side.holding) {
            return self.step_primary(Event::Quiet);
        }
        if let Some(Handover::Ended { moment }) = side.handing_over {
            side.handing_over = Some(Handover::Yielded);
            log::info!("the VM is handed over at moment {moment}");
            // Where the backup is lost by now, the protocol has seen to the VM already.
            if let Ok(actions) = side.primary.failover(now_ms()) {
                return self.act_primary(actions);
            }
        }
        Ok(())
    }

    pub(super) fn dismiss_backup(&mut self) -> Result<(), ApiError> {
        let Some(side) = self.primary_side() else { return Ok(()) };
        let actions =
            side.primary.disable(now_ms()).map_err(|error| ApiError::failed(error.to_string()))?;
        self.act_primary(actions).map_err(|error| ApiError::failed(error.to_string()))
    }

    /// Stops the machine; once its log has ended, the backup is asked to go on.
    pub(super) fn begin_handover(&mut self) -> Result<(), ApiError> {
        let Some(side) = self.primary_side() else {
            return Err(ApiError::failed("The VM has no backup that it could be handed to."));
        };
        if side.primary.state() != PrimaryState::Protected || side.handing_over.is_some() {
            return Err(ApiError::failed(
                "The VM is not protected now (see ft-info), so it cannot be handed over.",
            ));
        }
        side.handing_over = Some(Handover::Stopping);
        self.send(Message::HandOver);
        Ok(())
    }

    /// The machine stands still and its log has ended. No output may be under way when the backup
    /// is told to go on: it redoes those that are still here.
    pub(super) fn on_handed_over(&mut self, moment: u64) -> Result<(), Error> {
        if let Some(side) = self.primary_side() {
            side.handing_over = Some(Handover::Ended { moment });
        }
        self.let_leave();
        self.say_when_quiet()
    }

    /// The guest has switched itself off: its last outputs leave as all others do, then the backup
    /// is told not to take over. A machine that failed just ends here; its backup goes on.
    pub(super) fn primary_machine_ended(&mut self, ended: &Ended) {
        match ended {
            Ended::PowerOff => {
                self.serve_pair_while(|side| side.talks() && side.outputs_held() > 0);
                self.end_pair();
            }
            Ended::Stopped | Ended::Failed(_) => {}
        }
    }

    /// The VM ends on purpose while it is protected: the backup is told not to take over.
    pub(super) fn end_pair(&mut self) {
        let talks = self.primary_side().is_some_and(|side| side.talks());
        if talks && self.dismiss_backup().is_ok() {
            self.serve_pair_while(|side| side.primary.state() == PrimaryState::Leaving);
        }
    }

    /// Serves the pair alone for as long as `waits` says, and for a bounded time.
    fn serve_pair_while(&mut self, waits: impl Fn(&PrimarySide) -> bool) {
        let deadline = now_ms() + LAST_WORDS_MS;
        while now_ms() < deadline && self.primary_side().is_some_and(|side| waits(side)) {
            let Ok(ready) = self.poller.wait(LAST_WORDS_TICK_MS) else { return };
            for source in ready {
                let served = match source {
                    Source::Channel | Source::Heartbeat | Source::Helpers => {
                        self.on_primary_ready(source)
                    }
                    Source::Engine
                    | Source::Api
                    | Source::Signals
                    | Source::Tap(_)
                    | Source::SerialInput
                    | Source::ConsoleInput(_)
                    | Source::Listener => Ok(()),
                };
                if let Err(error) = served {
                    log::warn!("{error}");
                }
            }
            if let Err(error) = self.tick_primary() {
                log::warn!("{error}");
            }
        }
    }
}
