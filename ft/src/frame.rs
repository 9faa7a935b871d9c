//! Frames: the same bytes on the wire and on disk.
//!
//! A frame is a header of 64 bytes and a body. Each header names the checksum of the header before
//! it, so that the frames of one log or one direction of a channel form a chain: none can be lost,
//! doubled, exchanged or altered unseen. (Against accidents, that is, not against an attacker.)
//! What a body means belongs to `chunk`, `prologue` and `message`, how one is packed to `packing`.

use alloc::vec::Vec;
use xxhash_rust::xxh3::xxh3_64;

use crate::error::FrameError;
use crate::packing::{self, Compression};

/// First four bytes of every frame.
pub const MAGIC: [u8; 4] = *b"CHFT";
/// The version of frames, records and messages that this build reads and writes.
pub const FORMAT_VERSION: u16 = 1;
/// Bytes of a header.
pub const HEADER_SIZE: usize = 64;
/// Bytes a body may have, packed or not.
pub const BODY_BYTES_MAX: usize = 4 << 20;

/// What a frame's body is. Numbers are never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A [`crate::Prologue`]: first in every log file, part of the greeting on a channel.
    Prologue,
    /// A [`crate::Chunk`]; the header's moment is its start moment.
    Append,
    /// A message of the replica protocol.
    Message,
    /// A heartbeat: a frame that travels alone, in a datagram.
    Heartbeat,
}

impl Kind {
    fn number(self) -> u8 {
        match self {
            Self::Prologue => 1,
            Self::Append => 2,
            Self::Message => 3,
            Self::Heartbeat => 4,
        }
    }

    fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Prologue),
            2 => Some(Self::Append),
            3 => Some(Self::Message),
            4 => Some(Self::Heartbeat),
            _ => None,
        }
    }

    /// Whether a body of this kind may be packed. The others are few or small, and each has a
    /// limit far below a chunk's, which a packed body would have to be held against too.
    fn may_be_packed(self) -> bool {
        match self {
            Self::Append => true,
            Self::Prologue | Self::Message | Self::Heartbeat => false,
        }
    }
}

/// The number of a body that is not packed. The others are `packing`'s.
const NOT_PACKED: u8 = 0;

/// A header's fields, in the order of their bytes, little-endian, without padding.
#[derive(Clone, Copy, Debug)]
struct Header {
    kind: u8,
    /// How the body is packed: [`NOT_PACKED`], or a number of `packing`'s.
    packing: u8,
    generation: u64,
    sequence: u64,
    moment: u64,
    /// Bytes of the body as they travel.
    body_length: u32,
    /// Bytes of the body when it is unpacked; 0 if it is not packed.
    plain_length: u32,
    parent: u64,
    body_checksum: u64,
    checksum: u64,
}

const _: () = assert!(HEADER_SIZE == 4 + 2 + 1 + 1 + 4 + 4 + 6 * 8, "a header has no padding");

impl Header {
    fn to_bytes(self) -> [u8; HEADER_SIZE] {
        let mut bytes = [0; HEADER_SIZE];
        let mut rest = bytes.as_mut_slice();
        let mut put = |field: &[u8]| {
            if let Some((head, tail)) = core::mem::take(&mut rest).split_at_mut_checked(field.len())
            {
                head.copy_from_slice(field);
                rest = tail;
            }
        };
        put(&MAGIC);
        put(&FORMAT_VERSION.to_le_bytes());
        put(&[self.kind, self.packing]);
        put(&self.body_length.to_le_bytes());
        put(&self.plain_length.to_le_bytes());
        put(&self.generation.to_le_bytes());
        put(&self.sequence.to_le_bytes());
        put(&self.moment.to_le_bytes());
        put(&self.parent.to_le_bytes());
        put(&self.body_checksum.to_le_bytes());
        put(&self.checksum.to_le_bytes());
        bytes
    }

    fn sealed(mut self) -> ([u8; HEADER_SIZE], u64) {
        let bytes = self.to_bytes();
        self.checksum = bytes.split_last_chunk::<8>().map_or(0, |(fields, _)| xxh3_64(fields));
        (self.to_bytes(), self.checksum)
    }

    /// Reads a header whose checksum, magic and version are right.
    fn from_bytes(bytes: &[u8; HEADER_SIZE], after: u64) -> Result<Self, FrameError> {
        let u64_at = |offset: usize| {
            bytes
                .get(offset..)
                .and_then(|rest| rest.first_chunk())
                .map_or(0, |b| u64::from_le_bytes(*b))
        };
        let first = u64_at(0).to_le_bytes();
        let second = u64_at(8);
        let [a, b, c, d, version_low, version_high, kind, packing] = first;
        if [a, b, c, d] != MAGIC {
            return Err(FrameError::Magic);
        }
        let version = u16::from_le_bytes([version_low, version_high]);
        if version != FORMAT_VERSION {
            return Err(FrameError::Version { found: version, known: FORMAT_VERSION });
        }
        let header = Self {
            kind,
            packing,
            generation: u64_at(16),
            sequence: u64_at(24),
            moment: u64_at(32),
            body_length: second as u32,
            plain_length: (second >> 32) as u32,
            parent: u64_at(40),
            body_checksum: u64_at(48),
            checksum: u64_at(56),
        };
        let (_, checksum) = header.sealed();
        let strays = header.packing == NOT_PACKED && header.plain_length != 0;
        if checksum != header.checksum || strays {
            return Err(FrameError::Header { after });
        }
        Ok(header)
    }

    /// The frame's kind, if a frame of it may be as long and packed as this one is. Nothing has
    /// been allocated for it before.
    fn checked_kind(&self) -> Result<Kind, FrameError> {
        let Self { sequence, packing, .. } = *self;
        let kind =
            Kind::from_number(self.kind).ok_or(FrameError::Kind { sequence, kind: self.kind })?;
        let (length, plain) = (self.body_length as usize, self.plain_length as usize);
        if let Some(length) = [length, plain].into_iter().find(|length| *length > BODY_BYTES_MAX) {
            return Err(FrameError::TooLong { length, max: BODY_BYTES_MAX });
        }
        match packing {
            NOT_PACKED => Ok(kind),
            packing::LZ4 if kind.may_be_packed() && packing::is_possible(length, plain) => Ok(kind),
            packing::LZ4 => Err(FrameError::Unpacked { sequence, length, plain }),
            _ => Err(FrameError::Packing { sequence, packing }),
        }
    }

    /// The body from the bytes that travelled.
    fn unpacked(&self, body: &[u8]) -> Result<Vec<u8>, FrameError> {
        let Self { sequence, .. } = *self;
        if self.packing == NOT_PACKED {
            return Ok(body.to_vec());
        }
        let plain = self.plain_length as usize;
        packing::unpack(body, plain).ok_or(FrameError::Unpacked {
            sequence,
            length: body.len(),
            plain,
        })
    }
}

/// A frame that has been read and checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What the body is.
    pub kind: Kind,
    /// The generation of the pair that the sender is in.
    pub generation: u64,
    /// Counts the frames of this log or direction from 0.
    pub sequence: u64,
    /// The chunk's start moment in an [`Kind::Append`]; else where the sender is.
    pub moment: u64,
    /// The body, unpacked.
    pub body: Vec<u8>,
}

/// Makes the frames of one log or one direction of a channel.
#[derive(Clone, Debug, Default)]
pub struct FrameWriter {
    next_sequence: u64,
    parent: u64,
    compression: Compression,
}

impl FrameWriter {
    /// Starts a chain.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Starts a chain whose large bodies are packed.
    #[must_use]
    pub fn packing(compression: Compression) -> Self {
        Self { compression, ..Self::default() }
    }

    /// The bytes of the next frame.
    ///
    /// # Panics
    ///
    /// If the body is larger than a frame may be. Chunks and messages never are.
    pub fn frame(&mut self, kind: Kind, generation: u64, moment: u64, body: &[u8]) -> Vec<u8> {
        assert!(body.len() <= BODY_BYTES_MAX, "a frame's body is bounded");
        let packed = if kind.may_be_packed() { self.compression.pack(body) } else { None };
        let (packing, plain_length, sent) = match &packed {
            Some(packed) => (packing::LZ4, body.len() as u32, packed.as_slice()),
            None => (NOT_PACKED, 0, body),
        };
        let header = Header {
            kind: kind.number(),
            packing,
            generation,
            sequence: self.next_sequence,
            moment,
            body_length: sent.len() as u32,
            plain_length,
            parent: self.parent,
            body_checksum: xxh3_64(body),
            checksum: 0,
        };
        let (head, checksum) = header.sealed();
        self.next_sequence += 1;
        self.parent = checksum;
        let mut bytes = Vec::with_capacity(HEADER_SIZE + sent.len());
        bytes.extend_from_slice(&head);
        bytes.extend_from_slice(sent);
        bytes
    }
}

/// Reads the frames of one log or one direction of a channel from bytes that come in any slices.
///
/// After an error the chain is broken: the reader gives the same error for ever.
#[derive(Clone, Debug, Default)]
pub struct FrameReader {
    buffer: Vec<u8>,
    /// Bytes at the buffer's start that are already consumed.
    consumed: usize,
    next_sequence: u64,
    parent: u64,
    broken: Option<FrameError>,
}

impl FrameReader {
    /// Starts at the beginning of a chain.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds bytes as they arrived. Take all frames out before adding more, and the buffer never
    /// holds more than one frame and one slice.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.broken.is_none() {
            self.buffer.drain(..self.consumed);
            self.consumed = 0;
            self.buffer.extend_from_slice(bytes);
        }
    }

    /// The next whole frame, or `None` until more bytes come.
    ///
    /// # Errors
    ///
    /// When the bytes are not the frame that belongs here.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        if let Some(error) = &self.broken {
            return Err(error.clone());
        }
        self.parse().inspect_err(|error| {
            self.broken = Some(error.clone());
            self.buffer = Vec::new();
            self.consumed = 0;
        })
    }

    /// Bytes of a frame that is not whole yet.
    #[must_use]
    pub fn partial_bytes(&self) -> usize {
        self.buffer.len() - self.consumed
    }

    fn parse(&mut self) -> Result<Option<Frame>, FrameError> {
        let held = self.buffer.get(self.consumed..).unwrap_or_default();
        // Bytes of another protocol are refused at the first byte, not after 64 of them.
        if held.iter().zip(MAGIC).any(|(found, known)| *found != known) {
            return Err(FrameError::Magic);
        }
        let Some((head, rest)) = held.split_first_chunk::<HEADER_SIZE>() else {
            return Ok(None);
        };
        let header = Header::from_bytes(head, self.next_sequence)?;
        let sequence = header.sequence;
        if sequence != self.next_sequence {
            return Err(FrameError::Sequence { expected: self.next_sequence, found: sequence });
        }
        if header.parent != self.parent {
            return Err(FrameError::Chain { sequence });
        }
        let kind = header.checked_kind()?;
        let length = header.body_length as usize;
        let Some(body) = rest.get(..length) else {
            return Ok(None);
        };
        let body = header.unpacked(body)?;
        if xxh3_64(&body) != header.body_checksum {
            return Err(FrameError::Body { sequence });
        }
        let (generation, moment) = (header.generation, header.moment);
        let frame = Frame { kind, generation, sequence, moment, body };
        self.next_sequence = sequence + 1;
        self.parent = header.checksum;
        self.consumed += HEADER_SIZE + length;
        Ok(Some(frame))
    }
}

/// Reads a frame that travels alone, outside any chain: a heartbeat in a datagram.
///
/// # Errors
///
/// When the bytes are not exactly one frame.
pub fn read_single(bytes: &[u8]) -> Result<Frame, FrameError> {
    let mut reader = FrameReader::new();
    reader.push(bytes);
    match reader.next_frame()? {
        Some(frame) if reader.partial_bytes() == 0 => Ok(frame),
        Some(_) | None => Err(FrameError::Header { after: 0 }),
    }
}

#[cfg(test)]
#[path = "frame_tests.rs"]
mod tests;
