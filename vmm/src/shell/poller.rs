//! The event loop's eyes: which file descriptors are watched, and what each stands for.
//!
//! Owns the epoll instance. Does not own the descriptors.

use std::os::fd::RawFd;

use crate::error::Error;

/// What a ready descriptor means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The engine reported.
    Engine,
    /// The API has calls.
    Api,
    /// SIGINT, SIGTERM and friends.
    Signals,
    /// A tap has packets: index of the PCI function.
    Tap(u16),
    /// Keys for the serial port.
    SerialInput,
    /// Keys for the virtio console: index of the PCI function.
    ConsoleInput(u16),
    /// The stream between primary and backup.
    Channel,
    /// The heartbeats between them.
    Heartbeat,
    /// A primary knocks.
    Listener,
    /// A thread that connects or asks the arbiter has an answer.
    Helpers,
}

impl Source {
    fn encode(self) -> u64 {
        let (kind, index) = match self {
            Self::Engine => (0, 0),
            Self::Api => (1, 0),
            Self::Signals => (2, 0),
            Self::Tap(index) => (3, index),
            Self::SerialInput => (4, 0),
            Self::ConsoleInput(index) => (5, index),
            Self::Channel => (6, 0),
            Self::Heartbeat => (7, 0),
            Self::Listener => (8, 0),
            Self::Helpers => (9, 0),
        };
        kind << 16 | u64::from(index)
    }

    fn decode(data: u64) -> Option<Self> {
        let index = data as u16;
        Some(match data >> 16 {
            0 => Self::Engine,
            1 => Self::Api,
            2 => Self::Signals,
            3 => Self::Tap(index),
            4 => Self::SerialInput,
            5 => Self::ConsoleInput(index),
            6 => Self::Channel,
            7 => Self::Heartbeat,
            8 => Self::Listener,
            9 => Self::Helpers,
            _ => return None,
        })
    }
}

/// What to watch a descriptor for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interest {
    /// Something to read.
    Read,
    /// Something to read, or room to write.
    ReadWrite,
    /// Nothing but errors for now.
    Nothing,
}

impl Interest {
    fn events(self) -> epoll::Events {
        match self {
            Self::Read => epoll::Events::EPOLLIN,
            Self::ReadWrite => epoll::Events::EPOLLIN | epoll::Events::EPOLLOUT,
            Self::Nothing => epoll::Events::empty(),
        }
    }
}

/// An epoll instance.
pub struct Poller {
    epoll: RawFd,
}

impl Poller {
    /// An empty one.
    ///
    /// # Errors
    /// The kernel has no more of them.
    pub fn new() -> Result<Self, Error> {
        Ok(Self { epoll: epoll::create(true).map_err(Error::Poll)? })
    }

    /// Watches a descriptor, or changes what it is watched for.
    ///
    /// # Errors
    /// The descriptor cannot be watched (a plain file).
    pub fn watch(&self, fd: RawFd, source: Source, interest: Interest) -> Result<(), Error> {
        let event = epoll::Event::new(interest.events(), source.encode());
        match epoll::ctl(self.epoll, epoll::ControlOptions::EPOLL_CTL_ADD, fd, event) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                epoll::ctl(self.epoll, epoll::ControlOptions::EPOLL_CTL_MOD, fd, event)
            }
            other => other,
        }
        .map_err(Error::Poll)
    }

    /// Stops watching. A descriptor that is not watched, or closed already, is no error.
    pub fn forget(&self, fd: RawFd) {
        let event = epoll::Event::new(epoll::Events::empty(), 0);
        let _ = epoll::ctl(self.epoll, epoll::ControlOptions::EPOLL_CTL_DEL, fd, event);
    }

    /// Waits until something is ready or `timeout_ms` has passed (negative: for ever).
    ///
    /// # Errors
    /// The wait failed other than by a signal.
    pub fn wait(&self, timeout_ms: i32) -> Result<Vec<Source>, Error> {
        let mut events = [epoll::Event::new(epoll::Events::empty(), 0); 32];
        match epoll::wait(self.epoll, timeout_ms, &mut events) {
            Ok(count) => {
                Ok(events[..count].iter().filter_map(|event| Source::decode(event.data)).collect())
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => Ok(Vec::new()),
            Err(error) => Err(Error::Poll(error)),
        }
    }
}

impl Drop for Poller {
    fn drop(&mut self) {
        let _ = epoll::close(self.epoll);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_source_survives_its_encoding() {
        for source in [
            Source::Engine,
            Source::Api,
            Source::Signals,
            Source::Tap(3),
            Source::SerialInput,
            Source::ConsoleInput(0xffff),
            Source::Channel,
            Source::Heartbeat,
            Source::Listener,
            Source::Helpers,
        ] {
            assert_eq!(Source::decode(source.encode()), Some(source));
        }
        assert_eq!(Source::decode(u64::MAX), None);
    }
}
