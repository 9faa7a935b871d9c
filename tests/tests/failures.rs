//! What happens when anything of a pair fails: a replica, a host, the network between them, the arbiter, or patience.
//!
//! Throughout, a client keeps one connection to the guest's journal, and a witness outside the hosts notes which of them
//! speaks for the guest: whatever fails, the connection and the history must hold, and never may two speak.

mod common;
mod scenes;

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use scenes::Stage;
use tests::runner::{Cluster, Options, can_cut};
use tests::vm::Acknowledgement;

/// An emulated host keeps a core busy: one pair after the other is quicker.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

type Scene = fn(&mut Stage) -> Result<()>;

/// Plays scenes with one VM, which boots once.
fn play(ack: Acknowledgement, scenes: &[(&str, Scene)]) {
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let cluster = Cluster::start(&Options::new(2).unwrap()).unwrap();
    common::conclude(&cluster, play_on(&cluster, ack, scenes));
}

fn play_on(cluster: &Cluster, ack: Acknowledgement, scenes: &[(&str, Scene)]) -> Result<()> {
    let begun = Instant::now();
    let mut stage = Stage::set(cluster, ack)?;
    println!("protected after {} ms", begun.elapsed().as_millis());
    for (name, scene) in scenes.iter().filter(|(name, _)| common::is_chosen(name)) {
        let begun = Instant::now();
        let played = scene(&mut stage).and_then(|()| stage.must_be_sound());
        played.with_context(|| format!("{name}\n{}", stage.describe()))?;
        println!("{name}: {} ms", begun.elapsed().as_millis());
    }
    stage.strike()
}

#[test]
fn a_pair_survives_the_loss_and_the_sleep_of_either_side_and_every_planned_end() {
    let scenes: &[(&str, Scene)] = &[
        ("the backup is killed", scenes::sides::backup_killed),
        ("the backup sleeps too long", scenes::sides::backup_sleeps),
        ("the primary sleeps too long", scenes::sides::primary_sleeps),
        ("stalls below the timeout", scenes::stalls::stalls_below_the_timeout),
        ("the backup is slow", scenes::slow::backup_is_slow),
        ("protection is disabled", scenes::planned::disabled),
        ("a planned failover", scenes::planned::failover),
        ("the guest boots anew", scenes::planned::guest_reboots),
        ("the guest switches itself off", scenes::planned::guest_powers_off),
    ];
    play(Acknowledgement::Received, scenes);
}

#[test]
fn a_cut_channel_or_a_lost_arbiter_never_makes_two() {
    if !can_cut().unwrap() {
        return;
    }
    let scenes: &[(&str, Scene)] = &[
        ("etcd is not there", scenes::arbitration::etcd_is_not_there),
        ("etcd hangs, the primary is lost", scenes::arbitration::etcd_hangs_and_primary_is_lost),
        ("the arbiter is lost, then the primary", scenes::arbitration::arbiter_lost_then_primary),
        ("the channel is cut and the arbiter lost", scenes::arbitration::channel_and_arbiter_lost),
    ];
    play(Acknowledgement::Received, scenes);
}

#[test]
fn a_verified_pair_survives_the_death_of_its_primary_and_of_its_host() {
    let scenes: &[(&str, Scene)] = &[
        ("the primary is killed", scenes::sides::primary_killed),
        ("the primary's host dies", scenes::sides::primary_host_dies),
    ];
    play(Acknowledgement::Verified, scenes);
}

/// A scene that goes well takes no longer than this from one step to the next.
pub const SOON: Duration = Duration::from_secs(60);
