//! The reading end of a log file.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use ft::{Chunk, Decoder, Frame, FrameReader, Kind, Prologue, Record};

use crate::error::Error;

/// Bytes read from the file at once.
const READ_BYTES: usize = 1 << 20;

/// A log file that is being read.
pub struct LogReader {
    file: FrameFile,
    prologue: Prologue,
    prologue_bytes: u64,
}

/// One record of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// When it takes effect.
    pub moment: u64,
    /// What it is.
    pub record: Record,
    /// Bytes that it takes in the log.
    pub bytes: usize,
}

impl LogReader {
    /// Opens the file and reads its prologue.
    ///
    /// # Errors
    /// The file cannot be read or is no log.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let mut file = FrameFile::open(path)?;
        let prologue = match file.next()? {
            Some(Frame { kind: Kind::Prologue, body, .. }) => {
                Prologue::from_body(&body).map_err(|error| file.broken(&error))?
            }
            Some(_) => return Err(file.broken(&"it does not begin with a prologue")),
            None => {
                let reason = "it is empty or ends inside its first frame; give a whole file that \
                              --ft record= has written";
                return Err(file.broken(&reason));
            }
        };
        let prologue_bytes = file.whole_bytes();
        Ok(Self { file, prologue, prologue_bytes })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.file.path
    }

    /// What the log says about itself.
    pub fn prologue(&self) -> &Prologue {
        &self.prologue
    }

    /// Bytes that the prologue takes.
    pub fn prologue_bytes(&self) -> u64 {
        self.prologue_bytes
    }

    /// The next chunk, or `None` at the end. A file that was cut inside a frame, as by a full disk
    /// or a crash, ends with the last whole one.
    ///
    /// # Errors
    /// The file cannot be read, or what it holds is damaged.
    pub fn next_chunk(&mut self) -> Result<Option<Chunk>, Error> {
        match self.file.next()? {
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

    /// The records of a chunk, in order.
    ///
    /// # Errors
    /// The chunk is damaged.
    pub fn entries(&self, chunk: &Chunk) -> Result<Vec<Entry>, Error> {
        let mut decoder = Decoder::new(chunk.start_moment, &chunk.records);
        let mut left = decoder.remaining();
        let mut entries = Vec::new();
        while let Some((moment, record)) =
            decoder.next_record().map_err(|error| self.broken(&error))?
        {
            let bytes = left - decoder.remaining();
            left = decoder.remaining();
            entries.push(Entry { moment, record, bytes });
        }
        Ok(entries)
    }

    /// Bytes of the frames read so far.
    pub fn whole_bytes(&self) -> u64 {
        self.file.whole_bytes()
    }

    /// Bytes behind the last whole frame: more than 0 once the end is reached if the file was cut.
    pub fn torn_bytes(&self) -> u64 {
        self.file.frames.partial_bytes() as u64
    }

    /// The error for something in this file that cannot be right.
    pub fn broken(&self, reason: &dyn std::fmt::Display) -> Error {
        self.file.broken(reason)
    }
}

/// The frames of a file.
struct FrameFile {
    path: PathBuf,
    file: File,
    frames: FrameReader,
    /// Bytes read from the file.
    read_bytes: u64,
    at_end: bool,
}

impl FrameFile {
    fn open(path: &Path) -> Result<Self, Error> {
        let failed = |source| Error::File {
            what: "The log cannot be opened:",
            path: path.to_owned(),
            source,
        };
        // Opening a pipe would wait for whoever writes to it.
        if !std::fs::metadata(path).map_err(failed)?.is_file() {
            let reason = "it is no regular file; give one that --ft record= has written".to_owned();
            return Err(Error::Log { path: path.to_owned(), reason });
        }
        let file = File::open(path).map_err(failed)?;
        let frames = FrameReader::new();
        Ok(Self { path: path.to_owned(), file, frames, read_bytes: 0, at_end: false })
    }

    fn next(&mut self) -> Result<Option<Frame>, Error> {
        let mut bytes = Vec::new();
        loop {
            let at = self.whole_bytes();
            let frame = self.frames.next_frame().map_err(|error| match at {
                0 => self.broken(&error),
                _ => self.broken(&format_args!("{error} (at byte {at} of the file)")),
            })?;
            if frame.is_some() || self.at_end {
                return Ok(frame);
            }
            bytes.resize(READ_BYTES, 0);
            let count = self.file.read(&mut bytes).map_err(|source| Error::File {
                what: "The log cannot be read:",
                path: self.path.clone(),
                source,
            })?;
            self.at_end = count == 0;
            self.read_bytes += count as u64;
            self.frames.push(&bytes[..count]);
        }
    }

    fn whole_bytes(&self) -> u64 {
        self.read_bytes - self.frames.partial_bytes() as u64
    }

    fn broken(&self, reason: &dyn std::fmt::Display) -> Error {
        Error::Log { path: self.path.clone(), reason: reason.to_string() }
    }
}
