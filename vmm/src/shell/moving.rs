//! A VM that moves to another VMM for good, seen from the side that it leaves: Cloud Hypervisor's
//! `vm.send-migration`.
//!
//! Owns the order and its answer. The move itself is a join (`primary`) and a handover
//! (`farewell`): the receiver is a backup that takes the VM over by the word alone. What is done when that word's
//! answer is lost is `ft::Primary`'s decision.

use std::time::Instant;

use ft::{Happening, PrimaryState, Purpose};

use super::primary_side::{PrimarySide, now_ms};
use super::protection::Protection;
use super::{Awaits, Shell};
use crate::api::ApiError;
use crate::config::{FtConfig, FtMode, FtTimings, PeerAddress, SendMigration};
use crate::error::Error;

/// Silence that ends a move. Longer than a pair's default: nobody waits for a takeover, and a
/// receiver that is counted as lost too early may leave the VM where only its user can find it.
const TIMEOUT_MS: u64 = 3_000;

/// A move under way.
pub(super) struct Moving {
    destination: PeerAddress,
    /// When the copy is given up.
    deadline: Instant,
    /// The VM was not protected before, and is not to look as if it had been.
    was_plain: bool,
    /// It looked for a backup by itself before, and does so again if it stays.
    searched: bool,
    /// Why it stays, once that is known.
    why: Option<String>,
}

impl Shell {
    /// Looks for the receiver; the rest follows by itself.
    pub(super) fn send_migration(&mut self, order: &SendMigration) -> Result<(), ApiError> {
        self.must_run()?;
        self.must_be_ours()?;
        if let Some(moving) = &self.moving {
            let destination = &moving.destination;
            return Err(ApiError::failed(format!("The VM is moving to {destination} already.")));
        }
        if self.paused {
            return Err(ApiError::failed(
                "The VM is paused, and would run at its destination; resume it first (vm.resume).",
            ));
        }
        if !self.may_protect() {
            return Err(ApiError::failed(
                "The VM is protected, joining or recorded; end that first (vm.ft-disable), or hand \
                 it to its backup (vm.ft-failover).",
            ));
        }
        self.begin_move(order).map_err(|error| ApiError::failed(format!("{error}.")))
    }

    fn begin_move(&mut self, order: &SendMigration) -> Result<(), Error> {
        let peer = order.destination.clone();
        let ft = FtConfig {
            arbiter: order.arbiter.clone(),
            reprotect: false,
            timings: FtTimings { timeout_ms: TIMEOUT_MS, ..FtTimings::default() },
            ..FtConfig::of(FtMode::Primary { peer: peer.clone(), listen: None })
        };
        let standbys = &mut self.succession.standbys;
        let searched = standbys.is_enabled();
        standbys.failed(now_ms());
        standbys.disable();
        let was_plain = matches!(self.protection, Protection::None);
        let purpose = Purpose::Move { arbiter: order.arbiter.is_some() };
        let sought = self.seek_backup(&ft, &peer, purpose);
        match sought {
            Ok(()) => {
                self.statistics.happened(format!("Moving to {peer}"));
                self.moving = Some(Moving {
                    destination: peer,
                    deadline: Instant::now() + order.timeout,
                    was_plain,
                    searched,
                    why: None,
                });
            }
            Err(_) if searched => self.succession.standbys.enable(None),
            Err(_) => {}
        }
        sought
    }

    /// Whether it is not known where the VM is.
    pub(super) fn is_undecided(&self) -> bool {
        match &self.protection {
            Protection::Primary(side) => side.primary.is_undecided(),
            Protection::None
            | Protection::Recording(_)
            | Protection::Replaying(_)
            | Protection::Backup(_) => false,
        }
    }

    /// What the primary of a move reports. Whether this was one.
    pub(super) fn on_move_happening(&mut self, happening: &Happening) -> bool {
        let Some(moving) = &mut self.moving else { return false };
        match happening {
            Happening::Protected { .. } => {
                if let Err(error) = self.begin_handover() {
                    log::error!("{error}");
                }
            }
            // What somebody cancelled has its reason already.
            Happening::JoinFailed { why } => {
                moving.why.get_or_insert_with(|| why.clone());
            }
            Happening::Diverged(why) => {
                moving.why.get_or_insert_with(|| format!("its copy differed: {why}"));
            }
            Happening::Solo { why, .. } => {
                let why = moving.why.take().unwrap_or_else(|| why.to_string());
                let destination = &moving.destination;
                let why = format!("{destination} did not take it: {why}");
                self.end_move(&why);
            }
            Happening::PeerLost(why) => moving.why = Some(why.to_string()),
            Happening::Undecided => self.ask_the_user(),
            Happening::Joining
            | Happening::Healed
            | Happening::ArbiterUnreachable
            | Happening::Live { .. }
            | Happening::Halted(_)
            | Happening::Stalled { .. }
            | Happening::Paused { .. } => {}
        }
        true
    }

    /// The VM stays. It runs on as it did before.
    pub(super) fn end_move(&mut self, why: &str) {
        let Some(moving) = self.moving.take() else { return };
        self.statistics.happened(format!("The VM did not move: {why}"));
        if moving.was_plain {
            self.leave_protection();
        } else if let Protection::Primary(side) = &mut self.protection {
            side.connecting = false;
            side.close_channel(&self.poller);
        }
        if moving.searched {
            self.succession.standbys.enable(None);
        }
        let sentence = format!("The VM did not move, and runs on here: {why}.");
        self.answer(Awaits::Moved, &Err(ApiError::failed(sentence)));
    }

    /// The VM was yielded and the word that it lives there did not come.
    fn ask_the_user(&mut self) {
        let Some(moving) = &mut self.moving else { return };
        self.paused = true;
        let why = moving.why.take().unwrap_or_default();
        let destination = &moving.destination;
        let sentence = format!(
            "The VM was handed to {destination}, but the word that it lives there did not come \
             ({why}). It stays paused here. Look there (vm.info): if it is Running, end this VMM; \
             if that VMM has no VM any more, or has ended, vm.resume lets it go on here. Never let \
             it run on both."
        );
        log::error!("{sentence}");
        self.answer(Awaits::Moved, &Err(ApiError::failed(sentence)));
    }

    /// The user says that the VM is not at its destination.
    pub(super) fn reclaim(&mut self) -> Result<(), ApiError> {
        let Some(side) = self.primary_side() else { return Ok(()) };
        let refused = |error: String| ApiError::failed(format!("{error}."));
        let actions = side.primary.reclaim(now_ms()).map_err(|error| refused(error.to_string()))?;
        self.act_primary(actions).map_err(|error| refused(error.to_string()))
    }

    /// A copy that takes too long is given up.
    pub(super) fn tick_move(&mut self) {
        let late = self.moving.as_ref().is_some_and(|moving| Instant::now() >= moving.deadline);
        if late && self.primary_side().is_some_and(|side| is_cancellable(side)) {
            let _ = self.cancel_move("the time for it is over (timeout_s)");
        }
    }

    /// Gives a move up that has not come to its last step.
    pub(super) fn cancel_move(&mut self, why: &str) -> Result<(), ApiError> {
        let refused =
            || ApiError::failed("The VM is being handed over; that cannot be stopped any more.");
        let side = self.primary_side().ok_or_else(refused)?;
        if !is_cancellable(side) {
            return Err(refused());
        }
        if side.connecting || side.primary.state() == PrimaryState::Solo {
            self.end_move(why);
            return Ok(());
        }
        if let Some(moving) = &mut self.moving {
            moving.why = Some(why.to_owned());
        }
        self.dismiss_backup()
    }

    /// Whether the VM is on its way, for those who would do something else with it.
    pub(super) fn must_stay(&self) -> Result<(), ApiError> {
        let Some(moving) = &self.moving else { return Ok(()) };
        let destination = &moving.destination;
        Err(ApiError::failed(match self.is_undecided() {
            false => format!(
                "The VM is moving to {destination}; wait for that, or cancel it (vm.ft-disable)."
            ),
            true => format!(
                "It is not known whether the VM lives at {destination}: look there (vm.info); if \
                 it does not, vm.resume lets it go on here."
            ),
        }))
    }
}

/// Whether the receiver has not been promised anything yet.
fn is_cancellable(side: &PrimarySide) -> bool {
    match side.primary.state() {
        PrimaryState::Solo | PrimaryState::Greeting | PrimaryState::Copying => true,
        PrimaryState::Protecting
        | PrimaryState::Protected
        | PrimaryState::Leaving
        | PrimaryState::Yielding
        | PrimaryState::Holding
        | PrimaryState::Halted => false,
    }
}
