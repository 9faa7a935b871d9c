//! Which standby to join next, and when: the policy by which a machine gets protected again by
//! itself.
//!
//! ```text
//!              tick: TryJoin            Protected             PeerLost
//!   Exposed ─────────────────► Trying ───────────► Protected ───────────► Deciding
//!      ▲                         │ failed,            │ Solo (by a           │ Solo,
//!      │                         │ JoinFailed         │ promise)             │ Live
//!      └─────────────────────────┴────────────────────┴──────────────────────┘
//! ```
//!
//! It owns the list, whose turn it is, and the back-off. It reads no clock and opens no
//! connection: the driver hands in every [`Happening`] that its replica reports, carries out the
//! one [`TryJoin`] that comes back, and says so where no replica could (a connection that does not
//! open: [`Standbys::failed`]). Whether a standby may follow is decided between it and the
//! primary; whether the machine may go on, by `primary` and `backup`.
//!
//! A former primary that comes back is a standby like any other.

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::action::Happening;

/// Standbys a machine may have.
pub const STANDBYS_MAX: usize = 16;

/// How long to wait before a standby that failed is tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Patience {
    /// Milliseconds after the first failure. It doubles with each further one.
    pub first_ms: u64,
    /// Milliseconds that it never exceeds. A backup that has protected for so long has made good
    /// for its failures before.
    pub longest_ms: u64,
}

impl Default for Patience {
    fn default() -> Self {
        Self { first_ms: 1_000, longest_ms: 30_000 }
    }
}

impl Patience {
    /// After this many failures in a row, at least one.
    fn wait_ms(self, failures: u32) -> u64 {
        let doublings = failures.saturating_sub(1).min(32);
        self.first_ms.saturating_mul(1 << doublings).min(self.longest_ms)
    }
}

/// One host that would follow the machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standby {
    /// Where it is. Only the driver knows how to read it.
    pub address: String,
    /// Joins that failed, and protections that ended too soon, since it last made good.
    pub failures: u32,
    /// Not to be tried before this time.
    pub not_before_ms: u64,
}

/// The one thing there is to do: connect to this standby and let the primary join it. What comes of
/// it is told by the primary's happenings, or by [`Standbys::failed`] if it never got that far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TryJoin {
    /// Its address.
    pub standby: String,
}

/// A list that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum StandbyError {
    /// More than [`STANDBYS_MAX`].
    #[error("{count} standbys are more than the {STANDBYS_MAX} that a machine may have")]
    TooMany {
        /// How many.
        count: usize,
    },
    /// The same one again.
    #[error("the standby {address} is named twice")]
    Twice {
        /// Which.
        address: String,
    },
    /// One that is not in the list.
    #[error("there is no standby {address}")]
    Unknown {
        /// Which.
        address: String,
    },
}

/// What this side's machine needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Situation {
    /// It is live here and nobody would take over.
    Exposed,
    /// A join is under way.
    Trying,
    /// A backup follows.
    Protected { since_ms: u64 },
    /// The backup is lost, and it is open who goes on.
    Deciding,
    /// It is not here any more, or about to end.
    Over,
}

/// The standbys of one machine.
#[derive(Clone, Debug)]
pub struct Standbys {
    patience: Patience,
    list: Vec<Standby>,
    /// Where in the list the next turn begins.
    turn: usize,
    /// The one that comes before all others.
    first: Option<String>,
    /// The one that is tried, or follows, or did so last.
    current: Option<String>,
    situation: Situation,
    /// The user wants protection.
    wanted: bool,
    /// The machine is paused, or being prepared to end: no join now.
    suspended: bool,
    /// The present backup's copy was found to differ.
    diverged: bool,
}

impl Standbys {
    /// Nobody yet, for a machine that is live here and unprotected. Nothing is tried before
    /// [`Standbys::enable`].
    #[must_use]
    pub fn new(patience: Patience) -> Self {
        Self {
            patience,
            list: Vec::new(),
            turn: 0,
            first: None,
            current: None,
            situation: Situation::Exposed,
            wanted: false,
            suspended: false,
            diverged: false,
        }
    }

    /// The list, in the order of the turns.
    #[must_use]
    pub fn list(&self) -> &[Standby] {
        &self.list
    }

    /// The standby that is being tried, or follows.
    #[must_use]
    pub fn current(&self) -> Option<&str> {
        match self.situation {
            Situation::Trying | Situation::Protected { .. } => self.current.as_deref(),
            Situation::Exposed | Situation::Deciding | Situation::Over => None,
        }
    }

    /// Whether protection is wanted.
    #[must_use]
    pub fn is_enabled(&self) -> bool {
        self.wanted
    }

    /// Adds a standby at the end. It may be tried at once.
    ///
    /// # Errors
    ///
    /// When it is there already, or there are too many.
    pub fn add(&mut self, address: &str) -> Result<(), StandbyError> {
        if self.list.iter().any(|standby| standby.address == address) {
            return Err(StandbyError::Twice { address: address.to_string() });
        }
        if self.list.len() >= STANDBYS_MAX {
            return Err(StandbyError::TooMany { count: self.list.len() + 1 });
        }
        self.list.push(Standby { address: address.to_string(), failures: 0, not_before_ms: 0 });
        Ok(())
    }

    /// Takes a standby off the list. One that follows goes on following, and one that is being
    /// joined is joined to the end; it is not tried again.
    ///
    /// # Errors
    ///
    /// When it is not there.
    pub fn remove(&mut self, address: &str) -> Result<(), StandbyError> {
        let Some(at) = self.list.iter().position(|standby| standby.address == address) else {
            return Err(StandbyError::Unknown { address: address.to_string() });
        };
        self.list.remove(at);
        if at < self.turn {
            self.turn -= 1;
        }
        if self.first.as_deref() == Some(address) {
            self.first = None;
        }
        Ok(())
    }

    /// Replaces the list. Who stays in it keeps its back-off.
    ///
    /// # Errors
    ///
    /// When one is named twice, or there are too many. The list stays as it was then.
    pub fn replace<'a>(
        &mut self,
        addresses: impl IntoIterator<Item = &'a str>,
    ) -> Result<(), StandbyError> {
        let mut new = Self::new(self.patience);
        for address in addresses {
            new.add(address)?;
        }
        for standby in &mut new.list {
            if let Some(old) = self.list.iter().find(|old| old.address == standby.address) {
                *standby = old.clone();
            }
        }
        self.list = new.list;
        self.turn = 0;
        self.first = self.first.take().filter(|first| self.find(first).is_some());
        Ok(())
    }

    /// The user wants protection, from `first` if it names somebody of the list and that one can be
    /// joined. All back-offs are forgotten.
    pub fn enable(&mut self, first: Option<&str>) {
        self.wanted = true;
        self.first = first.filter(|first| self.find(first).is_some()).map(ToString::to_string);
        self.forgive();
    }

    /// What the failures so far came of is mended: all back-offs are forgotten.
    pub fn forgive(&mut self) {
        for standby in &mut self.list {
            standby.failures = 0;
            standby.not_before_ms = 0;
        }
    }

    /// The user wants no protection: nobody is tried until [`Standbys::enable`].
    pub fn disable(&mut self) {
        self.wanted = false;
    }

    /// The machine is paused, or about to end (`true`): no join is begun until it goes on.
    pub fn suspend(&mut self, suspended: bool) {
        self.suspended = suspended;
    }

    /// The join asked for did not come about: nobody answered, say. The primary's own
    /// [`Happening::JoinFailed`] tells the same.
    pub fn failed(&mut self, now_ms: u64) {
        if self.situation == Situation::Trying {
            self.situation = Situation::Exposed;
            self.blame(now_ms);
        }
    }

    /// Whether the join asked for is still wanted: to be looked at once the connection is open, as
    /// the user may have changed his mind meanwhile. If not, say [`Standbys::failed`].
    #[must_use]
    pub fn is_join_wanted(&self) -> bool {
        self.situation == Situation::Trying && self.wanted && !self.suspended
    }

    /// This side's replica reports something: to be told of everything, in order.
    pub fn observe(&mut self, now_ms: u64, happening: &Happening) {
        if self.situation == Situation::Over {
            return;
        }
        match happening {
            Happening::Joining => {
                // A join that this policy did not ask for: nobody of the list is to blame for it.
                if self.situation != Situation::Trying {
                    self.current = None;
                }
                self.situation = Situation::Trying;
            }
            Happening::JoinFailed { .. } => self.failed(now_ms),
            Happening::Protected { .. } => {
                self.situation = Situation::Protected { since_ms: now_ms };
            }
            Happening::Diverged(_) => self.diverged = true,
            Happening::Healed => self.diverged = false,
            Happening::PeerLost(_) => {
                self.parted(now_ms);
                self.situation = Situation::Deciding;
            }
            Happening::Solo { .. } => {
                self.parted(now_ms);
                self.situation = Situation::Exposed;
                self.diverged = false;
            }
            // Somebody new is in charge: what the one before thought of anybody counts for nothing.
            Happening::Live { .. } => {
                self.situation = Situation::Exposed;
                self.diverged = false;
                self.current = None;
            }
            Happening::Halted(_) => self.situation = Situation::Over,
            Happening::ArbiterUnreachable
            | Happening::Undecided
            | Happening::Stalled { .. }
            | Happening::Paused { .. } => {}
        }
    }

    /// Time passed. Says whom to join now, if anybody; nobody else until it is known what came of
    /// it.
    pub fn tick(&mut self, now_ms: u64) -> Option<TryJoin> {
        if self.situation != Situation::Exposed || !self.wanted || self.suspended {
            return None;
        }
        let due = |standby: &Standby| standby.not_before_ms <= now_ms;
        let first = self.first.as_deref().and_then(|first| self.find(first));
        let count = self.list.len();
        let turns = (0..count).map(|step| (self.turn + step) % count);
        let at = first.into_iter().chain(turns).find(|at| self.list.get(*at).is_some_and(due))?;
        let standby = self.list.get(at)?.address.clone();
        self.first = None;
        self.turn = (at + 1) % count;
        self.current = Some(standby.clone());
        self.situation = Situation::Trying;
        Some(TryJoin { standby })
    }

    /// The backup, or the one that was nearly it, is none any more.
    fn parted(&mut self, now_ms: u64) {
        match self.situation {
            Situation::Protected { since_ms } => {
                if now_ms.saturating_sub(since_ms) >= self.patience.longest_ms {
                    self.absolve();
                }
                self.heal_or_blame(now_ms);
            }
            // Lost between the promise to protect and its acceptance.
            Situation::Trying => self.heal_or_blame(now_ms),
            Situation::Exposed | Situation::Deciding | Situation::Over => {}
        }
    }

    /// A copy that differed is made good by joining the same standby again: that comes first, and
    /// at once, unless it keeps on happening.
    fn heal_or_blame(&mut self, now_ms: u64) {
        let blameless = self.currently().is_some_and(|standby| standby.failures == 0);
        self.blame(now_ms);
        if self.diverged
            && let Some(standby) = self.currently()
        {
            if blameless {
                standby.not_before_ms = now_ms;
            }
            self.first = self.current.clone();
        }
    }

    fn blame(&mut self, now_ms: u64) {
        let patience = self.patience;
        if let Some(standby) = self.currently() {
            standby.failures = standby.failures.saturating_add(1);
            standby.not_before_ms = now_ms.saturating_add(patience.wait_ms(standby.failures));
        }
    }

    fn absolve(&mut self) {
        if let Some(standby) = self.currently() {
            standby.failures = 0;
        }
    }

    fn currently(&mut self) -> Option<&mut Standby> {
        let at = self.find(self.current.as_deref()?)?;
        self.list.get_mut(at)
    }

    fn find(&self, address: &str) -> Option<usize> {
        self.list.iter().position(|standby| standby.address == address)
    }
}

#[cfg(test)]
#[path = "standbys_tests.rs"]
mod tests;
