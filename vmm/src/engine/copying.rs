//! The engine's part of a join: the machine's memory is copied while it runs, then it stands still
//! for the last pages, and from there on its log leads.
//!
//! Owns the rounds. Does not own their arithmetic (`copy_pace`) or what follows (`recording`,
//! `checkpointing`).
//!
//! While memory is copied nothing is logged: the other side has no machine yet that could replay
//! it. Outputs leave as in a plain VM.

use ft::{DigestMode, KeptPages, Page, Recorder};
use hypervisor::monotonic_ns;

use super::checkpointing::Checkpointing;
use super::copy_pace::{CopyPace, Next};
use super::messages::{CopyProgress, RecordPlan, Report};
use super::recording::{Recording, Whole};
use super::{Engine, Mode};
use crate::error::Error;
use crate::machine::{PAGE_SIZE, content_pages, page_at};

/// Pages looked at between two looks at the clock.
const PAGES_AT_ONCE: usize = 16;
/// A turn of the copy ends after so many pages, or after `TURN_NS`.
const PAGES_A_TURN: u64 = 256;
const TURN_NS: u64 = 2_000_000;
/// Log that the backup has not written to its memory yet: above this the copy waits.
const WINDOW_BYTES: u64 = 8 << 20;
/// The last pages are only read when so little is under way: outputs wait behind it.
const LAST_WINDOW_BYTES: u64 = 1 << 20;
/// How often the progress is told, and looked at again when the copy has to wait.
const PROGRESS_NS: u64 = 50_000_000;
const WAIT_NS: u64 = 1_000_000;

/// What an engine keeps while its machine is being copied.
pub(super) struct Copying {
    plan: RecordPlan,
    recorder: Recorder,
    pace: CopyPace,
    /// Pages of this round that are still to be read, in descending order.
    frames: Vec<u64>,
    /// What the other side's memory holds where nothing was sent. `None` once every page was looked
    /// at: what was sent then counts.
    kept: Option<KeptPages>,
    /// Bytes of log handed out.
    sent_bytes: u64,
    pages: u64,
    zero_pages: u64,
    kept_pages: u64,
    begun_ns: u64,
    told_ns: u64,
}

impl Copying {
    /// When the copy wants the thread back from a guest that runs, monotonic ns.
    pub(super) fn due_ns(&self) -> u64 {
        self.pace.due_ns().max(monotonic_ns() + WAIT_NS)
    }

    /// How long a thread that has nothing else to do may sleep, monotonic ns: until there is room
    /// for more, which nobody tells.
    pub(super) fn idle_due_ns(&self, executed_bytes: u64) -> u64 {
        let under_way = self.sent_bytes.saturating_sub(executed_bytes);
        let now_ns = monotonic_ns();
        let waits = under_way > WINDOW_BYTES || self.frames.is_empty();
        if waits || !self.is_within_rate(now_ns) { now_ns + WAIT_NS } else { now_ns }
    }

    /// Whether the guest has to wait for the copy.
    pub(super) fn guest_waits(&self) -> bool {
        self.pace.guest_waits(monotonic_ns())
    }

    /// Everything is to be copied again: memory was rewritten behind the dirty log's back.
    pub(super) fn begin_again(&mut self, mut frames: Vec<u64>) {
        frames.reverse();
        self.frames = frames;
        self.kept = None;
    }

    /// Whether the user's limit on the rate lets more go.
    fn is_within_rate(&self, now_ns: u64) -> bool {
        let Some(rate) = self.plan.bytes_per_second else { return true };
        let passed_ns = now_ns.saturating_sub(self.begun_ns);
        let allowed = u128::from(rate) * u128::from(passed_ns) / 1_000_000_000;
        u128::from(self.sent_bytes) <= allowed
    }

    fn progress(&self, now_ns: u64, pause_ns: Option<u64>) -> CopyProgress {
        CopyProgress {
            round: self.pace.round(),
            pages: self.pages,
            zero_pages: self.zero_pages,
            kept_pages: self.kept_pages,
            pages_left: self.frames.len() as u64,
            bytes: self.sent_bytes,
            throttle_percent: self.pace.share_percent(),
            elapsed_ns: now_ns.saturating_sub(self.begun_ns),
            pause_ns,
        }
    }
}

impl Engine {
    /// Starts to copy the machine for a backup; its log begins when that is done.
    pub(super) fn start_copying(&mut self, plan: RecordPlan, kept: KeptPages) -> Result<(), Error> {
        self.emit(true)?;
        self.machine.vm.track_dirty(true)?;
        let mut frames: Vec<u64> = content_pages(&self.machine.memory).collect();
        frames.reverse();
        self.inbox.shared().forget_log();
        let now_ns = monotonic_ns();
        let count = frames.len() as u64;
        self.mode = Mode::Copying(Box::new(Copying {
            plan,
            recorder: Recorder::new(self.machine.moment(), DigestMode::EveryChunk),
            pace: if kept.is_empty() { CopyPace::new(count) } else { CopyPace::urgent(count) },
            frames,
            kept: Some(kept),
            sent_bytes: 0,
            pages: 0,
            zero_pages: 0,
            kept_pages: 0,
            begun_ns: now_ns,
            told_ns: now_ns,
        }));
        self.apply_pace();
        Ok(())
    }

    /// The copy's turn, if it has one now.
    pub(super) fn copy(&mut self) -> Result<(), Error> {
        let idle = self.paused || !self.machine.runnable();
        let Mode::Copying(copying) = &mut self.mode else { return Ok(()) };
        let now_ns = monotonic_ns();
        let under_way = copying.sent_bytes.saturating_sub(self.inbox.shared().executed_bytes());
        // A guest that waits for something does not use its turn.
        if !(idle || copying.pace.is_due(now_ns)) || self.machine.inside_interval() {
            return Ok(());
        }
        if copying.frames.is_empty() {
            if under_way > LAST_WINDOW_BYTES {
                return Ok(());
            }
            return self.end_round();
        }
        if under_way > WINDOW_BYTES || !copying.is_within_rate(now_ns) {
            return Ok(());
        }
        self.copy_pages(now_ns)
    }

    fn copy_pages(&mut self, begun_ns: u64) -> Result<(), Error> {
        let moment = self.machine.moment();
        let Mode::Copying(copying) = &mut self.mode else { return Ok(()) };
        let mut taken = 0;
        let mut now_ns = begun_ns;
        while taken < PAGES_A_TURN && now_ns - begun_ns < TURN_NS && !copying.frames.is_empty() {
            let from = copying.frames.len().saturating_sub(PAGES_AT_ONCE);
            let mut pages = Vec::with_capacity(PAGES_AT_ONCE);
            for frame in copying.frames.drain(from..).rev() {
                taken += 1;
                let page = page_at(&self.machine.memory, frame)?;
                if page == Page::Zero {
                    copying.zero_pages += 1;
                }
                if copying.kept.as_ref().is_some_and(|kept| kept.has(frame, &page)) {
                    copying.kept_pages += 1;
                } else {
                    pages.push((frame, page));
                }
            }
            copying.recorder.pages(moment, pages);
            now_ns = monotonic_ns();
        }
        copying.pages += taken;
        copying.pace.took(begun_ns, now_ns, taken);
        let chunks = copying.recorder.cut(moment);
        copying.sent_bytes += chunks.iter().map(|chunk| chunk.records.len() as u64).sum::<u64>();
        if now_ns.saturating_sub(copying.told_ns) >= PROGRESS_NS {
            copying.told_ns = now_ns;
            self.reports.send(Report::Copying(copying.progress(now_ns, None)));
        }
        if !chunks.is_empty() {
            self.reports.send(Report::Emission { chunks, outputs: Vec::new() });
        }
        Ok(())
    }

    fn end_round(&mut self) -> Result<(), Error> {
        let begun_ns = monotonic_ns();
        let mut frames = self.machine.vm.take_dirty()?;
        let Mode::Copying(copying) = &mut self.mode else { return Ok(()) };
        match copying.pace.next_round(frames.len() as u64) {
            Next::Round => {
                frames.reverse();
                copying.frames = frames;
                copying.kept = None;
                Ok(())
            }
            Next::Finish => self.finish_copy(begun_ns, frames),
        }
    }

    /// The machine stands still: the last pages and its state, and the log leads from here.
    fn finish_copy(&mut self, begun_ns: u64, frames: Vec<u64>) -> Result<(), Error> {
        self.settle()?;
        self.emit(true)?;
        let more = self.machine.vm.take_dirty()?;
        let frames: Vec<u64> = if more.is_empty() {
            frames
        } else {
            let mut all: std::collections::BTreeSet<u64> = frames.into_iter().collect();
            all.extend(more);
            all.into_iter().collect()
        };
        let Mode::Copying(copying) = std::mem::replace(&mut self.mode, Mode::Live) else {
            return Ok(());
        };
        let mut copying = *copying;
        copying.pages += frames.len() as u64;
        let moment = self.machine.moment();
        let recorder =
            std::mem::replace(&mut copying.recorder, Recorder::new(moment, DigestMode::EveryChunk));
        match copying.plan.checkpoint_ns {
            None => {
                let recording = Recording::new(&copying.plan, recorder, moment);
                self.mode = Mode::Recording(Box::new(recording));
                self.apply_pace();
                self.record_all(&frames, Whole::Begins)?;
            }
            Some(interval_ns) => {
                let checkpointing = Checkpointing::new(interval_ns, recorder, moment);
                self.mode = Mode::Checkpointing(Box::new(checkpointing));
                self.apply_pace();
                self.checkpoint_of(&frames, begun_ns, None)?;
            }
        }
        let now_ns = monotonic_ns();
        copying.sent_bytes += frames.len() as u64 * PAGE_SIZE;
        self.reports.send(Report::Copying(copying.progress(now_ns, Some(now_ns - begun_ns))));
        self.reports.send(Report::Recording(self.machine.moment()));
        Ok(())
    }
}
