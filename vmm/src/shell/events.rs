//! The event monitor: one JSON object a line for everything that happens to the VM.
//!
//! Owns the format, which is Cloud Hypervisor's: time since the start, source, event, properties.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::FromRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::time::Instant;

use ft::Happening;
use serde_json::{Value, json};

use crate::api::FtState;
use crate::cli::EventMonitor;
use crate::error::Error;

/// Where events go, if anywhere.
pub(super) struct Events {
    file: Option<File>,
    started: Instant,
}

impl Events {
    /// Opens what `--event-monitor` names.
    pub(super) fn open(monitor: Option<&EventMonitor>) -> Result<Self, Error> {
        let file = match monitor {
            None => None,
            Some(EventMonitor::Path(path)) => {
                // A pipe that nobody reads must not make this process wait.
                let file = OpenOptions::new()
                    .create(true)
                    .append(true)
                    .custom_flags(libc::O_NONBLOCK)
                    .open(path);
                Some(file.map_err(|source| Error::File {
                    what: "The event monitor cannot be opened:",
                    path: path.clone(),
                    source,
                })?)
            }
            Some(EventMonitor::Fd(fd)) => Some(inherited(*fd)),
        };
        Ok(Self { file, started: Instant::now() })
    }

    /// Reports one event.
    pub(super) fn report(&mut self, source: &str, event: &str, properties: &Value) {
        let Some(file) = &mut self.file else { return };
        let passed = self.started.elapsed();
        let line = json!({
            "timestamp": { "secs": passed.as_secs(), "nanos": passed.subsec_nanos() },
            "source": source,
            "event": event,
            "properties": properties,
        });
        if let Err(error) = writeln!(file, "{line}\n") {
            log::warn!("the event monitor took no event: {error}");
            self.file = None;
        }
    }
}

/// What a happening of the pair is called, and what is told with it; `state` is this side's since.
/// `None` for what the engine is to confirm first.
pub(super) fn of_pair(happening: &Happening, state: FtState) -> Option<(&'static str, Value)> {
    Some(match happening {
        Happening::Joining => ("joining", json!({})),
        Happening::JoinFailed { why } => ("join-failed", json!({ "why": why })),
        Happening::Protected { .. } => ("protected", json!({})),
        Happening::PeerLost(why) => {
            // A join that breaks is told of as one that failed.
            let primary = state == FtState::Holding;
            (if primary { "holding" } else { "taking-over" }, json!({ "why": why.to_string() }))
        }
        Happening::ArbiterUnreachable => ("arbiter-unreachable", json!({})),
        Happening::Undecided => ("undecided", json!({})),
        Happening::Solo { why, .. } => ("unprotected", json!({ "why": why.to_string() })),
        Happening::Halted(why) => ("halted", json!({ "why": why.to_string() })),
        Happening::Stalled { bytes } => ("stalled", json!({ "bytes": bytes })),
        Happening::Paused { paused_ms } => ("was-stopped", json!({ "paused_ms": paused_ms })),
        Happening::Diverged(why) => ("diverged", json!({ "why": why.to_string() })),
        Happening::Healed => ("healed", json!({})),
        Happening::Live { .. } => return None,
    })
}

#[expect(unsafe_code, reason = "a descriptor that the user handed over by number")]
fn inherited(fd: i32) -> File {
    // SAFETY: the user gave this descriptor to the process for this one use; nothing else in the
    // process knows its number.
    unsafe { File::from_raw_fd(fd) }
}

#[cfg(test)]
mod tests {
    use ft::{Divergence, HaltReason, LossCause, SoloReason};

    use super::*;

    fn told(happening: &Happening, state: FtState) -> (&'static str, Value) {
        of_pair(happening, state).unwrap()
    }

    #[test]
    fn each_change_of_a_protection_has_an_event_of_its_own() {
        let why = || "gone".to_owned();
        let lost = Happening::PeerLost(LossCause::Closed);
        let reason = HaltReason::Lost { generation: 2 };
        let divergence = Divergence::Log { moment: 7, why: why() };
        for (happening, state, event) in [
            (Happening::Joining, FtState::Joining, "joining"),
            (Happening::JoinFailed { why: why() }, FtState::Solo, "join-failed"),
            (Happening::Protected { generation: 2 }, FtState::Protected, "protected"),
            (lost.clone(), FtState::Holding, "holding"),
            (lost, FtState::TakingOver, "taking-over"),
            (Happening::ArbiterUnreachable, FtState::Holding, "arbiter-unreachable"),
            (Happening::Undecided, FtState::Holding, "undecided"),
            (Happening::Halted(reason), FtState::Halted, "halted"),
            (Happening::Diverged(divergence), FtState::Healing, "diverged"),
            (Happening::Healed, FtState::Protected, "healed"),
            (Happening::Stalled { bytes: 5 }, FtState::Protected, "stalled"),
            (Happening::Paused { paused_ms: 5 }, FtState::Protected, "was-stopped"),
        ] {
            assert_eq!(told(&happening, state).0, event, "{happening}");
        }
        let solo = Happening::Solo { generation: 3, why: SoloReason::Left };
        let (event, properties) = told(&solo, FtState::Solo);
        assert_eq!(event, "unprotected");
        assert_eq!(properties["why"], SoloReason::Left.to_string());
        // The engine confirms it first, and tells where the machine goes on.
        assert_eq!(of_pair(&Happening::Live { generation: 3 }, FtState::Live), None);
    }
}
