//! The story itself: boot, protect, kill, go on, judge.
//!
//! Owns the order of events and what is said about each. A failure of the harness is an error; a failure of the VM to
//! survive is a report that says so.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::report::{Evidence, Report, Times};
use super::verdict::grouped;
use super::{Chart, Place, Plan, Timeline, picture};
use crate::client::{History, JournalLoad, Pace, Percentiles, check};
use crate::guest::protocol::{JOURNAL_PORT, Record};
use crate::runner::Cluster;
use crate::runner::network::CLIENT_ADDRESS;
use crate::vm::{FtInfo, Pair, PairOptions, VmOptions, pause};

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
pub(super) struct Act<'a> {
    pub(super) cluster: &'a Cluster,
    pub(super) plan: &'a Plan,
    pub(super) timeline: &'a Timeline,
    pub(super) pair: Pair<'a>,
    pub(super) boot_id: String,
    pub(super) times_ms: Times,
    pub(super) protection: Option<FtInfo>,
    pub(super) survived: bool,
    pub(super) faults: Vec<String>,
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
        let vm = VmOptions { memory_mib: MEMORY_MIB, quick_boot: false, ..VmOptions::default() };
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
    pub(super) fn measure(&self, load: &JournalLoad, how: &str) -> Result<()> {
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

    /// Something is wrong beyond repair.
    pub(super) fn not_survived(&mut self, why: &str) {
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
        let disk = self.pair.disk()?;
        disk.recovered(&self.cluster.shared_dir().join("disk-copy"))?.journal()
    }
}

pub(super) fn now_ms(load: &JournalLoad) -> u64 {
    load.now_us() / 1000
}

/// Does something that takes a while, and shows that it goes on.
pub(super) fn waiting<T: Send>(
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

pub(super) fn letter(host_index: usize) -> char {
    char::from(b'A' + host_index as u8)
}
