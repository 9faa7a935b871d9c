//! Threads for what may take its time: connecting to a standby, asking the arbiter.
//!
//! Owns the threads and the queue on which their answers come back to the event loop. An answer
//! always comes, if only that it took too long to be waited for.

use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::os::fd::{AsRawFd, RawFd};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use ft::Answer;
use vmm_sys_util::eventfd::EventFd;

use super::arbiter::{Verdict, check_arbiter, claim};
use crate::error::Error;
use crate::seccomp::start_helper;

/// What a helper found.
pub enum Helped {
    /// A connection to a standby, or a sentence why there is none.
    Connected(Result<TcpStream, String>),
    /// The arbiter's answer about this generation.
    Arbiter {
        /// The generation that was asked for.
        generation: u64,
        /// What it said.
        answer: Answer,
    },
}

/// The helpers of one event loop.
pub struct Helpers {
    sender: Sender<Helped>,
    receiver: Receiver<Helped>,
    event: EventFd,
}

impl Helpers {
    /// None yet.
    ///
    /// # Errors
    /// No eventfd could be made.
    pub fn new() -> Result<Self, Error> {
        let (sender, receiver) = channel();
        let event = EventFd::new(libc::EFD_NONBLOCK).map_err(Error::EventFd)?;
        Ok(Self { sender, receiver, event })
    }

    /// Sees that the arbiter in `directory` will answer one day, then connects to `peer`
    /// (`HOST:PORT`), for at most `timeout`.
    ///
    /// # Errors
    /// No thread.
    pub fn connect(
        &self,
        directory: Option<PathBuf>,
        peer: String,
        timeout: Duration,
    ) -> Result<(), Error> {
        self.help("connect", move || {
            let checked = directory.as_deref().map_or(Ok(()), check_arbiter);
            Helped::Connected(checked.and_then(|()| connect(&peer, timeout)))
        })
    }

    /// Asks the arbiter in `directory`.
    ///
    /// # Errors
    /// No thread.
    pub fn ask_arbiter(
        &self,
        directory: PathBuf,
        vm_id: String,
        generation: u64,
        claimant: String,
    ) -> Result<(), Error> {
        self.help("arbiter", move || {
            let answer = match claim(&directory, &vm_id, generation, &claimant) {
                Ok(Verdict::Won) => Answer::Won,
                Ok(Verdict::Lost) => Answer::Lost,
                Err(error) => {
                    log::warn!("the arbiter at {} does not answer: {error}", directory.display());
                    Answer::Unreachable
                }
            };
            Helped::Arbiter { generation, answer }
        })
    }

    /// The next answer, if one has come.
    pub fn take(&self) -> Option<Helped> {
        let _ = self.event.read();
        self.receiver.try_recv().ok()
    }

    fn help(
        &self,
        name: &str,
        work: impl FnOnce() -> Helped + Send + 'static,
    ) -> Result<(), Error> {
        let sender = self.sender.clone();
        let event = self.event.try_clone().map_err(Error::EventFd)?;
        start_helper(name, move || {
            if sender.send(work()).is_ok() {
                let _ = event.write(1);
            }
        })
    }
}

impl AsRawFd for Helpers {
    fn as_raw_fd(&self) -> RawFd {
        self.event.as_raw_fd()
    }
}

fn connect(peer: &str, timeout: Duration) -> Result<TcpStream, String> {
    let addresses: Vec<SocketAddr> = peer
        .to_socket_addrs()
        .map_err(|error| format!("the backup's name {peer} cannot be resolved: {error}"))?
        .collect();
    let mut last = "the name has no address".to_owned();
    for address in addresses {
        match TcpStream::connect_timeout(&address, timeout) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error.to_string(),
        }
    }
    Err(format!(
        "the backup at {peer} cannot be reached: {last}; is it started with --ft role=backup?"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_at_the_port_is_said_in_a_sentence() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let error = connect(&address.to_string(), Duration::from_secs(1)).unwrap_err();
        assert!(error.contains(&address.to_string()) && error.contains("role=backup"), "{error}");
    }

    #[test]
    fn the_arbiter_is_asked_on_a_thread_of_its_own() {
        let directory = tempfile::tempdir().unwrap();
        let helpers = Helpers::new().unwrap();
        let path = directory.path().to_owned();
        helpers.ask_arbiter(path, "vm".into(), 2, "me".into()).unwrap();
        let answer = helpers.receiver.recv_timeout(Duration::from_secs(20)).unwrap();
        assert!(matches!(answer, Helped::Arbiter { generation: 2, answer: Answer::Won }));
    }
}
