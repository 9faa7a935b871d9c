//! What goes wrong in a run, and when: drawn from the seed before it starts.

use crate::host::Command;
use crate::rng::Rng;

#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// The process dies; its kernel closes its sockets.
    KillProcess(usize),
    /// The host dies; nobody closes anything.
    KillHost(usize),
    /// The process is stopped, and goes on later.
    Pause {
        host: usize,
        for_us: u64,
    },
    Resume {
        host: usize,
        process: u64,
    },
    /// A new standby starts where nobody is.
    Restart(usize),
    /// Nothing gets from one host to the other.
    Cut {
        from: usize,
        for_us: u64,
    },
    /// Nothing gets through either way.
    CutBoth {
        for_us: u64,
    },
    /// The network ends the stream, for either end or both.
    Reset([bool; 2]),
    /// Datagrams are lost.
    Loss {
        per_mille: u64,
    },
    /// Everything takes long.
    Slow {
        delay_max_us: u64,
    },
    /// Bits flip.
    Corrupt {
        per_mille: u64,
    },
    /// The arbiter cannot be reached.
    ArbiterOut {
        for_us: u64,
    },
    /// Somebody asks for something.
    Ask {
        host: usize,
        command: Command,
    },
    /// A bit flips in the backup's machine.
    Spoil(usize),
    /// Everything that can be mended is.
    Calm,
    /// Has everything come right?
    Look,
}

/// Virtual time in which things go wrong, and in which they must be well again.
pub const STORM_US: u64 = 3_500_000;
pub const END_US: u64 = STORM_US + 4_500_000;

pub fn plan(rng: &mut Rng) -> Vec<(u64, Fault)> {
    let mut plan = vec![(STORM_US, Fault::Calm)];
    for _ in 0..rng.range(1, 7) {
        // Near each other more often than not: one fault alone is easily survived.
        let base_us = rng.range(1, 7) * 500_000;
        plan.push((base_us + rng.range(0, 80_000), one(rng)));
    }
    plan
}

fn one(rng: &mut Rng) -> Fault {
    let host = rng.range(0, 2) as usize;
    let longest_us = [250_000, 700_000, 2_500_000][rng.range(0, 3) as usize];
    let for_us = rng.range(20_000, longest_us);
    match rng.range(0, 28) {
        0..=3 => Fault::KillProcess(host),
        4..=5 => Fault::KillHost(host),
        6..=10 => Fault::Pause { host, for_us },
        11..=13 => Fault::Cut { from: host, for_us },
        14 => Fault::CutBoth { for_us },
        15..=17 => Fault::Reset(
            [(true, false), (false, true), (true, true)].map(|(a, b)| [a, b])
                [rng.range(0, 3) as usize],
        ),
        18 => Fault::Loss { per_mille: rng.range(100, 1001) },
        19 => Fault::Slow { delay_max_us: rng.range(5_000, 60_000) },
        20 => Fault::Corrupt { per_mille: rng.range(5, 60) },
        21..=22 => Fault::ArbiterOut { for_us },
        23 => Fault::Ask { host, command: Command::Disable },
        24..=26 => Fault::Ask { host, command: Command::Failover },
        _ => Fault::Spoil(host),
    }
}
