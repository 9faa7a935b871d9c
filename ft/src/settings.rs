//! The numbers both replicas work by. The primary chooses them; they travel in the prologue.
//!
//! Why the lease must be shorter than the timeout is argued in `docs/PROTOCOL.md`.

use alloc::{format, string::String};
use serde::{Deserialize, Serialize};

const HOUR_MS: u64 = 3_600_000;

/// When a chunk counts as acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AckMode {
    /// The backup holds it.
    Received,
    /// The backup has executed it and its outputs were the same.
    Verified,
}

/// What a primary joins a backup for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Purpose {
    /// To be protected by it: it takes over if the primary is lost.
    #[default]
    Protection,
    /// To move there and end here: it goes live when the primary yields, and for no other reason.
    Move {
        /// Whether an arbiter decides where the machine is if it has been yielded and the word
        /// that it lives there is lost. Without one nobody goes on by himself then.
        arbiter: bool,
    },
}

impl Purpose {
    /// Whether the machine is to live at the backup and not here.
    #[must_use]
    pub fn is_move(self) -> bool {
        match self {
            Self::Protection => false,
            Self::Move { .. } => true,
        }
    }
}

/// Timers and limits of a pair.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// What the pair is for.
    pub purpose: Purpose,
    /// When a chunk counts as acknowledged.
    pub ack: AckMode,
    /// Milliseconds between two heartbeats.
    pub heartbeat_ms: u64,
    /// Milliseconds of silence after which the peer counts as lost.
    pub timeout_ms: u64,
    /// Milliseconds for which the stream may be silent, or a chunk unacknowledged, while heartbeats
    /// still come.
    pub silence_ms: u64,
    /// Milliseconds that the backup's execution may be behind.
    pub lag_limit_ms: u64,
    /// Milliseconds that an answer of the backup allows the primary to release outputs.
    pub lease_ms: u64,
    /// Milliseconds between two questions to an arbiter that does not answer, at first; it doubles
    /// up to sixteen times that.
    pub arbiter_retry_ms: u64,
    /// Bytes of log that the backup may still have to execute before the machine is stopped.
    pub log_limit_bytes: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            purpose: Purpose::Protection,
            ack: AckMode::Received,
            heartbeat_ms: 50,
            timeout_ms: 500,
            silence_ms: 2_000,
            lag_limit_ms: 10_000,
            lease_ms: 250,
            arbiter_retry_ms: 100,
            log_limit_bytes: 64 << 20,
        }
    }
}

impl Settings {
    /// Whether these numbers can work together.
    ///
    /// # Errors
    ///
    /// A sentence that says which cannot, for the user.
    pub fn check(&self) -> Result<(), String> {
        if self.heartbeat_ms == 0 || self.arbiter_retry_ms == 0 || self.log_limit_bytes == 0 {
            return Err(String::from(
                "heartbeat_ms, arbiter_retry_ms and log_limit_bytes must not be 0",
            ));
        }
        let times = [
            ("timeout_ms", self.timeout_ms),
            ("silence_ms", self.silence_ms),
            ("lag_limit_ms", self.lag_limit_ms),
            ("arbiter_retry_ms", self.arbiter_retry_ms),
        ];
        if let Some((name, value)) = times.into_iter().find(|(_, value)| *value > HOUR_MS) {
            return Err(format!("{name}={value} is more than an hour"));
        }
        if self.silence_ms < self.timeout_ms || self.lag_limit_ms < self.silence_ms {
            return Err(format!(
                "timeout_ms={}, silence_ms={} and lag_limit_ms={} must not fall in that order",
                self.timeout_ms, self.silence_ms, self.lag_limit_ms
            ));
        }
        if self.lease_ms < self.heartbeat_ms.saturating_mul(2) {
            return Err(format!(
                "lease_ms={} must be at least twice heartbeat_ms={}, or outputs would wait for \
                 heartbeats",
                self.lease_ms, self.heartbeat_ms
            ));
        }
        if self.lease_ms.saturating_add(self.heartbeat_ms) > self.timeout_ms {
            return Err(format!(
                "lease_ms={} must be shorter than timeout_ms={} by at least heartbeat_ms={}, or a \
                 stalled primary could still speak when its backup goes live",
                self.lease_ms, self.timeout_ms, self.heartbeat_ms
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_work_together() {
        assert_eq!(Settings::default().check(), Ok(()));
    }

    #[test]
    fn a_lease_as_long_as_the_timeout_is_refused() {
        let settings = Settings { lease_ms: 500, ..Settings::default() };
        assert!(settings.check().unwrap_err().contains("lease_ms=500"));
        let settings = Settings { lease_ms: 60, ..Settings::default() };
        assert!(settings.check().is_err());
        let settings = Settings { heartbeat_ms: 0, ..Settings::default() };
        assert!(settings.check().is_err());
        let settings = Settings { silence_ms: 400, ..Settings::default() };
        assert!(settings.check().unwrap_err().contains("silence_ms=400"));
        let settings = Settings { timeout_ms: u64::MAX, ..Settings::default() };
        assert!(settings.check().is_err());
    }
}
