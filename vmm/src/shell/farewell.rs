//! How a pair ends: a backup that is lost, dismissed or takes the VM over as planned.
//!
//! Owns what the primary does with outputs and machine in those cases. Which case it is, is
//! `ft::Primary`'s decision.

use ft::{Event, HaltReason, Happening, PrimaryState};
use hypervisor::monotonic_ns;

use super::lag_loop::LagLoop;
use super::primary_side::{Brakes, Handover, PrimarySide, now_ms};
use super::protection::Protection;
use super::{Awaits, Outcome, Shell, Source};
use crate::api::{ApiError, FtProtection};
use crate::engine::{Ended, Message};
use crate::error::Error;

/// A VM that ends waits at most this long for its backup's last word, ms.
const LAST_WORDS_MS: u64 = 5_000;
const LAST_WORDS_TICK_MS: i32 = 5;

impl Shell {
    /// Nobody follows any more: everything held may leave, nothing is logged.
    pub(super) fn go_solo(&mut self) {
        let handed = {
            let Protection::Primary(side) = &mut self.protection else { return };
            side.gate_closed = false;
            side.logging = false;
            side.holding = false;
            side.brakes = Brakes::default();
            side.lag_loop = LagLoop::default();
            let held = side.gate.release(u64::MAX, monotonic_ns() / 1_000);
            side.leaving.extend(held);
            side.gate.restart();
            side.close_channel(&self.poller);
            side.handing_over.take()
        };
        self.let_leave();
        self.send(Message::StopRecording(None));
        self.send(Message::Stall(false));
        self.send(Message::SlowDown(0));
        if handed.is_some() {
            self.send(Message::Resume);
            self.answer(
                Awaits::HandedOver,
                &Err(ApiError::failed(
                    "The backup was lost before it had the VM; it runs on here.",
                )),
            );
        }
        // A backup that was lost between the copy and its promise: nobody else says so. Who waits for
        // another backup in place of the one that was dismissed hears of that join instead.
        if !std::mem::take(&mut self.succession.moving_backup) {
            self.refuse_protection(
                "The backup was lost before it could protect the VM, which runs on.",
            );
        }
        self.answer(Awaits::Unprotected, &Ok(()));
    }

    /// The VM is somewhere else from now on, or must never speak again here.
    pub(super) fn halt_primary(&mut self, reason: &HaltReason) {
        // A backup that was told to go on and that the arbiter then names has gone on, even if its
        // word of it was lost.
        let yielded =
            self.primary_side().is_some_and(|side| side.handing_over == Some(Handover::Yielded));
        let outcome = match reason {
            HaltReason::Lost { .. } if yielded => Outcome::Well,
            HaltReason::HandedOver { .. } => Outcome::Well,
            HaltReason::Lost { .. } | HaltReason::Left | HaltReason::Diverged(_) => {
                Outcome::Badly(format!("this side halts: {reason}"))
            }
        };
        if outcome == Outcome::Well {
            self.answer(Awaits::HandedOver, &Ok(()));
            self.answer(Awaits::Moved, &Ok(()));
        }
        // A VM that has moved leaves nobody behind who waits for it.
        let moved = self.moving.take().is_some();
        if let Some(running) = &self.running {
            running.lease.set_until_ms(0);
            running.lease.revoke();
        }
        // Nobody is left to report it once the protection is gone.
        let halted = Happening::Halted(reason.clone());
        self.statistics.happened(halted.to_string());
        self.report_happening(&halted);
        self.end_vm();
        self.leave_protection();
        if moved || !self.become_standby() {
            self.outcome = Some(outcome);
        }
    }

    /// While outputs are held, the protocol wants to know when none is under way any more; a
    /// planned move waits for the same.
    pub(super) fn say_when_quiet(&mut self) -> Result<(), Error> {
        let quiet = self.running.as_ref().is_none_or(|running| running.lease.is_quiet());
        let Protection::Primary(side) = &mut self.protection else { return Ok(()) };
        if !quiet {
            return Ok(());
        }
        if std::mem::take(&mut side.holding) {
            return self.step_primary(Event::Quiet);
        }
        if let Some(Handover::Emptying { moment }) = side.handing_over
            && side.outputs_held() == 0
        {
            side.handing_over = Some(Handover::Ended { moment });
        }
        if let Some(Handover::Ended { moment }) = side.handing_over {
            side.handing_over = Some(Handover::Yielded);
            log::info!("the VM is handed over at moment {moment}");
            // Where the backup is lost by now, the protocol has seen to the VM already.
            if let Ok(actions) = side.primary.failover(now_ms()) {
                return self.act_primary(actions);
            }
        }
        Ok(())
    }

    pub(super) fn dismiss_backup(&mut self) -> Result<(), ApiError> {
        let Some(side) = self.primary_side() else { return Ok(()) };
        let actions =
            side.primary.disable(now_ms()).map_err(|error| ApiError::failed(error.to_string()))?;
        self.act_primary(actions).map_err(|error| ApiError::failed(error.to_string()))
    }

    /// Stops the machine; once its log has ended, the backup is asked to go on.
    pub(super) fn begin_handover(&mut self) -> Result<(), ApiError> {
        let Some(side) = self.primary_side() else {
            return Err(ApiError::failed("The VM has no backup that it could be handed to."));
        };
        let protects =
            side.primary.state() == PrimaryState::Protected && !side.primary.is_healing();
        if !protects || side.handing_over.is_some() {
            return Err(ApiError::failed(
                "The VM is not protected now (see ft-info), so it cannot be handed over.",
            ));
        }
        side.handing_over = Some(Handover::Stopping);
        self.send(Message::HandOver);
        Ok(())
    }

    /// The machine stands still and its log has ended. No output may be under way when the backup
    /// is told to go on: it redoes those that are still here.
    pub(super) fn on_handed_over(&mut self, moment: u64) -> Result<(), Error> {
        // What was put out before the delta that healed a copy is not known there either.
        let was_healed = self.statistics.healings > 0;
        if let Some(side) = self.primary_side() {
            side.handing_over = Some(match side.method {
                FtProtection::Checkpoint => Handover::Emptying { moment },
                FtProtection::Replay if was_healed => Handover::Emptying { moment },
                FtProtection::Replay | FtProtection::None => Handover::Ended { moment },
            });
        }
        self.let_leave();
        self.say_when_quiet()
    }

    /// The guest has switched itself off: its last outputs leave as all others do, then the backup
    /// is told not to take over. A machine that failed just ends here; its backup goes on.
    pub(super) fn primary_machine_ended(&mut self, ended: &Ended) {
        match ended {
            Ended::PowerOff => {
                self.serve_pair_while(|side| side.talks() && side.outputs_held() > 0);
                self.end_pair();
            }
            Ended::Stopped | Ended::Failed(_) => {}
        }
    }

    /// The VM ends on purpose while it is protected: the backup is told not to take over.
    pub(super) fn end_pair(&mut self) {
        let talks = self.primary_side().is_some_and(|side| side.talks());
        if talks && self.dismiss_backup().is_ok() {
            self.serve_pair_while(|side| side.primary.state() == PrimaryState::Leaving);
        }
    }

    /// Serves the pair alone for as long as `waits` says, and for a bounded time.
    pub(super) fn serve_pair_while(&mut self, waits: impl Fn(&PrimarySide) -> bool) {
        let deadline = now_ms() + LAST_WORDS_MS;
        while now_ms() < deadline && self.primary_side().is_some_and(|side| waits(side)) {
            let Ok(ready) = self.poller.wait(LAST_WORDS_TICK_MS) else { return };
            for source in ready {
                let served = match source {
                    Source::Channel | Source::Heartbeat | Source::Helpers => {
                        self.on_primary_ready(source)
                    }
                    Source::Engine
                    | Source::Api
                    | Source::Signals
                    | Source::Tap(_)
                    | Source::SerialInput
                    | Source::ConsoleInput(_)
                    | Source::Listener => Ok(()),
                };
                if let Err(error) = served {
                    log::warn!("{error}");
                }
            }
            if let Err(error) = self.tick_primary() {
                log::warn!("{error}");
            }
        }
    }
}
