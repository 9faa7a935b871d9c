//! The writing end of a log: turns what happens to a machine into chunks.
//!
//! It runs on the thread that owns the machine and is told everything in the machine's own order.
//! Shipping chunks, acknowledging them and holding outputs back belong to others.

use alloc::vec::Vec;
use core::mem;
use serde::{Deserialize, Serialize};

use crate::chunk::{Chunk, RECORDS_PER_CHUNK_MAX};
use crate::codec::Encoder;
use crate::error::RecordError;
use crate::event::{Input, Output, Trail};
use crate::page_cache::PageCache;
use crate::patch;
use crate::record::{
    EndReason, PAGES_PER_RECORD_MAX, Page, Record, RegisterValues, fold_registers,
};

/// Bytes after which a chunk is closed even if nobody asks for it.
pub const CHUNK_BYTES_SOFT: usize = 1 << 20;

/// Bytes of payload a single record may have. With the soft bound of a chunk it stays well inside
/// a frame's 4 MiB.
pub const RECORD_BYTES_MAX: usize = 2 << 20;

/// Bytes of the device models' encoding that one record holds.
const MODELS_PART_BYTES: usize = 1 << 20;

/// How often the log holds the digest of the vCPU's registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DigestMode {
    /// At every moment: a divergence is found where it happens. For log files.
    EveryMoment,
    /// One over all moments of a chunk: nine bytes a chunk. For a pair.
    EveryChunk,
    /// Never.
    Off,
    /// The registers themselves at every moment, so that a divergence can be shown. For log files.
    Registers,
}

/// Where an output stands in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Noted {
    /// The output's sequence within the log, from 1.
    pub sequence: u64,
    /// The chunk that has to be acknowledged before the output may leave.
    pub chunk: u64,
}

impl Noted {
    /// Stands for the chunk of a checkpoint that is still to be taken.
    pub const CHUNK_TO_COME: u64 = u64::MAX;
}

/// Writes the log of one machine.
#[derive(Clone, Debug)]
pub struct Recorder {
    digest_mode: DigestMode,
    encoder: Encoder,
    records: Vec<u8>,
    record_count: usize,
    /// The number of the chunk being filled.
    number: u64,
    start_moment: u64,
    /// The last moment anything was heard of.
    moment: u64,
    fold: u64,
    /// Whether `fold` covers a moment that no digest record covers.
    folded: bool,
    outputs: Trail,
    shipped: PageCache,
    closed: Vec<Chunk>,
}

impl Recorder {
    /// Starts a log of a machine whose handler of exit `moment` has finished (0: it has not run).
    #[must_use]
    pub fn new(moment: u64, digest_mode: DigestMode) -> Self {
        Self {
            digest_mode,
            encoder: Encoder::new(moment),
            records: Vec::new(),
            record_count: 0,
            number: 1,
            start_moment: moment,
            moment,
            fold: 0,
            folded: false,
            outputs: Trail::default(),
            shipped: PageCache::default(),
            closed: Vec::new(),
        }
    }

    /// The machine has taken exit `moment` by itself; these are its registers before the handler.
    /// To be called first thing at every natural exit, with digests switched off too.
    ///
    /// # Panics
    ///
    /// If moments run backwards. So do all methods that take one.
    pub fn register_digest(&mut self, moment: u64, value: u64) {
        assert!(moment > self.moment, "exits are counted upwards");
        self.make_room(0, moment - 1);
        self.moment = moment;
        match self.digest_mode {
            // The registers come by `registers`, if at all.
            DigestMode::Off | DigestMode::Registers => {}
            DigestMode::EveryChunk => {
                self.fold = fold_registers(self.fold, value);
                self.folded = true;
            }
            DigestMode::EveryMoment => {
                self.append(moment, &Record::Digest { value: fold_registers(0, value) });
            }
        }
    }

    /// Right after [`Recorder::register_digest`], what its digest is of. Only
    /// [`DigestMode::Registers`] keeps it.
    pub fn registers(&mut self, moment: u64, values: &RegisterValues) {
        if self.digest_mode == DigestMode::Registers {
            self.encoder.append_registers(moment, values, &mut self.records);
            self.record_count += 1;
        }
    }

    /// `input` is being applied at `moment`: a time read inside the exit's handler, anything else
    /// after it.
    ///
    /// # Errors
    ///
    /// When the input is larger than a record may be. It must not be applied then.
    pub fn input(&mut self, moment: u64, input: &Input) -> Result<(), RecordError> {
        let length = match input {
            Input::Packet { bytes, .. }
            | Input::Console { bytes, .. }
            | Input::Serial { bytes }
            | Input::Entropy { bytes, .. }
            | Input::BlockDone { data: bytes, .. } => bytes.len(),
            Input::TimeRead { .. }
            | Input::Tick { .. }
            | Input::Announce { .. }
            | Input::PowerButton
            | Input::Reset => 0,
        };
        check_length(length)?;
        match input {
            // The handler is still running: a chunk that ended here would claim it had finished.
            Input::TimeRead { .. } => {}
            Input::Tick { .. }
            | Input::Packet { .. }
            | Input::BlockDone { .. }
            | Input::Console { .. }
            | Input::Serial { .. }
            | Input::Entropy { .. }
            | Input::Announce { .. }
            | Input::PowerButton
            | Input::Reset => self.make_room(length, moment),
        }
        self.moment = self.moment.max(moment);
        self.encoder.append_input(moment, input, &mut self.records);
        self.record_count += 1;
        Ok(())
    }

    /// The machine produced `output`. Says what the output has to wait for.
    pub fn output(&mut self, output: &Output) -> Noted {
        Noted { sequence: self.outputs.note(output), chunk: self.number }
    }

    /// Pages that the next delta commits, any number. To be called before the delta, while the
    /// machine is still at the moment before it.
    pub fn pages(&mut self, moment: u64, pages: impl IntoIterator<Item = (u64, Page)>) {
        let mut pages = pages.into_iter().peekable();
        while pages.peek().is_some() {
            let (mut whole, mut patches) = (Vec::new(), Vec::new());
            for (frame, page) in pages.by_ref().take(PAGES_PER_RECORD_MAX) {
                match self.patch(frame, &page) {
                    Some(patch) => patches.push((frame, patch, page)),
                    None => whole.push((frame, page)),
                }
            }
            // A whole page may be remembered in place of one that is patched here: patches first.
            self.patches(moment, patches);
            self.whole_pages(moment, whole);
        }
    }

    /// What changed in a page since the log last had it, if that is worth telling.
    fn patch(&self, frame: u64, page: &Page) -> Option<Vec<u8>> {
        match page {
            Page::Zero => None,
            Page::Data(content) => patch::between(self.shipped.get(frame)?, content),
        }
    }

    fn whole_pages(&mut self, moment: u64, pages: Vec<(u64, Page)>) {
        if pages.is_empty() {
            return;
        }
        let length = pages.iter().filter(|(_, page)| *page != Page::Zero).count();
        self.make_room(length * crate::record::PAGE_SIZE, moment);
        for (frame, page) in &pages {
            self.shipped.note(*frame, page);
        }
        self.append(moment, &Record::Pages { pages });
    }

    fn patches(&mut self, moment: u64, patches: Vec<(u64, Vec<u8>, Page)>) {
        if patches.is_empty() {
            return;
        }
        self.make_room(patches.iter().map(|(_, patch, _)| patch.len()).sum(), moment);
        for (frame, _, page) in &patches {
            self.shipped.note(*frame, page);
        }
        let patches = patches.into_iter().map(|(frame, patch, _)| (frame, patch)).collect();
        self.append(moment, &Record::Patches { patches });
    }

    /// The state at `moment`, which ends the interval before it: `moment` is one more than the
    /// last. With `machine` it also makes the device models equal.
    ///
    /// # Errors
    ///
    /// When the vCPU's state is larger than a record may be.
    pub fn delta(
        &mut self,
        moment: u64,
        vcpu: Vec<u8>,
        machine: Option<Vec<u8>>,
    ) -> Result<(), RecordError> {
        assert!(moment > self.moment, "a delta is a moment of its own");
        self.delta_with(moment, vcpu, machine, self.outputs)
    }

    /// The same with machine state, for a copy that was found to differ: the pages before it are all
    /// those in which that may differ, as well as all written since the last delta.
    ///
    /// # Errors
    ///
    /// As [`Recorder::delta`].
    pub fn heal(
        &mut self,
        moment: u64,
        vcpu: Vec<u8>,
        machine: Vec<u8>,
    ) -> Result<(), RecordError> {
        assert!(moment > self.moment, "a delta is a moment of its own");
        self.make_room(0, moment - 1);
        self.append(moment - 1, &Record::Heals);
        self.delta_with(moment, vcpu, Some(machine), self.outputs)
    }

    /// As [`Recorder::delta`], for a machine that nobody follows from exit to exit: `outputs` are all
    /// that it has produced, and the log has not heard of those since the last delta.
    ///
    /// # Errors
    ///
    /// As [`Recorder::delta`].
    pub fn checkpoint(
        &mut self,
        moment: u64,
        vcpu: Vec<u8>,
        machine: Vec<u8>,
        outputs: Trail,
    ) -> Result<(), RecordError> {
        self.delta_with(moment, vcpu, Some(machine), outputs)
    }

    fn delta_with(
        &mut self,
        moment: u64,
        vcpu: Vec<u8>,
        machine: Option<Vec<u8>>,
        outputs: Trail,
    ) -> Result<(), RecordError> {
        let machine = machine.map(|machine| self.models(moment - 1, machine));
        let length = vcpu.len() + machine.as_ref().map_or(0, Vec::len);
        check_length(length)?;
        self.make_room(length, moment - 1);
        if machine.is_some() {
            self.fold = 0;
            self.folded = false;
            self.shipped.activate();
        }
        // Not before there is room: a chunk that ends before the delta leads to none of them.
        self.outputs = outputs;
        self.append(moment, &Record::Delta { vcpu, machine, outputs });
        Ok(())
    }

    /// Logs all but the last part of the models' encoding, which it returns.
    fn models(&mut self, moment: u64, mut machine: Vec<u8>) -> Vec<u8> {
        while machine.len() > MODELS_PART_BYTES {
            let rest = machine.split_off(MODELS_PART_BYTES);
            self.make_room(machine.len(), moment);
            self.append(moment, &Record::Models { part: machine });
            machine = rest;
        }
        machine
    }

    /// The state of the device models as it is now, after everything recorded so far.
    ///
    /// # Errors
    ///
    /// When it is larger than a record may be.
    pub fn devices(&mut self, moment: u64, state: Vec<u8>) -> Result<(), RecordError> {
        check_length(state.len())?;
        self.make_room(state.len(), moment);
        self.append(moment, &Record::Devices { state });
        Ok(())
    }

    /// Digests of the machine's state as it is now, after everything recorded so far.
    pub fn state_digest(&mut self, moment: u64, devices: u64, memory: Option<u64>) {
        self.make_room(0, moment);
        self.append(moment, &Record::StateDigest { devices, memory });
    }

    /// All outputs up to `output` have left this host.
    pub fn released(&mut self, moment: u64, output: u64) {
        self.make_room(0, moment);
        self.append(moment, &Record::Released { output });
    }

    /// The log ends here. Nothing may be recorded after it.
    pub fn end(&mut self, moment: u64, reason: EndReason) {
        self.make_room(0, moment);
        self.flush_digest(moment);
        self.append(moment, &Record::End { reason });
    }

    /// Bytes recorded since the last cut.
    #[must_use]
    pub fn pending_bytes(&self) -> usize {
        self.records.len() + self.closed.iter().map(|chunk| chunk.records.len()).sum::<usize>()
    }

    /// The outputs so far.
    #[must_use]
    pub fn outputs(&self) -> Trail {
        self.outputs
    }

    /// The number of the chunk that is being filled.
    #[must_use]
    pub fn open_chunk(&self) -> u64 {
        self.number
    }

    /// Closes the chunk being filled: the handler of exit `moment` has finished. Returns all chunks
    /// not yet handed out, oldest first; none if nothing has happened since the last cut.
    pub fn cut(&mut self, moment: u64) -> Vec<Chunk> {
        assert!(moment >= self.moment, "a chunk cannot end before its last record");
        if self.record_count > 0 || moment > self.start_moment {
            self.close(moment);
        }
        mem::take(&mut self.closed)
    }

    fn append(&mut self, moment: u64, record: &Record) {
        self.moment = self.moment.max(moment);
        self.encoder.append(moment, record, &mut self.records);
        self.record_count += 1;
    }

    /// Closes the chunk if `length` more bytes would make it too large. The handler of exit
    /// `end_moment` has finished.
    fn make_room(&mut self, length: usize, end_moment: u64) {
        let full = self.records.len() + length > CHUNK_BYTES_SOFT && self.record_count > 0;
        if full || self.record_count > RECORDS_PER_CHUNK_MAX / 2 {
            self.close(end_moment);
        }
    }

    fn flush_digest(&mut self, moment: u64) {
        if self.folded {
            self.append(moment, &Record::Digest { value: self.fold });
            self.fold = 0;
            self.folded = false;
        }
    }

    fn close(&mut self, end_moment: u64) {
        self.flush_digest(end_moment);
        self.closed.push(Chunk {
            number: self.number,
            start_moment: self.start_moment,
            end_moment,
            outputs: self.outputs,
            records: mem::take(&mut self.records),
        });
        self.number += 1;
        self.record_count = 0;
        self.start_moment = end_moment;
        self.moment = end_moment;
        self.encoder = Encoder::new(end_moment);
    }
}

fn check_length(length: usize) -> Result<(), RecordError> {
    if length > RECORD_BYTES_MAX {
        return Err(RecordError::TooLong { length, max: RECORD_BYTES_MAX });
    }
    Ok(())
}
