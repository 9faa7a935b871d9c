//! What protection costs: the same VM, unprotected and then protected, in one run.
//!
//! Prints ratios and names the host: absolute times of an emulated host say little.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;
use tests::client::{Percentiles, compute, echo_round_trips_us};
use tests::guest::protocol::{COMPUTE_PORT, ECHO_PORT};
use tests::runner::{Cluster, Options};
use tests::vm::{Pair, PairOptions};

const ROUNDS: u64 = 200_000_000;
const REPEATS: usize = 5;
const ECHOES: usize = 300;
/// Emulated hosts stall for longer than the default timeout.
const TIMEOUT_MS: u64 = 4_000;

/// What one pass over the VM measured.
struct Pass {
    compute: Vec<Duration>,
    echo: Percentiles,
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let options = Options::new(2)?;
    println!("hosts: {:?} runner, 2 hosts with one CPU each", options.kind);
    let cluster = Cluster::start(&options)?;
    let pair_options = PairOptions { timeout_ms: Some(TIMEOUT_MS), ..PairOptions::default() };
    let mut pair = Pair::start_unprotected(&cluster, pair_options)?;
    let before = measure(&pair)?;
    let begun = Instant::now();
    pair.reprotect()?;
    println!("join: {} ms from the start of the backup to protected", begun.elapsed().as_millis());
    let log_before = pair.ft_info()?;
    let begun = Instant::now();
    let after = measure(&pair)?;
    let log_after = pair.ft_info()?;
    let seconds = begun.elapsed().as_secs_f64();
    report(&before, &after);
    let bytes = log_after.log.bytes - log_before.log.bytes;
    println!("log under load: {:.0} bytes/s", bytes as f64 / seconds);
    println!("output delay: {:?}; deltas: {}", log_after.output_delay_us, log_after.deltas);
    pair.shutdown().map(drop)
}

fn measure(pair: &Pair<'_>) -> Result<Pass> {
    let mut stream = pair.guest().connect(COMPUTE_PORT)?;
    let times = (0..REPEATS).map(|_| compute(&mut stream, ROUNDS)).collect::<Result<_>>()?;
    let mut stream = pair.guest().connect(ECHO_PORT)?;
    let echo = Percentiles::of(echo_round_trips_us(&mut stream, 64, ECHOES)?);
    Ok(Pass { compute: times, echo })
}

fn report(before: &Pass, after: &Pass) {
    let median = |times: &[Duration]| {
        let mut times = times.to_vec();
        times.sort();
        times.get(times.len() / 2).copied().unwrap_or_default().as_secs_f64()
    };
    let (plain, protected) = (median(&before.compute), median(&after.compute));
    println!(
        "CPU-bound, by the guest's clock: {plain:.3} s unprotected, {protected:.3} s protected, \
         ratio {:.3}",
        protected / plain
    );
    println!(
        "round trip: p50 {} us and p99 {} us unprotected, p50 {} us and p99 {} us protected",
        before.echo.p50_us, before.echo.p99_us, after.echo.p50_us, after.echo.p99_us
    );
}
