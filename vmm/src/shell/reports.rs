//! What the shell does about the engine's reports.

use std::time::Instant;

use ft::recorder::Noted;
use ft::{Chunk, Happening, Output};
use serde_json::{Value, json};

use super::events::of_pair;
use super::protection::Protection;
use super::{Awaits, Outcome, Shell};
use crate::api::{ApiError, ApiReply};
use crate::engine::{CopyProgress, DivergenceReport, Ended, Report};
use crate::error::Error;

/// An engine that has not answered by then is not waited for.
const DRAIN_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(5);

impl Shell {
    /// Takes the reports of an engine that is about to be asked for nothing more, until it has
    /// done what it was last told.
    pub(super) fn drain_engine(&mut self) {
        let (sender, done) = std::sync::mpsc::sync_channel(1);
        self.send(crate::engine::Message::Inspect(Box::new(move |_| {
            let _ = sender.send(());
        })));
        if self.running.is_some() && done.recv_timeout(DRAIN_TIMEOUT).is_ok() {
            let _ = self.on_reports();
        }
    }

    pub(super) fn on_reports(&mut self) -> Result<(), Error> {
        let Some(running) = &self.running else { return Ok(()) };
        for report in running.take_reports() {
            self.on_report(report)?;
        }
        Ok(())
    }

    fn on_report(&mut self, report: Report) -> Result<(), Error> {
        match report {
            Report::Emission { chunks, outputs } => self.on_emission(chunks, outputs)?,
            Report::Covered { chunk } => {
                if let Some(side) = self.primary_side() {
                    side.gate.assign(chunk);
                }
            }
            Report::Delta { pages } => {
                self.statistics.deltas += 1;
                self.statistics.delta_pages += pages;
                self.on_replayed_delta()?;
            }
            Report::Healing { chunk, pages } => self.on_healing_sent(chunk, pages)?,
            Report::TooFarApart { pages } => self.on_too_far_apart(pages),
            Report::Executed { number, moment, now_ns, outputs } => {
                self.statistics.executed(number);
                self.statistics.moment = moment;
                self.statistics.replayed_ns = now_ns;
                match &self.protection {
                    Protection::Replaying(_) => self.on_replayed(moment, now_ns, outputs)?,
                    Protection::Backup(_) => self.on_executed(number, outputs)?,
                    Protection::None | Protection::Recording(_) | Protection::Primary(_) => {}
                }
            }
            Report::Released { output } => self.on_released(output),
            Report::LogEnd(reason) => {
                self.note_log_end(reason);
                self.on_replay_end(reason);
            }
            Report::Drained(_) => self.on_drained()?,
            Report::Live(moment) => self.on_live(moment),
            Report::Diverged(divergence) => self.on_divergence(&divergence),
            Report::Reset => self.events.report("vm", "rebooted", &json!({})),
            Report::Paused => {
                self.paused = true;
                self.events.report("vm", "paused", &json!({}));
                self.answer(Awaits::Paused, &Ok(()));
            }
            Report::Resumed => {
                self.paused = false;
                self.events.report("vm", "resumed", &json!({}));
                self.answer(Awaits::Resumed, &Ok(()));
            }
            Report::Copying(progress) => self.on_copying(progress),
            Report::Recording(moment) => {
                self.statistics.moment = moment;
                if matches!(self.protection, Protection::Recording(_)) {
                    self.answer(Awaits::Protected, &Ok(()));
                }
            }
            Report::HandedOver(moment) => self.on_handed_over(moment)?,
            Report::Ended(ended) => self.on_ended(&ended),
        }
        Ok(())
    }

    fn on_copying(&mut self, progress: CopyProgress) {
        self.statistics.copy = Some(progress);
        if let Some(pause_ns) = progress.pause_ns {
            self.statistics.happened(format!(
                "the VM was copied in {} ms and {} rounds, {} of {} pages sent, and stood still for \
                 {:.1} ms of it",
                progress.elapsed_ns / 1_000_000,
                progress.round,
                progress.pages - progress.kept_pages,
                progress.pages,
                pause_ns as f64 / 1e6,
            ));
        }
    }

    /// Outputs leave at once where nobody has to hold the log first.
    fn on_emission(
        &mut self,
        chunks: Vec<Chunk>,
        outputs: Vec<(Noted, Output)>,
    ) -> Result<(), Error> {
        let now = Instant::now();
        for chunk in &chunks {
            self.statistics.made(chunk, now);
        }
        match &mut self.protection {
            Protection::None => self.let_go(outputs.into_iter().map(|(_, output)| output)),
            Protection::Recording(_) => {
                self.write_log(&chunks);
                self.let_go(outputs.into_iter().map(|(_, output)| output));
            }
            Protection::Replaying(_) => self.show_replayed(outputs),
            Protection::Primary(_) => return self.ship(chunks, outputs),
            Protection::Backup(_) => self.keep(outputs),
        }
        Ok(())
    }

    /// Carries outputs out.
    pub(super) fn let_go(&mut self, outputs: impl IntoIterator<Item = Output>) {
        let Some(running) = &mut self.running else { return };
        for output in outputs {
            running.carry_out(output);
        }
    }

    fn on_divergence(&mut self, divergence: &DivergenceReport) {
        // Of a pair's, both sides report it themselves.
        if matches!(self.protection, Protection::Replaying(_)) {
            self.statistics.divergences += 1;
            self.statistics
                .happened(format!("The replay diverged at moment {}", divergence.moment));
            self.events.report("ft", "diverged", &json!({ "moment": divergence.moment }));
        }
        self.on_diverged(divergence);
    }

    /// Counts and tells the event monitor what happened to the pair.
    pub(super) fn report_happening(&mut self, happening: &Happening) {
        self.statistics.divergences += u64::from(matches!(happening, Happening::Diverged(_)));
        self.statistics.healings += u64::from(*happening == Happening::Healed);
        self.report_ft("happened", json!({ "what": happening.to_string() }));
        if let Some((event, properties)) = of_pair(happening, self.ft_state()) {
            self.report_ft(event, properties);
        }
    }

    /// Tells the event monitor about the pair: in which generation, and where the VM is.
    pub(super) fn report_ft(&mut self, event: &str, mut properties: Value) {
        properties["generation"] = self.generation().into();
        properties["moment"] = self.statistics.moment.into();
        self.events.report("ft", event, &properties);
    }

    fn on_ended(&mut self, ended: &Ended) {
        let outcome = match ended {
            Ended::PowerOff => {
                self.events.report("vm", "shutdown", &json!({}));
                Outcome::Well
            }
            Ended::Stopped => return,
            Ended::Failed(why) => Outcome::Badly(why.clone()),
        };
        // A divergence has been told already, in full.
        if let (Outcome::Badly(why), None) = (&outcome, &self.outcome) {
            log::error!("the VM ended: {why}");
            self.statistics.happened(format!("The VM ended: {why}"));
        }
        if self.protection_outlives(ended) {
            return;
        }
        self.leave_protection();
        self.end_vm();
        if !self.invocation.no_shutdown {
            self.outcome.get_or_insert(outcome);
        }
    }

    /// Answers every call that waits for `what`.
    pub(super) fn answer(&mut self, what: Awaits, result: &Result<(), ApiError>) {
        let (ready, waiting) =
            std::mem::take(&mut self.calls).into_iter().partition(|(awaits, _)| *awaits == what);
        self.calls = waiting;
        let ready: Vec<(Awaits, crate::api::ReplySender)> = ready;
        for (_, reply) in ready {
            reply.send(result.clone().map(|()| ApiReply::Empty));
        }
    }
}
