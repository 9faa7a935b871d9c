//! A program in the guest asks the processor for what no log holds. The copies differ, which is found, and the backup is
//! given the machine anew: by itself, while the guest runs and its clients are served.

mod common;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use common::{takeover_timeout, timeout};
use tests::client::{Pace, check};
use tests::guest::protocol::{Answer, Ask};
use tests::runner::{Cluster, Options};
use tests::vm::{Acknowledgement, Pair, PairOptions, wait_until};

const DIVERGENCES: u64 = 2;
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
