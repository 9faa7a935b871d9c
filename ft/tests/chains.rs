//! One pair after another: what a replica of an earlier pair says, asks or is told must mean
//! nothing to a later one. `docs/PROTOCOL.md`, "Chains".

use ft::prologue::LogStart;
use ft::{
    Action, Answer, Assumptions, DigestMode, Event, Message, Primary, PrimaryState, Prologue,
    Settings, Word,
};

const VM: [u8; 16] = [7; 16];

fn word(word: Word) -> Event {
    Event::Message(Message::Word(word))
}

/// Joins a backup at `now_ms`, from the greeting to its acceptance.
fn protect(primary: &mut Primary, now_ms: u64) {
    let prologue = Prologue {
        assumptions: Assumptions::new("test", 1),
        vm_id: VM,
        generation: 0,
        start: LogStart::Delta,
        digest_mode: DigestMode::EveryChunk,
        settings: Settings::default(),
        arbiter: String::from("test"),
        machine: vec![],
        cpuid: vec![],
    };
    primary.join(now_ms, prologue).unwrap();
    for answer in [Word::Welcome, Word::Ready, Word::Following] {
        primary.step(now_ms, word(answer));
    }
    assert_eq!(primary.state(), PrimaryState::Protected);
}

#[test]
fn a_late_answer_about_an_earlier_generation_decides_nothing() {
    let mut primary = Primary::new(0, VM, 4);
    protect(&mut primary, 0);
    primary.disable(10).unwrap();
    let asked = primary.step(20, Event::Closed);
    assert!(asked.contains(&Action::AskArbiter { generation: 5 }));
    // The arbiter is slow; the promise is there first.
    let actions = primary.step(30, word(Word::Left));
    assert!(actions.contains(&Action::GoSolo { generation: 5 }));
    protect(&mut primary, 100);
    let asked = primary.step(200, Event::Closed);
    assert!(asked.contains(&Action::AskArbiter { generation: 6 }));
    for answer in [Answer::Won, Answer::Lost, Answer::Unreachable] {
        let actions = primary.step(210, Event::Arbiter { generation: 5, answer });
        assert_eq!(actions, []);
        assert_eq!(primary.state(), PrimaryState::Holding);
    }
    let actions = primary.step(220, Event::Arbiter { generation: 6, answer: Answer::Won });
    assert!(actions.contains(&Action::GoSolo { generation: 6 }));
}
