//! What a guest is kept busy with while its hosts fail, and the judgement of what came of it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tests::client::{Bulk, History, JournalLoad, Pace, Steady, check};
use tests::guest::protocol::{Answer, Ask, COMPUTE_PORT};
use tests::vm::{GuestClient, wait_until};

/// What a guest can be busy with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Workload {
    /// Nothing but to say how it is, a few times a second.
    Idle,
    /// Requests that are stored before they are answered.
    Journal,
    /// Sending as fast as it can.
    Transmit,
    /// Receiving as fast as it can.
    Receive,
    /// Writing to the disk, each block durable before the next.
    Disk,
    /// Computing without a pause; a journal beside it shows that it is still there.
    Compute,
}

/// All there are.
pub const WORKLOADS: [Workload; 6] = [
    Workload::Idle,
    Workload::Journal,
    Workload::Transmit,
    Workload::Receive,
    Workload::Disk,
    Workload::Compute,
];

/// Blocks that are written, and places for them.
pub const BLOCK_SIZE: u32 = 4096;
pub const BLOCK_SLOTS: u32 = 1024;

const IDLE_INTERVAL: Duration = Duration::from_millis(100);
const DISK_INTERVAL: Duration = Duration::from_millis(20);
const JOURNAL_INTERVAL: Duration = Duration::from_millis(5);
/// About a quarter of a second on an emulated host.
const COMPUTE_ROUNDS: u64 = 10_000_000;
/// A guest that lives gets something done within this time, even if the client's TCP has just fallen silent for long.
const PROGRESS_TIMEOUT: Duration = Duration::from_secs(60);

/// A workload that runs, over connections that are made once.
pub enum Load {
    Steady(Workload, Steady),
    Journal(JournalLoad),
    Bulk(Bulk),
    Compute(JournalLoad, Steady),
}

impl Load {
    /// Connects and begins. `client` tells this load's journal from others'; `start` is their common clock.
    pub fn start(
        workload: Workload,
        guest: GuestClient,
        client: u32,
        start: Instant,
    ) -> Result<Self> {
        let journal =
            || guest.journal(Pace { client, payload_size: 100, interval: JOURNAL_INTERVAL }, start);
        Ok(match workload {
            Workload::Idle => Self::Steady(workload, Steady::idle(guest.control()?, IDLE_INTERVAL)),
            Workload::Journal => Self::Journal(journal()?),
            Workload::Transmit => Self::Bulk(guest.source()?),
            Workload::Receive => Self::Bulk(guest.sink()?),
            Workload::Disk => {
                let control = guest.control()?;
                let steady = Steady::disk(control, BLOCK_SIZE, BLOCK_SLOTS, DISK_INTERVAL)?;
                Self::Steady(workload, steady)
            }
            Workload::Compute => {
                let compute = Steady::compute(guest.connect(COMPUTE_PORT)?, COMPUTE_ROUNDS);
                Self::Compute(journal()?, compute)
            }
        })
    }

    /// Answers, bytes or blocks so far: it only ever grows.
    pub fn progress(&self) -> u64 {
        match self {
            Self::Steady(_, steady) => steady.progress(),
            Self::Journal(journal) | Self::Compute(journal, _) => journal.acknowledged() as u64,
            Self::Bulk(bulk) => bulk.bytes(),
        }
    }

    /// Waits until it has got on from here.
    pub fn must_get_on(&self) -> Result<()> {
        let goal = self.progress() + 2;
        wait_until("the load's progress", PROGRESS_TIMEOUT, Duration::from_millis(5), || {
            Ok((self.progress() >= goal).then_some(()))
        })
    }

    /// Does something while the client watches. Returns the longest time in which nothing came from the guest, up to the
    /// first progress after it.
    pub fn longest_gap_during(&self, work: impl FnOnce() -> Result<()>) -> Result<Duration> {
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            let watching = scope.spawn(|| self.longest_gap_until(&done));
            let worked = work().and_then(|()| self.must_get_on());
            done.store(true, Ordering::Relaxed);
            let gap = watching.join().unwrap_or_default();
            worked.map(|()| gap)
        })
    }

    fn longest_gap_until(&self, done: &AtomicBool) -> Duration {
        let (mut progress, mut since, mut longest) =
            (self.progress(), Instant::now(), Duration::ZERO);
        while !done.load(Ordering::Relaxed) {
            thread::sleep(Duration::from_millis(2));
            let now = self.progress();
            if now != progress {
                longest = longest.max(since.elapsed());
                (progress, since) = (now, Instant::now());
            }
        }
        longest
    }

    /// Ends it. Its connection must have lived, and all it was told must have been right; what a journal was told is added
    /// to the histories and held, with them, against the guest's disk. Returns what was done, in words.
    pub fn finish(self, guest: GuestClient, histories: &mut Vec<History>) -> Result<String> {
        match self {
            Self::Steady(Workload::Disk, steady) => {
                steady.stop()?;
                let blocks = verify_disk(guest)?;
                Ok(format!("{blocks} blocks durable and right"))
            }
            Self::Steady(_, steady) => Ok(format!("{} answers", steady.stop()?)),
            Self::Journal(journal) => finish_journal(journal, guest, histories),
            Self::Bulk(bulk) => {
                let outcome = bulk.stop()?;
                ensure!(outcome.broken.is_none(), "the transfer broke: {outcome:?}");
                Ok(format!("{} bytes right", outcome.bytes))
            }
            Self::Compute(journal, compute) => {
                let results = compute.stop()?;
                let answers = finish_journal(journal, guest, histories)?;
                Ok(format!("{results} results right, {answers}"))
            }
        }
    }
}

fn finish_journal(
    journal: JournalLoad,
    guest: GuestClient,
    histories: &mut Vec<History>,
) -> Result<String> {
    histories.push(journal.stop()?);
    let records = guest.durable_history().context("the history cannot be read")?;
    let verdict = check(histories, &records);
    ensure!(verdict.is_clean(), "promises were broken: {verdict:?}");
    Ok(format!("{} requests acknowledged, all stored once", verdict.acknowledged))
}

fn verify_disk(guest: GuestClient) -> Result<u64> {
    match guest.control()?.ask(&Ask::VerifyDisk)? {
        Answer::Durable { blocks } => Ok(blocks),
        other => bail!("the guest answered out of turn: {other:?}"),
    }
}
