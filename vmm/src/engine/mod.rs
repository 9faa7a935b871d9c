//! The engine: the one thread that owns the machine and moves it from moment to moment.
//!
//! Owns the loop *take inputs, let outputs go, run the guest, handle its exit*, in its forms: live,
//! recording (live with every input logged), checkpointing (live, and now and then all that changed
//! is logged) and replaying. The machine does not know which of
//! them drives it. Does not own sockets, files or devices' back ends: those are the
//! shell's, which talks to the engine through two queues.

mod budget;
mod checkpoint_pace;
mod checkpointing;
mod clock;
mod copy_pace;
mod copying;
mod divergence;
mod healing;
mod live;
mod messages;
mod recording;
mod replaying;
mod slowdown;

use std::thread::JoinHandle;

pub use clock::LiveClock;
pub use healing::{HEALING_PAGES_MAX, HealPlan};
pub use messages::{
    CopyProgress, DivergenceReport, Ended, EngineHandle, Inbox, Inspect, Inspection, JoinKind,
    Message, RecordPlan, Report, ReportSink,
};

use self::budget::DeltaBudget;
use self::checkpointing::Checkpointing;
use self::clock::Time;
use self::copying::Copying;
use self::messages::Shared;
use self::recording::Recording;
use self::replaying::Replaying;
use self::slowdown::Slowdown;
use crate::error::Error;
use crate::machine::{Machine, Next};
use crate::seccomp;

/// How a machine comes to its first state again when the guest asks for a reset.
pub trait Rebuild: Send {
    /// Loads the kernel again and puts platform, devices and vCPU into their first state.
    ///
    /// # Errors
    /// The kernel could not be loaded any more.
    fn rebuild(&mut self, machine: &mut Machine) -> Result<(), Error>;
}

/// Where the machine's inputs come from.
enum Mode {
    /// From the shell.
    Live,
    /// From the shell, while a backup is given a copy of the machine.
    Copying(Box<Copying>),
    /// From the shell, and each is logged.
    Recording(Box<Recording>),
    /// From the shell, and what becomes of the machine is logged now and then.
    Checkpointing(Box<Checkpointing>),
    /// From a log.
    Replaying(Box<Replaying>),
}

/// The machine and what drives it. Lives on the vCPU's thread.
pub struct Engine {
    machine: Machine,
    mode: Mode,
    clock: LiveClock,
    inbox: Inbox,
    reports: ReportSink,
    rebuild: Box<dyn Rebuild>,
    /// Inputs that the shell sent and that the machine could not take yet, oldest first.
    waiting: std::collections::VecDeque<ft::Input>,
    paused: bool,
    stalled: bool,
    slowdown: Slowdown,
    budget: DeltaBudget,
    ended: Option<Ended>,
}

/// Where a machine's inputs come from at first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// From the world.
    World,
    /// From a log; if the machine comes to differ from what is recorded there, that is its end.
    Log,
    /// From the log of a primary that heals a machine that came to differ.
    Healer,
}

/// What starts an engine besides the machine.
pub struct EngineParts {
    /// Machine time, running or still at its start.
    pub clock: LiveClock,
    /// Where messages of the shell arrive.
    pub inbox: Inbox,
    /// Where reports go.
    pub reports: ReportSink,
    /// Where the machine's inputs come from.
    pub origin: Origin,
    /// Start paused.
    pub paused: bool,
}

/// Starts the engine on a thread of its own. `build` makes the machine there: a vCPU belongs to
/// the thread that made it.
///
/// # Errors
/// The thread could not be started, or `build` failed.
pub fn spawn(
    build: impl FnOnce() -> Result<(Machine, Box<dyn Rebuild>), Error> + Send + 'static,
    parts: EngineParts,
) -> Result<JoinHandle<()>, Error> {
    let (ready, started) = std::sync::mpsc::sync_channel(1);
    let shared = parts.inbox.shared();
    let thread = std::thread::Builder::new()
        .name("vcpu0".to_owned())
        .spawn(move || {
            let restricted = seccomp::enter(seccomp::Thread::Vcpu);
            let built = restricted.and_then(|()| build()).and_then(|(mut machine, rebuild)| {
                machine.vcpu.bind_to_this_thread()?;
                Ok((machine, rebuild))
            });
            match built {
                Ok((machine, rebuild)) => {
                    shared.set_kicker(machine.vcpu.kicker());
                    let _ = ready.send(Ok(()));
                    Engine::new(machine, rebuild, parts).run();
                }
                Err(error) => {
                    let _ = ready.send(Err(error));
                }
            }
        })
        .map_err(Error::Thread)?;
    match started.recv() {
        Ok(Ok(())) => Ok(thread),
        Ok(Err(error)) => {
            let _ = thread.join();
            Err(error)
        }
        Err(_) => Err(Error::EngineGone),
    }
}

impl Engine {
    fn new(machine: Machine, rebuild: Box<dyn Rebuild>, parts: EngineParts) -> Self {
        let mode = match parts.origin {
            Origin::World => Mode::Live,
            Origin::Log | Origin::Healer => {
                let pages = crate::machine::content_pages(&machine.memory).count();
                let curable = parts.origin == Origin::Healer;
                Mode::Replaying(Box::new(Replaying::new(pages, curable)))
            }
        };
        Self {
            machine,
            mode,
            clock: parts.clock,
            inbox: parts.inbox,
            reports: parts.reports,
            rebuild,
            waiting: std::collections::VecDeque::new(),
            paused: parts.paused,
            stalled: false,
            slowdown: Slowdown::default(),
            budget: DeltaBudget::default(),
            ended: None,
        }
    }

    /// Runs until the machine ends or the shell stops it, and reports how it ended.
    fn run(mut self) {
        self.apply_pace();
        if !self.paused {
            self.clock.start();
        }
        while self.ended.is_none() {
            let step = match self.mode {
                Mode::Live | Mode::Copying(_) | Mode::Recording(_) | Mode::Checkpointing(_) => {
                    self.step_live()
                }
                Mode::Replaying(_) => self.step_replaying(),
            };
            if let Err(error) = step {
                self.ended = Some(Ended::Failed(error.to_string()));
            }
        }
        let _ = self.emit(true);
        let ended = self.ended.take().unwrap_or(Ended::Stopped);
        self.reports.send(Report::Ended(ended));
    }

    /// Tells the shell how long an input may wait before it kicks the vCPU: at once in a plain
    /// VM, after the delta budget's patience in a recorded one, never in a replay.
    fn apply_pace(&self) {
        let shared = self.inbox.shared();
        match self.mode {
            Mode::Live | Mode::Copying(_) | Mode::Checkpointing(_) => {
                shared.set_patience(Shared::AT_ONCE);
            }
            Mode::Recording(_) => shared.set_patience(self.budget.patience_ns()),
            Mode::Replaying(_) => shared.set_patience(Shared::NEVER),
        }
    }

    /// Acts on what an exit or an input made the machine want.
    fn follow(&mut self, next: Next) -> Result<(), Error> {
        match next {
            Next::Run => Ok(()),
            Next::PowerOff => {
                self.finish_log(ft::EndReason::PowerOff)?;
                self.ended = Some(Ended::PowerOff);
                Ok(())
            }
            Next::Reset => self.reset(),
        }
    }

    /// Puts the machine back to its first state. Under a log this is a delta of everything: the
    /// other side needs neither the kernel file nor to run the loader.
    fn reset(&mut self) -> Result<(), Error> {
        self.rebuild.rebuild(&mut self.machine)?;
        self.record_everything()?;
        self.reports.send(Report::Reset);
        Ok(())
    }

    /// Splits the engine into the machine and the clock its models may ask while they handle an
    /// exit.
    fn machine_and_time(&mut self) -> (&mut Machine, Time<'_>) {
        let moment = self.machine.moment();
        let time = match &mut self.mode {
            Mode::Live | Mode::Copying(_) | Mode::Checkpointing(_) => Time::Live(&self.clock),
            Mode::Recording(recording) => {
                Time::Recording(&self.clock, &mut recording.recorder, moment)
            }
            Mode::Replaying(replaying) => Time::Replaying(replaying, moment),
        };
        (&mut self.machine, time)
    }
}
