//! What must hold, watched from outside: it knows everything and belongs to nobody.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use ft::{BlockOp, Happening, Output, PrimaryState, SoloReason, Trail};

use crate::tally::Tally;
use crate::toy::Emitted;

/// One output in the tree of all histories any machine ever had.
#[derive(Clone, Debug)]
struct Node {
    parent: u64,
    gated: bool,
    write: Option<(u64, u64)>,
    /// What a request is answered by.
    request: Option<u64>,
    /// It went down with its host, which a machine that goes on from a checkpoint allows for.
    forgiven: bool,
    at_us: u64,
}

#[derive(Debug, Default)]
pub struct Checker {
    /// By the digest of the history that ends with the output.
    nodes: HashMap<u64, Node>,
    /// What the world has seen: index in the machine's whole history, digest up to there.
    released: BTreeMap<u64, u64>,
    live: (u64, u64),
    /// The generations of all pairs, and whether the last one is kept by checkpoints.
    pairs: BTreeSet<u64>,
    by_checkpoints: Option<bool>,
    registers: HashMap<(usize, u64), u64>,
    states: HashMap<(usize, u64), u64>,
    /// Outputs whose log the backup holds, and has executed, by stream.
    held: HashMap<usize, u64>,
    executed: HashMap<usize, u64>,
    pub last_effect_us: u64,
    /// The machine may be gone for good: more failed than the pair promises to survive.
    pub excused: Option<&'static str>,
    /// A generation in which the primary has asked its backup to leave, and it is not known what
    /// came of it.
    leaving: Option<u64>,
    /// Since when nobody would take over.
    exposed_us: Option<u64>,
    pub tally: Tally,
    pub violation: Option<String>,
}

impl Checker {
    pub fn fail(&mut self, why: String) {
        self.violation.get_or_insert(why);
    }

    /// A replica that has the machine reports something.
    pub fn reported(&mut self, happening: &Happening, now_us: u64) {
        let tally = &mut self.tally;
        match happening {
            Happening::Joining => tally.joins += 1,
            Happening::Undecided => tally.undecided += 1,
            Happening::Protected { .. } => {
                tally.protections += 1;
                if let Some(since_us) = self.exposed_us.take() {
                    tally.exposures += 1;
                    tally.exposed_us += now_us - since_us;
                }
            }
            Happening::PeerLost(_) => {
                self.exposed_us.get_or_insert(now_us);
            }
            Happening::Solo { why, .. } => {
                match why {
                    SoloReason::Won => tally.wins += 1,
                    SoloReason::Left | SoloReason::Diverged => tally.promises += 1,
                    SoloReason::NotJoined | SoloReason::Reclaimed => {}
                }
                self.exposed_us.get_or_insert(now_us);
            }
            Happening::Live { generation } => {
                tally.takeovers += 1;
                tally.deepest = tally.deepest.max(*generation);
                self.exposed_us.get_or_insert(now_us);
            }
            _ => {}
        }
    }

    /// A machine is protected: by a pair whose generation no other pair has. A primary that was
    /// stopped may say so late, when there are newer pairs.
    pub fn pair_began(&mut self, generation: u64, by_checkpoints: bool) {
        if !self.pairs.insert(generation) {
            self.fail(format!("two pairs in generation {generation}"));
        }
        let before = self.by_checkpoints.replace(by_checkpoints);
        self.tally.switches += u64::from(before.is_some_and(|before| before != by_checkpoints));
    }

    pub fn emitted(&mut self, before: Trail, all: &[Emitted], now_us: u64) {
        let mut parent = before.digest;
        for Emitted { total, output } in all {
            let write = match output {
                Output::Block { op: BlockOp::Write { sector, data }, .. } => {
                    Some((*sector, u64::from_le_bytes(data.as_slice().try_into().unwrap())))
                }
                _ => None,
            };
            let gated = output.is_gated();
            let request = request(output);
            let node = Node { parent, gated, write, request, forgiven: false, at_us: now_us };
            self.nodes.entry(total.digest).or_insert(node);
            parent = total.digest;
        }
    }

    /// Somebody goes on alone, by right.
    pub fn went_live(&mut self, process: u64, generation: u64, history: Trail) {
        let (live_generation, live_process) = self.live;
        if generation < live_generation
            || generation == live_generation && process != live_process && live_process != 0
        {
            self.fail(format!(
                "two live: process {process} in generation {generation}, process {live_process} \
                 in generation {live_generation}"
            ));
        }
        self.live = (generation, process);
        self.tally.deepest = self.tally.deepest.max(generation);
        self.account(history);
    }

    /// The newest generation that anybody went on in.
    pub fn live_generation(&self) -> u64 {
        self.live.0
    }

    /// Everything the world has seen must be in this history.
    fn account(&mut self, history: Trail) {
        let chain = self.chain(history);
        for (index, digest) in &self.released {
            if chain.get(*index as usize - 1) != Some(digest) {
                let why = format!("output {index} was seen, the survivor's history lacks it");
                return self.fail(why);
            }
        }
    }

    fn chain(&self, history: Trail) -> Vec<u64> {
        let mut chain = vec![];
        let mut at = history.digest;
        while let Some(node) = self.nodes.get(&at) {
            chain.push(at);
            at = node.parent;
        }
        assert_eq!(chain.len() as u64, history.count, "the checker knows all histories");
        chain.reverse();
        chain
    }

    /// The place of a request in the history in which it is open.
    pub fn total_of(&self, history: Trail, output: &Output) -> Option<Trail> {
        let wanted = request(output);
        let Trail { mut count, mut digest } = history;
        while let Some(node) = self.nodes.get(&digest) {
            if wanted.is_some() && node.request == wanted {
                return Some(Trail { count, digest });
            }
            (count, digest) = (count - 1, node.parent);
        }
        None
    }

    /// A machine goes on from a checkpoint with this history, without a word from where it was: what
    /// waited there since output `from`, and is no request, nobody will see.
    pub fn forgive(&mut self, from: u64, history: Trail) {
        let Trail { mut count, mut digest } = history;
        while count > from
            && let Some(node) = self.nodes.get_mut(&digest)
        {
            node.forgiven |= node.request.is_none();
            (count, digest) = (count - 1, node.parent);
        }
    }

    /// An output becomes visible to the world.
    pub fn effect(&mut self, process: u64, generation: u64, total: Option<Trail>, now_us: u64) {
        self.last_effect_us = now_us;
        self.visible(process, generation, "an output");
        let Some(total) = total else { return };
        let before = *self.released.entry(total.count).or_insert(total.digest);
        if before != total.digest {
            self.fail(format!("output {} was seen in two different histories", total.count));
        }
    }

    pub fn stands(&mut self, state: PrimaryState, generation: u64) {
        match state {
            PrimaryState::Leaving => self.leaving = Some(generation),
            PrimaryState::Holding | PrimaryState::Halted => {}
            PrimaryState::Solo
            | PrimaryState::Greeting
            | PrimaryState::Copying
            | PrimaryState::Protecting
            | PrimaryState::Protected
            | PrimaryState::Yielding => {
                self.leaving = self.leaving.filter(|leaving| *leaving > generation);
            }
        }
    }

    /// Whether the backup of this generation may have been asked to promise that it stays out.
    pub fn may_leave(&self, generation: u64) -> bool {
        self.leaving == Some(generation)
    }

    /// A process believes that it may carry outputs out.
    pub fn may_speak(&mut self, process: u64, generation: u64) {
        self.visible(process, generation, "the right to speak");
    }

    pub fn landed(&mut self, process: u64, generation: u64) {
        self.visible(process, generation, "a disk write");
    }

    fn visible(&mut self, process: u64, generation: u64, what: &str) {
        let (live_generation, live) = self.live;
        if process != live {
            self.fail(format!(
                "two live: {what} of process {process} in generation {generation} while process \
                 {live} is live in generation {live_generation}"
            ));
        }
    }

    pub fn backup_holds(&mut self, stream: usize, outputs: u64) {
        self.held.insert(stream, outputs);
    }

    /// A gated output leaves a protected primary.
    pub fn committed(&mut self, stream: usize, sequence: u64, verified: bool) {
        let known = if verified { &self.executed } else { &self.held };
        if known.get(&stream).copied().unwrap_or(0) < sequence {
            self.fail(format!("output {sequence} left before the backup could account for it"));
        }
    }

    pub fn recorded(&mut self, stream: usize, moment: u64, registers: u64) {
        self.registers.insert((stream, moment), registers);
    }

    pub fn replayed(&mut self, stream: usize, moment: u64, registers: u64, spoiled: bool) {
        match self.registers.get(&(stream, moment)) {
            Some(recorded) if *recorded == registers || spoiled => {}
            Some(_) => self.fail(format!("different registers at moment {moment}")),
            None => self.fail(format!("moment {moment} was replayed and never recorded")),
        }
    }

    pub fn cut(&mut self, stream: usize, chunk: u64, state: u64) {
        self.states.insert((stream, chunk), state);
    }

    /// The backup has executed a chunk and its copy is in this state, which may be known to differ.
    /// Whether it is the machine's.
    pub fn executed(
        &mut self,
        (stream, chunk): (usize, u64),
        outputs: Trail,
        state: Option<u64>,
        spoiled: bool,
    ) -> bool {
        self.executed.insert(stream, outputs.count);
        let recorded = self.states.get(&(stream, chunk)).copied();
        let (Some(state), Some(recorded)) = (state, recorded) else { return false };
        if state != recorded && !spoiled {
            self.fail(format!("different states after chunk {chunk}, and nobody noticed"));
        }
        state == recorded
    }

    /// The machine goes on from where the last chunk left it, and from nowhere else.
    pub fn taken_over(&mut self, stream: usize, chunk: u64, state: u64) {
        if self.states.get(&(stream, chunk)) != Some(&state) {
            self.fail(format!("the machine goes on from another state than after chunk {chunk}"));
        }
    }

    /// Once everything has calmed down: nothing is missing but what may still wait, `waited_us` at
    /// most.
    pub fn finish(
        &mut self,
        history: Trail,
        open_sectors: &[u64],
        disk: &BTreeMap<u64, u64>,
        (now_us, waited_us): (u64, u64),
    ) {
        self.account(history);
        let mut last = BTreeMap::new();
        for (index, digest) in self.chain(history).iter().enumerate() {
            let node = &self.nodes[digest];
            let index = index as u64 + 1;
            let due = node.gated && !node.forgiven && node.at_us + waited_us < now_us;
            if due && !self.released.contains_key(&index) {
                return self.fail(format!("output {index} was lost: nobody ever saw it"));
            }
            if let Some((sector, value)) = node.write {
                last.insert(sector, value);
            }
        }
        for (sector, value) in last {
            if !open_sectors.contains(&sector) && disk.get(&sector) != Some(&value) {
                return self.fail(format!("sector {sector} does not hold what was written last"));
            }
        }
    }
}

/// What an answer to `output` says that it is for, if it is a request.
fn request(output: &Output) -> Option<u64> {
    match output {
        Output::Block { token, .. } => Some(*token),
        // Only one is open at a time.
        Output::Entropy { .. } => Some(u64::MAX),
        Output::Packet { .. }
        | Output::Console { .. }
        | Output::Serial { .. }
        | Output::NetOffloads { .. }
        | Output::Reset
        | Output::PowerOff => None,
    }
}
