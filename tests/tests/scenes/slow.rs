//! A backup that is slower than its primary, because its host has other work.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::client::Steady;
use tests::guest::protocol::COMPUTE_PORT;
use tests::runner::{Host, Order, RemoteProcess};
use tests::vm::wait_until;

use super::{Stage, sides};
use crate::SOON;

/// They and the backup share one processor.
const HOGS: usize = 3;
/// Short, so that the computation can be told to stop.
const ROUNDS: u64 = 20_000_000;
const LOOKS: usize = 10;
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// A bound that only a lag without bound breaks: the limit is 100 ms, but emulated hosts stand still for seconds.
const LAG_MOST_MS: u64 = 5_000;

/// The VM is slowed down to what its backup can do, stays protected, and gets its speed back.
pub fn backup_is_slow(stage: &mut Stage) -> Result<()> {
    let (_, host_index) = sides::hosts(stage);
    let work = Steady::compute(stage.pair.guest().connect(COMPUTE_PORT)?, ROUNDS);
    let pid = stage.pair.backup().context("there is no backup")?.pid();
    let hogs = crowd(stage.cluster.host(host_index), pid)?;
    let slowed = wait_for_slowdown(stage, |percent| percent > 0);
    let watched = slowed.and_then(|()| stays_protected(stage));
    for hog in &hogs {
        hog.kill(libc::SIGKILL)?;
    }
    watched?;
    work.stop()?;
    wait_for_slowdown(stage, |percent| percent == 0)?;
    stage.must_answer()
}

/// Puts the process and others that never rest on one processor of its host.
fn crowd(host: &Host, pid: i32) -> Result<Vec<RemoteProcess>> {
    host.shell(&format!("taskset -acp 0 {pid}"))?;
    (0..HOGS)
        .map(|_| host.spawn(Order::new(["taskset", "-c", "0", "sh", "-c", "while :; do :; done"])))
        .collect()
}

fn wait_for_slowdown(stage: &mut Stage, wanted: impl Fn(u64) -> bool) -> Result<()> {
    let mut last = 0;
    wait_until("another slowdown", SOON, LOOK_INTERVAL, || {
        last = stage.pair.ft_info()?.slowdown_percent;
        Ok(wanted(last).then_some(()))
    })
    .with_context(|| format!("the slowdown is {last} %"))
}

fn stays_protected(stage: &mut Stage) -> Result<()> {
    for _ in 0..LOOKS {
        tests::vm::pause(LOOK_INTERVAL)?;
        let info = stage.pair.ft_info()?;
        println!("    slowed down by {} %, {} ms behind", info.slowdown_percent, info.lag_ms);
        ensure!(info.state == "protected", "the primary is {}", info.state);
        ensure!(info.lag_ms < LAG_MOST_MS, "the backup is {} ms behind", info.lag_ms);
    }
    stage.must_answer()
}
