//! What a primary does when something happens: the transitions of the diagram in its parent.

use alloc::{format, string::ToString, vec::Vec};

use super::healing::Healing;
use super::{Primary, PrimaryState};
use crate::action::{Action, HaltReason, Happening, LossCause, SoloReason};
use crate::arbiter::{Answer, Contest};
use crate::error::Divergence;
use crate::flight::BadAck;
use crate::message::{Ack, Heartbeat, Message, Role, Word};
use crate::settings::{AckMode, Purpose};

/// A move in which nobody can be asked.
const UNARBITRATED: Purpose = Purpose::Move { arbiter: false };

impl Primary {
    pub(super) fn on_message(&mut self, now_ms: u64, message: Message, out: &mut Vec<Action>) {
        if !self.talks() && self.state != PrimaryState::Holding {
            return;
        }
        self.watch.heard_stream(now_ms);
        let Message::Word(word) = message else {
            return self.nonsense("a log from the backup", out);
        };
        use PrimaryState::{Copying, Greeting, Holding, Leaving, Protected, Protecting, Yielding};
        match (word, self.state) {
            (Word::Welcome, Greeting) => {
                self.state = Copying;
                out.push(Action::StartJoin);
            }
            (Word::Kept { first_frame, digests }, Greeting) => {
                out.push(Action::NoteKept { first_frame, digests });
            }
            (Word::Refuse { why }, Greeting | Copying) => self.join_failed(&why, out),
            (Word::Ready, Copying) => {
                self.state = Protecting;
                out.push(Action::CloseGate);
                out.push(Word::Protect.into());
            }
            (Word::Following, Protecting) => {
                self.state = Protected;
                let generation = self.generation;
                out.push(Action::Report(Happening::Protected { generation }));
            }
            // It was asked to leave before it had answered to the request to protect.
            (Word::Following, Leaving) => {}
            (Word::Ack(ack), Greeting | Copying | Protecting | Protected | Leaving | Yielding) => {
                self.on_ack(now_ms, &ack, out);
            }
            // It has not been asked to protect yet: there was no pair.
            (Word::Diverged(divergence), Copying) => {
                out.push(Action::Report(Happening::Diverged(divergence)));
                self.go_solo(self.generation, SoloReason::Diverged, out);
            }
            // A pair ends here, and its generation with it. Where outputs are held already, either
            // side may have claimed the next one: the promise has used that up.
            (Word::Diverged(divergence), Protecting | Protected | Leaving | Yielding | Holding) => {
                out.push(Action::Report(Happening::Diverged(divergence)));
                self.go_solo(self.generation + 1, SoloReason::Diverged, out);
            }
            (
                word @ (Word::Differs(_) | Word::Touched { .. } | Word::Kept { .. } | Word::Told),
                Protected | Leaving | Yielding,
            ) => self.on_copy(now_ms, word, out),
            (Word::Left, Leaving | Holding) => {
                self.go_solo(self.generation + 1, SoloReason::Left, out);
            }
            (Word::Live { generation }, Yielding | Holding) => {
                self.halt(HaltReason::HandedOver { generation }, out);
            }
            (_, Holding) => {}
            (word, state) => {
                let why = format!("{} while {state:?}", word.brief());
                self.nonsense(&why, out);
            }
        }
    }

    pub(super) fn on_ack(&mut self, now_ms: u64, ack: &Ack, out: &mut Vec<Action>) {
        if self.distrusted {
            return;
        }
        match self.flight.acknowledge(ack) {
            Ok(()) => {}
            Err(BadAck::Nonsense) => return self.nonsense("an impossible acknowledgement", out),
            Err(BadAck::Outputs { moment, recorded }) => {
                let divergence = Divergence::Outputs {
                    moment,
                    recorded_count: recorded.count,
                    recorded: recorded.digest,
                    replayed_count: ack.outputs.count,
                    replayed: ack.outputs.digest,
                };
                return self.distrust(divergence, out);
            }
        }
        self.note_healed(out);
        self.echo(now_ms, ack.echo_ms);
        if self.stalled && self.flight.bytes() <= self.settings.log_limit_bytes / 2 {
            self.stalled = false;
            out.push(Action::Unstall);
        }
    }

    pub(super) fn on_heartbeat(&mut self, now_ms: u64, heartbeat: &Heartbeat) {
        let ours = heartbeat.vm_id == self.vm_id && heartbeat.generation == self.generation;
        if ours && heartbeat.role == Role::Backup && self.talks() {
            self.watch.heard_datagram(now_ms);
            self.echo(now_ms, heartbeat.echo_ms);
        }
    }

    /// The backup heard, no earlier than at `echo_ms` of this side's clock, that this side lives: it
    /// will not go live for a whole timeout after that.
    pub(super) fn echo(&mut self, now_ms: u64, echo_ms: Option<u64>) {
        if let Some(echo_ms) = echo_ms.filter(|echo_ms| *echo_ms <= now_ms) {
            let until_ms = echo_ms.saturating_add(self.settings.lease_ms);
            self.lease_until_ms = self.lease_until_ms.max(until_ms);
        }
    }

    pub(super) fn on_answer(
        &mut self,
        now_ms: u64,
        generation: u64,
        answer: Answer,
        out: &mut Vec<Action>,
    ) {
        // A promise may have ended an earlier contest while its question was still open: what the
        // arbiter says of that generation is no answer for this one.
        let Some(contest) = self.contest.as_mut().filter(|open| open.generation == generation)
        else {
            return;
        };
        match answer {
            Answer::Won => self.go_solo(generation, SoloReason::Won, out),
            Answer::Lost => self.halt(HaltReason::Lost { generation }, out),
            Answer::Unreachable => {
                contest.unanswered(now_ms);
                out.push(Action::Report(Happening::ArbiterUnreachable));
            }
        }
    }

    /// The chunk up to which the user's mode lets outputs leave.
    pub(super) fn acknowledged(&self) -> u64 {
        match self.settings.ack {
            AckMode::Received => self.flight.received(),
            AckMode::Verified => self.flight.executed(),
        }
    }

    pub(super) fn release(&mut self, now_ms: u64, out: &mut Vec<Action>) {
        let waits = match self.state {
            PrimaryState::Protecting | PrimaryState::Protected | PrimaryState::Leaving => true,
            PrimaryState::Solo
            | PrimaryState::Greeting
            | PrimaryState::Copying
            | PrimaryState::Yielding
            | PrimaryState::Holding
            | PrimaryState::Halted => false,
        };
        let through = self.acknowledged();
        let trusted = !self.distrusted && self.healing == Healing::Sound;
        if waits && trusted && through > self.released && self.may_carry_out(now_ms) {
            self.released = through;
            out.push(Action::Release { through });
        }
    }

    pub(super) fn beat(&mut self, now_ms: u64, out: &mut Vec<Action>) {
        let due = self
            .beat_ms
            .is_none_or(|at_ms| now_ms >= at_ms.saturating_add(self.settings.heartbeat_ms));
        if !due || !(self.talks() || self.state == PrimaryState::Holding) {
            return;
        }
        self.beat_ms = Some(now_ms);
        if self.talks() {
            out.push(Word::Ping { stamp_ms: now_ms }.into());
        }
        out.push(Action::SendHeartbeat(Heartbeat {
            vm_id: self.vm_id,
            generation: self.generation,
            role: Role::Primary,
            stamp_ms: now_ms,
            echo_ms: None,
            holds: self.quiet,
        }));
    }

    pub(super) fn overdue(&self, now_ms: u64) -> Option<LossCause> {
        let settings = &self.settings;
        match self.state {
            PrimaryState::Solo | PrimaryState::Holding | PrimaryState::Halted => None,
            // A standby that builds a machine may be busy; nothing depends on it yet.
            PrimaryState::Greeting | PrimaryState::Copying => {
                let silent_ms = now_ms.saturating_sub(self.watch.heard_ms());
                (silent_ms >= settings.lag_limit_ms).then_some(LossCause::Silent { silent_ms })
            }
            PrimaryState::Protecting
            | PrimaryState::Protected
            | PrimaryState::Leaving
            | PrimaryState::Yielding => {
                let silence = self.watch.silence(now_ms, settings);
                let waited_ms = self.flight.waiting_ms(self.flight.received(), now_ms);
                let unexecuted_ms = self.flight.waiting_ms(self.flight.executed(), now_ms);
                // Outputs wait for a copy that is healed, whether it has log to execute or not.
                let unhealed_ms = self.unhealed_ms(now_ms);
                let behind_ms = unexecuted_ms.max(unhealed_ms);
                if silence.is_some() {
                    silence
                } else if waited_ms >= settings.silence_ms {
                    Some(LossCause::NoAcknowledgement { waited_ms })
                } else {
                    (behind_ms >= settings.lag_limit_ms).then_some(LossCause::Lagging { behind_ms })
                }
            }
        }
    }

    pub(super) fn nonsense(&mut self, why: &str, out: &mut Vec<Action>) {
        self.lost(LossCause::Damaged { why: why.to_string() }, out);
    }

    pub(super) fn lost(&mut self, cause: LossCause, out: &mut Vec<Action>) {
        match self.state {
            PrimaryState::Solo | PrimaryState::Holding | PrimaryState::Halted => {}
            PrimaryState::Greeting | PrimaryState::Copying => {
                self.join_failed(&cause.to_string(), out);
            }
            // Whom the machine was to move to takes over by `Yield` alone, and that was not said.
            PrimaryState::Protecting | PrimaryState::Protected | PrimaryState::Leaving
                if self.settings.purpose.is_move() =>
            {
                self.join_failed(&cause.to_string(), out);
            }
            PrimaryState::Yielding if self.settings.purpose == UNARBITRATED => {
                self.state = PrimaryState::Holding;
                self.quiet = false;
                out.push(Action::Hold);
                out.push(Action::Report(Happening::PeerLost(cause)));
                out.push(Action::Report(Happening::Undecided));
            }
            PrimaryState::Protecting
            | PrimaryState::Protected
            | PrimaryState::Leaving
            | PrimaryState::Yielding => {
                let generation = self.generation + 1;
                self.state = PrimaryState::Holding;
                self.quiet = false;
                self.contest = Some(Contest::new(generation, self.settings.arbiter_retry_ms));
                out.push(Action::Hold);
                out.push(Action::Report(Happening::PeerLost(cause)));
                out.push(Action::AskArbiter { generation });
            }
        }
    }

    /// The backup produced other outputs than this side. Nothing it acknowledged since counts, and
    /// it is asked to leave; until it has, or the arbiter has spoken, outputs are held.
    pub(super) fn distrust(&mut self, divergence: Divergence, out: &mut Vec<Action>) {
        out.push(Action::Report(Happening::Diverged(divergence)));
        self.distrusted = true;
        match self.state {
            PrimaryState::Protecting | PrimaryState::Protected => {
                self.state = PrimaryState::Leaving;
                out.push(Word::Leave.into());
            }
            PrimaryState::Greeting | PrimaryState::Copying => {
                self.join_failed("the backup's outputs differed", out);
            }
            PrimaryState::Yielding => self.nonsense("the backup's outputs differed", out),
            PrimaryState::Solo
            | PrimaryState::Leaving
            | PrimaryState::Holding
            | PrimaryState::Halted => {}
        }
    }

    pub(super) fn join_failed(&mut self, why: &str, out: &mut Vec<Action>) {
        out.push(Action::Report(Happening::JoinFailed { why: why.to_string() }));
        self.go_solo(self.generation, SoloReason::NotJoined, out);
    }

    pub(super) fn go_solo(&mut self, generation: u64, why: SoloReason, out: &mut Vec<Action>) {
        self.state = PrimaryState::Solo;
        self.generation = generation;
        self.contest = None;
        self.quiet = false;
        if core::mem::take(&mut self.stalled) {
            out.push(Action::Unstall);
        }
        out.push(Action::GoSolo { generation });
        out.push(Action::CloseStream);
        out.push(Action::Report(Happening::Solo { generation, why }));
    }

    pub(super) fn halt(&mut self, reason: HaltReason, out: &mut Vec<Action>) {
        self.state = PrimaryState::Halted;
        self.contest = None;
        out.push(Action::Halt(reason.clone()));
        out.push(Action::CloseStream);
        out.push(Action::Report(Happening::Halted(reason)));
    }
}
