//! The partition matrix: the rows of `docs/PARTITIONS.md` that the protocol can see, each over many seeds.
//!
//! Owns what is cut in a row, when, and whether it has ended as the document says while it was cut. That nothing is lost, that
//! never two speak and that all is well afterwards is watched as in every other run. The clients' network is of no concern
//! to the protocol, and is not here.

use ft::{BackupState, PrimaryState};

use crate::faults::{Fault, Plan, Who};
use crate::host::Role;
use crate::network::Traffic;
use crate::queue::Due;
use crate::rng::Rng;
use crate::run::Run;

/// Longer than anybody's patience and fence together, whatever the settings.
const CUT_US: u64 = 5_000_000;
/// A pair that is not whole when it is to be cut is looked at again after this time.
const NOT_YET_US: u64 = 50_000;

/// One thing that is cut, by its name in the document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Single {
    Channel,
    Heartbeats,
    ToBackup,
    ToPrimary,
    Hosts,
    ArbiterAtPrimary,
    ArbiterAtBackup,
    Killed,
}

/// Who runs the machine while it is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expected {
    Unchanged,
    One,
    Primary,
    Backup,
    Nobody,
}

/// A row of the document.
#[derive(Clone, Debug)]
pub struct Row {
    pub name: &'static str,
    singles: Vec<Single>,
    expected: Expected,
}

impl Single {
    fn named(name: &str) -> Option<Self> {
        Some(match name {
            "channel" => Self::Channel,
            "heartbeats" => Self::Heartbeats,
            "to-backup" => Self::ToBackup,
            "to-primary" => Self::ToPrimary,
            "hosts" => Self::Hosts,
            "arbiter-at-primary" => Self::ArbiterAtPrimary,
            "arbiter-at-backup" => Self::ArbiterAtBackup,
            "killed" => Self::Killed,
            _ => return None,
        })
    }
}

impl Expected {
    fn named(words: &str) -> Option<Self> {
        Some(match words {
            "unchanged" => Self::Unchanged,
            "one goes on" => Self::One,
            "the primary goes on" => Self::Primary,
            "the backup goes on" => Self::Backup,
            words if words.starts_with("nobody; ") => Self::Nobody,
            _ => return None,
        })
    }
}

/// The rows without clients.
pub fn rows() -> Vec<Row> {
    let document = include_str!("../../../docs/PARTITIONS.md");
    let cells = document.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` |"));
    let rows = cells.filter(|(name, _)| !name.contains("client-at-"));
    let row = |(name, rest): (&'static str, &str)| {
        let words = rest.split('|').next().unwrap_or_default().trim();
        let known = |single| Single::named(single).unwrap_or_else(|| panic!("what is '{single}'?"));
        let expected = Expected::named(words).unwrap_or_else(|| panic!("what is '{words}'?"));
        Row { name, singles: name.split('+').map(known).collect(), expected }
    };
    rows.map(row).collect()
}

pub fn named(name: &str) -> Option<Row> {
    rows().into_iter().find(|row| row.name == name)
}

/// The network is cut some time after the first pair is whole.
pub fn plan(rng: &mut Rng, row: &Row) -> Plan {
    let at_us = rng.range(500_000, 2_000_000);
    let faults = vec![(at_us, Fault::Partition(row.clone()))];
    Plan { faults, storm_us: 2 * at_us + CUT_US }
}

impl Run {
    /// Cuts what the row says, all at once, if the pair is whole.
    pub(crate) fn cut_row(&mut self, row: Row) {
        let both = [self.find(Who::Live), self.find(Who::Follower)];
        let ([Some(primary), Some(backup)], true) = (both, self.is_whole()) else {
            return self.world.after(NOT_YET_US, Due::Fault(Fault::Partition(row)));
        };
        let until_us = self.world.now_us + 2 * CUT_US;
        for single in &row.singles {
            let network = &mut self.world.network;
            let mut cut = |from, to, what: &[Traffic]| {
                what.iter().for_each(|traffic| network.cut_only(*traffic, from, to, until_us));
            };
            match single {
                Single::Channel | Single::Heartbeats | Single::Hosts => {
                    let what: &[Traffic] = match single {
                        Single::Channel => &[Traffic::Stream],
                        Single::Heartbeats => &[Traffic::Datagrams],
                        _ => &Traffic::ALL,
                    };
                    cut(primary, backup, what);
                    cut(backup, primary, what);
                }
                Single::ToBackup => cut(primary, backup, &Traffic::ALL),
                Single::ToPrimary => cut(backup, primary, &Traffic::ALL),
                Single::ArbiterAtPrimary => {
                    self.world.hosts[primary].arbiter_cut_until_us = until_us;
                }
                Single::ArbiterAtBackup => self.world.hosts[backup].arbiter_cut_until_us = until_us,
                Single::Killed => self.bury(primary),
            }
        }
        let pair = [primary, backup].map(|host| self.world.hosts[host].process);
        // Who is dead has no name any more.
        let pair = pair.map(|process| if process == u64::MAX { 0 } else { process });
        self.world.after(CUT_US, Due::Fault(Fault::Judge { row, pair }));
    }

    /// It has been cut for long: has it come out as the document says? Then the cuts are mended.
    pub(crate) fn judge(&mut self, row: &Row, [primary, backup]: [u64; 2]) {
        let live = self.live();
        let is_right = match row.expected {
            Expected::Unchanged => live == [primary] && self.is_whole(),
            Expected::One => live == [primary] || live == [backup],
            Expected::Primary => live == [primary],
            Expected::Backup => live == [backup],
            Expected::Nobody => live.is_empty(),
        };
        if !is_right {
            let name = row.name;
            self.world.checker.fail(format!(
                "{name}: {:?} was expected of primary {primary} and backup {backup}, but {live:?} live",
                row.expected
            ));
        }
        self.world.after(1, Due::Fault(Fault::Calm));
    }

    /// The processes that run the machine and may speak.
    fn live(&self) -> Vec<u64> {
        let live = self.processes.iter().flatten().filter(|process| match &process.role {
            Role::Primary(driver) => !matches!(
                driver.primary.state(),
                PrimaryState::Holding | PrimaryState::Yielding | PrimaryState::Halted
            ),
            Role::Backup(_) | Role::Ended => false,
        });
        live.map(|process| process.id).collect()
    }

    /// Whether a primary is protected by a backup that follows it.
    fn is_whole(&self) -> bool {
        let is = |wanted: fn(&Role) -> bool| {
            self.processes.iter().flatten().any(|process| wanted(&process.role))
        };
        is(
            |role| matches!(role, Role::Primary(driver) if driver.primary.state() == PrimaryState::Protected),
        ) && is(
            |role| matches!(role, Role::Backup(driver) if driver.backup.state() == BackupState::Following),
        )
    }
}
