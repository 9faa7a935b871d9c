//! The first difference between two logs.

use std::collections::VecDeque;
use std::path::Path;

use super::dump::prologue_lines;
use super::text::Lines;
use super::{Entry, LogReader};
use crate::error::Error;

/// Where two logs part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Comparison {
    /// Lines of the prologues that differ: the first log's, then the second's.
    pub prologues: Vec<(String, String)>,
    /// Records that are equal from the beginning.
    pub equal_records: u64,
    /// The last moment up to which all is equal.
    pub equal_moment: u64,
    /// The first records that differ, in words; `None` where a log has no more.
    pub difference: Option<[Option<String>; 2]>,
}

/// Compares two logs record by record. How they are cut into chunks does not count.
///
/// # Errors
/// One of them is no log or damaged.
pub fn compare(one: &Path, other: &Path) -> Result<Comparison, Error> {
    let mut logs = [Records::open(one)?, Records::open(other)?];
    let [first, second] = &logs;
    let prologues = prologue_lines(first.log.prologue())
        .into_iter()
        .zip(prologue_lines(second.log.prologue()))
        .filter(|(one, other)| one != other)
        .collect();
    let mut comparison =
        Comparison { prologues, equal_records: 0, equal_moment: 0, difference: None };
    loop {
        let [first, second] = &mut logs;
        let pair = [first.next()?, second.next()?];
        match pair {
            [None, None] => return Ok(comparison),
            [Some(one), Some(other)] if one.same_as(&other) => {
                comparison.equal_records += 1;
                comparison.equal_moment = one.moment;
                first.lines.record(&one.record);
                second.lines.record(&other.record);
            }
            [one, other] => {
                comparison.difference =
                    Some([one.map(|e| first.words(&e)), other.map(|e| second.words(&e))]);
                return Ok(comparison);
            }
        }
    }
}

impl Entry {
    fn same_as(&self, other: &Self) -> bool {
        (self.moment, &self.record) == (other.moment, &other.record)
    }
}

/// The records of one log, one after the other.
struct Records {
    log: LogReader,
    chunk: VecDeque<Entry>,
    lines: Lines,
}

impl Records {
    fn open(path: &Path) -> Result<Self, Error> {
        Ok(Self { log: LogReader::open(path)?, chunk: VecDeque::new(), lines: Lines::default() })
    }

    fn next(&mut self) -> Result<Option<Entry>, Error> {
        loop {
            if let Some(entry) = self.chunk.pop_front() {
                return Ok(Some(entry));
            }
            let Some(chunk) = self.log.next_chunk()? else { return Ok(None) };
            self.chunk = self.log.entries(&chunk)?.into();
        }
    }

    fn words(&mut self, entry: &Entry) -> String {
        format!("moment {}: {}", entry.moment, self.lines.record(&entry.record).trim_end())
    }
}
