//! The protection of the running VM, and what becomes of it.
//!
//! Owns the trying again: on a busy machine a host may be silent for so long that the other one gives it up.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::killing::TAKEOVER_TIMEOUT;
use super::story::{Act, letter, now_ms, waiting};
use super::verdict::{bytes, grouped};
use crate::client::JournalLoad;
use crate::vm::{FtInfo, pause, wait_until};

/// So often a VM is protected that loses its protection.
const TRIES: usize = 4;
/// A backup that keeps up is closer than this.
const LAG_MOST_MS: u64 = 100;
const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(60);
const ASK_INTERVAL: Duration = Duration::from_secs(1);
/// After the protection began, copying caches and the like settles.
const SETTLE: Duration = Duration::from_millis(500);

impl Act<'_> {
    /// Protects the VM and measures; whether it is protected at the end of that.
    pub(super) fn be_protected(&mut self, load: &JournalLoad) -> Result<bool> {
        for _ in 0..TRIES {
            let protected = self.protect(load)? && self.catch_up()?;
            if protected {
                self.times_ms.settled = now_ms(load);
                self.measure(load, "under protection")?;
                if let Some(info) = self.protected()? {
                    self.timeline.say(&in_words(letter(self.pair.primary().host_index()), &info));
                    self.protection = Some(info);
                    return Ok(true);
                }
            }
            self.lost()?;
        }
        self.not_survived("The protection was lost again and again");
        Ok(false)
    }

    /// Has the VM join a new backup; whether it is protected then.
    fn protect(&mut self, load: &JournalLoad) -> Result<bool> {
        self.pair.add_backup()?;
        let here = letter(self.pair.primary().host_index());
        let there = self.pair.backup().map_or('?', |backup| letter(backup.host_index()));
        self.timeline.say(&format!(
            "Host {there} starts a second VMM, which waits to become the backup. At host {here}:"
        ));
        self.timeline.say(&format!("ch-remote ft-enable {}", self.pair.enable_fields()?));
        let pair = &mut self.pair;
        let what = format!("the running VM is copied to host {there}");
        if let Err(error) = waiting(self.timeline, &what, || pair.enable())
            && self.protected()?.is_none()
        {
            self.timeline.say(&format!("That failed: {}.", error.root_cause()));
            return Ok(false);
        }
        self.times_ms.protected = now_ms(load);
        self.timeline.say(&format!(
            "Protected: host {there} has the VM's memory and devices and follows its log. No packet leaves the VM any \
             more before host {there} can account for it."
        ));
        Ok(true)
    }

    /// What happened during the copy comes after it: measuring begins when the backup is as close as it is meant to be.
    fn catch_up(&mut self) -> Result<bool> {
        let start = Instant::now();
        let caught = wait_until("the backup's catching up", CATCH_UP_TIMEOUT, ASK_INTERVAL, || {
            let info = self.protected()?;
            if let Some(info) = &info {
                self.timeline.progress(&format!("the backup is {} ms behind", info.lag_ms));
            }
            let behind = info.as_ref().is_some_and(|info| info.lag_ms > LAG_MOST_MS);
            Ok((!behind).then_some(info))
        });
        let Some(info) = caught.with_context(|| self.pair.describe())? else { return Ok(false) };
        self.timeline.say(&format!(
            "After {:.1} s the backup has caught up; its execution is {} ms behind.",
            start.elapsed().as_secs_f64(),
            info.lag_ms
        ));
        pause(SETTLE)?;
        Ok(true)
    }

    /// How the protection is, if there is one.
    fn protected(&mut self) -> Result<Option<FtInfo>> {
        if self.pair.primary().ended()?.is_some() {
            return Ok(None);
        }
        // A primary that gives way ends without an answer.
        Ok(self.pair.primary().ft_info().ok().filter(|info| info.state == "protected"))
    }

    /// Says what became of the protection, and finds out who runs the VM now.
    fn lost(&mut self) -> Result<()> {
        const BUSY: &str =
            "On a machine that is busy with other work a host can be silent for too long.";
        let here = letter(self.pair.primary().host_index());
        if self.pair.primary().ended()?.is_some() {
            let takeover = self.pair.wait_for_takeover(TAKEOVER_TIMEOUT)?;
            let there = letter(takeover.host_index);
            self.timeline.say(&format!(
                "Host {there} has not heard of host {here} and has taken over before anything was killed. {BUSY} The VM \
                 runs on, on host {there}, and gets a new backup."
            ));
            return Ok(());
        }
        let info = self.pair.ft_info()?;
        let event = info.last_event.map(|event| event.what).unwrap_or_default();
        self.timeline.say(&format!(
            "The VM is not protected any more: {event}. {BUSY} It runs on, on host {here}, and gets a new backup."
        ));
        Ok(())
    }
}

fn in_words(host: char, info: &FtInfo) -> String {
    format!(
        "ft-info at host {host}: {}; {}/s of log, the backup's execution {} ms behind, outputs waited p50 {} µs, p99 {} µs.",
        info.state,
        bytes(info.log.bytes_per_second),
        info.lag_ms,
        grouped(info.output_delay_us.p50),
        grouped(info.output_delay_us.p99)
    )
}
