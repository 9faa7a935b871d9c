//! A host for machines that have hardware virtualisation themselves: a network namespace and, so that nothing in it
//! outlives it, a process namespace.
//!
//! Owns the namespaces and the processes in them. The host's death is the death of all of them at once.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::agent::Agent;
use super::folders::host_agent;
use super::namespace::Namespace;
use super::network::{Network, PREFIX_LENGTH, Place};

/// Namespaces in place of a host.
pub struct DirectHost {
    namespace: Namespace,
    init: Mutex<Child>,
}

const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Makes a namespace that is in the network as a host is: with a bridge of its own, which others can be plugged into.
pub(crate) fn join(place: Place, network: &Network) -> Result<Namespace> {
    let namespace = Namespace::create()?;
    namespace.ip("link add br0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0")?;
    network.add_cable(place, &namespace)?;
    let mac = place.mac();
    namespace.ip(&format!("link set eth0 address {mac} master br0 up"))?;
    namespace.ip(&format!("link set br0 address {mac} up"))?;
    namespace.ip(&format!("address add {}/{PREFIX_LENGTH} dev br0", place.address()))?;
    Ok(namespace)
}

impl DirectHost {
    /// Makes the host and plugs it into the network.
    pub fn start(index: usize, network: &Network) -> Result<(Self, Agent)> {
        let namespace = join(Place::Host(index), network)?;
        let (ours, theirs) = UnixStream::pair()?;
        // The first process of a process namespace takes all others with it, however it ends; and it ends with us.
        let mut command = Command::new("unshare");
        command.args(["--pid", "--fork", "--kill-child", "--mount-proc"]);
        command.arg(host_agent()?).arg("-").stdin(OwnedFd::from(theirs)).stdout(Stdio::null());
        // A Ctrl-C at the terminal is for the runner, which ends its hosts in order.
        command.process_group(0);
        let init = namespace.spawn(command).context("cannot run unshare, of util-linux")?;
        let host = Self { namespace, init: Mutex::new(init) };
        let agent = Agent::connect(ours, ANSWER_TIMEOUT, || host.must_live())?;
        Ok((host, agent))
    }

    fn must_live(&self) -> Result<()> {
        match self.init.lock().unwrap_or_else(PoisonError::into_inner).try_wait()? {
            None => Ok(()),
            Some(status) => bail!("the first process of a host has ended: {status}"),
        }
    }

    /// Kills everything that runs in it.
    pub fn end(&self) -> Result<()> {
        // A process may have forked while the others were killed.
        while self.signal(libc::SIGKILL)? > 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.init.lock().unwrap_or_else(PoisonError::into_inner).wait()?;
        Ok(())
    }

    /// Stops everything that runs in it.
    pub fn pause(&self) -> Result<()> {
        self.signal(libc::SIGSTOP).map(drop)
    }

    /// Undoes [`Self::pause`].
    pub fn resume(&self) -> Result<()> {
        self.signal(libc::SIGCONT).map(drop)
    }

    /// Sends a signal to every process in the namespace; returns how many there were.
    fn signal(&self, signal: i32) -> Result<usize> {
        let identity = self.namespace.identity()?;
        let mut count = 0;
        for entry in fs::read_dir("/proc").context("cannot list processes")? {
            let name = entry?.file_name();
            let Some(pid) = name.to_str().and_then(|name| name.parse::<i32>().ok()) else {
                continue;
            };
            // A process that is ending has no namespace any more.
            let inside = fs::metadata(format!("/proc/{pid}/ns/net"))
                .is_ok_and(|file| file.ino() == identity);
            if inside {
                count += 1;
                // SAFETY: kill(2) takes plain numbers.
                let sent = unsafe { libc::kill(pid, signal) } == 0;
                ensure!(sent || gone(), "cannot signal process {pid}");
            }
        }
        Ok(count)
    }
}

fn gone() -> bool {
    std::io::Error::last_os_error().raw_os_error() == Some(libc::ESRCH)
}

impl Drop for DirectHost {
    fn drop(&mut self) {
        // What is left dies with this process in any case.
        let _ = self.end();
    }
}
