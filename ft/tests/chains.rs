//! One pair after another: what a replica of an earlier pair says, asks or is told must mean
//! nothing to a later one. `docs/PROTOCOL.md`, "Chains".

mod common;

use common::{VM, asks, greets, word};
use ft::{
    Ack, Action, Answer, Backup, BackupState, Divergence, Event, HaltReason, Happening, Heartbeat,
    Primary, PrimaryState, Prologue, Role, Settings, SoloReason, Trail, Word,
};

fn prologue(generation: u64) -> Prologue {
    common::prologue(generation, Settings::default())
}

fn answer(generation: u64, answer: Answer) -> Event {
    Event::Arbiter { generation, answer }
}

fn beat(generation: u64, echo_ms: u64) -> Event {
    let (role, echo_ms) = (Role::Backup, Some(echo_ms));
    Event::Heartbeat(Heartbeat { vm_id: VM, generation, role, stamp_ms: 1, echo_ms, holds: false })
}

/// Joins a backup at `now_ms`, up to its word that the machine is complete there.
fn nearly_protect(primary: &mut Primary, now_ms: u64) {
    common::nearly_protect(primary, now_ms, prologue(0));
}

/// A primary in its generation with a backup, at `now_ms`.
fn protect(primary: &mut Primary, now_ms: u64) {
    common::protect(primary, now_ms, prologue(0));
}

/// A backup at 0 ms that follows in `generation`.
fn following(generation: u64) -> Backup {
    common::following(prologue(generation))
}

#[test]
fn a_survivor_protects_itself_in_its_own_generation_and_a_late_riser_asks_about_the_old_one() {
    let mut primary = Primary::new(0, VM, 4);
    protect(&mut primary, 0);
    let mut sleeper = following(4);
    assert_eq!(asks(&primary.step(10, Event::Closed)), Some(5));
    primary.step(20, answer(5, Answer::Won));
    protect(&mut primary, 30);
    assert_eq!(primary.generation(), 5);
    // It wakes up, finds its stream at its end, and asks for what has been given away.
    sleeper.step(5_000, Event::Closed);
    assert_eq!(asks(&sleeper.drained(5_001)), Some(5));
    let actions = sleeper.step(5_002, answer(5, Answer::Lost));
    assert!(actions.contains(&Action::Halt(HaltReason::Lost { generation: 5 })));
    assert_eq!(asks(&primary.step(6_000, Event::Closed)), Some(6), "a new question");
}

#[test]
fn a_primary_that_wakes_up_generations_later_speaks_to_nobody() {
    let mut primary = Primary::new(0, VM, 4);
    protect(&mut primary, 0);
    primary.step(
        10,
        word(Word::Ack(Ack {
            received: 1,
            executed: 1,
            outputs: Trail { count: 1, digest: 1 },
            echo_ms: Some(5),
        })),
    );
    assert!(primary.may_carry_out(11));
    // Its backup is live in generation 5, joined another one, and was replaced by that in 6.
    assert!(!primary.may_carry_out(60_000));
    assert_eq!(primary.step(60_000, beat(6, 59_999)).len(), 1, "a pause is all there is to report");
    assert!(!primary.may_carry_out(60_000), "an echo of another pair is none");
    assert_eq!(asks(&primary.step(60_001, Event::Closed)), Some(5));
    let actions = primary.step(60_002, answer(5, Answer::Lost));
    assert!(actions.contains(&Action::Halt(HaltReason::Lost { generation: 5 })));
}

#[test]
fn nobody_else_is_asked_to_protect_while_a_backup_may_still_take_over() {
    for closes_late in [false, true] {
        let mut primary = Primary::new(0, VM, 4);
        nearly_protect(&mut primary, 0);
        if closes_late {
            primary.step(1, word(Word::Following));
        }
        assert_eq!(asks(&primary.step(10, Event::Closed)), Some(5));
        assert!(primary.join(20, prologue(0)).is_err(), "the arbiter has not spoken");
        primary.step(30, answer(5, Answer::Unreachable));
        assert!(primary.join(40, prologue(0)).is_err());
        primary.step(50, answer(5, Answer::Won));
        assert_eq!(greets(&primary.join(60, prologue(0)).unwrap()), Some(5));
    }
}

#[test]
fn a_promise_ends_a_generation_without_a_question_and_who_gave_it_never_asks_one() {
    let divergence = Divergence::TimeAsked { moment: 3 };
    for promise in [Word::Left, Word::Diverged(divergence.clone())] {
        let mut primary = Primary::new(0, VM, 4);
        protect(&mut primary, 0);
        let mut backup = following(4);
        if promise == Word::Left {
            primary.disable(10).unwrap();
            backup.step(10, word(Word::Leave));
        } else {
            backup.diverged(10, divergence.clone(), false);
        }
        assert_eq!(backup.state(), BackupState::Halted);
        primary.step(20, word(promise));
        protect(&mut primary, 30);
        assert_eq!(primary.generation(), 5);
        assert_eq!(asks(&primary.step(35, Event::Closed)), Some(6));
        backup.step(40, Event::Closed);
        for now_ms in (50..20_000).step_by(50) {
            let actions = [backup.tick(now_ms), backup.drained(now_ms)].concat();
            assert_eq!(asks(&actions), None);
        }
    }
}

#[test]
fn a_promise_that_comes_while_the_arbiter_is_asked_uses_the_generation_up() {
    let divergence = Divergence::TimeAsked { moment: 3 };
    let promises =
        [(Word::Left, SoloReason::Left), (Word::Diverged(divergence), SoloReason::Diverged)];
    for (promise, why) in promises {
        let mut primary = Primary::new(0, VM, 4);
        protect(&mut primary, 0);
        primary.disable(10).unwrap();
        primary.step(20, Event::Closed);
        let actions = primary.step(30, word(promise));
        let generation = 5;
        assert!(actions.contains(&Action::Report(Happening::Solo { generation, why })));
        // Whoever's claim the arbiter has written down meanwhile: the next question is another one.
        protect(&mut primary, 40);
        assert_eq!(asks(&primary.step(50, Event::Closed)), Some(6));
    }
}

#[test]
fn a_late_answer_about_an_earlier_generation_decides_nothing() {
    let mut primary = Primary::new(0, VM, 4);
    protect(&mut primary, 0);
    primary.disable(10).unwrap();
    assert_eq!(asks(&primary.step(20, Event::Closed)), Some(5));
    // The arbiter is slow; the promise is there first.
    let actions = primary.step(30, word(Word::Left));
    assert!(actions.contains(&Action::GoSolo { generation: 5 }));
    protect(&mut primary, 100);
    assert_eq!(asks(&primary.step(200, Event::Closed)), Some(6));
    for said in [Answer::Won, Answer::Lost, Answer::Unreachable] {
        assert_eq!(primary.step(210, answer(5, said)), []);
        assert_eq!(primary.state(), PrimaryState::Holding);
    }
    let actions = primary.step(220, answer(6, Answer::Won));
    assert!(actions.contains(&Action::GoSolo { generation: 6 }));
}

#[test]
fn an_echo_from_a_join_before_gives_no_time_that_the_fence_does_not_cover() {
    let mut primary = Primary::new(0, VM, 4);
    primary.join(0, prologue(0)).unwrap();
    primary.step(10, word(Word::Welcome));
    primary.step(1_000, Event::Closed);
    protect(&mut primary, 1_000);
    assert!(!primary.may_carry_out(1_000));
    // The standby that was joined before, in the same generation, has heard nothing since then.
    primary.step(1_010, beat(4, 999));
    let settings = Settings::default();
    assert_eq!(primary.may_carry_out_until_ms(), 999 + settings.lease_ms);
    let fence_ms = 1_000 + settings.timeout_ms;
    assert!(primary.may_carry_out_until_ms() < fence_ms);
}
