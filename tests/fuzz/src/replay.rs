//! A log that decodes, whatever it says, replayed by a machine that does what it likes.

use arbitrary::{Arbitrary, Unstructured};
use ft::{Chunk, Input, Ledger, Output, Replay, Start, Step, Trail};

/// Pages of the machine that replays.
const PAGES: usize = 64;
/// A chunk may promise any number of moments to run; nobody waits for them all here.
const RUNS_MAX: usize = 2000;

/// What a machine does at an exit.
#[derive(Arbitrary, Debug)]
enum Exit {
    Nothing,
    AskTime,
    Packet,
    Serial,
}

#[derive(Arbitrary, Debug)]
struct Log {
    blank: bool,
    start: u64,
    chunks: Vec<Part>,
    exits: Vec<Exit>,
}

#[derive(Arbitrary, Debug)]
struct Part {
    /// Whether number and start follow from the chunk before: else they are 1 too many.
    follows: bool,
    moments: u16,
    outputs: u8,
    digest: u64,
    records: Vec<u8>,
}

pub(crate) fn run(data: &[u8]) {
    let Ok(log) = Log::arbitrary(&mut Unstructured::new(data)) else { return };
    let start = if log.blank { Start::Blank } else { Start::At(log.start) };
    let mut machine = Toy {
        replay: Replay::new(start, PAGES),
        ledger: Ledger::new(),
        moment: log.start,
        exits: log.exits,
        runs: 0,
    };
    let (mut number, mut moment) = (1, log.start);
    for part in &log.chunks {
        let skip = u64::from(!part.follows);
        let chunk = Chunk {
            number: number + skip,
            start_moment: moment.saturating_add(skip),
            end_moment: moment.saturating_add(skip).saturating_add(part.moments.into()),
            outputs: Trail { count: part.outputs.into(), digest: part.digest },
            records: part.records.clone(),
        };
        if machine.replay.push(&chunk).is_ok() {
            assert!(part.follows, "a chunk that does not follow was taken");
            (number, moment) = (number + 1, chunk.end_moment);
        }
        if !machine.go_on() {
            return;
        }
    }
    machine.replay.take_over();
    assert!(machine.ledger.redo().len() <= 2 * RUNS_MAX);
}

struct Toy {
    replay: Replay,
    ledger: Ledger,
    moment: u64,
    exits: Vec<Exit>,
    runs: usize,
}

impl Toy {
    /// Follows the log as far as it is known. Whether there is any sense in going on.
    fn go_on(&mut self) -> bool {
        loop {
            match self.replay.next_step(self.moment) {
                Err(divergence) => {
                    assert!(!divergence.to_string().is_empty());
                    return false;
                }
                Ok(Step::Wait | Step::End(_)) => {
                    assert!(self.replay.is_drained());
                    return true;
                }
                Ok(Step::Run) if self.runs == RUNS_MAX || !self.run() => return false,
                Ok(Step::Run) => {}
                Ok(Step::Delta { moment, pages, .. }) => {
                    assert!(pages.len() <= PAGES);
                    assert!(self.replay.has_state());
                    self.moment = moment;
                }
                Ok(Step::Input(input)) => {
                    assert!(!matches!(input, Input::TimeRead { .. }));
                    self.ledger.input(&input);
                }
                Ok(Step::Released { output }) => self.ledger.released(output),
                Ok(Step::Pages(_) | Step::Devices { .. } | Step::StateDigest { .. }) => {}
                Ok(Step::ChunkEnd { .. }) => {}
            }
        }
    }

    /// Runs one interval and handles its exit.
    fn run(&mut self) -> bool {
        self.runs += 1;
        self.moment += 1;
        self.replay.register_digest(self.moment, self.moment);
        self.replay.registers(self.moment, &[self.moment; 18]);
        let exit = self.exits.get(self.runs % self.exits.len().max(1));
        let output = match exit {
            None | Some(Exit::Nothing) => return true,
            Some(Exit::AskTime) => return self.replay.take_time(self.moment).is_ok(),
            Some(Exit::Packet) => Output::Packet { device: 0, bytes: vec![1; 60] },
            Some(Exit::Serial) => Output::Serial { bytes: vec![b'x'] },
        };
        let sequence = self.replay.output(&output);
        self.ledger.output(sequence, output);
        true
    }
}
