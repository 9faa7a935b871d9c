//! Each transition of the replica protocol by itself: one failure, one answer. The simulator in
//! `simulator/` runs all of them together; this file is what the failure matrix of
//! `docs/PROTOCOL.md` points at.

use ft::prologue::LogStart;
use ft::{
    Ack, AckMode, Action, Answer, Assumptions, Backup, BackupState, Chunk, DigestMode, Divergence,
    Event, HaltReason, Happening, Heartbeat, LossCause, Message, Primary, PrimaryState, Prologue,
    Role, Settings, SoloReason, Trail, Word,
};
use proptest::prelude::*;

const VM: [u8; 16] = [7; 16];

fn prologue(ack: AckMode) -> Prologue {
    Prologue {
        assumptions: Assumptions::new("test", 1),
        vm_id: VM,
        generation: 4,
        start: LogStart::Delta,
        digest_mode: DigestMode::EveryChunk,
        settings: Settings { ack, log_limit_bytes: 1000, ..Settings::default() },
        arbiter: String::from("test"),
        machine: vec![],
        cpuid: vec![],
    }
}

fn word(word: Word) -> Event {
    Event::Message(Message::Word(word))
}

fn chunk(number: u64, records: usize) -> Chunk {
    // Power-button records: one byte each, valid anywhere.
    Chunk {
        number,
        start_moment: number - 1,
        end_moment: number,
        outputs: Trail { count: number, digest: number },
        records: vec![9; records],
    }
}

fn ack(received: u64, executed: u64, echo_ms: u64) -> Event {
    let outputs = Trail { count: executed, digest: executed };
    word(Word::Ack(Ack { received, executed, outputs, echo_ms: Some(echo_ms) }))
}

fn beat(role: Role, stamp_ms: u64, echo_ms: Option<u64>, holds: bool) -> Event {
    Event::Heartbeat(Heartbeat { vm_id: VM, generation: 4, role, stamp_ms, echo_ms, holds })
}

/// A protected primary at 0 ms that has sent chunk 1, in generation 4.
fn protected(mode: AckMode) -> Primary {
    let mut primary = Primary::new(0, VM, 4);
    primary.join(0, prologue(mode)).unwrap();
    assert!(primary.step(0, word(Word::Welcome)).contains(&Action::StartJoin));
    primary.append(0, chunk(1, 10));
    let actions = primary.step(0, word(Word::Ready));
    assert_eq!(actions, [Action::CloseGate, Word::Protect.into()], "the gate closes first");
    primary.step(0, word(Word::Following));
    assert_eq!(primary.state(), PrimaryState::Protected);
    primary
}

/// A backup at 0 ms that follows, and holds chunk 1.
fn following(mode: AckMode) -> Backup {
    let mut backup = Backup::new(0, Assumptions::new("test", 1));
    let hello = Message::Hello(Box::new(prologue(mode)));
    assert!(matches!(backup.step(0, Event::Message(hello))[..], [Action::Prepare(_)]));
    assert_eq!(backup.prepared(0, Ok(())), [Word::Welcome.into()]);
    let actions = backup.step(0, Event::Message(Message::Append(chunk(1, 10))));
    assert!(matches!(actions[..], [Action::Deliver(_), Action::Send(_)]));
    assert_eq!(backup.ready(0), [Word::Ready.into()]);
    backup.executed(0, 1, Trail { count: 1, digest: 1 });
    backup.step(0, word(Word::Protect));
    assert_eq!(backup.state(), BackupState::Following);
    backup
}

fn answer(answer: Answer) -> Event {
    Event::Arbiter { generation: 5, answer }
}

fn asks(actions: &[Action]) -> bool {
    actions.contains(&Action::AskArbiter { generation: 5 })
}

/// What comes of ticking as often as a driver should.
fn ticked(backup: &mut Backup, from_ms: u64, to_ms: u64) -> Vec<Action> {
    (from_ms..=to_ms).step_by(20).chain([to_ms]).flat_map(|now_ms| backup.tick(now_ms)).collect()
}

fn releases(actions: &[Action]) -> Option<u64> {
    actions.iter().find_map(|action| match action {
        Action::Release { through } => Some(*through),
        _ => None,
    })
}

fn goes_live(actions: &[Action]) -> bool {
    actions.contains(&Action::GoLive { generation: 5 })
}

#[test]
fn outputs_wait_for_receipt_or_for_execution_as_the_user_chose() {
    let mut primary = protected(AckMode::Received);
    assert_eq!(releases(&primary.step(10, ack(1, 0, 5))), Some(1));
    assert_eq!(releases(&primary.step(11, ack(1, 1, 5))), None, "once is enough");
    let mut primary = protected(AckMode::Verified);
    assert_eq!(releases(&primary.step(10, ack(1, 0, 5))), None);
    assert_eq!(releases(&primary.step(11, ack(1, 1, 5))), Some(1));
}

#[test]
fn without_a_fresh_echo_nothing_leaves() {
    let mut primary = protected(AckMode::Received);
    let outputs = Trail::default();
    let no_echo = word(Word::Ack(Ack { received: 1, executed: 0, outputs, echo_ms: None }));
    assert_eq!(releases(&primary.step(10, no_echo)), None);
    assert!(!primary.may_carry_out(10));
    // An echo lasts for lease_ms after the time it repeats, not after it came.
    assert_eq!(releases(&primary.step(400, beat(Role::Backup, 0, Some(100), false))), None);
    assert_eq!(releases(&primary.step(410, beat(Role::Backup, 0, Some(390), false))), Some(1));
    assert!(primary.may_carry_out(390 + 249));
    assert!(!primary.may_carry_out(390 + 250));
    // One from the future is a lie.
    primary.step(700, beat(Role::Backup, 0, Some(10_000), false));
    assert!(!primary.may_carry_out(700));
}

#[test]
fn a_primary_that_was_stopped_holds_its_outputs_until_it_hears_again() {
    let mut primary = protected(AckMode::Received);
    primary.step(10, ack(1, 1, 5));
    primary.append(20, chunk(2, 10));
    // Stopped for ten seconds; the answer had been waiting in the socket.
    let actions = primary.step(10_000, ack(2, 1, 20));
    assert_eq!(releases(&actions), None);
    assert!(matches!(actions[..], [Action::Report(Happening::Paused { paused_ms: 9_980 })]));
    let pinged = primary.tick(10_001);
    assert!(pinged.contains(&Word::Ping { stamp_ms: 10_001 }.into()), "it asks at once");
    assert_eq!(releases(&primary.step(10_002, ack(2, 2, 10_001))), Some(2));
}

#[test]
fn a_primary_that_lost_its_backup_holds_asks_and_obeys() {
    for (cause, event) in [
        (LossCause::Closed, Event::Closed),
        (LossCause::Damaged { why: "x".into() }, Event::Damaged { why: "x".into() }),
    ] {
        let mut primary = protected(AckMode::Received);
        let actions = primary.step(10, event);
        let lost = Action::Report(Happening::PeerLost(cause));
        assert_eq!(actions, [Action::Hold, lost, Action::AskArbiter { generation: 5 }]);
        assert!(!primary.may_carry_out(10));
        let mut winner = primary.clone();
        let actions = winner.step(20, answer(Answer::Won));
        assert!(actions.contains(&Action::GoSolo { generation: 5 }));
        assert!(winner.may_carry_out(99_999) && winner.generation() == 5);
        let actions = primary.step(20, answer(Answer::Lost));
        assert!(actions.contains(&Action::Halt(HaltReason::Lost { generation: 5 })));
        assert_eq!(primary.state(), PrimaryState::Halted);
        assert!(!primary.may_carry_out(20));
    }
}

#[test]
fn an_arbiter_out_of_reach_keeps_the_outputs_held() {
    let mut primary = protected(AckMode::Received);
    primary.step(10, Event::Closed);
    primary.step(20, answer(Answer::Unreachable));
    assert_eq!(primary.state(), PrimaryState::Holding);
    assert!(!asks(&primary.tick(119)));
    assert!(asks(&primary.tick(120)));
    assert!(!asks(&primary.tick(500)), "one question at a time");
    let mut backup = following(AckMode::Received);
    backup.step(10, Event::Closed);
    assert!(asks(&backup.drained(11)));
    backup.step(20, answer(Answer::Unreachable));
    assert_eq!(backup.state(), BackupState::Asking);
    assert!(asks(&backup.tick(120)));
}

#[test]
fn silence_is_a_loss_for_either_side() {
    let mut primary = protected(AckMode::Received);
    let mut backup = following(AckMode::Received);
    for now_ms in (50..500).step_by(50) {
        assert!(!asks(&primary.tick(now_ms)));
        assert!(!backup.tick(now_ms).contains(&Action::Drain));
    }
    assert!(asks(&primary.tick(500)));
    assert!(backup.tick(500).contains(&Action::Drain));
    backup.drained(501);
    assert!(goes_live(&backup.step(510, answer(Answer::Won))), "the fence is past");
}

#[test]
fn a_silent_log_is_a_loss_though_heartbeats_live() {
    let mut primary = protected(AckMode::Received);
    let mut backup = following(AckMode::Received);
    let mut lost = [None, None];
    for now_ms in (50..3000).step_by(50) {
        primary.step(now_ms, beat(Role::Backup, now_ms, Some(now_ms - 1), false));
        backup.step(now_ms, beat(Role::Primary, now_ms, None, false));
        if asks(&primary.tick(now_ms)) {
            lost[0] = Some(now_ms);
        }
        if backup.tick(now_ms).contains(&Action::Drain) {
            lost[1] = Some(now_ms);
        }
    }
    assert_eq!(lost, [Some(2000), Some(2000)]);
}

#[test]
fn a_chunk_that_is_never_acknowledged_or_executed_is_a_loss() {
    for (received, at_ms) in [(0, 2000), (1, 10_000)] {
        let mut primary = protected(AckMode::Received);
        let lost = (50..20_000).step_by(50).find(|now_ms| {
            primary.step(*now_ms, ack(received, 0, *now_ms));
            asks(&primary.tick(*now_ms))
        });
        assert_eq!(lost, Some(at_ms));
    }
}

#[test]
fn a_closed_stream_alone_does_not_prove_that_the_primary_is_silent() {
    let mut backup = following(AckMode::Received);
    backup.step(100, beat(Role::Primary, 100, None, false));
    let actions = backup.step(110, Event::Closed);
    assert!(actions.contains(&Action::Drain));
    let probe = actions.iter().find_map(|action| match action {
        Action::SendHeartbeat(heartbeat) => Some(heartbeat.echo_ms),
        _ => None,
    });
    assert_eq!(probe, Some(None), "it asks whether anybody is there, and prolongs no lease");
    assert!(asks(&backup.drained(112)));
    assert!(!goes_live(&backup.step(115, answer(Answer::Won))));
    assert_eq!(backup.state(), BackupState::Won);
    // What the primary still says does not move the fence, a timeout after it was last heard.
    assert!(!goes_live(&ticked(&mut backup, 115, 300)));
    backup.step(300, beat(Role::Primary, 299, None, false));
    assert!(!goes_live(&ticked(&mut backup, 300, 599)));
    assert!(goes_live(&backup.tick(600)));
}

#[test]
fn a_clock_that_jumps_ahead_does_not_shorten_the_fence() {
    let mut backup = following(AckMode::Received);
    backup.step(10, Event::Closed);
    backup.drained(11);
    backup.step(12, answer(Answer::Won));
    // A host that was suspended for 100 ms and believes that it was a second.
    assert!(!goes_live(&backup.tick(1_012)));
    assert!(!goes_live(&ticked(&mut backup, 1_012, 1_449)));
    assert!(goes_live(&backup.tick(1_450)), "a heartbeat's worth of the jump counts");
}

#[test]
fn a_dead_or_silenced_primary_need_not_be_waited_for() {
    for proof in [Event::PeerGone, beat(Role::Primary, 100, None, true)] {
        let mut backup = following(AckMode::Received);
        backup.step(90, beat(Role::Primary, 90, None, false));
        backup.step(100, Event::Closed);
        backup.drained(101);
        backup.step(102, answer(Answer::Won));
        assert!(goes_live(&backup.step(103, proof)));
    }
}

#[test]
fn a_refused_datagram_means_nothing_while_the_stream_lives() {
    let mut backup = following(AckMode::Received);
    assert_eq!(backup.step(10, Event::PeerGone), []);
    assert_eq!(backup.state(), BackupState::Following);
}

#[test]
fn a_primary_that_counts_the_backup_as_lost_is_believed() {
    let mut primary = protected(AckMode::Received);
    primary.step(10, Event::Closed);
    let holds = |actions: &[Action]| {
        actions.iter().any(|a| matches!(a, Action::SendHeartbeat(beat) if beat.holds))
    };
    assert!(!holds(&primary.tick(60)), "a write may still be under way");
    primary.step(70, Event::Quiet);
    assert!(holds(&primary.tick(71)));
    let mut backup = following(AckMode::Received);
    let actions = backup.step(80, beat(Role::Primary, 75, None, true));
    assert!(actions.contains(&Action::Report(Happening::PeerLost(LossCause::CountedAsLost))));
    assert!(actions.contains(&Action::CloseStream));
}

#[test]
fn a_backup_that_was_stopped_reads_its_mail_before_it_judges() {
    let mut backup = following(AckMode::Received);
    let actions = backup.tick(60_000);
    assert!(!actions.contains(&Action::Drain));
    assert!(actions.contains(&Action::Report(Happening::Paused { paused_ms: 60_000 })));
    backup.step(60_001, word(Word::Ping { stamp_ms: 1 }));
    assert!(!backup.tick(60_400).contains(&Action::Drain));
}

#[test]
fn the_arbiter_has_the_last_word_at_the_backup() {
    let mut backup = following(AckMode::Received);
    backup.step(10, Event::Closed);
    assert!(!asks(&backup.tick(11)), "the log comes first");
    assert!(asks(&backup.drained(20)));
    let actions = backup.step(30, answer(Answer::Lost));
    assert!(actions.contains(&Action::Halt(HaltReason::Lost { generation: 5 })));
    assert!(!goes_live(&backup.step(40, Event::PeerGone)));
    assert!(!goes_live(&backup.tick(10_000)));
}

#[test]
fn disabling_waits_for_the_promise() {
    let mut primary = protected(AckMode::Received);
    assert_eq!(primary.disable(10), Ok(vec![Word::Leave.into()]));
    assert_eq!(primary.state(), PrimaryState::Leaving);
    let mut unsure = primary.clone();
    assert!(asks(&unsure.step(20, Event::Closed)), "no promise: the arbiter decides");
    let mut backup = following(AckMode::Received);
    let actions = backup.step(15, word(Word::Leave));
    assert_eq!(actions[..2], [Word::Left.into(), Action::Halt(HaltReason::Left)]);
    let actions = primary.step(20, word(Word::Left));
    assert!(actions.contains(&Action::GoSolo { generation: 5 }));
    assert!(primary.disable(30).is_err());
}

#[test]
fn a_planned_failover_hands_the_machine_over() {
    let mut primary = protected(AckMode::Received);
    primary.step(5, ack(1, 1, 1));
    assert_eq!(primary.failover(10), Ok(vec![Word::Yield { chunk: 1 }.into()]));
    assert!(!primary.may_carry_out(11));
    let mut backup = following(AckMode::Received);
    assert!(backup.step(12, word(Word::Yield { chunk: 1 })).contains(&Action::Drain));
    assert!(asks(&backup.drained(13)), "the arbiter learns of it");
    let actions = backup.step(14, answer(Answer::Won));
    assert_eq!(
        actions[..2],
        [Action::GoLive { generation: 5 }, Word::Live { generation: 5 }.into()]
    );
    let mut unsure = primary.clone();
    assert!(asks(&unsure.step(15, Event::Closed)), "no confirmation: the arbiter decides");
    let actions = primary.step(15, word(Word::Live { generation: 5 }));
    assert!(actions.contains(&Action::Halt(HaltReason::HandedOver { generation: 5 })));
    assert!(protected(AckMode::Received).failover(1).is_ok());
    assert!(Primary::new(0, VM, 1).failover(1).is_err());
}

#[test]
fn a_yield_before_the_whole_log_is_refused() {
    let mut backup = following(AckMode::Received);
    let actions = backup.step(12, word(Word::Yield { chunk: 2 }));
    assert!(actions.contains(&Action::CloseStream));
}

#[test]
fn a_divergence_found_by_the_backup_ends_the_protection_loudly() {
    let divergence = Divergence::TimeAsked { moment: 3 };
    let mut backup = following(AckMode::Received);
    let actions = backup.diverged(10, divergence.clone(), false);
    assert_eq!(actions[0], Word::Diverged(divergence.clone()).into());
    assert_eq!(backup.state(), BackupState::Halted);
    let mut primary = protected(AckMode::Received);
    let actions = primary.step(11, word(Word::Diverged(divergence.clone())));
    assert!(actions.contains(&Action::Report(Happening::Diverged(divergence))));
    let (generation, why) = (5, SoloReason::Diverged);
    assert!(actions.contains(&Action::Report(Happening::Solo { generation, why })));
}

#[test]
fn a_divergence_found_by_the_primary_lets_no_diverged_output_out() {
    let mut primary = protected(AckMode::Verified);
    let outputs = Trail { count: 1, digest: 666 };
    let lie = Ack { received: 1, executed: 1, outputs, echo_ms: Some(5) };
    let actions = primary.step(10, word(Word::Ack(lie)));
    assert!(matches!(actions[0], Action::Report(Happening::Diverged(Divergence::Outputs { .. }))));
    assert_eq!(actions[1..], [Word::Leave.into()]);
    assert_eq!(releases(&primary.step(11, ack(1, 1, 10))), None, "its word counts no more");
    let actions = primary.step(12, word(Word::Left));
    assert!(actions.contains(&Action::GoSolo { generation: 5 }));
}

#[test]
fn a_log_that_piles_up_stops_the_machine_until_half_of_it_is_gone() {
    let mut primary = protected(AckMode::Received);
    assert!(!primary.append(1, chunk(2, 800)).contains(&Action::Stall));
    assert!(primary.append(2, chunk(3, 600)).contains(&Action::Stall));
    assert!(!primary.step(3, ack(3, 1, 2)).contains(&Action::Unstall), "held is not executed");
    assert!(!primary.step(4, ack(3, 1, 2)).contains(&Action::Unstall));
    assert!(primary.step(5, ack(3, 3, 2)).contains(&Action::Unstall));
}

#[test]
fn a_flood_is_refused() {
    let mut backup = following(AckMode::Received);
    let flooded = (2..40).find(|number| {
        // One serial input of a mebibyte: kind, length, bytes.
        let mut records = vec![6];
        let length = 1 << 20;
        records.extend([0x80 | (length & 0x7f) as u8, 0x80 | (length >> 7 & 0x7f) as u8]);
        records.push((length >> 14) as u8);
        records.extend(vec![0; length]);
        let chunk = Chunk { records, ..chunk(*number, 0) };
        backup.step(1, Event::Message(Message::Append(chunk))).contains(&Action::CloseStream)
    });
    assert_eq!(flooded, Some(18), "16 MiB above the limit, and not much more");
}

#[test]
fn a_join_that_fails_leaves_the_machine_as_it_was() {
    let mut primary = Primary::new(0, VM, 4);
    primary.join(0, prologue(AckMode::Received)).unwrap();
    assert!(primary.join(1, prologue(AckMode::Received)).is_err());
    let actions = primary.step(1, word(Word::Refuse { why: "no room".into() }));
    assert!(actions.contains(&Action::Report(Happening::JoinFailed { why: "no room".into() })));
    assert_eq!((primary.state(), primary.generation()), (PrimaryState::Solo, 4));
    primary.join(2, prologue(AckMode::Received)).unwrap();
    primary.step(3, word(Word::Welcome));
    assert!(!asks(&primary.step(4, Event::Closed)), "nobody could have taken over yet");
    assert_eq!(primary.state(), PrimaryState::Solo);
}

#[test]
fn a_backup_whose_join_breaks_waits_for_the_next_one() {
    let mut backup = Backup::new(0, Assumptions::new("test", 1));
    let hello = || Event::Message(Message::Hello(Box::new(prologue(AckMode::Received))));
    backup.step(0, hello());
    backup.prepared(0, Ok(()));
    assert!(backup.step(1, Event::Closed).contains(&Action::Discard));
    assert!(matches!(backup.step(2, hello())[..], [Action::Prepare(_)]));
    let actions = backup.prepared(3, Err("the disk is missing".into()));
    assert_eq!(actions[0], Word::Refuse { why: "the disk is missing".into() }.into());
    let mut other = Backup::new(0, Assumptions::new("another build", 1));
    match &other.step(4, hello())[..] {
        [Action::Send(Message::Word(Word::Refuse { why })), Action::CloseStream, ..] => {
            assert!(why.contains("another build"), "{why}");
        }
        actions => panic!("{actions:?}"),
    }
}

#[test]
fn a_backup_without_the_request_to_protect_never_goes_live() {
    let mut backup = Backup::new(0, Assumptions::new("test", 1));
    let hello = Message::Hello(Box::new(prologue(AckMode::Received)));
    backup.step(0, Event::Message(hello));
    backup.prepared(0, Ok(()));
    backup.step(1, word(Word::Protect));
    assert_eq!(backup.state(), BackupState::Waiting, "it has no state to protect yet");
}

#[test]
fn what_does_not_belong_there_closes_the_stream() {
    let wrong = [
        Event::Message(Message::Append(chunk(3, 1))),
        Event::Message(Message::Append(Chunk { start_moment: 0, ..chunk(2, 1) })),
        Event::Message(Message::Append(Chunk { records: vec![0xff], ..chunk(2, 1) })),
        Event::Message(Message::Hello(Box::new(prologue(AckMode::Received)))),
        word(Word::Left),
    ];
    for event in wrong {
        let mut backup = following(AckMode::Received);
        let actions = backup.step(1, event.clone());
        assert!(actions.contains(&Action::CloseStream), "{event:?}");
        assert!(actions.contains(&Action::Drain), "{event:?}");
    }
    for event in [ack(2, 0, 0), ack(0, 1, 0), word(Word::Protect), word(Word::Welcome), kept()] {
        let mut primary = protected(AckMode::Received);
        assert!(asks(&primary.step(1, event.clone())), "{event:?}");
    }
}

/// A standby tells of the memory it has.
fn kept() -> Event {
    word(Word::Kept { first_frame: 3, digests: vec![[1; 8]] })
}

#[test]
fn kept_pages_are_told_before_the_welcome_or_not_at_all() {
    let mut primary = Primary::new(0, VM, 4);
    primary.join(0, prologue(AckMode::Received)).unwrap();
    let noted = Action::NoteKept { first_frame: 3, digests: vec![[1; 8]] };
    assert_eq!(primary.step(1, kept()), [noted]);
    primary.step(2, word(Word::Welcome));
    assert!(primary.step(3, kept()).contains(&Action::CloseStream));
    assert_eq!(primary.state(), PrimaryState::Solo);
}

fn any_event() -> impl Strategy<Value = Event> {
    let divergence = Divergence::TimeAsked { moment: 1 };
    prop_oneof![
        4 => (0..4u64, 0..4u64, 0..500u64).prop_map(|(r, e, echo)| ack(r, e, echo)),
        4 => prop::sample::select(vec![
            Word::Welcome, Word::Refuse { why: String::new() }, Word::Ready, Word::Protect,
            Word::Following, Word::Ping { stamp_ms: 9 }, Word::Leave, Word::Left,
            Word::Yield { chunk: 1 }, Word::Live { generation: 5 }, Word::Diverged(divergence),
            Word::Kept { first_frame: 0, digests: vec![[0; 8]] },
            Word::Differs(Divergence::TimeAsked { moment: 1 }),
            Word::Touched { frames: vec![1] }, Word::Told,
        ]).prop_map(word),
        2 => (1..4u64, 0..5usize)
            .prop_map(|(number, n)| Event::Message(Message::Append(chunk(number, n)))),
        1 => Just(Event::Message(Message::Hello(Box::new(prologue(AckMode::Verified))))),
        3 => (any::<bool>(), 0..500u64, any::<Option<u64>>(), any::<bool>()).prop_map(
            |(primary, stamp_ms, echo_ms, holds)| {
                beat(if primary { Role::Primary } else { Role::Backup }, stamp_ms, echo_ms, holds)
            }
        ),
        1 => prop::sample::select(vec![
            Event::Closed, Event::PeerGone, Event::Quiet, Event::Damaged { why: String::new() },
            answer(Answer::Won), answer(Answer::Lost),
            answer(Answer::Unreachable),
        ]),
    ]
}

proptest! {
    #[test]
    fn no_order_of_events_panics_or_opens_a_held_gate(
        events in prop::collection::vec((any_event(), 0..300u64), 0..40),
        start_protected in any::<bool>(),
    ) {
        let mut primary = if start_protected {
            protected(AckMode::Received)
        } else {
            let mut primary = Primary::new(0, VM, 4);
            primary.join(0, prologue(AckMode::Verified)).unwrap();
            primary
        };
        let mut backup = following(AckMode::Verified);
        let mut now_ms = 0;
        let mut claimed = false;
        for (event, wait_ms) in events {
            now_ms += wait_ms;
            let held = primary.state() == PrimaryState::Holding;
            let won = event == answer(Answer::Won);
            let out = matches!(&event, Event::Message(Message::Word(Word::Left | Word::Diverged(_))));
            let mut actions = primary.step(now_ms, event.clone());
            actions.extend(primary.tick(now_ms));
            if held && !won && !out {
                let opened = actions.iter().any(|action| {
                    matches!(action, Action::Release { .. } | Action::GoSolo { .. })
                });
                prop_assert!(!opened, "{actions:?}");
            }
            let mut actions = backup.step(now_ms, event);
            if wait_ms % 7 == 0 {
                let divergence = Divergence::TimeAsked { moment: 2 };
                actions.extend(backup.diverged(now_ms, divergence, wait_ms % 2 == 0));
            }
            if wait_ms % 5 == 0 {
                actions.extend(backup.told(now_ms));
            }
            actions.extend(backup.tick(now_ms));
            actions.extend(backup.drained(now_ms));
            claimed |= asks(&actions);
            if goes_live(&actions) {
                prop_assert!(claimed && !backup.is_healing());
            }
        }
    }
}
