//! The simulator: two replicas with the real protocol, recorder, replay, gate and ledger, a toy
//! machine, an arbiter, a disk and a network, in one thread, from one seed.
//!
//! `scripts/simulate SEED` reruns one seed with its trace. `FT_SEEDS` sets how many seeds the test
//! runs, `FT_FIRST_SEED` where it starts.

mod backup_driver;
mod breaks;
mod checker;
mod engine;
mod faults;
mod host;
mod network;
mod primary_driver;
mod queue;
mod rng;
mod run;
mod storm;
mod toy;
mod verdict;
mod world;

use std::panic::catch_unwind;
use std::time::Instant;

use breaks::{ALL, Break};
use run::{Outcome, run};

fn variable(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok().filter(|value| !value.is_empty())?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name}={value} is not a number")))
}

/// A panic is a violation like any other.
fn outcome(seed: u64, broken: Option<Break>) -> Outcome {
    catch_unwind(|| run(seed, broken, false)).unwrap_or_else(|panic| Outcome {
        violation: Some(match panic.downcast_ref::<String>() {
            Some(message) => message.clone(),
            None => panic.downcast_ref::<&str>().copied().unwrap_or("a panic").to_string(),
        }),
        takeovers: 0,
        wins: 0,
        generation: 0,
        excused: None,
        trace: vec![],
    })
}

#[test]
fn every_seed_keeps_the_promise() {
    let first = variable("FT_FIRST_SEED").unwrap_or(0);
    let seeds = variable("FT_SEEDS").unwrap_or(2000);
    let began = Instant::now();
    let workers: Vec<_> = (0..2)
        .map(|worker| {
            std::thread::spawn(move || {
                let mut sums = [0u64; 4];
                for seed in (first + worker..first + seeds).step_by(2) {
                    let outcome = outcome(seed, None);
                    if let Some(violation) = outcome.violation {
                        panic!("seed {seed}: {violation}\nrerun it: scripts/simulate {seed}");
                    }
                    let parts = [outcome.takeovers, outcome.wins, outcome.generation];
                    sums.iter_mut().zip(parts).for_each(|(sum, part)| *sum += part);
                    sums[3] += u64::from(outcome.excused.is_some());
                }
                sums
            })
        })
        .collect();
    let mut sums = [0; 4];
    for worker in workers {
        let part = worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        sums.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
    }
    let [takeovers, wins, generations, excused] = sums;
    println!(
        "{seeds} seeds in {:.1} s: {takeovers} takeovers, {wins} times the primary went on alone, \
         {generations} generations, {excused} machines lost to a second failure",
        began.elapsed().as_secs_f64()
    );
    if seeds >= 500 {
        assert!(takeovers > seeds / 5 && wins > seeds / 5, "the faults do not bite");
        assert!(excused < seeds / 2, "too many runs are excused");
    }
}

#[test]
fn one_seed() {
    let seed = variable("FT_SEED").unwrap_or(1);
    let broken = std::env::var("FT_BREAK").ok().filter(|name| !name.is_empty());
    let broken = broken.map(|name| Break::named(&name).expect("no such break"));
    let outcome = run(seed, broken, true);
    if variable("FT_SEED").is_some() {
        println!("{}", outcome.trace.join("\n"));
    }
    assert_eq!(outcome.violation, None, "seed {seed}");
    assert_eq!(run(seed, broken, true).trace, outcome.trace, "a seed is a run, exactly");
}

/// How many seeds it may take to find a break.
const BREAK_SEEDS: u64 = 2000;

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
