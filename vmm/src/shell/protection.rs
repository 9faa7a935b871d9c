//! Who else takes part in a VM's life: nobody, a log file, or another replica.
//!
//! Owns the switch between them, and what the API may ask in each case. Log files are `logged`'s
//! matter; the pair is `primary`'s and `backup`'s.

use super::backup_side::BackupSide;
use super::logged::ReplayedLog;
use super::primary_side::PrimarySide;
use super::{Awaits, Outcome, Poller, Shell, Source};
use crate::api::ApiError;
use crate::config::{FtConfig, FtMode};
use crate::engine::{DivergenceReport, Ended, Message};
use crate::error::Error;
use crate::logfile::LogWriter;

/// Who else takes part.
pub(super) enum Protection {
    /// Nobody.
    None,
    /// A log file that is written.
    Recording(LogWriter),
    /// A log file that is followed.
    Replaying(Box<ReplayedLog>),
    /// This side runs the VM; a backup follows, or is to.
    Primary(Box<PrimarySide>),
    /// This side follows a primary, or waits for one.
    Backup(Box<BackupSide>),
}

impl Protection {
    /// How long the event loop may sleep, ms, where it has timers to look after.
    pub(super) fn tick_ms(&self) -> Option<u64> {
        match self {
            Self::None | Self::Replaying(_) | Self::Recording(_) => None,
            Self::Primary(side) => side.tick_ms(),
            Self::Backup(side) => side.tick_ms(),
        }
    }
}

impl Shell {
    /// Starts to log a VM of this process: to a file, or to a backup.
    pub(super) fn begin_logging(&mut self, ft: &FtConfig) -> Result<(), Error> {
        match &ft.mode {
            FtMode::Record { path } => self.begin_recording(ft, path),
            FtMode::Primary { peer, .. } => self.protect(ft, peer),
            FtMode::Backup { .. } | FtMode::Replay { .. } => Err(Error::Refused(
                "a VM that runs here can be a primary or be recorded; it cannot follow".into(),
            )),
        }
    }

    /// Starts to follow a log: a file's, or a primary's.
    pub(super) fn begin_following(&mut self, ft: &FtConfig) -> Result<(), Error> {
        match &ft.mode {
            FtMode::Replay { path } => self.begin_replay(path),
            FtMode::Backup { listen } => self.await_primary(ft, *listen),
            FtMode::Primary { .. } | FtMode::Record { .. } => {
                Err(Error::Refused("only a backup or a replay follows a log".into()))
            }
        }
    }

    /// A descriptor that belongs to the pair is ready.
    pub(super) fn on_protection(&mut self, source: Source) -> Result<(), Error> {
        match &self.protection {
            Protection::Primary(_) => self.on_primary_ready(source),
            Protection::Backup(_) => self.on_backup_ready(source),
            Protection::None | Protection::Recording(_) | Protection::Replaying(_) => Ok(()),
        }
    }

    pub(super) fn tick_protection(&mut self) -> Result<(), Error> {
        match &self.protection {
            Protection::Primary(_) => self.tick_primary(),
            Protection::Backup(_) => self.tick_backup(),
            Protection::None | Protection::Recording(_) | Protection::Replaying(_) => Ok(()),
        }
    }

    /// Refuses what only whoever runs the VM for the world may do.
    pub(super) fn must_be_ours(&self) -> Result<(), ApiError> {
        let ours = match &self.protection {
            Protection::None | Protection::Recording(_) | Protection::Primary(_) => true,
            Protection::Replaying(_) => false,
            Protection::Backup(side) => side.is_live(),
        };
        if ours && self.is_undecided() {
            return self.must_stay();
        }
        if ours {
            return Ok(());
        }
        Err(ApiError::failed("This VM follows a log; nothing but the log may change it."))
    }

    pub(super) fn ft_enable(&mut self, ft: &FtConfig) -> Result<(), ApiError> {
        self.must_run()?;
        self.must_stay()?;
        if self.adopt_join(ft) {
            return Ok(());
        }
        if !self.may_protect() {
            return Err(ApiError::failed(
                "The VM is protected, joining or recorded already; disable that first \
                 (vm.ft-disable).",
            ));
        }
        self.begin_logging(ft).map_err(|error| ApiError::failed(error.to_string()))
    }

    pub(super) fn ft_disable(&mut self) -> Result<(), ApiError> {
        self.must_run()?;
        if self.moving.is_some() {
            return self.cancel_move("it was cancelled (vm.ft-disable)");
        }
        self.succession.standbys.disable();
        match &self.protection {
            Protection::None => {
                Err(ApiError::failed("The VM is not protected, so there is nothing to disable."))
            }
            Protection::Recording(_) => {
                self.send(Message::StopRecording(Some(ft::EndReason::Stopped)));
                Ok(())
            }
            Protection::Replaying(_) => {
                Err(ApiError::failed("A replay cannot be disabled; end the VMM instead."))
            }
            Protection::Primary(side) if side.connecting && !side.starting => {
                self.cancel_search();
                Ok(())
            }
            Protection::Primary(_) => self.dismiss_backup(),
            Protection::Backup(_) => {
                Err(ApiError::failed("This is the backup; protection is ended at the primary."))
            }
        }
    }

    pub(super) fn ft_failover(&mut self) -> Result<(), ApiError> {
        self.must_run()?;
        self.must_stay()?;
        match &self.protection {
            Protection::Primary(_) => self.begin_handover(),
            Protection::None | Protection::Recording(_) | Protection::Replaying(_) => {
                Err(ApiError::failed("The VM has no backup that it could be handed to."))
            }
            Protection::Backup(_) => Err(ApiError::failed(
                "This is the backup; a planned failover is ordered at the primary.",
            )),
        }
    }

    /// The VM is to end from here, on purpose, or is gone.
    pub(super) fn end_protection(&mut self) {
        match &self.protection {
            Protection::None | Protection::Replaying(_) => {}
            Protection::Recording(_) => {
                self.send(Message::StopRecording(Some(ft::EndReason::Stopped)));
                self.drain_engine();
            }
            Protection::Primary(_) => self.end_pair(),
            Protection::Backup(_) => {}
        }
        self.leave_protection();
    }

    /// Whether the end of the engine is not the end of this process's work.
    pub(super) fn protection_outlives(&mut self, ended: &Ended) -> bool {
        match &self.protection {
            Protection::None | Protection::Recording(_) | Protection::Replaying(_) => false,
            Protection::Primary(_) => {
                self.primary_machine_ended(ended);
                false
            }
            Protection::Backup(_) => self.backup_machine_ended(ended),
        }
    }

    pub(super) fn on_diverged(&mut self, divergence: &DivergenceReport) {
        match &self.protection {
            Protection::Replaying(_) => {
                self.outcome = Some(Outcome::Badly(format!(
                    "the replay diverged from its log\n{}",
                    divergence.text
                )));
            }
            Protection::Backup(_) => self.report_divergence(divergence),
            Protection::None | Protection::Recording(_) | Protection::Primary(_) => {}
        }
    }

    /// Lets go of whoever takes part. A log file is made durable.
    pub(super) fn leave_protection(&mut self) {
        match std::mem::replace(&mut self.protection, Protection::None) {
            Protection::None | Protection::Replaying(_) => {}
            Protection::Recording(mut log) => {
                if let Err(error) = log.finish() {
                    log::error!("{error}");
                    self.failure = Some(error.to_string());
                }
            }
            Protection::Primary(side) => side.close(&self.poller),
            Protection::Backup(side) => side.close(&self.poller),
        }
        let ended = "This VMM was told to wait for no VM any more.";
        self.answer(Awaits::Received, &Err(ApiError::failed(ended)));
    }

    /// Answers who waits for protection that it did not come about.
    pub(super) fn refuse_protection(&mut self, why: &str) {
        self.answer(Awaits::Protected, &Err(ApiError::failed(why)));
    }

    pub(super) fn poller(&self) -> &Poller {
        &self.poller
    }
}
