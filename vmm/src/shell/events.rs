//! The event monitor: one JSON object a line for everything that happens to the VM.
//!
//! Owns the format, which is Cloud Hypervisor's: time since the start, source, event, properties.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::FromRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::time::Instant;

use serde_json::{Value, json};

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

#[expect(unsafe_code, reason = "a descriptor that the user handed over by number")]
fn inherited(fd: i32) -> File {
    // SAFETY: the user gave this descriptor to the process for this one use; nothing else in the
    // process knows its number.
    unsafe { File::from_raw_fd(fd) }
}
