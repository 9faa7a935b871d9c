//! The writing end of a log file.

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use ft::{Chunk, FrameWriter, Kind, Prologue};

use crate::error::Error;

/// A log file that is being written.
pub struct LogWriter {
    path: PathBuf,
    file: BufWriter<File>,
    frames: FrameWriter,
    bytes: u64,
}

impl LogWriter {
    /// Creates the file and writes its prologue.
    ///
    /// # Errors
    /// The file exists already, or cannot be written.
    pub fn create(path: &Path, prologue: &Prologue) -> Result<Self, Error> {
        let file =
            OpenOptions::new().write(true).create_new(true).open(path).map_err(|source| {
                Error::File {
                    what: "The log cannot be created (an existing one is never overwritten):",
                    path: path.to_owned(),
                    source,
                }
            })?;
        let mut log = Self {
            path: path.to_owned(),
            file: BufWriter::new(file),
            frames: FrameWriter::new(),
            bytes: 0,
        };
        let body = prologue.to_body().map_err(|error| log.broken(error.to_string()))?;
        log.write(Kind::Prologue, 0, &body)?;
        Ok(log)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Appends one chunk.
    ///
    /// # Errors
    /// The file cannot be written: its file system may be full. The log ends before this chunk.
    pub fn append(&mut self, chunk: &Chunk) -> Result<(), Error> {
        self.write(Kind::Append, chunk.start_moment, &chunk.to_body())
    }

    /// Makes everything written so far durable.
    ///
    /// # Errors
    /// As [`LogWriter::append`].
    pub fn finish(&mut self) -> Result<(), Error> {
        self.file
            .flush()
            .and_then(|()| self.file.get_ref().sync_all())
            .map_err(|source| self.failed(source))
    }

    /// Bytes written.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    fn write(&mut self, kind: Kind, moment: u64, body: &[u8]) -> Result<(), Error> {
        let frame = self.frames.frame(kind, 0, moment, body);
        self.bytes += frame.len() as u64;
        self.file.write_all(&frame).map_err(|source| self.failed(source))
    }

    fn failed(&self, source: std::io::Error) -> Error {
        Error::File { what: "The log cannot be written:", path: self.path.clone(), source }
    }

    fn broken(&self, reason: String) -> Error {
        Error::Log { path: self.path.clone(), reason }
    }
}
