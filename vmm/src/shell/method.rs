//! How a VM is kept twice: by replay, or by checkpoints where replay cannot work.
//!
//! Owns the choice, and when it changes by itself. What checkpoints are is the engine's; a change takes
//! effect with the next join, which a divergence leads to anyhow.

use std::collections::VecDeque;

use ft::Happening;
use serde_json::json;

use super::Shell;
use super::primary_side::now_ms;
use crate::api::FtProtection;
use crate::config::{FtConfig, FtMethod};
use crate::description::Unreplayable;
use crate::error::Error;

/// So many divergences within [`WINDOW_MS`] are the guest's way and no accident.
const DIVERGENCES_MOST: usize = 3;
/// Ten minutes: a program that asks the processor for the time now and then is found out, too.
const WINDOW_MS: u64 = 600_000;

/// The divergences of late.
#[derive(Clone, Debug, Default)]
pub(super) struct Relapses {
    times_ms: VecDeque<u64>,
}

impl Relapses {
    /// The copies differed at `now_ms`; whether they do so persistently.
    pub(super) fn note(&mut self, now_ms: u64) -> bool {
        while self.times_ms.pop_front_if(|at| now_ms.saturating_sub(*at) > WINDOW_MS).is_some() {}
        self.times_ms.push_back(now_ms);
        let persistent = self.times_ms.len() >= DIVERGENCES_MOST;
        if persistent {
            self.times_ms.clear();
        }
        persistent
    }
}

/// How a VM is kept twice that is to be protected as `ft` says, if `unreplayable` is known of it.
///
/// # Errors
/// Replay is demanded and impossible.
pub(super) fn choose(
    ft: &FtConfig,
    unreplayable: Option<&Unreplayable>,
) -> Result<FtProtection, Error> {
    match (ft.method, unreplayable) {
        (FtMethod::Checkpoint, _) | (FtMethod::Auto, Some(_)) => Ok(FtProtection::Checkpoint),
        (FtMethod::Replay, Some(Unreplayable { why, by_nature: true })) => {
            Err(Error::Refused(format!(
                "the VM cannot be protected by replay: {why}; mode=checkpoint or mode=auto protects it"
            )))
        }
        (FtMethod::Auto, None) | (FtMethod::Replay, _) => Ok(FtProtection::Replay),
    }
}

impl Shell {
    /// Copies that differ again and again are kept by checkpoints from the next join on, unless the
    /// user wants none.
    pub(super) fn note_relapse(&mut self, happening: &Happening) {
        match happening {
            Happening::Diverged(_) => {}
            // The failures that the standby is blamed for were not its own.
            Happening::Solo { .. } if std::mem::take(&mut self.succession.method_changed) => {
                return self.succession.standbys.forgive();
            }
            Happening::Joining
            | Happening::Healed
            | Happening::JoinFailed { .. }
            | Happening::Protected { .. }
            | Happening::PeerLost(_)
            | Happening::ArbiterUnreachable
            | Happening::Undecided
            | Happening::Solo { .. }
            | Happening::Live { .. }
            | Happening::Halted(_)
            | Happening::Stalled { .. }
            | Happening::Paused { .. } => return,
        }
        let Some(side) = self.primary_side() else { return };
        let may = side.method == FtProtection::Replay && side.config.method == FtMethod::Auto;
        if !may || !self.succession.relapses.note(now_ms()) {
            return;
        }
        let why = format!(
            "its copies differed {DIVERGENCES_MOST} times within {} minutes",
            WINDOW_MS / 60_000
        );
        log::warn!("replay does not work for this VM: {why}");
        self.statistics.happened(format!("From now on the VM is kept by checkpoints: {why}"));
        self.report_ft("moved-to-checkpoint", json!({ "why": why }));
        self.succession.unreplayable = Some(Unreplayable { why, by_nature: false });
        self.succession.method_changed = true;
    }

    /// Says why a join that begins is one by checkpoints, if it is.
    pub(super) fn report_method(&mut self) {
        let Some(side) = self.primary_side() else { return };
        if side.method != FtProtection::Checkpoint {
            return;
        }
        let asked = side.config.method == FtMethod::Checkpoint;
        let why = match &self.succession.unreplayable {
            Some(unreplayable) if !asked => unreplayable.why.clone(),
            Some(_) | None => "mode=checkpoint".to_owned(),
        };
        self.statistics.happened(format!("Joining by checkpoints: {why}"));
        self.report_ft("checkpoint-mode", json!({ "why": why }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ft(mode: &str) -> FtConfig {
        FtConfig::parse(&format!("role=primary,peer=b:1,arbiter=none,mode={mode}")).unwrap()
    }

    #[test]
    fn three_divergences_within_ten_minutes_are_persistent() {
        let mut relapses = Relapses::default();
        assert!(!relapses.note(0) && !relapses.note(500_000));
        assert!(!relapses.note(700_000), "the first is forgotten");
        assert!(relapses.note(1_000_000));
        assert!(!relapses.note(1_000_001), "it is counted anew");
    }

    #[test]
    fn a_vm_that_cannot_be_replayed_is_kept_by_checkpoints_unless_that_is_forbidden() {
        let by_nature = Unreplayable { why: "of its kernel".into(), by_nature: true };
        let of_late = Unreplayable { by_nature: false, ..by_nature.clone() };
        for (mode, reason, method) in [
            ("auto", None, FtProtection::Replay),
            ("auto", Some(&of_late), FtProtection::Checkpoint),
            ("auto", Some(&by_nature), FtProtection::Checkpoint),
            ("replay", None, FtProtection::Replay),
            ("replay", Some(&of_late), FtProtection::Replay),
            ("checkpoint", None, FtProtection::Checkpoint),
            ("checkpoint", Some(&by_nature), FtProtection::Checkpoint),
        ] {
            assert_eq!(choose(&ft(mode), reason).unwrap(), method, "{mode}, {reason:?}");
        }
        let refused = choose(&ft("replay"), Some(&by_nature)).unwrap_err().to_string();
        assert!(refused.contains("cannot be protected by replay: of its kernel;"), "{refused}");
    }
}
