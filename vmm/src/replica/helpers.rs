//! Threads for what may take its time: connecting to a standby, asking the arbiter.
//!
//! Owns the threads and the queue on which their answers come back to the event loop. An answer
//! always comes, if only that it took too long to be waited for.

use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use ft::Answer;
use vmm_sys_util::eventfd::EventFd;

use super::arbiter::{BoundedArbiter, Question, Verdict};
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

/// Whom a helper connects to, for messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whom {
    /// A backup that waits for its primary.
    Backup,
    /// A VMM that waits for a VM to move there.
    Receiver,
}

impl Whom {
    fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::Backup => ("the backup", "is it started with --ft role=backup?"),
            Self::Receiver => {
                ("the receiver", "have a VMM wait there first (vm.receive-migration)")
            }
        }
    }
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

    /// Connects to `peer` (`HOST:PORT`), for at most `timeout` an address; before that it finds out
    /// whether the arbiter, if there is one, could be asked.
    ///
    /// # Errors
    /// No thread.
    pub fn connect(
        &self,
        whom: Whom,
        peer: String,
        timeout: Duration,
        arbiter: Option<Arc<BoundedArbiter>>,
    ) -> Result<(), Error> {
        self.help("connect", move || {
            let checked = arbiter.map_or(Ok(()), |arbiter| arbiter.check());
            let checked = checked.map_err(|error| error.to_string());
            Helped::Connected(checked.and_then(|()| connect(whom, &peer, timeout)))
        })
    }

    /// Asks the arbiter.
    ///
    /// # Errors
    /// No thread.
    pub fn ask_arbiter(
        &self,
        arbiter: Arc<BoundedArbiter>,
        question: Question,
    ) -> Result<(), Error> {
        let generation = question.generation;
        self.help("arbiter", move || {
            let answer = match arbiter.claim(&question) {
                Ok(Verdict::Won) => Answer::Won,
                Ok(Verdict::Lost) => Answer::Lost,
                Err(error) => {
                    log::warn!("the arbiter at {} does not answer: {error}", arbiter.place());
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

fn connect(whom: Whom, peer: &str, timeout: Duration) -> Result<TcpStream, String> {
    let (who, hint) = whom.words();
    let addresses: Vec<SocketAddr> = peer
        .to_socket_addrs()
        .map_err(|error| format!("{who}'s name {peer} cannot be resolved: {error}"))?
        .collect();
    let mut last = "the name has no address".to_owned();
    for address in addresses {
        match TcpStream::connect_timeout(&address, timeout) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error.to_string(),
        }
    }
    Err(format!("{who} at {peer} cannot be reached: {last}; {hint}"))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::replica::FileArbiter;

    #[test]
    fn nobody_at_the_port_is_said_in_a_sentence() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let said = |whom| connect(whom, &address.to_string(), Duration::from_secs(1)).unwrap_err();
        let error = said(Whom::Backup);
        assert!(error.contains(&address.to_string()) && error.contains("role=backup"), "{error}");
        assert!(said(Whom::Receiver).contains("vm.receive-migration"));
    }

    fn question(generation: u64) -> Question {
        Question { vm_id: [1; 16], generation, claimant: [2; 16] }
    }

    fn arbiter_in(directory: &Path) -> Arc<BoundedArbiter> {
        Arc::new(BoundedArbiter::new(Arc::new(FileArbiter::new(directory))))
    }

    fn wait(helpers: &Helpers) -> Helped {
        loop {
            match helpers.take() {
                Some(helped) => return helped,
                None => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    }

    #[test]
    fn the_arbiter_is_asked_on_a_thread_of_its_own() {
        let directory = tempfile::tempdir().unwrap();
        let helpers = Helpers::new().unwrap();
        helpers.ask_arbiter(arbiter_in(directory.path()), question(2)).unwrap();
        let answer = wait(&helpers);
        assert!(matches!(answer, Helped::Arbiter { generation: 2, answer: Answer::Won }));
        // Whoever gets it can tell which question it answers.
        helpers.ask_arbiter(arbiter_in(Path::new("/nowhere/at/all")), question(3)).unwrap();
        let answer = wait(&helpers);
        assert!(matches!(answer, Helped::Arbiter { generation: 3, answer: Answer::Unreachable }));
    }

    #[test]
    fn no_backup_is_sought_before_the_arbiter_can_be_asked() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let peer = listener.local_addr().unwrap().to_string();
        let helpers = Helpers::new().unwrap();
        let arbiter = arbiter_in(Path::new("/nowhere/at/all"));
        helpers.connect(Whom::Backup, peer, Duration::from_secs(9), Some(arbiter)).unwrap();
        let Helped::Connected(Err(why)) = wait(&helpers) else { panic!("it connected") };
        assert!(why.contains("/nowhere/at/all cannot be used"), "{why}");
        listener.set_nonblocking(true).unwrap();
        assert!(listener.accept().is_err(), "somebody connected");
    }
}
