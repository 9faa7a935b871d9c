//! A driver for the primary, as a real one would be: it runs the machine, records it, keeps the
//! gate, and carries outputs out.

use std::collections::{BTreeMap, VecDeque};

use ft::prologue::LogStart;
use ft::{
    AckMode, Action, Assumptions, BlockOp, Chunk, DigestMode, EndReason, Event, Gate, Input,
    Output, Primary, PrimaryState, Prologue, Recorder, Settings, Trail, Weight,
};

use crate::breaks::Break;
use crate::host::{Clock, Inbox};
use crate::toy::{Emitted, Toy};
use crate::world::{Due, World, Write};

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
    pub machine: Toy,
    host: usize,
    process: u64,
    clock: Clock,
    /// Machine time and local time at the same instant.
    time_base: (u64, u64),
    settings: Settings,
    recorder: Option<Recorder>,
    stream: usize,
    gate: Gate<Item>,
    gate_closed: bool,
    /// Allowed to leave, in order.
    leaving: VecDeque<Item>,
    held: bool,
    in_flight: BTreeMap<u64, bool>,
    inputs: VecDeque<Input>,
    confirmed: u64,
    recorded_confirmed: u64,
    pending_delta: Option<Vec<u8>>,
    stopped: bool,
    stalled: bool,
    failing_over: bool,
    /// The worker that carries outputs out is slow until then.
    busy_until_us: u64,
    next_join_us: u64,
}

impl PrimaryDriver {
    pub fn new(
        world: &World,
        place: (usize, u64, Clock),
        primary: Primary,
        machine: Toy,
        settings: Settings,
    ) -> Self {
        let (host, process, clock) = place;
        let mut gate = Gate::new(1 << 20);
        gate.release(u64::MAX, 0);
        Self {
            primary,
            host,
            process,
            clock,
            time_base: (machine.last_time_ns(), clock.us(world)),
            machine,
            settings,
            recorder: None,
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
            stalled: false,
            failing_over: false,
            busy_until_us: 0,
            next_join_us: 0,
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

    pub fn can_join(&self) -> bool {
        self.primary.state() == PrimaryState::Solo && self.leaving.is_empty()
    }

    pub fn open_sectors(&self) -> Vec<u64> {
        let open = self.machine.devices.open.values();
        open.filter_map(|output| match output {
            Output::Block { op: BlockOp::Write { sector, .. }, .. } => Some(*sector),
            _ => None,
        })
        .collect()
    }

    pub fn join(&mut self, stream: usize, now_ms: u64) -> Vec<Action> {
        self.stream = stream;
        let prologue = Prologue {
            assumptions: Assumptions::new("simulated", 7),
            vm_id: [0; 16],
            generation: 0,
            start: LogStart::Delta,
            digest_mode: DigestMode::EveryChunk,
            settings: self.settings.clone(),
            arbiter: String::from("simulated"),
            machine: vec![],
            cpuid: vec![],
        };
        self.primary.join(now_ms, prologue).unwrap_or_default()
    }

    pub fn fail_over(&mut self) {
        if self.primary.state() == PrimaryState::Protected {
            self.failing_over = true;
            self.stopped = true;
        }
    }

    pub fn tick(&mut self, world: &mut World, now_ms: u64) -> Vec<Action> {
        let mut actions = self.primary.tick(now_ms);
        let solo = self.primary.state() == PrimaryState::Solo;
        if solo && world.now_us >= self.next_join_us {
            self.next_join_us = world.now_us + world.rng.range(50_000, 600_000);
            let what = Inbox::Command(crate::host::Command::Join);
            world.after(1, Due::Arrive { host: self.host, process: self.process, what });
        }
        if self.failing_over && self.primary.state() != PrimaryState::Protected {
            self.failing_over = false;
            self.stopped = self.primary.state() != PrimaryState::Solo;
        }
        let idle = self.gate.is_empty() && self.leaving.is_empty() && self.in_flight.is_empty();
        if self.failing_over && idle && self.pending_delta.is_none() {
            self.failing_over = false;
            self.record_confirmed();
            let moment = self.machine.moment;
            if let Some(recorder) = &mut self.recorder {
                recorder.end(moment, EndReason::Failover);
            }
            actions.extend(self.cut(world, now_ms));
            actions.extend(self.primary.failover(now_ms).unwrap_or_default());
        }
        actions
    }

    fn now_ns(&self, world: &World) -> u64 {
        let (base_ns, base_us) = self.time_base;
        base_ns + (self.clock.us(world) - base_us) * 1000
    }

    /// Runs the machine to its next moment.
    pub fn step(&mut self, world: &mut World, now_ms: u64) -> Vec<Action> {
        let delay_us = world.rng.range(3_000, 12_000);
        let (host, process) = (self.host, self.process);
        world.after(delay_us, Due::Arrive { host, process, what: Inbox::Step });
        if let Some(vcpu) = self.pending_delta.take() {
            return self.finish_delta(world, now_ms, vcpu);
        }
        if self.stopped || self.stalled || self.gate.is_over_limit() {
            return vec![];
        }
        if world.rng.per_mille(200) {
            let bytes = world.rng.next().to_le_bytes().to_vec();
            self.inputs.push_back(Input::Packet { device: 0, bytes });
        }
        if world.rng.per_mille(100) {
            self.inputs.push_back(Input::Tick { now_ns: self.now_ns(world) });
        }
        if self.recorder.is_some() && world.rng.per_mille(80) {
            return self.start_delta(world, now_ms);
        }
        let before = self.machine.devices.total;
        let exit = self.machine.run();
        let (moment, registers) = (self.machine.moment, self.machine.register_digest());
        let now_ns = self.now_ns(world);
        if let Some(recorder) = &mut self.recorder {
            recorder.register_digest(moment, registers);
            world.checker.recorded(self.stream, moment, registers);
        }
        let mut emitted = vec![];
        let recorder = &mut self.recorder;
        let handled = self.machine.handle(exit, &mut emitted, || {
            if let Some(recorder) = recorder {
                recorder.input(moment, &Input::TimeRead { now_ns }).map_err(drop)?;
            }
            Ok::<_, ()>(now_ns)
        });
        handled.expect("a time read is small");
        self.out(world, before, emitted);
        self.apply_inputs(world);
        self.record_confirmed();
        self.cut(world, now_ms)
    }

    fn apply_inputs(&mut self, world: &mut World) {
        // The time of a tick that waited is older than times that were read since.
        let moment = self.machine.moment;
        while let Some(mut input) = self.inputs.pop_front() {
            if let Input::Tick { now_ns } = &mut input {
                *now_ns = self.now_ns(world);
            }
            if let Some(recorder) = &mut self.recorder {
                recorder.input(moment, &input).expect("inputs are small");
            }
            let before = self.machine.devices.total;
            let mut emitted = vec![];
            self.machine.apply(&input, &mut emitted);
            self.out(world, before, emitted);
        }
    }

    /// The guest was kicked out in the middle of an interval.
    fn start_delta(&mut self, world: &mut World, now_ms: u64) -> Vec<Action> {
        let (moment, state) = (self.machine.moment, self.machine.state_digest());
        self.machine.run_partly(world.rng.next());
        let pages = self.machine.take_dirty(false);
        let vcpu = self.machine.save_vcpu();
        if let Some(recorder) = &mut self.recorder {
            recorder.pages(moment, pages);
        }
        if world.rng.per_mille(400) {
            // A large delta: the pages are on their way before the state is.
            self.pending_delta = Some(vcpu);
            return self.cut_at(world, now_ms, state);
        }
        self.finish_delta(world, now_ms, vcpu)
    }

    fn finish_delta(&mut self, world: &mut World, now_ms: u64, vcpu: Vec<u8>) -> Vec<Action> {
        self.machine.moment += 1;
        let moment = self.machine.moment;
        if let Some(recorder) = &mut self.recorder {
            recorder.delta(moment, vcpu, None).expect("states are small");
        }
        self.apply_inputs(world);
        self.record_confirmed();
        self.cut(world, now_ms)
    }

    fn record_confirmed(&mut self) {
        if let Some(recorder) = &mut self.recorder
            && self.confirmed > self.recorded_confirmed
        {
            self.recorded_confirmed = self.confirmed;
            recorder.released(self.machine.moment, self.confirmed);
        }
    }

    fn cut(&mut self, world: &mut World, now_ms: u64) -> Vec<Action> {
        let state = self.machine.state_digest();
        self.cut_at(world, now_ms, state)
    }

    fn cut_at(&mut self, world: &mut World, now_ms: u64, state: u64) -> Vec<Action> {
        let moment = self.machine.moment;
        let chunks: Vec<Chunk> = match &mut self.recorder {
            Some(recorder) => recorder.cut(moment),
            None => vec![],
        };
        if let Some(last) = chunks.last() {
            world.checker.cut(self.stream, last.number, state);
        }
        let chunks = chunks.into_iter();
        chunks.flat_map(|chunk| self.primary.append(now_ms, chunk)).collect()
    }

    /// Outputs of the machine: into the gate, or on their way.
    fn out(&mut self, world: &mut World, before: Trail, emitted: Vec<Emitted>) {
        world.checker.emitted(before, &emitted, world.now_us);
        for Emitted { total, output } in emitted {
            let noted = self.recorder.as_mut().map(|recorder| recorder.output(&output));
            let (sequence, chunk) = noted.map_or((0, 0), |noted| (noted.sequence, noted.chunk));
            let gated = output.is_gated();
            let item = Item { total: Some(total), sequence, output };
            let early = world.is(Break::EarlyRelease);
            if !self.gate_closed {
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
        let may = self.primary.may_carry_out(self.clock.ms(world));
        may && !self.held && !self.leaving.is_empty() && world.now_us >= self.busy_until_us
    }

    /// One output leaves, if it may, unless the worker for it is slow.
    pub fn carry_out_one(&mut self, world: &mut World, now_ms: u64) -> bool {
        let may = self.primary.may_carry_out(now_ms) || world.is(Break::IgnoreLease);
        if self.held || !may || world.now_us < self.busy_until_us {
            return false;
        }
        if world.rng.per_mille(world.lazy) {
            let delay_us = world.rng.range(100, 25_000);
            self.busy_until_us = world.now_us + delay_us;
            world.after(delay_us, Due::Work { host: self.host, process: self.process });
        }
        match self.leaving.pop_front() {
            Some(item) => {
                self.carry_out(world, item);
                true
            }
            None => false,
        }
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
            self.confirmed = self.confirmed.max(item.sequence);
        }
        let delay_us = world.rng.range(200, 20_000) + 40_000 * u64::from(world.rng.per_mille(200));
        match item.output {
            Output::Block { token, op, .. } => {
                let mut data = vec![];
                match op {
                    BlockOp::Write { sector, data } => {
                        let value = u64::from_le_bytes(data.try_into().unwrap());
                        let write = Write { process, generation, sector, value };
                        let busy_us = &mut world.busy_until_us[host];
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
            Output::Entropy { .. } => {
                let what = Inbox::Entropy(world.rng.next().to_le_bytes()[..4].to_vec());
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
            Action::StartJoin => return self.start_join(world, now_ms),
            Action::CloseGate => {
                for item in std::mem::take(&mut self.leaving) {
                    self.carry_out(world, item);
                }
                self.gate_closed = true;
                self.gate.restart();
            }
            Action::Release { through } => {
                let released = self.gate.release(through, world.now_us);
                if world.is(Break::ConfirmTooSoon) {
                    let last = released.last().map_or(0, |item| item.sequence);
                    self.confirmed = self.confirmed.max(last);
                }
                self.leaving.extend(released);
            }
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

    fn go_solo(&mut self, world: &mut World, generation: u64) {
        world.checker.went_live(self.process, generation, self.machine.devices.total);
        world.checker.wins += 1;
        let released = self.gate.release(u64::MAX, world.now_us);
        self.leaving.extend(released);
        self.gate_closed = false;
        self.held = false;
        self.stopped = false;
        self.failing_over = false;
        self.pending_delta = None;
        self.recorder = None;
    }

    /// A wrong driver: it behaves as if it had won.
    pub fn stay(&mut self, world: &mut World) {
        let generation = self.primary.generation();
        self.primary = Primary::new(self.clock.ms(world), [0; 16], generation);
        let released = self.gate.release(u64::MAX, world.now_us);
        self.leaving.extend(released);
        self.gate_closed = false;
        self.held = false;
        self.recorder = None;
        self.next_join_us = u64::MAX;
    }

    fn start_join(&mut self, world: &mut World, now_ms: u64) -> Vec<Action> {
        let mut recorder = Recorder::new(self.machine.moment, DigestMode::EveryChunk);
        recorder.pages(self.machine.moment, self.machine.take_dirty(true));
        self.machine.moment += 1;
        let (vcpu, devices) = (self.machine.save_vcpu(), self.machine.save_machine());
        recorder.delta(self.machine.moment, vcpu, Some(devices)).expect("states are small");
        self.recorder = Some(recorder);
        self.confirmed = 0;
        self.recorded_confirmed = 0;
        self.cut(world, now_ms)
    }
}
