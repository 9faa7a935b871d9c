//! Either side stands still or starves again and again, each time for less than the timeout: nothing may come of it.
//!
//! `FT_STALL_SECONDS` says for how long (`scripts/soak stalls`); `FT_STALL_SEED` repeats the stalls of a run.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tests::runner::Host;
use tests::vm::{VmmProcess, pause};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::Stage;
use crate::common::{number, seed_of_now, timeout};

const USUAL_SECONDS: u64 = 15;
/// Between two stalls, at most.
const CALM_MS_MAX: u64 = 1_000;
/// How much more memory than after the first quarter either VMM may have at the end, besides the guest's.
const GROWTH_KIB_MAX: u64 = 32 << 10;

/// What stands still, or does not get to its work.
#[derive(Clone, Copy, Debug)]
enum Stall {
    /// Its process is stopped.
    Primary,
    Backup,
    /// The whole host is: not even its kernel answers.
    PrimaryHost,
    BackupHost,
    /// Another program has the host's processor for itself; its kernel goes on.
    PrimaryStarved,
    BackupStarved,
}

const STALLS: [Stall; 6] = [
    Stall::Primary,
    Stall::Backup,
    Stall::PrimaryHost,
    Stall::BackupHost,
    Stall::PrimaryStarved,
    Stall::BackupStarved,
];

/// No takeover, no loss, no difference between the copies, and no growth.
pub fn stalls_below_the_timeout(stage: &mut Stage) -> Result<()> {
    let seed = number("FT_STALL_SEED").unwrap_or_else(seed_of_now);
    let time = Duration::from_secs(number("FT_STALL_SECONDS").unwrap_or(USUAL_SECONDS));
    println!("    FT_STALL_SEED={seed}, for {} s", time.as_secs());
    let before = stage.pair.ft_info()?;
    let start = Instant::now();
    let (mut draws, mut stalls, mut memory) = (0_u64, 0, None);
    let mut random = |limit: u64| {
        draws += 1;
        xxh3_64_with_seed(&draws.to_le_bytes(), seed) % limit
    };
    while start.elapsed() < time {
        let stall = STALLS[usize::try_from(random(STALLS.len() as u64))?];
        let length = Duration::from_millis(1 + random(longest_ms()));
        stand_still(stage, stall, length).with_context(|| format!("{stall:?}"))?;
        stalls += 1;
        pause(Duration::from_millis(random(CALM_MS_MAX)))?;
        if stalls % 8 == 0 {
            must_be_as_before(stage, &before)
                .with_context(|| format!("after {stall:?} for {length:?}"))?;
        }
        if memory.is_none() && start.elapsed() > time / 4 {
            memory = Some(memory_kib(stage)?);
        }
    }
    stage.must_answer()?;
    must_be_as_before(stage, &before)?;
    let after = memory_kib(stage)?;
    let memory = memory.unwrap_or(after);
    println!(
        "    {stalls} stalls; memory besides the guest's, in KiB: {memory:?}, at the end {after:?}"
    );
    for (early, late) in memory.into_iter().zip(after) {
        ensure!(late <= early + GROWTH_KIB_MAX, "memory grew: {memory:?} KiB, then {after:?}");
    }
    Ok(())
}

/// The longest stall. A lease lasts half of the timeout, and emulated hosts have stalls of their own.
pub fn longest_ms() -> u64 {
    u64::try_from(timeout().as_millis() / 3).unwrap_or(u64::MAX)
}

fn stand_still(stage: &mut Stage, stall: Stall, length: Duration) -> Result<()> {
    let primary = stage.pair.primary().host_index();
    match stall {
        Stall::Primary => stop(stage.pair.primary(), length),
        Stall::Backup => stop(stage.pair.backup().context("there is no backup")?, length),
        Stall::PrimaryHost => pause_host(stage.cluster.host(primary), length),
        Stall::BackupHost => pause_host(stage.cluster.host(1 - primary), length),
        Stall::PrimaryStarved => starve(stage.cluster.host(primary), length),
        Stall::BackupStarved => starve(stage.cluster.host(1 - primary), length),
    }
}

fn stop(vmm: &VmmProcess<'_>, length: Duration) -> Result<()> {
    vmm.signal(libc::SIGSTOP)?;
    pause(length)?;
    vmm.signal(libc::SIGCONT)
}

/// Hosts that are only namespaces of this machine have no pause of their own.
fn pause_host(host: &Host, length: Duration) -> Result<()> {
    if !host.is_emulated() {
        return Ok(());
    }
    host.pause()?;
    pause(length)?;
    host.resume()
}

/// A program of real-time priority never rests on the host's only processor. Linux leaves the others 50 ms of a second.
/// Hosts that are only namespaces share the processors of this machine, with the client among others.
fn starve(host: &Host, length: Duration) -> Result<()> {
    if !host.is_emulated() {
        return Ok(());
    }
    // Whoever ends it must come before it; it says so by the status 124.
    let hog = "chrt -f 50 sh -c 'while :; do :; done'";
    let limited = format!("chrt -f 60 timeout {:.3} {hog}", length.as_secs_f64());
    host.shell(&format!("{limited}; status=$?; [ $status = 124 ] || exit $status")).map(drop)
}

/// Nothing has come of it: it is the same pair, which has been protected all along, and the VM runs.
pub fn must_be_as_before(stage: &mut Stage, before: &tests::vm::FtInfo) -> Result<()> {
    let now = stage.pair.ft_info()?;
    ensure!(now.state == "protected", "the primary is {}", now.state);
    ensure!(now.generation == before.generation, "the generation is {}", now.generation);
    ensure!(now.divergences == before.divergences, "{} divergences", now.divergences);
    ensure!(now.moment > before.moment, "the VM stood still at moment {}", now.moment);
    Ok(())
}

/// Of primary and backup: what is resident besides the guest's memory.
fn memory_kib(stage: &mut Stage) -> Result<[u64; 2]> {
    let (host, other) = super::sides::hosts(stage);
    let primary = stage.pair.primary().pid();
    let backup = stage.pair.backup().context("there is no backup")?.pid();
    Ok([
        resident_kib(stage.cluster.host(host), primary)?,
        resident_kib(stage.cluster.host(other), backup)?,
    ])
}

/// The sum over all mappings but the largest, which is the guest's memory.
fn resident_kib(host: &Host, pid: i32) -> Result<u64> {
    let maps = host.shell(&format!("grep -E '^(Size|Rss):' /proc/{pid}/smaps"))?;
    let numbers = |name: &str| -> Result<Vec<u64>> {
        let lines = maps.lines().filter(|line| line.starts_with(name));
        lines
            .map(|line| match line.split_whitespace().nth(1) {
                Some(number) => Ok(number.parse()?),
                None => bail!("a line of smaps that is cut short: {line}"),
            })
            .collect()
    };
    let (sizes, resident) = (numbers("Size")?, numbers("Rss")?);
    let largest = sizes.iter().copied().max().unwrap_or(0);
    let others = sizes.iter().zip(&resident).filter(|(size, _)| **size != largest);
    Ok(others.map(|(_, resident)| resident).sum())
}
