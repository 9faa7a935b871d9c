//! Logs in files: what `--ft record=` writes and `--ft replay=` and `ft-log` read.
//!
//! A log file is a prologue frame and then one append frame a chunk, the same bytes that a pair
//! sends over its channel. Owns opening, writing, reading and describing such files. Does not own
//! what the frames mean (`ft`) or when a machine is recorded (`crate::engine`).

mod compare;
mod dump;
mod reader;
mod summary;
mod text;
pub mod tool;
mod verify;
mod writer;

pub use self::text::{end_text, seconds};
pub use reader::{Entry, LogReader};
pub use writer::LogWriter;

use crate::error::Error;

/// The error of a text that nobody takes.
fn printed(result: std::io::Result<()>) -> Result<(), Error> {
    result.map_err(Error::Output)
}

#[cfg(test)]
mod tests;
