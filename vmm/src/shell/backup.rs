//! The pair, seen from the side that follows.
//!
//! Owns what the backup's actions do here: the machine that replays, the ledger of outputs that
//! the primary has not confirmed, going live. Which action when is `ft::Backup`'s decision alone.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsRawFd;
use std::time::Instant;

use ft::recorder::Noted;
use ft::{
    Action, Assumptions, Backup, BackupState, Batch, Divergence, EndReason, Event, HaltReason,
    Happening, Ledger, Output, Prologue, Purpose, Trail,
};
use serde_json::json;
use xxhash_rust::xxh3::xxh3_64;

use super::backup_side::{BackupSide, inheritance};
use super::logged::described;
use super::method::choose;
use super::primary_side::{ask_arbiter, now_ms};
use super::protection::Protection;
use super::remains::{Remains, Telling};
use super::reprotection::Succession;
use super::suitability::{check_host, here};
use super::traffic::Tally;
use super::visitors::Visitors;
use super::vm::Running;
use super::{Awaits, Interest, Outcome, Shell, Source};
use crate::api::FtProtection;
use crate::config::{AckMode, Arbiter, FtConfig, apply_overrides};
use crate::description::Description;
use crate::engine::{Ended, Message, Origin};
use crate::error::Error;
use crate::identity::{build_id, random_id};
use crate::replica::{
    Channel, Heartbeats, Helped, Helpers, Lease, Question, Received, open_arbiter,
};

/// Connections taken before the event loop's other sources have their turn.
const ACCEPTED_A_TURN: usize = 64;

/// Characters of a reason for a refusal.
const REASON_MOST: usize = 2000;

/// What this side assumes. The guest's CPUID is the primary's to choose: whether this host can
/// offer it is asked of KVM when the machine is built.
fn assumptions(prologue: Option<&Prologue>) -> Assumptions {
    let hash = prologue.map_or(0, |prologue| xxh3_64(&prologue.cpuid));
    Assumptions::new(&build_id(), hash)
}

impl Shell {
    pub(super) fn backup_side(&mut self) -> Option<&mut BackupSide> {
        match &mut self.protection {
            Protection::Backup(side) => Some(side),
            Protection::None
            | Protection::Recording(_)
            | Protection::Replaying(_)
            | Protection::Primary(_) => None,
        }
    }

    /// Opens the ports and waits for a primary.
    pub(super) fn await_primary(&mut self, ft: &FtConfig, listen: SocketAddr) -> Result<(), Error> {
        let failed = |error: std::io::Error| {
            Error::Channel(format!(
                "no primary can be awaited at {listen}: {error}; give an address of this host and a \
                 port that is free"
            ))
        };
        self.succession = Succession::default();
        let listener = TcpListener::bind(listen).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let heartbeats = Heartbeats::listen(heartbeat_address(ft, listen))?;
        let helpers = Helpers::new()?;
        // Looked at now, so that a primary need not wait for it.
        log::info!("build {}", build_id());
        let poller = self.poller();
        poller.watch(listener.as_raw_fd(), Source::Listener, Interest::Read)?;
        poller.watch(heartbeats.as_raw_fd(), Source::Heartbeat, Interest::Read)?;
        poller.watch(helpers.as_raw_fd(), Source::Helpers, Interest::Read)?;
        self.protection = Protection::Backup(Box::new(BackupSide {
            backup: Backup::new(now_ms(), assumptions(None)),
            config: ft.clone(),
            listen,
            listener,
            claimant: random_id()?,
            helpers,
            visitors: Visitors::default(),
            channel: None,
            heartbeats,
            arbiter: None,
            ack: ft.ack,
            method: FtProtection::None,
            ledger: Ledger::new(),
            remains: None,
            telling: None,
            touched: Vec::new(),
            has_state: false,
            log_end: None,
            inheritance: None,
            identity: ([0; 16], 0),
            heartbeat_ms: 1,
            reception: None,
        }));
        self.statistics.happened(format!("Waiting for a primary at {listen}"));
        Ok(())
    }

    pub(super) fn on_backup_ready(&mut self, source: Source) -> Result<(), Error> {
        match source {
            Source::Listener => self.accept(),
            Source::Channel => self.on_backup_channel(),
            Source::Heartbeat => self.on_backup_heartbeats(),
            Source::Helpers => {
                while let Some(helped) = self.backup_side().and_then(|side| side.helpers.take()) {
                    if let Helped::Arbiter { generation, answer } = helped {
                        self.step_backup(Event::Arbiter { generation, answer })?;
                    }
                }
                Ok(())
            }
            Source::Engine
            | Source::Api
            | Source::Signals
            | Source::Tap(_)
            | Source::SerialInput
            | Source::ConsoleInput(_) => Ok(()),
        }
    }

    fn accept(&mut self) -> Result<(), Error> {
        let Protection::Backup(side) = &mut self.protection else { return Ok(()) };
        for _ in 0..ACCEPTED_A_TURN {
            match side.listener.accept() {
                Ok((stream, _)) => side.visitors.admit(stream, &self.poller),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => {
                    side.visitors.say(&format!("a connection could not be accepted: {error}"));
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Lets the first who greets while nobody is followed be the primary; others are told why not.
    /// Who is followed is not disturbed.
    fn hear_visitors(&mut self) -> Result<(), Error> {
        let Protection::Backup(side) = &mut self.protection else { return Ok(()) };
        for (channel, received) in side.visitors.hear(&self.poller) {
            let Protection::Backup(side) = &mut self.protection else { return Ok(()) };
            if side.backup.state() == BackupState::Waiting {
                side.close_channel(&self.poller);
                side.channel = Some(channel);
                self.on_backup_received(received)?;
            } else {
                side.turn_away(channel, &self.poller);
            }
        }
        Ok(())
    }

    fn on_backup_channel(&mut self) -> Result<(), Error> {
        self.hear_visitors()?;
        let Some(channel) = self.backup_side().and_then(|side| side.channel.as_mut()) else {
            return Ok(());
        };
        channel.flush();
        let received = channel.receive();
        self.on_backup_received(received)
    }

    fn on_backup_received(&mut self, received: Received) -> Result<(), Error> {
        for message in received.messages {
            self.on_backup_message(message)?;
        }
        if let Some(why) = received.damaged {
            log::warn!("the channel carried something else: {why}");
            self.step_backup(Event::Damaged { why })?;
            self.drop_backup_channel();
        }
        if received.closed {
            self.step_backup(Event::Closed)?;
            self.drop_backup_channel();
        }
        self.watch_backup_channel()
    }

    fn on_backup_message(&mut self, message: ft::Message) -> Result<(), Error> {
        if let (ft::Message::Hello(prologue), Some(side)) = (&message, self.backup_side())
            && side.backup.state() == BackupState::Waiting
        {
            side.backup = Backup::new(now_ms(), assumptions(Some(prologue)));
        }
        let tally = match &message {
            ft::Message::Append(chunk) => Some(Tally::of(chunk)),
            ft::Message::Hello(_) | ft::Message::Word(_) => None,
        };
        let held = self.chunks_held();
        self.step_backup(Event::Message(message))?;
        // What was not taken is no part of the log.
        if let Some(tally) = tally.filter(|_| self.chunks_held() > held) {
            self.statistics.received(&tally, Instant::now());
        }
        Ok(())
    }

    /// Chunks of the primary's log that this side holds.
    fn chunks_held(&mut self) -> u64 {
        self.backup_side().map_or(0, |side| side.backup.progress().received)
    }

    fn drop_backup_channel(&mut self) {
        if let Protection::Backup(side) = &mut self.protection {
            side.close_channel(&self.poller);
        }
    }

    fn watch_backup_channel(&mut self) -> Result<(), Error> {
        let Protection::Backup(side) = &self.protection else { return Ok(()) };
        let Some(channel) = &side.channel else { return Ok(()) };
        let interest = if channel.wants_write() { Interest::ReadWrite } else { Interest::Read };
        self.poller.watch(channel.as_raw_fd(), Source::Channel, interest)
    }

    fn on_backup_heartbeats(&mut self) -> Result<(), Error> {
        let Some(side) = self.backup_side() else { return Ok(()) };
        let beats = side.heartbeats.receive();
        for heartbeat in beats.heartbeats {
            self.step_backup(Event::Heartbeat(heartbeat))?;
        }
        // That nobody listens there any more proves that the process has ended, and with it, on most
        // storage, its last write. Elsewhere the fence has to be waited out.
        let is_proof = || !self.running.as_ref().is_some_and(Running::writes_outlive_their_process);
        if beats.refused && is_proof() {
            self.step_backup(Event::PeerGone)?;
        }
        Ok(())
    }

    fn step_backup(&mut self, event: Event) -> Result<(), Error> {
        let Some(side) = self.backup_side() else { return Ok(()) };
        let actions = side.backup.step(now_ms(), event);
        self.act_backup(actions)
    }

    pub(super) fn tick_backup(&mut self) -> Result<(), Error> {
        let Some(side) = self.backup_side() else { return Ok(()) };
        let actions = side.backup.tick(now_ms());
        self.act_backup(actions)?;
        self.tell_remains()?;
        self.tick_reception();
        Ok(())
    }

    pub(super) fn act_backup(&mut self, actions: Vec<Action>) -> Result<(), Error> {
        for action in actions {
            self.act_backup_once(action)?;
        }
        self.watch_backup_channel()
    }

    fn act_backup_once(&mut self, action: Action) -> Result<(), Error> {
        let Protection::Backup(side) = &mut self.protection else { return Ok(()) };
        match action {
            Action::Send(message) => {
                if let Some(channel) = &mut side.channel {
                    channel.send(&message)?;
                }
            }
            Action::SendHeartbeat(heartbeat) => side.heartbeats.send(&heartbeat),
            Action::CloseStream => side.close_channel(&self.poller),
            Action::Prepare(prologue) => return self.prepare(&prologue),
            Action::Deliver(batch) => self.deliver(batch),
            Action::Discard => {
                self.note_dropped();
                self.discard();
            }
            Action::Drain => self.send(Message::Drain),
            Action::TellCopy { whole } => return self.tell_copy(whole),
            Action::AskArbiter { generation } => {
                let (vm_id, _) = side.identity;
                let question = Question { vm_id, generation, claimant: side.claimant };
                let answer = ask_arbiter(&side.helpers, side.arbiter.as_ref(), question);
                if let Some(answer) = answer {
                    return self.step_backup(Event::Arbiter { generation, answer });
                }
            }
            Action::GoLive { generation } => return self.take_over(generation),
            Action::Halt(reason) => return self.halt_backup(&reason),
            Action::Report(happening) => self.on_backup_happening(&happening),
            // Only a primary is asked for these.
            Action::NoteKept { .. }
            | Action::NoteTouched { .. }
            | Action::Heal
            | Action::StartJoin
            | Action::CloseGate
            | Action::Release { .. }
            | Action::Hold
            | Action::Stall
            | Action::Unstall
            | Action::GoSolo { .. } => {}
        }
        Ok(())
    }

    /// Builds the machine that a primary describes, or says why not.
    fn prepare(&mut self, prologue: &Prologue) -> Result<(), Error> {
        let result = self.build_follower(prologue);
        if let Err(error) = &result {
            log::warn!("a primary is refused: {error}");
            self.discard();
        }
        let Some(side) = self.backup_side() else { return Ok(()) };
        if side.telling.is_some() {
            return self.tell_remains();
        }
        let result = result.map_err(|error| shortened(error.to_string()));
        let actions = side.backup.prepared(now_ms(), result);
        self.act_backup(actions)
    }

    fn build_follower(&mut self, prologue: &Prologue) -> Result<(), Error> {
        let Description { config, cpuid, disk_sectors, protection, unreplayable } =
            described(prologue)?;
        self.must_be_awaited(prologue.settings.purpose.is_move())?;
        // What became of the VM that was followed before says nothing about this one.
        self.succession = Succession::of(config.clone(), unreplayable);
        self.statistics.begin(Instant::now());
        self.statistics.moment = 0;
        let unreplayable = self.succession.unreplayable.as_ref();
        let method = protection.as_ref().map(|ft| choose(ft, unreplayable)).transpose()?;
        let Protection::Backup(side) = &mut self.protection else { return Ok(()) };
        side.method = method.unwrap_or(FtProtection::Replay);
        let reception = side.reception.as_ref();
        let overrides =
            reception.map_or(&self.invocation.overrides, |reception| &reception.overrides);
        let config = apply_overrides(config, overrides)?;
        let arbiter = match &side.config.arbiter {
            Some(arbiter) => Some(arbiter.clone()),
            None if prologue.arbiter.is_empty() => None,
            None => Some(Arbiter::parse(&prologue.arbiter)?),
        };
        side.arbiter = open_arbiter(arbiter.as_ref()).map_err(here)?;
        let primary_ip = side.channel.as_ref().and_then(Channel::peer_ip);
        side.inheritance = protection.map(|ft| inheritance(ft, arbiter, side.listen, primary_ip));
        check_host(&config, &disk_sectors, side.arbiter.as_deref())?;
        // The last primary's address may still be the one that datagrams are taken from.
        self.poller.forget(side.heartbeats.as_raw_fd());
        side.heartbeats.renew(heartbeat_address(&side.config, side.listen))?;
        side.heartbeats.expect(side.channel.as_ref().and_then(Channel::peer_ip));
        self.poller.watch(side.heartbeats.as_raw_fd(), Source::Heartbeat, Interest::Read)?;
        side.identity = (prologue.vm_id, prologue.generation);
        side.heartbeat_ms = prologue.settings.heartbeat_ms;
        side.ack = match prologue.settings.ack {
            ft::AckMode::Received => AckMode::Received,
            ft::AckMode::Verified => AckMode::Verified,
        };
        side.ledger = Ledger::new();
        side.has_state = false;
        side.log_end = None;
        let memory =
            side.remains.take().and_then(|remains| remains.of(prologue.vm_id, config.memory.size));
        side.telling = memory.clone().map(Telling::new);
        let origin = origin(side.method, prologue.settings.purpose);
        let mut running =
            Running::follow(&config, &cpuid, disk_sectors, (origin, memory), &self.poller)?;
        let opened = running.open_world(&config);
        self.running = Some(running);
        self.config = Some(config);
        self.booted = true;
        opened
    }

    fn deliver(&mut self, batch: Batch) {
        self.send(Message::Log(batch));
    }

    /// The machine that was being built, or followed, is not needed any more. Its memory may be, if
    /// the same VM comes again.
    fn discard(&mut self) {
        let memory = self.running.as_mut().and_then(|running| running.memory.take());
        if let Some(side) = self.backup_side() {
            side.telling = None;
            let vm_id = side.identity.0;
            if let Some(memory) = memory {
                side.remains = Some(Remains { vm_id, memory });
            }
        }
        self.end_vm();
        self.config = None;
        self.booted = false;
    }

    /// Outputs of the replayed machine: kept until the primary says that they have left. Requests
    /// that the guest has open are the machine's own to remember.
    pub(super) fn keep(&mut self, outputs: Vec<(Noted, Output)>) {
        let live = matches!(&self.protection, Protection::Backup(side) if side.is_live());
        if live {
            return self.let_go(outputs.into_iter().map(|(_, output)| output));
        }
        let Some(side) = self.backup_side() else { return };
        for (noted, output) in outputs {
            match output {
                Output::Packet { .. } | Output::Console { .. } | Output::Serial { .. } => {
                    side.ledger.output(noted.sequence, output);
                }
                Output::Block { .. }
                | Output::Entropy { .. }
                | Output::NetOffloads { .. }
                | Output::Reset
                | Output::PowerOff => {}
            }
        }
    }

    pub(super) fn on_released(&mut self, sequence: u64) {
        if let Some(side) = self.backup_side() {
            side.ledger.released(sequence);
        }
    }

    /// A delta was applied; the first one completes the join.
    pub(super) fn on_replayed_delta(&mut self) -> Result<(), Error> {
        let Some(side) = self.backup_side() else { return Ok(()) };
        if side.has_state || side.is_live() {
            return Ok(());
        }
        side.has_state = true;
        let actions = side.backup.ready(now_ms());
        self.act_backup(actions)
    }

    pub(super) fn on_executed(&mut self, number: u64, outputs: Trail) -> Result<(), Error> {
        let Some(side) = self.backup_side() else { return Ok(()) };
        let actions = side.backup.executed(now_ms(), number, outputs);
        self.act_backup(actions)
    }

    pub(super) fn on_drained(&mut self) -> Result<(), Error> {
        let Some(side) = self.backup_side() else {
            self.on_replay_drained();
            return Ok(());
        };
        let actions = side.backup.drained(now_ms());
        self.act_backup(actions)
    }

    pub(super) fn note_log_end(&mut self, reason: EndReason) {
        if let Some(side) = self.backup_side() {
            side.log_end = Some(reason);
        }
    }

    pub(super) fn diverge(&mut self, divergence: Divergence, curable: bool) -> Result<(), Error> {
        let Some(side) = self.backup_side() else { return Ok(()) };
        let actions = side.backup.diverged(now_ms(), divergence, curable);
        self.act_backup(actions)
    }

    /// The VM is this side's. What the old primary may not have let out is let out (again), the
    /// network learns the way here, the machine goes on.
    fn take_over(&mut self, generation: u64) -> Result<(), Error> {
        let Protection::Backup(side) = &mut self.protection else { return Ok(()) };
        side.identity.1 = generation;
        let again = side.ledger.redo();
        let Some(running) = &mut self.running else { return Ok(()) };
        running.lease.set_until_ms(Lease::UNLIMITED_MS);
        running.enter_world(&self.poller, false)?;
        if let Some(world) = &mut running.world {
            world.announce();
        }
        for (_, output) in again {
            running.carry_out(output);
        }
        running.engine.send(Message::GoLive);
        Ok(())
    }

    /// The machine runs here. One whose log ended with its power-off has nothing left to do.
    pub(super) fn on_live(&mut self, moment: u64) {
        self.statistics.moment = moment;
        self.started = true;
        self.paused = false;
        self.report_ft("live", json!({}));
        self.answer(Awaits::Received, &Ok(()));
        let off = self.backup_side().is_some_and(|side| side.log_end == Some(EndReason::PowerOff));
        if off {
            self.outcome = Some(Outcome::Well);
        }
    }

    /// This copy never goes live. The process waits for the next primary.
    fn halt_backup(&mut self, reason: &HaltReason) -> Result<(), Error> {
        if let Some(running) = &self.running {
            running.lease.revoke();
        }
        self.discard();
        if self.receives() {
            self.end_reception(&reason.to_string());
            return Ok(());
        }
        log::warn!("{reason}; waiting for another primary");
        let Protection::Backup(side) = &mut self.protection else { return Ok(()) };
        // A VM whose protection was ended is not expected back.
        side.remains.take_if(|_| *reason == HaltReason::Left);
        // The word that goes with the halt is still to be sent.
        if let Some(channel) = &mut side.channel {
            channel.flush();
        }
        side.backup = Backup::new(now_ms(), assumptions(None));
        Ok(())
    }

    fn on_backup_happening(&mut self, happening: &Happening) {
        self.observe(happening);
        self.statistics.happened(happening.to_string());
        self.report_happening(happening);
        if let Happening::JoinFailed { why } = happening {
            self.on_reception_failed(why);
        }
        // A primary that handed over hears that the VM lives here, then that nobody follows it.
        if matches!(happening, Happening::Live { .. }) && !self.begin_farewell() {
            self.drop_backup_channel();
            let inheritance = self.backup_side().and_then(|side| side.inheritance.take());
            if let Some((ft, primary_address)) = inheritance {
                self.inherit(ft, primary_address.as_ref());
            }
        }
    }

    /// A follower's machine has ended: by a divergence, which was reported, or by a failure, which
    /// is one. A live machine's end is the VM's.
    pub(super) fn backup_machine_ended(&mut self, ended: &Ended) -> bool {
        let live = self.backup_side().is_some_and(|side| side.is_live());
        if live {
            return false;
        }
        if let Ended::Failed(why) = ended {
            let moment = self.statistics.moment;
            let divergence = Divergence::Log { moment, why: why.clone() };
            if let Err(error) = self.diverge(divergence, false) {
                log::error!("{error}");
            }
        }
        true
    }
}

/// A copy that replays is healed if it differs. One that is kept by checkpoints, or that is to be the
/// VM for good, is better begun anew.
fn origin(method: FtProtection, purpose: Purpose) -> Origin {
    if method == FtProtection::Replay && !purpose.is_move() { Origin::Healer } else { Origin::Log }
}

/// A reason that fits into a message: what a primary described may be repeated in it.
fn shortened(mut why: String) -> String {
    if let Some((end, _)) = why.char_indices().nth(REASON_MOST) {
        why.truncate(end);
        why.push('…');
    }
    why
}

fn heartbeat_address(ft: &FtConfig, listen: SocketAddr) -> SocketAddr {
    SocketAddr::new(listen.ip(), ft.udp_port.unwrap_or(listen.port()))
}
