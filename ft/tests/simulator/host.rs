//! A process on a host: an inbox, a clock of its own, and one of the two drivers. It does one thing
//! at a time, so that it can be stopped or killed between any two.

use std::collections::VecDeque;

use ft::{Action, Answer, Event, Heartbeat, Link, Message};

use crate::backup_driver::BackupDriver;
use crate::breaks::Break;
use crate::primary_driver::PrimaryDriver;
use crate::world::{Due, World};

/// What can lie in an inbox.
#[derive(Debug)]
pub enum Inbox {
    Accept { stream: usize },
    Bytes { stream: usize, bytes: Vec<u8> },
    Closed { stream: usize },
    Datagram(Vec<u8>),
    Refused,
    Tick,
    Step,
    DiskDone { token: u64, data: Vec<u8> },
    Entropy(Vec<u8>),
    Answer { generation: u64, answer: Answer },
    Command(Command),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    Join,
    Disable,
    Failover,
}

pub enum Role {
    Primary(Box<PrimaryDriver>),
    Backup(Box<BackupDriver>),
    Ended,
}

pub struct Process {
    pub host: usize,
    pub id: u64,
    pub paused: bool,
    stale_ms: Option<u64>,
    working: bool,
    inbox: VecDeque<Inbox>,
    pub todo: VecDeque<Action>,
    pub link: Option<(usize, usize, Link)>,
    pub role: Role,
    pub clock: Clock,
}

/// Clocks agree neither on the time nor quite on its speed.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    pub offset_us: u64,
    pub per_mille: u64,
}

impl Clock {
    pub fn us(self, world: &World) -> u64 {
        self.offset_us + world.now_us * self.per_mille / 1000
    }

    pub fn ms(self, world: &World) -> u64 {
        self.us(world) / 1000
    }
}

impl Process {
    pub fn new(world: &mut World, host: usize, clock: Clock, role: Role) -> Self {
        let id = world.next_process;
        world.next_process += 1;
        world.process[host] = id;
        world.after(1, Due::Arrive { host, process: id, what: Inbox::Tick });
        world.after(1, Due::Arrive { host, process: id, what: Inbox::Step });
        Self {
            host,
            id,
            paused: false,
            stale_ms: None,
            working: false,
            inbox: VecDeque::new(),
            todo: VecDeque::new(),
            link: None,
            role,
            clock,
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
            Role::Primary(driver) => driver.has_work(world),
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
            Some(_) | None => self.clock.ms(world),
        }
    }

    pub fn pause(&mut self, world: &World) {
        self.paused = true;
        self.stale_ms = Some(self.clock.ms(world));
    }

    fn carry_out_one(&mut self, world: &mut World) -> bool {
        let now_ms = self.now_ms(world);
        match &mut self.role {
            Role::Primary(driver) => driver.carry_out_one(world, now_ms),
            Role::Backup(_) | Role::Ended => false,
        }
    }

    fn take(&mut self, world: &mut World, what: Inbox) {
        match what {
            Inbox::Accept { stream } => {
                if self.link.is_none() && matches!(self.role, Role::Backup(_)) {
                    self.link = Some((stream, 1, Link::backup()));
                } else {
                    world.close(stream, 1);
                }
            }
            Inbox::Bytes { stream, bytes } => self.bytes(world, stream, &bytes),
            Inbox::Closed { stream } => {
                if self.link.as_ref().is_some_and(|link| link.0 == stream) {
                    self.link = None;
                    self.event(world, Event::Closed);
                }
            }
            Inbox::Datagram(bytes) => {
                if let Ok(heartbeat) = Heartbeat::from_bytes(&bytes) {
                    self.event(world, Event::Heartbeat(heartbeat));
                }
            }
            Inbox::Refused => self.event(world, Event::PeerGone),
            Inbox::Answer { generation, answer } => {
                self.event(world, Event::Arbiter { generation, answer });
            }
            Inbox::Tick => {
                self.stale_ms = None;
                let (host, process) = (self.host, self.id);
                let delay_us = world.rng.range(8_000, 14_000);
                world.after(delay_us, Due::Arrive { host, process, what: Inbox::Tick });
                let now_ms = self.clock.ms(world);
                let actions = match &mut self.role {
                    Role::Primary(driver) => driver.tick(world, now_ms),
                    Role::Backup(driver) => driver.backup.tick(now_ms),
                    Role::Ended => vec![],
                };
                self.todo.extend(actions);
            }
            Inbox::Step => {
                let now_ms = self.clock.ms(world);
                let actions = match &mut self.role {
                    Role::Primary(driver) => driver.step(world, now_ms),
                    Role::Backup(driver) => driver.step(world, now_ms),
                    Role::Ended => vec![],
                };
                self.todo.extend(actions);
            }
            Inbox::DiskDone { .. } | Inbox::Entropy(_) => {
                let now_ms = self.clock.ms(world);
                if let Role::Primary(driver) = &mut self.role {
                    self.todo.extend(driver.done(world, now_ms, what));
                }
            }
            Inbox::Command(command) => self.command(world, command),
        }
    }

    fn bytes(&mut self, world: &mut World, stream: usize, bytes: &[u8]) {
        let Some((_, _, link)) = self.link.as_mut().filter(|link| link.0 == stream) else {
            return;
        };
        link.push(bytes);
        loop {
            let Some((_, _, link)) = &mut self.link else { return };
            match link.next_message() {
                Ok(Some(mut message)) => {
                    if let (Message::Hello(prologue), true) =
                        (&mut message, world.is(Break::Impatient))
                    {
                        let settings = &mut prologue.settings;
                        (settings.heartbeat_ms, settings.lease_ms) = (10, 20);
                        (settings.timeout_ms, settings.silence_ms) = (35, 35);
                    }
                    self.event(world, Event::Message(message));
                }
                Ok(None) => return,
                Err(error) => {
                    return self.event(world, Event::Damaged { why: error.to_string() });
                }
            }
        }
    }

    fn event(&mut self, world: &mut World, event: Event) {
        let now_ms = self.now_ms(world);
        let actions = match &mut self.role {
            Role::Primary(driver) => driver.primary.step(now_ms, event),
            Role::Backup(driver) => {
                let closed = event == Event::Closed;
                let mut actions = driver.backup.step(now_ms, event);
                if closed && world.is(Break::TrustClosedStream) {
                    actions.extend(driver.backup.step(now_ms, Event::PeerGone));
                }
                actions
            }
            Role::Ended => vec![],
        };
        self.todo.extend(actions);
    }

    fn command(&mut self, world: &mut World, command: Command) {
        let (host, id) = (self.host, self.id);
        world.say(|| format!("host {host} is asked: {command:?}"));
        let now_ms = self.clock.ms(world);
        let Role::Primary(driver) = &mut self.role else { return };
        match command {
            Command::Join => {
                let other = 1 - host;
                let free = world.process[other] != 0 && driver.can_join() && self.link.is_none();
                if free && world.process[host] == id {
                    let stream = world.connect(host, other);
                    self.link = Some((stream, 0, Link::primary(driver.primary.generation())));
                    let process = world.process[other];
                    let what = Inbox::Accept { stream };
                    world.after(10, Due::Arrive { host: other, process, what });
                    self.todo.extend(driver.join(stream, now_ms));
                }
            }
            Command::Disable => {
                self.todo.extend(driver.primary.disable(now_ms).unwrap_or_default());
            }
            Command::Failover => driver.fail_over(),
        }
    }

    fn act(&mut self, world: &mut World, action: Action) {
        let (host, id) = (self.host, self.id);
        let now_ms = self.clock.ms(world);
        match action {
            Action::Send(message) => self.send(world, &message),
            Action::SendHeartbeat(heartbeat) => world.datagram(host, &heartbeat.to_bytes()),
            Action::CloseStream => {
                if let Some((stream, end, _)) = self.link.take() {
                    world.close(stream, end);
                }
            }
            Action::AskArbiter { generation } => world.ask_arbiter(host, generation),
            Action::Report(happening) => {
                world.say(|| format!("host {host} (process {id}): {happening}"));
            }
            Action::Halt(_) if world.is(Break::StayAfterHalt) => self.stay(world),
            Action::Halt(_) => self.role = Role::Ended,
            Action::GoLive { generation } => self.go_live(world, generation),
            action => {
                let actions = match &mut self.role {
                    Role::Primary(driver) => driver.act(world, now_ms, action),
                    Role::Backup(driver) => {
                        let stream = self.link.as_ref().map(|link| link.0);
                        driver.act(world, now_ms, stream, action)
                    }
                    Role::Ended => vec![],
                };
                self.todo.extend(actions);
            }
        }
    }

    fn send(&mut self, world: &mut World, message: &Message) {
        if let Some((stream, end, link)) = &mut self.link {
            let bytes = link.seal(message).expect("within all bounds");
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
        world.checker.takeovers += 1;
        let (host, id, clock) = (self.host, self.id, self.clock);
        self.role = Role::Primary(Box::new(driver.take_over(world, host, id, clock, generation)));
    }
}
