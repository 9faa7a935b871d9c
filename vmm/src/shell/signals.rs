//! Signals to end the process, as a descriptor of the event loop.

use std::io::Read;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::{flag, low_level::pipe};

use crate::error::Error;

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Signal {
    /// SIGINT: somebody at the terminal wants the VM to end.
    Interrupt,
    /// SIGTERM or SIGHUP: this process is to end, as when its host shuts down.
    Terminate,
}

/// The signals that arrive.
pub(super) struct Signals {
    stream: UnixStream,
    terminate: Arc<AtomicBool>,
}

impl Signals {
    /// From now on these signals arrive here and nowhere else.
    pub(super) fn new() -> Result<Self, Error> {
        let (stream, sender) = UnixStream::pair().map_err(Error::EventFd)?;
        stream.set_nonblocking(true).map_err(Error::EventFd)?;
        let terminate = Arc::new(AtomicBool::new(false));
        for signal in [SIGTERM, SIGHUP] {
            flag::register(signal, Arc::clone(&terminate)).map_err(Error::EventFd)?;
        }
        // Registered last, and so called last: the flag is set when the byte arrives.
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            let sender = sender.try_clone().map_err(Error::EventFd)?;
            pipe::register(signal, sender).map_err(Error::EventFd)?;
        }
        Ok(Self { stream, terminate })
    }

    /// The signal that arrived, if one did.
    pub(super) fn take(&mut self) -> Option<Signal> {
        let mut bytes = [0; 16];
        match self.stream.read(&mut bytes) {
            Ok(count) if count > 0 => Some(if self.terminate.swap(false, Ordering::SeqCst) {
                Signal::Terminate
            } else {
                Signal::Interrupt
            }),
            Ok(_) | Err(_) => None,
        }
    }
}

impl AsRawFd for Signals {
    fn as_raw_fd(&self) -> RawFd {
        self.stream.as_raw_fd()
    }
}
