//! What packing the stream gains and costs: prints ratio and speed of each candidate.
//!
//!     cargo run --release -p ft --example compression -- FILE…
//!
//! A FILE that `--ft record=` wrote is measured in the bodies of its chunks. Any other file stands in
//! for guest memory: its pages go through a [`Recorder`] in the batches in which a join copies them,
//! zero pages left out. Without a FILE a log is made up: timer ticks, and packets of a small HTTP
//! service. It owns the measurement alone; what is sent packed, and when, belongs to `ft::packing`.

use std::hint::black_box;
use std::time::{Duration, Instant};
use std::{env, fs, process};

use ft::{DigestMode, FrameReader, Input, Kind, PAGE_SIZE, Page, Recorder};

/// As the engine's copy does it: pages a record and pages a chunk.
const PAGES_A_RECORD: usize = 16;
const PAGES_A_CHUNK: usize = 256;
/// A measurement goes on over the same bodies until it has taken so long.
const AT_LEAST: Duration = Duration::from_secs(2);
/// Bodies that are longer are cut to these lengths, to see from where on packing pays.
const CUTS_BYTES: [usize; 6] = [64, 128, 256, 512, 1024, 4096];

type Pack = dyn FnMut(&[u8]) -> Vec<u8>;
type Unpack = dyn FnMut(&[u8], usize) -> Vec<u8>;

/// One way to pack a body, and to unpack it to a length that is known.
struct Candidate {
    name: &'static str,
    pack: Box<Pack>,
    unpack: Box<Unpack>,
}

fn candidates() -> [Candidate; 3] {
    let lz4 = Candidate {
        name: "lz4",
        pack: Box::new(lz4_flex::block::compress),
        unpack: Box::new(|packed, plain| {
            lz4_flex::block::decompress(packed, plain).expect("it was packed here")
        }),
    };
    [lz4, zstd("zstd 1", 1), zstd("zstd 3", 3)]
}

/// Its contexts are kept from body to body, as a program would that cares.
fn zstd(name: &'static str, level: i32) -> Candidate {
    let mut packer = zstd::bulk::Compressor::new(level).expect("memory is all it needs");
    let mut unpacker = zstd::bulk::Decompressor::new().expect("memory is all it needs");
    Candidate {
        name,
        pack: Box::new(move |body| packer.compress(body).expect("memory is all it needs")),
        unpack: Box::new(move |packed, plain| {
            unpacker.decompress(packed, plain).expect("it was packed here")
        }),
    }
}

fn main() {
    let paths: Vec<String> = env::args().skip(1).collect();
    if paths.is_empty() {
        report("a log that was made up", &made_up_log());
    }
    for path in paths {
        let bytes = fs::read(&path).unwrap_or_else(|error| {
            eprintln!("{path} cannot be read: {error}");
            process::exit(1);
        });
        report(&path, &bodies(&bytes));
    }
}

/// What a primary would send of this file.
fn bodies(bytes: &[u8]) -> Vec<Vec<u8>> {
    if bytes.starts_with(&ft::frame::MAGIC) { chunk_bodies(bytes) } else { page_bodies(bytes) }
}

fn chunk_bodies(log: &[u8]) -> Vec<Vec<u8>> {
    let (mut frames, mut bodies) = (FrameReader::new(), Vec::new());
    frames.push(log);
    // A torn end of a log is no reason not to measure what is before it.
    while let Ok(Some(frame)) = frames.next_frame() {
        if frame.kind == Kind::Append {
            bodies.push(frame.body);
        }
    }
    bodies
}

fn page_bodies(memory: &[u8]) -> Vec<Vec<u8>> {
    let mut recorder = Recorder::new(0, DigestMode::EveryChunk);
    let (pages, _) = memory.as_chunks::<PAGE_SIZE>();
    let pages: Vec<(u64, Page)> = (0..)
        .zip(pages)
        .filter(|(_, page)| page.iter().any(|byte| *byte != 0))
        .map(|(number, page)| (number, Page::Data(Box::new(*page))))
        .collect();
    let mut bodies = Vec::new();
    for turn in pages.chunks(PAGES_A_CHUNK) {
        for record in turn.chunks(PAGES_A_RECORD) {
            recorder.pages(0, record.to_vec());
        }
        bodies.extend(recorder.cut(0).iter().map(ft::Chunk::to_body));
    }
    bodies
}

/// A guest that serves requests: every one is a packet in, its acknowledgement, some reads of the
/// clock, and random bytes where TLS would ask for them.
fn made_up_log() -> Vec<Vec<u8>> {
    let mut recorder = Recorder::new(0, DigestMode::EveryChunk);
    let (mut moment, mut now_ns, mut random) = (0, 1_000_000_000, 1_u64);
    let mut next_random = || {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        random >> 33
    };
    let mut bodies = Vec::new();
    for request in 0..20_000_u64 {
        for _ in 0..next_random() % 40 {
            moment += 1 + next_random() % 3;
            now_ns += 1_000 + next_random() % 300_000;
            recorder.register_digest(moment, next_random());
            note(&mut recorder, moment, &Input::Tick { now_ns });
        }
        let text = format!(
            "GET /item/{} HTTP/1.1\r\nHost: shop.example\r\nUser-Agent: client/1.0\r\n\
             Accept: application/json\r\nCookie: id={:08x}\r\n\r\n",
            request % 977,
            next_random()
        );
        for bytes in [packet(request, text.as_bytes()), packet(request + 1, &[])] {
            note(&mut recorder, moment, &Input::Packet { device: 0, bytes });
        }
        // Outputs cut the log, so that a chunk is what led to one or a few of them.
        if next_random() % 3 == 0 {
            bodies.extend(recorder.cut(moment).iter().map(ft::Chunk::to_body));
        }
    }
    bodies
}

fn note(recorder: &mut Recorder, moment: u64, input: &Input) {
    recorder.input(moment, input).expect("an input of this size fits");
}

/// Ethernet, IPv4 and TCP headers in front of the payload, with what changes in them.
fn packet(sequence: u64, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x52, 0x54, 0, 0, 0, 1, 0x52, 0x54, 0, 0, 0, 2, 8, 0, 0x45, 0];
    bytes.extend(((40 + payload.len()) as u16).to_be_bytes());
    bytes.extend((sequence as u16).to_be_bytes());
    bytes.extend([0x40, 0, 64, 6]);
    bytes.extend((sequence.wrapping_mul(40_503) as u16).to_be_bytes());
    bytes.extend([10, 77, 0, 1, 10, 77, 0, 2, 0xa1, 0x22, 0, 80]);
    bytes.extend((sequence.wrapping_mul(180) as u32).to_be_bytes());
    bytes.extend((sequence.wrapping_mul(400) as u32).to_be_bytes());
    bytes.extend([0x50, 0x18, 1, 0xf6]);
    bytes.extend((sequence.wrapping_mul(2_654_435_761) as u32).to_be_bytes());
    bytes.extend(payload);
    bytes
}

fn report(name: &str, bodies: &[Vec<u8>]) {
    let total: usize = bodies.iter().map(Vec::len).sum();
    let mut lengths: Vec<usize> = bodies.iter().map(Vec::len).collect();
    lengths.sort_unstable();
    let Some(median) = lengths.get(lengths.len() / 2) else {
        println!("{name}: nothing to send");
        return;
    };
    println!("{name}: {} bodies, {total} bytes, half of them up to {median} bytes", bodies.len());
    println!("  {:8} {:>6} {:>12} {:>14}", "", "ratio", "pack MB/s", "unpack MB/s");
    for mut candidate in candidates() {
        let (ratio, in_speed, out_speed) = measure(bodies, &mut candidate);
        println!("  {:8} {ratio:>6.2} {in_speed:>12.0} {out_speed:>14.0}", candidate.name);
    }
    println!("  by bodies cut to as many bytes: ratio, µs to pack one");
    for cut in CUTS_BYTES {
        let cuts: Vec<Vec<u8>> = bodies
            .iter()
            .filter_map(|body| body.get(..cut))
            .take(20_000)
            .map(<[u8]>::to_vec)
            .collect();
        if cuts.is_empty() {
            continue;
        }
        print!("  {cut:>6}");
        for mut candidate in candidates() {
            let (ratio, in_speed, _) = measure(&cuts, &mut candidate);
            print!("   {} {ratio:.2} {:.2}", candidate.name, cut as f64 / in_speed);
        }
        println!();
    }
}

/// Ratio with what does not shrink sent as it is, and MB/s of plain bytes in both directions.
fn measure(bodies: &[Vec<u8>], candidate: &mut Candidate) -> (f64, f64, f64) {
    let Candidate { pack, unpack, .. } = candidate;
    let plain: usize = bodies.iter().map(Vec::len).sum();
    let packed: Vec<Vec<u8>> = bodies.iter().map(|body| pack(body)).collect();
    let sent: usize =
        packed.iter().zip(bodies).map(|(packed, body)| packed.len().min(body.len())).sum();
    let in_speed = speed(plain, || {
        for body in bodies {
            black_box(pack(black_box(body)));
        }
    });
    let out_speed = speed(plain, || {
        for (packed, body) in packed.iter().zip(bodies) {
            black_box(unpack(black_box(packed), body.len()));
        }
    });
    (plain as f64 / sent.max(1) as f64, in_speed, out_speed)
}

/// MB/s of the best round: whatever else runs on the host makes the others slower.
fn speed(bytes: usize, mut round: impl FnMut()) -> f64 {
    let (begun, mut best) = (Instant::now(), Duration::MAX);
    while begun.elapsed() < AT_LEAST / 4 {
        let round_begun = Instant::now();
        round();
        best = best.min(round_begun.elapsed());
    }
    bytes as f64 / best.as_secs_f64() / 1e6
}
