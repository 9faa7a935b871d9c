//! The copies of a VM come to differ: a program in the guest asks the processor for what no log holds, or a byte of the
//! backup's memory is not what it should be. That is found, and the backup is given the machine anew: by itself, while the
//! guest runs and its clients are served.

mod common;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use common::{takeover_timeout, timeout};
use tests::client::{Pace, check};
use tests::guest::protocol::{Answer, Ask};
use tests::runner::{Cluster, Options};
use tests::vm::{Acknowledgement, Pair, PairOptions, wait_until};

const DIVERGENCES: u64 = 2;
/// Where a kernel that was not moved maps its own image; its physical addresses begin at 0.
const KERNEL_BASE: u64 = 0xffff_ffff_8000_0000;
const PATIENCE: Duration = Duration::from_secs(90);

#[test]
fn copies_that_differ_are_made_equal_again_and_the_next_takeover_loses_nothing() {
    let cluster = Cluster::start(&Options::new(2).unwrap()).unwrap();
    common::conclude(&cluster, play(&cluster));
}

fn play(cluster: &Cluster) -> Result<()> {
    let mut pair = start(cluster)?;
    let pace = Pace { client: 1, payload_size: 100, interval: Duration::from_millis(10) };
    let load = pair.guest().journal(pace, Instant::now())?;
    for count in 1..=DIVERGENCES {
        let answer = pair.guest().control()?.ask(&Ask::TimeStamp)?;
        ensure!(matches!(answer, Answer::Text(_)), "the time stamp: {answer:?}");
        wait_for_divergence(&mut pair, count)?;
        let begun = Instant::now();
        pair.wait_until_protected()?;
        println!("divergence {count}: protected again after {} ms", begun.elapsed().as_millis());
        common::must_answer(&load)?;
    }
    flip_a_byte(&mut pair, cluster)?;
    wait_for_divergence(&mut pair, DIVERGENCES + 1)?;
    pair.wait_until_protected()?;
    common::must_answer(&load)?;
    pair.kill_primary()?;
    pair.wait_for_takeover(takeover_timeout())?;
    common::must_answer(&load)?;
    let history = load.stop()?;
    let verdict = check(&[history], &pair.guest().durable_history()?);
    ensure!(verdict.is_clean(), "promises were broken: {verdict:?}");
    println!("{} requests acknowledged, all stored once", verdict.acknowledged);
    Ok(())
}

/// With `ack=verified`: what differs is found before it is let out.
fn start(cluster: &Cluster) -> Result<Pair<'_>> {
    let mut options = PairOptions {
        timeout_ms: Some(u64::try_from(timeout().as_millis())?),
        ack: Acknowledgement::Verified,
        reprotect: true,
        // Copies that differ three times are kept by checkpoints otherwise, which is another test's.
        fields: vec!["mode=replay".to_owned()],
        ..PairOptions::default()
    };
    options.vm.memory_mib = 128;
    let mut pair = Pair::start_unprotected(cluster, options)?;
    pair.reprotect().context("the first join")?;
    Ok(pair)
}

fn wait_for_divergence(pair: &mut Pair<'_>, count: u64) -> Result<()> {
    let waited = wait_until("the divergence", PATIENCE, Duration::from_millis(200), || {
        Ok((pair.ft_info()?.divergences >= count).then_some(()))
    });
    waited.with_context(|| pair.describe())
}

/// Changes the backup's idea of what time it is in the guest, behind everybody's back.
fn flip_a_byte(pair: &mut Pair<'_>, cluster: &Cluster) -> Result<()> {
    let ask = Ask::Symbol { name: "jiffies_64".to_owned() };
    let Answer::Text(address) = pair.guest().control()?.ask(&ask)? else { bail!("no symbol") };
    let place = u64::from_str_radix(&address, 16)?.checked_sub(KERNEL_BASE);
    let place = place.context("the kernel is not where it was loaded")?;
    let backup = pair.backup().context("there is no backup")?;
    let (host, pid) = (cluster.host(backup.host_index()), backup.pid());
    // The guest's memory is by far the largest mapping, and begins with its address 0.
    let largest = format!(
        "sed -E 's/^([0-9a-f]+)-([0-9a-f]+) .*/\\1 \\2/' /proc/{pid}/maps | while read -r from to; do \
         echo $((0x$to - 0x$from)) $((0x$from)); done | sort -n | tail -n 1"
    );
    let largest = host.shell(&largest)?;
    let start = largest.split_whitespace().nth(1).context("no mapping")?.parse::<u64>()?;
    host.shell(&format!(
        "printf '\\125' | dd of=/proc/{pid}/mem bs=1 seek={} conv=notrunc status=none",
        start + place + 2
    ))?;
    Ok(())
}
