//! Frames against slicing, damage, loss and hostile bytes.

use super::*;
use alloc::vec;
use proptest::prelude::*;

/// A body that shrinks to a few bytes.
const LONG: [u8; 2000] = [7; 2000];

fn packed_frames() -> Vec<Vec<u8>> {
    let mut writer = FrameWriter::packing(Compression::Lz4);
    vec![
        writer.frame(Kind::Prologue, 1, 0, &LONG),
        writer.frame(Kind::Append, 1, 7, &LONG),
        writer.frame(Kind::Append, 1, 8, b"short"),
        writer.frame(Kind::Message, 1, 9, &LONG),
    ]
}

/// The first frame of a chain, with a header that somebody who knows the format wrote.
fn forged(body: &[u8], change: impl FnOnce(&mut Header)) -> Vec<u8> {
    let mut header = Header {
        kind: 2,
        packing: packing::LZ4,
        generation: 0,
        sequence: 0,
        moment: 0,
        body_length: body.len() as u32,
        plain_length: LONG.len() as u32,
        parent: 0,
        body_checksum: xxh3_64(&LONG),
        checksum: 0,
    };
    change(&mut header);
    [&header.sealed().0[..], body].concat()
}

fn three_frames() -> Vec<Vec<u8>> {
    let mut writer = FrameWriter::new();
    vec![
        writer.frame(Kind::Prologue, 1, 0, b"hello"),
        writer.frame(Kind::Append, 1, 7, b""),
        writer.frame(Kind::Message, 1, 9, &[5; 1000]),
    ]
}

fn read_all(reader: &mut FrameReader) -> Result<Vec<Frame>, FrameError> {
    let mut frames = vec![];
    while let Some(frame) = reader.next_frame()? {
        frames.push(frame);
    }
    Ok(frames)
}

fn read(bytes: &[u8]) -> Result<Vec<Frame>, FrameError> {
    let mut reader = FrameReader::new();
    reader.push(bytes);
    read_all(&mut reader)
}

#[test]
fn frames_come_out_however_the_bytes_are_sliced() {
    let bytes = three_frames().concat();
    for slice in [1, 7, 63, 64, 65, 5000] {
        let mut reader = FrameReader::new();
        let mut frames = vec![];
        for part in bytes.chunks(slice) {
            reader.push(part);
            frames.extend(read_all(&mut reader).unwrap());
        }
        assert_eq!(frames.len(), 3);
        assert_eq!(
            frames[1],
            Frame { kind: Kind::Append, generation: 1, sequence: 1, moment: 7, body: vec![] }
        );
        assert_eq!(frames[2].body.len(), 1000);
        assert_eq!(reader.partial_bytes(), 0);
    }
}

#[test]
fn every_single_flipped_bit_is_found() {
    let bytes = three_frames().concat();
    for bit in 0..bytes.len() * 8 {
        let mut damaged = bytes.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        let frames = read(&damaged);
        assert!(frames.is_err(), "bit {bit} went unseen");
    }
}

#[test]
fn a_missing_doubled_or_foreign_frame_is_refused() {
    let [first, second, third] = <[Vec<u8>; 3]>::try_from(three_frames()).unwrap();
    let join = |frames: &[&Vec<u8>]| frames.iter().flat_map(|f| f.iter().copied()).collect();
    let missing: Vec<u8> = join(&[&first, &third]);
    assert_eq!(read(&missing), Err(FrameError::Sequence { expected: 1, found: 2 }));
    let doubled: Vec<u8> = join(&[&first, &second, &second]);
    assert_eq!(read(&doubled), Err(FrameError::Sequence { expected: 2, found: 1 }));
    let mut other = FrameWriter::new();
    other.frame(Kind::Prologue, 1, 0, b"other");
    let foreign = other.frame(Kind::Append, 1, 7, b"");
    let mixed: Vec<u8> = join(&[&first, &foreign]);
    assert_eq!(read(&mixed), Err(FrameError::Chain { sequence: 1 }));
}

#[test]
fn another_protocol_is_refused_at_its_first_byte() {
    assert_eq!(read(b"GET / HTTP/1.1"), Err(FrameError::Magic));
    assert_eq!(read(b"C"), Ok(vec![]));
    assert_eq!(read(b"CHFX"), Err(FrameError::Magic));
}

#[test]
fn an_error_stays() {
    let mut reader = FrameReader::new();
    reader.push(b"x");
    assert_eq!(reader.next_frame(), Err(FrameError::Magic));
    reader.push(&three_frames().concat());
    assert_eq!(reader.next_frame(), Err(FrameError::Magic));
    assert_eq!(reader.partial_bytes(), 0);
}

#[test]
fn the_bodies_of_large_chunks_travel_packed_and_come_out_as_they_were() {
    let frames = packed_frames();
    let lengths: Vec<usize> = frames.iter().map(|frame| frame.len() - HEADER_SIZE).collect();
    assert_eq!((lengths[0], lengths[2], lengths[3]), (2000, 5, 2000));
    assert!(lengths[1] < 30, "{lengths:?}");
    let bytes = frames.concat();
    for slice in [1, 63, 5000] {
        let mut reader = FrameReader::new();
        let mut bodies = vec![];
        for part in bytes.chunks(slice) {
            reader.push(part);
            bodies.extend(read_all(&mut reader).unwrap().into_iter().map(|frame| frame.body));
        }
        assert_eq!(bodies, [&LONG[..], &LONG, b"short", &LONG]);
    }
}

#[test]
fn every_flipped_bit_of_a_packed_frame_is_found_or_changes_nothing() {
    let frames = packed_frames();
    let bytes = frames.concat();
    let whole = read(&bytes).unwrap();
    let packed = frames[0].len() + HEADER_SIZE..frames[0].len() + frames[1].len();
    for bit in 0..bytes.len() * 8 {
        let mut damaged = bytes.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        match read(&damaged) {
            Err(_) => {}
            // The checksum is of what comes out: another way to say the same is no damage.
            Ok(frames) => assert!(frames == whole && packed.contains(&(bit / 8)), "bit {bit}"),
        }
    }
}

#[test]
fn a_packed_body_is_held_against_every_limit_before_it_is_unpacked() {
    let packed = Compression::Lz4.pack(&LONG).unwrap();
    let (length, plain) = (packed.len(), LONG.len());
    assert_eq!(read(&forged(&packed, |_| {})).unwrap()[0].body, LONG);
    let unpacked = |plain| Err(FrameError::Unpacked { sequence: 0, length, plain });
    let claim = |plain: usize| forged(&packed, |header| header.plain_length = plain as u32);
    for wrong in [0, 1, length, plain - 1, plain + 1, length * 255 + 1] {
        assert_eq!(read(&claim(wrong)), unpacked(wrong), "{wrong}");
    }
    let too_long = BODY_BYTES_MAX + 1;
    let error = FrameError::TooLong { length: too_long, max: BODY_BYTES_MAX };
    assert_eq!(read(&claim(too_long)), Err(error));
    for kind in [1, 3, 4] {
        assert_eq!(read(&forged(&packed, |header| header.kind = kind)), unpacked(plain));
    }
    let unknown = forged(&packed, |header| header.packing = 2);
    assert_eq!(read(&unknown), Err(FrameError::Packing { sequence: 0, packing: 2 }));
    let stray = forged(&LONG, |header| header.packing = NOT_PACKED);
    assert_eq!(read(&stray), Err(FrameError::Header { after: 0 }));
    let other = forged(&packed, |header| header.body_checksum ^= 1);
    assert_eq!(read(&other), Err(FrameError::Body { sequence: 0 }));
    // The header alone is enough to refuse: nothing is waited for, nothing allocated.
    assert!(read(&claim(too_long)[..HEADER_SIZE]).is_err());
}

#[test]
fn a_version_and_a_length_beyond_ours_are_named() {
    let header = Header {
        kind: 2,
        packing: NOT_PACKED,
        generation: 0,
        sequence: 0,
        moment: 0,
        body_length: u32::MAX,
        plain_length: 0,
        parent: 0,
        body_checksum: 0,
        checksum: 0,
    };
    let (bytes, _) = header.sealed();
    assert!(matches!(read(&bytes), Err(FrameError::TooLong { .. })));
    let (bytes, _) = Header { kind: 99, ..header }.sealed();
    assert_eq!(read(&bytes), Err(FrameError::Kind { sequence: 0, kind: 99 }));
    let mut bytes = bytes;
    bytes[4] = 2;
    assert_eq!(read(&bytes), Err(FrameError::Version { found: 2, known: 1 }));
}

#[test]
fn the_header_of_format_version_1_never_changes() {
    let frame = FrameWriter::new().frame(Kind::Append, 2, 3, b"x");
    let hex: alloc::string::String = frame.iter().map(|b| alloc::format!("{b:02x}")).collect();
    let expected = "43484654 0100 02 00 01000000 00000000 0200000000000000 0000000000000000 \
                    0300000000000000 0000000000000000 11cdb280646cf0ea 62261ca2be7839e7 78";
    let expected: alloc::string::String = expected.split_whitespace().collect();
    assert_eq!(hex, expected);
}

#[test]
fn a_datagram_holds_exactly_one_frame() {
    let frame = FrameWriter::new().frame(Kind::Heartbeat, 1, 2, b"beat");
    assert_eq!(read_single(&frame).unwrap().body, b"beat");
    assert!(read_single(&frame[..frame.len() - 1]).is_err());
    let longer = [frame.as_slice(), b"C"].concat();
    assert!(read_single(&longer).is_err());
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = read(&bytes);
        let _ = read(&[&MAGIC[..], &bytes].concat());
        let _ = read(&forged(&bytes, |_| {}));
    }

    #[test]
    fn bodies_come_out_packed_or_not(
        bodies in prop::collection::vec((prop::collection::vec(0..4_u8, 0..3000), 1..=4_u8), 0..6),
        slice in 1..4000_usize,
    ) {
        let mut writer = FrameWriter::packing(Compression::Lz4);
        let mut reader = FrameReader::new();
        let kinds = bodies.iter().filter_map(|(_, kind)| Kind::from_number(*kind));
        let sent: Vec<u8> = bodies
            .iter()
            .zip(kinds)
            .flat_map(|((body, _), kind)| writer.frame(kind, 1, 2, body))
            .collect();
        let mut came = vec![];
        for part in sent.chunks(slice) {
            reader.push(part);
            came.extend(read_all(&mut reader).unwrap().into_iter().map(|frame| frame.body));
        }
        prop_assert!(came.iter().eq(bodies.iter().map(|(body, _)| body)));
    }
}
