//! What protection costs, and what a failover costs: one VM, measured unprotected, protected, unprotected again, and through
//! the death of its primary, in one run.
//!
//! Prints ratios and names the host: absolute times of an emulated host say little. What is unprotected is measured before
//! and after, so that a machine that gets slower or faster meanwhile is seen.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;
use tests::client::{Pace, Percentiles, compute, echo_round_trips_us};
use tests::guest::protocol::{COMPUTE_PORT, ECHO_PORT};
use tests::runner::{Cluster, Kind, Options};
use tests::vm::{FtInfo, Pair, PairOptions, pause};

const ROUNDS: u64 = 200_000_000;
const REPEATS: usize = 7;
const ECHOES: usize = 300;
const BULK_TIME: Duration = Duration::from_secs(6);
const IDLE_TIME: Duration = Duration::from_secs(6);
/// A guest that has just booted has work of its own.
const SETTLING: Duration = Duration::from_secs(8);
/// Emulated hosts stall for longer than the default timeout.
const TIMEOUT_MS: u64 = 4_000;
const TAKEOVER: Duration = Duration::from_secs(60);

/// What one pass over the VM measured.
struct Pass {
    /// The median time of the same computation, by the guest's clock, in s.
    compute_s: f64,
    echo: Percentiles,
    /// Bytes a second that the guest sent and that it received.
    sent: f64,
    received: f64,
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
    println!("hosts: {}, 2 of them with one CPU each", host_name(options.kind));
    let cluster = Cluster::start(&options)?;
    let pair_options = PairOptions { timeout_ms: Some(TIMEOUT_MS), ..PairOptions::default() };
    let mut pair = Pair::start_unprotected(&cluster, pair_options)?;
    pause(SETTLING)?;
    let before = measure(&pair)?;
    let begun = Instant::now();
    pair.reprotect()?;
    report_join(begun.elapsed(), &mut pair)?;
    report_idle(&pair)?;
    let log_before = pair.ft_info()?;
    let during = measure(&pair)?;
    let log_after = pair.ft_info()?;
    pair.primary().ask(&["ft-disable"])?;
    let after = measure(&pair)?;
    report(&before, &during, &after);
    report_log(&log_before, &log_after);
    pair.enable()?;
    report_failover(&mut pair)
}

fn host_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Virtual => {
            "emulated by QEMU without hardware virtualisation (an exit costs some 40 us)"
        }
        Kind::Direct => "network namespaces on this machine's own /dev/kvm",
    }
}

fn measure(pair: &Pair<'_>) -> Result<Pass> {
    let mut stream = pair.guest().connect(COMPUTE_PORT)?;
    let mut times: Vec<Duration> =
        (0..REPEATS).map(|_| Ok(compute(&mut stream, ROUNDS)?.client)).collect::<Result<_>>()?;
    times.sort();
    let compute_s = times.get(REPEATS / 2).copied().unwrap_or_default().as_secs_f64();
    let mut stream = pair.guest().connect(ECHO_PORT)?;
    let echo = Percentiles::of(echo_round_trips_us(&mut stream, 64, ECHOES)?);
    let source = pair.guest().source()?;
    pause(BULK_TIME)?;
    let sent = source.stop()?;
    let sink = pair.guest().sink()?;
    pause(BULK_TIME)?;
    let received = sink.stop()?;
    let rate = |bytes: u64, us: u64| bytes as f64 * 1e6 / us.max(1) as f64;
    Ok(Pass {
        compute_s,
        echo,
        sent: rate(sent.bytes, sent.duration_us),
        received: rate(received.bytes, received.duration_us),
    })
}

fn report_join(took: Duration, pair: &mut Pair<'_>) -> Result<()> {
    let answer = pair.primary().ask(&["ft-info"])?;
    let join = &answer["join"];
    println!(
        "join: {} ms from the start of the backup's VMM to protected; {} rounds, {} pages of which {} zero; the VM stood \
         still {} us",
        took.as_millis(),
        join["round"],
        join["pages"],
        join["zero_pages"],
        join["pause_us"]
    );
    Ok(())
}

fn report_idle(pair: &Pair<'_>) -> Result<()> {
    let begun = (Instant::now(), pair.ft_info()?);
    pause(IDLE_TIME)?;
    let (seconds, info) = (begun.0.elapsed().as_secs_f64(), pair.ft_info()?);
    let bytes = info.log.bytes.saturating_sub(begun.1.log.bytes) as f64;
    println!("log of an idle VM: {:.4} Mbit/s", bytes * 8.0 / seconds / 1e6);
    Ok(())
}

fn report(before: &Pass, during: &Pass, after: &Pass) {
    let row = |what: &str, unit: &str, value: &dyn Fn(&Pass) -> f64| {
        let (before, during, after) = (value(before), value(during), value(after));
        let ratio = during / ((before + after) / 2.0);
        println!(
            "{what:<24} {before:>10.3} {unit:<5} {during:>10.3} {unit:<5} {after:>10.3} {unit:<5} {ratio:>7.3}"
        );
    };
    println!(
        "{:<24} {:>16} {:>16} {:>16} {:>7}",
        "", "unprotected", "protected", "unprotected", "ratio"
    );
    row("CPU-bound loop", "s", &|pass| pass.compute_s);
    row("round trip, p50", "ms", &|pass| pass.echo.p50_us as f64 / 1e3);
    row("round trip, p99", "ms", &|pass| pass.echo.p99_us as f64 / 1e3);
    row("guest sends", "MB/s", &|pass| pass.sent / 1e6);
    row("guest receives", "MB/s", &|pass| pass.received / 1e6);
}

fn report_log(before: &FtInfo, after: &FtInfo) {
    let kind = |info: &FtInfo, name: &str| info.log.bytes_by_kind.get(name).copied().unwrap_or(0);
    let rose = |name: &str| kind(after, name).saturating_sub(kind(before, name));
    println!(
        "log meanwhile: {} kB in all; packets {} kB, deltas with {} pages {} kB, ticks {} kB",
        after.log.bytes.saturating_sub(before.log.bytes) / 1000,
        rose("packet") / 1000,
        after.delta_pages.saturating_sub(before.delta_pages),
        (rose("pages") + rose("patches") + rose("delta")) / 1000,
        rose("tick") / 1000
    );
    println!(
        "an output waited for the backup: p50 {} us, p99 {} us; divergences: {}",
        after.output_delay_us.p50, after.output_delay_us.p99, after.divergences
    );
}

fn report_failover(pair: &mut Pair<'_>) -> Result<()> {
    let pace = Pace { client: 1, payload_size: 100, interval: Duration::from_millis(2) };
    let load = pair.guest().journal(pace, Instant::now())?;
    pause(Duration::from_secs(3))?;
    pair.kill_primary()?;
    pair.wait_for_takeover(TAKEOVER)?;
    pause(Duration::from_secs(3))?;
    let history = load.stop()?;
    let gap = history.longest_gap().map_or(0, |(_, gap_us)| gap_us);
    println!("failover, primary killed: a client that asks all the time waited {} ms", gap / 1000);
    let broken = history.broken.unwrap_or_else(|| "held".to_owned());
    println!("its connection: {broken}");
    Ok(())
}
