//! A chunk: the unit in which a log is shipped, acknowledged and stored.
//!
//! A chunk with `end_moment` E says: the machine has taken exit E and its handler has finished;
//! every record up to there is in this chunk or an earlier one, except inputs that were applied at
//! E itself later, which may open the next chunk. A replay that has consumed a chunk has produced
//! exactly `outputs`.

use alloc::{collections::VecDeque, vec::Vec};

use crate::bytes::{Reader, put_varint};
use crate::codec::Decoder;
use crate::error::DecodeError;
use crate::event::Trail;
use crate::record::Record;

/// Records a chunk may hold; bounds what decoding one can allocate.
pub const RECORDS_PER_CHUNK_MAX: usize = 1 << 17;

/// A part of a log, encoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Counts the chunks of one log from 1.
    pub number: u64,
    /// The end moment of the chunk before it.
    pub start_moment: u64,
    /// See the module's description.
    pub end_moment: u64,
    /// The outputs of the machine since the log began, once this chunk is consumed.
    pub outputs: Trail,
    /// The records, encoded with `start_moment` as base.
    pub records: Vec<u8>,
}

/// A part of a log, decoded and checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Counts the chunks of one log from 1.
    pub number: u64,
    /// The end moment of the chunk before it.
    pub start_moment: u64,
    /// See the module's description.
    pub end_moment: u64,
    /// The outputs of the machine since the log began, once this chunk is consumed.
    pub outputs: Trail,
    /// The records with their moments, in order.
    pub records: VecDeque<(u64, Record)>,
}

impl Batch {
    /// Whether the delta that [`Record::Heals`] announces is in it. `announced`: that came in an
    /// earlier one, and will have come after this one.
    pub(crate) fn heals(&self, announced: &mut bool) -> bool {
        let mut heals = false;
        for (_, record) in &self.records {
            match record {
                Record::Heals => *announced = true,
                Record::Delta { machine: Some(_), .. } => heals |= core::mem::take(announced),
                _ => {}
            }
        }
        heals
    }
}

impl Chunk {
    /// The body of the frame that carries this chunk. The start moment travels in its header.
    #[must_use]
    pub fn to_body(&self) -> Vec<u8> {
        let mut body = Vec::with_capacity(self.records.len() + 32);
        put_varint(&mut body, self.number);
        put_varint(&mut body, self.end_moment - self.start_moment);
        put_varint(&mut body, self.outputs.count);
        body.extend_from_slice(&self.outputs.digest.to_le_bytes());
        body.extend_from_slice(&self.records);
        body
    }

    /// Reads a frame's body. The records are not looked at: that is [`Chunk::decode`].
    ///
    /// # Errors
    ///
    /// When the body does not start with a chunk's head.
    pub fn from_body(start_moment: u64, body: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(body);
        let number = reader.varint("chunk number")?;
        let end_moment = start_moment
            .checked_add(reader.varint("end moment")?)
            .ok_or(DecodeError::OutOfRange { what: "end moment" })?;
        let count = reader.varint("outputs")?;
        let outputs = Trail { count, digest: reader.u64("digest of the outputs")? };
        Ok(Self { number, start_moment, end_moment, outputs, records: reader.rest().to_vec() })
    }

    /// Decodes all records and checks that they are in the order a replay relies on.
    ///
    /// # Errors
    ///
    /// When the bytes are not records, or not in that order.
    pub fn decode(&self) -> Result<Batch, DecodeError> {
        let mut decoder = Decoder::new(self.start_moment, &self.records);
        let mut records = VecDeque::new();
        let mut last_moment = self.start_moment;
        let mut ended = false;
        while let Some((moment, record)) = decoder.next_record()? {
            if records.len() == RECORDS_PER_CHUNK_MAX {
                return Err(DecodeError::TooMany { max: RECORDS_PER_CHUNK_MAX });
            }
            let out_of_order = |what| Err(DecodeError::OutOfOrder { what, moment });
            if moment > self.end_moment {
                return out_of_order("a record");
            }
            if ended {
                return out_of_order("a record after the end");
            }
            match record {
                Record::Delta { .. } if moment == last_moment => return out_of_order("a delta"),
                Record::End { .. } => ended = true,
                Record::Delta { .. }
                | Record::Input(_)
                | Record::Digest { .. }
                | Record::Registers(_)
                | Record::Devices { .. }
                | Record::StateDigest { .. }
                | Record::Pages { .. }
                | Record::Patches { .. }
                | Record::Models { .. }
                | Record::Heals
                | Record::Released { .. } => {}
            }
            last_moment = moment;
            records.push_back((moment, record));
        }
        Ok(Batch {
            number: self.number,
            start_moment: self.start_moment,
            end_moment: self.end_moment,
            outputs: self.outputs,
            records,
        })
    }
}
