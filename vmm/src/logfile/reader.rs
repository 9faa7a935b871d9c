//! The reading end of a log file.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use ft::{Chunk, Frame, FrameReader, Kind, Prologue};

use crate::error::Error;

/// Bytes read from the file at once.
const READ_BYTES: usize = 1 << 20;

/// A log file that is being read.
pub struct LogReader {
    path: PathBuf,
    file: File,
    frames: FrameReader,
    prologue: Prologue,
    at_end: bool,
}

impl LogReader {
    /// Opens the file and reads its prologue.
    ///
    /// # Errors
    /// The file cannot be read or is no log.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let mut file = File::open(path).map_err(|source| Error::File {
            what: "The log cannot be opened:",
            path: path.to_owned(),
            source,
        })?;
        let mut frames = FrameReader::new();
        let mut at_end = false;
        let first = next(path, &mut file, &mut frames, &mut at_end)?;
        let broken = |reason: String| Error::Log { path: path.to_owned(), reason };
        let prologue = match first {
            Some(Frame { kind: Kind::Prologue, body, .. }) => {
                Prologue::from_body(&body).map_err(|error| broken(error.to_string()))?
            }
            Some(_) => return Err(broken("it does not begin with a prologue".into())),
            None => return Err(broken("it is empty or ends inside its first frame".into())),
        };
        Ok(Self { path: path.to_owned(), file, frames, prologue, at_end })
    }

    /// What the log says about itself.
    pub fn prologue(&self) -> &Prologue {
        &self.prologue
    }

    /// The next chunk, or `None` at the end. A file that was cut inside a frame, as by a full disk
    /// or a crash, ends with the last whole one.
    ///
    /// # Errors
    /// The file cannot be read, or what it holds is damaged.
    pub fn next_chunk(&mut self) -> Result<Option<Chunk>, Error> {
        let frame = next(&self.path, &mut self.file, &mut self.frames, &mut self.at_end)?;
        match frame {
            None => Ok(None),
            Some(Frame { kind: Kind::Append, moment, body, .. }) => {
                Chunk::from_body(moment, &body).map(Some).map_err(|error| self.broken(&error))
            }
            Some(frame) => Err(self.broken(&format_args!(
                "frame {} is of a kind that does not belong in a file",
                frame.sequence
            ))),
        }
    }

    /// Bytes behind the last whole frame: more than 0 once the end is reached if the file was cut.
    pub fn torn_bytes(&self) -> usize {
        self.frames.partial_bytes()
    }

    /// The error for something in this file that cannot be right.
    pub fn broken(&self, reason: &dyn std::fmt::Display) -> Error {
        Error::Log { path: self.path.clone(), reason: reason.to_string() }
    }
}

fn next(
    path: &Path,
    file: &mut File,
    frames: &mut FrameReader,
    at_end: &mut bool,
) -> Result<Option<Frame>, Error> {
    let mut bytes = Vec::new();
    loop {
        let frame = frames
            .next_frame()
            .map_err(|error| Error::Log { path: path.to_owned(), reason: error.to_string() })?;
        if frame.is_some() || *at_end {
            return Ok(frame);
        }
        bytes.resize(READ_BYTES, 0);
        let count = file.read(&mut bytes).map_err(|source| Error::File {
            what: "The log cannot be read:",
            path: path.to_owned(),
            source,
        })?;
        *at_end = count == 0;
        frames.push(&bytes[..count]);
    }
}
