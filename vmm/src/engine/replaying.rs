//! The engine's loop for a machine that follows a log: a backup, or a replayed recording.
//!
//! Owns when the guest may run, and the comparison of what it did with what the log says. Does
//! not own the cursor over the log (`ft::Replay`).

use ft::recorder::Noted;
use ft::{Batch, Divergence, Input, Page, Replay, Start, Step};
use hypervisor::{Exit, Registers, VcpuState};
use xxhash_rust::xxh3::xxh3_64;

use super::divergence::{devices_text, registers_text};
use super::messages::{DivergenceReport, Ended, Message, NOT_LOGGED, Report};
use super::{Engine, LiveClock, Mode};
use crate::error::Error;
use crate::machine::{MachineState, Next, memory_digest, write_pages};

/// What a replaying engine keeps.
pub(super) struct Replaying {
    pub replay: Replay,
    pub deltas: u64,
    pub delta_pages: u64,
    /// The last time the log told, ns.
    now_ns: u64,
    /// The first thing that differed.
    difference: Option<Difference>,
    draining: bool,
    /// The machine was reset, and the delta that brings the state after it has not come yet.
    reset_owed: bool,
    /// Whoever makes the log can heal a machine that comes to differ.
    curable: bool,
    /// Which pages are written here is known, from this number of deltas on.
    touched_since: Option<u64>,
}

/// Deltas from one that forgets which pages were written before it to the next such. After a delta
/// both memories are equal, so that it could be each: but what is forgotten has to be watched anew.
const FORGET_EVERY: u64 = 32;

/// The first thing that differed between log and replay.
struct Difference {
    divergence: Divergence,
    /// More about it for people, in whole lines.
    details: String,
}

impl From<Divergence> for Difference {
    fn from(divergence: Divergence) -> Self {
        Self { divergence, details: String::new() }
    }
}

impl Replaying {
    /// A replay that waits for its first state. Guest RAM has `pages` pages.
    pub(super) fn new(pages: usize, curable: bool) -> Self {
        Self {
            replay: Replay::new(Start::Blank, pages),
            deltas: 0,
            delta_pages: 0,
            now_ns: 0,
            difference: None,
            draining: false,
            reset_owed: false,
            curable,
            touched_since: None,
        }
    }

    /// The time that the primary's exit handler read at `moment`. After a difference any answer
    /// will do: nothing that follows counts.
    pub(super) fn take_time(&mut self, moment: u64) -> u64 {
        match self.replay.take_time(moment) {
            Ok(now_ns) => self.now_ns = now_ns,
            Err(divergence) => self.differs(divergence),
        }
        self.now_ns
    }

    fn differs(&mut self, difference: impl Into<Difference>) {
        self.difference.get_or_insert_with(|| difference.into());
    }
}

impl Engine {
    /// One step of the log, or a wait for more of it.
    pub(super) fn step_replaying(&mut self) -> Result<(), Error> {
        while self.ended.is_none()
            && let Some(message) = self.inbox.take()
        {
            self.on_message_replaying(message)?;
        }
        let moment = self.machine.moment();
        let Mode::Replaying(replaying) = &mut self.mode else { return Ok(()) };
        if self.ended.is_some() {
            return Ok(());
        }
        match replaying.replay.next_step(moment) {
            Ok(step) => self.take_step(step)?,
            Err(divergence) => replaying.differs(divergence),
        }
        self.emit(false)?;
        self.report_difference()
    }

    fn take_step(&mut self, step: Step) -> Result<(), Error> {
        match step {
            Step::Run => return self.replay_interval(),
            Step::Input(input) => self.replay_input(&input),
            Step::Pages(pages) => {
                write_pages(
                    &self.machine.memory,
                    pages.iter().map(|(frame, page)| (*frame, page)),
                )?;
            }
            Step::Delta { moment, vcpu, machine, pages } => {
                self.apply_delta(&vcpu, machine.as_deref(), &pages)?;
                // The first one of a log says where that log begins.
                self.machine.moment = moment;
            }
            Step::Devices { state } => self.compare_devices(&state)?,
            Step::StateDigest { devices, memory } => self.compare_state(devices, memory)?,
            Step::Released { output } => self.reports.send(Report::Released { output }),
            Step::ChunkEnd { number, outputs } => {
                self.emit(false)?;
                let moment = self.machine.moment();
                let now_ns = self.replayed_time();
                self.reports.send(Report::Executed { number, moment, now_ns, outputs });
            }
            Step::Wait => self.await_log(),
            Step::End(reason) => {
                self.reports.send(Report::LogEnd(reason));
                self.await_log();
            }
        }
        Ok(())
    }

    fn on_message_replaying(&mut self, message: Message) -> Result<(), Error> {
        let Mode::Replaying(replaying) = &mut self.mode else { return Ok(()) };
        match message {
            Message::Log(batch) => self.take_batch(batch),
            Message::Drain => replaying.draining = true,
            Message::GoLive => self.go_live()?,
            Message::Inspect(inspect) => inspect(&self.inspection()),
            Message::Stop => self.ended = Some(Ended::Stopped),
            Message::Pause => self.reports.send(Report::Paused),
            Message::Resume => self.reports.send(Report::Resumed),
            // Only a live machine takes inputs or makes a log.
            Message::Input(_)
            | Message::Record(..)
            | Message::StopRecording(_)
            | Message::HandOver
            | Message::Heal(_)
            | Message::Stall(_)
            | Message::SlowDown(_) => {}
        }
        Ok(())
    }

    fn take_batch(&mut self, batch: Batch) {
        let moment = batch.start_moment;
        let Mode::Replaying(replaying) = &mut self.mode else { return };
        if let Err(error) = replaying.replay.push_batch(batch) {
            replaying.differs(Divergence::Log { moment, why: error.to_string() });
        }
    }

    fn replayed_time(&self) -> u64 {
        match &self.mode {
            Mode::Replaying(replaying) => replaying.now_ns,
            Mode::Live | Mode::Copying(_) | Mode::Recording(_) | Mode::Checkpointing(_) => {
                self.clock.now()
            }
        }
    }

    fn await_log(&mut self) {
        let Mode::Replaying(replaying) = &mut self.mode else { return };
        if std::mem::take(&mut replaying.draining) {
            self.reports.send(Report::Drained(self.machine.moment()));
        }
        self.inbox.wait(None);
    }

    /// Runs one interval that is known to have ended by itself.
    fn replay_interval(&mut self) -> Result<(), Error> {
        let runnable = self.machine.runnable();
        let Mode::Replaying(replaying) = &mut self.mode else { return Ok(()) };
        if !runnable {
            return self.differs_halted();
        }
        let exit = self.machine.run()?;
        if exit == Exit::Interrupted {
            return Ok(());
        }
        let moment = self.machine.moment();
        let registers = self.machine.vcpu.registers()?;
        replaying.replay.register_digest(moment, registers.digest());
        replaying.replay.registers(moment, &registers.values());
        let (machine, mut time) = self.machine_and_time();
        let next = machine.handle(&exit, &mut time)?;
        self.note_wish(next);
        Ok(())
    }

    /// A reset comes with the log as a delta, a power-off as the log's end. Should the log end in
    /// between, the reset is still to be made.
    fn note_wish(&mut self, next: Next) {
        if let (Mode::Replaying(replaying), Next::Reset) = (&mut self.mode, next) {
            replaying.reset_owed = true;
        }
    }

    fn differs_halted(&mut self) -> Result<(), Error> {
        let moment = self.machine.moment();
        if let Mode::Replaying(replaying) = &mut self.mode {
            replaying.differs(Divergence::Halted { moment });
        }
        Ok(())
    }

    fn replay_input(&mut self, input: &Input) {
        if let (Mode::Replaying(replaying), Input::Tick { now_ns }) = (&mut self.mode, input) {
            replaying.now_ns = *now_ns;
        }
        let next = self.machine.apply(input);
        self.note_wish(next);
    }

    fn apply_delta(
        &mut self,
        vcpu: &[u8],
        machine: Option<&[u8]>,
        pages: &std::collections::BTreeMap<u64, Page>,
    ) -> Result<(), Error> {
        let vcpu: VcpuState =
            postcard::from_bytes(vcpu).map_err(|error| Error::State(error.to_string()))?;
        if machine.is_none() && !self.machine.runnable() {
            return self.differs_halted();
        }
        self.machine.skip_interval(&vcpu)?;
        if let Some(machine) = machine {
            self.machine.restore_models(MachineState::decode(machine)?)?;
        }
        // After the vCPU: replacing it completes its last access, which may write to memory.
        write_pages(&self.machine.memory, pages.iter().map(|(frame, page)| (*frame, page)))?;
        if let Mode::Replaying(replaying) = &mut self.mode {
            replaying.reset_owed = false;
            replaying.deltas += 1;
            replaying.delta_pages += pages.len() as u64;
        }
        self.forget_touched()?;
        self.reports.send(Report::Delta { pages: pages.len() as u64 });
        Ok(())
    }

    /// What was written before a delta counts for nothing any more: from the first delta on, and then
    /// now and again.
    fn forget_touched(&mut self) -> Result<(), Error> {
        let Mode::Replaying(replaying) = &mut self.mode else { return Ok(()) };
        match replaying.touched_since {
            _ if !replaying.curable => return Ok(()),
            None => self.machine.vm.track_dirty(true)?,
            Some(deltas) if replaying.deltas < deltas + FORGET_EVERY => return Ok(()),
            Some(_) => drop(self.machine.vm.take_dirty()?),
        }
        replaying.touched_since = Some(replaying.deltas);
        Ok(())
    }

    fn compare_state(&mut self, devices: u64, memory: Option<u64>) -> Result<(), Error> {
        let moment = self.machine.moment();
        let state = self.machine.state();
        let mine = match memory {
            Some(_) => Some(memory_digest(&self.machine.memory)?),
            None => None,
        };
        let checked = Replay::check_state(moment, (devices, memory), (state.digest()?, mine));
        if let (Err(divergence), Mode::Replaying(replaying)) = (checked, &mut self.mode) {
            replaying.differs(divergence);
        }
        Ok(())
    }

    fn compare_devices(&mut self, recorded: &[u8]) -> Result<(), Error> {
        let state = self.machine.state();
        let Mode::Replaying(replaying) = &mut self.mode else { return Ok(()) };
        let replayed = state.encode()?;
        if replayed != recorded {
            let divergence = Divergence::Devices {
                moment: self.machine.moment(),
                recorded: xxh3_64(recorded),
                replayed: xxh3_64(&replayed),
            };
            let details = devices_text(recorded, &state)?;
            replaying.differs(Difference { divergence, details });
        }
        Ok(())
    }

    /// Outputs of a replay go to the shell too, which keeps or compares them, and drops them.
    pub(super) fn emit_replayed(&mut self) {
        let Mode::Replaying(replaying) = &mut self.mode else { return };
        if !self.machine.has_outputs() {
            return;
        }
        let outputs = self.machine.take_outputs();
        let outputs = outputs
            .into_iter()
            .map(|output| {
                let sequence = replaying.replay.output(&output);
                (Noted { sequence, chunk: 0 }, output)
            })
            .collect();
        self.reports.send(Report::Emission { chunks: Vec::new(), outputs });
    }

    /// A divergence ends a replay, or has it wait until the machine is healed: nothing that follows
    /// could be trusted.
    fn report_difference(&mut self) -> Result<(), Error> {
        let Mode::Replaying(replaying) = &mut self.mode else { return Ok(()) };
        let Some(difference) = replaying.difference.take() else { return Ok(()) };
        let in_order = !matches!(difference.divergence, Divergence::Log { .. });
        let touched = if in_order && replaying.touched_since.is_some() {
            replaying.replay.heal();
            replaying.touched_since = Some(replaying.deltas);
            Some(self.machine.vm.take_dirty()?)
        } else {
            None
        };
        let moment = self.machine.moment();
        let text = self.report_text(moment, &difference);
        if touched.is_none() {
            self.ended = Some(Ended::Failed(text.clone()));
        }
        let divergence = difference.divergence;
        let report = DivergenceReport { moment, divergence, text, touched };
        self.reports.send(Report::Diverged(report));
        Ok(())
    }

    fn report_text(&self, moment: u64, difference: &Difference) -> String {
        let Difference { divergence, details } = difference;
        let mut text = format!("at moment {moment}: {divergence}\n{details}");
        let instruction = |rip: u64| format!("{rip:#x}: {}", self.machine.instruction_text(rip));
        if let Divergence::RegisterValues { recorded, replayed, .. } = divergence {
            for (which, values) in [("recorded", recorded), ("replayed", replayed)] {
                let rip = Registers::from_values(values).rip;
                text += &format!("{which} guest instruction {}\n", instruction(rip));
            }
            return text + &registers_text(recorded, replayed);
        }
        match self.machine.vcpu.registers() {
            Ok(registers) => {
                text += &format!("guest instruction {}\n", instruction(registers.rip));
                text + &format!("registers of the replay:\n{registers}")
            }
            Err(error) => text + &error.to_string(),
        }
    }

    /// From now on the world is this machine's. Requests that were open are asked for again.
    fn go_live(&mut self) -> Result<(), Error> {
        let Mode::Replaying(replaying) = &mut self.mode else { return Ok(()) };
        let reset_owed = replaying.reset_owed;
        let now_ns = replaying.replay.take_over();
        self.clock = LiveClock::stopped_at(now_ns);
        self.mode = Mode::Live;
        self.apply_pace();
        self.clock.start();
        let outputs: Vec<_> =
            self.machine.standing_outputs().into_iter().map(|o| (NOT_LOGGED, o)).collect();
        self.reports.send(Report::Emission { chunks: Vec::new(), outputs });
        self.reports.send(Report::Live(self.machine.moment()));
        if reset_owed { self.reset() } else { Ok(()) }
    }
}
