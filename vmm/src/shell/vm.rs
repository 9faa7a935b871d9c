//! One VM as the shell sees it: its configuration, its engine, its back ends, and who else takes
//! part in its life.
//!
//! Owns starting and ending an engine and the flow of its outputs. Does not own the API's words
//! (`lifecycle`) or the replica protocol (`crate::replica`).

use std::os::fd::AsRawFd;
use std::sync::mpsc::Receiver;
use std::thread::JoinHandle;

use ft::Output;
use hypervisor::{Cpuid, CpuidPolicy, GuestMemory, Kvm, guest_cpuid_with};
use vmm_sys_util::eventfd::EventFd;

use super::poller::{Interest, Poller, Source};
use super::world::{World, disk_capacities};
use crate::build::{self, Blueprint};
use crate::cli::DebugUndo;
use crate::config::VmConfig;
use crate::engine::{
    self, EngineHandle, EngineParts, LiveClock, Message, Origin, Rebuild, Report, ReportSink,
};
use crate::error::Error;
use crate::machine::Machine;
use crate::replica::Lease;

/// A VM's engine and what the shell needs to talk to it.
pub struct Running {
    /// The queue to the engine.
    pub engine: EngineHandle,
    /// The queue from the engine.
    pub reports: Receiver<Report>,
    /// Written when a report was sent.
    pub event: EventFd,
    /// Back ends; a backup has none before it goes live.
    pub world: Option<World>,
    /// What the guest sees as its CPU.
    pub cpuid: Cpuid,
    /// Sectors of each disk, in the configuration's order.
    pub disk_sectors: Vec<u64>,
    /// Whether the guest's kernel is one that can be replayed, as far as this host knows.
    pub treated: bool,
    /// The guest's memory, of a machine that follows.
    pub memory: Option<GuestMemory>,
    /// Until when the disks may be written.
    pub lease: Lease,
    thread: Option<JoinHandle<()>>,
}

/// What this host's KVM gives a guest, less what would not be deterministic.
///
/// # Errors
/// KVM cannot be used.
pub fn host_cpuid(kvm: &Kvm, undo: &[DebugUndo]) -> Result<Cpuid, Error> {
    let policy =
        CpuidPolicy { hide_apic_id: !undo.contains(&DebugUndo::ApicId), ..CpuidPolicy::default() };
    Ok(guest_cpuid_with(&kvm.supported_cpuid()?, policy))
}

impl Running {
    /// Starts a VM of its own: kernel loaded, devices open.
    ///
    /// # Errors
    /// The first thing that is missing or refused.
    pub fn boot(
        config: &VmConfig,
        undo: &[DebugUndo],
        paused: bool,
        poller: &Poller,
    ) -> Result<Self, Error> {
        let capacities = disk_capacities(config)?;
        let rewrite_tsc = !undo.contains(&DebugUndo::TscRewrite);
        let mut blueprint = Blueprint::new(config.clone(), capacities.clone(), rewrite_tsc);
        blueprint.read_kernel()?;
        let treated = blueprint.is_treated();
        let kvm = Kvm::open()?;
        let cpuid = host_cpuid(&kvm, undo)?;
        let guest = cpuid.clone();
        let build = move || {
            let machine = blueprint.build(&kvm, &guest)?;
            Ok((machine, Box::new(blueprint) as Box<dyn Rebuild>))
        };
        let mut running = Self::start(build, cpuid, capacities, Origin::World, paused)?;
        running.treated = treated;
        running.watch(poller)?;
        running.lease.set_until_ms(Lease::UNLIMITED_MS);
        running.open_world(config)?;
        running.enter_world(poller, true)?;
        Ok(running)
    }

    /// Starts a machine that follows a log, in a new memory or in one that has been used for the same
    /// VM before.
    ///
    /// # Errors
    /// KVM or guest RAM.
    pub fn follow(
        config: &VmConfig,
        cpuid: &Cpuid,
        disk_sectors: Vec<u64>,
        (origin, memory): (Origin, Option<GuestMemory>),
        poller: &Poller,
    ) -> Result<Self, Error> {
        let kvm = Kvm::open()?;
        hypervisor::check_cpuid(cpuid, &kvm.supported_cpuid()?)?;
        let mut blueprint = Blueprint::new(config.clone(), Vec::new(), true);
        let memory = match memory {
            Some(memory) => memory,
            None => build::memory(config.memory.size)?,
        };
        let (guest, ram) = (cpuid.clone(), memory.clone());
        let build = move || {
            let machine = blueprint.build_blank(&kvm, &guest, ram)?;
            Ok((machine, Box::new(blueprint) as Box<dyn Rebuild>))
        };
        let mut running = Self::start(build, cpuid.clone(), disk_sectors, origin, false)?;
        running.memory = Some(memory);
        running.watch(poller)?;
        Ok(running)
    }

    fn start(
        build: impl FnOnce() -> Result<(Machine, Box<dyn Rebuild>), Error> + Send + 'static,
        cpuid: Cpuid,
        disk_sectors: Vec<u64>,
        origin: Origin,
        paused: bool,
    ) -> Result<Self, Error> {
        let (engine, inbox) = EngineHandle::new();
        let (sink, reports, event) = ReportSink::new()?;
        let clock = LiveClock::stopped_at(0);
        let parts = EngineParts { clock, inbox, reports: sink, origin, paused };
        let thread = engine::spawn(build, parts)?;
        let lease = Lease::default();
        Ok(Self {
            engine,
            reports,
            event,
            world: None,
            cpuid,
            disk_sectors,
            treated: true,
            memory: None,
            lease,
            thread: Some(thread),
        })
    }

    /// Opens the back ends, without letting anything in or out yet.
    ///
    /// # Errors
    /// The first one that cannot be opened.
    pub fn open_world(&mut self, config: &VmConfig) -> Result<(), Error> {
        self.world = Some(World::open(config, self.engine.clone(), &self.lease)?);
        Ok(())
    }

    /// Takes the disks over and listens to the taps. A disk that is still locked is an error only
    /// where `must_lock` says so: who takes over has asked the arbiter, which knows better than
    /// the lock of a process that may be dead or stopped.
    ///
    /// # Errors
    /// A disk that somebody else uses; a descriptor that cannot be watched.
    pub fn enter_world(&mut self, poller: &Poller, must_lock: bool) -> Result<(), Error> {
        let Some(world) = &mut self.world else { return Ok(()) };
        match world.lock() {
            Err(error) if must_lock => return Err(error),
            Err(error) => log::warn!("going on without the lock: {error}"),
            Ok(()) => {}
        }
        world.watch(poller)
    }

    /// See [`World::writes_outlive_their_process`].
    pub fn writes_outlive_their_process(&self) -> bool {
        self.world.as_ref().is_some_and(World::writes_outlive_their_process)
    }

    fn watch(&self, poller: &Poller) -> Result<(), Error> {
        poller.watch(self.event.as_raw_fd(), Source::Engine, Interest::Read)
    }

    /// Carries out an output that may leave.
    pub fn carry_out(&mut self, output: Output) {
        if let Some(world) = &mut self.world {
            world.carry_out(output);
        }
    }

    /// Takes the reports that have arrived.
    pub fn take_reports(&self) -> Vec<Report> {
        let _ = self.event.read();
        self.reports.try_iter().collect()
    }

    /// Ends the engine and closes the back ends; disk requests under way are finished first.
    pub fn end(mut self, poller: &Poller) {
        self.lease.revoke_unless_unlimited();
        self.engine.send(Message::Stop);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("the vCPU's thread panicked");
        }
        poller.forget(self.event.as_raw_fd());
        if let Some(world) = &mut self.world {
            world.forget(poller);
            world.drain();
        }
    }
}
