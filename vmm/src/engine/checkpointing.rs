//! The engine's loop where the machine is kept by checkpoints: it runs as freely as a plain one,
//! and now and then all that changed goes into the log.
//!
//! Owns what a checkpoint holds and in which order. Does not own when one is due
//! (`checkpoint_pace`), nor how the outputs wait: they go to the shell as they are made, and once
//! the checkpoint after them is in a chunk the shell is told which.
//!
//! The log of such a machine has no moment but its checkpoints: whoever follows it runs nothing.

use ft::recorder::Noted;
use ft::{Chunk, EndReason, Input, Recorder, Trail};
use hypervisor::monotonic_ns;

use super::checkpoint_pace::CheckpointPace;
use super::messages::Report;
use super::{Engine, Mode};
use crate::error::Error;
use crate::machine::{memory_digest, page_at};

/// Pages read from guest memory before their log is sent: 1 MiB.
const PAGES_AT_ONCE: usize = 256;
/// Checkpoints from one digest of all device models to the next.
const DIGEST_EVERY: u64 = 64;

/// What a checkpointing engine keeps.
pub(super) struct Checkpointing {
    recorder: Recorder,
    pub(super) pace: CheckpointPace,
    /// The moment of the last checkpoint: the log's time, not the machine's count of exits.
    pub(super) moment: u64,
    /// All outputs that the machine has made since the log began.
    outputs: Trail,
    pub(super) checkpoints: u64,
    pub(super) pages: u64,
    digest_due: u64,
    /// The log has its end: no record may follow.
    ended: bool,
}

impl Checkpointing {
    /// Goes on with `recorder`, of a machine that is at `moment` and has not been logged yet.
    pub(super) fn new(interval_ns: u64, recorder: Recorder, moment: u64) -> Self {
        Self {
            recorder,
            pace: CheckpointPace::new(interval_ns, monotonic_ns()),
            moment,
            outputs: Trail::default(),
            checkpoints: 0,
            pages: 0,
            digest_due: moment.saturating_add(DIGEST_EVERY),
            ended: false,
        }
    }
}

impl Engine {
    /// Hands the shell what the machine put out; what may not leave is waited for from now on.
    pub(super) fn emit_uncovered(&mut self) {
        let Mode::Checkpointing(checkpointing) = &mut self.mode else { return };
        if !self.machine.has_outputs() {
            return;
        }
        let outputs = self.machine.take_outputs().into_iter().map(|output| {
            if output.is_gated() {
                checkpointing.pace.note_waiting();
            }
            let sequence = checkpointing.outputs.note(&output);
            (Noted { sequence, chunk: Noted::CHUNK_TO_COME }, output)
        });
        let outputs = outputs.collect();
        self.reports.send(Report::Emission { chunks: Vec::new(), outputs });
    }

    /// The machine is about to change.
    pub(super) fn note_change(&mut self) {
        if let Mode::Checkpointing(checkpointing) = &mut self.mode {
            checkpointing.pace.note_change();
        }
    }

    /// Takes a checkpoint if one is due.
    pub(super) fn checkpoint_when_due(&mut self) -> Result<(), Error> {
        let Mode::Checkpointing(checkpointing) = &self.mode else { return Ok(()) };
        if checkpointing.ended || !checkpointing.pace.is_due(monotonic_ns()) {
            return Ok(());
        }
        self.checkpoint(None)
    }

    /// Ships all that changed since the last checkpoint, and with a reason ends the log.
    pub(super) fn checkpoint(&mut self, end: Option<EndReason>) -> Result<(), Error> {
        let begun_ns = monotonic_ns();
        self.settle()?;
        let frames = self.machine.vm.take_dirty()?;
        self.checkpoint_of(&frames, begun_ns, end)
    }

    /// Ends the log with a last checkpoint and digests of everything, once.
    pub(super) fn end_checkpoints(&mut self, reason: EndReason) -> Result<(), Error> {
        match &self.mode {
            Mode::Checkpointing(checkpointing) if !checkpointing.ended => {}
            _ => return Ok(()),
        }
        self.checkpoint(Some(reason))?;
        if let Mode::Checkpointing(checkpointing) = &self.mode {
            log::info!(
                "{} checkpoints with {} pages were taken",
                checkpointing.checkpoints,
                checkpointing.pages
            );
        }
        Ok(())
    }

    /// The same with these pages. The vCPU must be settled.
    pub(super) fn checkpoint_of(
        &mut self,
        frames: &[u64],
        begun_ns: u64,
        end: Option<EndReason>,
    ) -> Result<(), Error> {
        self.emit_uncovered();
        self.checkpoint_pages(frames)?;
        let Mode::Checkpointing(checkpointing) = &mut self.mode else { return Ok(()) };
        let models = self.machine.state().encode()?;
        // What the guest did on its own has no name in the log.
        self.machine.moment = checkpointing.moment;
        let vcpu = self.machine.save_vcpu()?;
        let vcpu = postcard::to_stdvec(&vcpu).map_err(|error| Error::State(error.to_string()))?;
        self.machine.end_interval_here();
        checkpointing.moment = self.machine.moment();
        let moment = checkpointing.moment;
        checkpointing.recorder.checkpoint(moment, vcpu, models, checkpointing.outputs)?;
        checkpointing.checkpoints += 1;
        checkpointing.pages += frames.len() as u64;
        self.checkpoint_rest(end)?;
        self.send_checkpoint(frames.len() as u64);
        let now_ns = monotonic_ns();
        if let Mode::Checkpointing(checkpointing) = &mut self.mode {
            // The first one ends a join, and says nothing of those that follow.
            let begun_ns = if checkpointing.checkpoints == 1 { now_ns } else { begun_ns };
            checkpointing.pace.took(begun_ns, now_ns);
        }
        Ok(())
    }

    /// Logs pages for the checkpoint that commits them, and sends them as it goes.
    fn checkpoint_pages(&mut self, frames: &[u64]) -> Result<(), Error> {
        for frames in frames.chunks(PAGES_AT_ONCE) {
            let Mode::Checkpointing(checkpointing) = &mut self.mode else { return Ok(()) };
            let pages = frames
                .iter()
                .map(|frame| Ok((*frame, page_at(&self.machine.memory, *frame)?)))
                .collect::<Result<Vec<_>, Error>>()?;
            checkpointing.recorder.pages(checkpointing.moment, pages);
            let chunks = checkpointing.recorder.cut(checkpointing.moment);
            self.send_log(chunks);
        }
        Ok(())
    }

    /// What both sides do once they have the same state: time passes to where it is, and now and
    /// then they compare.
    fn checkpoint_rest(&mut self, end: Option<EndReason>) -> Result<(), Error> {
        let memory = match end {
            Some(_) => Some(memory_digest(&self.machine.memory)?),
            None => None,
        };
        let Mode::Checkpointing(checkpointing) = &mut self.mode else { return Ok(()) };
        let moment = checkpointing.moment;
        // A clock that is started elsewhere goes on from here.
        let time = Input::Tick { now_ns: self.clock.now() };
        checkpointing.recorder.input(moment, &time)?;
        let _ = self.machine.apply(&time);
        if memory.is_some() || moment >= checkpointing.digest_due {
            checkpointing.digest_due = moment.saturating_add(DIGEST_EVERY);
            let devices = self.machine.state().digest()?;
            checkpointing.recorder.state_digest(moment, devices, memory);
        }
        if let Some(reason) = end {
            checkpointing.recorder.end(moment, reason);
            checkpointing.ended = true;
        }
        Ok(())
    }

    /// Sends the end of a checkpoint, and tells the shell which chunk covers all that was put out.
    fn send_checkpoint(&mut self, pages: u64) {
        let Mode::Checkpointing(checkpointing) = &mut self.mode else { return };
        let chunks = checkpointing.recorder.cut(checkpointing.moment);
        if let Some(last) = chunks.last() {
            self.reports.send(Report::Covered { chunk: last.number });
        }
        self.send_log(chunks);
        self.reports.send(Report::Delta { pages });
    }

    fn send_log(&self, chunks: Vec<Chunk>) {
        if !chunks.is_empty() {
            self.reports.send(Report::Emission { chunks, outputs: Vec::new() });
        }
    }
}
