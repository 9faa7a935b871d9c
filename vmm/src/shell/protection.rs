//! Who else takes part in a VM's life: nobody, a log file, or another replica.
//!
//! Owns the switch between them, and what the API may ask in each case. Log files are `logged`'s
//! matter; the pair is `paired`'s.

use super::logged::ReplayedLog;
use super::{Poller, Shell, Source};
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
}

impl Protection {
    /// Whether timers run that the event loop has to look after.
    pub(super) fn needs_ticks(&self) -> bool {
        match self {
            Self::None | Self::Replaying(_) | Self::Recording(_) => false,
        }
    }
}

impl Shell {
    /// Starts to log a VM of this process: to a file, or to a backup.
    pub(super) fn begin_logging(&mut self, ft: &FtConfig) -> Result<(), Error> {
        match &ft.mode {
            FtMode::Record { path } => self.begin_recording(ft, path),
            FtMode::Primary { .. } => Err(Error::Refused("not yet".into())),
            FtMode::Backup { .. } | FtMode::Replay { .. } => Err(Error::Refused(
                "a VM that runs here can be a primary or be recorded; it cannot follow".into(),
            )),
        }
    }

    /// Starts to follow a log: a file's, or a primary's.
    pub(super) fn begin_following(&mut self, ft: &FtConfig) -> Result<(), Error> {
        match &ft.mode {
            FtMode::Replay { path } => self.begin_replay(path),
            FtMode::Backup { .. } => Err(Error::Refused("not yet".into())),
            FtMode::Primary { .. } | FtMode::Record { .. } => {
                Err(Error::Refused("only a backup or a replay follows a log".into()))
            }
        }
    }

    /// A descriptor that belongs to the pair is ready.
    pub(super) fn on_protection(&mut self, _source: Source) -> Result<(), Error> {
        Ok(())
    }

    pub(super) fn tick_protection(&mut self) -> Result<(), Error> {
        Ok(())
    }

    /// Refuses what only whoever runs the VM for the world may do.
    pub(super) fn must_be_ours(&self) -> Result<(), ApiError> {
        match &self.protection {
            Protection::None | Protection::Recording(_) => Ok(()),
            Protection::Replaying(_) => Err(ApiError::failed(
                "This VM follows a log; nothing but the log may change it.",
            )),
        }
    }

    pub(super) fn ft_enable(&mut self, ft: FtConfig) -> Result<(), ApiError> {
        self.must_run()?;
        if !matches!(self.protection, Protection::None) {
            return Err(ApiError::failed(
                "The VM is protected or recorded already; disable that first (vm.ft-disable).",
            ));
        }
        self.begin_logging(&ft).map_err(|error| ApiError::failed(error.to_string()))
    }

    pub(super) fn ft_disable(&mut self) -> Result<(), ApiError> {
        self.must_run()?;
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
        }
    }

    pub(super) fn ft_failover(&mut self) -> Result<(), ApiError> {
        self.must_run()?;
        Err(ApiError::failed("The VM has no backup that it could be handed to."))
    }

    /// Whether the end of the engine is not the end of the VM for whoever takes part.
    pub(super) fn protection_outlives(&mut self, _ended: &Ended) -> bool {
        false
    }

    /// The VM was ended from here, on purpose.
    pub(super) fn end_protection(&mut self) {
        self.leave_protection();
    }

    pub(super) fn on_diverged(&mut self, divergence: &DivergenceReport) {
        if matches!(self.protection, Protection::Replaying(_)) {
            self.outcome = Some(super::Outcome::Badly(format!(
                "the replay diverged from its log {}",
                divergence.text
            )));
        }
    }

    /// Lets go of whoever takes part. A log file is made durable.
    pub(super) fn leave_protection(&mut self) {
        match std::mem::replace(&mut self.protection, Protection::None) {
            Protection::None | Protection::Replaying(_) => {}
            Protection::Recording(mut log) => {
                if let Err(error) = log.finish() {
                    log::error!("{error}");
                    self.outcome = Some(super::Outcome::Badly(error.to_string()));
                }
            }
        }
    }

    pub(super) fn poller(&self) -> &Poller {
        &self.poller
    }
}
