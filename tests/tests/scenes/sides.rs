//! One side dies or sleeps.

use anyhow::{Context, Result};

use super::{Stage, too_long, wait_for_state};

pub fn primary_killed(stage: &mut Stage) -> Result<()> {
    let (host, other) = hosts(stage);
    stage.witness.forget();
    stage.must_answer()?;
    stage.pair.kill_primary()?;
    stage.wait_for_takeover()?;
    stage.must_answer()?;
    stage.must_have_heard(&[host, other])?;
    stage.pair.reprotect()
}

/// Nobody is left to answer a probe: silence alone tells.
pub fn primary_host_dies(stage: &mut Stage) -> Result<()> {
    let (host, other) = hosts(stage);
    stage.witness.forget();
    stage.must_answer()?;
    stage.pair.end_primary_host()?;
    stage.wait_for_takeover()?;
    stage.must_answer()?;
    stage.must_have_heard(&[host, other])
}

pub fn backup_killed(stage: &mut Stage) -> Result<()> {
    let (host, _) = hosts(stage);
    stage.witness.forget();
    stage.pair.backup().context("there is no backup")?.kill()?;
    stage.wait_for_state("solo")?;
    stage.must_answer()?;
    stage.must_have_heard(&[host])?;
    stage.pair.reprotect()?;
    stage.must_answer()
}

/// The backup wakes up when the primary has gone on alone: it stands down, and can be joined again.
pub fn backup_sleeps(stage: &mut Stage) -> Result<()> {
    let (host, _) = hosts(stage);
    stage.witness.forget();
    let backup = stage.pair.backup().context("there is no backup")?;
    backup.signal(libc::SIGSTOP)?;
    stage.wait_for_state("solo")?;
    stage.must_answer()?;
    stage.pair.backup().context("there is no backup")?.signal(libc::SIGCONT)?;
    wait_for_state(stage.pair.backup().context("there is no backup")?, "waiting")?;
    stage.must_answer()?;
    stage.must_have_heard(&[host])?;
    stage.pair.enable()?;
    stage.must_answer()
}

/// The primary wakes up when the backup has long taken over: not a word may come from it.
pub fn primary_sleeps(stage: &mut Stage) -> Result<()> {
    let (host, other) = hosts(stage);
    stage.witness.forget();
    stage.must_answer()?;
    stage.pair.primary().signal(libc::SIGSTOP)?;
    stage.wait_for_takeover()?;
    stage.must_answer()?;
    stage.pair.former().context("nobody was replaced")?.signal(libc::SIGCONT)?;
    stage.former_must_have_halted()?;
    stage.must_answer()?;
    tests::vm::pause(too_long() / 4)?;
    stage.must_have_heard(&[host, other])?;
    stage.must_be_sound()?;
    stage.pair.reprotect()
}

/// Where the VM is, and where it may go.
pub fn hosts(stage: &mut Stage) -> (usize, usize) {
    let host = stage.pair.primary().host_index();
    (host, 1 - host)
}
