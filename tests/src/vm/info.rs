//! The answer of `ft-info`, as a user of `ch-remote` sees it.
//!
//! Owns the tests' own reading of it, so that a field that changes its name or meaning is noticed here.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// How the protection of a VM is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FtInfo {
    /// What this replica is doing: `off`, `joining`, `protected`, `following`, `live`, …
    pub state: String,
    /// `primary` or `backup`, if the VM is one of a pair.
    pub role: Option<String>,
    /// Where the arbiter is, as this side asks it.
    pub arbiter: Option<String>,
    /// How many pairs this VM has been part of.
    pub generation: u64,
    /// How the VM is kept twice: `none`, `replay` or `checkpoint`.
    pub mode: String,
    /// The other replica's address.
    pub peer: Option<String>,
    /// The VM's logical time.
    pub moment: u64,
    /// The last moment that the backup acknowledged.
    pub acknowledged_moment: u64,
    /// How far the backup's execution is behind, in ms.
    pub lag_ms: u64,
    /// The part of its time, in percent, that the guest rests because the backup is slower.
    #[serde(default)]
    pub slowdown_percent: u64,
    /// The log.
    pub log: LogTraffic,
    /// Outputs that wait for an acknowledgement.
    pub outputs_held: u64,
    /// How long outputs waited.
    pub output_delay_us: Delay,
    /// Times the state was shipped instead of the log.
    pub deltas: u64,
    /// Pages shipped with them.
    pub delta_pages: u64,
    /// Times the replicas differed.
    pub divergences: u64,
    /// Times they were made equal again in the same protection.
    #[serde(default)]
    pub healings: u64,
    /// Pages that were sent for the last of them.
    #[serde(default)]
    pub healing_pages: u64,
    /// What happened last.
    pub last_event: Option<Occurrence>,
}

/// How much log there is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogTraffic {
    /// Bytes since the protection began.
    pub bytes: u64,
    /// Bytes a second, over the last seconds.
    pub bytes_per_second: u64,
    /// Bytes by kind of record.
    #[serde(default)]
    pub bytes_by_kind: BTreeMap<String, u64>,
    /// Bytes a second by kind of record.
    #[serde(default)]
    pub bytes_per_second_by_kind: BTreeMap<String, u64>,
}

/// Ranks of the outputs' waiting times, in µs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delay {
    /// Half of them waited no longer.
    pub p50: u64,
    /// 99 in 100 waited no longer.
    pub p99: u64,
}

/// Something that happened to the pair.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Occurrence {
    /// What, as a sentence.
    pub what: String,
    /// When, in ms since 1970.
    pub when_unix_ms: u64,
    /// How long ago, in ms.
    pub ago_ms: u64,
    /// The moment, if it has one.
    #[serde(default)]
    pub moment: Option<u64>,
}
