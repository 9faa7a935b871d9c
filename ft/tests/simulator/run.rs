//! One run: two processes in a world, from a seed.

use ft::{AckMode, BackupState, Primary, PrimaryState, Settings};

use crate::backup_driver::BackupDriver;
use crate::breaks::Break;
use crate::faults::{END_US, Fault, plan};
use crate::host::{Clock, Inbox, Process, Role};
use crate::primary_driver::PrimaryDriver;
use crate::rng::Rng;
use crate::toy::Toy;
use crate::world::{Due, World};

pub struct Outcome {
    pub violation: Option<String>,
    pub takeovers: u64,
    pub wins: u64,
    pub generation: u64,
    pub excused: bool,
    pub trace: Vec<String>,
}

struct Run {
    world: World,
    processes: [Option<Process>; 2],
    clocks: [Clock; 2],
    settings: Settings,
    /// How often in a row everything was found as it should be, with all faults over.
    calm_checks: u32,
}

/// Runs one seed to its end, or to the first violation.
pub fn run(seed: u64, broken: Option<Break>, traced: bool) -> Outcome {
    let mut run = Run::new(seed, broken, traced);
    while let Some(due) = run.world.pop() {
        if run.world.now_us > END_US
            || run.calm_checks >= 3
            || run.world.checker.violation.is_some()
        {
            break;
        }
        run.due(due);
    }
    if run.world.checker.violation.is_none() {
        run.finish();
    }
    let checker = run.world.checker;
    let generation = run.world.arbiter.holders.keys().next_back().copied().unwrap_or(1);
    Outcome {
        violation: checker.violation,
        takeovers: checker.takeovers,
        wins: checker.wins,
        generation,
        excused: checker.excused,
        trace: run.world.trace.unwrap_or_default(),
    }
}

fn settings(rng: &mut Rng, broken: Option<Break>) -> Settings {
    let heartbeat_ms = rng.range(15, 50);
    let lease_ms = heartbeat_ms * rng.range(2, 6);
    // Longer than a disk write takes and than clocks differ.
    let timeout_ms = lease_ms * 11 / 10 + rng.range(90, 300);
    let ack = if rng.per_mille(500) { AckMode::Received } else { AckMode::Verified };
    let settings = Settings {
        ack,
        heartbeat_ms,
        timeout_ms,
        silence_ms: timeout_ms * rng.range(2, 4),
        lag_limit_ms: 2_000,
        lease_ms,
        arbiter_retry_ms: rng.range(20, 100),
        log_limit_bytes: 1 << rng.range(9, 17),
    };
    assert!(broken.is_some() || settings.check().is_ok());
    settings
}

impl Run {
    fn new(seed: u64, broken: Option<Break>, traced: bool) -> Self {
        let mut world = World::new(seed);
        world.broken = broken;
        world.trace = traced.then(Vec::new);
        let settings = settings(&mut world.rng, broken);
        world.lazy = world.rng.range(0, 10).saturating_sub(5) * 100;
        let clocks = [0, 1].map(|_| Clock {
            offset_us: world.rng.range(0, 1 << 40),
            per_mille: world.rng.range(980, 1021),
        });
        let machine = Toy::new(seed);
        let mut run = Self { world, processes: [None, None], clocks, settings, calm_checks: 0 };
        let mut process = Process::new(&mut run.world, 0, clocks[0], Role::Ended);
        let place = (0, process.id, clocks[0]);
        let now_ms = clocks[0].ms(&run.world);
        let primary = Primary::new(now_ms, [9; 16], 1);
        let settings = run.settings.clone();
        let driver = PrimaryDriver::new(&run.world, place, primary, machine, settings);
        process.role = Role::Primary(Box::new(driver));
        run.processes[0] = Some(process);
        run.world.checker.went_live(place.1, 1, Default::default());
        run.start_backup(1);
        for (at_us, fault) in plan(&mut run.world.rng) {
            run.world.after(at_us, Due::Fault(fault));
        }
        run
    }

    fn start_backup(&mut self, host: usize) {
        let clock = self.clocks[host];
        let mut process = Process::new(&mut self.world, host, clock, Role::Ended);
        let pace_us = self.world.rng.range(1_000, 9_000);
        let driver = BackupDriver::new(clock.ms(&self.world), host, process.id, pace_us);
        process.role = Role::Backup(Box::new(driver));
        self.processes[host] = Some(process);
        self.world.host_up[host] = true;
    }

    fn due(&mut self, due: Due) {
        match due {
            Due::Work { host, process } => {
                if let Some(found) = self.process(host, process) {
                    let (found, world) = found;
                    found.work(world);
                    if matches!(found.role, Role::Ended) && found.todo.is_empty() {
                        self.bury(host);
                    }
                }
            }
            Due::Arrive { host, process, what } => {
                if let Some((found, world)) = self.process(host, process) {
                    found.arrive(world, what);
                }
            }
            Due::Segment { stream, from } => self.world.segment(stream, from),
            Due::Datagram { from, to, bytes } => self.world.arrive(from, to, bytes),
            Due::Asked { host, process, generation } => {
                self.world.decide(host, process, generation);
            }
            Due::Landed(write) => {
                if !self.world.vanished.contains(&write.process) {
                    self.world.checker.landed(write.process, write.generation);
                    self.world.disk.insert(write.sector, write.value);
                }
            }
            Due::Buried { host, process } => {
                let reset = self.world.rng.per_mille(500);
                self.world.close_all(process, reset);
                if self.world.process[host] == u64::MAX {
                    self.world.process[host] = 0;
                }
            }
            Due::Fault(fault) => self.fault(fault),
        }
    }

    fn process(&mut self, host: usize, id: u64) -> Option<(&mut Process, &mut World)> {
        let process = self.processes[host].as_mut().filter(|process| process.id == id)?;
        Some((process, &mut self.world))
    }

    /// A process ends: its kernel closes everything once no write of it is under way.
    fn bury(&mut self, host: usize) {
        let Some(process) = self.processes[host].take() else { return };
        self.world.say(|| format!("host {host}: process {} has ended", process.id));
        self.world.process[host] = u64::MAX;
        let busy_us = self.world.busy_until_us[host].saturating_sub(self.world.now_us);
        let delay_us = busy_us + self.world.rng.range(100, 2_000);
        self.world.after(delay_us, Due::Buried { host, process: process.id });
        let wait_us = delay_us + self.world.rng.range(10_000, 1_500_000);
        self.world.after(wait_us, Due::Fault(Fault::Restart(host)));
    }

    fn fault(&mut self, fault: Fault) {
        self.world.say(|| format!("FAULT {fault:?}"));
        let now_us = self.world.now_us;
        match fault {
            Fault::KillProcess(host) => {
                self.excuse_death(host);
                self.bury(host);
            }
            Fault::KillHost(host) => {
                self.excuse_death(host);
                let Some(process) = self.processes[host].take() else { return };
                if self.world.rng.per_mille(500) {
                    self.world.vanished.push(process.id);
                }
                self.world.process[host] = 0;
                self.world.host_up[host] = false;
                self.world.fall_silent(process.id);
                let wait_us = self.world.rng.range(500_000, 3_000_000);
                self.world.after(wait_us, Due::Fault(Fault::Restart(host)));
            }
            Fault::Pause { host, for_us } => {
                if let Some(process) = &mut self.processes[host] {
                    process.pause(&self.world);
                    let process = process.id;
                    self.world.after(for_us, Due::Fault(Fault::Resume { host, process }));
                }
            }
            Fault::Resume { host, process } => {
                if let Some((process, world)) = self.process(host, process) {
                    process.paused = false;
                    process.wake(world);
                }
            }
            Fault::Restart(host) => {
                if self.processes[host].is_none() && self.world.process[host] == 0 {
                    self.start_backup(host);
                }
            }
            Fault::Cut { from, for_us } => self.cut(from, for_us),
            Fault::CutBoth { for_us } => {
                self.cut(0, for_us);
                self.cut(1, for_us);
            }
            Fault::Reset(ends) => {
                if let Some(last) = self.world.streams.len().checked_sub(1) {
                    self.world.reset(last, ends);
                }
            }
            Fault::Loss { per_mille } => self.world.datagram_loss = per_mille,
            Fault::Slow { delay_max_us } => self.world.delay_max_us = delay_max_us,
            Fault::Corrupt { per_mille } => self.world.corrupt = per_mille,
            Fault::ArbiterOut { for_us } => self.world.arbiter.out_until_us = now_us + for_us,
            Fault::Ask { host, command } => {
                let process = self.world.process[host];
                let what = Inbox::Command(command);
                self.world.after(1, Due::Arrive { host, process, what });
            }
            Fault::Spoil(host) => {
                if let Some(Process { role: Role::Backup(driver), .. }) = &mut self.processes[host]
                {
                    // A copy that is not the machine cannot save it.
                    self.world.checker.excused |= driver.spoil();
                }
            }
            Fault::Calm => self.calm(),
            Fault::Look => self.look(),
        }
    }

    fn cut(&mut self, from: usize, for_us: u64) {
        let until_us = self.world.now_us + for_us;
        let cut = &mut self.world.cut_until_us[from][1 - from];
        *cut = until_us.max(*cut);
    }

    /// A pair that has been whole for a while needs no more watching.
    fn look(&mut self) {
        let whole = self.processes.iter().flatten().any(|process| match &process.role {
            Role::Primary(driver) => driver.primary.state() == PrimaryState::Protected,
            Role::Backup(_) | Role::Ended => false,
        });
        self.calm_checks = if whole { self.calm_checks + 1 } else { 0 };
        self.world.after(400_000, Due::Fault(Fault::Look));
    }

    fn calm(&mut self) {
        self.world.after(1_200_000, Due::Fault(Fault::Look));
        self.world.cut_until_us = [[0; 2]; 2];
        self.world.arbiter.out_until_us = 0;
        self.world.datagram_loss = 5;
        self.world.corrupt = 0;
        self.world.delay_max_us = 500;
        for process in self.processes.iter_mut().flatten() {
            process.paused = false;
            process.wake(&mut self.world);
        }
    }

    /// The pair survives one failure at a time. Notes if this one leaves nobody who could go on.
    fn excuse_death(&mut self, host: usize) {
        let Some(dying) = &self.processes[host] else { return };
        let survivor = match &self.processes[1 - host] {
            Some(Process { role: Role::Primary(driver), .. }) => {
                driver.primary.state() != PrimaryState::Halted
            }
            Some(Process { role: Role::Backup(driver), .. }) => match driver.backup.state() {
                BackupState::Following
                | BackupState::Draining
                | BackupState::Asking
                | BackupState::Won
                | BackupState::Live => true,
                BackupState::Waiting
                | BackupState::Preparing
                | BackupState::Joining
                | BackupState::Halted => false,
            },
            Some(Process { role: Role::Ended, .. }) | None => false,
        };
        // The arbiter had decided for the one that dies now: that is a second failure.
        let decided = self.world.arbiter.holders.iter().next_back();
        let generation = match &dying.role {
            Role::Primary(driver) => driver.primary.generation(),
            Role::Backup(driver) => driver.backup.generation(),
            Role::Ended => 0,
        };
        let chosen = decided.is_some_and(|(at, holder)| *holder == dying.id && *at > generation);
        let unprotected = match &dying.role {
            Role::Primary(driver) => matches!(
                driver.primary.state(),
                PrimaryState::Solo
                    | PrimaryState::Greeting
                    | PrimaryState::Copying
                    | PrimaryState::Leaving
            ),
            Role::Backup(_) | Role::Ended => false,
        };
        if !survivor || chosen || unprotected {
            self.world.checker.excused = true;
        }
    }

    fn finish(&mut self) {
        let now_us = self.world.now_us;
        let checker = &mut self.world.checker;
        let mut live = 0;
        for process in self.processes.iter().flatten() {
            let Role::Primary(driver) = &process.role else { continue };
            match driver.primary.state() {
                PrimaryState::Holding | PrimaryState::Yielding | PrimaryState::Halted => continue,
                PrimaryState::Solo
                | PrimaryState::Greeting
                | PrimaryState::Copying
                | PrimaryState::Protecting
                | PrimaryState::Protected
                | PrimaryState::Leaving => live += 1,
            }
            let open = driver.open_sectors();
            let history = driver.machine.devices.total;
            checker.finish(history, &open, &self.world.disk, now_us);
        }
        if live > 1 {
            checker.fail(String::from("two live at the end"));
        }
        if live == 0 && !checker.excused {
            checker.fail(String::from("nobody is live, though all faults are over"));
        }
        if live == 1 && checker.last_effect_us + 1_500_000 < now_us {
            checker.fail(String::from("the live machine shows nothing any more"));
        }
    }
}
