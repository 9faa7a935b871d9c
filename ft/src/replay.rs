//! The reading end of a log: tells a machine, step by step, what to do next.
//!
//! It knows the log and compares; it does not own the machine. The loop that drives one:
//!
//! ```text
//! loop {
//!     match replay.next_step(moment)? {
//!         Step::Run => { run the guest to its next exit; moment += 1;
//!                        replay.register_digest(moment, registers);
//!                        handle the exit; its time reads come from replay.take_time(moment)? }
//!         Step::Input(input) => apply it;
//!         …
//!         Step::Wait => wait for the next chunk and push it }
//! }
//! ```

use alloc::collections::{BTreeMap, VecDeque};
use alloc::{boxed::Box, string::String, string::ToString, vec::Vec};

use crate::chunk::{Batch, Chunk};
use crate::error::{DecodeError, Divergence};
use crate::event::{Input, Output, Trail};
use crate::page_cache::PageCache;
use crate::patch;
use crate::record::{EndReason, Page, REGISTERS, Record, RegisterValues, fold_registers};

/// Bytes of device models that a log may hold for one delta: no machine has writes of that size under
/// way.
const MODELS_BYTES_MAX: usize = 512 << 20;

/// How the machine looks before the first record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// It is equal to the recorded one at this moment (0: as built from its configuration).
    At(u64),
    /// It is empty memory and waits for a delta with the whole machine: a join.
    Blank,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// The guest reached the next moment by itself: run it to its next exit.
    Run,
    /// Apply this input now.
    Input(Input),
    /// Write these pages to memory at once: only before the first delta of a join, when there is
    /// no state yet that a half-received one could spoil.
    Pages(Vec<(u64, Page)>),
    /// The machine is at `moment` from now on: take over this state without running.
    Delta {
        /// The new moment.
        moment: u64,
        /// The vCPU's state.
        vcpu: Vec<u8>,
        /// The device models' state, if it is given.
        machine: Option<Vec<u8>>,
        /// Pages to write to memory, each at most once.
        pages: BTreeMap<u64, Page>,
    },
    /// Compare with the encoded state of this machine's device models.
    Devices {
        /// The recorded machine's.
        state: Vec<u8>,
    },
    /// Compare with this machine's digests ([`Replay::check_state`]).
    StateDigest {
        /// Over all device models.
        devices: u64,
        /// Over all memory, where it was taken.
        memory: Option<u64>,
    },
    /// The outputs up to this sequence have left the primary: they need not be kept.
    Released {
        /// Sequence within the log.
        output: u64,
    },
    /// Everything in this chunk is consumed and the outputs were equal: it may be confirmed as
    /// executed.
    ChunkEnd {
        /// The chunk.
        number: u64,
        /// The outputs so far.
        outputs: Trail,
    },
    /// Nothing more is known: wait for the next chunk.
    Wait,
    /// The log ended on purpose.
    End(EndReason),
}

/// A cursor over the log of a machine that this side follows.
#[derive(Clone, Debug)]
pub struct Replay {
    batches: VecDeque<Batch>,
    /// Number and end moment of the chunk that was pushed last.
    received: Option<(u64, u64)>,
    blank: bool,
    staged: BTreeMap<u64, Page>,
    staged_pages_max: usize,
    /// The first parts of the device models that the next delta brings.
    staged_models: Vec<u8>,
    shipped: PageCache,
    fold: u64,
    /// The moment of the last natural exit whose registers were told, and they.
    registers: (u64, RegisterValues),
    outputs: Trail,
    last_time_ns: u64,
    ended: Option<EndReason>,
    /// The machine is not the recorded one, and waits for the delta that makes it that again.
    healing: bool,
    /// While it waits: the next delta with machine state is that one.
    announced: bool,
}

impl Replay {
    /// A replay of a machine that starts as `start` says and has at most `staged_pages_max` pages
    /// of memory.
    #[must_use]
    pub fn new(start: Start, staged_pages_max: usize) -> Self {
        Self {
            batches: VecDeque::new(),
            received: match start {
                Start::At(moment) => Some((0, moment)),
                Start::Blank => None,
            },
            blank: start == Start::Blank,
            staged: BTreeMap::new(),
            staged_pages_max,
            staged_models: Vec::new(),
            shipped: PageCache::default(),
            fold: 0,
            registers: (0, [0; REGISTERS]),
            outputs: Trail::default(),
            last_time_ns: 0,
            ended: None,
            healing: false,
            announced: false,
        }
    }

    /// Takes the next chunk of the log.
    ///
    /// # Errors
    ///
    /// When it cannot be decoded or does not follow the one before.
    pub fn push(&mut self, chunk: &Chunk) -> Result<(), DecodeError> {
        self.push_batch(chunk.decode()?)
    }

    /// Takes the next chunk of the log, already decoded.
    ///
    /// # Errors
    ///
    /// When it does not follow the one before.
    pub fn push_batch(&mut self, batch: Batch) -> Result<(), DecodeError> {
        let (number, start) = self.received.unwrap_or((0, batch.start_moment));
        if batch.number != number + 1 || batch.start_moment != start || self.ended.is_some() {
            let moment = batch.start_moment;
            return Err(DecodeError::OutOfOrder { what: "a chunk", moment });
        }
        self.received = Some((batch.number, batch.end_moment));
        self.batches.push_back(batch);
        Ok(())
    }

    /// The machine is not the one that was recorded: nothing is run, applied or compared until the
    /// delta comes that heals it ([`Record::Heals`]). What deltas before it bring is kept for that
    /// one, so the machine's memory does not change until then.
    pub fn heal(&mut self) {
        self.healing = true;
        self.announced = false;
    }

    /// Whether the machine still waits for the delta that [`Replay::heal`] speaks of.
    #[must_use]
    pub fn is_healing(&self) -> bool {
        self.healing
    }

    /// What the machine, which is at `moment` with all handlers finished, has to do next.
    ///
    /// # Errors
    ///
    /// When the machine is not the one that was recorded.
    pub fn next_step(&mut self, moment: u64) -> Result<Step, Divergence> {
        if self.healing {
            return self.skip();
        }
        loop {
            let Some(batch) = self.batches.front_mut() else {
                return Ok(self.ended.map_or(Step::Wait, Step::End));
            };
            let Some((recorded, record)) = batch.records.front() else {
                if moment < batch.end_moment && !self.blank {
                    return Ok(Step::Run);
                }
                return self.end_chunk(moment);
            };
            let recorded = *recorded;
            let is_delta = matches!(record, Record::Delta { .. });
            if !self.blank && must_run(moment, recorded, is_delta)? {
                return Ok(Step::Run);
            }
            let Some((_, record)) = self.batches.front_mut().and_then(|b| b.records.pop_front())
            else {
                continue;
            };
            if let Some(step) = self.consume(recorded, record)? {
                return Ok(step);
            }
        }
    }

    /// Goes on to the delta that heals. No chunk before that one's is told of as executed.
    fn skip(&mut self) -> Result<Step, Divergence> {
        while let Some(batch) = self.batches.front_mut() {
            let Some((moment, record)) = batch.records.pop_front() else {
                self.batches.pop_front();
                continue;
            };
            let step = match record {
                Record::Input(Input::Tick { now_ns } | Input::TimeRead { now_ns }) => {
                    self.last_time_ns = now_ns;
                    None
                }
                Record::Heals => {
                    self.announced = true;
                    None
                }
                Record::Delta { machine: Some(_), .. } if self.announced => {
                    self.healing = false;
                    self.consume(moment, record)?
                }
                // One that a reset made, say: it knows nothing of what is wrong here.
                Record::Delta { .. } => {
                    self.staged_models.clear();
                    None
                }
                Record::Input(_)
                | Record::Digest { .. }
                | Record::Registers(_)
                | Record::Devices { .. }
                | Record::StateDigest { .. } => None,
                Record::Pages { .. }
                | Record::Patches { .. }
                | Record::Models { .. }
                | Record::Released { .. }
                | Record::End { .. } => self.consume(moment, record)?,
            };
            if let Some(step) = step {
                return Ok(step);
            }
        }
        Ok(self.ended.map_or(Step::Wait, Step::End))
    }

    fn end_chunk(&mut self, moment: u64) -> Result<Step, Divergence> {
        let Some(batch) = self.batches.pop_front() else {
            return Ok(Step::Wait);
        };
        if self.blank {
            return Ok(Step::ChunkEnd { number: batch.number, outputs: batch.outputs });
        }
        if moment > batch.end_moment {
            return Err(Divergence::Overrun { moment, recorded: batch.end_moment });
        }
        self.compare_outputs(moment, batch.outputs)?;
        Ok(Step::ChunkEnd { number: batch.number, outputs: self.outputs })
    }

    /// Does what a record asks of the cursor; returns what it asks of the machine.
    fn consume(&mut self, moment: u64, record: Record) -> Result<Option<Step>, Divergence> {
        Ok(match record {
            Record::Delta { vcpu, machine, outputs } => {
                return self.take_delta(moment, vcpu, machine, outputs).map(Some);
            }
            Record::End { reason } => {
                self.ended = Some(reason);
                None
            }
            Record::Pages { pages } if self.blank => Some(Step::Pages(pages)),
            Record::Pages { pages } => {
                self.stage(moment, pages)?;
                None
            }
            Record::Patches { patches } => {
                let pages = self.patched(moment, &patches)?;
                self.stage(moment, pages)?;
                None
            }
            Record::Models { part } => {
                if self.staged_models.len() + part.len() > MODELS_BYTES_MAX {
                    return Err(log_error(moment, "its device models are larger than any"));
                }
                self.staged_models.extend(part);
                None
            }
            // For a copy that differed; this one does not.
            Record::Heals => None,
            Record::Released { output } => Some(Step::Released { output }),
            Record::Input(_)
            | Record::Digest { .. }
            | Record::Registers(_)
            | Record::Devices { .. }
            | Record::StateDigest { .. }
                if self.blank =>
            {
                return Err(log_error(moment, "it starts with a record before any state"));
            }
            Record::Input(Input::TimeRead { .. }) => {
                return Err(Divergence::TimeNotAsked { moment });
            }
            Record::Input(input) => {
                if let Input::Tick { now_ns } = input {
                    self.last_time_ns = now_ns;
                }
                Some(Step::Input(input))
            }
            Record::Digest { value } => {
                self.compare_registers(moment, value)?;
                None
            }
            Record::Registers(values) => {
                self.compare_values(moment, &values)?;
                None
            }
            Record::Devices { state } => Some(Step::Devices { state }),
            Record::StateDigest { devices, memory } => Some(Step::StateDigest { devices, memory }),
        })
    }

    /// Keeps pages for the delta that commits them.
    fn stage(&mut self, moment: u64, pages: Vec<(u64, Page)>) -> Result<(), Divergence> {
        for (frame, page) in &pages {
            self.shipped.note(*frame, page);
        }
        self.staged.extend(pages);
        if self.staged.len() > self.staged_pages_max {
            return Err(log_error(moment, "it holds more pages than the machine has"));
        }
        Ok(())
    }

    /// The pages that patches stand for.
    fn patched(
        &self,
        moment: u64,
        patches: &[(u64, Vec<u8>)],
    ) -> Result<Vec<(u64, Page)>, Divergence> {
        let whole = |(frame, patch): &(u64, Vec<u8>)| {
            let Some(shipped) = self.shipped.get(*frame) else {
                return Err(log_error(moment, "it holds a change of a page that it never had"));
            };
            let mut page = Box::new(*shipped);
            patch::apply(&mut page, patch)
                .map_err(|error| Divergence::Log { moment, why: error.to_string() })?;
            Ok((*frame, Page::Data(page)))
        };
        patches.iter().map(whole).collect()
    }

    fn take_delta(
        &mut self,
        moment: u64,
        vcpu: Vec<u8>,
        machine: Option<Vec<u8>>,
        outputs: Trail,
    ) -> Result<Step, Divergence> {
        let mut models = core::mem::take(&mut self.staged_models);
        if machine.is_some() {
            self.outputs = outputs;
            self.fold = 0;
            self.blank = false;
            self.shipped.activate();
        } else if !models.is_empty() {
            return Err(log_error(moment, "it has parts of device models without an end"));
        } else if self.blank {
            return Err(log_error(moment, "it starts with a delta without the machine's state"));
        } else {
            self.compare_outputs(moment, outputs)?;
        }
        let machine = machine.map(|last| {
            models.extend(last);
            models
        });
        Ok(Step::Delta { moment, vcpu, machine, pages: core::mem::take(&mut self.staged) })
    }

    /// The machine took exit `moment` by itself with these registers. To be called first thing at
    /// every natural exit.
    pub fn register_digest(&mut self, _moment: u64, value: u64) {
        self.fold = fold_registers(self.fold, value);
    }

    /// With [`Replay::register_digest`], what that digest is of: for logs of
    /// [`crate::DigestMode::Registers`].
    pub fn registers(&mut self, moment: u64, values: &RegisterValues) {
        self.registers = (moment, *values);
    }

    /// The time that the recorded machine read here: for a device model that asks for it while the
    /// exit of `moment` is handled.
    ///
    /// # Errors
    ///
    /// When the recorded machine did not ask for it, or the registers differ already.
    pub fn take_time(&mut self, moment: u64) -> Result<u64, Divergence> {
        loop {
            let next = self.batches.front_mut().and_then(|batch| batch.records.front());
            match next {
                Some((recorded, Record::Input(Input::TimeRead { now_ns })))
                    if *recorded == moment =>
                {
                    self.last_time_ns = *now_ns;
                }
                Some((recorded, Record::Digest { value })) if *recorded == moment => {
                    let value = *value;
                    self.compare_registers(moment, value)?;
                    self.pop_record();
                    continue;
                }
                Some((recorded, Record::Registers(values))) if *recorded == moment => {
                    let values = values.clone();
                    self.compare_values(moment, &values)?;
                    self.pop_record();
                    continue;
                }
                Some(_) | None => return Err(Divergence::TimeAsked { moment }),
            }
            self.pop_record();
            return Ok(self.last_time_ns);
        }
    }

    fn pop_record(&mut self) {
        if let Some(batch) = self.batches.front_mut() {
            batch.records.pop_front();
        }
    }

    /// The machine produced `output`; returns its sequence within the log.
    pub fn output(&mut self, output: &Output) -> u64 {
        self.outputs.note(output)
    }

    /// Compares the machine's digests with those of a [`Step::StateDigest`].
    ///
    /// # Errors
    ///
    /// When they differ.
    pub fn check_state(
        moment: u64,
        recorded: (u64, Option<u64>),
        replayed: (u64, Option<u64>),
    ) -> Result<(), Divergence> {
        if recorded.0 != replayed.0 {
            return Err(Divergence::Devices { moment, recorded: recorded.0, replayed: replayed.0 });
        }
        match (recorded.1, replayed.1) {
            (Some(recorded), Some(replayed)) if recorded != replayed => {
                Err(Divergence::Memory { moment, recorded, replayed })
            }
            (Some(_) | None, Some(_) | None) => Ok(()),
        }
    }

    /// Whether every chunk in hand is consumed: no step but [`Step::Wait`] or [`Step::End`] is left.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.batches.is_empty()
    }

    /// Chunks received and not yet consumed.
    #[must_use]
    pub fn chunks_held(&self) -> usize {
        self.batches.len()
    }

    /// The moment up to which the log is in hand, once there is one.
    #[must_use]
    pub fn known_moment(&self) -> Option<u64> {
        self.received.map(|(_, moment)| moment)
    }

    /// The outputs so far.
    #[must_use]
    pub fn outputs(&self) -> Trail {
        self.outputs
    }

    /// Whether the machine has a state at all: false while a join is under way.
    #[must_use]
    pub fn has_state(&self) -> bool {
        !self.blank
    }

    /// The machine goes on by itself from here: drops the pages of a delta that never came.
    /// Returns the last time that the recorded machine saw, from which its clock goes on.
    pub fn take_over(&mut self) -> u64 {
        self.staged.clear();
        self.staged_models.clear();
        self.last_time_ns
    }

    fn compare_registers(&mut self, moment: u64, recorded: u64) -> Result<(), Divergence> {
        let replayed = core::mem::take(&mut self.fold);
        if recorded != replayed {
            return Err(Divergence::Registers { moment, recorded, replayed });
        }
        Ok(())
    }

    fn compare_values(&self, moment: u64, recorded: &RegisterValues) -> Result<(), Divergence> {
        let (at, replayed) = &self.registers;
        if *at != moment {
            return Err(log_error(moment, "it has registers where the guest took no exit"));
        }
        if recorded != replayed {
            let (recorded, replayed) = (Box::new(*recorded), Box::new(*replayed));
            return Err(Divergence::RegisterValues { moment, recorded, replayed });
        }
        Ok(())
    }

    fn compare_outputs(&self, moment: u64, recorded: Trail) -> Result<(), Divergence> {
        if recorded != self.outputs {
            return Err(Divergence::Outputs {
                moment,
                recorded_count: recorded.count,
                recorded: recorded.digest,
                replayed_count: self.outputs.count,
                replayed: self.outputs.digest,
            });
        }
        Ok(())
    }
}

fn log_error(moment: u64, why: &str) -> Divergence {
    Divergence::Log { moment, why: String::from(why) }
}

/// Whether the guest runs before the next record is due. Else the record is due now.
fn must_run(moment: u64, recorded: u64, is_delta: bool) -> Result<bool, Divergence> {
    let due = if is_delta { recorded.saturating_sub(1) } else { recorded };
    if due < moment {
        return Err(Divergence::Overrun { moment, recorded });
    }
    Ok(due > moment)
}
