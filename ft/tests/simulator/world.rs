//! Everything around the processes: virtual time, the hosts they run on, the arbiter, the shared
//! disk. The network is in `network`.

use std::collections::BTreeMap;

use ft::{Answer, Compression};

use crate::breaks::Break;
use crate::checker::Checker;
use crate::host::Inbox;
use crate::network::Network;
use crate::queue::{Due, Queue};
use crate::rng::{Rng, mix};

/// A host's kernel, clock and hardware.
#[derive(Debug)]
pub struct Host {
    /// The process there; 0 if there is none, `u64::MAX` while one is being buried.
    pub process: u64,
    pub up: bool,
    /// The datagram ports that the process has open.
    pub ports: Vec<u64>,
    pub clock: Clock,
    /// Until when the kernel is busy with disk writes of the process there.
    pub busy_until_us: u64,
    /// Until when disk writes take as long as they ever may.
    pub disk_slow_until_us: u64,
    /// Until when the arbiter cannot be reached from here.
    pub arbiter_out_until_us: u64,
    /// Until when no question gets from here to the arbiter. (One that is out may have heard it.)
    pub arbiter_cut_until_us: u64,
    /// Until when a backup here is slow.
    pub lags_until_us: u64,
}

/// Clocks agree neither on the time nor quite on its speed.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    pub offset_us: u64,
    pub per_mille: u64,
}

pub struct World {
    pub now_us: u64,
    queue: Queue,
    pub rng: Rng,
    pub network: Network,
    pub hosts: Vec<Host>,
    pub arbiter: Arbiter,
    pub disk: BTreeMap<u64, u64>,
    /// What primaries do with large parts of their streams.
    pub compression: Compression,
    /// Of 1000 joins, how many are by checkpoints; and what decides which.
    pub checkpoint_per_mille: u64,
    pub method_seed: u64,
    /// The longest that a disk write may take.
    pub disk_bound_us: u64,
    pub next_process: u64,
    /// How slow those are who carry outputs out.
    pub lazy: u64,
    /// Processes whose host died before their disk writes reached the disk.
    pub vanished: Vec<u64>,
    pub checker: Checker,
    pub trace: Option<Vec<String>>,
    pub broken: Option<Break>,
}

/// One test-and-set per generation.
#[derive(Debug, Default)]
pub struct Arbiter {
    pub holders: BTreeMap<u64, u64>,
    pub slow_until_us: u64,
    pub slow_max_us: u64,
}

impl World {
    pub fn new(mut rng: Rng, hosts: usize) -> Self {
        let clocks: Vec<Clock> = (0..hosts)
            .map(|_| Clock { offset_us: rng.range(0, 1 << 40), per_mille: rng.range(972, 1029) })
            .collect();
        let host = |clock| Host {
            process: 0,
            up: true,
            ports: vec![],
            clock,
            busy_until_us: 0,
            disk_slow_until_us: 0,
            arbiter_out_until_us: 0,
            arbiter_cut_until_us: 0,
            lags_until_us: 0,
        };
        Self {
            now_us: 0,
            queue: Queue::default(),
            rng,
            network: Network::new(hosts),
            hosts: clocks.into_iter().map(host).collect(),
            arbiter: Arbiter::default(),
            disk: BTreeMap::new(),
            compression: Compression::Off,
            checkpoint_per_mille: 0,
            method_seed: 0,
            disk_bound_us: 60_000,
            next_process: 1,
            lazy: 0,
            vanished: vec![],
            checker: Checker::default(),
            trace: None,
            broken: None,
        }
    }

    pub fn is(&self, broken: Break) -> bool {
        self.broken == Some(broken)
    }

    /// Whether the machine that is joined over this stream is kept by checkpoints. Not drawn: all
    /// that is drawn stays what it was.
    pub fn chooses_checkpoints(&self, stream: usize) -> bool {
        mix(self.method_seed ^ stream as u64) % 1000 < self.checkpoint_per_mille
    }

    pub fn say(&mut self, line: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{:>11.3} ms  {}", self.now_us as f64 / 1000.0, line()));
        }
    }

    pub fn after(&mut self, delay_us: u64, due: Due) {
        self.queue.push(self.now_us + delay_us, due);
    }

    pub fn pop(&mut self) -> Option<Due> {
        let (at_us, due) = self.queue.pop()?;
        self.now_us = at_us;
        Some(due)
    }

    /// The time on a host's clock.
    pub fn clock_us(&self, host: usize) -> u64 {
        let clock = self.hosts[host].clock;
        clock.offset_us + self.now_us * clock.per_mille / 1000
    }

    pub fn clock_ms(&self, host: usize) -> u64 {
        self.clock_us(host) / 1000
    }

    /// How long a disk request takes that is submitted on this host now.
    pub fn disk_delay_us(&mut self, host: usize) -> u64 {
        let slow = self.hosts[host].disk_slow_until_us > self.now_us;
        let bound_us = match self.broken {
            Some(Break::SlowWrites) => self.disk_bound_us * 8,
            Some(_) | None => self.disk_bound_us,
        };
        match (slow, self.rng.per_mille(200)) {
            (true, _) => self.rng.range(bound_us * 3 / 4, bound_us),
            (false, true) => self.rng.range(20_000, bound_us),
            (false, false) => self.rng.range(200, 20_000),
        }
    }

    /// A process asks the arbiter: the question takes a while to get there.
    pub fn ask_arbiter(&mut self, host: usize, generation: u64) {
        let process = self.hosts[host].process;
        let delay_us = self.arbiter_delay();
        self.after(delay_us, Due::Asked { host, process, generation });
    }

    fn arbiter_delay(&mut self) -> u64 {
        let slow = self.arbiter.slow_until_us > self.now_us;
        let max_us = if slow { self.arbiter.slow_max_us } else { 10_000 };
        self.rng.range(100, max_us)
    }

    /// The arbiter decides; the answer takes a while to get back.
    pub fn decide(&mut self, host: usize, process: u64, generation: u64) {
        let cut = self.hosts[host].arbiter_cut_until_us > self.now_us;
        let out = cut || self.hosts[host].arbiter_out_until_us > self.now_us;
        if out && self.rng.per_mille(500) {
            // Storage that hangs: the question waits with it.
            let wait_us = 100_000;
            return self.after(wait_us, Due::Asked { host, process, generation });
        }
        let out = out || self.rng.per_mille(50);
        // The claim may have been made even though the answer is lost.
        let claimed = !out || (self.rng.per_mille(500) && !cut);
        let holder = match self.arbiter.holders.get(&generation) {
            Some(holder) => *holder,
            None if claimed => {
                self.arbiter.holders.insert(generation, process);
                process
            }
            None => 0,
        };
        let answer = match (out, holder == process) {
            (true, _) => Answer::Unreachable,
            (false, true) => Answer::Won,
            (false, false) if self.is(Break::NoArbiter) => Answer::Won,
            (false, false) => Answer::Lost,
        };
        self.say(|| format!("the arbiter on generation {generation} for host {host}: {answer:?}"));
        let delay_us = self.arbiter_delay();
        let what = Inbox::Answer { generation, answer };
        self.after(delay_us, Due::Arrive { host, process, what });
    }
}
