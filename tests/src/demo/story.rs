//! The story itself: boot, protect, kill, go on, judge.
//!
//! Owns the order of events and what is said about each. A failure of the harness is an error; a failure of the VM to
//! survive is a report that says so.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::report::{Evidence, Report, Times};
use super::verdict::{bytes, grouped};
use super::{Chart, Kill, Place, Plan, Timeline, picture};
use crate::client::{History, JournalLoad, Pace, Percentiles, check};
use crate::guest::protocol::{JOURNAL_PORT, Record};
use crate::runner::network::CLIENT_ADDRESS;
use crate::runner::{Cluster, interrupted};
use crate::vm::{FtInfo, Pair, PairOptions, VmOptions, pause, wait_until};

/// What is left when the story is told.
pub struct Told {
    /// The numbers.
    pub report: Report,
    /// The picture.
    pub chart: Chart,
}

/// The client asks this often at most: faster than any user, slow enough that waiting is seen and not queueing.
const INTERVAL: Duration = Duration::from_millis(5);
const PAYLOAD_SIZE: usize = 100;
const MEMORY_MIB: u32 = 192;
/// After the protection began, copying caches and the like settles.
const SETTLE: Duration = Duration::from_millis(500);
/// A survivor that has not answered by now will not.
const TAKEOVER_TIMEOUT: Duration = Duration::from_secs(50);
/// So often a VM is protected that loses its protection.
const PROTECTION_TRIES: usize = 3;
/// A backup that keeps up is closer than this.
const LAG_MOST_MS: u64 = 100;
const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(60);
const ASK_INTERVAL: Duration = Duration::from_millis(500);
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);

/// Tells it. `place` is where.
pub fn tell(cluster: &Cluster, place: Place, plan: &Plan, timeline: &Timeline) -> Result<Told> {
    let mut act = Act::open(cluster, &place, plan, timeline)?;
    let load = act.connect()?;
    act.measure(&load, "without protection")?;
    act.times_ms.enabled = now_ms(&load);
    act.survived = act.be_protected(&load)? && act.kill(&load)?;
    if act.survived {
        act.measure(&load, "after the takeover")?;
    }
    act.close(load, place)
}

/// The pair, the client, and what was noted so far.
struct Act<'a> {
    cluster: &'a Cluster,
    plan: &'a Plan,
    timeline: &'a Timeline,
    pair: Pair<'a>,
    boot_id: String,
    times_ms: Times,
    protection: Option<FtInfo>,
    survived: bool,
    faults: Vec<String>,
}

impl<'a> Act<'a> {
    fn open(
        cluster: &'a Cluster,
        place: &Place,
        plan: &'a Plan,
        timeline: &'a Timeline,
    ) -> Result<Self> {
        let address = |index: usize| cluster.host(index).address();
        timeline.say(&format!(
            "Host A is {}, host B is {}. This process is the client, {CLIENT_ADDRESS}, outside both.",
            address(0),
            address(1)
        ));
        timeline.say(&format!(
            "Host A boots a VM: {} as Debian ships it, {MEMORY_MIB} MiB, a disk, a network card. Nothing protects it yet.",
            place.guest_kernel
        ));
        let vm = VmOptions { memory_mib: MEMORY_MIB, ..VmOptions::default() };
        // All times are those that a user gets who chooses none.
        let options = PairOptions { vm, ack: plan.ack, timeout_ms: None, ..PairOptions::default() };
        let pair = waiting(timeline, "the VM boots", || Pair::start_unprotected(cluster, options))?;
        let boot_id = pair.guest().statistics()?.boot_id;
        Ok(Self {
            cluster,
            plan,
            timeline,
            pair,
            boot_id,
            times_ms: Times::default(),
            protection: None,
            survived: true,
            faults: Vec::new(),
        })
    }

    fn connect(&self) -> Result<JournalLoad> {
        let guest = self.pair.guest();
        self.timeline.say(&format!(
            "The VM answers. The client opens one TCP connection to {}:{JOURNAL_PORT}, a service in the VM that writes \
             each request to the VM's virtio disk (O_DSYNC) before it answers. That connection has to last to the end.",
            guest.address()
        ));
        let pace = Pace { client: 1, payload_size: PAYLOAD_SIZE, interval: INTERVAL };
        guest.journal(pace, Instant::now())
    }

    /// Lets the client ask for a while; tells how that went.
    fn measure(&self, load: &JournalLoad, how: &str) -> Result<()> {
        let seconds = self.plan.seconds;
        let start_us = load.now_us();
        let end = Instant::now() + Duration::from_secs(seconds);
        while Instant::now() < end {
            pause(PROGRESS_INTERVAL.min(end.saturating_duration_since(Instant::now())))?;
            if let Some(why) = load.look(|history| history.broken.clone()) {
                bail!("the client's connection broke: {why}\n{}", self.pair.describe());
            }
            let ranks = load.look(|history| history.round_trips(start_us..u64::MAX));
            let passed = (load.now_us() - start_us) / 1_000_000;
            self.timeline
                .progress(&format!("{how}: {passed} of {seconds} s, {}", in_words(&ranks)));
        }
        let ranks = load.look(|history| history.round_trips(start_us..u64::MAX));
        let mut how = how.to_owned();
        how[..1].make_ascii_uppercase();
        self.timeline.say(&format!("{how}: {}.", in_words(&ranks)));
        Ok(())
    }

    /// Protects the VM and measures; whether it is protected at the end of that.
    fn be_protected(&mut self, load: &JournalLoad) -> Result<bool> {
        let mut why = String::new();
        for _ in 0..PROTECTION_TRIES {
            self.protect(load)?;
            self.measure(load, "under protection")?;
            let info = self.pair.ft_info()?;
            self.timeline.say(&in_words_of(&info));
            why = info.last_event.as_ref().map(|event| event.what.clone()).unwrap_or_default();
            let protected = info.state == "protected";
            self.protection = Some(info);
            if protected {
                return Ok(true);
            }
            self.timeline.say(&format!(
                "The protection was lost meanwhile: {why}. On a machine that is busy with other work one host can be \
                 silent for too long. The VM runs on, and gets a new backup.",
            ));
        }
        self.not_survived(&format!("the protection was lost again and again: {why}"));
        Ok(false)
    }

    fn protect(&mut self, load: &JournalLoad) -> Result<()> {
        self.pair.add_backup()?;
        self.timeline
            .say("Host B starts a second VMM, which waits to become the backup. At host A:");
        self.timeline.say(&format!("ch-remote ft-enable {}", self.pair.enable_fields()?));
        let pair = &mut self.pair;
        waiting(self.timeline, "the running VM is copied to host B", || pair.enable())?;
        self.times_ms.protected = now_ms(load);
        self.timeline.say(
            "Protected: host B has the VM's memory and devices and follows its log. No packet leaves the VM any more \
             before host B can account for it.",
        );
        self.catch_up()?;
        self.times_ms.settled = now_ms(load);
        Ok(())
    }

    /// What happened during the copy comes after it: measuring begins when the backup is as close as it is meant to be.
    fn catch_up(&self) -> Result<()> {
        let start = Instant::now();
        let pair = &self.pair;
        let lag_ms =
            wait_until("the backup's catching up", CATCH_UP_TIMEOUT, ASK_INTERVAL, || {
                let info = pair.ft_info()?;
                self.timeline.progress(&format!("the backup is {} ms behind", info.lag_ms));
                let done = info.lag_ms < LAG_MOST_MS || info.state != "protected";
                Ok(done.then_some(info.lag_ms))
            })?;
        self.timeline.say(&format!(
            "After {:.1} s the backup has caught up; its execution is {lag_ms} ms behind.",
            start.elapsed().as_secs_f64()
        ));
        pause(SETTLE)
    }

    /// Kills what the primary runs on; whether the VM survived.
    fn kill(&mut self, load: &JournalLoad) -> Result<bool> {
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
        let (_, gap_us) = load
            .look(|history| super::report::gap(history, self.times_ms.killed * 1000, answered_us));
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

    fn not_survived(&mut self, why: &str) {
        self.faults.push(why.to_owned());
        self.timeline.say(&format!("{why}. The VMMs say:"));
        self.timeline.print(&self.pair.describe());
    }

    /// Ends the client, reads what is on the disk, and judges.
    fn close(mut self, load: JournalLoad, place: Place) -> Result<Told> {
        self.times_ms.ended = now_ms(&load);
        let (history, records) = if self.survived {
            self.timeline.say("The client hangs up. What does the VM have on its disk?");
            let history = load.stop()?;
            (history, self.read_back()?)
        } else {
            // In this order: what is acknowledged later may be on the disk later, too.
            let history = load.look(History::clone);
            let records = self.read_outside().context("the VM is gone, and its disk is no help")?;
            (history, records)
        };
        let verdict = check(std::slice::from_ref(&history), &records);
        let evidence = Evidence {
            history: &history,
            verdict: &verdict,
            times_ms: self.times_ms,
            protection: self.protection,
            faults: self.faults,
        };
        let report = Report::new(self.plan.kill, self.plan.ack, place, evidence);
        let chart = picture::of(&history, &report);
        Ok(Told { report, chart })
    }

    /// What the disk has: asked of the VM, and read from outside once the VM has switched itself off.
    fn read_back(&mut self) -> Result<Vec<Record>> {
        let guest = self.pair.guest();
        if guest.statistics()?.boot_id != self.boot_id {
            self.faults.push("the VM booted anew instead of going on".to_owned());
        }
        let records = guest.durable_history()?;
        self.timeline.say(&format!(
            "{} records. The VM switches itself off; then its disk is read from outside.",
            grouped(records.len() as u64)
        ));
        let pair = &mut self.pair;
        match waiting(self.timeline, "the VM switches off", || pair.shutdown()) {
            Ok((ended, _)) if ended.success() => {}
            Ok((ended, _)) => self.faults.push(format!("the survivor ended badly: {ended:?}")),
            Err(error) => self.faults.push(format!("the VM did not switch off: {error:#}")),
        }
        match self.read_outside() {
            Ok(outside) if outside == records => {
                self.timeline.say("The file system has no fault, and the records are the same.");
            }
            Ok(_) => self.faults.push("the disk has other records than the VM said".to_owned()),
            Err(error) => self.faults.push(format!("the disk is faulty: {error:#}")),
        }
        Ok(records)
    }

    /// What a power failure now would leave on the disk.
    fn read_outside(&self) -> Result<Vec<Record>> {
        let disk = self.pair.disk().context("the VM has no disk")?;
        disk.recovered(&self.cluster.shared_dir().join("disk-copy"))?.journal()
    }
}

fn now_ms(load: &JournalLoad) -> u64 {
    load.now_us() / 1000
}

/// When the first request that was sent after `dead_us` was answered.
fn answer_after(history: &History, dead_us: u64) -> Option<u64> {
    let late = history.exchanges.iter().rev().take_while(|exchange| exchange.sent_us > dead_us);
    late.filter_map(|exchange| exchange.answer.map(|(at_us, _)| at_us)).last()
}

/// Does something that takes a while, and shows that it goes on.
fn waiting<T: Send>(
    timeline: &Timeline,
    what: &str,
    work: impl FnOnce() -> Result<T> + Send,
) -> Result<T> {
    std::thread::scope(|scope| {
        let start = Instant::now();
        let working = scope.spawn(work);
        while !working.is_finished() {
            timeline.progress(&format!("{what} ({} s)", start.elapsed().as_secs()));
            sleep(Duration::from_millis(50));
        }
        working.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn in_words(ranks: &Percentiles) -> String {
    let ms = |us: u64| us as f64 / 1000.0;
    format!(
        "{} requests answered, round trip p50 {:.2} ms, p99 {:.2} ms",
        grouped(ranks.samples as u64),
        ms(ranks.p50_us),
        ms(ranks.p99_us)
    )
}

fn in_words_of(info: &FtInfo) -> String {
    format!(
        "ft-info at host A: {}; {}/s of log, the backup's execution {} ms behind, outputs waited p50 {} µs, p99 {} µs.",
        info.state,
        bytes(info.log.bytes_per_second),
        info.lag_ms,
        grouped(info.output_delay_us.p50),
        grouped(info.output_delay_us.p99)
    )
}

fn letter(host_index: usize) -> char {
    char::from(b'A' + host_index as u8)
}

fn rand_u16() -> u16 {
    use std::io::Read;
    let mut bytes = [0; 2];
    // Without it the kill comes as it comes.
    let _ = std::fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes));
    u16::from_le_bytes(bytes)
}
