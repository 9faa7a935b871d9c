//! What a primary does about a backup's copy that differs: it hears how, has the delta made that
//! heals it, and releases no output before the backup has that.

use alloc::{format, vec::Vec};

use super::{Primary, PrimaryState};
use crate::action::{Action, Happening};
use crate::message::Word;

/// How far the healing of a backup's copy is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Healing {
    /// There is nothing to heal.
    Sound,
    /// The backup tells how its copy may differ.
    Told,
    /// The driver makes the delta that heals it.
    Made,
    /// That ends with this chunk, which the backup does not have yet, or has not executed where
    /// that counts.
    Sent { chunk: u64 },
}

impl Primary {
    /// The delta of [`Action::Heal`] is appended, just now or next: it ends with this chunk.
    pub fn healing(&mut self, now_ms: u64, chunk: u64) -> Vec<Action> {
        let out = self.attend(now_ms);
        if self.healing == Healing::Made {
            self.healing = Healing::Sent { chunk };
        }
        out
    }

    /// Whether the backup's copy differs: it cannot take over before it is healed.
    #[must_use]
    pub fn is_healing(&self) -> bool {
        self.state == PrimaryState::Protected && self.healing != Healing::Sound
    }

    /// The backup says something about its copy.
    pub(super) fn on_copy(&mut self, now_ms: u64, word: Word, out: &mut Vec<Action>) {
        use PrimaryState::{Leaving, Protected, Yielding};
        match (word, self.state) {
            // It cannot take the machine, and will answer so.
            (Word::Differs(_), Yielding) => {}
            (Word::Differs(divergence), Protected | Leaving) => {
                out.push(Action::Report(Happening::Diverged(divergence)));
                self.await_telling(now_ms, out);
            }
            (Word::Touched { .. } | Word::Kept { .. } | Word::Told, Leaving | Yielding) => {}
            (Word::Touched { frames }, Protected) if self.healing == Healing::Told => {
                out.push(Action::NoteTouched { frames });
            }
            (Word::Kept { first_frame, digests }, Protected) if self.healing == Healing::Told => {
                out.push(Action::NoteKept { first_frame, digests });
            }
            (Word::Told, Protected) if self.healing == Healing::Told => {
                self.healing = Healing::Made;
                out.push(Action::Heal);
            }
            (word, state) => {
                let why = format!("{} while {state:?}", word.brief());
                self.nonsense(&why, out);
            }
        }
    }

    fn await_telling(&mut self, now_ms: u64, out: &mut Vec<Action>) {
        match self.healing {
            // One that is healed, which its acknowledgement has not said yet, may differ again.
            Healing::Sound | Healing::Sent { .. } => {
                self.healing = Healing::Told;
                self.healing_since_ms = now_ms;
            }
            Healing::Told | Healing::Made => {
                self.nonsense("a copy that differs while it is being healed", out);
            }
        }
    }

    pub(super) fn note_healed(&mut self, out: &mut Vec<Action>) {
        match self.healing {
            Healing::Sent { chunk } if self.acknowledged() >= chunk => {
                self.healing = Healing::Sound;
                out.push(Action::Report(Happening::Healed));
            }
            Healing::Sent { .. } | Healing::Sound | Healing::Told | Healing::Made => {}
        }
    }

    /// For how long the backup's copy has differed; 0 if it does not.
    pub(super) fn unhealed_ms(&self, now_ms: u64) -> u64 {
        match self.healing {
            Healing::Sound => 0,
            Healing::Told | Healing::Made | Healing::Sent { .. } => {
                now_ms.saturating_sub(self.healing_since_ms)
            }
        }
    }
}
