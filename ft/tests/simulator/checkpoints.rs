//! How the primary's driver keeps its machine by checkpoints: it runs freely, and now and then all
//! that has changed goes into the log.
//!
//! Owns what a checkpoint holds, and when one is due. How outputs wait is in `primary_driver`; who
//! is kept so is the world's, join by join.

use ft::recorder::Noted;
use ft::{Action, EndReason, Input, Output, Recorder, Trail};

use crate::breaks::Break;
use crate::engine::Log;
use crate::primary_driver::PrimaryDriver;
use crate::world::World;

/// Checkpoints from one comparison of everything to the next.
const DIGEST_EVERY: u64 = 8;

/// The log of a machine that is kept by checkpoints.
pub struct Checkpointing {
    pub(crate) recorder: Recorder,
    /// The moment of the last checkpoint: the log's time, not the machine's count of exits.
    pub(crate) moment: u64,
    /// All outputs that the machine has made since the log began.
    outputs: Trail,
    /// The machine right after the last checkpoint, which is all that a backup has of it.
    pub(crate) state: u64,
    /// The chunk that ends with the last checkpoint.
    covered: u64,
    /// The machine has changed since then.
    pub(crate) changed: bool,
    /// An output waits for the next one.
    awaited: bool,
    /// The log has its end: no record may follow.
    ended: bool,
}

impl Checkpointing {
    /// Goes on with `recorder`, of a machine that is at `moment` and has not been logged yet.
    pub fn new(recorder: Recorder, moment: u64) -> Self {
        Self {
            recorder,
            moment,
            outputs: Trail::default(),
            state: 0,
            covered: 0,
            changed: false,
            awaited: false,
            ended: false,
        }
    }

    /// The machine produced `output`, which no checkpoint covers yet.
    pub fn output(&mut self, world: &World, output: &Output) -> Noted {
        self.awaited |= output.is_gated();
        let chunk = match world.is(Break::CheckpointBefore) {
            true => self.covered,
            false => Noted::CHUNK_TO_COME,
        };
        Noted { sequence: self.outputs.note(output), chunk }
    }

    /// Of 1000 machines like this one, how many have a checkpoint due now.
    fn due_per_mille(&self) -> u64 {
        match (self.changed && !self.ended, self.awaited) {
            (false, _) => 0,
            (true, true) => 700,
            (true, false) => 120,
        }
    }
}

impl PrimaryDriver {
    /// Begins a checkpoint if one is due. It ends once the guest has run on for a little while its
    /// pages went out, so a machine that stands still begins none.
    pub(crate) fn checkpoint_when_due(&mut self, world: &mut World, now_ms: u64) -> Vec<Action> {
        let Log::Checkpoints(checkpointing) = &self.log else { return vec![] };
        let per_mille = if self.stopped { 0 } else { checkpointing.due_per_mille() };
        if per_mille == 0 || !world.rng.per_mille(per_mille) {
            return vec![];
        }
        self.start_delta(world, now_ms)
    }

    /// Ends the log with a last checkpoint, once. What waits for that is still to leave here: a
    /// backup that executes nothing does not know it.
    pub(crate) fn end_checkpoints(&mut self, world: &mut World, now_ms: u64) -> Vec<Action> {
        match &self.log {
            Log::Checkpoints(checkpointing) if !checkpointing.ended => {}
            Log::Checkpoints(_) | Log::None | Log::Copying(_) | Log::Whole(_) => return vec![],
        }
        let vcpu = self.stage(world);
        self.finish_checkpoint(world, now_ms, vcpu, Some(EndReason::Failover))
    }

    /// All of a checkpoint but its pages, which are logged already.
    pub(crate) fn finish_checkpoint(
        &mut self,
        world: &mut World,
        now_ms: u64,
        vcpu: Vec<u8>,
        end: Option<EndReason>,
    ) -> Vec<Action> {
        let time = Input::Tick { now_ns: self.now_ns(world) };
        let Log::Checkpoints(checkpointing) = &mut self.log else { return vec![] };
        // What the guest did on its own has no name in the log.
        checkpointing.moment += 1;
        let moment = checkpointing.moment;
        self.machine.moment = moment;
        let (models, outputs) = (self.machine.save_machine(), checkpointing.outputs);
        let recorder = &mut checkpointing.recorder;
        recorder.checkpoint(moment, vcpu, models, outputs).expect("states are small");
        // A clock that is started elsewhere goes on from here.
        recorder.input(moment, &time).expect("a tick is small");
        self.machine.apply(&time, &mut vec![]);
        if end.is_some() || moment.is_multiple_of(DIGEST_EVERY) {
            let (devices, memory) = self.machine.digests();
            recorder.state_digest(moment, devices, Some(memory));
        }
        if let Some(reason) = end {
            recorder.end(moment, reason);
            checkpointing.ended = true;
        }
        let state = self.machine.state_digest();
        checkpointing.state = state;
        (checkpointing.changed, checkpointing.awaited) = (false, false);
        world.checker.tally.checkpoints += 1;
        let chunks = self.close_chunks(world, state);
        if let (Log::Checkpoints(checkpointing), Some(last)) = (&mut self.log, chunks.last()) {
            checkpointing.covered = last.number;
            self.gate.assign(last.number);
        }
        self.append(now_ms, chunks)
    }
}
