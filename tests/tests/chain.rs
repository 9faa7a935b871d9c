//! A VM that outlives one host after the other: ten times it changes hosts, by murder and by plan in turn, and each time it
//! finds its next backup by itself.
//!
//! Its stream is packed, whoever sends it: the survivors protect it as it was protected.
//!
//! One client keeps one connection from the first life to the last. `FT_CHAIN_FAILOVERS` says another number than ten.

mod common;

use std::time::Instant;

use anyhow::Result;
use common::takeover_timeout;
use tests::runner::{Cluster, Options};
use tests::vm::{Pair, PairOptions};

const FAILOVERS: u64 = 10;
const FIELDS: [&str; 2] = ["listen=0.0.0.0:7000", "compression=lz4"];

#[test]
fn ten_failovers_in_a_row_cost_no_connection_and_each_ends_protected_again() {
    let cluster = Cluster::start(&Options::new(2).unwrap()).unwrap();
    common::conclude(&cluster, play(&cluster));
}

fn play(cluster: &Cluster) -> Result<()> {
    let mut pair = start(cluster)?;
    let load = common::client(&pair)?;
    for turn in 0..common::number("FT_CHAIN_FAILOVERS").unwrap_or(FAILOVERS) {
        common::must_answer(&load)?;
        let by_plan = turn % 2 == 1;
        let begun = Instant::now();
        if by_plan {
            pair.primary().ask(&["ft-failover"])?;
        } else {
            pair.kill_primary()?;
        }
        let takeover = pair.wait_for_takeover(takeover_timeout())?;
        if by_plan {
            // Its process lives, and is a standby like any other.
            pair.take_former_for_backup()?;
            pair.wait_until_protected()?;
        } else {
            pair.wait_until_protected_again()?;
        }
        println!(
            "failover {} ({}): live on host {} after {} ms, protected again after {} ms",
            turn + 1,
            if by_plan { "planned" } else { "killed" },
            takeover.host_index,
            takeover.waited.as_millis(),
            begun.elapsed().as_millis()
        );
    }
    common::must_have_kept(load, &pair)
}

/// A VM that knows both hosts as its standbys, and whose processes wait for it wherever it goes.
fn start(cluster: &Cluster) -> Result<Pair<'_>> {
    let addresses = cluster.hosts().iter().map(|host| format!("standby={}:7000", host.address()));
    let fields = addresses.chain(FIELDS.map(str::to_owned)).collect();
    let mut options = PairOptions { fields, ..common::reprotecting_options()? };
    // Of the pairs, this one has a kernel that does all that it does by itself.
    options.vm.quick_boot = false;
    common::joined(cluster, options)
}
