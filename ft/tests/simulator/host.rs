//! A process on a host: an inbox, its sockets, and one of the two drivers. It does one thing at a
//! time, so that it can be stopped or killed between any two.

use std::collections::VecDeque;

use ft::{Action, Answer, Event, Happening, Heartbeat, Link, Message, PrimaryState, Purpose, Word};

use crate::backup_driver::BackupDriver;
use crate::breaks::Break;
use crate::faults::Fault;
use crate::network::{Port, STANDBY_PORT};
use crate::primary_driver::PrimaryDriver;
use crate::queue::Due;
use crate::world::World;

/// Where a frame says how its body is packed.
const PACKING_AT: usize = 7;

/// What can lie in an inbox.
#[derive(Debug)]
pub enum Inbox {
    Accept {
        stream: usize,
        from: usize,
    },
    Connected {
        to: usize,
        stream: Option<usize>,
    },
    Bytes {
        stream: usize,
        bytes: Vec<u8>,
    },
    Closed {
        stream: usize,
    },
    Datagram {
        from: Port,
        port: u64,
        bytes: Vec<u8>,
    },
    Refused {
        port: u64,
        by: Port,
    },
    Tick,
    Step,
    Prepared {
        stream: usize,
        works: bool,
    },
    /// A part of how the backup's copy may differ is to be told.
    Tell {
        stream: usize,
        last: bool,
    },
    DiskDone {
        token: u64,
        data: Vec<u8>,
    },
    Entropy(Vec<u8>),
    Answer {
        generation: u64,
        answer: Answer,
    },
    Command(Command),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    Disable,
    Enable,
    Failover,
    /// Protection by another standby than now.
    Move(usize),
    /// The machine lives there from now on, and this process ends.
    Migrate {
        to: usize,
        arbiter: bool,
    },
    /// The user knows that the machine is nowhere else.
    Reclaim,
    /// These hosts are the standbys from now on.
    Standbys(Vec<usize>),
    /// The machine is paused for a while, or not any more.
    Suspend(bool),
}

pub enum Role {
    Primary(Box<PrimaryDriver>),
    Backup(Box<BackupDriver>),
    Ended,
}

/// One end of a stream.
pub struct Connection {
    pub stream: usize,
    pub end: usize,
    link: Link,
}

/// The socket for datagrams.
#[derive(Debug)]
struct Beats {
    port: u64,
    /// The host that may speak, and the port there once it is known.
    from: Option<usize>,
    peer: Option<Port>,
}

pub struct Process {
    pub host: usize,
    pub id: u64,
    pub paused: bool,
    stale_ms: Option<u64>,
    working: bool,
    inbox: VecDeque<Inbox>,
    pub todo: VecDeque<Action>,
    /// One, unless two are joined at once, which is wrong.
    pub links: Vec<Connection>,
    /// A standby is being connected to.
    connecting: bool,
    /// For a break of the rules: the next connection is for the same join.
    joins: bool,
    beats: Beats,
    pub role: Role,
}

impl Process {
    pub fn new(world: &mut World, host: usize, role: Role) -> Self {
        let id = world.next_process;
        world.next_process += 1;
        world.hosts[host].process = id;
        world.hosts[host].ports = vec![STANDBY_PORT];
        world.after(1, Due::Arrive { host, process: id, what: Inbox::Tick });
        if matches!(role, Role::Primary(_)) {
            world.after(1, Due::Arrive { host, process: id, what: Inbox::Step });
        }
        Self {
            host,
            id,
            paused: false,
            stale_ms: None,
            working: false,
            inbox: VecDeque::new(),
            todo: VecDeque::new(),
            links: vec![],
            connecting: false,
            joins: false,
            beats: Beats { port: STANDBY_PORT, from: None, peer: None },
            role,
        }
    }

    pub fn arrive(&mut self, world: &mut World, what: Inbox) {
        self.inbox.push_back(what);
        self.wake(world);
    }

    pub fn wake(&mut self, world: &mut World) {
        if !self.working && !self.paused {
            self.working = true;
            let delay_us = world.rng.range(1, 15);
            world.after(delay_us, Due::Work { host: self.host, process: self.id });
        }
    }

    /// Does one thing.
    pub fn work(&mut self, world: &mut World) {
        self.working = false;
        if self.paused {
            return;
        }
        if let Some(action) = self.todo.pop_front() {
            self.act(world, action);
        } else if !self.carry_out_one(world)
            && let Some(what) = self.inbox.pop_front()
        {
            self.take(world, what);
        }
        let leaving = match &self.role {
            Role::Primary(driver) => {
                world.checker.stands(driver.primary.state(), driver.primary.generation());
                if driver.primary.may_carry_out(world.clock_ms(self.host)) {
                    world.checker.may_speak(self.id, driver.primary.generation());
                }
                driver.has_work(world)
            }
            Role::Backup(_) | Role::Ended => false,
        };
        if !self.todo.is_empty() || !self.inbox.is_empty() || leaving {
            self.wake(world);
        }
    }

    /// A right driver reads the clock when it uses the time; a wrong one had read it before it was
    /// stopped.
    fn now_ms(&self, world: &World) -> u64 {
        match self.stale_ms {
            Some(stale_ms) if world.is(Break::IgnoreLease) => stale_ms,
            Some(_) | None => world.clock_ms(self.host),
        }
    }

    pub fn pause(&mut self, world: &World) {
        self.paused = true;
        self.stale_ms = Some(world.clock_ms(self.host));
    }

    fn carry_out_one(&mut self, world: &mut World) -> bool {
        let now_ms = self.now_ms(world);
        match &mut self.role {
            Role::Primary(driver) => driver.carry_out_one(world, now_ms),
            Role::Backup(_) | Role::Ended => false,
        }
    }

    fn take(&mut self, world: &mut World, what: Inbox) {
        let now_ms = world.clock_ms(self.host);
        match what {
            Inbox::Accept { stream, from } => self.accept(world, stream, from),
            Inbox::Connected { to, stream } => self.connected(world, to, stream),
            Inbox::Bytes { stream, bytes } => self.bytes(world, stream, &bytes),
            Inbox::Closed { stream } => {
                if let Some(at) = self.links.iter().position(|link| link.stream == stream) {
                    self.links.remove(at);
                    self.event(world, Event::Closed);
                }
            }
            Inbox::Datagram { from, port, bytes } => self.heard(world, from, port, &bytes),
            Inbox::Refused { port, by } => {
                if self.beats.port == port && self.beats.peer == Some(by) {
                    self.event(world, Event::PeerGone);
                }
            }
            Inbox::Answer { generation, answer } => self.answered(world, generation, answer),
            Inbox::Tick => self.tick(world, now_ms),
            Inbox::Step => {
                let actions = match &mut self.role {
                    Role::Primary(driver) => driver.step(world, now_ms),
                    Role::Backup(driver) => driver.step(world, now_ms),
                    Role::Ended => vec![],
                };
                self.todo.extend(actions);
            }
            Inbox::Prepared { stream, works } => {
                if let Role::Backup(driver) = &mut self.role {
                    self.todo.extend(driver.prepared(world, now_ms, stream, works));
                }
            }
            Inbox::Tell { stream, last } => {
                if let Role::Backup(driver) = &mut self.role {
                    self.todo.extend(driver.tell(now_ms, stream, last));
                }
            }
            Inbox::DiskDone { .. } | Inbox::Entropy(_) => {
                if let Role::Primary(driver) = &mut self.role {
                    self.todo.extend(driver.done(world, now_ms, what));
                }
            }
            Inbox::Command(command) => self.command(world, command),
        }
    }

    fn tick(&mut self, world: &mut World, now_ms: u64) {
        self.stale_ms = None;
        let (host, process) = (self.host, self.id);
        // Nothing depends on a standby that nobody has asked for.
        let rest = match &self.role {
            Role::Backup(driver) => driver.is_waiting(),
            Role::Primary(_) | Role::Ended => false,
        };
        let delay_us = world.rng.range(8_000, 14_000) * if rest { 8 } else { 1 };
        world.after(delay_us, Due::Arrive { host, process, what: Inbox::Tick });
        let actions = match &mut self.role {
            Role::Primary(driver) => {
                let (actions, join) = driver.tick(world, now_ms);
                if let Some(to) = join {
                    let alone = driver.primary.state() == PrimaryState::Solo && !self.connecting;
                    assert!(alone, "two joins at a time");
                    self.connecting = true;
                    world.say(|| format!("host {host} tries the standby on host {to}"));
                    world.connect(host, process, to);
                    if world.is(Break::TwoJoins) {
                        let other = (0..world.hosts.len()).find(|at| *at != host && *at != to);
                        other.into_iter().for_each(|to| world.connect(host, process, to));
                    }
                }
                actions
            }
            Role::Backup(driver) => driver.tick(world, now_ms),
            Role::Ended => vec![],
        };
        self.todo.extend(actions);
    }

    /// Somebody wants this standby. A newer one replaces one that has said nothing yet.
    fn accept(&mut self, world: &mut World, stream: usize, from: usize) {
        let free = match &self.role {
            Role::Backup(driver) => driver.is_waiting(),
            Role::Primary(_) | Role::Ended => false,
        };
        if !free {
            return world.close(stream, 1);
        }
        self.close_links(world);
        self.links = vec![Connection { stream, end: 1, link: Link::backup() }];
        self.beats = Beats { port: STANDBY_PORT, from: Some(from), peer: None };
    }

    /// A standby can be spoken to, or cannot.
    fn connected(&mut self, world: &mut World, to: usize, stream: Option<usize>) {
        let now_ms = world.clock_ms(self.host);
        let second = self.joins;
        self.connecting = false;
        let Role::Primary(driver) = &mut self.role else { return };
        let Some(stream) = stream else {
            if !second {
                driver.standbys.failed(now_ms);
            }
            return;
        };
        let generation = driver.primary.generation();
        let actions = match second {
            true => Some(driver.second_hello()),
            false => driver.join(world, stream, now_ms),
        };
        let Some(actions) = actions else {
            driver.standbys.failed(now_ms);
            return world.close(stream, 0);
        };
        self.joins = world.is(Break::TwoJoins) && !second;
        let mut link = Link::primary(generation).packing(world.compression);
        if second {
            for action in actions {
                if let Action::Send(message) = action {
                    let bytes = link.seal(&message).expect("within all bounds");
                    world.send(stream, 0, Some(bytes));
                }
            }
        } else {
            // One may be left over from a handover.
            self.close_links(world);
            self.todo.extend(actions);
            let port = 100 + stream as u64;
            let peer = Some(Port { host: to, port: STANDBY_PORT });
            world.hosts[self.host].ports = vec![STANDBY_PORT, port];
            self.beats = Beats { port, from: Some(to), peer };
        }
        self.links.push(Connection { stream, end: 0, link });
    }

    fn heard(&mut self, world: &mut World, from: Port, port: u64, bytes: &[u8]) {
        let Beats { port: mine, from: host, peer } = &mut self.beats;
        let expected = *mine == port && *host == Some(from.host);
        let Ok(heartbeat) = Heartbeat::from_bytes(bytes) else { return };
        if expected && *peer.get_or_insert(from) == from {
            self.event(world, Event::Heartbeat(heartbeat));
        }
    }

    fn bytes(&mut self, world: &mut World, stream: usize, bytes: &[u8]) {
        let Some(at) = self.links.iter().position(|link| link.stream == stream) else { return };
        self.links[at].link.push(bytes);
        loop {
            let Some(at) = self.links.iter().position(|link| link.stream == stream) else { return };
            match self.links[at].link.next_message() {
                Ok(Some(mut message)) => {
                    if let (Message::Hello(prologue), true) =
                        (&mut message, world.is(Break::Impatient))
                    {
                        let settings = &mut prologue.settings;
                        (settings.heartbeat_ms, settings.lease_ms) = (10, 20);
                        (settings.timeout_ms, settings.silence_ms) = (35, 35);
                    }
                    if let (Message::Hello(prologue), true) =
                        (&mut message, world.is(Break::TakeUnasked))
                    {
                        prologue.settings.purpose = Purpose::Protection;
                    }
                    let counts = at == 0 || matches!(message, Message::Word(Word::Ack(_)));
                    if counts {
                        self.event(world, Event::Message(message));
                    }
                }
                Ok(None) => return,
                Err(error) => {
                    return self.event(world, Event::Damaged { why: error.to_string() });
                }
            }
        }
    }

    fn answered(&mut self, world: &mut World, generation: u64, answer: Answer) {
        let generation = match (&self.role, world.is(Break::AnyAnswer)) {
            (Role::Primary(driver), true) => driver.primary.generation() + 1,
            (_, _) => generation,
        };
        self.event(world, Event::Arbiter { generation, answer });
    }

    fn event(&mut self, world: &mut World, event: Event) {
        let now_ms = self.now_ms(world);
        if let (Role::Primary(driver), Event::Message(Message::Word(Word::Ack(ack)))) =
            (&mut self.role, &event)
            && world.is(Break::OpenWhileHealing)
            && driver.primary.is_healing()
        {
            driver.release(world, ack.received);
        }
        let actions = match &mut self.role {
            Role::Primary(driver) => driver.primary.step(now_ms, event),
            Role::Backup(driver) => driver.event(world, now_ms, event),
            Role::Ended => vec![],
        };
        self.todo.extend(actions);
    }

    fn command(&mut self, world: &mut World, command: Command) {
        let host = self.host;
        world.say(|| format!("host {host} is asked: {command:?}"));
        let now_ms = world.clock_ms(self.host);
        if let Role::Primary(driver) = &mut self.role {
            self.todo.extend(driver.command(now_ms, command));
        }
    }

    fn act(&mut self, world: &mut World, action: Action) {
        let (host, id) = (self.host, self.id);
        let now_ms = world.clock_ms(host);
        match action {
            Action::Send(message) => self.send(world, &message),
            Action::SendHeartbeat(heartbeat) => {
                if let Some(peer) = self.beats.peer {
                    let from = Port { host, port: self.beats.port };
                    world.datagram(from, peer, &heartbeat.to_bytes());
                }
            }
            Action::CloseStream => self.close_links(world),
            Action::AskArbiter { generation } => world.ask_arbiter(host, generation),
            Action::Report(happening) => {
                world.say(|| format!("host {host} (process {id}): {happening}"));
                if let Role::Primary(driver) = &mut self.role {
                    driver.standbys.observe(now_ms, &happening);
                    driver.observe(&happening);
                    if let Happening::Protected { generation } = happening
                        && !driver.purpose.is_move()
                    {
                        world.checker.pair_began(generation, driver.by_checkpoints);
                    }
                    world.checker.reported(&happening, world.now_us);
                }
                if happening == Happening::Undecided {
                    self.call_the_user(world);
                }
            }
            Action::Halt(_) if self.is_unhealed() => {
                world.checker.tally.lost_healing += 1;
                self.role = Role::Ended;
            }
            Action::Halt(_) if world.is(Break::StayAfterHalt) => self.stay(world),
            Action::Halt(_) => self.role = Role::Ended,
            Action::GoLive { generation } => self.go_live(world, generation),
            action => {
                let actions = match &mut self.role {
                    Role::Primary(driver) => driver.act(world, now_ms, action),
                    Role::Backup(driver) => {
                        let stream = self.links.first().map(|link| link.stream);
                        driver.act(world, now_ms, stream, action)
                    }
                    Role::Ended => vec![],
                };
                self.todo.extend(actions);
            }
        }
    }

    /// Whether this is a backup whose copy differs.
    fn is_unhealed(&self) -> bool {
        matches!(&self.role, Role::Backup(driver) if driver.asked.is_some())
    }

    /// Somebody looks where the machine is, when he comes to it.
    fn call_the_user(&mut self, world: &mut World) {
        let (host, process) = (self.host, self.id);
        if world.is(Break::Presume) {
            return self.arrive(world, Inbox::Command(Command::Reclaim));
        }
        let delay_us = world.rng.range(50_000, 600_000);
        world.after(delay_us, Due::Fault(Fault::Find { host, process }));
    }

    fn close_links(&mut self, world: &mut World) {
        for Connection { stream, end, .. } in self.links.drain(..) {
            world.close(stream, end);
        }
    }

    fn send(&mut self, world: &mut World, message: &Message) {
        for Connection { stream, end, link } in &mut self.links {
            let bytes = link.seal(message).expect("within all bounds");
            world.checker.tally.packed += u64::from(bytes[PACKING_AT] != 0);
            world.send(*stream, *end, Some(bytes));
        }
    }

    /// A wrong driver: it goes on although it was told to halt.
    fn stay(&mut self, world: &mut World) {
        if let Role::Primary(driver) = &mut self.role {
            driver.stay(world);
        }
    }

    fn go_live(&mut self, world: &mut World, generation: u64) {
        let role = std::mem::replace(&mut self.role, Role::Ended);
        let Role::Backup(driver) = role else { return };
        world.say(|| format!("host {} goes live in generation {generation}", self.host));
        let driver = driver.take_over(world, self.host, self.id, generation);
        self.role = Role::Primary(Box::new(driver));
    }
}
