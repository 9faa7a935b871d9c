//! What happened in one run, or in many: that the faults bite, and that little is excused.

use std::collections::BTreeMap;
use std::fmt;

#[derive(Clone, Debug, Default)]
pub struct Tally {
    pub seeds: u64,
    pub takeovers: u64,
    /// The arbiter decided for the primary.
    pub wins: u64,
    /// A promise let the primary go on without the arbiter.
    pub promises: u64,
    /// Machines that moved for good.
    pub moves: u64,
    /// Machines of which only the user could tell where they were.
    pub undecided: u64,
    pub joins: u64,
    pub protections: u64,
    /// From the end of a protection to the next, with everything in between.
    pub exposed_us: u64,
    pub exposures: u64,
    /// The highest generation.
    pub deepest: u64,
    /// Outputs that left while the machine was being copied.
    pub while_copied: u64,
    /// Frames whose body was packed.
    pub packed: u64,
    pub checkpoints: u64,
    /// Machines that went on from a checkpoint.
    pub from_checkpoints: u64,
    /// Those of them of whose next checkpoint some had come.
    pub from_halves: u64,
    /// Spoiled copies that the comparison of a checkpoint found.
    pub found_spoiled: u64,
    /// Machines that were kept in the other way than before.
    pub switches: u64,
    /// Copies that were healed in place.
    pub healings: u64,
    /// Those of them of which all memory was compared, as they had differed again.
    pub healed_wholly: u64,
    /// Machines that went on from a copy that had been healed.
    pub from_healed: u64,
    /// Copies whose pair broke before they were healed.
    pub lost_healing: u64,
    /// Machines lost to a second failure, by what it was.
    pub excused: BTreeMap<&'static str, u64>,
    /// Those of them in runs that put second failures off.
    pub lost_anyway: u64,
}

impl Tally {
    pub fn add(&mut self, other: &Self) {
        self.seeds += other.seeds;
        self.takeovers += other.takeovers;
        self.wins += other.wins;
        self.promises += other.promises;
        self.moves += other.moves;
        self.undecided += other.undecided;
        self.joins += other.joins;
        self.protections += other.protections;
        self.exposed_us += other.exposed_us;
        self.exposures += other.exposures;
        self.deepest = self.deepest.max(other.deepest);
        self.while_copied += other.while_copied;
        self.packed += other.packed;
        self.checkpoints += other.checkpoints;
        self.from_checkpoints += other.from_checkpoints;
        self.from_halves += other.from_halves;
        self.found_spoiled += other.found_spoiled;
        self.switches += other.switches;
        self.healings += other.healings;
        self.healed_wholly += other.healed_wholly;
        self.from_healed += other.from_healed;
        self.lost_healing += other.lost_healing;
        self.lost_anyway += other.lost_anyway;
        for (why, count) in &other.excused {
            *self.excused.entry(why).or_default() += count;
        }
    }

    pub fn lost(&self) -> u64 {
        self.excused.values().sum()
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seeds, takeovers, wins, promises, joins, protections, .. } = self;
        let Self { exposed_us, exposures, deepest, while_copied, moves, undecided, .. } = self;
        let Self {
            packed,
            checkpoints,
            from_checkpoints,
            from_halves,
            found_spoiled,
            switches,
            ..
        } = self;
        let Self { healings, healed_wholly, from_healed, lost_healing, .. } = self;
        write!(
            f,
            "{seeds} seeds: {takeovers} takeovers, {wins} wins and {promises} promises for the \
             primary; {moves} moves, {undecided} of unknown end; {joins} joins, \
             {while_copied} outputs while they copied, {packed} frames packed, {protections} \
             protections, {} ms from one to the next, up to generation {deepest}; {checkpoints} \
             checkpoints, {from_checkpoints} machines went on from one, {from_halves} with half of \
             the next, {found_spoiled} copies by them were found spoiled, {switches} changes \
             between them and replay; {healings} copies were healed, {healed_wholly} of them by all of \
             memory, {from_healed} machines went on from such a one, {lost_healing} pairs broke \
             before that; {} machines lost \
             to a second failure ({} though it was put off)",
            exposed_us / 1000 / exposures.max(&1),
            self.lost(),
            self.lost_anyway,
        )?;
        self.excused.iter().try_for_each(|(why, count)| write!(f, ", {count}: {why}"))
    }
}
