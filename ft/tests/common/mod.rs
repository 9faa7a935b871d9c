//! Replicas that are a pair already: where tests of what comes then begin.

use ft::prologue::LogStart;
use ft::{
    Action, Assumptions, Backup, BackupState, Chunk, DigestMode, Event, Message, Primary,
    PrimaryState, Prologue, Settings, Trail, Word,
};

pub const VM: [u8; 16] = [7; 16];

/// What a primary of this generation says first.
pub fn prologue(generation: u64, settings: Settings) -> Prologue {
    Prologue {
        assumptions: Assumptions::new("test", 1),
        vm_id: VM,
        generation,
        start: LogStart::Delta,
        digest_mode: DigestMode::EveryChunk,
        settings,
        arbiter: String::from("test"),
        machine: vec![],
        cpuid: vec![],
    }
}

pub fn word(word: Word) -> Event {
    Event::Message(Message::Word(word))
}

/// The generation that the arbiter is asked about.
pub fn asks(actions: &[Action]) -> Option<u64> {
    actions.iter().find_map(|action| match action {
        Action::AskArbiter { generation } => Some(*generation),
        _ => None,
    })
}

/// The generation in which a backup is greeted.
pub fn greets(actions: &[Action]) -> Option<u64> {
    actions.iter().find_map(|action| match action {
        Action::Send(Message::Hello(prologue)) => Some(prologue.generation),
        _ => None,
    })
}

/// The first of a log.
fn chunk() -> Chunk {
    // A power button, which is valid anywhere.
    let outputs = Trail { count: 1, digest: 1 };
    Chunk { number: 1, start_moment: 0, end_moment: 1, outputs, records: vec![9] }
}

/// Joins a backup at `now_ms`, up to its word that the machine is complete there.
pub fn nearly_protect(primary: &mut Primary, now_ms: u64, prologue: Prologue) {
    let greeting = primary.join(now_ms, prologue).unwrap();
    assert_eq!(greets(&greeting), Some(primary.generation()));
    primary.step(now_ms, word(Word::Welcome));
    primary.append(now_ms, chunk());
    let protects = primary.step(now_ms, word(Word::Ready)).contains(&Word::Protect.into());
    assert!(protects && primary.state() == PrimaryState::Protecting);
}

/// Joins a backup at `now_ms`.
pub fn protect(primary: &mut Primary, now_ms: u64, prologue: Prologue) {
    nearly_protect(primary, now_ms, prologue);
    primary.step(now_ms, word(Word::Following));
    assert_eq!(primary.state(), PrimaryState::Protected);
}

/// A backup at 0 ms that follows who said this.
pub fn following(prologue: Prologue) -> Backup {
    let mut backup = Backup::new(0, Assumptions::new("test", 1));
    backup.step(0, Event::Message(Message::Hello(Box::new(prologue))));
    backup.prepared(0, Ok(()));
    backup.step(0, Event::Message(Message::Append(chunk())));
    backup.ready(0);
    backup.executed(0, 1, Trail { count: 1, digest: 1 });
    backup.step(0, word(Word::Protect));
    assert_eq!(backup.state(), BackupState::Following);
    backup
}
