//! The engine's loop for a machine that takes its inputs from the world, logged or not.

use std::time::Duration;

use ft::Input;
use hypervisor::{Exit, monotonic_ns};

use super::healing::GUESTS_TURN_NS;
use super::messages::{Ended, Inspection, Message, NOT_LOGGED, Report};
use super::slowdown::Slowdown;
use super::{Engine, Mode};
use crate::error::Error;

/// At most this much machine time passes in one sleep: a bound, not a period.
const SLEEP_MOST: Duration = Duration::from_secs(1);

impl Engine {
    /// One round: messages, inputs, outputs, then the guest until its next exit.
    pub(super) fn step_live(&mut self) -> Result<(), Error> {
        self.take_messages()?;
        if self.ended.is_some() {
            return Ok(());
        }
        if !self.paused && !self.machine.inside_interval() {
            self.take_inputs()?;
        }
        self.emit(false)?;
        if self.ended.is_some() {
            return Ok(());
        }
        self.copy()?;
        self.heal()?;
        if self.ended.is_some() {
            return Ok(());
        }
        self.checkpoint_when_due()?;
        if self.paused || self.stands_still() || !self.machine.runnable() {
            self.sleep();
            return Ok(());
        }
        self.enter()
    }

    /// Whether something other than the user holds the guest up: a full log, a follower that is
    /// slower, or a copy that has to get ahead of it.
    fn stands_still(&self) -> bool {
        match &self.mode {
            Mode::Copying(copying) => copying.guest_waits(),
            Mode::Recording(_) | Mode::Checkpointing(_) => {
                self.stalled || self.slowdown.rests(monotonic_ns())
            }
            Mode::Live | Mode::Replaying(_) => self.stalled,
        }
    }

    /// When a guest that rests may run again or one that runs has to rest, monotonic ns.
    fn slowdown_due_ns(&self) -> Option<u64> {
        match &self.mode {
            Mode::Recording(_) | Mode::Checkpointing(_) => self.slowdown.changes_ns(monotonic_ns()),
            Mode::Live | Mode::Copying(_) | Mode::Replaying(_) => None,
        }
    }

    fn take_messages(&mut self) -> Result<(), Error> {
        while self.ended.is_none()
            && let Some(message) = self.inbox.take()
        {
            self.on_message(message)?;
        }
        Ok(())
    }

    fn on_message(&mut self, message: Message) -> Result<(), Error> {
        match message {
            Message::Input(input) => self.waiting.push_back(input),
            Message::Pause => {
                self.paused = true;
                self.clock.stop();
                self.emit(true)?;
                self.reports.send(Report::Paused);
            }
            Message::Resume => {
                self.paused = false;
                self.clock.start();
                self.reports.send(Report::Resumed);
            }
            Message::Record(plan, kept) => self.start_recording(plan, kept)?,
            Message::StopRecording(end) => self.stop_recording(end)?,
            Message::HandOver => {
                self.paused = true;
                self.clock.stop();
                self.finish_log(ft::EndReason::Failover)?;
                self.reports.send(Report::HandedOver(self.machine.moment()));
            }
            Message::Stall(on) => self.stalled = on,
            Message::SlowDown(percent) => self.slowdown = Slowdown::new(percent),
            Message::Heal(plan) => self.begin_healing(plan),
            Message::Inspect(inspect) => inspect(&self.inspection()),
            Message::Stop => {
                self.finish_log(ft::EndReason::Stopped)?;
                self.ended = Some(Ended::Stopped);
            }
            // Left over from before the machine went live; their time is past.
            Message::Log(_) | Message::Drain | Message::GoLive => {}
        }
        Ok(())
    }

    pub(super) fn inspection(&self) -> Inspection {
        let mut moment = self.machine.moment();
        let (deltas, delta_pages) = match &self.mode {
            Mode::Live | Mode::Copying(_) => (0, 0),
            Mode::Recording(recording) => (recording.deltas, recording.delta_pages),
            Mode::Checkpointing(checkpointing) => {
                moment = checkpointing.moment;
                (checkpointing.checkpoints, checkpointing.pages)
            }
            Mode::Replaying(replaying) => (replaying.deltas, replaying.delta_pages),
        };
        Inspection { moment, now_ns: self.clock.now(), deltas, delta_pages }
    }

    /// Applies what waits and finds room, and the time that has passed.
    fn take_inputs(&mut self) -> Result<(), Error> {
        if let Some(deadline) = self.machine.next_deadline() {
            let now_ns = self.clock.now();
            if now_ns >= deadline {
                self.apply(&Input::Tick { now_ns })?;
            }
        }
        let mut left = std::collections::VecDeque::new();
        while let Some(input) = self.waiting.pop_front() {
            if self.machine.can_take(&input) {
                self.apply(&input)?;
            } else {
                left.push_back(input);
            }
        }
        self.waiting = left;
        Ok(())
    }

    fn apply(&mut self, input: &Input) -> Result<(), Error> {
        self.record_input(input)?;
        self.note_change();
        if matches!(input, Input::Packet { .. }) {
            self.inbox.shared().packet_taken();
        }
        let next = self.machine.apply(input);
        self.note_outputs();
        self.follow(next)
    }

    /// Nothing to run: waits for a message, the next timer, or the log's own deadline.
    fn sleep(&mut self) {
        let mut timeout = SLEEP_MOST;
        if !self.paused
            && !self.stands_still()
            && let Some(deadline) = self.machine.next_deadline()
        {
            timeout = timeout.min(Duration::from_nanos(deadline.saturating_sub(self.clock.now())));
        }
        let due_ns = match &self.mode {
            Mode::Recording(recording) if recording.healing.is_some() => Some(monotonic_ns()),
            Mode::Recording(recording) => recording.flush_due_ns(),
            Mode::Copying(copying) => {
                Some(copying.idle_due_ns(self.inbox.shared().executed_bytes()))
            }
            Mode::Checkpointing(checkpointing) => checkpointing.pace.due_ns(),
            Mode::Live | Mode::Replaying(_) => None,
        };
        for due_ns in due_ns.into_iter().chain(self.slowdown_due_ns()) {
            timeout = timeout.min(Duration::from_nanos(due_ns.saturating_sub(monotonic_ns())));
        }
        if !timeout.is_zero() {
            self.inbox.wait(Some(timeout));
        }
    }

    /// Runs the guest once.
    fn enter(&mut self) -> Result<(), Error> {
        if !self.inbox.enter_guest() {
            return Ok(());
        }
        self.note_change();
        self.arm();
        let exit = self.machine.run()?;
        self.inbox.leave_guest();
        if exit == Exit::Interrupted {
            return self.interrupted();
        }
        self.natural_exit(&exit)
    }

    /// The guest ended its interval by itself: handles the exit that is the current moment.
    pub(super) fn natural_exit(&mut self, exit: &Exit) -> Result<(), Error> {
        self.record_exit()?;
        let (machine, mut time) = self.machine_and_time();
        let next = machine.handle(exit, &mut time)?;
        self.note_outputs();
        self.follow(next)
    }

    /// Sees to it that the guest is left when its next timer is due (or an input waits inside an
    /// interval) and the interval has had its time to end by itself.
    fn arm(&self) {
        let patience = match &self.mode {
            Mode::Recording(_) => self.budget.patience_ns(),
            Mode::Live | Mode::Copying(_) | Mode::Checkpointing(_) | Mode::Replaying(_) => 0,
        };
        let now_ns = monotonic_ns();
        let input_due_ns = if self.machine.inside_interval() && self.input_waits() {
            Some(now_ns)
        } else {
            let deadline = self.machine.next_deadline();
            deadline.map(|due| now_ns.saturating_add(due.saturating_sub(self.clock.now())))
        };
        let input_due_ns = input_due_ns.map(|due_ns| due_ns.saturating_add(patience));
        let turn_due_ns = match &self.mode {
            Mode::Copying(copying) => Some(copying.due_ns()),
            Mode::Checkpointing(checkpointing) => checkpointing.pace.due_ns(),
            Mode::Recording(recording) if recording.healing.is_some() => {
                Some(now_ns.saturating_add(GUESTS_TURN_NS))
            }
            Mode::Live | Mode::Recording(_) | Mode::Replaying(_) => None,
        };
        let others = turn_due_ns.into_iter().chain(self.slowdown_due_ns());
        if let Some(due_ns) = input_due_ns.into_iter().chain(others).min() {
            self.machine.vcpu.kicker().kick_by(due_ns);
        }
    }

    /// The vCPU was kicked out of the guest. In a plain VM that ends the interval; under a log
    /// only a delta can, and only when something waits for it.
    fn interrupted(&mut self) -> Result<(), Error> {
        match self.mode {
            Mode::Live | Mode::Copying(_) | Mode::Checkpointing(_) => {
                self.machine.end_interval_here();
                Ok(())
            }
            Mode::Recording(_) => {
                self.take_messages()?;
                let logged = matches!(self.mode, Mode::Recording(_)) && self.ended.is_none();
                if !logged || (!self.input_waits() && !self.timer_due()) {
                    return Ok(());
                }
                self.end_interval()
            }
            Mode::Replaying(_) => Ok(()),
        }
    }

    fn timer_due(&self) -> bool {
        self.machine.next_deadline().is_some_and(|due| self.clock.now() >= due)
    }

    fn input_waits(&self) -> bool {
        self.waiting.iter().any(|input| self.machine.can_take(input))
    }

    /// Sends what the machine put out, and the log that leads to it.
    pub(super) fn emit(&mut self, flush: bool) -> Result<(), Error> {
        match &mut self.mode {
            Mode::Live | Mode::Copying(_) => {
                let outputs = self.machine.take_outputs();
                if !outputs.is_empty() {
                    let outputs = outputs.into_iter().map(|o| (NOT_LOGGED, o)).collect();
                    self.reports.send(Report::Emission { chunks: Vec::new(), outputs });
                }
            }
            Mode::Recording(_) => self.emit_recorded(flush)?,
            Mode::Checkpointing(_) => self.emit_uncovered(),
            Mode::Replaying(_) => self.emit_replayed(),
        }
        Ok(())
    }
}
