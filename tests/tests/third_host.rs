//! A pair and a host besides. The backup is moved there while the VM runs; when that host dies the VM finds the one it had
//! before by itself; and then its own dies.

mod common;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use common::{must_answer, must_have_kept, takeover_timeout};
use tests::runner::{Cluster, Options};
use tests::vm::{Pair, wait_until};

/// Emulated hosts copy a guest within seconds.
const PATIENCE: Duration = Duration::from_secs(120);
const FIRST: usize = 1;
const THIRD: usize = 2;

#[test]
fn a_backup_is_moved_to_a_third_host_and_the_death_of_two_hosts_costs_nothing() {
    let cluster = Cluster::start(&Options::new(3).unwrap()).unwrap();
    common::conclude(&cluster, play(&cluster));
}

fn play(cluster: &Cluster) -> Result<()> {
    // It looks for its next backup by itself.
    let mut pair = common::joined(cluster, common::reprotecting_options()?)?;
    let load = common::client(&pair)?;
    must_answer(&load)?;

    let third = pair.add_standby(THIRD)?;
    let (first_peer, third_peer) = (pair.peer(FIRST), pair.peer(THIRD));
    let already = pair.primary().ask(&["ft-move-backup", &first_peer]);
    let already = already.err().map(|error| error.to_string()).unwrap_or_default();
    ensure!(already.contains("The backup is at"), "moved to where it is: {already}");
    pair.primary().ask(&["ft-move-backup", &third_peer])?;
    let first = pair.replace_backup(third).context("there was no backup")?;
    wait_for_backup(&mut pair, &third_peer)?;
    must_answer(&load).context("after the move")?;

    // The standby that was dismissed waits, and is found.
    cluster.host(THIRD).end()?;
    let _dead = pair.replace_backup(first);
    wait_for_backup(&mut pair, &first_peer)?;
    must_answer(&load).context("after the third host's death")?;

    pair.end_primary_host()?;
    let takeover = pair.wait_for_takeover(takeover_timeout())?;
    ensure!(takeover.host_index == FIRST, "live on host {}", takeover.host_index);
    must_answer(&load).context("after the primary's host's death")?;
    must_have_kept(load, &pair)
}

fn wait_for_backup(pair: &mut Pair<'_>, peer: &str) -> Result<()> {
    let begun = Instant::now();
    let waited = wait_until("the backup", PATIENCE, Duration::from_millis(500), || {
        pair.primary().must_run()?;
        let info = pair.ft_info()?;
        Ok((info.state == "protected" && info.peer.as_deref() == Some(peer)).then_some(()))
    });
    waited.with_context(|| pair.describe())?;
    println!("protected by {peer} after {} ms", begun.elapsed().as_millis());
    Ok(())
}
