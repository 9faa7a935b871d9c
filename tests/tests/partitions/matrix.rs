//! What can be cut, alone and together, and how each must end.
//!
//! Owns the rows and the rules by which their outcomes follow from the protocol; `docs/PARTITIONS.md` is the same for
//! people. Plays nothing.

use tests::runner::{Cut, Party, Traffic};

/// One thing that is cut, seen from the pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Single {
    /// The stream between the hosts, nothing else.
    Channel,
    /// Datagrams between the hosts, and with them the word that nobody listens.
    Heartbeats,
    /// Everything that the primary's host says to the backup's.
    ToBackup,
    /// Everything that the backup's host says to the primary's.
    ToPrimary,
    /// Everything between the hosts.
    Hosts,
    /// The VM's network at the primary's host.
    ClientAtPrimary,
    /// The VM's network at the backup's host.
    ClientAtBackup,
    /// The way from the primary's host to the storage with the arbiter's folder.
    ArbiterAtPrimary,
    /// The way from the backup's host there.
    ArbiterAtBackup,
    /// The primary's process, by SIGKILL: no cut, but what some cuts make a difference to.
    Killed,
}

use Single::{
    ArbiterAtBackup, ArbiterAtPrimary, Channel, ClientAtBackup, ClientAtPrimary, Heartbeats, Hosts,
    Killed, ToBackup, ToPrimary,
};

const CUTS: [Single; 9] = [
    Channel,
    Heartbeats,
    ToBackup,
    ToPrimary,
    Hosts,
    ClientAtPrimary,
    ClientAtBackup,
    ArbiterAtPrimary,
    ArbiterAtBackup,
];

/// Rows beyond all single cuts and all pairs of them.
const MORE: [&[Single]; 6] = [
    &[Hosts, ArbiterAtPrimary, ArbiterAtBackup],
    &[Channel, ArbiterAtPrimary, ArbiterAtBackup],
    &[Killed],
    &[Heartbeats, Killed],
    &[ClientAtBackup, Killed],
    &[ArbiterAtBackup, Killed],
];

/// The rows that are always played; the others when they are asked for.
pub const SAMPLE: [&str; 2] = ["to-primary", "hosts+arbiter-at-primary"];

/// Who runs the VM in the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The primary, protected as before: nobody noticed, or nobody minded.
    Unchanged,
    /// One of the two; which one is the arbiter's matter.
    One,
    /// The primary, alone.
    Primary,
    /// The backup.
    Backup,
    /// Nobody, until the cut is mended; then one of the two.
    NobodyThenOne,
    /// Nobody, until the cut is mended; then the backup.
    NobodyThenBackup,
}

impl Outcome {
    /// Its words in the document.
    pub fn words(self) -> &'static str {
        match self {
            Self::Unchanged => "unchanged",
            Self::One => "one goes on",
            Self::Primary => "the primary goes on",
            Self::Backup => "the backup goes on",
            Self::NobodyThenOne => "nobody; mended: one goes on",
            Self::NobodyThenBackup => "nobody; mended: the backup goes on",
        }
    }
}

impl Single {
    /// Its name, for `FT_PARTITIONS` and the document.
    pub fn name(self) -> &'static str {
        match self {
            Channel => "channel",
            Heartbeats => "heartbeats",
            ToBackup => "to-backup",
            ToPrimary => "to-primary",
            Hosts => "hosts",
            ClientAtPrimary => "client-at-primary",
            ClientAtBackup => "client-at-backup",
            ArbiterAtPrimary => "arbiter-at-primary",
            ArbiterAtBackup => "arbiter-at-backup",
            Killed => "killed",
        }
    }

    /// What is cut, where the primary is on one host and the backup on the other, which talk on this port.
    fn cuts(self, primary: usize, backup: usize, port: u16) -> Vec<Cut> {
        let (one, other) = (Party::Host(primary), Party::Host(backup));
        let everything = Traffic::Everything;
        match self {
            Channel => Cut::both_ways(one, other, Traffic::Tcp(port)).to_vec(),
            Heartbeats => [Traffic::Udp(port), Traffic::Icmp]
                .into_iter()
                .flat_map(|what| Cut::both_ways(one, other, what))
                .collect(),
            ToBackup => vec![Cut::one_way(one, other, everything)],
            ToPrimary => vec![Cut::one_way(other, one, everything)],
            Hosts => Cut::both_ways(one, other, everything).to_vec(),
            ClientAtPrimary => Cut::client_network(primary).to_vec(),
            ClientAtBackup => Cut::client_network(backup).to_vec(),
            ArbiterAtPrimary => Cut::both_ways(one, Party::Storage, everything).to_vec(),
            ArbiterAtBackup => Cut::both_ways(other, Party::Storage, everything).to_vec(),
            Killed => Vec::new(),
        }
    }

    /// Whether this alone makes each side lose the other.
    fn breaks_the_pair(self) -> bool {
        matches!(self, Channel | ToBackup | ToPrimary | Hosts)
    }

    /// Whether a cut of the one contains that of the other.
    fn contains(self, other: Self) -> bool {
        match self {
            Hosts => matches!(other, Channel | Heartbeats | ToBackup | ToPrimary),
            // Both ways are all there is.
            ToBackup => other == ToPrimary,
            _ => false,
        }
    }
}

/// Things that happen at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row(pub Vec<Single>);

impl Row {
    fn has(&self, single: Single) -> bool {
        self.0.contains(&single)
    }

    /// Its name.
    pub fn name(&self) -> String {
        self.0.iter().map(|single| single.name()).collect::<Vec<_>>().join("+")
    }

    /// What is cut.
    pub fn cuts(&self, primary: usize, backup: usize, port: u16) -> Vec<Cut> {
        self.0.iter().flat_map(|single| single.cuts(primary, backup, port)).collect()
    }

    /// Whether the primary is killed.
    pub fn kills(&self) -> bool {
        self.has(Killed)
    }

    /// How it must end: PROTOCOL.md §7 and §9.
    pub fn outcome(&self) -> Outcome {
        if self.kills() {
            let asks = !self.has(ArbiterAtBackup);
            return if asks { Outcome::Backup } else { Outcome::NobodyThenBackup };
        }
        if !self.0.iter().any(|single| single.breaks_the_pair()) {
            // Datagrams missing alone are no loss; the arbiter is asked only after one, and nobody looks at the VM's network.
            return Outcome::Unchanged;
        }
        match (self.has(ArbiterAtPrimary), self.has(ArbiterAtBackup)) {
            (false, false) => Outcome::One,
            (true, false) => Outcome::Backup,
            (false, true) => Outcome::Primary,
            (true, true) => Outcome::NobodyThenOne,
        }
    }

    /// Whether the client hears nothing, as long as the cut lasts, of a VM that runs where the primary is (or was), or where
    /// the backup is.
    pub fn client_waits(&self, at_primary: bool) -> bool {
        self.has(if at_primary { ClientAtPrimary } else { ClientAtBackup })
    }
}

/// All rows, in the document's order.
pub fn rows() -> Vec<Row> {
    let singles = CUTS.iter().map(|single| Row(vec![*single]));
    let pairs = CUTS.iter().enumerate().flat_map(|(index, one)| {
        let others = CUTS.iter().skip(index + 1);
        let apart = others.filter(move |other| !one.contains(**other) && !other.contains(*one));
        apart.map(move |other| Row(vec![*one, *other]))
    });
    let more = MORE.iter().map(|singles| Row(singles.to_vec()));
    singles.chain(pairs).chain(more).collect()
}

/// What is to be played.
#[derive(Debug)]
pub struct Chosen {
    /// The scenes of a disk on NFS.
    pub nfs: bool,
    pub rows: Vec<Row>,
}

/// What `FT_PARTITIONS` asks for: names with commas between them, among them `nfs`, or `all` rows. Without it, a sample.
pub fn chosen() -> Chosen {
    let all = rows();
    let wanted = std::env::var("FT_PARTITIONS")
        .unwrap_or_else(|_| ["nfs"].iter().chain(&SAMPLE).copied().collect::<Vec<_>>().join(","));
    if wanted == "all" {
        return Chosen { nfs: false, rows: all };
    }
    let find = |name: &str| {
        let found = all.iter().find(|row| row.name() == name).cloned();
        found.unwrap_or_else(|| {
            panic!("FT_PARTITIONS names '{name}', which docs/PARTITIONS.md lacks")
        })
    };
    let rows = wanted.split(',').filter(|name| *name != "nfs").map(find).collect();
    Chosen { nfs: wanted.split(',').any(|name| name == "nfs"), rows }
}
