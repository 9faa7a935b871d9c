//! How the primary's driver runs its machine, records it, and copies it to a standby while it runs.

use std::collections::VecDeque;

use ft::recorder::Noted;
use ft::{Action, Chunk, DigestMode, EndReason, Input, KeptPages, Output, Page, Recorder, Trail};

use crate::breaks::Break;
use crate::checkpoints::Checkpointing;
use crate::host::Inbox;
use crate::primary_driver::PrimaryDriver;
use crate::queue::Due;
use crate::toy::{Exit, PAGES};
use crate::world::World;

/// What is written down of the machine.
pub enum Log {
    /// Nothing.
    None,
    /// Pages only: it is being copied to a standby, and runs on.
    Copying(Copying),
    /// Everything.
    Whole(Recorder),
    /// All that has changed, now and then: it runs freely in between.
    Checkpoints(Checkpointing),
}

/// A copy under way.
pub struct Copying {
    recorder: Recorder,
    /// What the standby has already.
    kept: KeptPages,
    /// Pages of this round that are still to be sent.
    left: VecDeque<u64>,
    rounds: u32,
}

/// Rounds after which the machine is stopped for the rest, however much it is.
const ROUNDS_MAX: u32 = 4;

impl Log {
    /// The recorder, where everything is recorded.
    pub fn whole(&mut self) -> Option<&mut Recorder> {
        match self {
            Self::Whole(recorder) => Some(recorder),
            Self::None | Self::Copying(_) | Self::Checkpoints(_) => None,
        }
    }

    /// The machine produced `output`; where that stands in the log.
    pub fn output(&mut self, world: &World, output: &Output) -> Option<Noted> {
        match self {
            Self::Whole(recorder) => Some(recorder.output(output)),
            Self::Checkpoints(checkpointing) => Some(checkpointing.output(world, output)),
            Self::None | Self::Copying(_) => None,
        }
    }

    pub fn is_by_checkpoints(&self) -> bool {
        matches!(self, Self::Checkpoints(_))
    }

    fn note_change(&mut self) {
        if let Self::Checkpoints(checkpointing) = self {
            checkpointing.changed = true;
        }
    }

    fn recorder(&mut self) -> Option<&mut Recorder> {
        match self {
            Self::Whole(recorder) => Some(recorder),
            Self::Copying(copying) => Some(&mut copying.recorder),
            Self::Checkpoints(checkpointing) => Some(&mut checkpointing.recorder),
            Self::None => None,
        }
    }
}

impl PrimaryDriver {
    pub(crate) fn now_ns(&self, world: &World) -> u64 {
        let (base_ns, base_us) = self.time_base;
        base_ns + (world.clock_us(self.host) - base_us) * 1000
    }

    /// Runs the machine to its next moment.
    pub fn step(&mut self, world: &mut World, now_ms: u64) -> Vec<Action> {
        let delay_us = world.rng.range(3_000, 12_000);
        let (host, process) = (self.host, self.process);
        world.after(delay_us, Due::Arrive { host, process, what: Inbox::Step });
        if let Some(vcpu) = self.pending_delta.take() {
            return self.finish_delta(world, now_ms, vcpu);
        }
        let copies = matches!(self.log, Log::Copying(_));
        // While a machine is copied it is the copying that stops for a full log.
        let stalled = self.stalled && !copies;
        if self.stopped || self.suspended || stalled || self.gate.is_over_limit() {
            return match self.log {
                Log::Copying(_) => self.copy(world, now_ms),
                Log::Checkpoints(_) => self.checkpoint_when_due(world, now_ms),
                Log::None | Log::Whole(_) => vec![],
            };
        }
        if world.rng.per_mille(200) {
            let bytes = world.rng.next().to_le_bytes().to_vec();
            self.inputs.push_back(Input::Packet { device: 0, bytes });
        }
        if world.rng.per_mille(100) {
            self.inputs.push_back(Input::Tick { now_ns: self.now_ns(world) });
        }
        if self.log.whole().is_some() && world.rng.per_mille(80) {
            return self.start_delta(world, now_ms);
        }
        self.run(world);
        self.apply_inputs(world);
        self.record_confirmed();
        self.record_digests(world);
        match self.log {
            Log::Copying(_) => self.copy(world, now_ms),
            Log::Checkpoints(_) => self.checkpoint_when_due(world, now_ms),
            Log::None | Log::Whole(_) => self.cut(world, now_ms),
        }
    }

    /// Runs the guest to its next exit. Where nobody follows it there, it does as it likes.
    fn run_guest(&mut self, world: &mut World) -> Exit {
        self.log.note_change();
        let freely = match &self.log {
            Log::Checkpoints(_) => true,
            Log::Whole(_) => world.is(Break::ReplayUnreplayable),
            Log::None | Log::Copying(_) => false,
        };
        match freely {
            true => self.machine.run_freely(world.rng.next()),
            false => self.machine.run(),
        }
    }

    fn run(&mut self, world: &mut World) {
        let before = self.machine.devices.total;
        let exit = self.run_guest(world);
        let (moment, registers) = (self.machine.moment, self.machine.register_digest());
        let now_ns = self.now_ns(world);
        let mut recorder = self.log.whole();
        if let Some(recorder) = &mut recorder {
            recorder.register_digest(moment, registers);
            world.checker.recorded(self.stream, moment, registers);
        }
        let mut emitted = vec![];
        let handled = self.machine.handle(exit, &mut emitted, || {
            if let Some(recorder) = &mut recorder {
                recorder.input(moment, &Input::TimeRead { now_ns }).map_err(drop)?;
            }
            Ok::<_, ()>(now_ns)
        });
        handled.expect("a time read is small");
        self.out(world, before, emitted);
    }

    fn apply_inputs(&mut self, world: &mut World) {
        // The time of a tick that waited is older than times that were read since.
        let moment = self.machine.moment;
        while let Some(mut input) = self.inputs.pop_front() {
            if let Input::Tick { now_ns } = &mut input {
                *now_ns = self.now_ns(world);
            }
            self.log.note_change();
            if let Some(recorder) = self.log.whole() {
                recorder.input(moment, &input).expect("inputs are small");
            }
            let before: Trail = self.machine.devices.total;
            let mut emitted = vec![];
            self.machine.apply(&input, &mut emitted);
            self.out(world, before, emitted);
        }
    }

    /// A standby is ready for the machine: copy it, from now on, while it runs.
    pub(crate) fn start_join(&mut self) {
        self.machine.take_dirty();
        // Whatever the last log left in the gate has gone when that protection ended.
        self.gate.restart();
        let recorder = Recorder::new(self.machine.moment, DigestMode::EveryChunk);
        let kept = std::mem::take(&mut self.kept);
        self.log = Log::Copying(Copying { recorder, kept, left: (0..PAGES).collect(), rounds: 0 });
        self.confirmed = 0;
        self.recorded_confirmed = 0;
        self.pending_delta = None;
    }

    /// Sends some more pages, begins a further round with those that were written meanwhile, or
    /// stops the machine for the last ones and its state.
    fn copy(&mut self, world: &mut World, now_ms: u64) -> Vec<Action> {
        let moment = self.machine.moment;
        let Log::Copying(copying) = &mut self.log else { return vec![] };
        if self.stalled {
            return vec![];
        }
        if copying.left.is_empty() {
            copying.rounds += 1;
            if copying.rounds >= ROUNDS_MAX || self.machine.dirty_count() <= 2 {
                return self.start_delta(world, now_ms);
            }
            copying.left = self.machine.take_dirty().into();
            if world.is(Break::LoseDirty) {
                copying.left.pop_front();
            }
        }
        let count = world.rng.range(1, 5).min(copying.left.len() as u64);
        let sent: Vec<(u64, Page)> =
            copying.left.drain(..count as usize).map(|at| (at, self.machine.page(at))).collect();
        // What the standby had to begin with counts for nothing once something was sent.
        let first = copying.rounds == 0 || world.is(Break::SkipKeptPages);
        let skips = |at: u64, page: &Page| match world.is(Break::SkipZeroPages) {
            true => *page == Page::Zero,
            false => first && copying.kept.has(at, page),
        };
        let needed: Vec<(u64, Page)> =
            sent.into_iter().filter(|(at, page)| !skips(*at, page)).collect();
        copying.recorder.pages(moment, needed);
        self.cut(world, now_ms)
    }

    /// The guest was kicked out in the middle of an interval.
    pub(crate) fn start_delta(&mut self, world: &mut World, now_ms: u64) -> Vec<Action> {
        let state = self.followed_state();
        if !self.suspended && !self.stalled {
            self.machine.run_partly(world.rng.next());
        }
        let vcpu = self.stage(world);
        if world.rng.per_mille(400) {
            // A large delta: the pages are on their way before the state is.
            self.pending_delta = Some(vcpu);
            let chunks = self.close_chunks(world, state);
            if let (true, Some(last)) = (world.is(Break::CoveredByPages), chunks.last()) {
                self.gate.assign(last.number);
            }
            return self.append(now_ms, chunks);
        }
        self.finish_delta(world, now_ms, vcpu)
    }

    /// Logs the pages that a delta is about to commit; returns the vCPU that belongs to them.
    pub(crate) fn stage(&mut self, world: &World) -> Vec<u8> {
        let moment = self.log_moment();
        let mut frames = self.machine.take_dirty();
        if self.log.is_by_checkpoints() && world.is(Break::ForgetDirtied) {
            frames.pop();
        }
        let pages: Vec<(u64, Page)> =
            frames.into_iter().map(|at| (at, self.machine.page(at))).collect();
        if let Some(recorder) = self.log.recorder() {
            recorder.pages(moment, pages);
        }
        self.machine.save_vcpu()
    }

    /// The moment that the log has got to.
    fn log_moment(&self) -> u64 {
        match &self.log {
            Log::Checkpoints(checkpointing) => checkpointing.moment,
            Log::None | Log::Copying(_) | Log::Whole(_) => self.machine.moment,
        }
    }

    /// The machine as the log leads to it by now.
    fn followed_state(&self) -> u64 {
        match &self.log {
            Log::Checkpoints(checkpointing) => checkpointing.state,
            Log::None | Log::Copying(_) | Log::Whole(_) => self.machine.state_digest(),
        }
    }

    pub(crate) fn finish_delta(
        &mut self,
        world: &mut World,
        now_ms: u64,
        vcpu: Vec<u8>,
    ) -> Vec<Action> {
        let before = self.machine.moment;
        let mut machine = None;
        self.log = match std::mem::replace(&mut self.log, Log::None) {
            Log::Copying(copying) if self.by_checkpoints => {
                Log::Checkpoints(Checkpointing::new(copying.recorder, before))
            }
            Log::Copying(copying) => {
                machine = Some(self.machine.save_machine());
                Log::Whole(copying.recorder)
            }
            log => log,
        };
        if self.log.is_by_checkpoints() {
            return self.finish_checkpoint(world, now_ms, vcpu, None);
        }
        self.machine.moment += 1;
        let moment = self.machine.moment;
        // Now and then the guest resets its machine, say, and all of that is logged.
        if machine.is_none() && world.rng.per_mille(250) {
            machine = Some(self.machine.save_machine());
        }
        if let Some(recorder) = self.log.whole() {
            match machine {
                Some(machine) if world.is(Break::ResetHeals) => {
                    recorder.heal(moment, vcpu, machine)
                }
                machine => recorder.delta(moment, vcpu, machine),
            }
            .expect("states are small");
        }
        self.apply_inputs(world);
        self.record_confirmed();
        self.cut(world, now_ms)
    }

    /// Now and then everything is compared.
    fn record_digests(&mut self, world: &mut World) {
        let moment = self.machine.moment;
        if let Some(recorder) = self.log.whole()
            && world.rng.per_mille(20)
        {
            let (devices, memory) = self.machine.digests();
            recorder.state_digest(moment, devices, Some(memory));
        }
    }

    fn record_confirmed(&mut self) {
        let moment = self.machine.moment;
        if let Some(recorder) = self.log.whole()
            && self.confirmed > self.recorded_confirmed
        {
            self.recorded_confirmed = self.confirmed;
            recorder.released(moment, self.confirmed);
        }
    }

    /// The log ends because the machine goes on elsewhere.
    pub(crate) fn end_log(&mut self, world: &mut World, now_ms: u64) -> Vec<Action> {
        self.record_confirmed();
        let moment = self.machine.moment;
        if let Some(recorder) = self.log.whole() {
            recorder.end(moment, EndReason::Failover);
        }
        self.cut(world, now_ms)
    }

    pub(crate) fn cut(&mut self, world: &mut World, now_ms: u64) -> Vec<Action> {
        if matches!(self.log, Log::None) {
            return vec![];
        }
        let state = self.machine.state_digest();
        let chunks = self.close_chunks(world, state);
        self.append(now_ms, chunks)
    }

    /// Closes what is recorded, which leads to a machine of this state.
    pub(crate) fn close_chunks(&mut self, world: &mut World, state: u64) -> Vec<Chunk> {
        let moment = self.log_moment();
        let chunks: Vec<Chunk> = self.log.recorder().map_or(vec![], |log| log.cut(moment));
        if let Some(last) = chunks.last() {
            world.checker.cut(self.stream, last.number, state);
        }
        chunks
    }

    pub(crate) fn append(&mut self, now_ms: u64, chunks: Vec<Chunk>) -> Vec<Action> {
        let chunks = chunks.into_iter();
        chunks.flat_map(|chunk| self.primary.append(now_ms, chunk)).collect()
    }
}
