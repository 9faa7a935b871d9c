//! The answer of `vm.ft-info`.

use std::time::Instant;

use ft::{BackupState, PrimaryState};

use super::Shell;
use super::protection::Protection;
use crate::api::{FtInfo, FtProtection, FtRole, FtState, OutputDelayUs};
use crate::identity::hex;
use crate::replica::BoundedArbiter;

impl Shell {
    pub(super) fn ft_info(&self) -> FtInfo {
        let now = Instant::now();
        let events = self.statistics.events();
        let mut info = FtInfo {
            state: self.ft_state(),
            moment: self.statistics.moment,
            acknowledged_moment: self.statistics.acknowledged_moment,
            lag_ms: self.statistics.lag_ms(now),
            log: self.statistics.traffic(now),
            deltas: self.statistics.deltas,
            delta_pages: self.statistics.delta_pages,
            divergences: self.statistics.divergences,
            healings: self.statistics.healings,
            healing_pages: self.statistics.healing_pages,
            mode_reason: self.succession.unreplayable.as_ref().map(|known| known.why.clone()),
            join: self.statistics.join(),
            standbys: self.standby_infos(),
            last_event: events.last().cloned(),
            events,
            ..FtInfo::default()
        };
        match &self.protection {
            Protection::None => {}
            Protection::Recording(log) => {
                info.peer = Some(log.path().display().to_string());
                info.role = Some(FtRole::Recorder);
                info.mode = FtProtection::Replay;
            }
            Protection::Replaying(log) => {
                info.peer = Some(log.path().display().to_string());
                info.role = Some(FtRole::Replayer);
                info.mode = FtProtection::Replay;
            }
            Protection::Primary(side) => {
                info.role = Some(FtRole::Primary);
                info.vm_id = Some(hex(&side.vm_id));
                info.arbiter = side.arbiter.as_ref().map(|arbiter| arbiter.place());
                info.generation = side.primary.generation();
                info.slowdown_percent = side.lag_loop.percent();
                info.ack = side.ack();
                info.peer = Some(side.peer.clone());
                info.wire_bytes = side.channel.as_ref().map_or(0, |channel| channel.bytes_sent);
                info.outputs_held = side.outputs_held();
                let (p50, p99) = side.delays_us();
                info.output_delay_us = OutputDelayUs { p50, p99 };
                info.mode = protection(info.state, side.method);
            }
            Protection::Backup(side) => {
                info.role = Some(FtRole::Backup);
                info.vm_id = side.vm_id().map(|id| hex(&id));
                info.arbiter = side.arbiter().map(BoundedArbiter::place);
                info.generation = side.backup.generation();
                info.ack = side.ack();
                info.peer = Some(side.peer());
                info.wire_bytes = side.channel.as_ref().map_or(0, |channel| channel.bytes_received);
                info.outputs_held = side.outputs_held();
                info.mode = protection(info.state, side.method());
            }
        }
        info
    }

    /// What this side is doing.
    pub(super) fn ft_state(&self) -> FtState {
        match &self.protection {
            Protection::None => FtState::Off,
            Protection::Recording(_) => FtState::Recording,
            Protection::Replaying(_) => FtState::Replaying,
            Protection::Primary(side)
                if side.connecting() && (!self.succession.is_quiet() || self.moving.is_some()) =>
            {
                FtState::Joining
            }
            Protection::Primary(side) if side.primary.is_healing() => FtState::Healing,
            Protection::Primary(side) => primary_state(side.primary.state()),
            Protection::Backup(side) if side.backup.is_healing() => FtState::Healing,
            Protection::Backup(side) => backup_state(side.backup.state()),
        }
    }

    /// The generation that this side is in, or was in last.
    pub(super) fn generation(&self) -> u64 {
        match &self.protection {
            Protection::None | Protection::Recording(_) | Protection::Replaying(_) => 0,
            Protection::Primary(side) => side.primary.generation(),
            Protection::Backup(side) => side.identity().1,
        }
    }
}

/// How the VM is kept twice, if a second copy could go on in this state.
fn protection(state: FtState, method: FtProtection) -> FtProtection {
    match state {
        FtState::Protected | FtState::Following => method,
        FtState::Off
        | FtState::Solo
        | FtState::Joining
        | FtState::Healing
        | FtState::Holding
        | FtState::Waiting
        | FtState::TakingOver
        | FtState::Live
        | FtState::Halted
        | FtState::Recording
        | FtState::Replaying
        | FtState::Diverged
        | FtState::Replayed => FtProtection::None,
    }
}

fn primary_state(state: PrimaryState) -> FtState {
    match state {
        PrimaryState::Solo => FtState::Solo,
        PrimaryState::Greeting | PrimaryState::Copying | PrimaryState::Protecting => {
            FtState::Joining
        }
        PrimaryState::Protected | PrimaryState::Leaving => FtState::Protected,
        PrimaryState::Yielding | PrimaryState::Holding => FtState::Holding,
        PrimaryState::Halted => FtState::Halted,
    }
}

fn backup_state(state: BackupState) -> FtState {
    match state {
        BackupState::Waiting => FtState::Waiting,
        BackupState::Preparing | BackupState::Joining => FtState::Joining,
        BackupState::Following => FtState::Following,
        BackupState::Draining | BackupState::Asking | BackupState::Won => FtState::TakingOver,
        BackupState::Live => FtState::Live,
        BackupState::Halted => FtState::Halted,
    }
}
