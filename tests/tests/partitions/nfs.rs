//! A pair whose shared storage is a real NFS export, mounted hard on both hosts: the arbiter's folder and the VM's disk.
//!
//! Owns what is different there: writes that outlive who made them, and a disk that stands still while all else goes on.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tests::client::Control;
use tests::guest::protocol::{Answer, Ask};
use tests::runner::Cluster;
use tests::vm::{Acknowledgement, Arbiter, Share, pause, wait_until};

use crate::scenes::Stage;
use crate::scenes::sides::hosts;
use crate::scenes::stalls::{longest_ms, must_be_as_before};
use crate::{SOON, common};

/// So many blocks are written round and round; few, so that each is soon overwritten.
const SLOTS: u32 = 16;
/// So often the disk stands still; in between it takes so many blocks. On emulated hosts each takes its time.
const DISK_STALLS: u32 = 4;
const BLOCKS_BETWEEN: u64 = 2;
/// What the server had answered before it stopped has arrived after this time.
const LATECOMERS: Duration = Duration::from_millis(200);

type Scene = fn(&mut Stage) -> Result<()>;

/// Boots a VM for this, and ends it.
pub fn play(cluster: &Cluster) -> Result<()> {
    let begun = Instant::now();
    let mut options = common::small_options(Acknowledgement::Received)?;
    options.arbiter = Arbiter::NfsFolder;
    options.vm.disk_on = Share::Nfs;
    let mut stage = Stage::set_with(cluster, options)?;
    println!("protected after {} ms", begun.elapsed().as_millis());
    let scenes: [(&str, Scene); 3] = [
        ("on NFS the disk stands still again and again", stands_still),
        ("on NFS the primary is killed", killed),
        ("on NFS the primary is stopped in a write", stopped_in_a_write),
    ];
    for (name, scene) in scenes.iter().filter(|(name, _)| common::is_chosen(name)) {
        let begun = Instant::now();
        let played = scene(&mut stage).and_then(|()| stage.must_be_sound());
        played.with_context(|| format!("{name}\n{}", stage.describe()))?;
        println!("{name}: {} ms", begun.elapsed().as_millis());
    }
    // Reads the image from the server, after the guest's end.
    stage.strike()
}

/// The server stops in its tracks, each time for less than the timeout, while the guest writes and waits for each block to be
/// durable: nobody takes that for the end of a side, and every block is there afterwards.
fn stands_still(stage: &mut Stage) -> Result<()> {
    let (host, _) = hosts(stage);
    let storage = stage.cluster.storage()?.host();
    stage.witness.forget();
    let before = stage.pair.ft_info()?;
    let mut control = start_writing(stage)?;
    wait_for_blocks(&mut control, BLOCKS_BETWEEN)?;
    for number in 0..DISK_STALLS {
        storage.pause()?;
        let stood_still = watch_a_stall(&mut control);
        storage.resume()?;
        let durable = stood_still.with_context(|| format!("in stall {number}"))?;
        wait_for_blocks(&mut control, durable + BLOCKS_BETWEEN)?;
        must_be_as_before(stage, &before).with_context(|| format!("after stall {number}"))?;
    }
    stop_writing(&mut control)?;
    stage.must_answer()?;
    must_be_as_before(stage, &before)?;
    stage.must_have_heard(&[host])
}

/// Sees for as long as a stall lasts that no block becomes durable and the guest answers all the same; how many blocks are.
fn watch_a_stall(control: &mut Control) -> Result<u64> {
    // An answer of the server's may still be on its way.
    pause(LATECOMERS)?;
    let durable = blocks(control)?;
    pause(Duration::from_millis(longest_ms()).saturating_sub(LATECOMERS))?;
    let more = blocks(control)? - durable;
    ensure!(more == 0, "{more} blocks became durable on a disk that stands still");
    Ok(durable)
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
    let mut control = start_writing(stage)?;
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
    stop_writing(&mut control)?;
    stage.must_answer()
}

/// The guest begins to write blocks round and round, each durable before the next.
fn start_writing(stage: &Stage) -> Result<Control> {
    let mut control = stage.pair.guest().control()?;
    let ask = Ask::StartDisk { block_size: 4096, slots: SLOTS };
    ensure!(control.ask(&ask)? == Answer::Done, "the guest does not write");
    Ok(control)
}

/// The guest ends that, and finds on its disk what it wrote.
fn stop_writing(control: &mut Control) -> Result<()> {
    control.ask(&Ask::StopDisk)?;
    match control.ask(&Ask::VerifyDisk)? {
        Answer::Durable { blocks } => println!("    {blocks} blocks are as they were written last"),
        answer => bail!("the disk is not as it was written: {answer:?}"),
    }
    Ok(())
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
