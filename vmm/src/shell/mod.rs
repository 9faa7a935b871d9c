//! The shell: everything around the machine that is real.
//!
//! Owns the process's main thread: an epoll loop over the engine's reports, the API's calls, taps,
//! keys, signals and the channel to the other replica. Does not own the machine, which lives on
//! the engine's thread and is reached by messages only, nor the replica protocol, which `ft` keeps
//! and `crate::replica` carries out.

mod backup;
mod backup_side;
mod console;
mod events;
mod farewell;
mod healing;
mod info;
mod lag_loop;
mod lifecycle;
mod logged;
mod method;
mod moving;
mod ordering;
mod poller;
mod primary;
mod primary_side;
mod protection;
mod reception;
mod remains;
mod reports;
mod reprotection;
mod signals;
mod statistics;
mod suitability;
mod traffic;
mod visitors;
mod vm;
mod world;

use std::os::fd::AsRawFd;
use std::time::Instant;

pub use poller::{Interest, Poller, Source};
pub use statistics::Statistics;
pub use vm::Running;
pub use world::{World, disk_capacities};

use self::events::Events;
use self::moving::Moving;
use self::ordering::HeldWrites;
use self::primary_side::BUSY_TICK_MS;
use self::protection::Protection;
use self::reprotection::Succession;
use self::signals::{Signal, Signals};
use crate::api::{ApiError, ApiQueue, ReplySender};
use crate::cli::Invocation;
use crate::config::VmConfig;
use crate::error::Error;

/// The event loop wakes this often while a standby is looked for, ms.
const SEARCH_TICK_MS: u64 = 100;

/// How the process ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// As asked.
    Well,
    /// With this sentence, and an exit code that is not 0.
    Badly(String),
}

/// What an API call waits for before it is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Awaits {
    Paused,
    Resumed,
    Protected,
    Unprotected,
    HandedOver,
    Moved,
    Received,
}

/// The process's main thread.
pub struct Shell {
    invocation: Invocation,
    poller: Poller,
    api: ApiQueue,
    signals: Signals,
    events: Events,
    /// The VM's configuration, once one was given.
    config: Option<VmConfig>,
    /// Its engine, while it has one.
    running: Option<Running>,
    /// It was booted once.
    booted: bool,
    paused: bool,
    /// Its clock has run.
    started: bool,
    protection: Protection,
    succession: Succession,
    /// The VM is on its way to another VMM.
    moving: Option<Moving>,
    held: HeldWrites,
    statistics: Statistics,
    calls: Vec<(Awaits, ReplySender)>,
    outcome: Option<Outcome>,
    /// A signal to end is being carried out by handing the VM over.
    terminating: bool,
    /// Something that the user must hear of went wrong while the VM ran on.
    failure: Option<String>,
}

impl Shell {
    /// A shell that has not started anything yet.
    ///
    /// # Errors
    /// The process is out of file descriptors.
    pub fn new(invocation: Invocation, api: ApiQueue) -> Result<Self, Error> {
        let poller = Poller::new()?;
        let signals = Signals::new()?;
        poller.watch(signals.as_raw_fd(), Source::Signals, Interest::Read)?;
        poller.watch(api.as_raw_fd(), Source::Api, Interest::Read)?;
        let events = Events::open(invocation.event_monitor.as_ref())?;
        Ok(Self {
            invocation,
            poller,
            api,
            signals,
            events,
            config: None,
            running: None,
            booted: false,
            paused: false,
            started: false,
            protection: Protection::None,
            succession: Succession::default(),
            moving: None,
            held: HeldWrites::default(),
            statistics: Statistics::new(Instant::now()),
            calls: Vec::new(),
            outcome: None,
            terminating: false,
            failure: None,
        })
    }

    /// Does what the command line asks for, then serves until the end.
    ///
    /// # Errors
    /// What the command line asks for cannot be done, or the event loop failed.
    pub fn run(mut self) -> Result<Outcome, Error> {
        self.begin()?;
        while self.outcome.is_none() {
            for source in self.poller.wait(self.timeout_ms())? {
                self.on_ready(source)?;
            }
            self.tick()?;
        }
        self.end_protection();
        self.end_vm();
        Ok(match (self.outcome, self.failure) {
            (Some(Outcome::Well), Some(failure)) => Outcome::Badly(failure),
            (outcome, _) => outcome.unwrap_or(Outcome::Well),
        })
    }

    fn timeout_ms(&self) -> i32 {
        let suspended = self
            .running
            .as_ref()
            .and_then(|running| running.world.as_ref())
            .is_some_and(World::suspended);
        let tap = suspended.then_some(BUSY_TICK_MS);
        let search = self.succession.is_searching().then_some(SEARCH_TICK_MS);
        let due_ms = [tap, search, self.protection.tick_ms()].into_iter().flatten().min();
        due_ms.map_or(-1, |ms| i32::try_from(ms).unwrap_or(i32::MAX))
    }

    fn on_ready(&mut self, source: Source) -> Result<(), Error> {
        match source {
            Source::Engine => self.on_reports(),
            Source::Api => {
                while let Some(call) = self.api.take() {
                    self.on_call(call);
                }
                Ok(())
            }
            Source::Signals => {
                if let Some(signal) = self.signals.take() {
                    self.on_signal(signal);
                }
                Ok(())
            }
            Source::Tap(index) => match self.world() {
                Some((world, poller)) => world.on_tap(index, poller),
                None => Ok(()),
            },
            Source::SerialInput | Source::ConsoleInput(_) => {
                if let Some((world, poller)) = self.world() {
                    world.on_keys(source, poller);
                }
                Ok(())
            }
            Source::Listener | Source::Channel | Source::Heartbeat | Source::Helpers => {
                self.on_protection(source)
            }
        }
    }

    /// A host that shuts down sends SIGTERM: a protected VM moves to its backup then. Told again,
    /// or where there is nowhere to go, the VM ends.
    fn on_signal(&mut self, signal: Signal) {
        if signal == Signal::Terminate && !self.terminating && self.begin_handover().is_ok() {
            self.terminating = true;
            self.statistics.happened("Told to end: handing the VM over to the backup");
            return;
        }
        log::info!("told to end by a signal");
        self.outcome = Some(Outcome::Well);
    }

    fn world(&mut self) -> Option<(&mut World, &Poller)> {
        let world = self.running.as_mut()?.world.as_mut()?;
        Some((world, &self.poller))
    }

    fn tick(&mut self) -> Result<(), Error> {
        if let Some((world, poller)) = self.world() {
            world.resume_taps(poller)?;
        }
        self.tick_succession();
        self.tick_move();
        self.tick_protection()
    }

    /// Ends the engine and whatever protects it. The configuration stays.
    fn end_vm(&mut self) {
        if let Some(running) = self.running.take() {
            running.end(&self.poller);
            // What the machine still said on its way out.
            self.statistics.stopped();
        }
        // What they wait for will not happen any more.
        for (awaits, reply) in std::mem::take(&mut self.calls) {
            match awaits {
                // A VM that was refused is not the one that is waited for.
                Awaits::Received => self.calls.push((awaits, reply)),
                Awaits::Paused
                | Awaits::Resumed
                | Awaits::Protected
                | Awaits::Unprotected
                | Awaits::HandedOver
                | Awaits::Moved => {
                    reply.send(Err(ApiError::failed("The VM ended before this was done.")));
                }
            }
        }
        self.moving = None;
        self.held = HeldWrites::default();
        self.paused = false;
        self.started = false;
        self.succession.standbys.disable();
    }
}
