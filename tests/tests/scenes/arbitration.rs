//! The sides cannot hear each other, or cannot ask who is to go on.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use tests::etcd::EtcdServer;
use tests::runner::{Cut, Cuts, Party, Traffic};
use tests::vm::Arbiter;

use super::sides::hosts;
use super::{Stage, Survivor, too_long, wait_for_state};

/// A backup that cannot ask waits with going live, however long it takes.
pub fn arbiter_lost_then_primary(stage: &mut Stage) -> Result<()> {
    let (host, other) = hosts(stage);
    stage.witness.forget();
    stage.must_answer()?;
    let hidden = hide_arbiter(stage)?;
    stage.pair.kill_primary()?;
    let backup = stage.pair.backup().context("there is no backup")?;
    wait_for_state(backup, "taking-over")?;
    stage.must_be_silent(too_long())?;
    wait_for_state(stage.pair.backup().context("there is no backup")?, "taking-over")?;
    show_arbiter(stage, &hidden)?;
    stage.wait_for_takeover()?;
    stage.must_answer()?;
    stage.must_have_heard(&[host, other])?;
    stage.pair.reprotect()
}

/// Both sides are alive, and neither may speak until one of them has been told to.
pub fn channel_and_arbiter_lost(stage: &mut Stage) -> Result<()> {
    let (host, other) = hosts(stage);
    stage.witness.forget();
    stage.must_answer()?;
    let hidden = hide_arbiter(stage)?;
    let cuts = cut(stage)?;
    wait_for_state(stage.pair.backup().context("there is no backup")?, "taking-over")?;
    stage.wait_for_state("holding")?;
    stage.must_be_silent(too_long())?;
    show_arbiter(stage, &hidden)?;
    let survivor = stage.wait_for_survivor()?;
    stage.must_answer()?;
    loser_must_be_out(stage, survivor)?;
    cuts.mend()?;
    tests::vm::pause(too_long() / 2)?;
    stage.must_answer()?;
    must_have_spoken(stage, survivor, host, other)
}

/// The same with an arbiter in etcd whose server hangs: questions arrive, answers do not.
pub fn etcd_hangs_and_primary_is_lost(stage: &mut Stage) -> Result<()> {
    let (host, other) = hosts(stage);
    let etcd = EtcdServer::start(stage.cluster)?;
    stage.pair.primary().ask(&["ft-disable"])?;
    wait_for_state(stage.pair.backup().context("there is no backup")?, "waiting")?;
    stage.pair.choose_arbiter(Arbiter::Etcd);
    stage.pair.enable()?;
    for side in [stage.pair.ft_info()?, stage.pair.backup().context("no backup")?.ft_info()?] {
        ensure!(side.arbiter == Some(EtcdServer::arbiter()), "it is not asked: {side:?}");
    }
    stage.witness.forget();
    stage.must_answer()?;
    etcd.freeze()?;
    stage.pair.kill_primary()?;
    wait_for_state(stage.pair.backup().context("there is no backup")?, "taking-over")?;
    stage.must_be_silent(too_long())?;
    wait_for_state(stage.pair.backup().context("there is no backup")?, "taking-over")?;
    etcd.thaw()?;
    stage.wait_for_takeover()?;
    stage.must_answer()?;
    stage.must_have_heard(&[host, other])?;
    stage.must_be_sound()?;
    // The next scene has another arbiter, and other generations.
    stage.pair.choose_arbiter(Arbiter::SharedFolder);
    stage.pair.reprotect()
}

/// Nobody is protected by an arbiter that is not there; the VM runs on as it was.
pub fn etcd_is_not_there(stage: &mut Stage) -> Result<()> {
    stage.pair.primary().ask(&["ft-disable"])?;
    wait_for_state(stage.pair.backup().context("there is no backup")?, "waiting")?;
    stage.pair.choose_arbiter(Arbiter::Etcd);
    let fields = stage.pair.enable_fields()?;
    let refused = stage.pair.primary().ask(&["ft-enable", &fields]);
    stage.pair.choose_arbiter(Arbiter::SharedFolder);
    let Err(why) = refused else { bail!("a VM was protected by an arbiter that is not there") };
    let why = format!("{why:#}");
    ensure!(why.contains("cannot be asked"), "the reason is not told: {why}");
    stage.must_answer()?;
    stage.pair.enable()?;
    stage.must_answer()
}

fn cut<'a>(stage: &Stage<'a>) -> Result<Cuts<'a>> {
    stage.cluster.network().cut(&Cut::both_ways(
        Party::Host(0),
        Party::Host(1),
        Traffic::Everything,
    ))
}

/// Who lost stands down: a primary halts, a backup waits for the next primary.
pub fn loser_must_be_out(stage: &mut Stage, survivor: Survivor) -> Result<()> {
    match survivor {
        Survivor::Primary => {
            wait_for_state(stage.pair.backup().context("there is no backup")?, "waiting")
        }
        Survivor::Backup => stage.former_must_have_halted(),
    }
}

/// Nobody but the primary spoke for the guest, and after it the backup, if that is who goes on.
pub fn must_have_spoken(
    stage: &Stage,
    survivor: Survivor,
    host: usize,
    other: usize,
) -> Result<()> {
    match survivor {
        Survivor::Primary => stage.must_have_heard(&[host]),
        Survivor::Backup => stage.must_have_heard(&[host, other]),
    }
}

/// The storage with the arbiter's folder is gone, on both hosts.
fn hide_arbiter(stage: &Stage) -> Result<PathBuf> {
    let arbiter = stage.pair.arbiter();
    let hidden = arbiter.with_extension("hidden");
    ensure!(!hidden.exists(), "the arbiter is hidden already");
    fs::rename(arbiter, &hidden)?;
    Ok(hidden)
}

fn show_arbiter(stage: &Stage, hidden: &PathBuf) -> Result<()> {
    Ok(fs::rename(hidden, stage.pair.arbiter())?)
}
