//! A copy that differs is made the machine again while the VM stays protected.
//!
//! Owns what either side's shell does for it: telling how the copy may differ, having the delta made
//! that mends it. When that happens is `ft::Backup`'s and `ft::Primary`'s decision, what the delta
//! holds the engine's.

use ft::{Event, TOUCHED_AT_ONCE_MAX};

use super::Shell;
use super::primary_side::{Handover, now_ms};
use super::protection::Protection;
use super::remains::Telling;
use crate::board::layout;
use crate::config::VmConfig;
use crate::engine::{DivergenceReport, HEALING_PAGES_MAX, HealPlan, Message};
use crate::error::Error;
use crate::machine::PAGE_SIZE;

impl Shell {
    /// The backup may have these pages otherwise than this side.
    pub(super) fn note_touched(&mut self, frames: Vec<u64>) -> Result<(), Error> {
        let fit = self.config.as_ref().is_some_and(|config| has_frames(config, &frames));
        let Some(side) = self.primary_side() else { return Ok(()) };
        if !fit || side.touched.len() + frames.len() > HEALING_PAGES_MAX {
            let why = "a list of pages that the VM does not have, or of too many".to_owned();
            return self.step_primary(Event::Damaged { why });
        }
        side.touched.extend(frames);
        Ok(())
    }

    /// Has the delta made that heals the backup's copy. A VM that is to be kept otherwise from now on
    /// parts from the backup instead: the next join brings that about.
    pub(super) fn heal_backup(&mut self) -> Result<(), Error> {
        let Some(side) = self.primary_side() else { return Ok(()) };
        let touched = std::mem::take(&mut side.touched);
        let kept = std::mem::take(&mut side.kept);
        if let Some(Handover::Emptying { moment }) = side.handing_over {
            // The log has ended. The backup is asked to go on, and says that it cannot.
            side.handing_over = Some(Handover::Ended { moment });
            return self.say_when_quiet();
        }
        if self.succession.method_changed {
            self.part_from_backup();
        } else {
            self.send(Message::Heal(HealPlan { touched, kept }));
        }
        Ok(())
    }

    /// The delta that heals is in the log.
    pub(super) fn on_healing_sent(&mut self, chunk: u64, pages: u64) -> Result<(), Error> {
        self.statistics.healing_pages = pages;
        let Some(side) = self.primary_side() else { return Ok(()) };
        let actions = side.primary.healing(now_ms(), chunk);
        self.act_primary(actions)
    }

    /// The copy has little in common with the machine: a join, with its own pace, is the better way.
    pub(super) fn on_too_far_apart(&mut self, pages: u64) {
        self.statistics.happened(format!(
            "the backup's copy differs in {pages} pages, which is too much to heal: it is joined anew"
        ));
        self.part_from_backup();
    }

    fn part_from_backup(&mut self) {
        // Ended meanwhile, by whatever it was: then nobody has to be parted from.
        if let Err(error) = self.dismiss_backup() {
            log::debug!("the backup was not dismissed: {error:?}");
        }
    }

    /// What a replay found that differs. The pages that were written here are told if they are asked
    /// for.
    pub(super) fn report_divergence(&mut self, report: &DivergenceReport) {
        // Where it ends the machine, its end is told with the same words.
        if report.touched.is_some() {
            log::error!("the copies differ {}", report.text);
        }
        if let Some(side) = self.backup_side() {
            side.touched = report.touched.clone().unwrap_or_default();
        }
        if let Err(error) = self.diverge(report.divergence.clone(), report.touched.is_some()) {
            log::error!("{error}");
        }
    }

    /// Tells the primary how this side's copy may differ.
    pub(super) fn tell_copy(&mut self, whole: bool) -> Result<(), Error> {
        let memory = self.running.as_ref().and_then(|running| running.memory.clone());
        let Protection::Backup(side) = &mut self.protection else { return Ok(()) };
        // What has been put out since the last comparison was perhaps not the machine's.
        side.ledger.heal(side.backup.progress().outputs.count);
        let touched = std::mem::take(&mut side.touched);
        let whole = whole || touched.len() > HEALING_PAGES_MAX;
        log::info!(
            "{} pages were written here of late; {} told of",
            touched.len(),
            if whole { "all memory is" } else { "they are" }
        );
        if whole {
            side.telling = memory.map(Telling::new);
            return self.tell_remains();
        }
        for frames in touched.chunks(TOUCHED_AT_ONCE_MAX) {
            let Some(side) = self.backup_side() else { return Ok(()) };
            let actions = side.backup.touched(now_ms(), frames.to_vec());
            self.act_backup(actions)?;
        }
        let Some(side) = self.backup_side() else { return Ok(()) };
        let actions = side.backup.told(now_ms());
        self.act_backup(actions)
    }
}

/// Whether the VM has RAM at all of these frames.
fn has_frames(config: &VmConfig, frames: &[u64]) -> bool {
    let regions = layout::ram_regions(config.memory.size);
    let is_ram = |frame: u64| {
        let within = |(start, length): &(u64, u64)| {
            (start / PAGE_SIZE..(start + length) / PAGE_SIZE).contains(&frame)
        };
        regions.iter().any(within)
    };
    frames.iter().all(|frame| is_ram(*frame))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_frames_of_ram_are_the_vms() {
        let mut config = VmConfig::default();
        config.memory.size = 4 << 30;
        let low_end = layout::LOW_RAM_END / PAGE_SIZE;
        let high = layout::HIGH_RAM_START / PAGE_SIZE;
        assert!(has_frames(&config, &[0, low_end - 1, high]));
        for frame in [low_end, high - 1, high + (4 << 30) / PAGE_SIZE - low_end, u64::MAX] {
            assert!(!has_frames(&config, &[1, frame]), "{frame:#x}");
        }
    }
}
