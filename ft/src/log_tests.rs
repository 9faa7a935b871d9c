//! Recorder and replay against each other: a small machine is recorded and followed.

use alloc::{boxed::Box, vec, vec::Vec};

use crate::chunk::Chunk;
use crate::codec::Encoder;
use crate::error::Divergence;
use crate::event::{Input, Output, Trail};
use crate::record::{EndReason, PAGE_SIZE, Page, REGISTERS, Record};
use crate::recorder::{CHUNK_BYTES_SOFT, DigestMode, RECORD_BYTES_MAX, Recorder};
use crate::replay::{Replay, Start, Step};

fn serial(byte: u8) -> Output {
    Output::Serial { bytes: vec![byte] }
}

fn key(byte: u8) -> Input {
    Input::Serial { bytes: vec![byte] }
}

/// Two natural moments with a time read and an input, a delta, one more natural moment.
fn small_log(mode: DigestMode) -> Vec<Chunk> {
    let mut log = Recorder::new(0, mode);
    log.register_digest(1, 11);
    log.registers(1, &[11; REGISTERS]);
    log.input(1, &Input::TimeRead { now_ns: 100 }).unwrap();
    assert_eq!(log.output(&serial(1)).sequence, 1);
    log.input(1, &key(1)).unwrap();
    let mut chunks = log.cut(1);
    log.input(1, &key(2)).unwrap();
    log.register_digest(2, 22);
    log.registers(2, &[22; REGISTERS]);
    chunks.extend(log.cut(2));
    log.pages(2, [(7, Page::Zero), (8, Page::from_bytes(&[1; PAGE_SIZE]))]);
    log.pages(2, [(7, Page::from_bytes(&[2; PAGE_SIZE]))]);
    log.delta(3, vec![3], None).unwrap();
    log.released(3, 1);
    log.input(3, &Input::Tick { now_ns: 200 }).unwrap();
    log.register_digest(4, 44);
    log.registers(4, &[44; REGISTERS]);
    log.devices(4, vec![4]).unwrap();
    log.state_digest(4, 5, None);
    log.end(4, EndReason::PowerOff);
    chunks.extend(log.cut(4));
    chunks
}

/// Follows `small_log`, with `registers` in place of the recorded ones; what it saw, in words.
fn follow(chunks: &[Chunk], registers: [u64; 3]) -> Result<Vec<&'static str>, Divergence> {
    let mut replay = Replay::new(Start::At(0), 100);
    for chunk in chunks {
        replay.push(chunk).unwrap();
    }
    let mut registers = registers.into_iter();
    let (mut moment, mut seen) = (0, vec![]);
    loop {
        seen.push(match replay.next_step(moment)? {
            Step::Run => {
                moment += 1;
                let value = registers.next().unwrap();
                replay.register_digest(moment, value);
                replay.registers(moment, &[value; REGISTERS]);
                if moment == 1 {
                    assert_eq!(replay.take_time(moment)?, 100);
                    replay.output(&serial(1));
                }
                "run"
            }
            Step::Input(Input::Serial { .. }) => "key",
            Step::Input(_) => "tick",
            Step::Pages(_) => unreachable!("only while joining"),
            Step::Delta { moment: new, vcpu, machine, pages } => {
                assert_eq!((moment, new, vcpu, machine), (2, 3, vec![3], None));
                assert_eq!(pages.get(&7), Some(&Page::from_bytes(&[2; PAGE_SIZE])));
                moment = new;
                "delta"
            }
            Step::Devices { state } => {
                assert_eq!((moment, state), (4, vec![4]));
                "devices"
            }
            Step::StateDigest { devices, .. } => {
                Replay::check_state(moment, (devices, None), (5, Some(1)))?;
                "state"
            }
            Step::Released { output } => {
                assert_eq!(output, 1);
                "released"
            }
            Step::ChunkEnd { .. } => "chunk",
            Step::Wait => return Ok(seen),
            Step::End(reason) => {
                assert_eq!((reason, replay.take_over()), (EndReason::PowerOff, 200));
                seen.push("end");
                return Ok(seen);
            }
        });
    }
}

#[test]
fn a_replay_sees_what_was_recorded_in_the_same_order() {
    let modes =
        [DigestMode::EveryMoment, DigestMode::EveryChunk, DigestMode::Off, DigestMode::Registers];
    for mode in modes {
        let seen = follow(&small_log(mode), [11, 22, 44]).unwrap();
        let expected = [
            "run", "key", "chunk", "key", "run", "chunk", "delta", "released", "tick", "run",
            "devices", "state", "chunk", "end",
        ];
        assert_eq!(seen, expected);
    }
}

#[test]
fn different_registers_are_a_divergence_where_digests_are_kept() {
    for (mode, registers, at) in [
        (DigestMode::EveryMoment, [10, 22, 44], 1),
        (DigestMode::EveryMoment, [11, 22, 45], 4),
        (DigestMode::EveryChunk, [11, 20, 44], 2),
    ] {
        match follow(&small_log(mode), registers) {
            Err(Divergence::Registers { moment, .. }) => assert_eq!(moment, at),
            other => panic!("{other:?}"),
        }
    }
    assert!(follow(&small_log(DigestMode::Off), [0, 0, 0]).is_ok());
}

#[test]
fn where_registers_are_kept_a_divergence_tells_both_sides_at_the_moment_it_happens() {
    for (registers, at, recorded) in
        [([10, 22, 44], 1, 11), ([11, 20, 44], 2, 22), ([11, 22, 45], 4, 44)]
    {
        let divergence = follow(&small_log(DigestMode::Registers), registers).unwrap_err();
        let replayed = registers.into_iter().find(|value| ![11, 22, 44].contains(value)).unwrap();
        let expected = Divergence::RegisterValues {
            moment: at,
            recorded: Box::new([recorded; REGISTERS]),
            replayed: Box::new([replayed; REGISTERS]),
        };
        assert_eq!(divergence, expected);
    }
}

#[test]
fn an_interval_of_unknown_end_is_not_run() {
    let chunks = small_log(DigestMode::EveryChunk);
    let mut replay = Replay::new(Start::At(0), 100);
    assert_eq!(replay.next_step(0), Ok(Step::Wait));
    replay.push(&chunks[0]).unwrap();
    replay.push(&chunks[1]).unwrap();
    assert_eq!(replay.next_step(0), Ok(Step::Run));
    replay.register_digest(1, 11);
    replay.take_time(1).unwrap();
    replay.output(&serial(1));
    while replay.next_step(1).unwrap() != Step::Run {}
    replay.register_digest(2, 22);
    assert_eq!(
        replay.next_step(2).unwrap(),
        Step::ChunkEnd { number: 2, outputs: replay.outputs() }
    );
    // Whether the interval after moment 2 ends by itself is for the next chunk to say.
    assert_eq!(replay.next_step(2), Ok(Step::Wait));
    assert!(replay.is_drained());
}

#[test]
fn time_reads_and_outputs_that_differ_are_divergences() {
    let chunks = small_log(DigestMode::Off);
    let start = || {
        let mut replay = Replay::new(Start::At(0), 100);
        replay.push(&chunks[0]).unwrap();
        assert_eq!(replay.next_step(0), Ok(Step::Run));
        replay.register_digest(1, 11);
        replay
    };
    let mut replay = start();
    assert_eq!(replay.next_step(1), Err(Divergence::TimeNotAsked { moment: 1 }));
    let mut replay = start();
    replay.take_time(1).unwrap();
    assert_eq!(replay.take_time(1), Err(Divergence::TimeAsked { moment: 1 }));
    let mut replay = start();
    replay.take_time(1).unwrap();
    replay.output(&serial(2));
    assert_eq!(replay.next_step(1), Ok(Step::Input(key(1))));
    assert!(matches!(replay.next_step(1), Err(Divergence::Outputs { moment: 1, .. })));
}

#[test]
fn a_half_received_delta_is_dropped_at_takeover() {
    let mut log = Recorder::new(5, DigestMode::EveryChunk);
    log.pages(5, [(1, Page::Zero)]);
    let mut replay = Replay::new(Start::At(5), 100);
    for chunk in log.cut(5) {
        replay.push(&chunk).unwrap();
    }
    assert!(matches!(replay.next_step(5), Ok(Step::ChunkEnd { .. })));
    assert_eq!(replay.next_step(5), Ok(Step::Wait));
    replay.take_over();
    log.delta(6, vec![], Some(vec![])).unwrap();
    for chunk in log.cut(6) {
        replay.push(&chunk).unwrap();
    }
    match replay.next_step(5) {
        Ok(Step::Delta { pages, .. }) => assert!(pages.is_empty()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_join_starts_blank_and_takes_pages_at_once() {
    let mut log = Recorder::new(50, DigestMode::EveryChunk);
    log.pages(50, (0..600).map(|number| (number, Page::Zero)));
    log.delta(51, vec![1], Some(vec![2])).unwrap();
    log.register_digest(52, 9);
    let mut replay = Replay::new(Start::Blank, 1000);
    for chunk in log.cut(52) {
        replay.push(&chunk).unwrap();
    }
    let mut pages_seen = 0;
    let moment = loop {
        match replay.next_step(0).unwrap() {
            Step::Pages(pages) => pages_seen += pages.len(),
            Step::Delta { moment, machine, .. } => break (moment, machine).0,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!((moment, pages_seen), (51, 600));
    assert_eq!(replay.next_step(51), Ok(Step::Run));
}

#[test]
fn a_log_that_grows_is_closed_into_chunks_that_fit_a_frame() {
    let mut log = Recorder::new(0, DigestMode::EveryChunk);
    let packet = |bytes| Input::Packet { device: 0, bytes: vec![1; bytes] };
    for moment in 1..=200 {
        log.register_digest(moment, moment);
        log.input(moment, &packet(60_000)).unwrap();
        if moment % 50 == 0 {
            log.pages(moment, (0..600).map(|n| (n, Page::from_bytes(&[1; PAGE_SIZE]))));
        }
    }
    log.input(200, &packet(RECORD_BYTES_MAX)).unwrap();
    assert!(log.input(200, &packet(RECORD_BYTES_MAX + 1)).is_err());
    let chunks = log.cut(200);
    assert!(chunks.len() > 12);
    let mut replay = Replay::new(Start::At(0), 1000);
    for chunk in &chunks {
        assert!(chunk.records.len() <= CHUNK_BYTES_SOFT + RECORD_BYTES_MAX);
        assert_eq!(Chunk::from_body(chunk.start_moment, &chunk.to_body()).as_ref(), Ok(chunk));
        replay.push(chunk).unwrap();
    }
    let (mut moment, mut packets) = (0, 0);
    loop {
        match replay.next_step(moment).unwrap() {
            Step::Run => {
                moment += 1;
                replay.register_digest(moment, moment);
            }
            Step::Input(_) => packets += 1,
            Step::ChunkEnd { .. } => {}
            Step::Wait => break,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((moment, packets), (200, 201));
}

#[test]
fn many_small_records_are_closed_into_chunks_that_can_be_decoded() {
    let mut log = Recorder::new(0, DigestMode::Off);
    for moment in 1..=300_000 {
        log.register_digest(moment, 0);
        log.input(moment, &Input::TimeRead { now_ns: moment }).unwrap();
    }
    let chunks = log.cut(300_000);
    assert!(chunks.len() > 1);
    assert!(chunks.iter().all(|chunk| chunk.decode().is_ok()));
}

#[test]
fn chunks_in_the_wrong_order_are_refused() {
    let chunks = small_log(DigestMode::Off);
    let mut replay = Replay::new(Start::At(0), 100);
    assert!(replay.push(&chunks[1]).is_err());
    replay.push(&chunks[0]).unwrap();
    assert!(replay.push(&chunks[0]).is_err());
    let late = Chunk { start_moment: 9, end_moment: 9, ..chunks[1].clone() };
    assert!(replay.push(&late).is_err());
}

#[test]
fn records_out_of_place_make_a_chunk_unreadable() {
    let mut log = Recorder::new(0, DigestMode::Off);
    log.register_digest(1, 0);
    log.input(1, &key(1)).unwrap();
    let chunk = log.cut(1).remove(0);
    assert!(Chunk { end_moment: 0, ..chunk.clone() }.decode().is_err());
    let mut records = vec![];
    let mut encoder = crate::Encoder::new(0);
    let outputs = crate::Trail::default();
    let delta = crate::Record::Delta { vcpu: vec![], machine: None, outputs };
    encoder.append(1, &crate::Record::Input(key(1)), &mut records);
    encoder.append(1, &delta, &mut records);
    assert!(Chunk { records, ..chunk }.decode().is_err());
}

#[test]
fn a_page_that_is_shipped_again_costs_what_changed_in_it() {
    let mut log = Recorder::new(0, DigestMode::Off);
    let mut page = [7; PAGE_SIZE];
    log.pages(0, [(1, Page::from_bytes(&page))]);
    log.delta(1, vec![1], Some(vec![2])).unwrap();
    let mut chunks = log.cut(1);
    for round in 1..20_u8 {
        page[usize::from(round) * 100] = round;
        let moment = u64::from(round);
        log.pages(moment, [(1, Page::from_bytes(&page))]);
        log.delta(moment + 1, vec![round], Some(vec![2]).filter(|_| round == 10)).unwrap();
        chunks.extend(log.cut(moment + 1));
        let bytes = chunks.last().unwrap().records.len();
        // The first copy since the first state is whole.
        assert_eq!(bytes > 100, round == 1, "round {round}: {bytes} bytes");
    }
    let mut replay = Replay::new(Start::Blank, 16);
    chunks.iter().for_each(|chunk| replay.push(chunk).unwrap());
    let (mut moment, mut last) = (0, None);
    loop {
        match replay.next_step(moment).unwrap() {
            Step::Delta { moment: next, pages, .. } => {
                (moment, last) = (next, pages.get(&1).cloned());
            }
            Step::Wait => break,
            _ => {}
        }
    }
    assert_eq!((moment, last), (20, Some(Page::from_bytes(&page))));
}

/// A machine that nobody follows from exit to exit: checkpoint after checkpoint, with large models.
#[test]
fn checkpoints_bring_everything_and_nothing_is_run() {
    let mut log = Recorder::new(4, DigestMode::EveryChunk);
    let (mut outputs, mut chunks) = (Trail::default(), vec![]);
    log.delta(5, vec![5], Some(vec![5])).unwrap();
    for moment in 6..=8_u64 {
        outputs.note(&serial(moment as u8));
        log.pages(moment - 1, [(1, Page::from_bytes(&[moment as u8; PAGE_SIZE]))]);
        // What was cut before the checkpoint leads to none of its outputs.
        chunks.extend(log.cut(moment - 1));
        let models = vec![moment as u8; 5 << 20];
        log.checkpoint(moment, vec![moment as u8], models, outputs).unwrap();
        log.input(moment, &Input::Tick { now_ns: moment * 100 }).unwrap();
        chunks.extend(log.cut(moment));
    }
    assert!(chunks.iter().all(|chunk| chunk.records.len() < 3 << 20));
    let mut replay = Replay::new(Start::Blank, 16);
    chunks.iter().for_each(|chunk| replay.push(chunk).unwrap());
    let (mut moment, mut ticks) = (0, 0);
    loop {
        match replay.next_step(moment).unwrap() {
            Step::Delta { moment: next, machine, pages, .. } => {
                moment = next;
                let models = machine.unwrap();
                assert!(models.len() == 1 || models == vec![next as u8; 5 << 20]);
                let page = Page::from_bytes(&[next as u8; PAGE_SIZE]);
                assert!(next == 5 || pages.get(&1) == Some(&page));
            }
            Step::Input(Input::Tick { .. }) => ticks += 1,
            Step::ChunkEnd { .. } => {}
            Step::Wait => break,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((moment, ticks, replay.outputs(), replay.take_over()), (8, 3, outputs, 800));
}

#[test]
fn parts_of_models_that_no_delta_ends_are_a_divergence() {
    let mut log = Recorder::new(0, DigestMode::Off);
    log.delta(1, vec![], Some(vec![])).unwrap();
    let mut chunks = log.cut(1);
    let mut records = vec![];
    let mut encoder = Encoder::new(1);
    let outputs = Trail::default();
    encoder.append(1, &Record::Models { part: vec![1] }, &mut records);
    encoder.append(2, &Record::Delta { vcpu: vec![], machine: None, outputs }, &mut records);
    chunks.push(Chunk { number: 2, start_moment: 1, end_moment: 2, outputs, records });
    let mut replay = Replay::new(Start::Blank, 16);
    chunks.iter().for_each(|chunk| replay.push(chunk).unwrap());
    assert!(matches!(replay.next_step(0), Ok(Step::Delta { .. })));
    assert!(matches!(replay.next_step(1), Ok(Step::ChunkEnd { .. })));
    assert!(matches!(replay.next_step(1), Err(Divergence::Log { .. })));
}

#[test]
fn a_patch_of_a_page_that_was_never_there_is_a_divergence() {
    let mut records = vec![];
    let patches = vec![(5, vec![0, 1, 0])];
    Encoder::new(0).append(0, &Record::Patches { patches }, &mut records);
    let outputs = Trail::default();
    let chunk = Chunk { number: 1, start_moment: 0, end_moment: 0, outputs, records };
    let mut replay = Replay::new(Start::At(0), 16);
    replay.push(&chunk).unwrap();
    assert!(matches!(replay.next_step(0), Err(Divergence::Log { .. })));
}

#[test]
fn a_page_may_be_patched_beside_pages_that_take_its_place_in_memory() {
    let mut log = Recorder::new(0, DigestMode::Off);
    log.delta(1, vec![1], Some(vec![2])).unwrap();
    let page = |fill: u8, first: u8| {
        let mut page = [fill; PAGE_SIZE];
        page[0] = first;
        Page::from_bytes(&page)
    };
    // As many as are remembered; then the oldest is patched, beside as many new ones as fit.
    log.pages(1, (0..4096).map(|frame| (frame, page(1, 1))));
    log.delta(2, vec![1], None).unwrap();
    let news = (5000..5200).map(|frame| (frame, page(3, 3)));
    log.pages(2, [(0, page(1, 2))].into_iter().chain(news));
    log.delta(3, vec![1], None).unwrap();
    let mut replay = Replay::new(Start::Blank, 8192);
    log.cut(3).iter().for_each(|chunk| replay.push(chunk).unwrap());
    let (mut moment, mut patched) = (0, None);
    loop {
        match replay.next_step(moment).unwrap() {
            Step::Delta { moment: next, pages, .. } => {
                (moment, patched) = (next, pages.get(&0).cloned());
            }
            Step::Wait => break,
            _ => {}
        }
    }
    assert_eq!((moment, patched), (3, Some(page(1, 2))));
}

/// A page of which one byte is `value`.
fn marked(value: u8) -> Page {
    let mut page = [7; PAGE_SIZE];
    page[100] = value;
    Page::from_bytes(&page)
}

/// A machine at moment 1 with page 1, then two moments of which the second holds a time read, and
/// what a follower skips: pages, patches, inputs, a plain delta, and one that a reset made.
fn log_to_skip() -> (Recorder, Vec<Vec<Chunk>>) {
    let mut log = Recorder::new(0, DigestMode::EveryChunk);
    log.pages(0, [(1, marked(0))]);
    log.delta(1, vec![1], Some(vec![1])).unwrap();
    let mut parts = vec![log.cut(1)];
    log.register_digest(2, 22);
    log.output(&serial(2));
    parts.push(log.cut(2));
    log.register_digest(3, 33);
    log.input(3, &Input::TimeRead { now_ns: 300 }).unwrap();
    log.input(3, &key(3)).unwrap();
    log.pages(3, [(1, marked(1)), (2, marked(2))]);
    log.delta(4, vec![4], None).unwrap();
    log.state_digest(4, 9, Some(9));
    parts.push(log.cut(4));
    log.pages(4, [(1, marked(3))]);
    log.delta(5, vec![5], Some(vec![5; 3 << 20])).unwrap();
    log.output(&serial(5));
    log.released(5, 1);
    log.register_digest(6, 66);
    parts.push(log.cut(6));
    (log, parts)
}

/// A follower of [`log_to_skip`] that has executed the first chunk and found itself wrong at moment 2.
fn gone_astray(parts: &[Vec<Chunk>]) -> Replay {
    let mut replay = Replay::new(Start::Blank, 16);
    parts.concat().iter().for_each(|chunk| replay.push(chunk).unwrap());
    assert!(matches!(replay.next_step(0), Ok(Step::Pages(_))));
    assert!(matches!(replay.next_step(0), Ok(Step::Delta { moment: 1, .. })));
    assert!(matches!(replay.next_step(1), Ok(Step::ChunkEnd { number: 1, .. })));
    assert_eq!(replay.next_step(1), Ok(Step::Run));
    replay.register_digest(2, 23);
    replay.output(&serial(99));
    assert!(matches!(replay.next_step(2), Err(Divergence::Registers { moment: 2, .. })));
    replay
}

#[test]
fn a_copy_that_differs_skips_the_log_to_the_delta_that_heals_it() {
    let (mut log, parts) = log_to_skip();
    let mut replay = gone_astray(&parts);
    replay.heal();
    // The machine's own count of moments may be anything by now.
    assert_eq!(replay.next_step(2), Ok(Step::Released { output: 1 }));
    for _ in 0..3 {
        assert_eq!(replay.next_step(7), Ok(Step::Wait), "no state that heals is there");
    }
    assert!(replay.is_healing() && replay.is_drained());
    // A page of all those that came is the machine's alone; one was touched at the copy.
    log.pages(6, [(3, marked(4))]);
    log.heal(7, vec![7], vec![7; 3 << 20]).unwrap();
    let outputs = log.outputs();
    let healing = log.cut(7);
    healing.iter().for_each(|chunk| replay.push(chunk).unwrap());
    let Ok(Step::Delta { moment: 7, vcpu, machine, pages }) = replay.next_step(2) else { panic!() };
    assert_eq!((vcpu, machine), (vec![7], Some(vec![7; 3 << 20])));
    let wanted = [(1, marked(3)), (2, marked(2)), (3, marked(4))];
    assert_eq!(pages.into_iter().collect::<Vec<_>>(), wanted);
    assert!(!replay.is_healing());
    // Nothing of what was skipped is told of as executed, and everything counts again.
    let number = healing.last().unwrap().number;
    assert_eq!(replay.next_step(7), Ok(Step::ChunkEnd { number, outputs }));
    assert_eq!(replay.next_step(7), Ok(Step::Wait));
    log.register_digest(8, 88);
    log.output(&serial(8));
    log.pages(8, [(1, marked(5)), (2, marked(6)), (3, marked(7))]);
    log.delta(9, vec![9], None).unwrap();
    log.cut(9).iter().for_each(|chunk| replay.push(chunk).unwrap());
    assert_eq!(replay.next_step(7), Ok(Step::Run));
    let mut wrong = replay.clone();
    wrong.register_digest(8, 89);
    wrong.output(&serial(8));
    assert!(matches!(wrong.next_step(8), Ok(Step::Delta { .. })));
    assert!(matches!(wrong.next_step(9), Err(Divergence::Registers { moment: 9, .. })));
    replay.register_digest(8, 88);
    assert_eq!(replay.output(&serial(8)), 3, "the count goes on where the machine's is");
    let Ok(Step::Delta { pages, .. }) = replay.next_step(8) else { panic!() };
    let wanted = [(1, marked(5)), (2, marked(6)), (3, marked(7))];
    assert_eq!(pages.into_iter().collect::<Vec<_>>(), wanted, "patches are of the same pages");
    assert!(matches!(replay.next_step(9), Ok(Step::ChunkEnd { .. })));
    assert_eq!(replay.take_over(), 300, "the time goes on from what was skipped");
}

#[test]
fn a_delta_of_a_reset_heals_nobody_and_the_one_that_does_is_nothing_special_to_the_sound() {
    let (mut log, mut parts) = log_to_skip();
    let mut replay = gone_astray(&parts);
    replay.heal();
    while replay.next_step(2).unwrap() != Step::Wait {}
    assert!(replay.is_healing());
    log.heal(7, vec![7], vec![7]).unwrap();
    log.end(7, EndReason::Failover);
    parts.push(log.cut(7));
    // A follower that is at moment 6 and sound.
    let mut sound = Replay::new(Start::At(6), 16);
    let chunk = Chunk { number: 1, ..parts[4][0].clone() };
    sound.push(&chunk).unwrap();
    assert!(matches!(sound.next_step(6), Ok(Step::Delta { moment: 7, .. })));
}

#[test]
fn a_log_that_ends_before_the_delta_that_heals_leaves_the_copy_unhealed() {
    let (mut log, mut parts) = log_to_skip();
    log.end(6, EndReason::Failover);
    parts.push(log.cut(6));
    let mut replay = gone_astray(&parts);
    replay.heal();
    while !matches!(replay.next_step(2), Ok(Step::End(EndReason::Failover))) {}
    assert!(replay.is_healing());
}
