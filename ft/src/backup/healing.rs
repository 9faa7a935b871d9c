//! What a backup does whose copy differs: it asks to be healed, tells how it may differ, and halts if
//! nobody heals it. The delta that does comes by the log, in its parent.

use alloc::vec::Vec;

use super::{Backup, BackupState};
use crate::action::{Action, HaltReason, Happening};
use crate::chunk::Batch;
use crate::error::Divergence;
use crate::message::Word;

/// A copy that differs again so soon was not healed by the pages written of late: all of its memory
/// is looked at then.
const RELAPSE_MS: u64 = 30_000;

impl Backup {
    /// Whether its copy is known to differ, and the delta that heals it is not here: it cannot take
    /// over.
    #[must_use]
    pub fn is_healing(&self) -> bool {
        self.healing.is_some()
    }

    /// Before [`Backup::told`], after an [`Action::TellCopy`] that is not for the whole memory: pages
    /// that were written here since an earlier delta, at most
    /// [`TOUCHED_AT_ONCE_MAX`](crate::TOUCHED_AT_ONCE_MAX).
    pub fn touched(&mut self, now_ms: u64, frames: Vec<u64>) -> Vec<Action> {
        let mut out = self.attend(now_ms);
        if self.is_telling() && self.stream_open {
            out.push(Word::Touched { frames }.into());
        }
        out
    }

    /// All was told that [`Action::TellCopy`] asks for.
    pub fn told(&mut self, now_ms: u64) -> Vec<Action> {
        let mut out = self.attend(now_ms);
        if self.is_telling() && self.stream_open {
            out.push(Word::Told.into());
        }
        self.telling = false;
        out
    }

    pub(super) fn is_telling(&self) -> bool {
        self.telling && self.state == BackupState::Following
    }

    /// A machine that moves stays where it is if the copy differs: nothing is lost by that. Where
    /// the log itself makes no sense, more of it does not help.
    pub(super) fn may_ask_for_healing(&self, divergence: &Divergence) -> bool {
        let under_way = self.telling || self.healing.is_some();
        let is_sane = !matches!(divergence, Divergence::Log { .. });
        is_sane && self.stream_open && !under_way && !self.settings.purpose.is_move()
    }

    pub(super) fn ask_for_healing(
        &mut self,
        now_ms: u64,
        divergence: Divergence,
        out: &mut Vec<Action>,
    ) {
        let relapse = self.healed_ms.take_if(|at| now_ms.saturating_sub(*at) < RELAPSE_MS);
        let whole = relapse.is_some();
        if !whole {
            self.healed_ms = Some(now_ms);
        }
        self.telling = true;
        self.announced = false;
        self.healing = Some(divergence.clone());
        out.push(Word::Differs(divergence.clone()).into());
        out.push(Action::Report(Happening::Diverged(divergence)));
        out.push(Action::TellCopy { whole });
    }

    /// Notes what a part of the log that has come does for this copy.
    pub(super) fn is_healed_by(&mut self, batch: &Batch) -> bool {
        // Nothing that was made before all is told knows all that differs.
        let heals = batch.heals(&mut self.announced) && !self.telling;
        heals && self.healing.take().is_some()
    }

    /// Nobody heals this copy any more: the primary may go on without it.
    pub(super) fn halt_unhealed(&mut self, out: &mut Vec<Action>) {
        let Some(divergence) = self.healing.take() else { return };
        if self.stream_open {
            out.push(Word::Diverged(divergence.clone()).into());
        }
        self.halt(HaltReason::Diverged(divergence), out);
    }
}
