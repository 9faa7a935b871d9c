//! Connections to a backup's port that have not said yet what they want.
//!
//! Owns them until they greet as a primary does, or show that they are something else: a port
//! scan, another program, a connection that stays silent. None of these keeps a primary out, holds
//! more than a bounded part of this process, or fills the log. Does not own what becomes of a
//! primary (`backup`).

use std::collections::VecDeque;
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use ft::{Link, Message};

use super::{Interest, Poller, Source};
use crate::replica::{Channel, Received};

/// So many may be silent at once; then the oldest has to go.
const VISITORS_MAX: usize = 16;
/// Strangers are mentioned in the log this often at most.
const SAY_EVERY: Duration = Duration::from_secs(1);

/// Who is connected and has said nothing whole yet.
#[derive(Default)]
pub(super) struct Visitors {
    channels: VecDeque<Channel>,
    said: Option<Instant>,
    unsaid: u64,
}

impl Visitors {
    /// Lets a connection in.
    pub(super) fn admit(&mut self, stream: TcpStream, poller: &Poller) {
        while self.channels.len() >= VISITORS_MAX {
            if let Some(oldest) = self.channels.pop_front() {
                poller.forget(oldest.as_raw_fd());
            }
        }
        let admitted = Channel::new(stream, Link::backup()).and_then(|channel| {
            poller.watch(channel.as_raw_fd(), Source::Channel, Interest::Read)?;
            Ok(channel)
        });
        match admitted {
            Ok(channel) => self.channels.push_back(channel),
            Err(error) => self.say(&error.to_string()),
        }
    }

    /// Hears them all; who greets as a primary is taken out, with all it has said so far. Who says
    /// something else has to go.
    pub(super) fn hear(&mut self, poller: &Poller) -> Vec<(Channel, Received)> {
        let mut greeted = Vec::new();
        for mut channel in std::mem::take(&mut self.channels) {
            let received = channel.receive();
            let is_over = received.closed || received.damaged.is_some();
            match received.messages.first() {
                Some(Message::Hello(_)) => greeted.push((channel, received)),
                None if !is_over => self.channels.push_back(channel),
                first => {
                    let unasked = first.map(|_| "it did not begin with a greeting".to_owned());
                    if let Some(why) = received.damaged.or(unasked) {
                        let from = channel.peer();
                        let from = from.map_or_else(String::new, |from| format!(" from {from}"));
                        self.say(&format!("a connection{from} was closed: {why}"));
                    }
                    poller.forget(channel.as_raw_fd());
                }
            }
        }
        greeted
    }

    /// Sends all away.
    pub(super) fn dismiss(&mut self, poller: &Poller) {
        for channel in self.channels.drain(..) {
            poller.forget(channel.as_raw_fd());
        }
    }

    /// Warns, unless that was done just now.
    pub(super) fn say(&mut self, what: &str) {
        if self.said.is_some_and(|at| at.elapsed() < SAY_EVERY) {
            self.unsaid += 1;
            return;
        }
        self.said = Some(Instant::now());
        match std::mem::take(&mut self.unsaid) {
            0 => log::warn!("{what}"),
            more => log::warn!("{what} ({more} more like it before)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ft::prologue::LogStart;
    use ft::{Assumptions, DigestMode, Prologue, Settings, Word};
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    struct Port {
        listener: TcpListener,
        visitors: Visitors,
        poller: Poller,
    }

    impl Port {
        fn open() -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            Port { listener, visitors: Visitors::default(), poller: Poller::new().unwrap() }
        }

        fn connect(&mut self) -> TcpStream {
            let stream = TcpStream::connect(self.listener.local_addr().unwrap()).unwrap();
            self.visitors.admit(self.listener.accept().unwrap().0, &self.poller);
            stream
        }

        /// Hears until somebody greets or all silent ones but `left` have gone.
        fn hear(&mut self, left: usize) -> Vec<(Channel, Received)> {
            for _ in 0..1000 {
                let greeted = self.visitors.hear(&self.poller);
                if !greeted.is_empty() || self.visitors.channels.len() <= left {
                    return greeted;
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            panic!("{} visitors are still there", self.visitors.channels.len());
        }
    }

    fn greeting() -> Vec<u8> {
        let prologue = Prologue {
            assumptions: Assumptions::new("build", 7),
            vm_id: [1; 16],
            generation: 3,
            start: LogStart::Delta,
            digest_mode: DigestMode::EveryChunk,
            settings: Settings::default(),
            arbiter: String::new(),
            machine: b"{}".to_vec(),
            cpuid: Vec::new(),
        };
        Link::primary(3).seal(&Message::Hello(Box::new(prologue))).unwrap()
    }

    #[test]
    fn a_primary_is_heard_among_those_who_are_silent() {
        let mut port = Port::open();
        let silent: Vec<_> = (0..5).map(|_| port.connect()).collect();
        let mut primary = port.connect();
        let greeting = greeting();
        primary.write_all(&greeting[..40]).unwrap();
        assert!(port.hear(6).is_empty());
        primary.write_all(&greeting[40..]).unwrap();
        let mut greeted = port.hear(0);
        let (channel, received) = &mut greeted[0];
        assert_eq!(received.messages.len(), 1);
        // Whoever has greeted can be answered.
        channel.send(&Message::Word(Word::Refuse { why: "no".into() })).unwrap();
        assert!(primary.read(&mut [0; 64]).unwrap() > 0);
        assert_eq!(port.visitors.channels.len(), silent.len());
    }

    #[test]
    fn who_says_something_else_has_to_go() {
        let mut port = Port::open();
        let word = Link::primary(3).seal(&Message::Word(Word::Leave)).unwrap();
        for bytes in [b"GET / HTTP/1.1\r\n\r\n".to_vec(), vec![0; 64], word] {
            port.connect().write_all(&bytes).unwrap();
            assert!(port.hear(0).is_empty());
        }
    }

    #[test]
    fn the_oldest_silent_one_makes_room() {
        let mut port = Port::open();
        let mut streams: Vec<_> = (0..VISITORS_MAX + 3).map(|_| port.connect()).collect();
        assert_eq!(port.visitors.channels.len(), VISITORS_MAX);
        assert_eq!(streams[0].read(&mut [0; 1]).unwrap(), 0, "the first is closed");
        let last = streams.last_mut().unwrap();
        last.write_all(&greeting()).unwrap();
        assert_eq!(port.hear(0).len(), 1);
    }

    #[test]
    fn a_flood_is_counted_and_not_written_down() {
        let mut visitors = Visitors::default();
        (0..100).for_each(|_| visitors.say("x"));
        assert_eq!(visitors.unsaid, 99);
    }
}
