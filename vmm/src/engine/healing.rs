//! The engine's part of a healing: the copy that follows differs, and is made the machine again by a
//! delta in the middle of its log.
//!
//! Owns which pages that delta has, and when it is taken. Does not own the delta (`recording`), or how
//! the other side tells what it has (`ft::Backup`).

use std::collections::BTreeSet;

use ft::KeptPages;
use hypervisor::{GuestMemory, monotonic_ns};

use super::messages::Report;
use super::recording::Whole;
use super::{Engine, Mode};
use crate::error::Error;
use crate::machine::{PAGE_SIZE, content_pages, page_at};

/// Pages looked at between two looks at the clock.
const PAGES_AT_ONCE: usize = 16;
/// A turn of the comparison, and of a guest that runs beside it. Outputs wait meanwhile, so that the
/// comparison has most of the time.
const TURN_NS: u64 = 6_000_000;
pub(super) const GUESTS_TURN_NS: u64 = 2_000_000;
/// More pages than this are not sent for a healing: 16 MiB, what a backup takes beyond its limit.
pub const HEALING_PAGES_MAX: usize = (16 << 20) / PAGE_SIZE as usize;

/// How a copy may differ from the machine, apart from what was written since the last delta.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HealPlan {
    /// Pages that were written there.
    pub touched: Vec<u64>,
    /// The digests of all of its pages, if it told those.
    pub kept: KeptPages,
}

/// A healing under way.
pub(super) struct Healing {
    kept: KeptPages,
    /// Frames still to be compared, in descending order.
    left: Vec<u64>,
    /// Frames that the delta has besides those that the dirty log knows.
    found: BTreeSet<u64>,
}

impl Healing {
    pub(super) fn new(plan: HealPlan, memory: &GuestMemory) -> Self {
        let left = if plan.kept.is_empty() {
            Vec::new()
        } else {
            let mut all: Vec<u64> = content_pages(memory).collect();
            all.reverse();
            all
        };
        Self { kept: plan.kept, left, found: plan.touched.into_iter().collect() }
    }

    /// Compares for a turn. What the machine writes later is in the dirty log.
    fn compare(&mut self, memory: &GuestMemory) -> Result<(), Error> {
        let begun_ns = monotonic_ns();
        while !self.left.is_empty() && monotonic_ns() - begun_ns < TURN_NS {
            let from = self.left.len().saturating_sub(PAGES_AT_ONCE);
            for frame in self.left.drain(from..) {
                if !self.kept.has(frame, &page_at(memory, frame)?) {
                    self.found.insert(frame);
                }
            }
        }
        Ok(())
    }
}

impl Engine {
    /// A healing is asked for. A log that has ended has no delta to come: who follows it is told so by
    /// whoever ended it.
    pub(super) fn begin_healing(&mut self, plan: HealPlan) {
        if let Mode::Recording(recording) = &mut self.mode {
            recording.healing = Some(Box::new(Healing::new(plan, &self.machine.memory)));
        }
    }

    /// Goes on with a healing, if one is under way.
    pub(super) fn heal(&mut self) -> Result<(), Error> {
        let Mode::Recording(recording) = &mut self.mode else { return Ok(()) };
        let Some(healing) = &mut recording.healing else { return Ok(()) };
        healing.compare(&self.machine.memory)?;
        if !healing.left.is_empty() {
            return Ok(());
        }
        let found = std::mem::take(&mut healing.found);
        recording.healing = None;
        if found.len() > HEALING_PAGES_MAX {
            self.reports.send(Report::TooFarApart { pages: found.len() as u64 });
            return Ok(());
        }
        self.take_healing_delta(found)
    }

    /// The delta. It can only be taken where an interval has ended and nothing is left to complete.
    fn take_healing_delta(&mut self, mut frames: BTreeSet<u64>) -> Result<(), Error> {
        if self.machine.inside_interval() {
            self.end_interval()?;
        }
        while let Some(exit) = self.machine.settle_inside()? {
            self.natural_exit(&exit)?;
        }
        let logs = matches!(&self.mode, Mode::Recording(recording) if !recording.has_ended());
        if self.ended.is_some() || !logs {
            return Ok(());
        }
        frames.extend(self.machine.vm.take_dirty()?);
        let frames: Vec<u64> = frames.into_iter().collect();
        self.record_all(&frames, Whole::Heals { pages: frames.len() as u64 })
    }
}
