//! Tests of `view.rs`: the whole view of a pair as text, and the odd cases.

use super::super::super::{FtProtection, JoinInfo, LogTraffic, OutputDelayUs};
use super::*;

fn event(what: &str, when_s: u64, now_s: u64) -> FtEvent {
    FtEvent {
        what: what.into(),
        when_unix_ms: when_s * 1000,
        ago_ms: (now_s - when_s) * 1000,
        moment: None,
    }
}

fn traffic_of(packet: u64, tick: u64) -> LogTraffic {
    let by_kind = |scale| [("packet".into(), packet * scale), ("tick".into(), tick * scale)].into();
    LogTraffic {
        bytes: (packet + tick) * 60,
        bytes_per_second: packet + tick,
        bytes_by_kind: by_kind(60),
        bytes_per_second_by_kind: by_kind(1),
    }
}

fn primary() -> Side {
    let info = FtInfo {
        state: FtState::Protected,
        role: Some(FtRole::Primary),
        generation: 3,
        mode: FtProtection::Replay,
        peer: Some("10.0.0.2:7000".into()),
        moment: 1_234_567,
        acknowledged_moment: 1_234_560,
        lag_ms: 12,
        log: traffic_of(1_200_000, 34_000),
        outputs_held: 2,
        output_delay_us: OutputDelayUs { p50: 412, p99: 1_390 },
        deltas: 15,
        delta_pages: 3_400,
        join: Some(JoinInfo { elapsed_ms: 4_210, pause_us: Some(18_300), ..JoinInfo::default() }),
        events: vec![
            event("joining a backup", 79_995, 80_010),
            event("protected in generation 3", 80_000, 80_010),
        ],
        ..FtInfo::default()
    };
    Side { label: 'A', socket: "/run/a.sock".into(), info: Some(info), gone: None }
}

fn backup() -> Side {
    let info = FtInfo {
        state: FtState::Following,
        role: Some(FtRole::Backup),
        generation: 3,
        mode: FtProtection::Replay,
        peer: Some("10.0.0.1:43210".into()),
        moment: 1_234_550,
        acknowledged_moment: 1_234_560,
        lag_ms: 3,
        log: traffic_of(1_190_000, 33_000),
        outputs_held: 14,
        deltas: 15,
        delta_pages: 3_400,
        events: vec![event("Waiting for a primary at 10.0.0.2:7000", 79_000, 80_009)],
        ..FtInfo::default()
    };
    Side {
        label: 'B',
        socket: "/run/vms/a/long/way/down/b.sock".into(),
        info: Some(info),
        gone: None,
    }
}

fn text(sides: &[Side], columns: usize, rows: Option<usize>) -> String {
    let whole = |line: Line| line.into_iter().map(|(text, _)| text).collect::<String>();
    lines(sides, columns, rows)
        .into_iter()
        .map(|line| {
            let line = whole(line);
            assert_eq!(line.chars().count(), columns, "{line:?}");
            line.trim_end().to_owned() + "\n"
        })
        .collect()
}

fn tone_of_text(sides: &[Side], wanted: &str) -> Tone {
    let all: Vec<_> = lines(sides, 80, None).into_iter().flatten().collect();
    all.iter().find(|(text, _)| text.trim() == wanted).unwrap().1
}

#[test]
fn a_pair_fits_on_a_terminal_of_24_lines_of_80() {
    let shown = text(&[primary(), backup()], 80, Some(23));
    assert_eq!(
        shown,
        "\
PROTECTED. Either host may die.
              A /run/a.sock                    B …un/vms/a/long/way/down/b.sock
state         primary protected                backup following
peer          10.0.0.2:7000                    10.0.0.1:43210
generation    3                                3
mode          replay, ack received             replay, ack received
moment        1 234 567                        1 234 550
acknowledged  1 234 560                        1 234 560
lag           12 ms                            3 ms
output delay  p50 412 µs, p99 1.3 ms
outputs held  2                                14
deltas        15, 3 400 pages                  15, 3 400 pages
divergences   0                                0
join          took 4.2 s, stood still 18 ms
log           1.2 MB/s, 74 MB in all           1.2 MB/s, 73 MB in all
  packet      1.2 MB/s, 72 MB in all           1.1 MB/s, 71 MB in all
  tick        34 kB/s, 2.0 MB in all           33 kB/s, 1.9 MB in all

21:56:40 16 min 50 s B  Waiting for a primary at 10.0.0.2:7000
22:13:15        15 s A  joining a backup
22:13:20        10 s A  protected in generation 3


"
    );
}

#[test]
fn where_there_is_no_room_the_newest_events_are_shown() {
    let shown = text(&[primary(), backup()], 80, Some(20));
    assert_eq!(shown.lines().count(), 20);
    assert!(
        shown.ends_with("joining a backup\n22:13:20        10 s A  protected in generation 3\n")
    );
    assert!(!shown.contains("Waiting for"));
    // A terminal that is smaller than anything is no reason to panic.
    for rows in 0..5 {
        assert_eq!(text(&[primary()], 40, Some(rows)).lines().count(), rows);
    }
}

#[test]
fn a_side_that_is_gone_is_told_of_and_its_numbers_are_not_shown() {
    let mut gone = primary();
    gone.gone = Some(("No VMM can be reached at /run/a.sock: no such file.".into(), 65_000));
    let shown = text(&[gone, backup()], 80, None);
    assert!(
        shown.contains("\nA: No VMM can be reached at /run/a.sock: no such file.\n"),
        "{shown}"
    );
    assert!(shown.contains("state         gone for 1 min 5 s               backup following\n"));
    assert!(!shown.contains("412 µs"), "{shown}");
    assert!(shown.contains("protected in generation 3"), "what it told is not forgotten: {shown}");
    assert!(shown.starts_with("FOLLOWING."), "{shown}");
}

#[test]
fn the_first_line_says_what_matters_most() {
    let with = |states: &[FtState]| {
        let sides: Vec<Side> = states
            .iter()
            .map(|state| {
                let info = FtInfo { state: *state, ..FtInfo::default() };
                Side { label: 'A', info: Some(info), ..Side::default() }
            })
            .collect();
        text(&sides, 100, None).split('.').next().unwrap().to_owned()
    };
    use FtState::{Following, Holding, Joining, Live, Off, Protected, Solo, TakingOver, Waiting};
    for (states, first) in [
        (&[Protected, Following][..], "PROTECTED"),
        (&[Protected, TakingOver], "TAKING OVER"),
        (&[Holding, Following], "HOLDING"),
        (&[Joining, Joining], "JOINING"),
        (&[Solo, Waiting], "UNPROTECTED"),
        (&[Live], "UNPROTECTED"),
        (&[Off], "UNPROTECTED"),
        (&[Waiting], "WAITING"),
    ] {
        assert_eq!(with(states), first, "{states:?}");
    }
    let gone = Side { gone: Some(("It left.".into(), 1)), ..primary() };
    assert!(text(&[gone], 100, None).starts_with("Nobody answers."));
    assert!(text(&[Side::default()], 100, None).starts_with("Asking …"));
}

#[test]
fn what_is_to_be_acted_on_is_marked() {
    let mut sides = [primary(), backup()];
    assert_eq!(tone_of_text(&sides, "PROTECTED. Either host may die."), Tone::Good);
    assert_eq!(tone_of_text(&sides, "primary protected"), Tone::Good);
    for side in &mut sides {
        let info = side.info.as_mut().unwrap();
        (info.state, info.divergences) = (FtState::Live, 7);
    }
    assert_eq!(tone_of_text(&sides, "primary live"), Tone::Bad);
    assert_eq!(tone_of_text(&sides, "7"), Tone::Bad);
}

#[test]
fn long_sentences_are_broken_and_orders_to_the_terminal_are_not_passed_on() {
    let mut side = primary();
    let what = format!("joining failed: \u{1b}[2J {} end", "word ".repeat(30));
    side.info.as_mut().unwrap().events = vec![event(&what, 80_000, 80_001)];
    let shown = text(&[side.clone()], 60, None);
    assert!(!shown.contains('\u{1b}'), "{shown:?}");
    let last = shown.lines().last().unwrap();
    assert!(last.starts_with("                        word") && last.ends_with(" end"), "{shown}");
    let event = &side.info.unwrap().events[0];
    assert!(!event_text('A', event).contains('\u{1b}'));
    assert_eq!(wrapped("abcdefgh", 3).collect::<Vec<_>>(), ["abc", "def", "gh "]);
}

#[test]
fn a_side_in_one_line_for_a_log() {
    assert_eq!(
        summary(&primary()),
        "A primary protected generation 3 moment 1234567 lag 12 ms delay p50 412 us p99 1390 us \
         held 2 log 1234000 B/s deltas 15 divergences 0"
    );
    let gone = Some(("It\nleft.".into(), 5));
    assert_eq!(summary(&Side { gone, ..primary() }), "A gone: It left.");
    assert_eq!(summary(&Side { label: 'B', ..Side::default() }), "B not asked yet");
}
