//! Copies that differ from their machine: what is wrong with one, and what the two drivers do to heal
//! it.
//!
//! Owns what the simulator knows of a spoiled copy, so that everything but that is compared. How a
//! copy is followed is in `backup_driver`, what a log holds otherwise in `engine`.

use std::collections::BTreeSet;

use ft::{Action, Divergence, KeptPages, Page, Replay, Trail};

use crate::backup_driver::BackupDriver;
use crate::breaks::Break;
use crate::engine::Log;
use crate::host::Inbox;
use crate::primary_driver::PrimaryDriver;
use crate::queue::Due;
use crate::toy::{PAGES, Toy};
use crate::world::World;

/// What is wrong with a copy, as only somebody can know who has spoiled it.
#[derive(Default)]
pub struct Spoilt {
    /// The registers were flipped, and the machine has not run since.
    registers: bool,
    /// Pages that are not the machine's, as far as can be known.
    pages: BTreeSet<u64>,
    /// It ran with wrong registers, or read a wrong page: nothing is as it should be.
    astray: bool,
}

impl Spoilt {
    pub fn is_any(&self) -> bool {
        self.registers || self.astray || !self.pages.is_empty()
    }

    pub fn flip_registers(&mut self) {
        self.registers = true;
    }

    pub fn flip_page(&mut self, page: u64) {
        self.pages.insert(page);
    }

    /// The copy is about to run, and touches this page.
    pub fn runs(&mut self, page: u64) {
        self.astray |= std::mem::take(&mut self.registers) || self.pages.contains(&page);
        if self.astray {
            self.pages.insert(page);
        }
    }

    /// A delta has replaced the registers and these pages, and with `whole` all but memory.
    pub fn delta<'a>(&mut self, pages: impl Iterator<Item = &'a u64>, whole: bool) {
        for page in pages {
            self.pages.remove(page);
        }
        self.registers = false;
        self.astray &= !whole;
    }
}

/// What a backup tells of a copy that differs.
#[derive(Default)]
pub struct Telling {
    pub whole: bool,
    pages: BTreeSet<u64>,
}

impl Telling {
    /// Of all its memory, or of what it has written since it last applied a delta.
    pub fn new(whole: bool, machine: &Toy) -> Self {
        let pages = if whole { (0..PAGES).collect() } else { machine.dirty() };
        Self { whole, pages }
    }

    /// One of two parts of it.
    pub fn part(&self, second: bool) -> Vec<u64> {
        let of_part = |page: &&u64| (**page >= PAGES / 2) == second;
        self.pages.iter().filter(of_part).copied().collect()
    }
}

/// The healing of a copy, at the backup.
pub struct Asked {
    pub whole: bool,
    /// Wrong pages that are not told of: they stay as they are.
    pub hidden: BTreeSet<u64>,
}

impl Asked {
    /// A copy that is spoilt so, and of which so much will be told.
    pub fn new(telling: &Telling, spoilt: &Spoilt) -> Self {
        let hidden = spoilt.pages.difference(&telling.pages).copied().collect();
        Self { whole: telling.whole, hidden }
    }

    /// The delta that heals is here: what is still wrong with the copy, at most.
    pub fn healed<'a>(mut self, pages: impl Iterator<Item = &'a u64>) -> Spoilt {
        for page in pages {
            self.hidden.remove(page);
        }
        Spoilt { registers: false, pages: self.hidden, astray: false }
    }
}

/// What a healed copy did by mistake: the outputs in between are not done again.
#[derive(Clone, Copy)]
pub struct Gap {
    /// Outputs in the history up to the last that was verified.
    pub from: u64,
    pub to: Trail,
}

/// What the primary knows of a copy that differs.
#[derive(Default)]
pub struct Noted {
    touched: BTreeSet<u64>,
    kept: KeptPages,
}

impl Noted {
    pub fn touched(&mut self, frames: Vec<u64>) {
        self.touched.extend(frames);
    }

    pub fn kept(&mut self, first_frame: u64, digests: Vec<ft::PageDigest>) {
        assert!(self.kept.note(first_frame, digests, PAGES), "no backup lies here");
    }

    fn needs(&self, frame: u64, page: &Page) -> bool {
        self.touched.contains(&frame) || !self.kept.is_empty() && !self.kept.has(frame, page)
    }
}

impl BackupDriver {
    /// The copy is not the machine.
    pub(crate) fn diverged(
        &mut self,
        world: &mut World,
        now_ms: u64,
        what: Divergence,
    ) -> Vec<Action> {
        if self.asked.is_some() && world.is(Break::RunUnhealed) {
            return vec![];
        }
        self.unaware = world.is(Break::TakeOverUnhealed).then(|| self.backup.clone());
        let curable = !self.checkpoints.used && !world.rng.per_mille(125);
        let actions = self.backup.diverged(now_ms, what, curable);
        if !self.backup.is_healing() {
            self.replay = None;
        }
        actions
    }

    /// The copy is to be healed: how it may differ is told before long.
    pub(crate) fn ask(&mut self, world: &mut World, whole: bool) {
        if let Some(replay) = &mut self.replay
            && !world.is(Break::RunUnhealed)
        {
            replay.heal();
        }
        self.telling = Telling::new(whole, &self.machine);
        self.asked = Some(Asked::new(&self.telling, &self.spoilt));
        let (host, process, stream) = (self.host, self.process, self.stream);
        let mut delay_us = 0;
        for last in [false, true] {
            delay_us += world.rng.range(10, 8_000);
            let what = Inbox::Tell { stream, last };
            world.after(delay_us, Due::Arrive { host, process, what });
        }
    }

    /// Tells one of two parts.
    pub fn tell(&mut self, now_ms: u64, stream: usize, last: bool) -> Vec<Action> {
        if stream != self.stream {
            return vec![];
        }
        let frames = self.telling.part(last);
        let mut actions = match (self.telling.whole, frames.first()) {
            (_, None) => vec![],
            (true, Some(first)) => {
                let digests = frames.iter().map(|at| self.machine.page(*at).digest()).collect();
                self.backup.kept(now_ms, *first, digests)
            }
            (false, Some(_)) => self.backup.touched(now_ms, frames),
        };
        if last {
            actions.extend(self.backup.told(now_ms));
        }
        actions
    }

    /// If this is the delta that the copy waited for, it is the machine again.
    pub(crate) fn healed<'a>(&mut self, world: &mut World, pages: impl Iterator<Item = &'a u64>) {
        let waits = self.replay.as_ref().is_some_and(Replay::is_healing);
        let Some(asked) = self.asked.take_if(|_| !waits) else { return };
        world.checker.tally.healings += 1;
        world.checker.tally.healed_wholly += u64::from(asked.whole);
        self.spoilt = asked.healed(pages);
        self.gaps.push(Gap { from: self.verified.1, to: self.machine.devices.total });
        if !world.is(Break::RedoMistakes) {
            self.ledger.heal(self.verified.0);
        }
    }
}

impl PrimaryDriver {
    /// Makes the delta that heals the backup's copy, between two intervals.
    pub(crate) fn heal(&mut self, world: &mut World, now_ms: u64) -> Vec<Action> {
        let noted = std::mem::take(&mut self.noted);
        let mut actions = vec![];
        if let Some(vcpu) = self.pending_delta.take() {
            actions = self.finish_delta(world, now_ms, vcpu);
        }
        let mut frames: BTreeSet<u64> = self.machine.take_dirty().into_iter().collect();
        if world.is(Break::HealWithoutDirtied) {
            frames.clear();
        }
        let needs = |frame: &u64| noted.needs(*frame, &self.machine.page(*frame));
        if !world.is(Break::ForgetTouched) {
            frames.extend((0..PAGES).filter(needs));
        }
        let pages: Vec<(u64, Page)> =
            frames.into_iter().map(|at| (at, self.machine.page(at))).collect();
        let (vcpu, models) = (self.machine.save_vcpu(), self.machine.save_machine());
        let before = self.machine.moment;
        let Log::Whole(recorder) = &mut self.log else { return actions };
        recorder.pages(before, pages);
        recorder.heal(before + 1, vcpu, models).expect("states are small");
        self.machine.moment += 1;
        actions.extend(self.cut(world, now_ms));
        let chunk = self.log.whole().map_or(0, |recorder| recorder.open_chunk() - 1);
        actions.extend(self.primary.healing(now_ms, chunk));
        actions
    }
}
