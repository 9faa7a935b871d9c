//! The copies of a VM come to differ: a program in the guest asks the processor for what no log holds, a byte of the
//! backup's memory or a register of its processor is not what it should be. That is found, and the backup is given the
//! machine anew: by itself, while the guest runs and its clients are served.

mod common;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use common::{must_answer, must_have_kept, takeover_timeout};
use tests::client::JournalLoad;
use tests::guest::protocol::{Answer, Ask};
use tests::runner::{Cluster, Options, Order, binaries};
use tests::vm::{Acknowledgement, Pair, PairOptions, wait_until};

/// How often a program in the guest reads the processor's time.
const READINGS: u64 = 2;
/// Where a kernel that was not moved maps its own image; its physical addresses begin at 0.
const KERNEL_BASE: u64 = 0xffff_ffff_8000_0000;
/// What differs is found soon or not at all: a register that the guest was about to give another value, or what a delta brings
/// anew before anything comes of it.
const SOON: Duration = Duration::from_secs(6);
const TRIES_MAX: u32 = 10;

#[test]
fn copies_that_differ_are_made_equal_again_and_the_next_takeover_loses_nothing() {
    let cluster = Cluster::start(&Options::new(2).unwrap()).unwrap();
    common::conclude(&cluster, play(&cluster));
}

fn play(cluster: &Cluster) -> Result<()> {
    let mut pair = start(cluster)?;
    let load = common::client(&pair)?;
    for count in 1..=READINGS {
        read_time(&mut pair, count).context("the processor's time is to be read")?;
        must_heal(&mut pair, &load, count)?;
    }
    flip_a_byte(&mut pair, cluster, READINGS + 1).context("a byte is to be flipped")?;
    must_heal(&mut pair, &load, READINGS + 1)?;
    flip_a_register(&mut pair, cluster, READINGS + 2).context("a register is to be flipped")?;
    must_heal(&mut pair, &load, READINGS + 2)?;
    pair.kill_primary()?;
    pair.wait_for_takeover(takeover_timeout())?;
    must_answer(&load)?;
    must_have_kept(load, &pair)
}

/// With `ack=verified`: what differs is found before it is let out.
fn start(cluster: &Cluster) -> Result<Pair<'_>> {
    let options = PairOptions {
        ack: Acknowledgement::Verified,
        // Copies that differ three times are kept by checkpoints otherwise, which is another test's.
        fields: vec!["mode=replay".to_owned()],
        ..common::reprotecting_options()?
    };
    common::joined(cluster, options)
}

/// Has a program in the guest read the processor's time, until that is found.
fn read_time(pair: &mut Pair<'_>, count: u64) -> Result<()> {
    until_found(pair, count, |pair| {
        let answer = pair.guest().control()?.ask(&Ask::TimeStamp)?;
        ensure!(matches!(answer, Answer::Text(_)), "the time stamp: {answer:?}");
        Ok(())
    })
}

/// Does what makes the copies differ, until they are found to differ for this time in all.
fn until_found(
    pair: &mut Pair<'_>,
    count: u64,
    mut spoil: impl FnMut(&mut Pair<'_>) -> Result<()>,
) -> Result<()> {
    for _ in 0..TRIES_MAX {
        spoil(pair)?;
        match wait_for_divergence(pair, count, SOON) {
            Ok(()) => return Ok(()),
            Err(error) => println!("    not found: {}", error.root_cause()),
        }
    }
    bail!("tried {TRIES_MAX} times, and nothing was found\n{}", pair.describe())
}

/// The copies, which differed for this time in all, are made equal.
fn must_heal(pair: &mut Pair<'_>, load: &JournalLoad, count: u64) -> Result<()> {
    let begun = Instant::now();
    pair.wait_until_protected()?;
    let info = pair.ft_info()?;
    ensure!(
        info.generation == count + 1,
        "each protection is in a generation of its own: {info:?}"
    );
    let join = info.join.context("there was no join")?;
    println!(
        "divergence {count}: protected again after {} ms: {join:?}",
        begun.elapsed().as_millis()
    );
    // The backup had the machine a moment ago.
    ensure!(join.kept_pages > join.pages * 3 / 4, "most pages were sent: {join:?}");
    must_answer(load)
}

fn wait_for_divergence(pair: &mut Pair<'_>, count: u64, patience: Duration) -> Result<()> {
    let waited = wait_until("the divergence", patience, Duration::from_millis(200), || {
        Ok((pair.ft_info()?.divergences >= count).then_some(()))
    });
    waited.with_context(|| pair.describe())
}

/// Changes the backup's idea of what time it is in the guest, behind everybody's back, until it is found.
fn flip_a_byte(pair: &mut Pair<'_>, cluster: &Cluster, count: u64) -> Result<()> {
    until_found(pair, count, |pair| set_a_byte(pair, cluster))
}

fn set_a_byte(pair: &mut Pair<'_>, cluster: &Cluster) -> Result<()> {
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

/// Changes a register of the backup's processor behind everybody's back, until it is found.
fn flip_a_register(pair: &mut Pair<'_>, cluster: &Cluster, count: u64) -> Result<()> {
    let program = binaries()?.join("flip-register").display().to_string();
    until_found(pair, count, |pair| {
        let backup = pair.backup().context("there is no backup")?;
        let order = Order::new([program.clone(), backup.pid().to_string()]);
        let output = cluster.host(backup.host_index()).run(order)?;
        // What is found late is thrown away just while it is to be flipped again: that is no failure.
        println!("    {}{}", output.stdout.trim(), output.stderr.trim());
        Ok(())
    })
}
