//! A backup whose copy differs, transition by transition: it is healed in place, or the pair ends.

mod common;

use common::{VM, asks, following, prologue, protect, word};
use ft::{
    Ack, AckMode, Action, Answer, Backup, BackupState, Chunk, Divergence, Encoder, Event,
    HaltReason, Happening, Heartbeat, Primary, PrimaryState, Purpose, Record, Role, Settings,
    SoloReason, Trail, Word,
};

const MODES: [AckMode; 2] = [AckMode::Received, AckMode::Verified];

fn settings(ack: AckMode) -> Settings {
    Settings { ack, ..Settings::default() }
}

fn divergence() -> Divergence {
    Divergence::TimeAsked { moment: 3 }
}

/// A backup at 0 ms that follows in generation 4 and holds chunk 1.
fn backup(ack: AckMode) -> Backup {
    following(prologue(4, settings(ack)))
}

/// Its primary, which has released nothing and hears it at 10 ms.
fn primary(ack: AckMode) -> Primary {
    let mut primary = Primary::new(0, VM, 4);
    protect(&mut primary, 0, prologue(4, settings(ack)));
    primary
}

fn ack(received: u64, executed: u64) -> Event {
    let outputs = Trail { count: executed, digest: executed };
    word(Word::Ack(Ack { received, executed, outputs, echo_ms: Some(10) }))
}

fn outputs(number: u64) -> Trail {
    Trail { count: number, digest: number }
}

/// A chunk with these records behind the end of the one before, at its end.
fn chunk(number: u64, records: &[Record]) -> Chunk {
    let (start_moment, end_moment) = (number - 1, number);
    let mut encoder = Encoder::new(start_moment);
    let mut bytes = vec![];
    for record in records {
        let is_delta = matches!(record, Record::Delta { .. });
        encoder.append(start_moment + u64::from(is_delta), record, &mut bytes);
    }
    Chunk { number, start_moment, end_moment, outputs: outputs(number), records: bytes }
}

fn whole_delta(number: u64) -> Record {
    Record::Delta { vcpu: vec![1], machine: Some(vec![2]), outputs: outputs(number) }
}

fn append(chunk: Chunk) -> Event {
    Event::Message(ft::Message::Append(chunk))
}

fn healing_chunk(number: u64) -> Chunk {
    chunk(number, &[Record::Heals, whole_delta(number)])
}

fn releases(actions: &[Action]) -> Option<u64> {
    actions.iter().find_map(|action| match action {
        Action::Release { through } => Some(*through),
        _ => None,
    })
}

fn reports(actions: &[Action], happening: &Happening) -> bool {
    actions.contains(&Action::Report(happening.clone()))
}

fn is_halted(actions: &[Action]) -> bool {
    actions.contains(&Action::Halt(HaltReason::Diverged(divergence())))
}

/// Asks at 10 ms.
fn asking(ack: AckMode) -> Backup {
    let mut backup = backup(ack);
    let actions = backup.diverged(10, divergence(), true);
    let differs = Word::Differs(divergence()).into();
    let reported = Action::Report(Happening::Diverged(divergence()));
    assert_eq!(actions, [differs, reported, Action::TellCopy { whole: false }]);
    backup
}

/// Has been asked at 10 ms, and has made the delta: it ends with chunk 3.
fn healing(ack: AckMode) -> Primary {
    let mut primary = primary(ack);
    primary.step(10, word(Word::Differs(divergence())));
    primary.append(10, chunk(2, &[]));
    assert_eq!(primary.step(10, word(Word::Told)), [Action::Heal]);
    primary.append(10, healing_chunk(3));
    primary.healing(10, 3);
    assert!(primary.is_healing());
    primary
}

#[test]
fn a_copy_that_differs_is_told_of_healed_and_follows_on() {
    let mut backup = asking(AckMode::Received);
    assert!(backup.is_healing() && backup.state() == BackupState::Following);
    assert_eq!(backup.touched(11, vec![3, 4]), [Word::Touched { frames: vec![3, 4] }.into()]);
    assert_eq!(backup.told(12), [Word::Told.into()]);
    assert_eq!(backup.touched(13, vec![5]), [], "that was all");
    let actions = backup.step(14, append(chunk(2, &[])));
    assert!(!reports(&actions, &Happening::Healed) && backup.is_healing());
    let actions = backup.step(15, append(healing_chunk(3)));
    assert!(matches!(actions[0], Action::Deliver(_)));
    assert!(reports(&actions, &Happening::Healed) && !backup.is_healing());
    assert!(matches!(actions[2], Action::Send(ft::Message::Word(Word::Ack(_)))));
    // It takes over like any other.
    assert!(backup.step(20, Event::Closed).contains(&Action::Drain));
    assert_eq!(asks(&backup.drained(21)), Some(5));
}

#[test]
fn from_the_word_that_a_copy_differs_until_it_has_what_heals_it_no_output_leaves() {
    for mode in MODES {
        let mut primary = primary(mode);
        assert_eq!(releases(&primary.step(10, ack(1, 1))), Some(1));
        let actions = primary.step(10, word(Word::Differs(divergence())));
        assert_eq!(actions, [Action::Report(Happening::Diverged(divergence()))]);
        let frames = vec![3, 4];
        let actions = primary.step(11, word(Word::Touched { frames: frames.clone() }));
        assert_eq!(actions, [Action::NoteTouched { frames }]);
        primary.append(12, chunk(2, &[]));
        assert_eq!(releases(&primary.step(12, ack(2, 1))), None);
        assert_eq!(primary.step(13, word(Word::Told)), [Action::Heal]);
        primary.append(13, healing_chunk(3));
        primary.healing(13, 3);
        assert_eq!(releases(&primary.step(14, ack(2, 1))), None);
        assert!(primary.is_healing());
        let held = primary.step(15, ack(3, 1));
        let executed = primary.step(16, ack(3, 3));
        let first = if mode == AckMode::Received { held } else { executed.clone() };
        assert!(reports(&first, &Happening::Healed), "{mode:?}");
        assert_eq!(releases(&first), Some(3), "with all that waited, in {mode:?}");
        assert!(!primary.is_healing());
        assert_eq!((primary.state(), primary.generation()), (PrimaryState::Protected, 4));
    }
}

#[test]
fn no_other_delta_than_the_one_that_is_made_for_it_heals_a_copy() {
    let mut backup = asking(AckMode::Received);
    // One that a reset made was under way; one that says so cannot be meant before all is told.
    backup.step(11, append(chunk(2, &[whole_delta(2)])));
    backup.step(11, append(healing_chunk(3)));
    assert!(backup.is_healing());
    backup.told(12);
    backup.step(13, append(chunk(4, &[whole_delta(4)])));
    assert!(backup.is_healing());
    // What announces it may come in a chunk before it.
    backup.step(14, append(chunk(5, &[Record::Heals])));
    assert!(backup.is_healing());
    backup.step(15, append(chunk(6, &[whole_delta(6)])));
    assert!(!backup.is_healing());
}

#[test]
fn a_copy_that_nobody_heals_any_more_halts_and_says_so_where_it_can() {
    let beat = Heartbeat {
        vm_id: VM,
        generation: 4,
        role: Role::Primary,
        stamp_ms: 9,
        echo_ms: None,
        holds: true,
    };
    for (event, says) in [
        (Event::Closed, false),
        (Event::Damaged { why: "x".into() }, true),
        (Event::Heartbeat(beat), true),
        (word(Word::Yield { chunk: 1 }), true),
    ] {
        for told in [false, true] {
            let mut backup = asking(AckMode::Received);
            if told {
                backup.told(11);
            }
            let actions = backup.step(20, event.clone());
            assert!(is_halted(&actions), "{event:?}: {actions:?}");
            let word = Word::Diverged(divergence()).into();
            assert_eq!(actions.contains(&word), says, "{event:?}");
            assert!(!actions.contains(&Action::Drain));
            let later = [backup.told(21), backup.drained(22), backup.tick(9_999)].concat();
            assert_eq!(asks(&later), None);
        }
    }
    let mut backup = asking(AckMode::Received);
    let actions = backup.tick(15).into_iter().chain(backup.step(16, word(Word::Leave)));
    let actions: Vec<Action> = actions.collect();
    assert!(actions.contains(&Word::Left.into()) && backup.state() == BackupState::Halted);
    assert_eq!(backup.told(17), [], "it has left");
}

#[test]
fn a_primary_that_loses_a_copy_that_is_being_healed_asks_or_is_told() {
    let mut primary = healing(AckMode::Received);
    assert_eq!(asks(&primary.step(20, Event::Closed)), Some(5));
    let mut winner = primary.clone();
    let won = Event::Arbiter { generation: 5, answer: Answer::Won };
    assert!(winner.step(30, won).contains(&Action::GoSolo { generation: 5 }));
    // What it has said before is read late, and then its last word.
    for late in [Word::Told, Word::Touched { frames: vec![1] }, Word::Differs(divergence())] {
        assert_eq!(primary.step(30, word(late)), []);
    }
    let actions = primary.step(31, word(Word::Diverged(divergence())));
    let (generation, why) = (5, SoloReason::Diverged);
    assert!(reports(&actions, &Happening::Solo { generation, why }));
    // The next pair starts afresh.
    protect(&mut primary, 40, prologue(5, settings(AckMode::Received)));
    assert!(!primary.is_healing());
}

#[test]
fn a_copy_that_differs_while_the_machine_is_handed_over_or_protection_ends_is_not_healed() {
    for leaves in [true, false] {
        let mut primary = primary(AckMode::Received);
        primary.step(5, ack(1, 1));
        let (promise, why) = if leaves {
            primary.disable(10).unwrap();
            (Word::Left, SoloReason::Left)
        } else {
            primary.failover(10).unwrap();
            (Word::Diverged(divergence()), SoloReason::Diverged)
        };
        let words = [Word::Differs(divergence()), Word::Touched { frames: vec![1] }, Word::Told];
        for said in words {
            let actions = primary.step(11, word(said));
            assert!(!actions.contains(&Action::Heal) && !actions.contains(&Action::CloseStream));
            assert_eq!(asks(&actions), None);
        }
        let actions = primary.step(12, word(promise));
        assert!(reports(&actions, &Happening::Solo { generation: 5, why }));
    }
}

#[test]
fn outputs_do_not_wait_for_ever_for_a_copy_that_is_not_healed() {
    let tells = |primary: &mut Primary| {
        primary.step(20, ack(1, 1));
        primary.step(20, word(Word::Differs(divergence())));
    };
    for told in [false, true] {
        let mut primary = primary(AckMode::Received);
        tells(&mut primary);
        if told {
            primary.step(30, word(Word::Told));
        }
        let lost = (50..20_000).step_by(50).find(|now_ms| {
            // It has no log to execute, and is heard.
            primary.step(*now_ms, ack(1, 1));
            asks(&primary.tick(*now_ms)).is_some()
        });
        assert_eq!(lost, Some(10_050));
    }
}

/// Differs, is told of, and is healed, with this as the next chunk.
fn healed_at(backup: &mut Backup, now_ms: u64, number: u64) -> bool {
    let actions = backup.diverged(now_ms, divergence(), true);
    let whole = actions.contains(&Action::TellCopy { whole: true });
    assert_ne!(whole, actions.contains(&Action::TellCopy { whole: false }));
    backup.told(now_ms);
    backup.step(now_ms, append(healing_chunk(number)));
    assert!(!backup.is_healing());
    whole
}

#[test]
fn a_copy_that_differs_again_soon_is_compared_as_a_whole() {
    let mut backup = backup(AckMode::Received);
    assert!(!healed_at(&mut backup, 10, 2));
    assert!(healed_at(&mut backup, 10_000, 3), "what was touched was not enough");
    assert!(!healed_at(&mut backup, 10_100, 4), "all of it was equal: this is another matter");
    assert!(!healed_at(&mut backup, 41_000, 5), "that was long ago");
    assert!(healed_at(&mut backup, 41_500, 6));
    let mut whole = asking(AckMode::Received);
    whole.told(11);
    whole.step(12, append(healing_chunk(2)));
    whole.diverged(13, divergence(), true);
    let digests = vec![[1; 8]];
    let kept = Word::Kept { first_frame: 0, digests: digests.clone() };
    assert_eq!(whole.kept(14, 0, digests.clone()), [kept.clone().into()]);
    let mut primary = primary(AckMode::Received);
    primary.step(14, word(Word::Differs(divergence())));
    assert_eq!(primary.step(15, word(kept)), [Action::NoteKept { first_frame: 0, digests }]);
}

#[test]
fn a_copy_may_differ_again_before_the_last_healing_is_acknowledged() {
    for mode in MODES {
        let mut primary = healing(mode);
        let actions = primary.step(20, word(Word::Differs(divergence())));
        assert_eq!(actions, [Action::Report(Happening::Diverged(divergence()))]);
        assert_eq!(releases(&primary.step(21, ack(3, 3))), None, "that one heals nothing now");
        assert_eq!(primary.step(22, word(Word::Told)), [Action::Heal]);
        primary.append(22, healing_chunk(4));
        primary.healing(22, 4);
        let actions = primary.step(23, ack(4, 4));
        assert!(reports(&actions, &Happening::Healed) && releases(&actions) == Some(4));
    }
}

#[test]
fn what_no_delta_makes_good_ends_the_protection() {
    let log = Divergence::Log { moment: 3, why: String::from("it is nonsense") };
    for (divergence, curable) in [(divergence(), false), (log, true)] {
        let mut backup = backup(AckMode::Received);
        let actions = backup.diverged(10, divergence.clone(), curable);
        assert_eq!(actions[0], Word::Diverged(divergence).into());
        assert_eq!(backup.state(), BackupState::Halted);
    }
    // One that differs while it is healed, or drains, and one that is to move.
    let mut healed = asking(AckMode::Received);
    assert!(is_halted(&healed.diverged(11, divergence(), true)));
    let mut draining = backup(AckMode::Received);
    draining.step(10, Event::Closed);
    assert!(is_halted(&draining.diverged(11, divergence(), true)));
    let purpose = Purpose::Move { arbiter: true };
    let mut moving = following(prologue(4, Settings { purpose, ..Settings::default() }));
    assert!(is_halted(&moving.diverged(11, divergence(), true)));
}

#[test]
fn words_about_a_copy_that_are_out_of_place_close_the_stream() {
    let differs = || word(Word::Differs(divergence()));
    let touched = || word(Word::Touched { frames: vec![1] });
    let kept = || word(Word::Kept { first_frame: 0, digests: vec![[0; 8]] });
    let told = || word(Word::Told);
    for wrong in [
        vec![touched()],
        vec![kept()],
        vec![told()],
        vec![differs(), differs()],
        vec![differs(), told(), touched()],
        vec![differs(), told(), kept()],
        vec![differs(), told(), told()],
        vec![differs(), told(), differs()],
    ] {
        let mut primary = primary(AckMode::Received);
        let (last, before) = wrong.split_last().unwrap();
        for event in before {
            assert_eq!(asks(&primary.step(10, event.clone())), None);
        }
        assert_eq!(asks(&primary.step(10, last.clone())), Some(5), "{wrong:?}");
    }
    for event in [differs(), touched(), told()] {
        let mut backup = backup(AckMode::Received);
        assert!(backup.step(10, event).contains(&Action::CloseStream));
    }
}
