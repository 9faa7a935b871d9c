//! A log as text: what it says about itself, then a line a record.

use std::io::Write;
use std::path::Path;

use ft::prologue::LogStart;
use ft::{DigestMode, Prologue};

use super::text::{Lines, details};
use super::{LogReader, printed};
use crate::error::Error;
use crate::identity::hex;

/// What to print.
#[derive(Clone, Copy, Debug)]
pub struct DumpOptions {
    /// First moment.
    pub from: u64,
    /// Last moment.
    pub to: u64,
    /// Everything about records that need more than a line: states, all registers, page addresses.
    pub full: bool,
}

/// Prints the log's records between two moments.
///
/// # Errors
/// The file is no log or damaged, or nobody takes the text.
pub fn dump(path: &Path, options: &DumpOptions, out: &mut dyn Write) -> Result<(), Error> {
    let mut log = LogReader::open(path)?;
    for line in prologue_lines(log.prologue()) {
        printed(writeln!(out, "# {line}"))?;
    }
    let mut lines = Lines::default();
    while let Some(chunk) = log.next_chunk()? {
        if chunk.start_moment > options.to {
            return Ok(());
        }
        let shown = chunk.end_moment >= options.from;
        if shown {
            printed(writeln!(
                out,
                "# chunk {}: up to moment {}, {} bytes, {} outputs so far",
                chunk.number,
                chunk.end_moment,
                chunk.records.len(),
                chunk.outputs.count
            ))?;
        }
        for entry in log.entries(&chunk)? {
            let line = lines.record(&entry.record);
            if !(options.from..=options.to).contains(&entry.moment) {
                continue;
            }
            printed(writeln!(out, "{:>10}  {}", entry.moment, line.trim_end()))?;
            if let Some(text) = details(&entry.record).filter(|_| options.full) {
                for line in text.lines() {
                    printed(writeln!(out, "            {line}"))?;
                }
            }
        }
    }
    if log.torn_bytes() > 0 {
        printed(writeln!(out, "# {} bytes of an unfinished frame", log.torn_bytes()))?;
    }
    Ok(())
}

/// What a log says about itself, a line each.
pub fn prologue_lines(prologue: &Prologue) -> Vec<String> {
    let assumptions = &prologue.assumptions;
    let start = match prologue.start {
        LogStart::Built => "at moment 0, with the machine as built",
        LogStart::Delta => "with the whole state of the machine",
    };
    let digests = match prologue.digest_mode {
        DigestMode::EveryMoment => "a digest at every moment",
        DigestMode::EveryChunk => "a digest a chunk",
        DigestMode::Off => "none",
        DigestMode::Registers => "all at every moment",
    };
    vec![
        format!(
            "log format {}, moments by rule {}",
            assumptions.format_version, assumptions.moment_semantics
        ),
        format!("build {}", assumptions.build),
        format!("VM {}, generation {}", hex(&prologue.vm_id), prologue.generation),
        format!("starts {start}"),
        format!("registers: {digests}"),
        format!("CPUID {:016x}", assumptions.cpuid_hash),
        format!("configuration {}", String::from_utf8_lossy(&prologue.machine)),
    ]
}
