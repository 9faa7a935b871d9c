//! The network between the hosts: streams, datagrams, and what cuts do to them.

use std::collections::VecDeque;

use crate::host::Inbox;
use crate::queue::Due;
use crate::world::World;

/// The port at which every standby waits.
pub const STANDBY_PORT: u64 = 1;

/// How long somebody waits for a connection.
const CONNECT_TIMEOUT_US: u64 = 300_000;

/// How often a stream tries to get its bytes through a cut.
const RESEND_US: u64 = 50_000;

/// Where a datagram comes from, or goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Port {
    pub host: usize,
    pub port: u64,
}

/// What a cut stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Traffic {
    Stream,
    Datagrams,
}

impl Traffic {
    pub const ALL: [Self; 2] = [Self::Stream, Self::Datagrams];
}

#[derive(Debug)]
pub struct Stream {
    /// Process at either end: 0 is the primary's, 1 the backup's.
    pub process: [u64; 2],
    pub hosts: [usize; 2],
    /// Whether that end still reads.
    pub open: [bool; 2],
    queue: [VecDeque<Option<Vec<u8>>>; 2],
    last_us: [u64; 2],
}

pub struct Network {
    pub streams: Vec<Stream>,
    /// Until when nothing of this traffic gets from one host to another.
    cut_until_us: [Vec<Vec<u64>>; 2],
    pub datagram_loss: u64,
    pub corrupt: u64,
    pub delay_max_us: u64,
}

impl Network {
    pub fn new(hosts: usize) -> Self {
        Self {
            streams: vec![],
            cut_until_us: Traffic::ALL.map(|_| vec![vec![0; hosts]; hosts]),
            datagram_loss: 10,
            corrupt: 0,
            delay_max_us: 500,
        }
    }

    pub fn cut(&mut self, from: usize, to: usize, until_us: u64) {
        Traffic::ALL.into_iter().for_each(|traffic| self.cut_only(traffic, from, to, until_us));
    }

    pub fn cut_only(&mut self, traffic: Traffic, from: usize, to: usize, until_us: u64) {
        let cut = &mut self.cut_until_us[traffic as usize][from][to];
        *cut = until_us.max(*cut);
    }

    pub fn mend(&mut self) {
        self.cut_until_us.iter_mut().flatten().for_each(|row| row.fill(0));
        (self.datagram_loss, self.corrupt, self.delay_max_us) = (5, 0, 500);
    }
}

impl World {
    fn delay(&mut self) -> u64 {
        let max_us = self.network.delay_max_us;
        self.rng.range(20, max_us)
    }

    fn is_cut(&self, traffic: Traffic, from: usize, to: usize) -> bool {
        self.network.cut_until_us[traffic as usize][from][to] > self.now_us
    }

    fn can_connect(&self, host: usize, to: usize) -> bool {
        let is_cut = |from, to| self.is_cut(Traffic::Stream, from, to);
        !is_cut(host, to) && !is_cut(to, host)
    }

    /// A process wants a stream to the standby on another host.
    pub fn connect(&mut self, host: usize, process: u64, to: usize) {
        let reached = self.can_connect(host, to) && self.hosts[to].up;
        let delay_us = if reached { self.delay() } else { CONNECT_TIMEOUT_US };
        self.after(delay_us, Due::Connect { host, process, to });
    }

    /// Whether it gets one.
    pub fn connected(&mut self, host: usize, process: u64, to: usize) {
        let there = self.hosts[to].process;
        let listens = self.hosts[to].up && there != 0 && there != u64::MAX;
        if self.hosts[host].process != process {
            return;
        }
        let stream = (listens && self.can_connect(host, to))
            .then(|| self.open_stream([host, to], [process, there]));
        if let Some(stream) = stream {
            let what = Inbox::Accept { stream, from: host };
            self.after(10, Due::Arrive { host: to, process: there, what });
        }
        self.after(10, Due::Arrive { host, process, what: Inbox::Connected { to, stream } });
    }

    fn open_stream(&mut self, hosts: [usize; 2], process: [u64; 2]) -> usize {
        let (queue, open, last_us) = (Default::default(), [true; 2], [0; 2]);
        self.network.streams.push(Stream { process, hosts, open, queue, last_us });
        self.network.streams.len() - 1
    }

    /// Puts bytes, or the end, on a stream. They arrive in order, in slices as the network likes.
    pub fn send(&mut self, stream: usize, from: usize, bytes: Option<Vec<u8>>) {
        let mut parts = [None, None];
        let mut count = 1;
        match bytes {
            Some(bytes) if bytes.len() > 1 && self.rng.per_mille(100) => {
                let (left, right) = bytes.split_at(self.rng.range(1, bytes.len() as u64) as usize);
                parts = [Some(left.to_vec()), Some(right.to_vec())];
                count = 2;
            }
            bytes => parts[0] = bytes,
        }
        for part in parts.into_iter().take(count) {
            let delay_us = self.delay();
            let Stream { queue, last_us, .. } = &mut self.network.streams[stream];
            queue[from].push_back(part);
            last_us[from] = last_us[from].max(self.now_us + delay_us);
            let wait_us = last_us[from] - self.now_us;
            self.after(wait_us, Due::Segment { stream, from });
        }
    }

    /// The next part of a stream gets through: to whom, and what it is for him.
    pub fn segment(&mut self, stream: usize, from: usize) -> Option<(usize, u64, Inbox)> {
        let to = 1 - from;
        let [source, target] = [from, to].map(|end| self.network.streams[stream].hosts[end]);
        if self.is_cut(Traffic::Stream, source, target) {
            // The network sends again until it gets through.
            let cut_until_us = &self.network.cut_until_us[Traffic::Stream as usize];
            let left_us = cut_until_us[source][target] - self.now_us;
            let wait_us = left_us.min(RESEND_US);
            self.after(wait_us, Due::Segment { stream, from });
            return None;
        }
        let corrupt = self.network.corrupt > 0 && self.rng.per_mille(self.network.corrupt);
        let part = self.network.streams[stream].queue[from].pop_front()?;
        let process = self.network.streams[stream].process[to];
        if !self.network.streams[stream].open[to] || self.hosts[target].process != process {
            return None;
        }
        let what = match part {
            Some(mut bytes) => {
                if corrupt {
                    self.flip_a_bit(&mut bytes);
                    self.say(|| format!("a bit flips on the way to host {target}"));
                }
                Inbox::Bytes { stream, bytes }
            }
            None => {
                self.network.streams[stream].open[to] = false;
                Inbox::Closed { stream }
            }
        };
        Some((target, process, what))
    }

    fn flip_a_bit(&mut self, bytes: &mut [u8]) {
        let bit = self.rng.next() as usize % (bytes.len() * 8);
        bytes[bit / 8] ^= 1 << (bit % 8);
    }

    /// One end closes: it hears nothing more, the other end hears the end after everything else.
    pub fn close(&mut self, stream: usize, end: usize) {
        if std::mem::take(&mut self.network.streams[stream].open[end]) {
            self.send(stream, end, None);
        }
    }

    /// The sockets of a process are closed; `reset`: what it had sent last is lost with it.
    pub fn close_all(&mut self, process: u64, reset: bool) {
        for stream in 0..self.network.streams.len() {
            for end in 0..2 {
                let found = &mut self.network.streams[stream];
                if found.process[end] == process && found.open[end] {
                    if reset {
                        found.queue[end].clear();
                    }
                    self.close(stream, end);
                }
            }
        }
    }

    /// The host of a process is gone: nobody closes anything, and what it had sent may be lost.
    pub fn fall_silent(&mut self, process: u64) {
        for stream in &mut self.network.streams {
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
            if hit && self.network.streams[stream].open[end] {
                self.network.streams[stream].queue[1 - end].clear();
                self.send(stream, 1 - end, None);
            }
        }
    }

    pub fn datagram(&mut self, from: Port, to: Port, bytes: &[u8]) {
        let copies = 1 + u64::from(self.rng.per_mille(20));
        for _ in 0..copies {
            let delay_us = self.delay() + self.rng.range(0, 2000);
            self.after(delay_us, Due::Datagram { from, to, bytes: bytes.to_vec() });
        }
    }

    /// Delivers a datagram, or the news that nobody listens.
    pub fn datagram_arrives(
        &mut self,
        from: Port,
        to: Port,
        mut bytes: Vec<u8>,
    ) -> Option<(usize, u64, Inbox)> {
        if self.is_cut(Traffic::Datagrams, from.host, to.host)
            || self.rng.per_mille(self.network.datagram_loss)
            || !self.hosts[to.host].up
        {
            return None;
        }
        if !self.hosts[to.host].ports.contains(&to.port) {
            let is_cut = self.is_cut(Traffic::Datagrams, to.host, from.host);
            let lost = is_cut || self.rng.per_mille(100);
            if !lost {
                let (host, process) = (from.host, self.hosts[from.host].process);
                let delay_us = self.delay();
                let what = Inbox::Refused { port: from.port, by: to };
                self.after(delay_us, Due::Arrive { host, process, what });
            }
            return None;
        }
        if self.network.corrupt > 0 && self.rng.per_mille(self.network.corrupt) {
            self.flip_a_bit(&mut bytes);
        }
        let what = Inbox::Datagram { from, port: to.port, bytes };
        Some((to.host, self.hosts[to.host].process, what))
    }
}
