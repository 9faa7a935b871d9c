//! A host, whichever way it is made: what tests do with one.
//!
//! Owns the choice between an emulated host and a namespace of this machine, which tests need not know.

use std::io::{self, Read, Write};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::agent::{Agent, Ended, Event, Events, Order};
use super::direct::DirectHost;
use super::emulated::EmulatedHost;
use super::network::{Place, STORAGE_ADDRESS};
use super::storage::MOUNT_POINT;

/// A host of a cluster.
pub struct Host {
    place: Place,
    agent: Arc<Agent>,
    body: Body,
}

pub(super) enum Body {
    Emulated(EmulatedHost),
    Direct(DirectHost),
}

/// What a command said, and how it ended.
#[derive(Clone, Debug)]
pub struct Output {
    /// How it ended.
    pub ended: Ended,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Host {
    pub(super) fn new(place: Place, agent: Agent, body: Body) -> Self {
        Self { place, agent: Arc::new(agent), body }
    }

    /// Whether it has a kernel, and so a `/run` and a `/tmp`, of its own.
    pub fn is_emulated(&self) -> bool {
        matches!(self.body, Body::Emulated(_))
    }

    /// Its address in the network.
    pub fn address(&self) -> Ipv4Addr {
        self.place.address()
    }

    /// Runs a command to its end and collects what it says.
    pub fn run(&self, order: Order) -> Result<Output> {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let ended = self.run_to(order, &mut stdout, &mut stderr)?;
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ok(Output { ended, stdout: text(stdout), stderr: text(stderr) })
    }

    /// Runs a line of shell, which must succeed; returns its standard output.
    pub fn shell(&self, line: &str) -> Result<String> {
        let output = self.run(Order::new(["sh", "-c", line]))?;
        ensure!(
            output.ended.success(),
            "'{line}' ended with status {} on a host and said: {}",
            output.ended.status(),
            output.stderr.trim()
        );
        Ok(output.stdout)
    }

    /// Runs a command to its end and passes on what it says as it says it.
    pub fn run_to(
        &self,
        order: Order,
        stdout: &mut dyn Write,
        stderr: &mut dyn Write,
    ) -> Result<Ended> {
        self.spawn(order)?.pass_on(stdout, stderr)
    }

    /// Starts a command and returns at once.
    pub fn spawn(&self, order: Order) -> Result<RemoteProcess> {
        let (pid, events) = self.agent.start(order)?;
        Ok(RemoteProcess { pid, events, agent: self.agent.clone(), fed: None, ended: None })
    }

    /// Whether it answers.
    pub fn ping(&self) -> Result<()> {
        self.agent.ping()
    }

    /// The death of the host, as by a power failure: all that runs on it ends at once.
    pub fn end(&self) -> Result<()> {
        match &self.body {
            Body::Emulated(host) => host.end()?,
            Body::Direct(host) => host.end()?,
        }
        self.agent.close();
        Ok(())
    }

    /// Stops the whole host in its tracks.
    pub fn pause(&self) -> Result<()> {
        match &self.body {
            Body::Emulated(host) => host.pause(),
            Body::Direct(host) => host.pause(),
        }
    }

    /// Undoes [`Self::pause`].
    pub fn resume(&self) -> Result<()> {
        match &self.body {
            Body::Emulated(host) => host.resume(),
            Body::Direct(host) => host.resume(),
        }
    }

    /// Mounts what the storage exports at [`MOUNT_POINT`], as a user would who wants to lose nothing: a host that does not
    /// reach the storage waits for it, for as long as it takes. Once is enough.
    pub fn mount_nfs(&self) -> Result<()> {
        ensure!(self.is_emulated(), "only an emulated host has a kernel of its own to mount with");
        let (server, client) = (STORAGE_ADDRESS, self.address());
        // The tool that would look these addresses up is no part of a host.
        let options = format!("vers=4.2,hard,addr={server},clientaddr={client}");
        self.shell(&format!(
            "grep -q ' {MOUNT_POINT} nfs4 ' /proc/mounts || \
             {{ mkdir -p {MOUNT_POINT} && mount -i -t nfs4 -o {options} {server}:/ {MOUNT_POINT}; }}"
        ))
        .map(drop)
    }

    /// Makes a tap and plugs it into the host's bridge, for the network card of a guest.
    pub fn add_tap(&self, name: &str) -> Result<()> {
        self.shell(&format!("ip tuntap add {name} mode tap && ip link set {name} master br0 up"))
            .map(drop)
    }

    /// What the kernel of an emulated host said so far; a namespace says nothing.
    pub fn console(&self) -> String {
        match &self.body {
            Body::Emulated(host) => host.console(),
            Body::Direct(_) => String::new(),
        }
    }
}

/// A command that was started on a host. Dropping it does not end the command.
pub struct RemoteProcess {
    pid: i32,
    events: Events,
    agent: Arc<Agent>,
    /// Who waits for a piece of input to be taken.
    fed: Option<Sender<()>>,
    ended: Option<Ended>,
}

const PIECE_SIZE: usize = 32 << 10;

impl RemoteProcess {
    /// Its process, as numbered on its host.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Sends it a signal.
    pub fn kill(&self, signal: i32) -> Result<()> {
        self.agent.signal(self.pid, signal)
    }

    /// Gives it this for its standard input, from a thread that ends with the input, or when the command takes no more
    /// of it. The order must have asked for input.
    pub fn feed(&mut self, mut reader: impl Read + Send + 'static) {
        let (sender, fed) = channel();
        let input = self.events.input();
        self.fed = Some(sender);
        thread::spawn(move || {
            let mut piece = vec![0; PIECE_SIZE];
            loop {
                // What cannot be read has come to its end.
                let length = reader.read(&mut piece).unwrap_or_default();
                if input.send(piece[..length].to_vec()).is_err() || length == 0 {
                    return;
                }
                if fed.recv().is_err() {
                    return;
                }
            }
        });
    }

    fn note(&mut self, event: &Event) {
        match event {
            Event::Ended(ended) => {
                self.ended = Some(*ended);
                self.fed = None;
            }
            // The input may have ended meanwhile.
            Event::Fed => drop(self.fed.as_ref().map(|fed| fed.send(()))),
            Event::Stdout(_) | Event::Stderr(_) => {}
        }
    }

    /// Waits for its end; output that goes nowhere else is dropped.
    pub fn wait(&mut self) -> Result<Ended> {
        self.pass_on(&mut io::sink(), &mut io::sink())
    }

    /// How it ended, if it ends within this time.
    pub fn wait_at_most(&mut self, timeout: Duration) -> Result<Option<Ended>> {
        let deadline = Instant::now() + timeout;
        while self.ended.is_none() {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.events.next(Some(left))? {
                Some(event) => self.note(&event),
                None => return Ok(None),
            }
        }
        Ok(self.ended)
    }

    /// Waits for its end and passes on what it says as it says it.
    pub fn pass_on(&mut self, stdout: &mut dyn Write, stderr: &mut dyn Write) -> Result<Ended> {
        loop {
            if let Some(ended) = self.ended {
                return Ok(ended);
            }
            let Some(event) = self.events.next(None)? else {
                bail!("a wait without a limit ended");
            };
            match &event {
                Event::Stdout(bytes) => write(stdout, bytes)?,
                Event::Stderr(bytes) => write(stderr, bytes)?,
                Event::Fed | Event::Ended(_) => self.note(&event),
            }
        }
    }
}

fn write(writer: &mut dyn Write, bytes: &[u8]) -> Result<()> {
    writer.write_all(bytes).and_then(|()| writer.flush()).context("cannot pass output on")
}

impl Order {
    /// This program with these arguments.
    pub fn new<W: Into<String>>(words: impl IntoIterator<Item = W>) -> Self {
        Self { arguments: words.into_iter().map(Into::into).collect(), ..Self::default() }
    }

    /// With its output, both kinds, appended to this file (as the host sees it).
    pub fn log_to(mut self, path: impl Into<PathBuf>) -> Self {
        self.log = Some(path.into());
        self
    }

    /// With a standard input that is fed from outside.
    pub fn with_input(mut self) -> Self {
        self.input = true;
        self
    }

    /// With this environment variable.
    pub fn with_variable(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// In this folder.
    pub fn in_folder(mut self, folder: impl Into<PathBuf>) -> Self {
        self.folder = Some(folder.into());
        self
    }
}
