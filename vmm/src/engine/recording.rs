//! The engine's part of a recording: when digests, deltas and pieces of log are made.
//!
//! Owns the occasions. Does not own the encoding (`ft::Recorder`) or where the log goes.

use std::time::Duration;

use ft::{Chunk, DigestMode, EndReason, Input, KeptPages, Output, Page, Recorder, recorder::Noted};
use hypervisor::monotonic_ns;

use super::healing::Healing;
use super::messages::{JoinKind, RecordPlan, Report};
use super::{Engine, Mode};
use crate::error::Error;
use crate::machine::{content_pages, memory_digest, page_at};

/// Log that no output waits for may gather this long before it is sent.
const GATHER: Duration = Duration::from_millis(8);
/// A piece of log is sent at the latest when it holds this many bytes.
const GATHER_BYTES: usize = 64 << 10;
/// Pages read from guest memory before their log is sent: 1 MiB.
const PAGES_AT_ONCE: usize = 256;

/// What a delta with all state is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whole {
    /// Whoever follows needs nothing before it.
    Begins,
    /// It makes a copy equal that differs, by so many pages.
    Heals { pages: u64 },
}

/// What a recording engine keeps.
pub(super) struct Recording {
    kind: JoinKind,
    pub recorder: Recorder,
    pub deltas: u64,
    pub delta_pages: u64,
    /// How long the guest stood still for them.
    pub delta_ns: u64,
    /// When the oldest record not sent yet was written, monotonic ns.
    gathering_since_ns: Option<u64>,
    digest_every: u64,
    state_digest_due: u64,
    /// The last output that the log says has left.
    released: u64,
    /// Outputs noted and not sent yet.
    outputs: Vec<(Noted, Output)>,
    /// The log has its end: no record may follow.
    ended: bool,
    /// The copy that follows differs.
    pub healing: Option<Box<Healing>>,
}

impl Recording {
    /// A recording that goes on with `recorder`, of a machine that is at `moment`.
    pub(super) fn new(plan: &RecordPlan, recorder: Recorder, moment: u64) -> Self {
        Self {
            kind: plan.kind,
            recorder,
            deltas: 0,
            delta_pages: 0,
            delta_ns: 0,
            gathering_since_ns: None,
            digest_every: plan.digest_every,
            state_digest_due: moment.saturating_add(plan.digest_every),
            released: 0,
            outputs: Vec::new(),
            ended: false,
            healing: None,
        }
    }

    /// Whether the log has its end.
    pub(super) fn has_ended(&self) -> bool {
        self.ended
    }

    /// When the log in hand has to be sent, monotonic ns.
    pub(super) fn flush_due_ns(&self) -> Option<u64> {
        self.gathering_since_ns.map(|since| since + GATHER.as_nanos() as u64)
    }

    fn note(&mut self, outputs: Vec<Output>) {
        for output in outputs {
            let noted = self.recorder.output(&output);
            self.outputs.push((noted, output));
        }
    }

    /// The log and the outputs in hand, if any of them is due.
    fn collect(&mut self, moment: u64, flush: bool) -> (Vec<Chunk>, Vec<(Noted, Output)>) {
        let due = self.flush_due_ns().is_some_and(|due| monotonic_ns() >= due);
        let full = self.recorder.pending_bytes() >= GATHER_BYTES;
        // Nobody acknowledges a file: no output waits for it.
        let awaited =
            self.kind == JoinKind::Pair && self.outputs.iter().any(|(_, output)| output.is_gated());
        let chunks = if flush || due || full || awaited {
            self.gathering_since_ns = None;
            self.recorder.cut(moment)
        } else {
            Vec::new()
        };
        (chunks, std::mem::take(&mut self.outputs))
    }
}

impl Engine {
    /// Starts to log: into a file from here on, for a backup once it has a copy of the machine.
    pub(super) fn start_recording(
        &mut self,
        plan: RecordPlan,
        kept: KeptPages,
    ) -> Result<(), Error> {
        match plan.kind {
            JoinKind::File => self.start_file(&plan),
            JoinKind::Pair => self.start_copying(plan, kept),
        }
    }

    fn start_file(&mut self, plan: &RecordPlan) -> Result<(), Error> {
        self.settle()?;
        self.emit(true)?;
        let moment = self.machine.moment();
        let recorder = Recorder::new(moment, DigestMode::Registers);
        self.mode = Mode::Recording(Box::new(Recording::new(plan, recorder, moment)));
        self.inbox.shared().forget_log();
        self.machine.vm.track_dirty(true)?;
        self.apply_pace();
        self.record_everything()?;
        self.reports.send(Report::Recording(self.machine.moment()));
        Ok(())
    }

    /// Stops logging; with a reason, the log gets an end first.
    pub(super) fn stop_recording(&mut self, end: Option<EndReason>) -> Result<(), Error> {
        if let Some(reason) = end {
            self.finish_log(reason)?;
        }
        self.emit(true)?;
        match self.mode {
            Mode::Recording(_) | Mode::Checkpointing(_) | Mode::Copying(_) => {
                self.mode = Mode::Live;
                self.machine.vm.track_dirty(false)?;
                self.apply_pace();
            }
            Mode::Live | Mode::Replaying(_) => {}
        }
        Ok(())
    }

    /// Writes the last digests and an end into the log, if there is one, and sends it.
    pub(super) fn finish_log(&mut self, reason: EndReason) -> Result<(), Error> {
        match self.mode {
            Mode::Recording(_) => {}
            Mode::Checkpointing(_) => return self.end_checkpoints(reason),
            Mode::Live | Mode::Copying(_) | Mode::Replaying(_) => return Ok(()),
        }
        if self.machine.inside_interval() {
            self.end_interval()?;
        }
        let memory = memory_digest(&self.machine.memory)?;
        self.record_state(Some(memory))?;
        let moment = self.machine.moment();
        if let Mode::Recording(recording) = &mut self.mode {
            recording.recorder.end(moment, reason);
            recording.ended = true;
            log::info!(
                "{} deltas with {} pages were taken; the guest stood still {} ms for them",
                recording.deltas,
                recording.delta_pages,
                recording.delta_ns / 1_000_000
            );
        }
        self.emit(true)
    }

    /// Logs the whole state as a moment of its own: what a recording begins with, and what a reset
    /// needs. A copy that is under way begins again.
    pub(super) fn record_everything(&mut self) -> Result<(), Error> {
        let frames = || content_pages(&self.machine.memory).collect::<Vec<u64>>();
        match &mut self.mode {
            Mode::Live | Mode::Replaying(_) => Ok(()),
            Mode::Copying(copying) => {
                copying.begin_again(frames());
                Ok(())
            }
            Mode::Recording(_) => {
                let frames = frames();
                // Whatever was dirty is in the copy that follows.
                let _ = self.machine.vm.take_dirty()?;
                self.record_all(&frames, Whole::Begins)
            }
            Mode::Checkpointing(_) => {
                let frames = frames();
                let _ = self.machine.vm.take_dirty()?;
                self.checkpoint_of(&frames, monotonic_ns(), None)
            }
        }
    }

    /// Logs these pages and all state besides memory as a moment of its own.
    pub(super) fn record_all(&mut self, frames: &[u64], whole: Whole) -> Result<(), Error> {
        // Until the delta is out, a follower's devices are still those of before.
        let moment = self.machine.moment();
        if let Mode::Recording(recording) = &mut self.mode {
            recording.state_digest_due = moment.saturating_add(1 + recording.digest_every);
        }
        self.record_pages(frames)?;
        self.record_delta(Some(whole))
    }

    /// Ends the interval the guest is in, by a delta unless it has just ended by itself.
    ///
    /// The kick may have come before the guest was entered: what the last exit asked for is then
    /// still to be completed, and that may be an exit of its own.
    pub(super) fn end_interval(&mut self) -> Result<(), Error> {
        match self.machine.settle_inside()? {
            Some(exit) => self.natural_exit(&exit),
            None => self.take_delta(),
        }
    }

    /// Ships vCPU and dirty pages, which ends the interval. The vCPU must be settled.
    fn take_delta(&mut self) -> Result<(), Error> {
        let begun_ns = monotonic_ns();
        let frames = self.machine.vm.take_dirty()?;
        self.record_pages(&frames)?;
        self.record_delta(None)?;
        let pages = frames.len() as u64;
        if let Mode::Recording(recording) = &mut self.mode {
            recording.deltas += 1;
            recording.delta_pages += pages;
        }
        let now_ns = monotonic_ns();
        if let Mode::Recording(recording) = &mut self.mode {
            recording.delta_ns += now_ns - begun_ns;
        }
        self.budget.spend(now_ns, now_ns - begun_ns);
        self.apply_pace();
        self.reports.send(Report::Delta { pages });
        Ok(())
    }

    fn record_delta(&mut self, whole: Option<Whole>) -> Result<(), Error> {
        let models = whole.map(|_| self.machine.state().encode()).transpose()?;
        let vcpu = self.machine.save_vcpu()?;
        let vcpu = postcard::to_stdvec(&vcpu).map_err(|error| Error::State(error.to_string()))?;
        self.machine.end_interval_here();
        let moment = self.machine.moment();
        if let Mode::Recording(recording) = &mut self.mode {
            match (whole, models) {
                (Some(Whole::Heals { pages }), Some(models)) => {
                    recording.recorder.heal(moment, vcpu, models)?;
                    // Before the chunk itself: nobody has heard of it then.
                    let chunk = recording.recorder.open_chunk();
                    self.reports.send(Report::Healing { chunk, pages });
                }
                (_, models) => recording.recorder.delta(moment, vcpu, models)?,
            }
        }
        self.emit(true)
    }

    /// Logs pages at the moment before the delta that commits them, and sends them as it goes:
    /// a whole memory never piles up here.
    fn record_pages(&mut self, frames: &[u64]) -> Result<(), Error> {
        let moment = self.machine.moment();
        for frames in frames.chunks(PAGES_AT_ONCE) {
            let pages = frames
                .iter()
                .map(|frame| Ok((*frame, page_at(&self.machine.memory, *frame)?)))
                .collect::<Result<Vec<(u64, Page)>, Error>>()?;
            if let Mode::Recording(recording) = &mut self.mode {
                recording.recorder.pages(moment, pages);
            }
            self.emit(false)?;
        }
        Ok(())
    }

    /// Tells the log about the natural exit that the machine has just taken.
    pub(super) fn record_exit(&mut self) -> Result<(), Error> {
        let moment = self.machine.moment();
        let Mode::Recording(recording) = &mut self.mode else { return Ok(()) };
        let registers = self.machine.vcpu.registers()?;
        recording.recorder.register_digest(moment, registers.digest());
        recording.recorder.registers(moment, &registers.values());
        if recording.gathering_since_ns.is_none() {
            recording.gathering_since_ns = Some(monotonic_ns());
        }
        Ok(())
    }

    /// Logs an input that is about to be applied.
    pub(super) fn record_input(&mut self, input: &Input) -> Result<(), Error> {
        let moment = self.machine.moment();
        let Mode::Recording(recording) = &mut self.mode else { return Ok(()) };
        recording.recorder.input(moment, input)?;
        if recording.gathering_since_ns.is_none() {
            recording.gathering_since_ns = Some(monotonic_ns());
        }
        Ok(())
    }

    /// Notes where the outputs just produced stand in the log. Comes right after whatever made
    /// them: a chunk that closes in between would claim to lead to fewer.
    pub(super) fn note_outputs(&mut self) {
        let Mode::Recording(recording) = &mut self.mode else { return };
        if self.machine.has_outputs() {
            recording.note(self.machine.take_outputs());
        }
    }

    /// Sends outputs with the log that leads to them; log alone when it is due.
    pub(super) fn emit_recorded(&mut self, flush: bool) -> Result<(), Error> {
        self.note_outputs();
        self.digest_state_when_due()?;
        let moment = self.machine.moment();
        let released = self.inbox.shared().released();
        let Mode::Recording(recording) = &mut self.mode else { return Ok(()) };
        let news = released > recording.released && recording.gathering_since_ns.is_some();
        if news && !recording.ended {
            recording.released = released;
            recording.recorder.released(moment, released);
        }
        let (chunks, outputs) = recording.collect(moment, flush);
        if !chunks.is_empty() || !outputs.is_empty() {
            self.reports.send(Report::Emission { chunks, outputs });
        }
        Ok(())
    }

    /// Device state is digested between intervals only, where both sides agree on it.
    fn digest_state_when_due(&mut self) -> Result<(), Error> {
        let moment = self.machine.moment();
        let Mode::Recording(recording) = &mut self.mode else { return Ok(()) };
        let due = moment >= recording.state_digest_due && !recording.ended;
        if !due || self.machine.inside_interval() {
            return Ok(());
        }
        recording.state_digest_due = moment.saturating_add(recording.digest_every);
        self.record_state(None)
    }

    /// Logs what the other side compares its devices with: in a file all of their state, so that
    /// a difference can be shown, else a digest.
    fn record_state(&mut self, memory: Option<u64>) -> Result<(), Error> {
        let moment = self.machine.moment();
        let state = self.machine.state();
        let Mode::Recording(recording) = &mut self.mode else { return Ok(()) };
        if recording.kind == JoinKind::File {
            recording.recorder.devices(moment, state.encode()?)?;
        }
        if recording.kind == JoinKind::Pair || memory.is_some() {
            recording.recorder.state_digest(moment, state.digest()?, memory);
        }
        Ok(())
    }

    /// Completes pending I/O of the vCPU, so that its state may be read.
    pub(super) fn settle(&mut self) -> Result<(), Error> {
        let (machine, mut time) = self.machine_and_time();
        machine.settle(&mut time)
    }
}
