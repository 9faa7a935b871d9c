//! Logs in files: what `--ft record=` writes and `--ft replay=` and `ft-log` read.
//!
//! A log file is a prologue frame and then one append frame a chunk, the same bytes that a pair
//! sends over its channel. Owns opening, writing and reading such files. Does not own what the
//! frames mean (`ft`) or when a machine is recorded (`crate::engine`).

mod reader;
mod writer;

pub use reader::LogReader;
pub use writer::LogWriter;
