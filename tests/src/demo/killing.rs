//! The kill, and the waiting for a survivor.
//!
//! Owns what dies, and the moment.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::story::{Act, letter, now_ms};
use super::verdict::grouped;
use super::{Kill, report};
use crate::client::{History, JournalLoad};
use crate::runner::interrupted;
use crate::vm::pause;

/// A survivor that has not answered by now will not.
pub(super) const TAKEOVER_TIMEOUT: Duration = Duration::from_secs(50);

impl Act<'_> {
    /// Kills what the primary runs on; whether the VM survived.
    pub(super) fn kill(&mut self, load: &JournalLoad) -> Result<bool> {
        // Not at the same point of anything, ever.
        pause(Duration::from_micros(u64::from(rand_u16()) * 8))?;
        let before = load.acknowledged();
        self.times_ms.killed = now_ms(load);
        let (pid, index) = (self.pair.primary().pid(), self.pair.primary().host_index());
        let host = letter(index);
        match self.plan.kill {
            Kill::Vmm => {
                self.pair.kill_primary()?;
                self.timeline
                    .say(&format!("KILLED the primary: SIGKILL to process {pid} on host {host}."));
            }
            Kill::Host => {
                self.pair.end_primary_host()?;
                self.timeline
                    .say(&format!("KILLED host {host}, all of it, as by a power failure."));
            }
        }
        self.timeline.say(&format!(
            "Until then {} requests were answered. The client knows nothing of all this and goes on asking.",
            grouped(before as u64)
        ));
        self.wait_for_the_survivor(load)
    }

    /// Waits as the client does: for an answer; whether there was one.
    fn wait_for_the_survivor(&mut self, load: &JournalLoad) -> Result<bool> {
        let dead_us = load.now_us();
        let deadline = Instant::now() + TAKEOVER_TIMEOUT;
        let answered_us = loop {
            let (answered, broken) =
                load.look(|history| (answer_after(history, dead_us), history.broken.clone()));
            if let Some(answered_us) = answered {
                break answered_us;
            }
            if interrupted() {
                bail!("interrupted");
            }
            let why = broken.or_else(|| {
                (Instant::now() > deadline).then(|| {
                    format!("nobody answered for {} s after the kill", TAKEOVER_TIMEOUT.as_secs())
                })
            });
            if let Some(why) = why {
                self.not_survived(&why);
                return Ok(false);
            }
            self.timeline.progress("the client waits for an answer");
            sleep(Duration::from_millis(1));
        };
        self.times_ms.answered = answered_us / 1000;
        let (_, gap_us) =
            load.look(|history| report::gap(history, self.times_ms.killed * 1000, answered_us));
        self.timeline.say(&format!(
            "Answered, over the same connection, after {} ms without an answer.",
            gap_us / 1000
        ));
        let takeover = self.pair.wait_for_takeover(TAKEOVER_TIMEOUT)?;
        let info = self.pair.ft_info()?;
        let event = info.last_event.map(|event| event.what).unwrap_or_default();
        self.timeline.say(&format!(
            "Host {} runs the VM now (state {}). It says: {event}",
            letter(takeover.host_index),
            info.state
        ));
        Ok(true)
    }
}

/// When the first request that was sent after `dead_us` was answered.
fn answer_after(history: &History, dead_us: u64) -> Option<u64> {
    let late = history.exchanges.iter().rev().take_while(|exchange| exchange.sent_us > dead_us);
    late.filter_map(|exchange| exchange.answer.map(|(at_us, _)| at_us)).last()
}

fn rand_u16() -> u16 {
    use std::io::Read;
    let mut bytes = [0; 2];
    // Without it the kill comes as it comes.
    let _ = std::fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes));
    u16::from_le_bytes(bytes)
}
