//! What the two replicas say to each other, and the link that turns it into frames.
//!
//! The primary opens the stream and speaks first. When a message is due belongs to `primary` and
//! `backup`; the table of all of them is in `docs/PROTOCOL.md`.

use alloc::{boxed::Box, format, string::String, vec::Vec};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::chunk::Chunk;
use crate::error::{DecodeError, Divergence, FrameError, Mismatch};
use crate::event::Trail;
use crate::frame::{Frame, FrameReader, FrameWriter, Kind, read_single};
use crate::kept::PageDigest;
use crate::packing::Compression;
use crate::prologue::Prologue;

/// Bytes that a message other than a prologue or a chunk may have.
const MESSAGE_BYTES_MAX: usize = 64 << 10;

/// How far the backup is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ack {
    /// The last chunk it holds.
    pub received: u64,
    /// The last chunk it has executed.
    pub executed: u64,
    /// Its outputs, once it had executed that chunk.
    pub outputs: Trail,
    /// The newest time of the primary's clock that it has heard.
    pub echo_ms: Option<u64>,
}

/// One message on the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Primary: this is the machine, will you follow it?
    Hello(Box<Prologue>),
    /// Primary: the next part of the log.
    Append(Chunk),
    /// Everything small.
    Word(Word),
}

/// The small messages. Their encoding is their position: append only, never reorder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Word {
    /// Backup: yes; send the machine.
    Welcome,
    /// Backup: no.
    Refuse {
        /// A sentence for the user.
        why: String,
    },
    /// Backup: the machine's state is complete here.
    Ready,
    /// Primary: from now on my outputs wait for you; take over if I am lost.
    Protect,
    /// Backup: I shall.
    Following,
    /// Primary: I am here, and my clock says so much.
    Ping {
        /// Milliseconds of the primary's clock.
        stamp_ms: u64,
    },
    /// Backup: how far it is.
    Ack(Ack),
    /// Primary: protection ends; promise never to go live.
    Leave,
    /// Backup: promised.
    Left,
    /// Primary: the machine has stopped for good here, nothing is under way; go on with it.
    Yield {
        /// The last chunk of the log.
        chunk: u64,
    },
    /// Backup: the machine goes on here.
    Live {
        /// The new generation.
        generation: u64,
    },
    /// Backup: my copy is not the machine; it never goes live.
    Diverged(Divergence),
    /// Backup, before its welcome: my memory has pages of this machine already, and so they digest.
    /// Told of all of it, in ascending order, or of nothing: then it is zero. After
    /// [`Word::Differs`]: the same, of a copy that is to be healed.
    Kept {
        /// The frame of the first page.
        first_frame: u64,
        /// The digests of the pages from there on, at most [`KEPT_AT_ONCE_MAX`](crate::KEPT_AT_ONCE_MAX).
        digests: Vec<PageDigest>,
    },
    /// Backup: my copy is not the machine now; make it the machine again. I follow, and cannot take
    /// over before that.
    Differs(Divergence),
    /// Backup, after [`Word::Differs`]: these pages of my memory may be others than yours, besides
    /// those that you have written since your last delta.
    Touched {
        /// Their frames, at most [`TOUCHED_AT_ONCE_MAX`](crate::TOUCHED_AT_ONCE_MAX).
        frames: Vec<u64>,
    },
    /// Backup: that is all that there is to say about how my copy may differ.
    Told,
}

impl Word {
    /// The word in a few of them, for a sentence.
    pub(crate) fn brief(&self) -> String {
        match self {
            Self::Kept { first_frame, digests } => {
                format!("a list of {} pages from frame {first_frame} on", digests.len())
            }
            Self::Touched { frames } => format!("a list of {} pages", frames.len()),
            word => format!("{word:?}"),
        }
    }
}

/// Which side a datagram comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// The side that runs the machine for real.
    Primary,
    /// The side that follows.
    Backup,
}

/// A heartbeat: small, in a datagram of its own, never waited for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// Names the virtual machine.
    pub vm_id: [u8; 16],
    /// The generation of the pair.
    pub generation: u64,
    /// Who sent it.
    pub role: Role,
    /// Milliseconds of the sender's clock.
    pub stamp_ms: u64,
    /// The newest time of the receiver's clock that the sender has heard.
    pub echo_ms: Option<u64>,
    /// From a primary: it holds all outputs until the arbiter has spoken, and none is still being
    /// carried out.
    pub holds: bool,
}

impl Heartbeat {
    /// The datagram.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        FrameWriter::new().frame(Kind::Heartbeat, self.generation, 0, &encode(self))
    }

    /// Reads a datagram.
    ///
    /// # Errors
    ///
    /// When it is anything but a heartbeat.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, MessageError> {
        let frame = read_single(bytes)?;
        let heartbeat: Self = decode(&frame.body)?;
        match frame.kind {
            Kind::Heartbeat if heartbeat.generation == frame.generation => Ok(heartbeat),
            Kind::Heartbeat | Kind::Prologue | Kind::Append | Kind::Message => {
                Err(MessageError::Unexpected)
            }
        }
    }
}

/// A stream that does not carry the protocol.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum MessageError {
    /// Not the frame that belongs here.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// Not a part of a log.
    #[error(transparent)]
    Log(#[from] DecodeError),
    /// Not a prologue that this side could follow.
    #[error(transparent)]
    Prologue(#[from] Mismatch),
    /// Bytes that are no message.
    #[error("a message cannot be read")]
    Unreadable,
    /// A frame that is not for this place.
    #[error("a frame came that has no place on this channel")]
    Unexpected,
    /// A frame of another generation.
    #[error("a message of generation {found} came on a channel of generation {expected}")]
    Generation {
        /// The channel's.
        expected: u64,
        /// The frame's.
        found: u64,
    },
}

/// One end of a stream: messages to frames and back, in order, each exactly once.
#[derive(Clone, Debug)]
pub struct Link {
    writer: FrameWriter,
    reader: FrameReader,
    /// `None` at a backup until the primary has said which generation this is.
    generation: Option<u64>,
}

impl Link {
    /// The primary's end.
    #[must_use]
    pub fn primary(generation: u64) -> Self {
        Self {
            writer: FrameWriter::new(),
            reader: FrameReader::new(),
            generation: Some(generation),
        }
    }

    /// The backup's end.
    #[must_use]
    pub fn backup() -> Self {
        Self { writer: FrameWriter::new(), reader: FrameReader::new(), generation: None }
    }

    /// The same end, with the large bodies that it sends packed. What it receives may be packed or
    /// not, whatever is said here. To be called before anything is sent.
    #[must_use]
    pub fn packing(self, compression: Compression) -> Self {
        Self { writer: FrameWriter::packing(compression), ..self }
    }

    /// The bytes to send for a message.
    ///
    /// # Errors
    ///
    /// When a prologue is larger than it may be.
    pub fn seal(&mut self, message: &Message) -> Result<Vec<u8>, MessageError> {
        let (kind, moment, body) = match message {
            Message::Hello(prologue) => (Kind::Prologue, 0, prologue.to_body()?),
            Message::Append(chunk) => (Kind::Append, chunk.start_moment, chunk.to_body()),
            Message::Word(word) => (Kind::Message, 0, encode(word)),
        };
        Ok(self.writer.frame(kind, self.generation.unwrap_or(0), moment, &body))
    }

    /// Adds bytes as they arrived. Take all messages out before adding more.
    pub fn push(&mut self, bytes: &[u8]) {
        self.reader.push(bytes);
    }

    /// The next whole message, or `None` until more bytes come.
    ///
    /// # Errors
    ///
    /// When the stream does not carry the protocol. It cannot be used any further.
    pub fn next_message(&mut self) -> Result<Option<Message>, MessageError> {
        let Some(frame) = self.reader.next_frame()? else {
            return Ok(None);
        };
        let expected = *self.generation.get_or_insert(frame.generation);
        if frame.generation != expected {
            return Err(MessageError::Generation { expected, found: frame.generation });
        }
        read_message(&frame).map(Some)
    }
}

fn read_message(frame: &Frame) -> Result<Message, MessageError> {
    match frame.kind {
        Kind::Prologue => Ok(Message::Hello(Box::new(Prologue::from_body(&frame.body)?))),
        Kind::Append => Ok(Message::Append(Chunk::from_body(frame.moment, &frame.body)?)),
        Kind::Message => decode(&frame.body).map(Message::Word),
        Kind::Heartbeat => Err(MessageError::Unexpected),
    }
}

fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    // Into memory, of types that have no custom encoding: nothing in it can fail.
    postcard::to_allocvec(value).unwrap_or_default()
}

fn decode<T: for<'a> Deserialize<'a>>(body: &[u8]) -> Result<T, MessageError> {
    match postcard::take_from_bytes(body) {
        Ok((value, [])) if body.len() <= MESSAGE_BYTES_MAX => Ok(value),
        Ok(_) | Err(_) => Err(MessageError::Unreadable),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use proptest::prelude::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn the_bytes_of_the_small_messages_never_change() {
        let words = [
            (Word::Welcome, "00"),
            (Word::Refuse { why: String::from("no") }, "01026e6f"),
            (Word::Ready, "02"),
            (Word::Protect, "03"),
            (Word::Following, "04"),
            (Word::Ping { stamp_ms: 300 }, "05ac02"),
            (
                Word::Ack(Ack {
                    received: 3,
                    executed: 2,
                    outputs: Trail { count: 1, digest: 5 },
                    echo_ms: Some(7),
                }),
                "0603020105 0107",
            ),
            (Word::Leave, "07"),
            (Word::Left, "08"),
            (Word::Yield { chunk: 9 }, "0909"),
            (Word::Live { generation: 2 }, "0a02"),
            (Word::Diverged(Divergence::TimeAsked { moment: 1 }), "0b0401"),
            (Word::Kept { first_frame: 3, digests: vec![[1; 8]] }, "0c0301 0101010101010101"),
            (Word::Differs(Divergence::TimeAsked { moment: 1 }), "0d0401"),
            (Word::Touched { frames: vec![3, 300] }, "0e0203ac02"),
            (Word::Told, "0f"),
        ];
        for (word, golden) in words {
            assert_eq!(hex(&encode(&word)), golden.replace(' ', ""), "{word:?}");
            assert_eq!(decode::<Word>(&encode(&word)), Ok(word));
        }
    }

    #[test]
    fn a_link_carries_messages_and_refuses_another_generation() {
        let (mut primary, mut backup) = (Link::primary(5), Link::backup());
        let ping = Message::Word(Word::Ping { stamp_ms: 1 });
        backup.push(&primary.seal(&ping).unwrap());
        assert_eq!(backup.next_message(), Ok(Some(ping.clone())));
        assert_eq!(backup.next_message(), Ok(None));
        primary.push(&backup.seal(&Message::Word(Word::Left)).unwrap());
        assert_eq!(primary.next_message(), Ok(Some(Message::Word(Word::Left))));
        let mut other = Link::primary(6);
        other.seal(&ping).unwrap();
        let mut stranger = Link::backup();
        stranger.generation = Some(5);
        stranger.push(&Link::primary(6).seal(&ping).unwrap());
        let error = MessageError::Generation { expected: 5, found: 6 };
        assert_eq!(stranger.next_message(), Err(error));
    }

    #[test]
    fn whoever_packs_is_understood_by_whoever_does_not() {
        let chunk = Chunk {
            number: 1,
            start_moment: 4,
            end_moment: 9,
            outputs: Trail { count: 2, digest: 3 },
            records: vec![5; 4096],
        };
        let message = Message::Append(chunk);
        let sealed = |compression| Link::primary(1).packing(compression).seal(&message).unwrap();
        let (plain, packed) = (sealed(Compression::Off), sealed(Compression::Lz4));
        assert_eq!(plain, Link::primary(1).seal(&message).unwrap());
        assert!(packed.len() * 10 < plain.len());
        for bytes in [plain, packed] {
            let mut backup = Link::backup();
            backup.push(&bytes);
            assert_eq!(backup.next_message(), Ok(Some(message.clone())));
        }
    }

    #[test]
    fn a_heartbeat_is_read_only_from_its_own_bytes() {
        let heartbeat = Heartbeat {
            vm_id: [1; 16],
            generation: 3,
            role: Role::Backup,
            stamp_ms: 4,
            echo_ms: None,
            holds: false,
        };
        let bytes = heartbeat.to_bytes();
        assert!(bytes.len() < 128);
        assert_eq!(Heartbeat::from_bytes(&bytes), Ok(heartbeat));
        for cut in 0..bytes.len() {
            assert!(Heartbeat::from_bytes(&bytes[..cut]).is_err());
        }
        let message = Link::primary(1).seal(&Message::Word(Word::Left)).unwrap();
        assert!(Heartbeat::from_bytes(&message).is_err());
    }

    proptest! {
        #[test]
        fn arbitrary_bodies_never_panic(body in prop::collection::vec(any::<u8>(), 0..200)) {
            for kind in [Kind::Prologue, Kind::Append, Kind::Message, Kind::Heartbeat] {
                let mut link = Link::backup();
                link.push(&FrameWriter::new().frame(kind, 1, 2, &body));
                if let Ok(Some(Message::Append(chunk))) = link.next_message() {
                    let _ = chunk.decode();
                }
                let _ = Heartbeat::from_bytes(&FrameWriter::new().frame(kind, 1, 0, &body));
            }
            let _ = Heartbeat::from_bytes(&body);
            let _ = vec![body];
        }
    }
}
