//! The answer of `vm.ft-info`: how the protection of a VM is, in numbers with units.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::config::AckMode;

/// How the protection is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FtInfo {
    /// What this replica is doing.
    pub state: FtState,
    /// Which part it plays; absent for a VM that is on its own.
    pub role: Option<FtRole>,
    /// What the VM is called where the arbiter keeps its answers, in hexadecimal digits.
    pub vm_id: Option<String>,
    /// Where the arbiter is; absent if there is none.
    pub arbiter: Option<String>,
    /// How many pairs this VM has been part of; the arbiter is asked once a generation.
    pub generation: u64,
    /// How the VM is kept twice.
    pub mode: FtProtection,
    /// Why this VM cannot be followed by replay, if that is known.
    pub mode_reason: Option<String>,
    /// When outputs may leave.
    pub ack: AckMode,
    /// The other replica's address, or the log's file.
    pub peer: Option<String>,
    /// The VM's logical time here: deterministic exits since it booted.
    pub moment: u64,
    /// The last moment the backup acknowledged; at the backup, the last one it has acknowledged.
    pub acknowledged_moment: u64,
    /// Milliseconds the backup's execution is behind, as this side sees it: since the oldest log
    /// that is not executed was sent (primary) or came (backup).
    pub lag_ms: u64,
    /// Primary: the part of its time, in percent, that the guest rests because the backup is slower.
    pub slowdown_percent: u64,
    /// The log.
    pub log: LogTraffic,
    /// Bytes of the stream that carries the log and all other messages, as they travel: sent
    /// (primary) or received (backup) since it was opened; 0 while there is none.
    #[serde(default)]
    pub wire_bytes: u64,
    /// Outputs that wait for an acknowledgement now.
    pub outputs_held: u64,
    /// How long outputs waited.
    pub output_delay_us: OutputDelayUs,
    /// Times the state was shipped instead of the log.
    pub deltas: u64,
    /// Pages shipped with them.
    pub delta_pages: u64,
    /// Times the replicas' digests differed since the VMM started. All other counters begin with
    /// the protection.
    pub divergences: u64,
    /// Times a copy that differed was made equal again without ending the protection, since the VMM
    /// started.
    #[serde(default)]
    pub healings: u64,
    /// Primary: pages that were sent for the last of them.
    #[serde(default)]
    pub healing_pages: u64,
    /// Primary: the join that is under way, or the last one.
    pub join: Option<JoinInfo>,
    /// Who would be joined, in turn, when there is no backup.
    pub standbys: Vec<StandbyInfo>,
    /// What happened last.
    pub last_event: Option<FtEvent>,
    /// What happened since the VMM started, newest last; the oldest are forgotten.
    #[serde(default)]
    pub events: Vec<FtEvent>,
}

/// A host that would follow the VM.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StandbyInfo {
    /// Where it waits.
    pub address: String,
    /// It is the backup, or being joined.
    pub current: bool,
    /// Joins that failed, and protections that ended early, since it last did well.
    pub failures: u32,
    /// Milliseconds until it may be tried again; 0 if it may now.
    pub retry_in_ms: u64,
}

/// How far a join is: the machine is copied in rounds while it runs, then stands still for the
/// pages written last.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinInfo {
    /// Rounds begun; the first is over all pages.
    pub round: u32,
    /// Pages of 4 KiB looked at, each time they were.
    pub pages: u64,
    /// Of those, pages that held nothing but zeros.
    pub zero_pages: u64,
    /// Of those, pages that were not sent because the backup's memory had them already: of zeros
    /// where it was new, of what it was before where it followed this VM until a short while ago.
    pub kept_pages: u64,
    /// Pages of this round still to be copied.
    pub pages_left: u64,
    /// Bytes of log that hold the copy.
    pub bytes: u64,
    /// Share of the guest's time, in percent, that the copy may take. It grows when the guest
    /// writes pages faster than they can be copied.
    pub throttle_percent: u64,
    /// Milliseconds since the join began, or that it took.
    pub elapsed_ms: u64,
    /// Milliseconds until this round is over, if it goes on as before; absent once it is done.
    pub round_ends_in_ms: Option<u64>,
    /// Microseconds the machine stood still; absent until it is done.
    pub pause_us: Option<u64>,
}

/// What a replica is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FtState {
    /// Not protected and not asked to be.
    #[default]
    Off,
    /// Primary: runs on its own after its backup was lost or released.
    Solo,
    /// Primary: the backup is being given the VM. Backup: it is being received.
    Joining,
    /// Primary: the backup follows; outputs wait for it.
    Protected,
    /// Either: the backup's copy differs and is made equal; outputs wait until it is.
    Healing,
    /// Primary: the backup is lost; outputs are held while the arbiter is asked.
    Holding,
    /// Backup: no primary has come yet.
    Waiting,
    /// Backup: executes the primary's log.
    Following,
    /// Backup: the primary is lost; the rest of its log is replayed and the arbiter asked.
    TakingOver,
    /// Backup: it took over and is the VM now.
    Live,
    /// Either: the other one lives, so this one stopped for good.
    Halted,
    /// The run is written to a file.
    Recording,
    /// A recorded run is executed and compared.
    Replaying,
    /// A replay differed from its recording and stopped.
    Diverged,
    /// A replay came to the end of its log without a difference.
    Replayed,
}

impl FtState {
    /// Every state there is.
    pub const ALL: [FtState; 15] = [
        FtState::Off,
        FtState::Solo,
        FtState::Joining,
        FtState::Protected,
        FtState::Healing,
        FtState::Holding,
        FtState::Waiting,
        FtState::Following,
        FtState::TakingOver,
        FtState::Live,
        FtState::Halted,
        FtState::Recording,
        FtState::Replaying,
        FtState::Diverged,
        FtState::Replayed,
    ];

    /// Its name in JSON.
    pub fn name(self) -> &'static str {
        match self {
            FtState::Off => "off",
            FtState::Solo => "solo",
            FtState::Joining => "joining",
            FtState::Protected => "protected",
            FtState::Healing => "healing",
            FtState::Holding => "holding",
            FtState::Waiting => "waiting",
            FtState::Following => "following",
            FtState::TakingOver => "taking-over",
            FtState::Live => "live",
            FtState::Halted => "halted",
            FtState::Recording => "recording",
            FtState::Replaying => "replaying",
            FtState::Diverged => "diverged",
            FtState::Replayed => "replayed",
        }
    }
}

/// The part a VMM plays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FtRole {
    /// Runs the VM for the world.
    Primary,
    /// Follows.
    Backup,
    /// Writes a log.
    Recorder,
    /// Reads a log.
    Replayer,
}

impl FtRole {
    /// Its name in JSON.
    pub fn name(self) -> &'static str {
        match self {
            FtRole::Primary => "primary",
            FtRole::Backup => "backup",
            FtRole::Recorder => "recorder",
            FtRole::Replayer => "replayer",
        }
    }
}

/// How a VM is kept twice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FtProtection {
    /// Not at all.
    #[default]
    None,
    /// The backup executes the log; deltas only where it must.
    Replay,
    /// Deltas alone.
    Checkpoint,
}

impl FtProtection {
    /// Its name in JSON.
    pub fn name(self) -> &'static str {
        match self {
            FtProtection::None => "none",
            FtProtection::Replay => "replay",
            FtProtection::Checkpoint => "checkpoint",
        }
    }
}

/// How much log there is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogTraffic {
    /// Bytes since the protection began.
    pub bytes: u64,
    /// Bytes a second, over the last seconds.
    pub bytes_per_second: u64,
    /// Bytes by kind of record.
    pub bytes_by_kind: BTreeMap<String, u64>,
    /// Bytes a second by kind of record, over the last seconds.
    pub bytes_per_second_by_kind: BTreeMap<String, u64>,
}

/// How long outputs waited for their acknowledgement, in microseconds, over the last seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputDelayUs {
    /// Half of them waited no longer.
    pub p50: u64,
    /// 99 in 100 waited no longer.
    pub p99: u64,
}

/// Something that happened to the pair.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FtEvent {
    /// What, as a sentence.
    pub what: String,
    /// When, in milliseconds since 1970 (UTC) by this host's clock.
    pub when_unix_ms: u64,
    /// How long ago, in milliseconds, at the time of asking.
    pub ago_ms: u64,
    /// The moment at which it happened, if it has one.
    pub moment: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_json() {
        let json = |value: &dyn Fn() -> serde_json::Value| value().as_str().unwrap().to_owned();
        for state in FtState::ALL {
            assert_eq!(state.name(), json(&|| serde_json::to_value(state).unwrap()));
        }
        for role in [FtRole::Primary, FtRole::Backup, FtRole::Recorder, FtRole::Replayer] {
            assert_eq!(role.name(), json(&|| serde_json::to_value(role).unwrap()));
        }
        for mode in [FtProtection::None, FtProtection::Replay, FtProtection::Checkpoint] {
            assert_eq!(mode.name(), json(&|| serde_json::to_value(mode).unwrap()));
        }
        for ack in [AckMode::Received, AckMode::Verified] {
            assert_eq!(ack.name(), json(&|| serde_json::to_value(ack).unwrap()));
        }
    }
}
