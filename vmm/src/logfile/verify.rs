//! Whether a log is whole: frames, hash chain, chunks and records.

use std::path::Path;

use ft::{Record, Replay, Start};

use super::LogReader;
use super::text::end_text;
use crate::error::Error;

/// What is left of a log that is not damaged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// Chunks.
    pub chunks: u64,
    /// Records.
    pub records: u64,
    /// Last moment.
    pub moment: u64,
    /// Bytes up to the end of the last whole frame.
    pub whole_bytes: u64,
    /// Bytes behind that.
    pub torn_bytes: u64,
    /// How it ends, if it ends on purpose.
    pub end: Option<&'static str>,
}

/// Reads a whole log and checks it.
///
/// # Errors
/// What is damaged, and where.
pub fn verify(path: &Path) -> Result<Verified, Error> {
    let mut log = LogReader::open(path)?;
    let mut sequence = Replay::new(Start::Blank, 0);
    let mut verified =
        Verified { chunks: 0, records: 0, moment: 0, whole_bytes: 0, torn_bytes: 0, end: None };
    while let Some(chunk) = log.next_chunk()? {
        let place = |error: ft::DecodeError| {
            log.broken(&format_args!(
                "{error} (chunk {}, in front of byte {})",
                chunk.number,
                log.whole_bytes()
            ))
        };
        let mut batch = chunk.decode().map_err(place)?;
        if verified.end.is_some() {
            return Err(place(ft::DecodeError::OutOfOrder {
                what: "a chunk after the end",
                moment: chunk.start_moment,
            }));
        }
        verified.chunks += 1;
        verified.records += batch.records.len() as u64;
        verified.moment = batch.end_moment;
        if let Some((_, Record::End { reason })) = batch.records.back() {
            verified.end = Some(end_text(*reason));
        }
        // The cursor that replays checks the sequence of chunks; it needs no records for that.
        batch.records.clear();
        sequence.push_batch(batch).map_err(place)?;
        let _ = sequence.next_step(0);
    }
    verified.whole_bytes = log.whole_bytes();
    verified.torn_bytes = log.torn_bytes();
    Ok(verified)
}

impl Verified {
    /// Whether nothing is missing.
    pub fn is_whole(&self) -> bool {
        self.torn_bytes == 0 && self.end.is_some()
    }

    /// The result as a sentence.
    pub fn sentence(&self) -> String {
        let Self { chunks, records, moment, whole_bytes, torn_bytes, end } = self;
        let good = format!(
            "{whole_bytes} bytes, {chunks} chunks and {records} records up to moment {moment} are whole"
        );
        match (end, torn_bytes) {
            (Some(end), 0) => format!("{good}; the end: {end}"),
            (None, 0) => format!("{good}; there the log stops without an end"),
            (_, torn) => format!(
                "{good}; the tail is torn: at byte {whole_bytes} begins a frame of which only \
                 {torn} bytes are there"
            ),
        }
    }
}
