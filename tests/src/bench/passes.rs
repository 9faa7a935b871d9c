//! One pass over a VM: the same work and the same traffic, whether it is protected or not.
//!
//! Owns what is measured and how often. What the figures are compared with is `table.rs`.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::Section;
use crate::client::{BulkOutcome, Percentiles, compute, echo_round_trips_us};
use crate::guest::protocol::{Answer, Ask, COMPUTE_PORT, ECHO_PORT, Program};
use crate::vm::{FtInfo, Pair, pause};

const ROUNDS: u64 = 200_000_000;
const REPEATS: usize = 9;
const PROGRAM_REPEATS: usize = 3;
const ECHOES: usize = 300;
const ECHO_SIZE: usize = 64;
const BULK_TIME: Duration = Duration::from_secs(6);
const IDLE_TIME: Duration = Duration::from_secs(10);

/// What a pass measured; what was not asked for is not there.
#[derive(Default)]
pub(super) struct Pass {
    pub work: Option<Work>,
    pub traffic: Option<Traffic>,
}

/// Medians, in s.
pub(super) struct Work {
    /// The loop, by the guest's clock.
    pub loop_by_guest: f64,
    /// The loop, by the client's clock.
    pub loop_by_client: f64,
    /// By the client's clock.
    pub gzip: f64,
    /// By the client's clock.
    pub sort: f64,
    /// What the log grew by meanwhile.
    pub log: LogGrowth,
}

/// Round trips and bulk transfers.
pub(super) struct Traffic {
    pub echo: Percentiles,
    /// What the guest sent.
    pub sent: Transfer,
    /// What the guest received.
    pub received: Transfer,
}

/// A bulk transfer.
pub(super) struct Transfer {
    pub bytes: f64,
    pub bytes_per_second: f64,
    /// What the log grew by meanwhile.
    pub log: LogGrowth,
}

/// What the log grew by, in bytes; nothing if the VM is not protected.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct LogGrowth {
    pub all: f64,
    /// Packets that the guest received.
    pub packets: f64,
    /// Deltas: state, pages and patches.
    pub deltas: f64,
    pub delta_count: u64,
    pub delta_pages: u64,
}

/// A protected VM that does nothing.
pub(super) struct Idle {
    pub seconds: f64,
    pub log: LogGrowth,
    /// Interrupts that the guest took.
    pub interrupts: u64,
}

/// Measures what these sections ask for.
pub(super) fn measure(pair: &Pair<'_>, sections: &[Section]) -> Result<Pass> {
    let wanted = |section| sections.is_empty() || sections.contains(&section);
    let mut pass = Pass::default();
    if wanted(Section::Work) {
        pass.work = Some(work(pair)?);
    }
    if wanted(Section::Network) {
        pass.traffic = Some(traffic(pair)?);
    }
    Ok(pass)
}

fn work(pair: &Pair<'_>) -> Result<Work> {
    let begun = pair.ft_info()?;
    let mut stream = pair.guest().connect(COMPUTE_PORT)?;
    let times: Vec<_> =
        (0..REPEATS).map(|_| compute(&mut stream, ROUNDS)).collect::<Result<_>>()?;
    let gzip = program(pair, Program::Gzip)?;
    let sort = program(pair, Program::Sort)?;
    Ok(Work {
        loop_by_guest: median(times.iter().map(|times| times.guest)),
        loop_by_client: median(times.iter().map(|times| times.client)),
        gzip,
        sort,
        log: growth(&begun, &pair.ft_info()?),
    })
}

fn program(pair: &Pair<'_>, program: Program) -> Result<f64> {
    let mut control = pair.guest().control()?;
    let mut times = Vec::new();
    // The first time the text is written and the program read.
    control.ask(&Ask::Run { program })?;
    for _ in 0..PROGRAM_REPEATS {
        let start = Instant::now();
        match control.ask(&Ask::Run { program })? {
            Answer::Took { .. } => times.push(start.elapsed()),
            other => bail!("the guest answered out of turn: {other:?}"),
        }
    }
    Ok(median(times.into_iter()))
}

fn median(times: impl Iterator<Item = Duration>) -> f64 {
    let mut times: Vec<Duration> = times.collect();
    times.sort();
    times.get(times.len() / 2).copied().unwrap_or_default().as_secs_f64()
}

fn traffic(pair: &Pair<'_>) -> Result<Traffic> {
    let mut stream = pair.guest().connect(ECHO_PORT)?;
    let echo = Percentiles::of(echo_round_trips_us(&mut stream, ECHO_SIZE, ECHOES)?);
    Ok(Traffic {
        echo,
        sent: transfer(pair, || {
            let source = pair.guest().source()?;
            pause(BULK_TIME)?;
            source.stop()
        })?,
        received: transfer(pair, || {
            let sink = pair.guest().sink()?;
            pause(BULK_TIME)?;
            sink.stop()
        })?,
    })
}

fn transfer(pair: &Pair<'_>, transfer: impl FnOnce() -> Result<BulkOutcome>) -> Result<Transfer> {
    let begun = pair.ft_info()?;
    let outcome = transfer()?;
    let log = growth(&begun, &pair.ft_info()?);
    let bytes = outcome.bytes as f64;
    Ok(Transfer { bytes, bytes_per_second: bytes * 1e6 / outcome.duration_us.max(1) as f64, log })
}

/// Watches a VM that is left alone.
pub(super) fn idle(pair: &Pair<'_>) -> Result<Idle> {
    let interrupts = || Ok::<_, anyhow::Error>(pair.guest().statistics()?.interrupts);
    let (begun, start, before) = (pair.ft_info()?, Instant::now(), interrupts()?);
    pause(IDLE_TIME)?;
    let (after, seconds) = (interrupts()?, start.elapsed().as_secs_f64());
    let log = growth(&begun, &pair.ft_info()?);
    Ok(Idle { seconds, log, interrupts: after.saturating_sub(before) })
}

fn growth(before: &FtInfo, after: &FtInfo) -> LogGrowth {
    let kind = |info: &FtInfo, name: &str| info.log.bytes_by_kind.get(name).copied().unwrap_or(0);
    let rose = |name: &str| kind(after, name).saturating_sub(kind(before, name)) as f64;
    LogGrowth {
        all: after.log.bytes.saturating_sub(before.log.bytes) as f64,
        packets: rose("packet"),
        deltas: rose("pages") + rose("patches") + rose("delta"),
        delta_count: after.deltas.saturating_sub(before.deltas),
        delta_pages: after.delta_pages.saturating_sub(before.delta_pages),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_one() {
        let times = [3, 1, 2].map(Duration::from_secs);
        assert_eq!(median(times.into_iter()), 2.0);
        assert_eq!(median([].into_iter()), 0.0);
    }
}
