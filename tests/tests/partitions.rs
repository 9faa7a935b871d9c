//! Every cut of the network, alone and in pairs, ends as `docs/PARTITIONS.md` says: with one VM that the client can reach,
//! or with none until the cut is mended, but never with two, and with nothing forgotten.
//!
//! The hosts boot once. One VM has its disk on NFS, for what is different there; another one lives through all rows,
//! protected again after each. `FT_PARTITIONS` chooses rows by their names (`channel,hosts+arbiter-at-backup`), or `all`
//! of them, or `nfs` for the former.

mod common;
#[allow(dead_code, reason = "other tests play the other scenes")]
mod scenes;

#[path = "partitions/matrix.rs"]
mod matrix;
#[path = "partitions/nfs.rs"]
mod nfs;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use matrix::{Chosen, Outcome, Row, chosen, rows};
use scenes::arbitration::{loser_must_be_out, must_have_spoken};
use scenes::sides::hosts;
use scenes::{Stage, Survivor, too_long, wait_for_state};
use tests::runner::{Cluster, Options, can_cut};
use tests::vm::{Arbiter, pause};

/// A scene that goes well takes no longer than this from one step to the next.
pub const SOON: Duration = Duration::from_secs(90);
/// What was on its way when a cut was made has arrived.
const LATECOMERS: Duration = Duration::from_millis(500);

#[test]
fn on_nfs_a_disk_has_one_writer_and_every_cut_ends_as_the_matrix_says() {
    let cluster = Cluster::start(&Options::new(2).unwrap().with_nfs()).unwrap();
    let chosen = chosen();
    common::conclude(&cluster, play(&cluster, &chosen));
}

fn play(cluster: &Cluster, chosen: &Chosen) -> Result<()> {
    if chosen.nfs {
        nfs::play(cluster)?;
    }
    if chosen.rows.is_empty() || !can_cut()? { Ok(()) } else { play_rows(cluster, &chosen.rows) }
}

fn play_rows(cluster: &Cluster, rows: &[Row]) -> Result<()> {
    let begun = Instant::now();
    let mut options = common::small_options(tests::vm::Acknowledgement::Received)?;
    options.arbiter = Arbiter::NfsFolder;
    let mut stage = Stage::set_with(cluster, options)?;
    println!("protected after {} ms", begun.elapsed().as_millis());
    for (index, row) in rows.iter().enumerate() {
        let begun = Instant::now();
        let last = index + 1 == rows.len();
        let played = play_row(&mut stage, row, last).and_then(|()| stage.must_be_sound());
        played.with_context(|| format!("{}\n{}", row.name(), stage.describe()))?;
        println!("{}: {} ms", row.name(), begun.elapsed().as_millis());
    }
    stage.strike()
}

fn play_row(stage: &mut Stage, row: &Row, last: bool) -> Result<()> {
    let (host, other) = hosts(stage);
    stage.witness.forget();
    stage.must_answer()?;
    let cuts = stage.cluster.network().cut(&row.cuts(host, other, stage.pair.port()))?;
    if row.kills() {
        stage.pair.kill_primary()?;
    }
    let outcome = row.outcome();
    if outcome == Outcome::Unchanged {
        nobody_minds(stage, row)?;
        cuts.mend()?;
        stage.must_answer()?;
        must_be_protected(stage)?;
        return stage.must_have_heard(&[host]);
    }
    if matches!(outcome, Outcome::NobodyThenOne | Outcome::NobodyThenBackup) {
        nobody_speaks(stage, row)?;
        cuts.mend()?;
        let survivor = stage.wait_for_survivor()?;
        must_be(outcome, survivor)?;
        return conclude(stage, row, survivor, (host, other), last);
    }
    let survivor = stage.wait_for_survivor()?;
    must_be(outcome, survivor)?;
    if row.client_waits(survivor == Survivor::Primary) {
        client_must_wait(stage, LATECOMERS)?;
    } else {
        stage.must_answer()?;
    }
    if outcome == Outcome::One {
        // It has asked, and was told.
        loser_must_be_out(stage, survivor)?;
    }
    cuts.mend()?;
    conclude(stage, row, survivor, (host, other), last)
}

/// After the cut: the network that is whole again changes nothing for who has won, and ends who has lost.
fn conclude(
    stage: &mut Stage,
    row: &Row,
    survivor: Survivor,
    (host, other): (usize, usize),
    last: bool,
) -> Result<()> {
    if !row.kills() {
        loser_must_be_out(stage, survivor)?;
    }
    stage.must_answer()?;
    pause(LATECOMERS)?;
    must_have_spoken(stage, survivor, host, other)?;
    if last { Ok(()) } else { protect_again(stage, survivor) }
}

/// Whoever goes on gets a backup again.
fn protect_again(stage: &mut Stage, survivor: Survivor) -> Result<()> {
    match survivor {
        // The backup that lost stands by.
        Survivor::Primary => stage.pair.enable(),
        Survivor::Backup => stage.pair.reprotect(),
    }
}

fn must_be(outcome: Outcome, survivor: Survivor) -> Result<()> {
    match (outcome, survivor) {
        (Outcome::One | Outcome::NobodyThenOne, _)
        | (Outcome::Primary, Survivor::Primary)
        | (Outcome::Backup | Outcome::NobodyThenBackup, Survivor::Backup) => Ok(()),
        _ => bail!("{survivor:?} goes on, but {} was expected", outcome.words()),
    }
}

/// For longer than anybody's patience lasts, the pair stays as it is.
fn nobody_minds(stage: &mut Stage, row: &Row) -> Result<()> {
    if row.client_waits(true) {
        client_must_wait(stage, too_long())?;
    } else {
        let before = stage.answers();
        pause(too_long())?;
        ensure!(stage.answers() > before, "the client heard nothing");
        stage.must_answer()?;
    }
    must_be_protected(stage)
}

fn client_must_wait(stage: &Stage, duration: Duration) -> Result<()> {
    pause(LATECOMERS)?;
    let before = stage.answers();
    pause(duration)?;
    let more = stage.answers() - before;
    ensure!(more == 0, "{more} answers came through a network that is cut");
    Ok(())
}

fn must_be_protected(stage: &mut Stage) -> Result<()> {
    stage.wait_for_state("protected")?;
    wait_for_state(stage.pair.backup().context("there is no backup")?, "following")
}

/// Neither side may speak, as neither can know whether the other does.
fn nobody_speaks(stage: &mut Stage, row: &Row) -> Result<()> {
    wait_for_state(stage.pair.backup().context("there is no backup")?, "taking-over")?;
    if !row.kills() {
        stage.wait_for_state("holding")?;
    }
    stage.must_be_silent(too_long())
}

#[test]
fn the_document_has_every_row_with_its_outcome() {
    let document = include_str!("../../docs/PARTITIONS.md");
    let documented: Vec<(&str, &str)> = document
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once("` |"))
        .filter_map(|(name, rest)| Some((name, rest.split('|').next()?.trim())))
        .collect();
    let expected: Vec<(String, &str)> =
        rows().iter().map(|row| (row.name(), row.outcome().words())).collect();
    let expected: Vec<(&str, &str)> =
        expected.iter().map(|(name, words)| (name.as_str(), *words)).collect();
    assert_eq!(documented, expected);
    for name in matrix::SAMPLE {
        assert!(expected.iter().any(|(row, _)| *row == name), "{name}");
    }
}
