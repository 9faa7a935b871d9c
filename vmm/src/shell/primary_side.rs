//! What the shell keeps for a VM that is protected, was, or is to be.
//!
//! Owns the plain data and its small questions. What is done with it is `primary`'s and
//! `farewell`'s.

use std::collections::VecDeque;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use ft::recorder::Noted;
use ft::{Answer, Gate, KeptPages, Output, Primary, PrimaryState, Purpose, Settings, Weight};
use hypervisor::boottime_ms;

use super::Poller;
use super::lag_loop::LagLoop;
use crate::api::FtProtection;
use crate::config::{AckMode, FtConfig};
use crate::replica::{BoundedArbiter, Channel, Heartbeats, Helpers, Question};

/// Outputs held beyond this many bytes stop the machine.
pub(super) const GATE_LIMIT_BYTES: usize = 64 << 20;

/// The event loop's timers are looked after this often while something is being waited for, ms.
pub(super) const BUSY_TICK_MS: u64 = 5;

/// An output that waits, and its place in the log.
pub(super) struct Held {
    pub sequence: u64,
    pub output: Output,
}

impl Weight for Held {
    fn weight_bytes(&self) -> usize {
        self.output.weight_bytes()
    }
}

/// Reasons for the machine to stand still for a while.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Brakes {
    /// Too many bytes of output wait in the gate.
    pub gate: bool,
    /// Too many bytes of log wait for the backup.
    pub log: bool,
    /// The backup's execution is too far behind.
    pub lag: bool,
    /// What the engine was told last.
    pub told: bool,
}

impl Brakes {
    /// What the engine has to be told now, if anything.
    pub(super) fn change(&mut self) -> Option<bool> {
        let on = self.gate || self.log || self.lag;
        (on != std::mem::replace(&mut self.told, on)).then_some(on)
    }

    /// A backup that is `lag_ms` behind slows the machine down: it stands still until the lag is
    /// half of what is allowed.
    pub(super) fn note_lag(&mut self, lag_ms: u64, most_ms: u64) {
        self.lag = if self.lag { lag_ms > most_ms / 2 } else { lag_ms > most_ms };
    }
}

/// How far a planned move is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Handover {
    /// The machine was told to stop and to end its log.
    Stopping,
    /// It did, at this moment, and the outputs that it left have yet to leave: a backup that
    /// executes nothing, or skipped a part, does not know them.
    Emptying { moment: u64 },
    /// It did, at this moment. What has not left by now is the backup's to send.
    Ended { moment: u64 },
    /// The backup was told to go on.
    Yielded,
}

/// What the shell keeps for a VM that is protected, or was or is to be.
pub(super) struct PrimarySide {
    pub primary: Primary,
    /// What the pair is for.
    pub purpose: Purpose,
    pub config: FtConfig,
    pub peer: String,
    pub vm_id: [u8; 16],
    /// How the VM is kept twice.
    pub method: FtProtection,
    /// Tells this process from the other side when the arbiter is asked.
    pub claimant: [u8; 16],
    /// Who decides if the backup is lost; nobody if the user wants none.
    pub arbiter: Option<Arc<BoundedArbiter>>,
    pub helpers: Helpers,
    pub channel: Option<Channel>,
    pub heartbeats: Option<Heartbeats>,
    /// What the backup that is being joined has of the VM's memory.
    pub kept: KeptPages,
    /// Pages of a copy that is to be healed which may differ.
    pub touched: Vec<u64>,
    pub gate: Gate<Held>,
    pub gate_closed: bool,
    /// The machine is being given to a backup, or was: what waits for a checkpoint has one to wait
    /// for.
    pub logging: bool,
    /// Outputs that may leave as soon as the lease says so.
    pub leaving: VecDeque<Held>,
    /// Why the machine has to stand still, and whether it was told so.
    pub brakes: Brakes,
    /// What the machine is slowed down by so that they are seldom needed.
    pub lag_loop: LagLoop,
    /// The VM stands still until its log begins.
    pub starting: bool,
    /// A planned move is under way.
    pub handing_over: Option<Handover>,
    /// End moments of chunks that are not acknowledged yet.
    pub chunk_ends: VecDeque<(u64, u64)>,
    /// Bytes of log appended since the join began.
    pub appended_bytes: u64,
    pub holding: bool,
    pub connecting: bool,
}

/// Milliseconds of the clock that all of a replica's timers share.
pub(super) fn now_ms() -> u64 {
    boottime_ms()
}

pub(super) fn settings(config: &FtConfig, purpose: Purpose) -> Settings {
    Settings {
        purpose,
        ack: match config.ack {
            AckMode::Received => ft::AckMode::Received,
            AckMode::Verified => ft::AckMode::Verified,
        },
        heartbeat_ms: config.timings.heartbeat_ms,
        timeout_ms: config.timings.timeout_ms,
        lease_ms: config.timings.timeout_ms / 2,
        silence_ms: config.timings.timeout_ms.saturating_mul(2).max(2_000),
        lag_limit_ms: config.timings.timeout_ms.saturating_mul(4).max(10_000),
        log_limit_bytes: config.log_buffer,
        ..Settings::default()
    }
}

/// Asks the arbiter on a thread; without one the answer is yes at once.
pub(super) fn ask_arbiter(
    helpers: &Helpers,
    arbiter: Option<&Arc<BoundedArbiter>>,
    question: Question,
) -> Option<Answer> {
    let Some(arbiter) = arbiter else { return Some(Answer::Won) };
    match helpers.ask_arbiter(Arc::clone(arbiter), question) {
        Ok(()) => None,
        Err(error) => {
            log::error!("the arbiter cannot be asked: {error}");
            Some(Answer::Unreachable)
        }
    }
}

impl PrimarySide {
    pub(super) fn is_solo(&self) -> bool {
        self.primary.state() == PrimaryState::Solo && !self.connecting
    }

    /// Whether there is a backup that protects the VM.
    pub(super) fn talks(&self) -> bool {
        matches!(self.primary.state(), PrimaryState::Protected | PrimaryState::Protecting)
    }

    /// How long the event loop may sleep, ms. While nothing but heartbeats is due it sleeps long:
    /// on a host with one processor each time it wakes the guest stands still.
    pub(super) fn tick_ms(&self) -> Option<u64> {
        let calm = self.primary.state() == PrimaryState::Protected
            && self.leaving.is_empty()
            && self.handing_over.is_none();
        if calm {
            Some((self.config.timings.heartbeat_ms / 2).max(1))
        } else if self.is_solo() && self.leaving.is_empty() {
            None
        } else {
            Some(BUSY_TICK_MS)
        }
    }

    /// Outputs held now.
    pub(super) fn outputs_held(&self) -> u64 {
        (self.gate.len() + self.leaving.len()) as u64
    }

    /// How long half of the outputs and 99 in 100 of them waited at most, in µs.
    pub(super) fn delays_us(&self) -> (u64, u64) {
        let quantile = |per_mille| self.gate.delays().quantile_us(per_mille).unwrap_or(0);
        (quantile(500), quantile(990))
    }

    pub(super) fn ack(&self) -> AckMode {
        self.config.ack
    }

    /// How far checkpoints are apart, if the VM is kept by them, ns.
    pub(super) fn checkpoint_ns(&self) -> Option<u64> {
        let interval_ns = self.config.timings.checkpoint_ms.saturating_mul(1_000_000);
        (self.method == FtProtection::Checkpoint).then_some(interval_ns)
    }

    /// Whether an output has to wait in the gate, if it is one that waits at all.
    pub(super) fn holds(&self, noted: Noted) -> bool {
        // A backup may take over from the state that it has: it must not be told to before the
        // checkpoint that covers an output, so that one waits from the beginning.
        self.gate_closed || (self.logging && noted.chunk == Noted::CHUNK_TO_COME)
    }

    pub(super) fn connecting(&self) -> bool {
        self.connecting
    }

    pub(super) fn close(mut self, poller: &Poller) {
        self.close_channel(poller);
        poller.forget(self.helpers.as_raw_fd());
    }

    pub(super) fn close_channel(&mut self, poller: &Poller) {
        if let Some(mut channel) = self.channel.take() {
            channel.flush();
            poller.forget(channel.as_raw_fd());
        }
        if let Some(heartbeats) = self.heartbeats.take() {
            poller.forget(heartbeats.as_raw_fd());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Brakes;

    #[test]
    fn a_lag_brakes_until_it_is_half_of_what_is_allowed() {
        let mut brakes = Brakes::default();
        for (lag_ms, told) in
            [(100, None), (101, Some(true)), (80, None), (51, None), (50, Some(false)), (90, None)]
        {
            brakes.note_lag(lag_ms, 100);
            assert_eq!(brakes.change(), told, "at {lag_ms} ms");
        }
    }

    #[test]
    fn the_machine_goes_on_only_when_no_brake_is_left() {
        let mut brakes = Brakes { log: true, lag: true, ..Brakes::default() };
        assert_eq!(brakes.change(), Some(true));
        brakes.lag = false;
        assert_eq!(brakes.change(), None);
        brakes.log = false;
        assert_eq!(brakes.change(), Some(false));
    }
}
