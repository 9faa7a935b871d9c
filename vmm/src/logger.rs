//! Messages for whoever operates the VMM: a line each, with time since the start and level.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Instant;

use log::{LevelFilter, Log, Metadata, Record};

use crate::error::Error;

/// The log's file, where there is one, for who may not wait for its lock.
static DESCRIPTOR: AtomicI32 = AtomicI32::new(-1);

struct Logger {
    started: Instant,
    file: Option<Mutex<File>>,
}

/// Sends messages to `file`, or to standard error. `verbosity` 0 shows warnings, 1 information,
/// 2 debugging, more everything.
///
/// # Errors
/// The file cannot be opened.
pub fn start(verbosity: u8, file: Option<&Path>) -> Result<(), Error> {
    let file = match file {
        Some(path) => {
            let file =
                OpenOptions::new().create(true).append(true).open(path).map_err(|source| {
                    Error::File {
                        what: "The log file (--log-file) cannot be opened for writing:",
                        path: path.to_owned(),
                        source,
                    }
                })?;
            DESCRIPTOR.store(file.as_raw_fd(), Ordering::Relaxed);
            Some(Mutex::new(file))
        }
        None => None,
    };
    let level = match verbosity {
        0 => LevelFilter::Warn,
        1 => LevelFilter::Info,
        2 => LevelFilter::Debug,
        _ => LevelFilter::Trace,
    };
    let logger = Logger { started: Instant::now(), file };
    if log::set_boxed_logger(Box::new(logger)).is_ok() {
        log::set_max_level(level);
    }
    Ok(())
}

/// Where the last words of a process go that cannot go on, without a lock and without memory:
/// standard error, and the log's file if it has one.
pub fn descriptors() -> impl Iterator<Item = RawFd> {
    [libc::STDERR_FILENO, DESCRIPTOR.load(Ordering::Relaxed)].into_iter().filter(|fd| *fd >= 0)
}

impl Log for Logger {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let passed = self.started.elapsed().as_secs_f64();
        let line = format!("{passed:12.6} {:<5} {}\n", record.level(), record.args());
        // Nobody is left to tell that telling failed.
        let _ = match &self.file {
            Some(file) => match file.lock() {
                Ok(mut file) => file.write_all(line.as_bytes()),
                Err(_) => Ok(()),
            },
            None => io::stderr().write_all(line.as_bytes()),
        };
    }

    fn flush(&self) {}
}
