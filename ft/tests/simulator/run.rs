//! One run: processes on a few hosts, one of which has the machine, from a seed.

use ft::{AckMode, Compression, Patience, Primary, Purpose, Settings};

use crate::backup_driver::{BackupDriver, standbys};
use crate::breaks::Break;
use crate::checker::Checker;
use crate::faults::{self, CALM_US, plan};
use crate::host::{Process, Role};
use crate::partitions::{self, Row};
use crate::primary_driver::PrimaryDriver;
use crate::queue::Due;
use crate::rng::{Rng, mix};
use crate::tally::Tally;
use crate::toy::Toy;
use crate::world::World;

pub struct Outcome {
    pub violation: Option<String>,
    pub tally: Tally,
    pub trace: Vec<String>,
}

pub struct Run {
    pub(crate) world: World,
    pub(crate) processes: Vec<Option<Process>>,
    settings: Settings,
    patience: Patience,
    /// Second failures are not put off.
    pub(crate) ruthless: bool,
    pub(crate) puts_off: u32,
    /// Whoever ended the protection does not begin it again.
    pub(crate) stays_disabled: bool,
    /// All faults are over.
    pub(crate) is_calm: bool,
    /// How often in a row everything was found as it should be since then.
    pub(crate) calm_checks: u32,
    end_us: u64,
    /// The most that a backup takes for what the machine does in 3 to 12 ms.
    pace_max_us: u64,
}

/// Runs one seed to its end, or to the first violation.
pub fn run(seed: u64, broken: Option<Break>, traced: bool) -> Outcome {
    play(Run::new(seed, broken, traced, None))
}

/// The same with nothing that goes wrong but what this row of the partition matrix says.
pub fn run_row(seed: u64, broken: Option<Break>, traced: bool, row: &Row) -> Outcome {
    play(Run::new(seed, broken, traced, Some(row)))
}

fn play(mut run: Run) -> Outcome {
    while let Some(due) = run.world.pop() {
        if run.world.now_us > run.end_us
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
    let Checker { violation, mut tally, excused, .. } = run.world.checker;
    tally.seeds = 1;
    tally.lost_anyway = u64::from(excused.is_some() && !run.ruthless);
    tally.excused.extend(excused.map(|why| (why, 1)));
    Outcome { violation, tally, trace: run.world.trace.unwrap_or_default() }
}

/// Settings, and how long a disk write may take with them.
fn settings(rng: &mut Rng, broken: Option<Break>) -> (Settings, u64) {
    let heartbeat_ms = rng.range(20, 50);
    let lease_ms = heartbeat_ms * rng.range(2, 6);
    let disk_bound_ms = rng.range(60, 250);
    // The sum of what `docs/PROTOCOL.md` assumes: clocks are up to 3 % wrong, and a heartbeat's
    // worth of a clock's jump counts.
    let timeout_ms = ((lease_ms * 100 / 97) + disk_bound_ms + heartbeat_ms + 5) * 103 / 100 + 1;
    let ack = if rng.per_mille(500) { AckMode::Received } else { AckMode::Verified };
    let settings = Settings {
        purpose: Purpose::Protection,
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
    (settings, disk_bound_ms * 1000)
}

impl Run {
    fn new(seed: u64, broken: Option<Break>, traced: bool, row: Option<&Row>) -> Self {
        let mut rng = Rng::new(seed);
        let hosts = row.map_or([2, 3, 3, 4][rng.range(0, 4) as usize], |_| 2);
        let (settings, disk_bound_us) = settings(&mut rng, broken);
        let patience = Patience { first_ms: rng.range(20, 150), longest_ms: rng.range(200, 800) };
        let ruthless = rng.per_mille(60);
        let stays_disabled = rng.per_mille(250) && row.is_none();
        let plan = match row {
            Some(row) => partitions::plan(&mut rng, row),
            // Not drawn, either.
            None if mix(seed).is_multiple_of(40) => faults::beginnings(&mut rng),
            None if (1..5).contains(&(mix(seed) % 40)) => faults::healings(&mut rng),
            None => plan(&mut rng, hosts),
        };
        let mut world = World::new(rng, hosts);
        // Every other run, and not drawn: all that is drawn stays what it was.
        world.compression = Compression::ALL[(seed % 2) as usize];
        // Half of the runs know replay alone; in the others a machine may go from one to the other.
        world.checkpoint_per_mille = [0, 0, 500, 700][(seed / 2 % 4) as usize];
        world.method_seed = mix(seed);
        world.broken = broken;
        world.trace = traced.then(Vec::new);
        world.disk_bound_us = disk_bound_us;
        world.lazy = [0, 0, 0, 100, 300, 700][world.rng.range(0, 6) as usize];
        for (at_us, fault) in plan.faults {
            world.after(at_us, Due::Fault(fault));
        }
        let mut run = Self {
            world,
            processes: (0..hosts).map(|_| None).collect(),
            settings,
            patience,
            ruthless,
            puts_off: 0,
            stays_disabled,
            is_calm: false,
            calm_checks: 0,
            end_us: plan.storm_us + CALM_US,
            // Nothing ends the pair of an uneventful row, so that it must not fall ever further behind.
            pace_max_us: if row.is_some() { 6_000 } else { 9_000 },
        };
        run.start_machine(Toy::new(seed));
        (1..hosts).for_each(|host| run.start_standby(host));
        run
    }

    fn start_machine(&mut self, machine: Toy) {
        let world = &mut self.world;
        let primary = Primary::new(world.clock_ms(0), [9; 16], 1);
        let standbys = standbys(world, 0, self.patience);
        let settings = self.settings.clone();
        let place = (0, world.next_process);
        let driver = PrimaryDriver::new(world, place, primary, standbys, machine, settings);
        let process = Process::new(world, 0, Role::Primary(Box::new(driver)));
        world.checker.went_live(process.id, 1, Default::default());
        self.processes[0] = Some(process);
    }

    pub(crate) fn start_standby(&mut self, host: usize) {
        let world = &mut self.world;
        let pace_us = world.rng.range(1_000, self.pace_max_us);
        let place = (host, world.next_process);
        let driver = BackupDriver::new(world.clock_ms(host), place, pace_us, self.patience);
        let process = Process::new(world, host, Role::Backup(Box::new(driver)));
        world.hosts[host].up = true;
        self.processes[host] = Some(process);
    }

    fn due(&mut self, due: Due) {
        match due {
            Due::Work { host, process } => {
                if let Some((found, world)) = self.process(host, process) {
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
            Due::Connect { host, process, to } => self.world.connected(host, process, to),
            Due::Segment { stream, from } => {
                let arrived = self.world.segment(stream, from);
                self.deliver(arrived);
            }
            Due::Datagram { from, to, bytes } => {
                let arrived = self.world.datagram_arrives(from, to, bytes);
                self.deliver(arrived);
            }
            Due::Asked { host, process, generation } => self.asked(host, process, generation),
            Due::Landed(write) => {
                if !self.world.vanished.contains(&write.process) {
                    self.world.checker.landed(write.process, write.generation);
                    self.world.disk.insert(write.sector, write.value);
                }
            }
            Due::Buried { host, process } => {
                let reset = self.world.rng.per_mille(500);
                self.world.close_all(process, reset);
                if self.world.hosts[host].process == u64::MAX {
                    self.world.hosts[host].process = 0;
                    self.world.hosts[host].ports.clear();
                }
            }
            Due::Fault(fault) => self.fault(fault),
        }
    }

    fn deliver(&mut self, arrived: Option<(usize, u64, crate::host::Inbox)>) {
        if let Some((host, process, what)) = arrived
            && let Some((found, world)) = self.process(host, process)
        {
            found.arrive(world, what);
        }
    }

    fn asked(&mut self, host: usize, process: u64, generation: u64) {
        let is_dead = self.world.hosts[host].process != process;
        // A question that has been on its way for long ended with who asked it.
        if is_dead && self.world.rng.per_mille(500) {
            return;
        }
        self.world.decide(host, process, generation);
        if is_dead {
            self.excuse("the arbiter decided for a dead process");
        }
    }

    pub(crate) fn process(&mut self, host: usize, id: u64) -> Option<(&mut Process, &mut World)> {
        let process = self.processes[host].as_mut().filter(|process| process.id == id)?;
        Some((process, &mut self.world))
    }
}
