//! What is done on purpose: nobody may lose a word, and nobody may take for a failure what is none.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::guest::protocol::Ask;
use tests::runner::Ended;
use tests::vm::{pause, wait_until};

use super::sides::hosts;
use super::{Stage, too_long, wait_for_state};
use crate::SOON;
use crate::common::reboot;

pub fn disabled(stage: &mut Stage) -> Result<()> {
    let (host, _) = hosts(stage);
    stage.witness.forget();
    let before = stage.pair.ft_info()?.generation;
    stage.pair.primary().ask(&["ft-disable"])?;
    wait_for_state(stage.pair.backup().context("there is no backup")?, "waiting")?;
    stage.must_answer()?;
    stage.must_have_heard(&[host])?;
    stage.pair.enable()?;
    let now = stage.pair.ft_info()?.generation;
    ensure!(now == before + 1, "generation {now} after {before}");
    stage.must_answer()
}

pub fn failover(stage: &mut Stage) -> Result<()> {
    let (host, other) = hosts(stage);
    stage.witness.forget();
    stage.must_answer()?;
    stage.pair.primary().ask(&["ft-failover"])?;
    stage.wait_for_takeover()?;
    let former = stage.pair.former().context("nobody was replaced")?;
    let ended = former.wait(SOON)?;
    ensure!(
        ended == Ended::Exited(0),
        "who hands over ends well: {ended:?}\n{}",
        former.describe()
    );
    stage.must_answer()?;
    stage.must_have_heard(&[host, other])?;
    stage.pair.reprotect()
}

/// The same VM comes back, and is protected before and after.
pub fn guest_reboots(stage: &mut Stage) -> Result<()> {
    let (host, _) = hosts(stage);
    stage.disconnect()?;
    stage.witness.forget();
    reboot(&mut stage.pair)?;
    stage.connect()?;
    stage.must_have_heard(&[host])?;
    super::sides::primary_killed(stage)
}

/// Both sides know that this was no failure.
pub fn guest_powers_off(stage: &mut Stage) -> Result<()> {
    let (host, _) = hosts(stage);
    stage.disconnect()?;
    stage.witness.forget();
    power_off(stage)?;
    let backup = stage.pair.backup().context("there is no backup")?;
    wait_until("the backup to stand by", SOON, Duration::from_millis(200), || {
        if let Some(ended) = backup.ended()? {
            ensure!(ended == Ended::Exited(0), "the backup: {ended:?}\n{}", backup.describe());
            return Ok(Some(()));
        }
        Ok((backup.ft_info()?.state == "waiting").then_some(()))
    })?;
    pause(too_long() / 3)?;
    let live = backup.events().iter().any(|event| event.event == "live");
    ensure!(!live, "a VM that was switched off was taken over\n{}", backup.describe());
    stage.must_have_heard(&[host])
}

/// Has the guest switch itself off, and sees that its VMM ends well.
pub fn power_off(stage: &mut Stage) -> Result<()> {
    // The guest may be gone before its answer is; how its VMM ends is what counts.
    let _ = stage.pair.guest().control()?.ask(&Ask::PowerOff);
    let ended = stage.pair.primary().wait(Duration::from_secs(60))?;
    stage.pair.ensure(ended == Ended::Exited(0), &format!("the guest's end: {ended:?}"))
}
