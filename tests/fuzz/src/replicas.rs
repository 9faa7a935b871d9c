//! The protocol's two sides, each fed any messages, answers and times in any order.
//!
//! Not whether a pair keeps its promises (that is the simulator's question, `ft/tests/simulator`),
//! but whether one side stands a peer, an arbiter and a driver that make no sense.

use arbitrary::{Arbitrary, Unstructured};
use ft::prologue::LogStart;
use ft::recorder::DigestMode;
use ft::{
    Action, Answer, Assumptions, Backup, BackupState, Chunk, Divergence, Event, Heartbeat, Message,
    Primary, PrimaryState, Prologue, Role, Settings, Trail, Word,
};

const STEPS_MAX: usize = 400;
const VM_ID: [u8; 16] = [7; 16];

/// Something that happens to either side.
#[derive(Arbitrary, Debug)]
enum Step {
    Wait(u16),
    Tick,
    /// A message from its bytes, and those that a fuzzer should have at hand.
    Word(Vec<u8>),
    Known(Known),
    Ack {
        received: u8,
        executed: u8,
        outputs: u8,
        echo: Option<u16>,
    },
    Hello {
        verified: bool,
        mine: bool,
    },
    Append {
        next: bool,
        moments: u8,
        records: Vec<u8>,
    },
    Heartbeat {
        ours: bool,
        primary: bool,
        stamp: u16,
        echo: Option<u16>,
        holds: bool,
    },
    Closed,
    Damaged,
    PeerGone,
    Arbiter(u8),
    Quiet,
    /// Words of the driver.
    Prepared(bool),
    Ready,
    Executed {
        number: u8,
        outputs: u8,
    },
    Drained,
    Diverged {
        curable: bool,
    },
    /// How the copy may differ, and that this was all.
    Touched(Vec<u32>),
    Told,
    /// The delta that heals a copy ends with this chunk.
    Healing(u8),
    Join {
        verified: bool,
    },
    Disable,
    Failover,
    Log {
        moments: u8,
        outputs: u8,
        length: u16,
    },
}

#[derive(Arbitrary, Debug)]
enum Known {
    Welcome,
    Ready,
    Protect,
    Following,
    Ping(u16),
    Leave,
    Left,
    Yield(u8),
    Live(u8),
    Differs,
    Touched(Vec<u32>),
    Kept(u8),
    Told,
}

pub(crate) fn run(data: &[u8]) {
    let mut source = Unstructured::new(data);
    let mut now_ms = 1000;
    let mut primary = PrimarySide { primary: Primary::new(now_ms, VM_ID, 1), sent: 0, moment: 0 };
    let assumptions = Assumptions::new("a build", 1);
    let mut backup =
        BackupSide { backup: Backup::new(now_ms, assumptions), won: false, halted: false };
    for _ in 0..STEPS_MAX {
        if source.is_empty() {
            break;
        }
        let Ok((to_backup, step)) = <(bool, Step)>::arbitrary(&mut source) else { break };
        if let Step::Wait(wait_ms) = step {
            now_ms += u64::from(wait_ms);
        } else if to_backup {
            backup.take(now_ms, step);
        } else {
            primary.take(now_ms, step);
        }
    }
}

/// The event that a step is to either side, if it is one.
fn event(step: &Step, generation: u64, next: (u64, u64)) -> Option<Event> {
    Some(match step {
        Step::Word(bytes) => Event::Message(Message::Word(postcard::from_bytes(bytes).ok()?)),
        Step::Known(known) => Event::Message(Message::Word(word(known))),
        Step::Ack { received, executed, outputs, echo } => {
            Event::Message(Message::Word(Word::Ack(ft::Ack {
                received: (*received).into(),
                executed: (*executed).into(),
                outputs: Trail { count: (*outputs).into(), digest: 0 },
                echo_ms: echo.map(u64::from),
            })))
        }
        Step::Hello { verified, mine } => {
            Event::Message(Message::Hello(Box::new(prologue(*verified, *mine))))
        }
        Step::Append { next: follows, moments, records } => {
            let (number, moment) = if *follows { next } else { (next.0 + 1, next.1) };
            Event::Message(Message::Append(Chunk {
                number,
                start_moment: moment,
                end_moment: moment + u64::from(*moments),
                outputs: Trail::default(),
                records: records.clone(),
            }))
        }
        Step::Heartbeat { ours, primary, stamp, echo, holds } => Event::Heartbeat(Heartbeat {
            vm_id: if *ours { VM_ID } else { [0; 16] },
            generation,
            role: if *primary { Role::Primary } else { Role::Backup },
            stamp_ms: (*stamp).into(),
            echo_ms: echo.map(u64::from),
            holds: *holds,
        }),
        Step::Closed => Event::Closed,
        Step::Damaged => Event::Damaged { why: String::from("noise") },
        Step::PeerGone => Event::PeerGone,
        // About the generation after this one, most of the time.
        Step::Arbiter(answer) => Event::Arbiter {
            generation: generation + u64::from(answer % 8 != 7),
            answer: match answer % 3 {
                0 => Answer::Won,
                1 => Answer::Lost,
                _ => Answer::Unreachable,
            },
        },
        Step::Quiet => Event::Quiet,
        _ => return None,
    })
}

fn word(known: &Known) -> Word {
    match known {
        Known::Welcome => Word::Welcome,
        Known::Ready => Word::Ready,
        Known::Protect => Word::Protect,
        Known::Following => Word::Following,
        Known::Ping(stamp) => Word::Ping { stamp_ms: (*stamp).into() },
        Known::Leave => Word::Leave,
        Known::Left => Word::Left,
        Known::Yield(chunk) => Word::Yield { chunk: (*chunk).into() },
        Known::Live(generation) => Word::Live { generation: (*generation).into() },
        Known::Differs => Word::Differs(Divergence::TimeAsked { moment: 1 }),
        Known::Touched(frames) => Word::Touched { frames: frames_of(frames) },
        Known::Kept(pages) => Word::Kept { first_frame: 0, digests: vec![[1; 8]; (*pages).into()] },
        Known::Told => Word::Told,
    }
}

fn frames_of(frames: &[u32]) -> Vec<u64> {
    frames.iter().map(|frame| u64::from(*frame)).collect()
}

fn prologue(verified: bool, mine: bool) -> Prologue {
    let ack = if verified { ft::AckMode::Verified } else { ft::AckMode::Received };
    Prologue {
        assumptions: Assumptions::new("a build", u64::from(mine)),
        vm_id: VM_ID,
        generation: 1,
        start: LogStart::Delta,
        digest_mode: DigestMode::Registers,
        settings: Settings { ack, ..Settings::default() },
        arbiter: String::new(),
        machine: Vec::new(),
        cpuid: Vec::new(),
    }
}

struct PrimarySide {
    primary: Primary,
    sent: u64,
    moment: u64,
}

impl PrimarySide {
    fn take(&mut self, now_ms: u64, step: Step) {
        let was = self.primary.state();
        let generation = self.primary.generation();
        let actions = match step {
            Step::Tick => self.primary.tick(now_ms),
            Step::Join { verified } => {
                let joined = self.primary.join(now_ms, prologue(verified, true));
                if joined.is_ok() {
                    (self.sent, self.moment) = (0, 0);
                }
                joined.unwrap_or_default()
            }
            Step::Disable => self.primary.disable(now_ms).unwrap_or_default(),
            Step::Failover => self.primary.failover(now_ms).unwrap_or_default(),
            Step::Healing(chunk) => self.primary.healing(now_ms, chunk.into()),
            Step::Log { moments, outputs, length } => self.log(now_ms, moments, outputs, length),
            step => match event(&step, generation, (1, 0)) {
                Some(event) => self.primary.step(now_ms, event),
                None => return,
            },
        };
        self.check(was, &actions);
        assert!(self.primary.generation() >= generation, "a generation never falls");
    }

    /// The recorder closes a chunk: while nobody is there to send it to, it has none.
    fn log(&mut self, now_ms: u64, moments: u8, outputs: u8, length: u16) -> Vec<Action> {
        let sends = matches!(
            self.primary.state(),
            PrimaryState::Copying | PrimaryState::Protecting | PrimaryState::Protected
        );
        if !sends {
            return Vec::new();
        }
        self.sent += 1;
        let start_moment = self.moment;
        self.moment += u64::from(moments);
        let chunk = Chunk {
            number: self.sent,
            start_moment,
            end_moment: self.moment,
            outputs: Trail { count: outputs.into(), digest: 0 },
            records: vec![0; length.into()],
        };
        self.primary.append(now_ms, chunk)
    }

    fn check(&self, was: PrimaryState, actions: &[Action]) {
        let acts = |wanted: fn(&Action) -> bool| actions.iter().any(wanted);
        let released = acts(|action| matches!(action, Action::Release { .. }));
        let solo = acts(|action| matches!(action, Action::GoSolo { .. }));
        if was == PrimaryState::Halted {
            assert_eq!(self.primary.state(), PrimaryState::Halted, "a halt is for ever");
            assert!(!released && !solo, "{actions:?}");
        }
        assert!(!released || !self.primary.is_healing(), "released while the copy differs");
        for action in actions {
            if let Action::Release { through } = action {
                assert!(*through <= self.sent, "released what was not sent");
            }
        }
        if self.primary.state() == PrimaryState::Holding {
            assert!(!self.primary.may_carry_out(0), "outputs leave while the arbiter is asked");
        }
    }
}

struct BackupSide {
    backup: Backup,
    /// The arbiter has given it the generation.
    won: bool,
    halted: bool,
}

impl BackupSide {
    fn take(&mut self, now_ms: u64, step: Step) {
        let was = self.backup.state();
        let progress = self.backup.progress();
        let trail = |count: u8| Trail { count: count.into(), digest: 0 };
        let actions = match step {
            Step::Tick => self.backup.tick(now_ms),
            Step::Prepared(well) => {
                let result = if well { Ok(()) } else { Err(String::from("no memory")) };
                self.backup.prepared(now_ms, result)
            }
            Step::Ready => self.backup.ready(now_ms),
            // A driver executes only what was delivered.
            Step::Executed { number, outputs } => {
                let number = u64::from(number).clamp(progress.executed, progress.received);
                self.backup.executed(now_ms, number, trail(outputs))
            }
            Step::Drained => self.backup.drained(now_ms),
            Step::Diverged { curable } => {
                let divergence = Divergence::TimeAsked { moment: now_ms };
                self.backup.diverged(now_ms, divergence, curable)
            }
            Step::Touched(frames) => self.backup.touched(now_ms, frames_of(&frames)),
            Step::Told => self.backup.told(now_ms),
            step => {
                let next = (progress.received + 1, 0);
                let Some(event) = event(&step, self.backup.generation(), next) else { return };
                let generation = self.backup.generation() + 1;
                let won = Event::Arbiter { generation, answer: Answer::Won };
                self.won |= was == BackupState::Asking && event == won;
                self.backup.step(now_ms, event)
            }
        };
        self.check(was, &actions);
    }

    fn check(&mut self, was: BackupState, actions: &[Action]) {
        let state = self.backup.state();
        if actions.iter().any(|action| matches!(action, Action::GoLive { .. })) {
            assert!(self.won, "went live and nobody had decided so");
            assert!(was != BackupState::Live && !self.halted, "went live from {was:?}");
        }
        self.halted |= actions.iter().any(|action| matches!(action, Action::Halt(_)));
        assert!(!self.halted || state == BackupState::Halted, "a halt is for ever");
        assert!(was != BackupState::Live || state == BackupState::Live, "live is for ever");
        if self.backup.is_healing() {
            assert_eq!(state, BackupState::Following, "a copy that differs takes nothing over");
        }
        let progress = self.backup.progress();
        assert!(progress.executed <= progress.received);
    }
}
