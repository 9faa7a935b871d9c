//! A driver for the primary, as a real one would be: it keeps the gate, carries outputs out, and
//! joins the standbys that the policy names. How the machine runs and is recorded is in `engine`.

use std::collections::{BTreeMap, VecDeque};

use ft::prologue::LogStart;
use ft::{
    AckMode, Action, Assumptions, BlockOp, DigestMode, Event, Gate, Happening, Input, KeptPages,
    Message, Output, Primary, PrimaryState, Prologue, Purpose, Settings, SoloReason, Standbys,
    Trail, Weight,
};

use crate::breaks::Break;
use crate::engine::Log;
use crate::healing::Noted;
use crate::host::{Command, Inbox};
use crate::queue::{Due, Write};
use crate::toy::{Emitted, PAGES, Toy};
use crate::world::World;

/// An output on its way out.
pub struct Item {
    /// Its place in the machine's whole history; `None` where a driver cannot know it any more.
    pub total: Option<Trail>,
    /// Its sequence in the present log; 0 if it is older.
    pub sequence: u64,
    pub output: Output,
}

impl Weight for Item {
    fn weight_bytes(&self) -> usize {
        self.output.weight_bytes()
    }
}

pub struct PrimaryDriver {
    pub primary: Primary,
    pub standbys: Standbys,
    pub machine: Toy,
    pub(crate) host: usize,
    pub(crate) process: u64,
    /// Machine time and local time at the same instant.
    pub(crate) time_base: (u64, u64),
    settings: Settings,
    pub(crate) log: Log,
    /// What the standby that is being joined has of the machine's memory.
    pub(crate) kept: KeptPages,
    /// What its backup has told of a copy that differs.
    pub(crate) noted: Noted,
    pub(crate) stream: usize,
    pub(crate) gate: Gate<Item>,
    gate_closed: bool,
    /// Allowed to leave, in order.
    leaving: VecDeque<Item>,
    held: bool,
    in_flight: BTreeMap<u64, bool>,
    pub(crate) inputs: VecDeque<Input>,
    pub(crate) confirmed: u64,
    pub(crate) recorded_confirmed: u64,
    pub(crate) pending_delta: Option<Vec<u8>>,
    pub(crate) stopped: bool,
    pub(crate) suspended: bool,
    pub(crate) stalled: bool,
    failing_over: bool,
    /// It is to move for good to this host as soon as it can.
    wanted: Option<(usize, Purpose)>,
    /// What the present pair is for.
    pub(crate) purpose: Purpose,
    /// It is kept by checkpoints, and not by replay.
    pub(crate) by_checkpoints: bool,
    /// The worker that carries outputs out is slow until then.
    busy_until_us: u64,
}

impl PrimaryDriver {
    pub fn new(
        world: &World,
        (host, process): (usize, u64),
        primary: Primary,
        standbys: Standbys,
        machine: Toy,
        settings: Settings,
    ) -> Self {
        let mut gate = Gate::new(1 << 20);
        gate.release(u64::MAX, 0);
        Self {
            primary,
            standbys,
            host,
            process,
            time_base: (machine.last_time_ns(), world.clock_us(host)),
            machine,
            settings,
            log: Log::None,
            kept: KeptPages::default(),
            noted: Noted::default(),
            stream: 0,
            gate,
            gate_closed: false,
            leaving: VecDeque::new(),
            held: false,
            in_flight: BTreeMap::new(),
            inputs: VecDeque::new(),
            confirmed: 0,
            recorded_confirmed: 0,
            pending_delta: None,
            stopped: false,
            suspended: false,
            stalled: false,
            failing_over: false,
            wanted: None,
            purpose: Purpose::Protection,
            by_checkpoints: false,
            busy_until_us: 0,
        }
    }

    /// A machine whose clock starts again, which is wrong.
    pub fn forget_time(&mut self) {
        self.time_base.0 = 0;
    }

    /// The ledger's outputs, to be done again.
    pub fn redo(&mut self, items: Vec<Item>) {
        self.leaving.extend(items);
    }

    /// How long an output may take to leave where nothing goes wrong any more. A backup that is ever
    /// further behind is lost only at the limit of that, and until then what it has not executed waits.
    pub fn output_waits_at_most_us(&self) -> u64 {
        match self.settings.ack {
            AckMode::Received => 1_500_000,
            AckMode::Verified => (self.settings.lag_limit_ms + 500) * 1000,
        }
    }

    pub fn open_sectors(&self) -> Vec<u64> {
        let open = self.machine.devices.open.values();
        open.filter_map(|output| match output {
            Output::Block { op: BlockOp::Write { sector, .. }, .. } => Some(*sector),
            _ => None,
        })
        .collect()
    }

    /// The stream to a standby is open. Nothing, if nobody is wanted any more.
    pub fn join(&mut self, world: &World, stream: usize, now_ms: u64) -> Option<Vec<Action>> {
        if !self.standbys.is_join_wanted() {
            return None;
        }
        self.stream = stream;
        self.kept = KeptPages::default();
        self.noted = Noted::default();
        self.by_checkpoints = world.chooses_checkpoints(stream);
        self.primary.join(now_ms, self.prologue(0)).ok()
    }

    fn prologue(&self, generation: u64) -> Prologue {
        Prologue {
            assumptions: Assumptions::new("simulated", 7),
            vm_id: [0; 16],
            generation,
            start: LogStart::Delta,
            digest_mode: DigestMode::EveryChunk,
            settings: Settings { purpose: self.purpose, ..self.settings.clone() },
            arbiter: String::from("simulated"),
            // Nobody but the drivers reads this, as nothing of the protocol depends on it.
            machine: vec![u8::from(self.by_checkpoints)],
            cpuid: vec![],
        }
    }

    /// A wrong driver greets a second standby while it joins a first one.
    pub fn second_hello(&self) -> Vec<Action> {
        let prologue = Prologue { vm_id: [9; 16], ..self.prologue(self.primary.generation()) };
        vec![Action::Send(Message::Hello(Box::new(prologue)))]
    }

    pub fn command(&mut self, now_ms: u64, command: Command) -> Vec<Action> {
        match command {
            Command::Disable => {
                self.standbys.disable();
                return self.primary.disable(now_ms).unwrap_or_default();
            }
            Command::Enable => self.standbys.enable(None),
            Command::Failover => {
                if self.primary.state() == PrimaryState::Protected {
                    self.failing_over = true;
                    self.stopped = true;
                }
            }
            Command::Move(to) => {
                let protects = self.primary.state() == PrimaryState::Protected;
                if protects && to != self.host {
                    self.standbys.enable(Some(&address(to)));
                    return self.primary.disable(now_ms).unwrap_or_default();
                }
            }
            Command::Migrate { to, arbiter } => {
                if to != self.host {
                    self.wanted = Some((to, Purpose::Move { arbiter }));
                    self.standbys.enable(Some(&address(to)));
                    return self.primary.disable(now_ms).unwrap_or_default();
                }
            }
            Command::Reclaim => return self.primary.reclaim(now_ms).unwrap_or_default(),
            Command::Standbys(hosts) => {
                let list: Vec<String> =
                    hosts.into_iter().filter(|to| *to != self.host).map(address).collect();
                self.standbys.replace(list.iter().map(String::as_str)).expect("each once");
            }
            Command::Suspend(suspended) => {
                self.standbys.suspend(suspended);
                self.suspended = suspended;
            }
        }
        vec![]
    }

    /// Also says which host is to be joined, if any.
    pub fn tick(&mut self, world: &mut World, now_ms: u64) -> (Vec<Action>, Option<usize>) {
        let mut actions = self.primary.tick(now_ms);
        if self.failing_over && self.primary.state() != PrimaryState::Protected {
            self.failing_over = false;
            self.stopped = self.primary.state() != PrimaryState::Solo;
        }
        if self.failing_over && self.pending_delta.is_none() {
            actions.extend(self.end_checkpoints(world, now_ms));
        }
        let idle = self.gate.is_empty() && self.leaving.is_empty() && self.in_flight.is_empty();
        let hasty = self.log.is_by_checkpoints() && world.is(Break::YieldUnsent);
        if self.failing_over && (idle || hasty) && self.pending_delta.is_none() {
            self.failing_over = false;
            actions.extend(self.end_log(world, now_ms));
            actions.extend(self.primary.failover(now_ms).unwrap_or_default());
        }
        (actions, self.whom_to_join(world, now_ms))
    }

    fn whom_to_join(&mut self, world: &World, now_ms: u64) -> Option<usize> {
        if world.is(Break::Eager) && self.primary.state() == PrimaryState::Holding {
            // A wrong driver does not wait for the arbiter.
            self.stay(world);
            self.standbys.enable(None);
            let (generation, why) = (self.primary.generation(), SoloReason::Won);
            self.standbys.observe(now_ms, &Happening::Solo { generation, why });
        }
        let join = self.standbys.tick(now_ms)?;
        let host = join.standby.strip_prefix("host").and_then(|number| number.parse().ok());
        // Whoever else is joined first has cancelled the move.
        self.purpose = match self.wanted.take() {
            Some((to, purpose)) if Some(to) == host => purpose,
            Some(_) | None => Purpose::Protection,
        };
        host
    }

    /// A machine that is to move does so as soon as it can.
    pub fn observe(&mut self, happening: &Happening) {
        if !matches!(happening, Happening::Protected { .. }) {
            return;
        }
        // One that is late closes it here at last.
        self.gate_closed = true;
        if self.purpose.is_move() {
            self.failing_over = true;
            self.stopped = true;
        }
    }

    /// Outputs of the machine: into the gate, or on their way.
    pub(crate) fn out(&mut self, world: &mut World, before: Trail, emitted: Vec<Emitted>) {
        world.checker.emitted(before, &emitted, world.now_us);
        for Emitted { total, output } in emitted {
            let noted = self.log.output(world, &output);
            let (sequence, chunk) = noted.map_or((0, 0), |noted| (noted.sequence, noted.chunk));
            let gated = output.is_gated();
            let item = Item { total: Some(total), sequence, output };
            let early = world.is(Break::EarlyRelease);
            // A backup that is told to protect goes on from a checkpoint that it has: what only the
            // next one leads to waits before that.
            let uncovered = self.log.is_by_checkpoints() && !world.is(Break::OpenUntilProtect);
            if !self.gate_closed && !uncovered {
                self.leaving.push_back(item);
            } else if early {
                self.carry_out(world, item);
            } else if let Some(item) = self.gate.push(item, gated, chunk, world.now_us) {
                match gated {
                    true => self.leaving.push_back(item),
                    false => self.carry_out(world, item),
                }
            }
        }
    }

    pub fn has_work(&self, world: &World) -> bool {
        let may = self.primary.may_carry_out(world.clock_ms(self.host));
        may && !self.held && !self.leaving.is_empty() && world.now_us >= self.busy_until_us
    }

    /// One output leaves, if it may, unless the worker for it is slow.
    pub fn carry_out_one(&mut self, world: &mut World, now_ms: u64) -> bool {
        let may = self.primary.may_carry_out(now_ms) || world.is(Break::IgnoreLease);
        if self.held || !may || world.now_us < self.busy_until_us {
            return false;
        }
        if self.leaving.is_empty() {
            return false;
        }
        if world.rng.per_mille(world.lazy) {
            let delay_us = world.rng.range(100, 25_000);
            self.busy_until_us = world.now_us + delay_us;
            world.after(delay_us, Due::Work { host: self.host, process: self.process });
        }
        let Some(item) = self.leaving.pop_front() else { return false };
        self.carry_out(world, item);
        true
    }

    fn carry_out(&mut self, world: &mut World, item: Item) {
        let generation = self.primary.generation();
        let (host, process) = (self.host, self.process);
        if item.output.is_gated() {
            if self.gate_closed {
                let verified = self.settings.ack == AckMode::Verified;
                world.checker.committed(self.stream, item.sequence, verified);
            }
            world.checker.effect(process, generation, item.total, world.now_us);
            world.checker.tally.while_copied += u64::from(matches!(self.log, Log::Copying(_)));
            self.confirmed = self.confirmed.max(item.sequence);
        }
        match item.output {
            Output::Block { token, op, .. } => self.disk_request(world, token, op),
            Output::Entropy { .. } => {
                let what = Inbox::Entropy(world.rng.next().to_le_bytes()[..4].to_vec());
                let delay_us = world.rng.range(200, 20_000);
                world.after(delay_us, Due::Arrive { host, process, what });
            }
            Output::Packet { .. }
            | Output::Console { .. }
            | Output::Serial { .. }
            | Output::NetOffloads { .. }
            | Output::Reset
            | Output::PowerOff => {}
        }
    }

    fn disk_request(&mut self, world: &mut World, token: u64, op: BlockOp) {
        let generation = self.primary.generation();
        let (host, process) = (self.host, self.process);
        let delay_us = world.disk_delay_us(host);
        let mut data = vec![];
        match op {
            BlockOp::Write { sector, data } => {
                let value = u64::from_le_bytes(data.try_into().unwrap());
                let write = Write { process, generation, sector, value };
                let busy_us = &mut world.hosts[host].busy_until_us;
                *busy_us = (world.now_us + delay_us).max(*busy_us);
                world.after(delay_us, Due::Landed(write));
            }
            BlockOp::Read { sector, .. } => {
                data = world.disk.get(&sector).unwrap_or(&0).to_le_bytes().to_vec();
            }
            BlockOp::Flush => {}
        }
        self.in_flight.insert(token, true);
        let what = Inbox::DiskDone { token, data };
        let done_us = delay_us + world.rng.range(1, 500);
        world.after(done_us, Due::Arrive { host, process, what });
    }

    /// A disk request or an ask for entropy was answered.
    pub fn done(&mut self, world: &mut World, now_ms: u64, what: Inbox) -> Vec<Action> {
        match what {
            Inbox::DiskDone { token, data } => {
                self.in_flight.remove(&token);
                self.inputs.push_back(Input::BlockDone { device: 0, token, status: 0, data });
                self.quiet(world, now_ms)
            }
            Inbox::Entropy(bytes) => {
                self.inputs.push_back(Input::Entropy { device: 0, bytes });
                vec![]
            }
            _ => vec![],
        }
    }

    fn quiet(&mut self, world: &World, now_ms: u64) -> Vec<Action> {
        if self.held && (self.in_flight.is_empty() || world.is(Break::QuietTooSoon)) {
            return self.primary.step(now_ms, Event::Quiet);
        }
        vec![]
    }

    pub fn act(&mut self, world: &mut World, now_ms: u64, action: Action) -> Vec<Action> {
        match action {
            Action::NoteKept { first_frame, digests } if self.primary.is_healing() => {
                self.noted.kept(first_frame, digests);
            }
            Action::NoteTouched { frames } => self.noted.touched(frames),
            Action::Heal => return self.heal(world, now_ms),
            Action::NoteKept { first_frame, digests } => {
                assert!(self.kept.note(first_frame, digests, PAGES), "no standby lies here");
            }
            Action::StartJoin => self.start_join(),
            Action::CloseGate => {
                if !world.is(Break::LeaveBehind) {
                    for item in std::mem::take(&mut self.leaving) {
                        self.carry_out(world, item);
                    }
                }
                self.gate_closed = !world.is(Break::LateGate);
            }
            Action::Release { through } => self.release(world, through),
            Action::Hold => {
                self.held = true;
                return self.quiet(world, now_ms);
            }
            Action::Stall => self.stalled = true,
            Action::Unstall => self.stalled = false,
            Action::GoSolo { generation } => self.go_solo(world, generation),
            other => unreachable!("not for a primary: {other:?}"),
        }
        vec![]
    }

    pub fn release(&mut self, world: &World, through: u64) {
        let released = self.gate.release(through, world.now_us);
        if world.is(Break::ConfirmTooSoon) {
            let last = released.last().map_or(0, |item| item.sequence);
            self.confirmed = self.confirmed.max(last);
        }
        self.leaving.extend(released);
    }

    fn go_solo(&mut self, world: &mut World, generation: u64) {
        world.checker.went_live(self.process, generation, self.machine.devices.total);
        self.open_gate(world);
        self.stopped = false;
        self.failing_over = false;
        self.pending_delta = None;
        if world.is(Break::OldGeneration) && generation > 1 {
            self.primary = Primary::new(world.clock_ms(self.host), [9; 16], generation - 1);
        }
    }

    /// Nobody is to be waited for.
    fn open_gate(&mut self, world: &World) {
        let released = self.gate.release(u64::MAX, world.now_us);
        self.leaving.extend(released);
        self.gate_closed = false;
        self.held = false;
        self.log = Log::None;
        // They are of a log that has ended.
        self.leaving.iter_mut().for_each(|item| item.sequence = 0);
    }

    /// A wrong driver: it behaves as if it had won.
    pub fn stay(&mut self, world: &World) {
        let generation = self.primary.generation();
        self.primary = Primary::new(world.clock_ms(self.host), [9; 16], generation);
        self.open_gate(world);
        self.standbys.disable();
    }
}

pub fn address(host: usize) -> String {
    format!("host{host}")
}
