//! A pair whose shared storage is a real NFS export, mounted hard on both hosts: the arbiter's folder and the VM's disk.
//!
//! Owns what is different there: writes that outlive who made them.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tests::client::Control;
use tests::guest::protocol::{Answer, Ask};
use tests::runner::Cluster;
use tests::vm::{Acknowledgement, Arbiter, Share, pause, wait_until};

use crate::scenes::Stage;
use crate::scenes::sides::hosts;
use crate::{SOON, common};

/// So many blocks are written round and round; few, so that each is soon overwritten.
const SLOTS: u32 = 16;

type Scene = fn(&mut Stage) -> Result<()>;

/// Boots a VM for this, and ends it.
pub fn play(cluster: &Cluster) -> Result<()> {
    let begun = Instant::now();
    let mut options = common::small_options(Acknowledgement::Received)?;
    options.arbiter = Arbiter::NfsFolder;
    options.vm.disk_on = Share::Nfs;
    let mut stage = Stage::set_with(cluster, options)?;
    println!("protected after {} ms", begun.elapsed().as_millis());
    let scenes: [(&str, Scene); 2] = [
        ("on NFS the primary is killed", killed),
        ("on NFS the primary is stopped in a write", stopped_in_a_write),
    ];
    for (name, scene) in scenes {
        let begun = Instant::now();
        let played = scene(&mut stage).and_then(|()| stage.must_be_sound());
        played.with_context(|| format!("{name}\n{}", stage.describe()))?;
        println!("{name}: {} ms", begun.elapsed().as_millis());
    }
    // Reads the image from the server, after the guest's end.
    stage.strike()
}

/// A process that is killed leaves its writes to NFS on their way: its successor waits for the fence, although it knows that
/// the process is dead.
fn killed(stage: &mut Stage) -> Result<()> {
    let (host, other) = hosts(stage);
    stage.witness.forget();
    stage.must_answer()?;
    let begun = Instant::now();
    stage.pair.kill_primary()?;
    stage.wait_for_takeover()?;
    let waited = begun.elapsed();
    // What was heard last was heard a little before the kill.
    let fence = common::timeout() - Duration::from_millis(500);
    ensure!(waited >= fence, "live after {waited:?}: nobody waited for writes that may still land");
    stage.must_answer()?;
    stage.must_have_heard(&[host, other])?;
    stage.pair.reprotect()
}

/// The primary is stopped while a write of its is under way and others wait behind it. By the time it goes on, the backup has
/// long been live and has overwritten the same blocks: what waited must not be written any more.
fn stopped_in_a_write(stage: &mut Stage) -> Result<()> {
    let (host, other) = hosts(stage);
    let storage = stage.cluster.storage()?.host();
    stage.witness.forget();
    let mut control = stage.pair.guest().control()?;
    let ask = Ask::StartDisk { block_size: 4096, slots: SLOTS };
    ensure!(control.ask(&ask)? == Answer::Done, "the guest does not write");
    wait_for_blocks(&mut control, u64::from(SLOTS))?;
    stage.must_answer()?;

    // A server that takes its time: whatever is written next is under way until it goes on.
    storage.pause()?;
    pause(Duration::from_millis(300))?;
    stage.pair.primary().signal(libc::SIGSTOP)?;
    storage.resume()?;
    stage.wait_for_takeover()?;
    stage.must_answer()?;
    let durable = blocks(&mut control)?;
    wait_for_blocks(&mut control, durable + 2 * u64::from(SLOTS))?;

    let before = direct_bytes_written(stage, host)?;
    stage.pair.former().context("nobody was replaced")?.signal(libc::SIGCONT)?;
    stage.former_must_have_halted()?;
    let after = direct_bytes_written(stage, host)?;
    ensure!(after == before, "a primary that had lost wrote {} bytes more", after - before);
    stage.must_have_heard(&[host, other])?;
    control.ask(&Ask::StopDisk)?;
    match control.ask(&Ask::VerifyDisk)? {
        Answer::Durable { blocks } => println!("    {blocks} blocks are as they were written last"),
        answer => bail!("the disk is not as it was written: {answer:?}"),
    }
    stage.must_answer()
}

fn blocks(control: &mut Control) -> Result<u64> {
    match control.ask(&Ask::DiskProgress)? {
        Answer::Durable { blocks } => Ok(blocks),
        answer => bail!("the guest answered out of turn: {answer:?}"),
    }
}

fn wait_for_blocks(control: &mut Control, goal: u64) -> Result<()> {
    wait_until("blocks on the disk", SOON, Duration::from_millis(50), || {
        Ok((blocks(control)? >= goal).then_some(()))
    })
}

/// How many bytes programs on this host have written to the NFS export past the host's cache, as only the VMM does.
fn direct_bytes_written(stage: &Stage, host_index: usize) -> Result<u64> {
    let statistics = stage.cluster.host(host_index).shell("cat /proc/self/mountstats")?;
    let mount = statistics.split_once(" fstype nfs4 ").context("NFS is not mounted")?.1;
    let line = mount.lines().find_map(|line| line.trim().strip_prefix("bytes:"));
    let fields: Vec<&str> =
        line.context("there are no counts of bytes")?.split_whitespace().collect();
    // Read and written through the cache, read and written past it.
    fields.get(3).context("a count is missing")?.parse().context("a count is no number")
}
