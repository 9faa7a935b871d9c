//! A VM that is kept by checkpoints: because its operator says so, because its kernel is one that cannot be treated, and
//! because a program in its guest does what no log holds, again and again. Neither the death of a host nor a planned move
//! costs the connection or a request, nor is it protected any less while it boots anew.

mod common;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use common::{must_answer, must_have_kept, takeover_timeout};
use tests::guest::protocol::Ask;
use tests::runner::{Cluster, Options};
use tests::vm::{Acknowledgement, FtInfo, Pair, wait_until};

/// The copies differ and are made equal a few times before that.
const MOVE_PATIENCE: Duration = Duration::from_secs(120);

#[test]
fn a_vm_that_no_log_can_hold_is_kept_by_checkpoints_and_survives_its_hosts() {
    let cluster = Cluster::start(&Options::new(2).unwrap()).unwrap();
    common::conclude(&cluster, play(&cluster));
}

fn play(cluster: &Cluster) -> Result<()> {
    untreated(cluster).context("a kernel without section headers")?;
    let mut pair = start(cluster, Acknowledgement::Verified, None)?;
    let load = common::client(&pair)?;
    pair.choose_fields(&["mode=checkpoint"]);
    pair.reprotect().context("the join by checkpoints")?;
    for _ in 0..5 {
        pair.guest().control()?.ask(&Ask::TimeStamp)?;
        must_answer(&load)?;
    }
    let info = pair.ft_info()?;
    println!("by order: {}", numbers(&info));
    ensure!(info.mode == "checkpoint" && info.divergences == 0, "not by checkpoints: {info:?}");
    pair.primary().ask(&["ft-disable"])?;
    must_answer(&load).context("after ft-disable")?;
    pair.enable().context("the second join by checkpoints")?;
    pair.kill_primary()?;
    pair.wait_for_takeover(takeover_timeout())?;
    must_answer(&load).context("after the first takeover")?;

    pair.choose_fields(&["mode=auto"]);
    pair.reprotect().context("the join by replay")?;
    let info = pair.ft_info()?;
    ensure!(info.mode == "replay", "not by replay: {info:?}");
    read_time_until_moved(&mut pair)?;
    must_answer(&load).context("after the move")?;
    let info = pair.ft_info()?;
    println!("by itself: {}", numbers(&info));
    pair.primary().ask(&["ft-failover"])?;
    pair.wait_for_takeover(takeover_timeout())?;
    must_answer(&load).context("after the planned failover")?;
    must_have_kept(load, &pair)
}

/// A kernel in which the time-stamp reads cannot be found is one that no log can follow.
fn untreated(cluster: &Cluster) -> Result<()> {
    let kernel = cluster.shared_dir().join("without-sections");
    let mut image = std::fs::read(cluster.cache().vmlinux())?;
    // Of the ELF header: where the section headers are, how many, and which has their names.
    for field in [0x28..0x30, 0x3c..0x40] {
        image.get_mut(field).context("the kernel is no ELF file")?.fill(0);
    }
    std::fs::write(&kernel, image)?;
    let mut pair = start(cluster, Acknowledgement::Received, Some(kernel))?;
    pair.choose_fields(&["mode=replay"]);
    pair.add_backup()?;
    let fields = pair.enable_fields()?;
    let refused = pair.primary().ask(&["ft-enable", &fields]).err().map(|why| why.to_string());
    let expected = "cannot be protected by replay: its kernel has no section headers";
    ensure!(refused.as_ref().is_some_and(|why| why.contains(expected)), "replay: {refused:?}");
    pair.choose_fields(&[]);
    pair.enable()?;
    let info = pair.ft_info()?;
    ensure!(info.mode == "checkpoint", "not by checkpoints: {info:?}");
    pair.guest().control()?.ask(&Ask::TimeStamp)?;
    common::reboot(&mut pair)?;
    let load = common::client(&pair)?;
    must_answer(&load)?;
    pair.kill_primary()?;
    pair.wait_for_takeover(takeover_timeout())?;
    must_answer(&load).context("after the takeover of the second boot")?;
    must_have_kept(load, &pair)
}

/// A VM without protection, of which outputs are to wait until `ack`.
fn start(cluster: &Cluster, ack: Acknowledgement, kernel: Option<PathBuf>) -> Result<Pair<'_>> {
    let mut options = common::reprotecting_options()?;
    options.ack = ack;
    options.vm.kernel = kernel;
    Pair::start_unprotected(cluster, options)
}

/// Has a program in the guest read the processor's time until the VM is kept by checkpoints.
fn read_time_until_moved(pair: &mut Pair<'_>) -> Result<()> {
    let begun = Instant::now();
    let interval = Duration::from_millis(500);
    let waited = wait_until("the move to checkpoints", MOVE_PATIENCE, interval, || {
        pair.guest().control()?.ask(&Ask::TimeStamp)?;
        let info = pair.ft_info()?;
        Ok((info.state == "protected" && info.mode == "checkpoint").then_some(()))
    });
    waited.with_context(|| pair.describe())?;
    println!("moved to checkpoints after {} ms", begun.elapsed().as_millis());
    Ok(())
}

fn numbers(info: &FtInfo) -> String {
    format!(
        "{} checkpoints with {} pages, {} bytes of log; outputs waited {} us, at most {} us in 99 of 100",
        info.deltas,
        info.delta_pages,
        info.log.bytes,
        info.output_delay_us.p50,
        info.output_delay_us.p99
    )
}
