//! Where the guest's console bytes go and where its key strokes come from.
//!
//! Owns the host's side of the serial port and the virtio console: a terminal, a file, nothing.
//! Does not own what the guest sees.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

use vmm_sys_util::terminal::Terminal;

use crate::config::{ConsoleConfig, ConsoleMode};
use crate::error::Error;

/// At most this much is read from the terminal at once.
const READ_BYTES: usize = 256;

/// One console's host side.
pub enum Console {
    /// Bytes go nowhere.
    Nothing,
    /// Standard input and output.
    Terminal,
    /// A file that only takes bytes.
    File(File),
}

impl Console {
    /// Opens what `config` names.
    ///
    /// # Errors
    /// The file cannot be created.
    pub fn open(config: &ConsoleConfig) -> Result<Self, Error> {
        Ok(match config.mode {
            // Validation has refused the last two.
            ConsoleMode::Off | ConsoleMode::Null | ConsoleMode::Pty | ConsoleMode::Socket => {
                Self::Nothing
            }
            ConsoleMode::Tty => Self::Terminal,
            ConsoleMode::File => {
                let path = config.file.clone().unwrap_or_default();
                // A pipe that nobody reads must make neither this process nor the guest wait.
                let opened = OpenOptions::new()
                    .create(true)
                    .append(true)
                    .custom_flags(libc::O_NONBLOCK)
                    .open(&path);
                let what = "The console's file cannot be opened for writing:";
                Self::File(opened.map_err(|source| Error::File { what, path, source })?)
            }
        })
    }

    /// Writes what the guest said. A full or closed terminal loses it: the guest does not wait.
    pub fn write(&mut self, bytes: &[u8]) {
        let result = match self {
            Self::Nothing => Ok(()),
            Self::Terminal => {
                let mut out = std::io::stdout().lock();
                out.write_all(bytes).and_then(|()| out.flush())
            }
            Self::File(file) => file.write_all(bytes),
        };
        if let Err(error) = result {
            log::debug!("console output lost: {error}");
        }
    }

    /// The descriptor that key strokes come from.
    pub fn input(&self) -> Option<RawFd> {
        match self {
            Self::Nothing | Self::File(_) => None,
            Self::Terminal => Some(std::io::stdin().as_raw_fd()),
        }
    }

    /// Reads key strokes; `None` at the end of input.
    pub fn read(&mut self) -> Option<Vec<u8>> {
        let mut bytes = vec![0; READ_BYTES];
        let count = std::io::stdin().lock().read(&mut bytes).ok()?;
        bytes.truncate(count);
        (count > 0).then_some(bytes)
    }
}

/// Puts the terminal into raw mode as long as it lives, so that the guest sees every key.
pub struct RawTerminal;

impl RawTerminal {
    /// `None` when standard input is no terminal.
    pub fn enter() -> Option<Self> {
        let stdin = std::io::stdin();
        stdin.lock().set_raw_mode().ok().map(|()| Self)
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        let _ = std::io::stdin().lock().set_canon_mode();
    }
}
