//! Signals that end the process, as a descriptor of the event loop.

use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::low_level::pipe;

use crate::error::Error;

/// SIGINT, SIGTERM and SIGHUP.
pub(super) struct Signals {
    stream: UnixStream,
}

impl Signals {
    /// From now on these signals arrive here and nowhere else.
    pub(super) fn new() -> Result<Self, Error> {
        let (stream, sender) = UnixStream::pair().map_err(Error::EventFd)?;
        stream.set_nonblocking(true).map_err(Error::EventFd)?;
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            let sender = sender.try_clone().map_err(Error::EventFd)?;
            pipe::register(signal, sender).map_err(Error::EventFd)?;
        }
        Ok(Self { stream })
    }

    /// What to call the signal that arrived, if one did.
    pub(super) fn take(&mut self) -> Option<&'static str> {
        use std::io::Read;
        let mut bytes = [0; 16];
        match self.stream.read(&mut bytes) {
            Ok(count) if count > 0 => Some("a signal to end arrived"),
            Ok(_) | Err(_) => None,
        }
    }
}

impl AsRawFd for Signals {
    fn as_raw_fd(&self) -> RawFd {
        self.stream.as_raw_fd()
    }
}
