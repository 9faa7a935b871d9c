//! Who could still go on, and whether a run ended well.

use ft::{BackupState, PrimaryState};

use crate::host::{Process, Role};
use crate::run::Run;

impl Run {
    /// Whether a process is left that has the machine and may get the next generation. `without`: if
    /// the one on this host were not there.
    pub(crate) fn somebody_can_go_on(&self, without: Option<usize>) -> bool {
        self.processes.iter().flatten().any(|process| {
            let generation = match &process.role {
                Role::Primary(driver) => match driver.primary.state() {
                    PrimaryState::Halted => None,
                    // What has lived elsewhere does not come back here.
                    PrimaryState::Yielding | PrimaryState::Holding
                        if driver.purpose.is_move()
                            && self.world.checker.live_generation()
                                > driver.primary.generation() =>
                    {
                        None
                    }
                    _ => Some(driver.primary.generation()),
                },
                Role::Backup(driver) if driver.needs_word() => None,
                Role::Backup(driver) => match driver.backup.state() {
                    BackupState::Following
                    | BackupState::Draining
                    | BackupState::Asking
                    | BackupState::Won
                    | BackupState::Live => {
                        let generation = driver.backup.generation();
                        let leaves = self.world.checker.may_leave(generation);
                        let sound = !driver.spoilt.is_any() && driver.asked.is_none();
                        (sound && !leaves).then_some(generation)
                    }
                    BackupState::Waiting
                    | BackupState::Preparing
                    | BackupState::Joining
                    | BackupState::Halted => None,
                },
                Role::Ended => None,
            };
            let holder = generation.and_then(|at| self.world.arbiter.holders.get(&(at + 1)));
            let chosen_dies = without.is_some_and(|host| self.asks(host, generation));
            generation.is_some()
                && holder.is_none_or(|holder| *holder == process.id)
                && without != Some(process.host)
                && !chosen_dies
        })
    }

    /// Whether the process there has asked the arbiter for the generation after this one: it may
    /// get it even if it dies now.
    fn asks(&self, host: usize, generation: Option<u64>) -> bool {
        let asked = match self.processes[host].as_ref().map(|process| &process.role) {
            Some(Role::Primary(driver)) => (driver.primary.state() == PrimaryState::Holding)
                .then(|| driver.primary.generation()),
            Some(Role::Backup(driver)) => match driver.backup.state() {
                BackupState::Asking | BackupState::Won => Some(driver.backup.generation()),
                _ => None,
            },
            Some(Role::Ended) | None => None,
        };
        asked.is_some() && asked == generation
    }

    /// What it would mean that this one dies.
    pub(crate) fn label(&self, host: usize) -> &'static str {
        match self.processes[host].as_ref().map(|process| &process.role) {
            Some(Role::Primary(driver)) => match driver.primary.state() {
                PrimaryState::Solo | PrimaryState::Greeting | PrimaryState::Copying => {
                    "it was unprotected"
                }
                PrimaryState::Protecting | PrimaryState::Leaving => {
                    "its protection was beginning or ending"
                }
                PrimaryState::Holding => "the arbiter was deciding for it",
                PrimaryState::Protected if driver.primary.is_healing() => {
                    "its backup's copy was being healed"
                }
                PrimaryState::Protected | PrimaryState::Yielding | PrimaryState::Halted => {
                    "its backup was lost already"
                }
            },
            Some(Role::Backup(driver)) => match driver.backup.state() {
                BackupState::Asking | BackupState::Won => "the arbiter was deciding for it",
                _ => "its primary was lost already",
            },
            Some(Role::Ended) | None => "the arbiter decided for a dead process",
        }
    }

    /// Notes if nobody is left: more has failed than is promised to be survived.
    pub(crate) fn excuse(&mut self, why: &'static str) {
        if !self.somebody_can_go_on(None) && self.world.checker.excused.is_none() {
            self.world.say(|| format!("the machine is lost to a second failure: {why}"));
            self.world.checker.excused = Some(why);
        }
    }

    /// Protected, or rightly not.
    pub(crate) fn is_well(&self) -> bool {
        self.processes.iter().flatten().any(|process| match &process.role {
            Role::Primary(driver) => match driver.primary.state() {
                PrimaryState::Protected => true,
                PrimaryState::Solo => !driver.standbys.is_enabled() && self.stays_disabled,
                _ => false,
            },
            Role::Backup(_) | Role::Ended => false,
        })
    }

    /// For the trace: how everybody ended.
    fn tell(&mut self) {
        for process in self.processes.iter().flatten() {
            let state = match &process.role {
                Role::Primary(driver) => {
                    format!("{:?}, {:?}", driver.primary.state(), driver.standbys)
                }
                Role::Backup(driver) => format!("{:?}", driver.backup.state()),
                Role::Ended => String::from("ended"),
            };
            self.world.say(|| format!("host {} (process {}): {state}", process.host, process.id));
        }
    }

    pub(crate) fn finish(&mut self) {
        let now_us = self.world.now_us;
        let well = self.is_well();
        self.tell();
        let checker = &mut self.world.checker;
        let mut live = 0;
        for Process { role, .. } in self.processes.iter().flatten() {
            let Role::Primary(driver) = role else { continue };
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
            let waited_us = driver.output_waits_at_most_us();
            checker.finish(history, &open, &self.world.disk, (now_us, waited_us));
        }
        if live > 1 {
            checker.fail(String::from("two live at the end"));
        }
        if live == 0 && checker.excused.is_none() {
            checker.fail(String::from("nobody is live, though all faults are over"));
        }
        if live == 1 && checker.last_effect_us + 1_500_000 < now_us {
            checker.fail(String::from("the live machine shows nothing any more"));
        }
        if live == 1 && !well {
            checker.fail(String::from("the machine was not protected again, though it could be"));
        }
    }
}
