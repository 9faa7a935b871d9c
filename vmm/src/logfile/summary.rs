//! What a log holds, in figures: for people and as JSON.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use ft::{Chunk, EndReason, Input, Page, Record};
use serde::Serialize;

use super::dump::prologue_lines;
use super::text::{end_text, seconds};
use super::{Entry, LogReader, printed};
use crate::error::Error;
use crate::identity::hex;

/// How much there is of one kind of record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Amount {
    /// Records.
    pub count: u64,
    /// Their bytes in the log.
    pub bytes: u64,
}

/// The figures of a log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// Log format version.
    pub format_version: u16,
    /// The build that wrote it.
    pub build: String,
    /// The VM's id.
    pub vm_id: String,
    /// Where it begins.
    pub first_moment: u64,
    /// Where it ends.
    pub last_moment: u64,
    /// Moments in it.
    pub moments: u64,
    /// Machine time from the first time in the log to the last, ns.
    pub duration_ns: u64,
    /// Bytes of the file, less what is torn.
    pub bytes: u64,
    /// Bytes behind the last whole frame.
    pub torn_bytes: u64,
    /// Chunks.
    pub chunks: u64,
    /// Bytes that frames and the heads of chunks take.
    pub framing_bytes: u64,
    /// By kind of record.
    pub records: BTreeMap<String, Amount>,
    /// Deltas after the first state, resets among them.
    pub deltas: u64,
    /// Pages that came with them.
    pub delta_pages: u64,
    /// Those of them that are all zero.
    pub delta_pages_zero: u64,
    /// Pages of the first state.
    pub start_pages: u64,
    /// Bytes of the first state.
    pub start_bytes: u64,
    /// Outputs of the machine.
    pub outputs: u64,
    /// Bytes a timer tick takes, a hundredth each, with the times read.
    pub bytes_per_tick_hundredths: u64,
    /// Bytes a second of machine time of what a replica would need: all but registers, the state
    /// digests and the first state.
    pub essential_bytes_per_second: u64,
    /// How it ends; `None` if it does not end on purpose.
    pub end: Option<String>,
}

/// Goes through a log and counts.
struct Counter {
    summary: Summary,
    first_time_ns: Option<u64>,
    last_time_ns: u64,
    begun: bool,
    pages: (u64, u64),
}

/// Reads a log's figures.
///
/// # Errors
/// The file is no log or damaged.
pub fn summarise(path: &Path) -> Result<(Summary, Vec<String>), Error> {
    let mut log = LogReader::open(path)?;
    let prologue = log.prologue();
    let about = prologue_lines(prologue);
    let mut counter = Counter {
        summary: Summary {
            format_version: prologue.assumptions.format_version,
            build: prologue.assumptions.build.clone(),
            vm_id: hex(&prologue.vm_id),
            ..Summary::default()
        },
        first_time_ns: None,
        last_time_ns: 0,
        begun: false,
        pages: (0, 0),
    };
    while let Some(chunk) = log.next_chunk()? {
        counter.chunk(&chunk, &log.entries(&chunk)?);
    }
    Ok((counter.finish(&log), about))
}

impl Counter {
    fn chunk(&mut self, chunk: &Chunk, entries: &[Entry]) {
        let summary = &mut self.summary;
        if summary.chunks == 0 {
            summary.first_moment = chunk.start_moment;
        }
        summary.chunks += 1;
        summary.last_moment = chunk.end_moment;
        summary.outputs = chunk.outputs.count;
        for entry in entries {
            self.entry(entry);
        }
    }

    fn entry(&mut self, entry: &Entry) {
        let bytes = entry.bytes as u64;
        let amount = self.summary.records.entry(entry.record.name().to_owned()).or_default();
        amount.count += 1;
        amount.bytes += bytes;
        if !self.begun {
            self.summary.start_bytes += bytes;
        }
        match &entry.record {
            Record::Input(Input::Tick { now_ns } | Input::TimeRead { now_ns }) => {
                self.first_time_ns.get_or_insert(*now_ns);
                self.last_time_ns = *now_ns;
            }
            Record::Pages { pages } => {
                self.pages.0 += pages.len() as u64;
                self.pages.1 += pages.iter().filter(|(_, page)| *page == Page::Zero).count() as u64;
            }
            Record::Patches { patches } => self.pages.0 += patches.len() as u64,
            Record::Delta { .. } => self.delta(entry.moment),
            Record::End { reason } => self.summary.end = Some(end_name(*reason).to_owned()),
            Record::Input(_)
            | Record::Digest { .. }
            | Record::Registers(_)
            | Record::Devices { .. }
            | Record::Models { .. }
            | Record::Heals
            | Record::StateDigest { .. }
            | Record::Released { .. } => {}
        }
    }

    fn delta(&mut self, moment: u64) {
        let (pages, zero) = std::mem::take(&mut self.pages);
        if self.begun {
            self.summary.deltas += 1;
            self.summary.delta_pages += pages;
            self.summary.delta_pages_zero += zero;
        } else {
            self.begun = true;
            self.summary.start_pages = pages;
            self.summary.first_moment = moment;
        }
    }

    fn finish(self, log: &LogReader) -> Summary {
        let mut summary = self.summary;
        summary.moments = summary.last_moment - summary.first_moment;
        summary.duration_ns =
            self.last_time_ns.saturating_sub(self.first_time_ns.unwrap_or(self.last_time_ns));
        summary.bytes = log.whole_bytes();
        summary.torn_bytes = log.torn_bytes();
        let bytes = |name: &str| summary.records.get(name).map_or(0, |amount| amount.bytes);
        let count = |name: &str| summary.records.get(name).map_or(0, |amount| amount.count);
        let records: u64 = summary.records.values().map(|amount| amount.bytes).sum();
        let own = ["registers", "digest", "state-digest", "devices"].map(bytes).iter().sum::<u64>();
        let essential = records.saturating_sub(own).saturating_sub(summary.start_bytes);
        let tick_bytes = bytes("tick") + bytes("time-read");
        summary.framing_bytes = summary.bytes - log.prologue_bytes() - records;
        summary.bytes_per_tick_hundredths = tick_bytes * 100 / count("tick").max(1);
        summary.essential_bytes_per_second =
            (u128::from(essential) * 1_000_000_000 / u128::from(summary.duration_ns.max(1))) as u64;
        summary
    }
}

fn end_name(reason: EndReason) -> &'static str {
    match reason {
        EndReason::PowerOff => "power-off",
        EndReason::Stopped => "stopped",
        EndReason::Failover => "failover",
    }
}

impl Summary {
    /// Prints the figures for people.
    ///
    /// # Errors
    /// Nobody takes the text.
    pub fn print(&self, about: &[String], out: &mut dyn Write) -> Result<(), Error> {
        for line in about.iter().chain(&self.lines()) {
            printed(writeln!(out, "{line}"))?;
        }
        printed(writeln!(out, "{:<14} {:>10} {:>13} {:>9}", "record", "count", "bytes", "each"))?;
        let mut kinds: Vec<_> = self.records.iter().collect();
        kinds.sort_by_key(|(_, amount)| std::cmp::Reverse(amount.bytes));
        for (name, Amount { count, bytes }) in kinds {
            let each = *bytes as f64 / (*count).max(1) as f64;
            printed(writeln!(out, "{name:<14} {count:>10} {bytes:>13} {each:>9.1}"))?;
        }
        printed(writeln!(out, "{:<14} {:>10} {:>13}", "framing", self.chunks, self.framing_bytes))
    }

    fn lines(&self) -> Vec<String> {
        let end = match self.end.as_deref() {
            Some("power-off") => end_text(EndReason::PowerOff),
            Some("stopped") => end_text(EndReason::Stopped),
            Some("failover") => end_text(EndReason::Failover),
            Some(_) | None => "it just stops, as after a crash or on a full disk",
        };
        vec![
            format!("moments {} to {}: {}", self.first_moment, self.last_moment, self.moments),
            format!("machine time {}", seconds(self.duration_ns)),
            format!("end: {end}"),
            format!(
                "{} bytes in {} chunks{}",
                self.bytes,
                self.chunks,
                match self.torn_bytes {
                    0 => String::new(),
                    torn => format!(", then {torn} bytes of an unfinished frame"),
                }
            ),
            format!("first state: {} pages, {} bytes", self.start_pages, self.start_bytes),
            format!(
                "deltas: {} with {} pages ({} of them zero)",
                self.deltas, self.delta_pages, self.delta_pages_zero
            ),
            format!("outputs: {}", self.outputs),
            format!(
                "a timer tick takes {}.{:02} bytes, with the times that are read",
                self.bytes_per_tick_hundredths / 100,
                self.bytes_per_tick_hundredths % 100
            ),
            format!(
                "without registers and first state, what a backup would be sent: {} bytes a second",
                self.essential_bytes_per_second
            ),
        ]
    }
}
