//! A machine that moves for good: the backup takes it over by the word `Yield` alone, and whoever
//! cannot know where it is goes on by nobody's guess.

mod common;

use common::{VM, asks, word};
use ft::{
    Action, Answer, Backup, BackupState, Divergence, Event, HaltReason, Happening, Heartbeat,
    LossCause, Primary, PrimaryState, Prologue, Purpose, Role, Settings, SoloReason, Word,
};
use proptest::prelude::*;

const BY_WORD: Purpose = Purpose::Move { arbiter: false };
const ARBITRATED: Purpose = Purpose::Move { arbiter: true };

fn prologue(purpose: Purpose) -> Prologue {
    let settings = Settings { purpose, ..Settings::default() };
    Prologue { arbiter: String::new(), ..common::prologue(4, settings) }
}

/// Who has sent chunk 1 at 0 ms to a backup that is complete.
fn protecting(purpose: Purpose) -> Primary {
    let mut primary = Primary::new(0, VM, 4);
    common::nearly_protect(&mut primary, 0, prologue(purpose));
    primary
}

fn protected(purpose: Purpose) -> Primary {
    let mut primary = Primary::new(0, VM, 4);
    common::protect(&mut primary, 0, prologue(purpose));
    primary
}

fn yielding(purpose: Purpose) -> Primary {
    let mut primary = protected(purpose);
    assert_eq!(primary.failover(5), Ok(vec![Word::Yield { chunk: 1 }.into()]));
    primary
}

fn following(purpose: Purpose) -> Backup {
    common::following(prologue(purpose))
}

fn goes_solo(actions: &[Action], generation: u64) -> bool {
    actions.contains(&Action::GoSolo { generation })
}

#[test]
fn a_receiver_that_was_not_told_to_go_on_never_does() {
    let silence: Vec<Event> = vec![];
    let holds = Event::Heartbeat(Heartbeat {
        vm_id: VM,
        generation: 4,
        role: Role::Primary,
        stamp_ms: 1,
        echo_ms: None,
        holds: true,
    });
    let damaged = Event::Damaged { why: "x".into() };
    for events in [vec![Event::Closed], vec![damaged], vec![holds], silence] {
        for purpose in [BY_WORD, ARBITRATED] {
            let mut backup = following(purpose);
            let mut actions: Vec<Action> =
                events.iter().flat_map(|event| backup.step(5, event.clone())).collect();
            actions.extend((0..200).flat_map(|turn| backup.tick(10 + turn * 20)));
            assert_eq!(backup.state(), BackupState::Waiting, "{events:?}");
            assert!(actions.contains(&Action::Discard) && asks(&actions).is_none(), "{actions:?}");
            assert!(backup.drained(5_000).is_empty());
        }
    }
}

#[test]
fn a_sender_that_has_not_yielded_goes_on_at_once_in_its_own_generation() {
    let leaving = |purpose| {
        let mut primary = protected(purpose);
        primary.disable(3).unwrap();
        primary
    };
    for purpose in [BY_WORD, ARBITRATED] {
        for mut primary in [protecting(purpose), protected(purpose), leaving(purpose)] {
            let actions = primary.step(10, Event::Closed);
            assert!(goes_solo(&actions, 4) && asks(&actions).is_none(), "{actions:?}");
            let (generation, why) = (4, SoloReason::NotJoined);
            assert!(actions.contains(&Action::Report(Happening::Solo { generation, why })));
            assert!(primary.may_carry_out(11));
        }
    }
}

#[test]
fn a_yielded_machine_goes_live_at_once_and_asks_nobody() {
    let mut backup = following(BY_WORD);
    assert!(backup.step(12, word(Word::Yield { chunk: 1 })).contains(&Action::Drain));
    let actions = backup.drained(13);
    let live = [Action::GoLive { generation: 5 }, Word::Live { generation: 5 }.into()];
    assert_eq!(actions[..2], live);
    let mut primary = yielding(BY_WORD);
    let actions = primary.step(14, word(Word::Live { generation: 5 }));
    assert!(actions.contains(&Action::Halt(HaltReason::HandedOver { generation: 5 })));
    assert_eq!(primary.state(), PrimaryState::Halted);
}

#[test]
fn a_receiver_that_was_told_goes_on_though_the_sender_is_lost() {
    let mut backup = following(BY_WORD);
    backup.step(12, word(Word::Yield { chunk: 1 }));
    assert!(backup.step(13, Event::Closed).is_empty());
    let actions = backup.drained(14);
    assert_eq!(actions[0], Action::GoLive { generation: 5 });
    assert!(!actions.contains(&Word::Live { generation: 5 }.into()), "there is no stream");
}

#[test]
fn with_an_arbiter_a_yielded_machine_is_asked_about() {
    let mut backup = following(ARBITRATED);
    backup.step(12, word(Word::Yield { chunk: 1 }));
    assert!(asks(&backup.drained(13)).is_some());
    let mut primary = yielding(ARBITRATED);
    assert!(asks(&primary.step(14, Event::Closed)).is_some());
    assert!(!primary.is_undecided() && primary.reclaim(15).is_err());
    let answer = Event::Arbiter { generation: 5, answer: Answer::Won };
    assert!(goes_solo(&primary.step(15, answer), 5));
}

#[test]
fn a_sender_that_has_yielded_and_heard_nothing_goes_on_by_the_users_word_alone() {
    let mut primary = yielding(BY_WORD);
    let actions = primary.step(10, Event::Closed);
    let reports = [Happening::PeerLost(LossCause::Closed), Happening::Undecided];
    assert_eq!(actions[..1], [Action::Hold]);
    assert_eq!(actions[1..], reports.map(Action::Report));
    assert!(primary.is_undecided());
    let won = Event::Arbiter { generation: 5, answer: Answer::Won };
    assert!(primary.step(11, won).is_empty(), "nobody was asked");
    for turn in 0..1000 {
        let actions = primary.tick(20 + turn * 20);
        let beats = |action: &Action| matches!(action, Action::SendHeartbeat(_));
        assert!(actions.iter().all(beats), "{actions:?}");
        assert!(!primary.may_carry_out(20 + turn * 20));
    }
    assert!(primary.disable(30_000).is_err() && primary.failover(30_000).is_err());
    let actions = primary.reclaim(30_000).unwrap();
    assert!(goes_solo(&actions, 5), "the other side may have used the generation up");
    assert!(primary.may_carry_out(30_001));
    assert!(primary.reclaim(30_002).is_err(), "once is enough");
    for mut primary in [Primary::new(0, VM, 4), protected(BY_WORD), yielding(BY_WORD)] {
        assert!(primary.reclaim(6).is_err());
    }
}

#[test]
fn an_undecided_sender_believes_a_late_word() {
    let mut primary = yielding(BY_WORD);
    // The stream is silent, and still open.
    let mut now_ms = 5;
    while !primary.is_undecided() {
        now_ms += 20;
        primary.tick(now_ms);
        assert!(now_ms < 60_000, "a silent receiver is waited for");
    }
    let actions = primary.clone().step(now_ms, word(Word::Live { generation: 5 }));
    assert!(actions.contains(&Action::Halt(HaltReason::HandedOver { generation: 5 })));
    // Who diverged never goes live.
    let diverged = word(Word::Diverged(Divergence::TimeAsked { moment: 3 }));
    assert!(goes_solo(&primary.step(now_ms, diverged), 5));
}

/// Everything that can happen to a receiver but the word that lets it go on.
fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        Just(Event::Closed),
        Just(Event::PeerGone),
        Just(Event::Damaged { why: "x".into() }),
        Just(Event::Quiet),
        Just(word(Word::Protect)),
        Just(word(Word::Leave)),
        Just(word(Word::Ping { stamp_ms: 3 })),
        Just(word(Word::Yield { chunk: 7 })),
        Just(word(Word::Live { generation: 5 })),
        any::<bool>().prop_map(|holds| Event::Heartbeat(Heartbeat {
            vm_id: VM,
            generation: 4,
            role: Role::Primary,
            stamp_ms: 3,
            echo_ms: None,
            holds,
        })),
        prop_oneof![Just(Answer::Won), Just(Answer::Lost), Just(Answer::Unreachable)]
            .prop_map(|answer| Event::Arbiter { generation: 5, answer }),
    ]
}

proptest! {
    #[test]
    fn nothing_but_the_word_makes_a_receiver_live(
        events in prop::collection::vec((event(), 0_u64..2_000), 0..40),
        arbiter: bool,
    ) {
        let mut backup = following(Purpose::Move { arbiter });
        let mut now_ms = 1;
        for (event, wait_ms) in events {
            now_ms += wait_ms;
            let mut actions = backup.step(now_ms, event);
            actions.extend(backup.tick(now_ms));
            actions.extend(backup.drained(now_ms));
            let lives = |action: &Action| matches!(action, Action::GoLive { .. });
            prop_assert!(!actions.iter().any(lives) && asks(&actions).is_none());
        }
    }
}
