//! What comes over the channel between two replicas: the stream, and heartbeats in datagrams.
//!
//! Checksums would keep a fuzzer out of everything behind the header, so the bytes are tried twice:
//! as they are, and as the description of frames whose checksums are right.

use arbitrary::{Arbitrary, Unstructured};
use ft::frame::HEADER_SIZE;
use ft::{Compression, FrameReader, FrameWriter, Heartbeat, Kind, Link, Message};
use vmm::description::Description;
use xxhash_rust::xxh3::xxh3_64;

/// A frame, or something that stands where one should.
#[derive(Arbitrary, Debug)]
enum Piece {
    Prologue { body: Vec<u8> },
    Append { moment: u64, body: Vec<u8> },
    Word { body: Vec<u8> },
    Heartbeat { body: Vec<u8> },
    OtherGeneration { body: Vec<u8> },
    Garbage { bytes: Vec<u8> },
}

/// A stream: what it is made of, in slices of how many bytes it arrives, and which byte of it is
/// another one on the way.
#[derive(Arbitrary, Debug)]
struct Stream {
    pieces: Vec<Piece>,
    slice: u8,
    damage: Option<(u16, u8)>,
    /// Something that claims to be a packed chunk, on a stream of its own.
    packed: Packed,
}

#[derive(Arbitrary, Debug)]
struct Packed {
    kind: u8,
    packing: u8,
    plain_length: u32,
    body: Vec<u8>,
}

pub(crate) fn run(data: &[u8]) {
    read(data, 7);
    let _ = Heartbeat::from_bytes(data);
    let Ok(stream) = Stream::arbitrary(&mut Unstructured::new(data)) else { return };
    let mut bytes = framed(&stream.pieces);
    if let Some((at, change)) = stream.damage
        && let Some(byte) = bytes.get_mut(usize::from(at))
    {
        *byte ^= change;
    }
    let slice = usize::from(stream.slice) * 16 + 1;
    read(&bytes, slice);
    read(&forged(&stream.packed), slice);
}

/// The frame that `packed` describes, with checksums that are right if it can be unpacked at all.
fn forged(packed: &Packed) -> Vec<u8> {
    let mut bytes = FrameWriter::new().frame(Kind::Append, 1, 0, &packed.body);
    let plain_length = packed.plain_length % (ft::frame::BODY_BYTES_MAX as u32 + 2);
    bytes[6] = packed.kind % 6;
    bytes[7] = packed.packing % 3;
    bytes[12..16].copy_from_slice(&plain_length.to_le_bytes());
    let mut plain = vec![0; plain_length as usize];
    if lz4_flex::block::decompress_into(&packed.body, &mut plain).is_ok() {
        bytes[48..56].copy_from_slice(&xxh3_64(&plain).to_le_bytes());
    }
    let checksum = xxh3_64(&bytes[..HEADER_SIZE - 8]);
    bytes[HEADER_SIZE - 8..HEADER_SIZE].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

fn framed(pieces: &[Piece]) -> Vec<u8> {
    let mut writer = FrameWriter::new();
    let mut bytes = Vec::new();
    for piece in pieces {
        bytes.extend(match piece {
            Piece::Prologue { body } => writer.frame(Kind::Prologue, 1, 0, body),
            Piece::Append { moment, body } => writer.frame(Kind::Append, 1, *moment, body),
            Piece::Word { body } => writer.frame(Kind::Message, 1, 0, body),
            Piece::Heartbeat { body } => {
                let alone = FrameWriter::new().frame(Kind::Heartbeat, 1, 0, body);
                heartbeat(&alone);
                writer.frame(Kind::Heartbeat, 1, 0, body)
            }
            Piece::OtherGeneration { body } => writer.frame(Kind::Message, 2, 0, body),
            Piece::Garbage { bytes } => bytes.clone(),
        });
    }
    bytes
}

/// What is read as a heartbeat is written as one that means the same.
fn heartbeat(datagram: &[u8]) {
    if let Ok(heartbeat) = Heartbeat::from_bytes(datagram) {
        assert_eq!(Heartbeat::from_bytes(&heartbeat.to_bytes()), Ok(heartbeat));
    }
}

/// Both ends of a stream read it, whole and in slices: the same comes out.
fn read(bytes: &[u8], slice: usize) {
    let whole = messages(Link::backup(), bytes, bytes.len().max(1));
    assert_eq!(messages(Link::backup(), bytes, slice), whole, "slices make a difference");
    messages(Link::primary(1), bytes, slice);
    let mut writer = Link::primary(1);
    let (mut packer, mut unpacker) = (Link::primary(1).packing(Compression::Lz4), Link::backup());
    for message in &whole {
        look_into(message);
        // What was read can be sent on, and is then read as the same.
        let sealed = writer.seal(message).expect("a message that came through a frame fits one");
        let mut frames = FrameReader::new();
        frames.push(&sealed);
        assert!(frames.partial_bytes() == sealed.len());
        unpacker.push(&packer.seal(message).expect("packed it fits as well"));
        assert_eq!(unpacker.next_message(), Ok(Some(message.clone())), "packing changed it");
    }
}

fn messages(mut link: Link, bytes: &[u8], slice: usize) -> Vec<Message> {
    let mut messages = Vec::new();
    for part in bytes.chunks(slice) {
        link.push(part);
        loop {
            match link.next_message() {
                Ok(Some(message)) => messages.push(message),
                Ok(None) => break,
                Err(error) => {
                    assert!(!error.to_string().is_empty());
                    return messages;
                }
            }
        }
    }
    messages
}

fn look_into(message: &Message) {
    match message {
        Message::Hello(prologue) => {
            let _ = Description::decode(&prologue.machine, &prologue.cpuid);
        }
        Message::Append(chunk) => {
            if let Ok(batch) = chunk.decode() {
                assert!(batch.records.iter().all(|(moment, _)| *moment <= batch.end_moment));
            }
        }
        Message::Word(word) => {
            let _ = format!("{word:?}");
        }
    }
}
