//! The simulator: replicas with the real protocol, policy, recorder, replay, gate and ledger, toy
//! machines, an arbiter, a disk and a network, in one thread, from one seed.
//!
//! `scripts/simulate SEED` reruns one seed with its trace; `scripts/soak simulator` runs new seeds
//! until it is told to stop. `FT_SEEDS` sets how many seeds the test runs, `FT_FIRST_SEED` where it
//! starts.

mod backup_driver;
mod breaks;
mod checker;
mod checkpoints;
mod engine;
mod faults;
mod healing;
mod host;
mod network;
mod partitions;
mod primary_driver;
mod queue;
mod rng;
mod run;
mod storm;
mod tally;
mod toy;
mod verdict;
mod world;

use std::cell::Cell;
use std::panic::{catch_unwind, set_hook, take_hook};
use std::path::PathBuf;
use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{available_parallelism, scope, sleep};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use breaks::{ALL, Break};
use run::{Outcome, run, run_row};
use tally::Tally;

fn variable(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok().filter(|value| !value.is_empty())?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name}={value} is not a number")))
}

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// A panic is a violation like any other.
fn outcome(seed: u64, broken: Option<Break>) -> Outcome {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let hook = take_hook();
        set_hook(Box::new(move |panic| {
            if !QUIET.get() {
                hook(panic);
            }
        }));
    });
    QUIET.set(true);
    let outcome = catch_unwind(|| run(seed, broken, false)).unwrap_or_else(|panic| Outcome {
        violation: Some(match panic.downcast_ref::<String>() {
            Some(message) => message.clone(),
            None => panic.downcast_ref::<&str>().copied().unwrap_or("a panic").to_string(),
        }),
        tally: Tally::default(),
        trace: vec![],
    });
    QUIET.set(false);
    outcome
}

/// Runs seeds from `first` on, on all cores, until `goes_on` says no to one. `failed` hears of each
/// that did not keep the promise.
fn run_all(
    first: u64,
    goes_on: impl Fn(u64) -> bool + Sync,
    failed: impl Fn(u64, &str) + Sync,
    total: &std::sync::Mutex<Tally>,
) {
    let next = AtomicU64::new(first);
    let workers = available_parallelism().map_or(2, usize::from);
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if !goes_on(seed) {
                return;
            }
            let Outcome { violation, tally, .. } = outcome(seed, None);
            total.lock().unwrap().add(&tally);
            if let Some(violation) = violation {
                failed(seed, &violation);
            }
        }
    };
    scope(|scope| (0..workers).for_each(|_| drop(scope.spawn(work))));
}

#[test]
fn every_seed_keeps_the_promise() {
    let first = variable("FT_FIRST_SEED").unwrap_or(0);
    let seeds = variable("FT_SEEDS").unwrap_or(10_000);
    let began = Instant::now();
    let total = std::sync::Mutex::default();
    let violations = AtomicU64::new(0);
    let failed = |seed, why: &str| {
        violations.fetch_add(1, Ordering::Relaxed);
        println!("seed {seed}: {why}\nrerun it: scripts/simulate {seed}");
    };
    let goes_on = |seed| seed < first + seeds && violations.load(Ordering::Relaxed) < 10;
    run_all(first, goes_on, failed, &total);
    let total: Tally = total.into_inner().unwrap();
    let seconds = began.elapsed().as_secs_f64();
    println!("{total}\n{:.0} seeds/s", seeds as f64 / seconds);
    assert_eq!(violations.into_inner(), 0, "seeds did not keep the promise");
    if seeds >= 500 {
        assert!(total.takeovers > seeds / 3 && total.wins > seeds / 3, "the faults do not bite");
        assert!(total.protections > seeds * 2 && total.deepest > 6, "there are no chains");
        assert!(total.while_copied > seeds, "machines stand still while they are copied");
        assert!(total.packed > seeds, "hardly anything is packed");
        assert!(total.moves > seeds / 20 && total.undecided > seeds / 500, "nothing moves");
        assert!(total.checkpoints > seeds * 10, "hardly a machine is kept by checkpoints");
        assert!(total.from_checkpoints > seeds / 4, "checkpoints are not put to use");
        assert!(total.from_halves > seeds / 100, "no checkpoint is left half");
        assert!(total.switches > seeds / 10, "no machine is kept now so and now so");
        assert!(total.healings > seeds / 10, "hardly a copy is healed");
        assert!(total.healed_wholly > seeds / 100, "no copy differs again");
        assert!(total.from_healed > seeds / 50, "copies that were healed are not put to use");
        assert!(total.lost_healing > seeds / 100, "no pair breaks while a copy is healed");
        assert!(total.lost() < seeds / 40, "too many runs are excused");
        assert!(total.lost_anyway <= seeds / 1000, "a single failure cost too many machines");
    }
}

#[test]
fn one_seed() {
    let seed = variable("FT_SEED").unwrap_or(1);
    let text = |name| std::env::var(name).ok().filter(|text| !text.is_empty());
    let broken = text("FT_BREAK").map(|name| Break::named(&name).expect("no such break"));
    let row = text("FT_ROW").map(|name| partitions::named(&name).expect("no such row"));
    let run = || match &row {
        Some(row) => run_row(seed, broken, true, row),
        None => run(seed, broken, true),
    };
    let outcome = run();
    if variable("FT_SEED").is_some() {
        println!("{}", outcome.trace.join("\n"));
    }
    assert_eq!(outcome.violation, None, "seed {seed}");
    assert_eq!(run().trace, outcome.trace, "a seed is a run, exactly");
}

/// Each row has so many seeds.
const ROW_SEEDS: u64 = 100;

#[test]
fn every_row_of_the_partition_matrix_ends_as_the_document_says() {
    let rows = partitions::rows();
    assert!(rows.len() > 20, "the document has lost its table");
    let next = AtomicU64::new(0);
    let failures = std::sync::Mutex::new(vec![]);
    let workers = available_parallelism().map_or(2, usize::from);
    let work = || {
        loop {
            let count = next.fetch_add(1, Ordering::Relaxed);
            let (row, seed) = (count / ROW_SEEDS, count % ROW_SEEDS);
            let Some(row) = rows.get(row as usize) else { return };
            if let Some(violation) = run_row(seed, None, false, row).violation {
                failures.lock().unwrap().push(format!("{}, seed {seed}: {violation}", row.name));
            }
        }
    };
    scope(|scope| (0..workers).for_each(|_| drop(scope.spawn(work))));
    let failures = failures.into_inner().unwrap();
    assert!(failures.is_empty(), "{} runs failed:\n{}", failures.len(), failures.join("\n"));
}

/// The matrix notices what it is there for.
#[test]
fn the_partition_matrix_does_not_stand_a_driver_that_asks_nobody_or_believes_what_proves_nothing() {
    for (broken, name) in [
        (Break::NoArbiter, "hosts"),
        (Break::NoArbiter, "channel"),
        (Break::StayAfterHalt, "to-primary"),
        (Break::Impatient, "heartbeats+to-backup"),
    ] {
        let row = partitions::named(name).unwrap();
        let is_found = |seed| run_row(seed, Some(broken), false, &row).violation.is_some();
        assert!((0..ROW_SEEDS).any(is_found), "{broken:?} is not noticed in '{name}'");
    }
}

/// How many seeds it may take to find a break.
const BREAK_SEEDS: u64 = 4000;

fn found(broken: Break) -> Option<(u64, String)> {
    (0..BREAK_SEEDS).find_map(|seed| Some((seed, outcome(seed, Some(broken)).violation?)))
}

#[test]
fn every_break_of_the_rules_is_found() {
    let results: Vec<_> = ALL.iter().map(|broken| (*broken, found(*broken))).collect();
    for (broken, result) in &results {
        match result {
            Some((seed, violation)) => println!("{broken:?}: seed {seed}: {violation}"),
            None => println!("{broken:?}: not found in {BREAK_SEEDS} seeds"),
        }
    }
    assert!(results.iter().all(|(_, result)| result.is_some()));
}

/// Between two lines about how it goes.
const REPORT: Duration = Duration::from_secs(10);

/// For `scripts/soak`: goes on until the file `FT_STOP` is there or `FT_SECONDS` are over.
#[test]
#[ignore = "runs until it is told to stop"]
fn soak() {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let first = variable("FT_FIRST_SEED").unwrap_or(now * 1000);
    let seconds = variable("FT_SECONDS").unwrap_or(u64::MAX);
    let stop = std::env::var_os("FT_STOP").map(PathBuf::from);
    let began = Instant::now();
    let total = std::sync::Mutex::default();
    let violations = AtomicU64::new(0);
    let ends =
        || began.elapsed().as_secs() >= seconds || stop.as_ref().is_some_and(|stop| stop.exists());
    let failed = |seed, why: &str| {
        violations.fetch_add(1, Ordering::Relaxed);
        println!("FAILED seed {seed}: {why}\n  rerun it: scripts/simulate {seed}");
    };
    let report = || {
        let tally = Tally::clone(&total.lock().unwrap());
        let rate = tally.seeds as f64 / began.elapsed().as_secs_f64();
        let failures = violations.load(Ordering::Relaxed);
        println!("{rate:.0} seeds/s, {failures} failed; {tally}");
    };
    println!("seeds from {first} on");
    scope(|scope| {
        scope.spawn(|| {
            let mut reported = Instant::now();
            while !ends() {
                sleep(Duration::from_millis(200));
                if reported.elapsed() >= REPORT {
                    reported = Instant::now();
                    report();
                }
            }
        });
        run_all(first, |_| !ends(), failed, &total);
    });
    report();
    assert_eq!(violations.load(Ordering::Relaxed), 0, "seeds did not keep the promise");
}
