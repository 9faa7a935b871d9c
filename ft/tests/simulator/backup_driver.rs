//! A driver for the backup, as a real one would be: it replays the log, keeps the ledger, and takes
//! the machine over.

use std::collections::BTreeMap;

use ft::{
    Action, Assumptions, Backup, BackupState, Batch, Divergence, Event, Ledger, Message, Page,
    Patience, Primary, Purpose, Record, Replay, Settings, Standbys, Start, Step, Trail, Word,
};

use crate::breaks::Break;
use crate::healing::{Asked, Gap, Spoilt, Telling};
use crate::host::Inbox;
use crate::primary_driver::{Item, PrimaryDriver, address};
use crate::queue::Due;
use crate::rng::Rng;
use crate::toy::{Emitted, PAGES, Toy};
use crate::world::World;

pub struct BackupDriver {
    pub backup: Backup,
    pub(crate) host: usize,
    pub(crate) process: u64,
    /// How long a moment takes here, in microseconds.
    pace_us: u64,
    awake_ms: u64,
    settings: Settings,
    pub(crate) replay: Option<Replay>,
    pub(crate) machine: Toy,
    pub(crate) ledger: Ledger,
    totals: BTreeMap<u64, Trail>,
    pub(crate) stream: usize,
    /// Whether it is being stepped.
    steps: bool,
    draining: bool,
    /// What is wrong with the copy.
    pub spoilt: Spoilt,
    /// It is to be healed.
    pub asked: Option<Asked>,
    pub(crate) telling: Telling,
    /// For a break of the rules: the replica that does not know of it.
    pub(crate) unaware: Option<Backup>,
    /// The outputs that were verified last: in the log, and in the machine's history.
    pub(crate) verified: (u64, u64),
    pub(crate) gaps: Vec<Gap>,
    patience: Patience,
    /// The machine's memory is what an earlier join left.
    has_remains: bool,
    /// For breaks of the rules: batches not handed to the replay yet, pages of an open delta.
    delayed: Vec<Batch>,
    last_chunk: u64,
    staged: Vec<(u64, Page)>,
    /// How the machine is kept, and what is to be known of that when it goes on.
    pub(crate) checkpoints: Checkpoints,
}

/// What a backup keeps of a machine that is kept by checkpoints.
#[derive(Default)]
pub(crate) struct Checkpoints {
    /// It is kept so.
    pub(crate) used: bool,
    /// Outputs in the history of the first one, which had left before.
    first_outputs: Option<u64>,
    /// Pages have come without their checkpoint.
    half: bool,
    /// The primary gave the machine away, and had sent everything before.
    yielded: bool,
}

impl BackupDriver {
    pub fn new(
        now_ms: u64,
        (host, process): (usize, u64),
        pace_us: u64,
        patience: Patience,
    ) -> Self {
        Self {
            backup: Backup::new(now_ms, Assumptions::new("simulated", 7)),
            host,
            process,
            pace_us,
            awake_ms: now_ms,
            settings: Settings::default(),
            replay: None,
            machine: Toy::blank(),
            ledger: Ledger::new(),
            totals: BTreeMap::new(),
            stream: 0,
            steps: false,
            draining: false,
            spoilt: Spoilt::default(),
            asked: None,
            telling: Telling::default(),
            unaware: None,
            verified: (0, 0),
            gaps: vec![],
            patience,
            has_remains: false,
            delayed: vec![],
            last_chunk: 0,
            staged: vec![],
            checkpoints: Checkpoints::default(),
        }
    }

    /// Whether it waits for the primary's word, and does nothing if that does not come.
    pub fn needs_word(&self) -> bool {
        self.settings.purpose.is_move() && self.backup.state() == BackupState::Following
    }

    /// The stream by which it follows a machine that it may take over.
    pub fn followed_stream(&self) -> Option<usize> {
        (self.backup.state() == BackupState::Following).then_some(self.stream + 1)
    }

    pub fn is_waiting(&self) -> bool {
        self.backup.state() == BackupState::Waiting
    }

    pub fn spoil(&mut self, rng: &mut Rng) {
        let follows = self.backup.state() == BackupState::Following;
        if !follows || self.draining {
            return;
        }
        // What a machine that is never run has in its registers comes with each checkpoint.
        if self.checkpoints.used || rng.per_mille(500) {
            let page = rng.range(0, PAGES);
            self.machine.spoil_page(page);
            self.spoilt.flip_page(page);
            // It may have been told of already.
            if let Some(asked) = &mut self.asked {
                asked.hidden.insert(page);
            }
        } else {
            self.machine.spoil();
            self.spoilt.flip_registers();
        }
    }

    pub fn event(&mut self, world: &World, now_ms: u64, event: Event) -> Vec<Action> {
        let closed = event == Event::Closed;
        self.checkpoints.yielded |=
            matches!(event, Event::Message(Message::Word(Word::Yield { .. })));
        let leave = event == Event::Message(Message::Word(Word::Leave));
        let before = (leave && world.is(Break::FalsePromise)).then(|| self.backup.clone());
        let mut actions = self.catch_up(world, now_ms);
        if let Some(unaware) = self.unaware.take_if(|_| closed && self.asked.is_some()) {
            self.backup = unaware;
        }
        actions.extend(self.backup.step(now_ms, event));
        if closed && world.is(Break::TrustClosedStream) {
            actions.extend(self.backup.step(now_ms, Event::PeerGone));
        }
        if let Some(before) = before {
            self.backup = before;
            actions.retain(|action| matches!(action, Action::Send(_)));
        }
        actions
    }

    pub fn tick(&mut self, world: &World, now_ms: u64) -> Vec<Action> {
        let mut actions = self.catch_up(world, now_ms);
        actions.extend(self.backup.tick(now_ms));
        actions
    }

    /// A wrong driver makes its replica believe that it was awake all the time.
    fn catch_up(&mut self, world: &World, now_ms: u64) -> Vec<Action> {
        let before_ms = std::mem::replace(&mut self.awake_ms, now_ms);
        if !world.is(Break::TrustJump) {
            return vec![];
        }
        let steps = (before_ms..now_ms).step_by(10).skip(1);
        steps.flat_map(|now_ms| self.backup.tick(now_ms)).collect()
    }

    /// The machine of this stream's primary is built, or cannot be.
    pub fn prepared(
        &mut self,
        world: &World,
        now_ms: u64,
        stream: usize,
        works: bool,
    ) -> Vec<Action> {
        if stream != self.stream {
            return vec![];
        }
        let result = works.then_some(()).ok_or_else(|| String::from("the tap is gone"));
        let mut actions = if works { self.tell_remains(world, now_ms) } else { vec![] };
        actions.extend(self.backup.prepared(now_ms, result));
        actions
    }

    fn tell_remains(&mut self, world: &World, now_ms: u64) -> Vec<Action> {
        if !self.has_remains || world.is(Break::TellNothing) {
            return vec![];
        }
        let (first, second) = (0..PAGES / 2, PAGES / 2..PAGES);
        let runs = [first, second].map(|frames| {
            let digests = frames.clone().map(|page| self.machine.page(page).digest()).collect();
            self.backup.kept(now_ms, frames.start, digests)
        });
        runs.concat()
    }

    pub fn act(
        &mut self,
        world: &mut World,
        now_ms: u64,
        stream: Option<usize>,
        action: Action,
    ) -> Vec<Action> {
        match action {
            Action::Prepare(prologue) => {
                self.stream = stream.unwrap_or(0);
                self.settings = prologue.settings;
                let used = prologue.machine == [1];
                self.checkpoints = Checkpoints { used, ..Checkpoints::default() };
                self.prepare(world);
                vec![]
            }
            Action::TellCopy { whole } => {
                self.ask(world, whole);
                vec![]
            }
            Action::Deliver(batch) => {
                self.deliver(world, batch);
                vec![]
            }
            Action::Discard => {
                self.replay = None;
                self.delayed.clear();
                vec![]
            }
            Action::Drain => {
                self.draining = true;
                if world.is(Break::LiveBeforeEnd) {
                    return self.backup.drained(now_ms);
                }
                vec![]
            }
            other => unreachable!("not for a backup: {other:?}"),
        }
    }

    fn prepare(&mut self, world: &mut World) {
        self.has_remains = !self.stream.is_multiple_of(3);
        if !world.is(Break::KeepOldState) {
            let remains = self.has_remains.then(|| self.machine.remains());
            self.machine = remains.unwrap_or_else(Toy::blank);
            self.ledger = Ledger::new();
            self.totals.clear();
        }
        self.spoilt = Spoilt::default();
        self.asked = None;
        self.unaware = None;
        self.gaps.clear();
        self.replay = Some(Replay::new(Start::Blank, PAGES as usize));
        self.delayed.clear();
        self.staged.clear();
        let (host, process, stream) = (self.host, self.process, self.stream);
        let works = !world.rng.per_mille(30);
        let delay_us = world.rng.range(100, 20_000);
        world.after(
            delay_us,
            Due::Arrive { host, process, what: Inbox::Prepared { stream, works } },
        );
        if !std::mem::replace(&mut self.steps, true) {
            world.after(delay_us, Due::Arrive { host, process, what: Inbox::Step });
        }
    }

    fn deliver(&mut self, world: &mut World, batch: Batch) {
        for (_, record) in &batch.records {
            match record {
                Record::Pages { pages } => {
                    self.staged.extend(pages.iter().cloned());
                    self.checkpoints.half = true;
                }
                Record::Patches { .. } => self.checkpoints.half = true,
                Record::Delta { .. } => {
                    self.staged.clear();
                    self.checkpoints.half = false;
                }
                _ => {}
            }
        }
        if self.checkpoints.first_outputs.is_some() && world.is(Break::HalfCheckpoint) {
            for (page, content) in &self.staged {
                self.machine.load_page(*page, content);
            }
        }
        self.delayed.push(batch);
        if !world.is(Break::AckBeforeHolding) {
            self.hand_over(world);
        }
    }

    fn hand_over(&mut self, world: &mut World) {
        let Some(replay) = &mut self.replay else { return };
        for batch in self.delayed.drain(..) {
            // What is not healed accounts for nothing more.
            if !self.backup.is_healing() {
                world.checker.backup_holds(self.stream, batch.outputs.count);
            }
            replay.push_batch(batch).expect("the protocol checks the order");
        }
    }

    /// Replays for a while.
    pub fn step(&mut self, world: &mut World, now_ms: u64) -> Vec<Action> {
        self.steps = self.replay.is_some();
        if !self.steps {
            return vec![];
        }
        let lags = world.hosts[self.host].lags_until_us > world.now_us;
        let pace_us = match (self.draining, lags) {
            (true, _) => 200,
            (false, true) => 30_000,
            (false, false) => self.pace_us,
        };
        let delay_us = world.rng.range(pace_us / 2, pace_us * 2);
        let (host, process) = (self.host, self.process);
        world.after(delay_us, Due::Arrive { host, process, what: Inbox::Step });
        let mut actions = self.catch_up(world, now_ms);
        if !self.draining && world.rng.per_mille(300) {
            self.hand_over(world);
        }
        for _ in 0..8 {
            let Some(replay) = &mut self.replay else { break };
            match replay.next_step(self.machine.moment) {
                Ok(Step::Wait | Step::End(_)) => {
                    self.waited(world, now_ms, &mut actions);
                    break;
                }
                Ok(Step::Run) => {
                    if let Err(divergence) = self.run(world) {
                        actions.extend(self.diverged(world, now_ms, divergence));
                    }
                    break;
                }
                Ok(step) => self.take(world, now_ms, step, &mut actions),
                Err(divergence) => {
                    actions.extend(self.diverged(world, now_ms, divergence));
                    break;
                }
            }
        }
        actions
    }

    fn waited(&mut self, world: &mut World, now_ms: u64, actions: &mut Vec<Action>) {
        let has_state = self.replay.as_ref().is_some_and(Replay::has_state);
        if self.draining {
            actions.extend(self.backup.drained(now_ms));
        } else if world.is(Break::RunAhead) && has_state && world.rng.per_mille(100) {
            let _ = self.run(world);
        }
    }

    /// The guest runs to its next exit, which is handled with the recorded times.
    fn run(&mut self, world: &mut World) -> Result<(), Divergence> {
        let Some(replay) = &mut self.replay else { return Ok(()) };
        let before = self.machine.devices.total;
        self.spoilt.runs(self.machine.next_page());
        let exit = self.machine.run();
        let (moment, registers) = (self.machine.moment, self.machine.register_digest());
        world.checker.replayed(self.stream, moment, registers, self.spoilt.is_any());
        replay.register_digest(moment, registers);
        let mut emitted = vec![];
        self.machine.handle(exit, &mut emitted, || replay.take_time(moment))?;
        self.note(world, before, emitted);
        Ok(())
    }

    fn note(&mut self, world: &mut World, before: Trail, emitted: Vec<Emitted>) {
        world.checker.emitted(before, &emitted, world.now_us);
        let Some(replay) = &mut self.replay else { return };
        for Emitted { total, output } in emitted {
            let sequence = replay.output(&output);
            self.totals.insert(sequence, total);
            self.ledger.output(sequence, output);
        }
    }

    fn take(&mut self, world: &mut World, now_ms: u64, step: Step, actions: &mut Vec<Action>) {
        match step {
            Step::Input(input) => {
                self.ledger.input(&input);
                let before = self.machine.devices.total;
                let mut emitted = vec![];
                self.machine.apply(&input, &mut emitted);
                self.note(world, before, emitted);
            }
            Step::Pages(pages) => {
                for (page, content) in &pages {
                    self.machine.load_page(*page, content);
                }
                if world.is(Break::EarlyReady) {
                    actions.extend(self.backup.ready(now_ms));
                }
            }
            Step::Delta { moment, vcpu, machine, pages } => {
                for (page, content) in &pages {
                    self.machine.load_page(*page, content);
                }
                self.machine.load_vcpu(moment, &vcpu);
                self.machine.take_dirty();
                self.spoilt.delta(pages.keys(), machine.is_some());
                if let Some(machine) = machine {
                    self.machine.load_machine(&machine);
                    self.healed(world, pages.keys());
                    self.adopt_requests(world);
                    actions.extend(self.backup.ready(now_ms));
                }
            }
            Step::StateDigest { devices, memory } => {
                let (moment, mine) = (self.machine.moment, self.machine.digests());
                let mine = (mine.0, Some(mine.1));
                if let Err(divergence) = Replay::check_state(moment, (devices, memory), mine) {
                    assert!(self.spoilt.is_any(), "a sound copy differs: {divergence}");
                    world.checker.tally.found_spoiled += u64::from(self.checkpoints.used);
                    actions.extend(self.diverged(world, now_ms, divergence));
                }
            }
            Step::Devices { .. } => {}
            Step::Released { output } => self.ledger.released(output),
            Step::ChunkEnd { number, outputs } => {
                let has_state = self.replay.as_ref().is_some_and(Replay::has_state);
                let state = has_state.then(|| self.machine.state_digest());
                self.last_chunk = number;
                let (at, spoiled) = ((self.stream, number), self.spoilt.is_any());
                if world.checker.executed(at, outputs, state, spoiled) {
                    self.spoilt = Spoilt::default();
                }
                self.verified = (outputs.count, self.machine.devices.total.count);
                actions.extend(self.backup.executed(now_ms, number, outputs));
            }
            Step::Run | Step::Wait | Step::End(_) => unreachable!("treated by the caller"),
        }
    }

    /// What is open in a state that has come is this side's to finish, too, and nothing that was
    /// open in one before it.
    fn adopt_requests(&mut self, world: &World) {
        let first = self.checkpoints.first_outputs.is_none();
        if self.checkpoints.used && first {
            self.checkpoints.first_outputs = Some(self.machine.devices.total.count);
        }
        match self.checkpoints.used {
            true if !first => self.ledger = Ledger::new(),
            _ if world.is(Break::RedoMistakes) => {}
            _ => self.ledger.heal(u64::MAX),
        }
        if self.checkpoints.used && world.is(Break::ForgetRequests) {
            return;
        }
        for output in self.machine.devices.open.values() {
            self.ledger.output(0, output.clone());
        }
    }

    /// Tells the checker what the machine goes on from.
    fn account(&self, world: &mut World) {
        let history = self.machine.devices.total;
        let Checkpoints { first_outputs, half, yielded, .. } = self.checkpoints;
        world.checker.tally.from_healed += u64::from(!self.gaps.is_empty());
        for gap in self.gaps.iter().filter(|_| !yielded) {
            world.checker.forgive(gap.from, gap.to);
        }
        let Some(first_outputs) = first_outputs else { return };
        world.checker.tally.from_checkpoints += 1;
        world.checker.tally.from_halves += u64::from(half);
        if !yielded {
            world.checker.forgive(first_outputs, history);
        }
    }

    /// The machine goes on here.
    pub fn take_over(
        mut self,
        world: &mut World,
        host: usize,
        process: u64,
        generation: u64,
    ) -> PrimaryDriver {
        if let Some(replay) = &mut self.replay {
            replay.take_over();
        }
        if self.asked.is_some() {
            world.checker.fail(String::from("a copy takes over that was to be healed"));
        }
        if world.is(Break::HalfDelta) {
            for (page, content) in &self.staged {
                self.machine.load_page(*page, content);
            }
        }
        if !world.is(Break::LiveBeforeEnd) && !self.spoilt.is_any() {
            let state = self.machine.state_digest();
            world.checker.taken_over(self.stream, self.last_chunk, state);
        }
        let history = self.machine.devices.total;
        world.checker.went_live(process, generation, history);
        self.account(world);
        let redo = self.ledger.redo();
        let items = redo.into_iter().map(|(sequence, output)| {
            let total = self.totals.get(&sequence).copied();
            let total = total.or_else(|| world.checker.total_of(history, &output));
            Item { total, sequence: 0, output }
        });
        let items: Vec<Item> = items.collect();
        let own = generation - u64::from(world.is(Break::OldGeneration));
        let primary = Primary::new(world.clock_ms(host), self.backup.vm_id(), own);
        let standbys = standbys(world, host, self.patience);
        let place = (host, process);
        world.checker.tally.moves += u64::from(self.settings.purpose.is_move());
        let settings = Settings { purpose: Purpose::Protection, ..self.settings };
        let machine = self.machine;
        let mut driver = PrimaryDriver::new(world, place, primary, standbys, machine, settings);
        if !world.is(Break::ForgetRedo) {
            driver.redo(items);
        }
        if world.is(Break::ForgetTime) {
            driver.forget_time();
        }
        driver
    }
}

/// The standbys of a machine on `host`: everybody else.
pub fn standbys(world: &World, host: usize, patience: Patience) -> Standbys {
    let mut standbys = Standbys::new(patience);
    for other in (0..world.hosts.len()).filter(|other| *other != host) {
        standbys.add(&address(other)).expect("a short list of different hosts");
    }
    standbys.enable(None);
    standbys
}
