//! Protection that comes back by itself: the list of standbys, and what a process that has lost its
//! VM to another host does next.
//!
//! Owns the carrying out. Who is joined when is `ft::Standbys`' decision.

use ft::{Happening, Patience, Purpose, Standbys};

use super::method::Relapses;
use super::primary_side::now_ms;
use super::protection::Protection;
use super::{Awaits, Outcome, Shell};
use crate::api::{ApiError, StandbyInfo};
use crate::config::{FtConfig, FtMode, PeerAddress, VmConfig};
use crate::description::Unreplayable;
use crate::error::Error;

/// What a VM's protection needs besides the pair of the moment.
pub(super) struct Succession {
    pub standbys: Standbys,
    /// How this side's VM is to be protected, once somebody has said so.
    ft: Option<FtConfig>,
    /// The VM as its first host described it: without what belongs to this host.
    pub described: Option<VmConfig>,
    /// Why the VM cannot be followed by replay, if that is known.
    pub unreplayable: Option<Unreplayable>,
    /// When its copies differed of late.
    pub relapses: Relapses,
    /// Checkpoints were chosen for it, and no join has begun since.
    pub method_changed: bool,
    /// The VM was protected at least once, and is to be again whenever it is not.
    proven: bool,
    /// The join under way was ordered by somebody who waits for it.
    ordered: bool,
    /// The backup was dismissed so that another one takes its place: that it is gone is no failure.
    pub moving_backup: bool,
    /// Standbys that were said to be out of reach, so that each is said once.
    complained: bool,
}

impl Default for Succession {
    fn default() -> Self {
        Self {
            standbys: Standbys::new(Patience::default()),
            ft: None,
            described: None,
            unreplayable: None,
            relapses: Relapses::default(),
            method_changed: false,
            proven: false,
            ordered: false,
            moving_backup: false,
            complained: false,
        }
    }
}

impl Succession {
    /// That of a VM that a primary described.
    pub(super) fn of(described: VmConfig, unreplayable: Option<Unreplayable>) -> Self {
        Self { described: Some(described), unreplayable, ..Self::default() }
    }

    /// Whether a standby is being looked for, or will be.
    pub(super) fn is_searching(&self) -> bool {
        self.standbys.is_enabled() && self.standbys.current().is_none()
    }

    /// Whether the join under way is this side's own idea.
    pub(super) fn is_quiet(&self) -> bool {
        !self.ordered
    }
}

impl Shell {
    /// Protects the VM as `ft` says, now and whenever it has no backup.
    pub(super) fn protect(&mut self, ft: &FtConfig, peer: &PeerAddress) -> Result<(), Error> {
        let succession = &mut self.succession;
        // What was tried until now is not what is wanted any more.
        succession.standbys.failed(now_ms());
        replace(&mut succession.standbys, &list_of(ft, peer))?;
        succession.standbys.enable(Some(&peer.to_string()));
        succession.ft = Some(ft.clone());
        succession.ordered = true;
        let sought = match self.seek_next() {
            Ok(false) => Err(Error::Refused(
                "a backup cannot be looked for now: the VM is paused, or about to end".into(),
            )),
            sought => sought.map(drop),
        };
        if sought.is_err() {
            self.give_up_unless_proven();
        }
        sought
    }

    /// Joins whoever is next, if somebody is; whether somebody was.
    fn seek_next(&mut self) -> Result<bool, Error> {
        let Some(next) = self.succession.standbys.tick(now_ms()) else { return Ok(false) };
        let Some(ft) = self.succession.ft.clone() else { return Ok(false) };
        let sought = next
            .standby
            .parse::<PeerAddress>()
            .map_err(|expected| Error::Refused(format!("{} is not {expected}", next.standby)))
            .and_then(|peer| self.seek_backup(&with_peer(&ft, &peer), &peer, Purpose::Protection));
        if sought.is_err() {
            self.succession.standbys.failed(now_ms());
        }
        sought.map(|()| true)
    }

    pub(super) fn tick_succession(&mut self) {
        // A machine that has just taken over goes on first.
        if !self.succession.is_searching() || self.running.is_none() || !self.started {
            return;
        }
        if let Err(error) = self.seek_next() {
            self.join_failed(&error.to_string());
        }
    }

    /// Tells the policy what this side's replica reports.
    pub(super) fn observe(&mut self, happening: &Happening) {
        self.succession.standbys.observe(now_ms(), happening);
        if matches!(happening, Happening::Protected { .. }) && self.moving.is_none() {
            let succession = &mut self.succession;
            succession.proven = succession.ft.as_ref().is_some_and(|ft| ft.reprotect);
            if !succession.proven {
                succession.standbys.disable();
            }
            self.succession.ordered = false;
            self.succession.complained = false;
        }
    }

    /// The join did not come about. A VM that runs runs on; one that was to start protected does
    /// not start.
    pub(super) fn join_failed(&mut self, why: &str) {
        if self.moving.is_some() {
            return self.end_move(why);
        }
        self.succession.standbys.failed(now_ms());
        let said = std::mem::replace(&mut self.succession.complained, true);
        if self.succession.ordered || !said {
            self.statistics.happened(format!("Joining failed: {why}"));
        } else {
            log::debug!("joining failed again: {why}");
        }
        self.succession.ordered = false;
        self.refuse_protection(why);
        self.give_up_unless_proven();
        let starting = self.primary_side().is_some_and(|side| side.starting);
        if starting {
            self.outcome = Some(Outcome::Badly(why.to_owned()));
        }
    }

    /// What was ordered and never worked is not tried behind the back of who ordered it.
    fn give_up_unless_proven(&mut self) {
        if !self.succession.proven {
            self.succession.standbys.disable();
        }
    }

    /// This side took the VM over from `primary_address`: it is its turn to look for standbys.
    pub(super) fn inherit(&mut self, ft: FtConfig, primary_address: Option<&PeerAddress>) {
        if !ft.reprotect {
            return;
        }
        let mut list: Vec<PeerAddress> = Vec::new();
        let own = primary_peer(&ft).cloned();
        for standby in primary_address.into_iter().chain(&ft.standbys) {
            if Some(standby) != own.as_ref() && !list.contains(standby) {
                list.push(standby.clone());
            }
        }
        let succession = &mut self.succession;
        if list.is_empty() || replace(&mut succession.standbys, &list).is_err() {
            return;
        }
        succession.standbys.enable(None);
        succession.ft = Some(FtConfig { standbys: list, ..ft });
        succession.proven = true;
    }

    /// Waits for the next primary where this side's VM was, if the user gave it a place to wait at.
    /// Whether it does.
    pub(super) fn become_standby(&mut self) -> bool {
        let ft = self.succession.ft.as_ref().or(self.invocation.ft.as_ref());
        let Some((ft, listen)) = ft.and_then(|ft| Some((ft.clone(), ft.listen()?))) else {
            return false;
        };
        if self.terminating {
            return false;
        }
        let backup = FtConfig {
            log_buffer: ft.log_buffer,
            udp_port: self.own_udp_port(),
            arbiter: ft.arbiter,
            ..FtConfig::of(FtMode::Backup { listen })
        };
        self.config = None;
        self.booted = false;
        match self.await_primary(&backup, listen) {
            Ok(()) => true,
            Err(error) => {
                log::error!("{error}");
                false
            }
        }
    }

    /// The heartbeats' port that a backup of this process was told to use.
    fn own_udp_port(&self) -> Option<u16> {
        let ft = self.invocation.ft.as_ref()?;
        matches!(ft.mode, FtMode::Backup { .. }).then_some(ft.udp_port).flatten()
    }

    /// Replaces the list of standbys of a VM that is, or was, protected.
    pub(super) fn ft_standbys(&mut self, list: &[PeerAddress]) -> Result<(), ApiError> {
        self.must_run()?;
        self.must_be_ours()?;
        let Some(ft) = &mut self.succession.ft else {
            return Err(ApiError::failed(
                "The VM was never protected, so it has no standbys; protect it first \
                 (vm.ft-enable takes standby, too).",
            ));
        };
        let refused = |error: Error| ApiError::bad_request(error.to_string());
        replace(&mut self.succession.standbys, list).map_err(refused)?;
        ft.standbys = list.to_vec();
        Ok(())
    }

    /// Dismisses the backup and joins another standby instead. The VM runs on meanwhile.
    pub(super) fn ft_move_backup(&mut self, to: &PeerAddress) -> Result<(), ApiError> {
        self.must_run()?;
        self.must_stay()?;
        if !self.primary_side().is_some_and(|side| side.talks()) {
            return Err(ApiError::failed(
                "The VM is not protected now (see ft-info), so there is no backup to move; \
                 vm.ft-enable protects it.",
            ));
        }
        let standbys = &mut self.succession.standbys;
        let address = to.to_string();
        if standbys.current() == Some(address.as_str()) {
            return Err(ApiError::failed(format!("The backup is at {address} already.")));
        }
        if !standbys.list().iter().any(|standby| standby.address == address) {
            standbys.add(&address).map_err(|error| ApiError::failed(format!("{error}.")))?;
        }
        standbys.enable(Some(&address));
        self.succession.ordered = true;
        self.succession.moving_backup = true;
        self.dismiss_backup().inspect_err(|_| self.succession.moving_backup = false)
    }

    /// Whoever answers the connection that is being made is not joined any more.
    pub(super) fn cancel_search(&mut self) {
        self.succession.standbys.failed(now_ms());
        if let Some(side) = self.primary_side() {
            side.connecting = false;
        }
        self.refuse_protection("the join was cancelled (vm.ft-disable)");
    }

    /// Whether the VM runs on its own, and no backup is being joined.
    pub(super) fn is_unprotected(&mut self) -> bool {
        matches!(self.protection, Protection::None)
            || self.primary_side().is_some_and(|side| side.is_solo())
    }

    /// Ends a search that has found nobody yet; whether there was one to end.
    pub(super) fn end_search(&mut self) -> bool {
        let searching = self.succession.is_searching();
        self.succession.standbys.disable();
        searching
    }

    /// The standbys as `ft-info` shows them.
    pub(super) fn standby_infos(&self) -> Vec<StandbyInfo> {
        let standbys = &self.succession.standbys;
        let now_ms = now_ms();
        let info = |standby: &ft::Standby| StandbyInfo {
            address: standby.address.clone(),
            current: standbys.current() == Some(standby.address.as_str()),
            failures: standby.failures,
            retry_in_ms: standby.not_before_ms.saturating_sub(now_ms),
        };
        standbys.list().iter().map(info).collect()
    }

    /// Who waits for a backup to be moved hears of it when the VM is protected again.
    pub(super) fn answer_protected(&mut self) {
        self.answer(Awaits::Protected, &Ok(()));
    }

    /// Whether the VM may be protected anew: it is unprotected, and what goes on is at most this
    /// side's own search.
    pub(super) fn may_protect(&self) -> bool {
        match &self.protection {
            Protection::None => true,
            Protection::Recording(_) | Protection::Replaying(_) => false,
            Protection::Primary(side) => {
                side.is_solo() || (side.connecting && self.succession.is_quiet())
            }
            Protection::Backup(side) => side.is_live(),
        }
    }
}

impl Shell {
    /// Somebody orders the very join that this side has begun by itself: it is theirs from now on.
    pub(super) fn adopt_join(&mut self, ft: &FtConfig) -> bool {
        let under_way = self.primary_side().is_some_and(|side| !side.is_solo() && !side.talks());
        let wanted = primary_peer(ft).map(ToString::to_string);
        let as_wanted =
            self.succession.ft.as_ref().is_some_and(|current| current.method == ft.method);
        let same = as_wanted && wanted.as_deref() == self.succession.standbys.current();
        if !under_way || !same || self.succession.ordered {
            return false;
        }
        self.succession.ordered = true;
        true
    }
}

fn primary_peer(ft: &FtConfig) -> Option<&PeerAddress> {
    match &ft.mode {
        FtMode::Primary { peer, .. } => Some(peer),
        FtMode::Backup { .. } | FtMode::Record { .. } | FtMode::Replay { .. } => None,
    }
}

fn with_peer(ft: &FtConfig, peer: &PeerAddress) -> FtConfig {
    let mode = FtMode::Primary { peer: peer.clone(), listen: ft.listen() };
    FtConfig { mode, ..ft.clone() }
}

/// The peer, then the others.
fn list_of(ft: &FtConfig, peer: &PeerAddress) -> Vec<PeerAddress> {
    let others = ft.standbys.iter().filter(|standby| *standby != peer);
    std::iter::once(peer).chain(others).cloned().collect()
}

fn replace(standbys: &mut Standbys, list: &[PeerAddress]) -> Result<(), Error> {
    let addresses: Vec<String> = list.iter().map(ToString::to_string).collect();
    standbys
        .replace(addresses.iter().map(String::as_str))
        .map_err(|error| Error::Refused(error.to_string()))
}
