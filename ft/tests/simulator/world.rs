//! Everything around the two processes: virtual time, the network, the arbiter, the shared disk.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BinaryHeap};

use ft::Answer;

use crate::checker::Checker;
use crate::host::Inbox;
use crate::rng::Rng;

/// What can be due.
#[derive(Debug)]
pub enum Due {
    /// A process has something to do.
    Work { host: usize, process: u64 },
    /// Something arrives in a process's inbox.
    Arrive { host: usize, process: u64, what: Inbox },
    /// The next segment of a stream arrives.
    Segment { stream: usize, from: usize },
    /// A datagram arrives.
    Datagram { from: usize, to: usize, bytes: Vec<u8> },
    /// A question reaches the arbiter.
    Asked { host: usize, process: u64, generation: u64 },
    /// A disk write takes effect.
    Landed(Write),
    /// The kernel of a killed process closes its sockets.
    Buried { host: usize, process: u64 },
    /// Something goes wrong, or is asked for.
    Fault(crate::faults::Fault),
}

#[derive(Clone, Debug)]
pub struct Write {
    pub process: u64,
    pub generation: u64,
    pub sector: u64,
    pub value: u64,
}

#[derive(Debug)]
pub struct Stream {
    /// Process at either end: 0 is the primary's, 1 the backup's.
    pub process: [u64; 2],
    pub hosts: [usize; 2],
    /// Whether that end still reads.
    pub open: [bool; 2],
    queue: [std::collections::VecDeque<Option<Vec<u8>>>; 2],
    last_us: [u64; 2],
}

/// Ordered by time, then by when it was put there.
#[derive(Debug)]
struct Entry {
    at_us: u64,
    number: u64,
    due: Due,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> Ordering {
        // The heap gives the greatest first.
        (other.at_us, other.number).cmp(&(self.at_us, self.number))
    }
}

pub struct World {
    pub now_us: u64,
    queue: BinaryHeap<Entry>,
    next: u64,
    pub rng: Rng,
    pub streams: Vec<Stream>,
    /// Until when nothing gets from one host to the other.
    pub cut_until_us: [[u64; 2]; 2],
    pub datagram_loss: u64,
    pub corrupt: u64,
    pub delay_max_us: u64,
    /// How slow those are who carry outputs out.
    pub lazy: u64,
    pub arbiter: Arbiter,
    pub disk: BTreeMap<u64, u64>,
    /// The process on each host and whether its kernel is there.
    pub process: [u64; 2],
    pub host_up: [bool; 2],
    pub next_process: u64,
    /// Until when the kernel is busy with disk writes of the process there.
    pub busy_until_us: [u64; 2],
    /// Processes whose host died before their disk writes reached the disk.
    pub vanished: Vec<u64>,
    pub checker: Checker,
    pub trace: Option<Vec<String>>,
    pub broken: Option<crate::breaks::Break>,
}

/// One test-and-set per generation.
#[derive(Debug, Default)]
pub struct Arbiter {
    pub holders: BTreeMap<u64, u64>,
    pub out_until_us: u64,
}

impl World {
    pub fn new(seed: u64) -> Self {
        Self {
            now_us: 0,
            queue: BinaryHeap::new(),
            next: 0,
            rng: Rng::new(seed),
            streams: vec![],
            cut_until_us: [[0; 2]; 2],
            datagram_loss: 10,
            corrupt: 0,
            delay_max_us: 500,
            lazy: 0,
            arbiter: Arbiter::default(),
            disk: BTreeMap::new(),
            process: [0; 2],
            host_up: [true; 2],
            next_process: 1,
            busy_until_us: [0; 2],
            vanished: vec![],
            checker: Checker::default(),
            trace: None,
            broken: None,
        }
    }

    pub fn is(&self, broken: crate::breaks::Break) -> bool {
        self.broken == Some(broken)
    }

    pub fn say(&mut self, line: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{:>11.3} ms  {}", self.now_us as f64 / 1000.0, line()));
        }
    }

    pub fn after(&mut self, delay_us: u64, due: Due) {
        self.next += 1;
        self.queue.push(Entry { at_us: self.now_us + delay_us, number: self.next, due });
    }

    pub fn pop(&mut self) -> Option<Due> {
        let entry = self.queue.pop()?;
        self.now_us = entry.at_us;
        Some(entry.due)
    }

    fn delay(&mut self) -> u64 {
        let max = self.delay_max_us;
        self.rng.range(20, max)
    }

    pub fn connect(&mut self, primary: usize, backup: usize) -> usize {
        self.streams.push(Stream {
            process: [self.process[primary], self.process[backup]],
            hosts: [primary, backup],
            open: [true; 2],
            queue: Default::default(),
            last_us: [0; 2],
        });
        self.streams.len() - 1
    }

    /// Puts bytes, or the end, on a stream. They arrive in order, in slices as the network likes.
    pub fn send(&mut self, stream: usize, from: usize, bytes: Option<Vec<u8>>) {
        let mut parts = vec![];
        match bytes {
            Some(bytes) if bytes.len() > 1 && self.rng.per_mille(100) => {
                let (left, right) = bytes.split_at(self.rng.range(1, bytes.len() as u64) as usize);
                parts.extend([Some(left.to_vec()), Some(right.to_vec())]);
            }
            bytes => parts.push(bytes),
        }
        for part in parts {
            let delay_us = self.delay();
            let Stream { queue, last_us, .. } = &mut self.streams[stream];
            queue[from].push_back(part);
            last_us[from] = last_us[from].max(self.now_us + delay_us);
            let wait_us = last_us[from] - self.now_us;
            self.after(wait_us, Due::Segment { stream, from });
        }
    }

    pub fn segment(&mut self, stream: usize, from: usize) {
        let to = 1 - from;
        let [source, target] = [self.streams[stream].hosts[from], self.streams[stream].hosts[to]];
        let cut_until_us = self.cut_until_us[source][target];
        if cut_until_us > self.now_us {
            // The network sends again until it gets through.
            let wait_us = cut_until_us - self.now_us;
            return self.after(wait_us, Due::Segment { stream, from });
        }
        let corrupt = self.rng.per_mille(self.corrupt);
        let bit = self.rng.next() as usize;
        let Some(part) = self.streams[stream].queue[from].pop_front() else {
            return;
        };
        let process = self.streams[stream].process[to];
        if !self.streams[stream].open[to] || self.process[target] != process {
            return;
        }
        let what = match part {
            Some(mut bytes) => {
                if corrupt && !bytes.is_empty() {
                    let bit = bit % (bytes.len() * 8);
                    bytes[bit / 8] ^= 1 << (bit % 8);
                    self.say(|| format!("a bit flips on the way to host {target}"));
                }
                Inbox::Bytes { stream, bytes }
            }
            None => {
                self.streams[stream].open[to] = false;
                Inbox::Closed { stream }
            }
        };
        self.after(0, Due::Arrive { host: target, process, what });
    }

    /// One end closes: it hears nothing more, the other end hears the end after everything else.
    pub fn close(&mut self, stream: usize, end: usize) {
        if std::mem::take(&mut self.streams[stream].open[end]) {
            self.send(stream, end, None);
        }
    }

    pub fn datagram(&mut self, from: usize, bytes: &[u8]) {
        let to = 1 - from;
        let copies = 1 + u64::from(self.rng.per_mille(20));
        for _ in 0..copies {
            let delay_us = self.delay() + self.rng.range(0, 2000);
            self.after(delay_us, Due::Datagram { from, to, bytes: bytes.to_vec() });
        }
    }

    /// The sockets of a process are closed; `reset`: what it had sent last is lost with it.
    pub fn close_all(&mut self, process: u64, reset: bool) {
        for stream in 0..self.streams.len() {
            for end in 0..2 {
                if self.streams[stream].process[end] == process && self.streams[stream].open[end] {
                    if reset {
                        self.streams[stream].queue[end].clear();
                    }
                    self.close(stream, end);
                }
            }
        }
    }

    /// The host of a process is gone: nobody closes anything, and what it had sent may be lost.
    pub fn fall_silent(&mut self, process: u64) {
        for stream in &mut self.streams {
            for end in 0..2 {
                if stream.process[end] == process {
                    stream.open[end] = false;
                    stream.queue[end].clear();
                }
            }
        }
    }

    /// The network ends a stream, for one end or both.
    pub fn reset(&mut self, stream: usize, ends: [bool; 2]) {
        for (end, hit) in ends.into_iter().enumerate() {
            if hit && self.streams[stream].open[end] {
                self.streams[stream].queue[1 - end].clear();
                self.send(stream, 1 - end, None);
            }
        }
    }

    /// Delivers a datagram, or the news that nobody listens.
    pub fn arrive(&mut self, from: usize, to: usize, mut bytes: Vec<u8>) {
        if self.cut_until_us[from][to] > self.now_us
            || self.rng.per_mille(self.datagram_loss)
            || !self.host_up[to]
        {
            return;
        }
        if self.process[to] == 0 {
            let lost = self.cut_until_us[to][from] > self.now_us || self.rng.per_mille(100);
            if !lost {
                let (process, what) = (self.process[from], Inbox::Refused);
                let delay_us = self.delay();
                self.after(delay_us, Due::Arrive { host: from, process, what });
            }
            return;
        }
        if self.rng.per_mille(self.corrupt) {
            let bit = self.rng.next() as usize % (bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        let (process, what) = (self.process[to], Inbox::Datagram(bytes));
        self.after(0, Due::Arrive { host: to, process, what });
    }

    /// A process asks the arbiter: the question takes a while to get there.
    pub fn ask_arbiter(&mut self, host: usize, generation: u64) {
        let process = self.process[host];
        let delay_us = self.rng.range(100, 10_000);
        self.after(delay_us, Due::Asked { host, process, generation });
    }

    /// The arbiter decides; the answer takes a while to get back.
    pub fn decide(&mut self, host: usize, process: u64, generation: u64) {
        let out = self.arbiter.out_until_us > self.now_us || self.rng.per_mille(50);
        // The claim may have been made even though the answer is lost.
        let claimed = !out || self.rng.per_mille(500);
        let holder = match self.arbiter.holders.get(&generation) {
            Some(holder) => *holder,
            None if claimed => {
                // It decides for one that has died since: that is a second failure.
                self.checker.excused |= self.process[host] != process;
                self.arbiter.holders.insert(generation, process);
                process
            }
            None => 0,
        };
        let answer = match (out, holder == process) {
            (true, _) => Answer::Unreachable,
            (false, true) => Answer::Won,
            (false, false) if self.is(crate::breaks::Break::NoArbiter) => Answer::Won,
            (false, false) => Answer::Lost,
        };
        self.say(|| format!("the arbiter on generation {generation} for host {host}: {answer:?}"));
        let delay_us = self.rng.range(100, 10_000);
        self.after(
            delay_us,
            Due::Arrive { host, process, what: Inbox::Answer { generation, answer } },
        );
    }
}
