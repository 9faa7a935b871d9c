//! What goes wrong in a run, and when: drawn from the seed before it starts.

use crate::host::Command;
use crate::partitions::Row;
use crate::rng::Rng;

/// Whom a fault hits; looked up when it happens.
#[derive(Clone, Copy, Debug)]
pub enum Who {
    /// The host where the machine runs.
    Live,
    /// The host of its backup.
    Follower,
    /// This host.
    Host(usize),
}

/// What a fault lurks for.
#[derive(Clone, Copy, Debug)]
pub enum Until {
    /// A machine that moves is complete at the other side.
    Complete,
    /// It has been yielded.
    Yielded,
    /// A copy is to be healed.
    Asked,
    /// The primary has been told how it differs.
    Told,
    /// So many copies have been healed.
    Healed(u64),
}

#[derive(Clone, Debug)]
pub enum Fault {
    /// The process dies; its kernel closes its sockets.
    KillProcess(Who),
    /// The host dies; nobody closes anything.
    KillHost(Who),
    /// The process is stopped, and goes on later.
    Pause { who: Who, for_us: u64 },
    /// The whole host is. Its clock goes on, or is set on by a little more than really passed.
    Suspend { who: Who, for_us: u64, jump_us: u64 },
    /// If it was a suspended host: since when.
    Resume { host: usize, process: u64, jump_us: u64, since_us: Option<u64> },
    /// A new standby starts where nobody is.
    Restart(usize),
    /// Nothing gets from one host to another, or either way.
    Cut { from: Who, to: Who, both: bool, for_us: u64 },
    /// Nothing gets to a host or away from it.
    Isolate { who: Who, for_us: u64 },
    /// The network ends the newest stream but so many, for either end or both.
    Reset { back: usize, ends: [bool; 2] },
    /// Datagrams are lost.
    Loss { per_mille: u64 },
    /// Everything takes long.
    Slow { delay_max_us: u64 },
    /// Bits flip.
    Corrupt { per_mille: u64 },
    /// The arbiter cannot be reached from these hosts (a bit each).
    ArbiterOut { hosts: u64, for_us: u64 },
    /// The arbiter takes its time.
    ArbiterSlow { max_us: u64, for_us: u64 },
    /// Disk writes take as long as they ever may.
    SlowDisk { who: Who, for_us: u64 },
    /// A backup takes long to replay.
    Lag { who: Who, for_us: u64 },
    /// Somebody asks for something.
    Ask { who: Who, command: Command },
    /// This happens as soon as it has come so far, if it does within so many milliseconds.
    Lurk { left_ms: u64, until: Until, then: Box<Fault> },
    /// As soon as a backup follows by a newer stream than this one (counted from 1), its primary is
    /// cut off from it and dies; and so often.
    Strike { stream: usize, times: u32 },
    /// Somebody looks whether a machine that this process has yielded is anywhere.
    Find { host: usize, process: u64 },
    /// A bit flips in the backup's machine.
    Spoil(Who),
    /// A row of the partition matrix begins, as soon as the pair is whole.
    Partition(Row),
    /// It ends: who was the primary's process, who the backup's.
    Judge { row: Row, pair: [u64; 2] },
    /// Everything that can be mended is.
    Calm,
    /// Has everything come right?
    Look,
}

/// Virtual time after the storm in which everything must come right.
pub const CALM_US: u64 = 6_000_000;

pub struct Plan {
    pub faults: Vec<(u64, Fault)>,
    /// When the storm is over.
    pub storm_us: u64,
}

pub fn plan(rng: &mut Rng, hosts: usize) -> Plan {
    let mut faults = vec![];
    let mut at_us = 0;
    let kind = rng.range(0, 100);
    if kind < 3 {
        at_us = late_answer(rng, &mut faults);
    } else if kind < 5 {
        at_us = jump(rng, &mut faults);
    } else if kind < 11 {
        at_us = struck(rng, hosts, &mut faults);
    } else if kind < 25 {
        // One after the other, so that each finds the machine protected again more often than not.
        for _ in 0..rng.range(4, 11) {
            at_us += rng.range(300_000, 1_100_000);
            match rng.per_mille(700) {
                true => faults.push((at_us, blow(rng))),
                false => faults.extend(later(at_us, one(rng, hosts))),
            }
        }
    } else {
        for _ in 0..rng.range(1, 7) {
            // Near each other more often than not: one fault alone is easily survived.
            let base_us = rng.range(1, 7) * 500_000 + rng.range(0, 80_000);
            faults.extend(later(base_us, one(rng, hosts)));
            at_us = at_us.max(base_us);
        }
    }
    let storm_us = at_us + 400_000;
    faults.retain(|(at_us, _)| *at_us < storm_us);
    faults.push((storm_us, Fault::Calm));
    Plan { faults, storm_us }
}

/// Machines that are lost as soon as they are protected, one after the other.
pub fn beginnings(rng: &mut Rng) -> Plan {
    let times = rng.range(3, 8) as u32;
    let storm_us = u64::from(times) * 700_000;
    // Where words take long, there is time for wrong ones in between.
    let slow = Fault::Slow { delay_max_us: rng.range(2_000, 30_000) };
    let strike = Fault::Strike { stream: 0, times };
    let faults = vec![(0, slow), (0, strike), (storm_us, Fault::Calm)];
    Plan { faults, storm_us }
}

/// Copies are spoiled, and something happens while they are healed, or right after.
pub fn healings(rng: &mut Rng) -> Plan {
    let mut faults =
        vec![(0, Fault::Slow { delay_max_us: [500, 500, 8_000][rng.range(0, 3) as usize] })];
    let mut at_us = 0;
    for count in 0..rng.range(2, 6) {
        at_us += rng.range(500_000, 900_000);
        faults.push((at_us, Fault::Spoil(Who::Follower)));
        let until = match rng.range(0, 8) {
            0..=2 => Until::Asked,
            3..=4 => Until::Told,
            _ => Until::Healed(count),
        };
        let then = Box::new(meanwhile(rng));
        faults.push((at_us, Fault::Lurk { left_ms: 400, until, then }));
    }
    let storm_us = at_us + 500_000;
    faults.push((storm_us, Fault::Calm));
    Plan { faults, storm_us }
}

/// What may happen while a copy is healed.
fn meanwhile(rng: &mut Rng) -> Fault {
    let who = if rng.per_mille(500) { Who::Live } else { Who::Follower };
    let for_us = rng.range(20_000, 900_000);
    let ask = |command| Fault::Ask { who: Who::Live, command };
    match rng.range(0, 20) {
        0..=2 => Fault::Reset {
            back: 0,
            ends: [[true, false], [false, true], [true, true]][rng.range(0, 3) as usize],
        },
        3..=4 => {
            let (from, to) = match rng.per_mille(500) {
                true => (Who::Live, Who::Follower),
                false => (Who::Follower, Who::Live),
            };
            Fault::Cut { from, to, both: rng.per_mille(300), for_us }
        }
        5..=6 => Fault::Pause { who, for_us },
        7..=9 => Fault::KillProcess(Who::Live),
        10..=11 => Fault::KillHost(Who::Live),
        12 => Fault::KillProcess(Who::Follower),
        13..=14 => ask(Command::Failover),
        15 => ask(Command::Disable),
        16 => ask(Command::Suspend(true)),
        17 => Fault::Lag { who: Who::Follower, for_us },
        _ => Fault::Spoil(Who::Follower),
    }
}

/// A promise comes while the arbiter still ponders a question, and the next pair breaks before the
/// answer is there.
fn late_answer(rng: &mut Rng, faults: &mut Vec<(u64, Fault)>) -> u64 {
    let at_us = rng.range(300_000, 600_000);
    let mut add = |wait_us, fault| faults.push((at_us + wait_us, fault));
    let live = |command| Fault::Ask { who: Who::Live, command };
    add(0, Fault::ArbiterSlow { max_us: 4_000_000, for_us: 3_000_000 });
    add(1, live(Command::Disable));
    let (from, to) = (Who::Follower, Who::Live);
    add(2, Fault::Cut { from, to, both: false, for_us: rng.range(300_000, 900_000) });
    add(3, live(Command::Enable));
    for wait_us in [rng.range(900_000, 1_600_000), rng.range(1_600_000, 2_500_000)] {
        add(
            wait_us,
            match rng.per_mille(500) {
                true => Fault::Reset { back: 0, ends: [true, true] },
                false => Fault::KillProcess(Who::Live),
            },
        );
    }
    at_us + 2_500_000
}

/// A backup whose stream has ended waits for the fence, and its host is suspended for a moment that
/// its clock takes for a second.
fn jump(rng: &mut Rng, faults: &mut Vec<(u64, Fault)>) -> u64 {
    let at_us = rng.range(300_000, 600_000);
    faults.push((at_us, Fault::Reset { back: 0, ends: [false, true] }));
    let (who, for_us) = (Who::Follower, rng.range(20_000, 80_000));
    let jump_us = rng.range(100_000, 1_000_000);
    faults.push((at_us + rng.range(1_000, 60_000), Fault::Suspend { who, for_us, jump_us }));
    at_us + 1_000_000
}

fn later(at_us: u64, faults: Vec<(u64, Fault)>) -> impl Iterator<Item = (u64, Fault)> {
    faults.into_iter().map(move |(wait_us, fault)| (at_us + wait_us, fault))
}

fn who(rng: &mut Rng, hosts: usize) -> Who {
    match rng.range(0, 10) {
        0..=4 => Who::Live,
        5..=7 => Who::Follower,
        _ => Who::Host(rng.range(0, hosts as u64) as usize),
    }
}

/// A machine that is moved while it is struck: it has to be copied first, and its sender is lost,
/// or the network, about when that is done.
fn struck(rng: &mut Rng, hosts: usize, faults: &mut Vec<(u64, Fault)>) -> u64 {
    let mut at_us = 0;
    for _ in 0..rng.range(2, 6) {
        at_us += rng.range(400_000, 900_000);
        faults.push((at_us, migrate(rng, hosts)));
        let (from, to) = match rng.per_mille(200) {
            true => (Who::Live, Who::Follower),
            false => (Who::Follower, Who::Live),
        };
        let for_us = rng.range(20_000, 700_000);
        let blow = match rng.range(0, 10) {
            0..=3 => Fault::Cut { from, to, both: rng.per_mille(300), for_us },
            4..=5 => Fault::Reset {
                back: 0,
                ends: [[true, false], [false, true], [true, true]][rng.range(0, 3) as usize],
            },
            6 => Fault::KillProcess(Who::Follower),
            7 => Fault::KillProcess(Who::Live),
            8 => Fault::Pause { who: Who::Follower, for_us },
            _ => Fault::Pause { who: Who::Live, for_us },
        };
        // Most of them when it matters most.
        faults.push(match rng.per_mille(700) {
            true => {
                let until = if rng.per_mille(650) { Until::Yielded } else { Until::Complete };
                (at_us, Fault::Lurk { left_ms: 800, until, then: Box::new(blow) })
            }
            false => (at_us + rng.range(20_000, 400_000), blow),
        });
    }
    at_us + 1_500_000
}

fn migrate(rng: &mut Rng, hosts: usize) -> Fault {
    let (to, arbiter) = (rng.range(0, hosts as u64) as usize, rng.per_mille(300));
    Fault::Ask { who: Who::Live, command: Command::Migrate { to, arbiter } }
}

/// Something that ends a pair.
fn blow(rng: &mut Rng) -> Fault {
    let who = if rng.per_mille(650) { Who::Live } else { Who::Follower };
    match rng.range(0, 10) {
        0..=4 => Fault::KillProcess(who),
        5..=6 => Fault::KillHost(who),
        // Long enough to wake up in another generation.
        7..=8 => Fault::Pause { who, for_us: rng.range(300_000, 5_000_000) },
        _ => Fault::Ask { who: Who::Live, command: Command::Failover },
    }
}

/// One fault, and what undoes it, with their times from now.
fn one(rng: &mut Rng, hosts: usize) -> Vec<(u64, Fault)> {
    let who = who(rng, hosts);
    let longest_us = [250_000, 700_000, 2_500_000][rng.range(0, 3) as usize];
    let for_us = rng.range(20_000, longest_us);
    let fault = match rng.range(0, 50) {
        0..=4 => Fault::KillProcess(who),
        5..=6 => Fault::KillHost(who),
        7..=12 => Fault::Pause { who, for_us },
        13..=15 => {
            let jump_us = rng.range(0, 2) * rng.range(0, 1_000_000);
            Fault::Suspend { who, for_us, jump_us }
        }
        number @ 16..=33 => network(rng, hosts, number, for_us),
        34..=35 => Fault::SlowDisk { who, for_us },
        36 => Fault::Lag { who: Who::Follower, for_us },
        37..=38 => Fault::Spoil(Who::Follower),
        number => return asked(rng, hosts, number, for_us),
    };
    vec![(0, fault)]
}

fn network(rng: &mut Rng, hosts: usize, number: u64, for_us: u64) -> Fault {
    let who = who(rng, hosts);
    match number {
        16..=20 => {
            let (from, to) = match rng.per_mille(500) {
                true => (Who::Live, Who::Follower),
                false => (Who::Follower, Who::Live),
            };
            Fault::Cut { from, to, both: rng.per_mille(300), for_us }
        }
        21 => {
            let [from, to] = [0, 1].map(|_| Who::Host(rng.range(0, hosts as u64) as usize));
            Fault::Cut { from, to, both: rng.per_mille(500), for_us }
        }
        22..=23 => Fault::Isolate { who, for_us },
        24..=26 => {
            let ends = [[true, false], [false, true], [true, true]][rng.range(0, 3) as usize];
            Fault::Reset { back: rng.range(0, 2) as usize, ends }
        }
        27 => Fault::Loss { per_mille: rng.range(100, 1001) },
        28 => Fault::Slow { delay_max_us: rng.range(5_000, 60_000) },
        29 => Fault::Corrupt { per_mille: rng.range(5, 60) },
        30..=31 => {
            // Sometimes for as long as the storm lasts.
            let for_us = for_us * if rng.per_mille(300) { 20 } else { 1 };
            Fault::ArbiterOut { hosts: rng.next() | 1 << rng.range(0, hosts as u64), for_us }
        }
        _ => Fault::ArbiterSlow { max_us: rng.range(20_000, 1_500_000), for_us },
    }
}

fn asked(rng: &mut Rng, hosts: usize, number: u64, for_us: u64) -> Vec<(u64, Fault)> {
    let live = |command| Fault::Ask { who: Who::Live, command };
    let mut after = None;
    let fault = match number {
        39 => {
            after = rng.per_mille(500).then(|| (for_us, live(Command::Enable)));
            live(Command::Disable)
        }
        40..=42 => live(Command::Failover),
        43 => live(Command::Move(rng.range(0, hosts as u64) as usize)),
        44 => {
            let chosen = rng.next();
            let list = (0..hosts).filter(|host| chosen >> host & 1 == 1).collect();
            live(Command::Standbys(list))
        }
        46..=49 => migrate(rng, hosts),
        _ => {
            after = Some((for_us, live(Command::Suspend(false))));
            live(Command::Suspend(true))
        }
    };
    [(0, fault)].into_iter().chain(after).collect()
}
