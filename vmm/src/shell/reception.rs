//! A VM that moves here for good: Cloud Hypervisor's `vm.receive-migration`.
//!
//! Owns the order and its answer. What is done is a backup's work (`backup`), which follows until
//! it is told to go on; then nobody is left to follow, and this is a plain VM.

use std::time::{Duration, Instant};

use super::protection::Protection;
use super::{Awaits, Shell};
use crate::api::ApiError;
use crate::config::{FtConfig, FtMode, HostOverrides, ReceiveMigration};
use crate::error::Error;

/// The sender hangs up once it has heard that the VM lives here; this long it is waited for.
const FAREWELL: Duration = Duration::from_secs(5);

/// What a backup keeps that waits for a VM to move here.
#[derive(Default)]
pub(super) struct Reception {
    /// What of this host stands in for the VM's devices.
    pub overrides: HostOverrides,
    /// What had come of the VM was thrown away.
    dropped: bool,
    /// The VM lives here: until when the sender is waited for.
    farewell_until: Option<Instant>,
}

impl Shell {
    /// Waits for a VM.
    pub(super) fn receive_migration(&mut self, order: &ReceiveMigration) -> Result<(), ApiError> {
        if !matches!(self.protection, Protection::None) {
            return Err(ApiError::failed("This VMM waits for a VM, or has one, already."));
        }
        if self.config.is_some() || self.running.is_some() {
            return Err(ApiError::failed(
                "There is a VM already; delete it first (vm.delete), or receive in another VMM.",
            ));
        }
        let ft = FtConfig::of(FtMode::Backup { listen: order.listen });
        self.await_primary(&ft, order.listen)
            .map_err(|error| ApiError::failed(format!("{error}.")))?;
        if let Some(side) = self.backup_side() {
            let overrides = order.overrides.clone();
            side.reception = Some(Reception { overrides, ..Reception::default() });
        }
        Ok(())
    }

    /// Refuses a primary that wants something else than this side waits for.
    pub(super) fn must_be_awaited(&self, moves: bool) -> Result<(), Error> {
        let receives = self.receives();
        if receives == moves {
            return Ok(());
        }
        Err(Error::Refused(if receives {
            "a VM that moves is awaited there (vm.receive-migration), not one to protect; that \
             needs a VMM with --ft role=backup"
                .into()
        } else {
            "a VM to protect is awaited there (--ft role=backup), not one that moves; that needs a \
             VMM that was told vm.receive-migration"
                .into()
        }))
    }

    /// Whether this side waits for a VM to move here, or is getting one.
    pub(super) fn receives(&self) -> bool {
        match &self.protection {
            Protection::Backup(side) => side.reception.is_some(),
            Protection::None
            | Protection::Recording(_)
            | Protection::Replaying(_)
            | Protection::Primary(_) => false,
        }
    }

    fn reception(&mut self) -> Option<&mut Reception> {
        self.backup_side()?.reception.as_mut()
    }

    /// What had come of the VM is gone.
    pub(super) fn note_dropped(&mut self) {
        if let Some(reception) = self.reception() {
            reception.dropped = true;
        }
    }

    /// It did not come about: one that was refused can be followed by another, one that was lost
    /// ends the waiting.
    pub(super) fn on_reception_failed(&mut self, why: &str) {
        if self.reception().is_some_and(|reception| reception.dropped) {
            self.end_reception(why);
        }
    }

    /// Nobody is waited for any more.
    pub(super) fn end_reception(&mut self, why: &str) {
        if !self.receives() {
            return;
        }
        self.statistics.happened(format!("The VM did not move here: {why}"));
        let sentence = format!("The VM did not move here: {why}.");
        self.answer(Awaits::Received, &Err(ApiError::failed(sentence)));
        self.leave_protection();
    }

    /// The VM lives here; its sender is to hear of it. Whether there is one to wait for.
    pub(super) fn begin_farewell(&mut self) -> bool {
        let until = Instant::now() + FAREWELL;
        let Some(reception) = self.reception() else { return false };
        reception.farewell_until = Some(until);
        true
    }

    /// A sender that has hung up is not needed any more: what is left is a plain VM.
    pub(super) fn tick_reception(&mut self) {
        if !self.started {
            return;
        }
        let Some(side) = self.backup_side() else { return };
        let gone = side.has_hung_up();
        let over = side.reception.as_ref().and_then(|reception| reception.farewell_until);
        if over.is_some_and(|until| gone || Instant::now() >= until) {
            self.leave_protection();
        }
    }
}
