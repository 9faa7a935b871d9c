//! Faults, carried out.

use ft::{BackupState, PrimaryState};

use crate::breaks::Break;
use crate::faults::{Fault, Until, Who};
use crate::host::{Command, Inbox, Process, Role};
use crate::queue::Due;
use crate::run::Run;

/// How long a fault waits that would leave nobody who could go on, and how often.
const PUT_OFF_US: u64 = 150_000;
const PUT_OFF_MAX: u32 = 40;

impl Run {
    pub(crate) fn fault(&mut self, fault: Fault) {
        if self.put_off(&fault) {
            return;
        }
        if !matches!(fault, Fault::Lurk { .. } | Fault::Strike { .. }) {
            self.world.say(|| format!("FAULT {fault:?}"));
        }
        match fault {
            Fault::KillProcess(who) => self.kill_process(who),
            Fault::KillHost(who) => self.kill_host(who),
            Fault::Pause { who, for_us } => self.stop(who, for_us, None),
            Fault::Suspend { who, for_us, jump_us } => {
                let Some(host) = self.find(who) else { return };
                self.isolate(host, for_us);
                self.stop(Who::Host(host), for_us, Some(jump_us));
            }
            Fault::Resume { host, process, jump_us, since_us } => {
                self.resume(host, process, jump_us, since_us);
            }
            Fault::Restart(host) => {
                if self.processes[host].is_none() && self.world.hosts[host].process == 0 {
                    self.start_standby(host);
                }
            }
            Fault::Cut { from, to, both, for_us } => {
                let (Some(from), Some(to)) = (self.find(from), self.find(to)) else { return };
                let until_us = self.world.now_us + for_us;
                self.world.network.cut(from, to, until_us);
                if both {
                    self.world.network.cut(to, from, until_us);
                }
            }
            Fault::Isolate { who, for_us } => {
                if let Some(host) = self.find(who) {
                    self.isolate(host, for_us);
                }
            }
            Fault::Reset { back, ends } => {
                if let Some(stream) = self.world.network.streams.len().checked_sub(1 + back) {
                    self.world.reset(stream, ends);
                }
            }
            Fault::Loss { per_mille } => self.world.network.datagram_loss = per_mille,
            Fault::Slow { delay_max_us } => self.world.network.delay_max_us = delay_max_us,
            Fault::Corrupt { per_mille } => self.world.network.corrupt = per_mille,
            fault => self.trouble(fault),
        }
    }

    /// Everything that is not about processes and the network.
    fn trouble(&mut self, fault: Fault) {
        let now_us = self.world.now_us;
        match fault {
            Fault::ArbiterOut { hosts, for_us } => {
                for (at, host) in self.world.hosts.iter_mut().enumerate() {
                    if hosts >> at & 1 == 1 {
                        host.arbiter_out_until_us = now_us + for_us;
                    }
                }
            }
            Fault::ArbiterSlow { max_us, for_us } => {
                self.world.arbiter.slow_max_us = max_us;
                self.world.arbiter.slow_until_us = now_us + for_us;
            }
            Fault::SlowDisk { who, for_us } => {
                if let Some(host) = self.find(who) {
                    self.world.hosts[host].disk_slow_until_us = now_us + for_us;
                }
            }
            Fault::Lag { who, for_us } => {
                if let Some(host) = self.find(who) {
                    self.world.hosts[host].lags_until_us = now_us + for_us;
                }
            }
            Fault::Ask { who, command } => {
                if let Some(host) = self.find(who) {
                    self.ask(host, command);
                }
            }
            Fault::Spoil(who) => {
                let Some(host) = self.find(who) else { return };
                if let Some(Process { role: Role::Backup(driver), .. }) = &mut self.processes[host]
                {
                    driver.spoil(&mut self.world.rng);
                    self.excuse("its copy had been spoiled");
                }
            }
            Fault::Partition(row) => self.cut_row(row),
            Fault::Judge { row, pair } => self.judge(&row, pair),
            Fault::Lurk { left_ms, until, then } => self.lurk(left_ms, until, then),
            Fault::Strike { stream, times } => self.strike(stream, times),
            Fault::Find { host, process } => self.find_machine(host, process),
            Fault::Calm => self.calm(),
            Fault::Look => self.look(),
            fault => unreachable!("{fault:?}"),
        }
    }

    fn lurk(&mut self, left_ms: u64, until: Until, then: Box<Fault>) {
        let healings = self.world.checker.tally.healings;
        let is_there = |process: &Process| match (&process.role, until) {
            (_, Until::Healed(count)) => healings > count,
            (Role::Primary(driver), Until::Complete) => {
                driver.purpose.is_move() && driver.primary.state() == PrimaryState::Protected
            }
            (Role::Primary(driver), Until::Yielded) => {
                driver.purpose.is_move() && driver.primary.state() == PrimaryState::Yielding
            }
            (Role::Primary(driver), Until::Told) => driver.primary.is_healing(),
            (Role::Backup(driver), Until::Asked) => driver.asked.is_some(),
            (_, Until::Complete | Until::Yielded | Until::Told | Until::Asked) => false,
        };
        if self.processes.iter().flatten().any(is_there) {
            self.fault(*then);
        } else if left_ms > 0 {
            self.world.after(1_000, Due::Fault(Fault::Lurk { left_ms: left_ms - 1, until, then }));
        }
    }

    /// A machine that has just become protected is lost before the backup has heard much of it.
    fn strike(&mut self, stream: usize, times: u32) {
        let newest = self.processes.iter().flatten().filter_map(|process| match &process.role {
            Role::Backup(driver) => driver.followed_stream(),
            Role::Primary(_) | Role::Ended => None,
        });
        let newest = newest.max().filter(|newest| *newest > stream);
        let (stream, times) = (newest.unwrap_or(stream), times - u32::from(newest.is_some()));
        if newest.is_some() {
            let (from, to) = (Who::Live, Who::Follower);
            let for_us = self.world.rng.range(20_000, 60_000);
            let wait_us = self.world.rng.range(0, 20_000);
            self.fault(Fault::Cut { from, to, both: false, for_us });
            self.world.after(wait_us, Due::Fault(Fault::KillHost(Who::Live)));
        }
        if times > 0 && !self.is_calm {
            self.world.after(1_000, Due::Fault(Fault::Strike { stream, times }));
        }
    }

    /// The user looks where the machine is that a process has yielded. While somebody may still go
    /// on with it he looks again later; a machine that has lived elsewhere does not come back here.
    fn find_machine(&mut self, host: usize, process: u64) {
        let generation = match self.process(host, process).map(|(process, _)| &process.role) {
            Some(Role::Primary(driver)) if driver.primary.is_undecided() => {
                driver.primary.generation()
            }
            Some(_) | None => return,
        };
        if self.world.checker.live_generation() > generation {
            self.world.say(|| format!("the machine of host {host} has moved"));
            return self.bury(host);
        }
        let may_go_on = |process: &Process| match &process.role {
            Role::Backup(driver) => {
                !driver.is_waiting() && driver.backup.generation() >= generation
            }
            Role::Primary(_) | Role::Ended => false,
        };
        if self.processes.iter().flatten().any(may_go_on) {
            let delay_us = self.world.rng.range(50_000, 300_000);
            return self.world.after(delay_us, Due::Fault(Fault::Find { host, process }));
        }
        self.ask(host, Command::Reclaim);
    }

    /// The promise is about one failure at a time: most runs wait with one that would be the second
    /// until the machine is safe again.
    fn put_off(&mut self, fault: &Fault) -> bool {
        let (Fault::KillProcess(who) | Fault::KillHost(who) | Fault::Spoil(who)) = fault else {
            return false;
        };
        let (false, Some(host)) = (self.ruthless, self.find(*who)) else { return false };
        if !self.somebody_can_go_on(None) || self.somebody_can_go_on(Some(host)) {
            return false;
        }
        self.puts_off += 1;
        if self.puts_off < PUT_OFF_MAX && !self.is_calm {
            self.world.after(PUT_OFF_US, Due::Fault(fault.clone()));
        }
        true
    }

    /// The host that is meant.
    pub(crate) fn find(&self, who: Who) -> Option<usize> {
        let found = self.processes.iter().flatten().filter_map(|process| {
            let generation = match (&process.role, who) {
                (Role::Primary(driver), Who::Live) => match driver.primary.state() {
                    PrimaryState::Halted => None,
                    _ => Some(driver.primary.generation()),
                },
                (Role::Backup(driver), Who::Follower) => match driver.backup.state() {
                    BackupState::Waiting | BackupState::Halted => None,
                    _ => Some(driver.backup.generation()),
                },
                (_, Who::Host(host)) => (process.host == host).then_some(0),
                (_, Who::Live | Who::Follower) => None,
            };
            generation.map(|generation| (generation, process.host))
        });
        found.max().map(|(_, host)| host)
    }

    fn ask(&mut self, host: usize, command: Command) {
        let process = self.world.hosts[host].process;
        let what = Inbox::Command(command);
        self.world.after(1, Due::Arrive { host, process, what });
    }

    fn kill_process(&mut self, who: Who) {
        let Some(host) = self.find(who) else { return };
        let why = self.label(host);
        self.bury(host);
        self.excuse(why);
    }

    fn kill_host(&mut self, who: Who) {
        let Some(host) = self.find(who) else { return };
        let why = self.label(host);
        let Some(process) = self.processes[host].take() else { return };
        if self.world.rng.per_mille(500) {
            self.world.vanished.push(process.id);
        }
        let found = &mut self.world.hosts[host];
        (found.process, found.up) = (0, false);
        found.ports.clear();
        self.world.fall_silent(process.id);
        let wait_us = self.world.rng.range(300_000, 2_000_000);
        self.world.after(wait_us, Due::Fault(Fault::Restart(host)));
        self.excuse(why);
    }

    /// A process ends: its kernel closes everything once no write of it is under way.
    pub(crate) fn bury(&mut self, host: usize) {
        let Some(process) = self.processes[host].take() else { return };
        self.world.say(|| format!("host {host}: process {} has ended", process.id));
        self.world.hosts[host].process = u64::MAX;
        let busy_us = self.world.hosts[host].busy_until_us.saturating_sub(self.world.now_us);
        let delay_us = busy_us + self.world.rng.range(100, 2_000);
        self.world.after(delay_us, Due::Buried { host, process: process.id });
        let wait_us = delay_us + self.world.rng.range(10_000, 1_000_000);
        self.world.after(wait_us, Due::Fault(Fault::Restart(host)));
    }

    fn stop(&mut self, who: Who, for_us: u64, jump_us: Option<u64>) {
        let Some(host) = self.find(who) else { return };
        if let Some(process) = &mut self.processes[host] {
            process.pause(&self.world);
            let process = process.id;
            let since_us = jump_us.map(|_| self.world.now_us);
            let jump_us = jump_us.unwrap_or(0);
            let resume = Fault::Resume { host, process, jump_us, since_us };
            self.world.after(for_us, Due::Fault(resume));
        }
    }

    fn resume(&mut self, host: usize, process: u64, jump_us: u64, since_us: Option<u64>) {
        let Some((process, world)) = self.process(host, process) else { return };
        if !std::mem::take(&mut process.paused) {
            return;
        }
        process.wake(world);
        let stops = world.is(Break::ClockStops);
        let clock = &mut world.hosts[host].clock;
        clock.offset_us += jump_us;
        if let Some(since_us) = since_us.filter(|_| stops) {
            clock.offset_us -= (world.now_us - since_us) * clock.per_mille / 1000;
        }
    }

    fn isolate(&mut self, host: usize, for_us: u64) {
        let until_us = self.world.now_us + for_us;
        for other in (0..self.processes.len()).filter(|other| *other != host) {
            self.world.network.cut(host, other, until_us);
            self.world.network.cut(other, host, until_us);
        }
    }

    fn calm(&mut self) {
        self.is_calm = true;
        let now_us = self.world.now_us;
        self.world.after(600_000, Due::Fault(Fault::Look));
        self.world.network.mend();
        self.world.arbiter.slow_until_us = 0;
        for host in &mut self.world.hosts {
            host.arbiter_out_until_us = 0;
            host.arbiter_cut_until_us = 0;
            host.disk_slow_until_us = 0;
            host.lags_until_us = 0;
        }
        for process in self.processes.iter_mut().flatten() {
            process.paused = false;
            process.wake(&mut self.world);
        }
        for host in 0..self.processes.len() {
            let wait_us = self.world.rng.range(50_000, 400_000);
            self.world.after(wait_us, Due::Fault(Fault::Restart(host)));
        }
        self.world.say(|| format!("the storm is over at {now_us}"));
    }

    /// A pair that has been whole for a while needs no more watching.
    fn look(&mut self) {
        self.calm_checks = if self.is_well() { self.calm_checks + 1 } else { 0 };
        for host in 0..self.processes.len() {
            self.ask(host, Command::Standbys((0..self.processes.len()).collect()));
            self.ask(host, Command::Suspend(false));
            if !self.stays_disabled {
                let is_disabled = matches!(&self.processes[host],
                    Some(Process { role: Role::Primary(driver), .. }) if !driver.standbys.is_enabled());
                if is_disabled {
                    self.ask(host, Command::Enable);
                }
            }
        }
        self.world.after(300_000, Due::Fault(Fault::Look));
    }
}
