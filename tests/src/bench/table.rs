//! The figures for people.
//!
//! Owns the layout. A ratio is protected / unprotected, where unprotected is the mean of before and after.

use super::passes::{Idle, LogGrowth, Pass, Traffic, Transfer, Work};
use crate::client::Percentiles;
use crate::vm::FtInfo;

/// Prints what three passes measured, side by side.
pub(super) fn print(before: &Pass, during: &Pass, after: &Pass) {
    println!(
        "{:<28} {:>16} {:>16} {:>16} {:>7}",
        "", "unprotected", "protected", "unprotected", "ratio"
    );
    if let (Some(before), Some(during), Some(after)) = (&before.work, &during.work, &after.work) {
        let row = |what: &str, value: &dyn Fn(&Work) -> f64| {
            print_row(what, "s", [before, during, after].map(value));
        };
        row("CPU-bound loop", &|work| work.loop_by_client);
        row("… by the guest's clock", &|work| work.loop_by_guest);
        row("gzip", &|work| work.gzip);
        row("sort", &|work| work.sort);
    }
    if let (Some(before), Some(during), Some(after)) =
        (&before.traffic, &during.traffic, &after.traffic)
    {
        let row = |what: &str, unit: &str, value: &dyn Fn(&Traffic) -> f64| {
            print_row(what, unit, [before, during, after].map(value));
        };
        row("round trip, p50", "ms", &|traffic| traffic.echo.p50_us as f64 / 1e3);
        row("round trip, p99", "ms", &|traffic| traffic.echo.p99_us as f64 / 1e3);
        row("guest sends", "MB/s", &|traffic| traffic.sent.bytes_per_second / 1e6);
        row("guest receives", "MB/s", &|traffic| traffic.received.bytes_per_second / 1e6);
    }
}

fn print_row(what: &str, unit: &str, [before, during, after]: [f64; 3]) {
    let ratio = during / ((before + after) / 2.0);
    println!(
        "{what:<28} {before:>10.3} {unit:<5} {during:>10.3} {unit:<5} {after:>10.3} {unit:<5} {ratio:>7.3}"
    );
}

/// Prints how much longer a round trip takes under protection, in round trips of the channel, which are the least it can be.
pub(super) fn print_output_delay(passes: [&Pass; 3], channel: &Percentiles) {
    let [Some(before), Some(during), Some(after)] = passes.map(|pass| pass.traffic.as_ref()) else {
        return;
    };
    println!(
        "the channel's round trip: p50 {} us, p99 {} us (TCP, between the hosts)",
        channel.p50_us, channel.p99_us
    );
    let row = |rank: &str, value: &dyn Fn(&Percentiles) -> u64| {
        let [before, during, after] =
            [before, during, after].map(|traffic| value(&traffic.echo) as f64);
        let delay = during - (before + after) / 2.0;
        let ratio = delay / value(channel).max(1) as f64;
        println!("output delay, {rank}: {delay:.0} us, {ratio:.2} of the channel's round trip");
    };
    row("p50", &|trips| trips.p50_us);
    row("p99", &|trips| trips.p99_us);
}

/// Prints what the log grew by during the protected pass, and how long outputs waited for the backup.
pub(super) fn print_log(during: &Pass, info: &FtInfo) {
    if let Some(work) = &during.work {
        println!("log of the work: {}", describe(&work.log));
    }
    if let Some(traffic) = &during.traffic {
        print_transfer("sent", &traffic.sent);
        print_transfer("received", &traffic.received);
    }
    println!(
        "an output waited for the backup: p50 {} us, p99 {} us; divergences: {}",
        info.output_delay_us.p50, info.output_delay_us.p99, info.divergences
    );
}

fn print_transfer(what: &str, transfer: &Transfer) {
    println!(
        "log per byte that the guest {what}: {:.3}; without deltas {:.3} ({})",
        transfer.log.all / transfer.bytes.max(1.0),
        (transfer.log.all - transfer.log.deltas) / transfer.bytes.max(1.0),
        describe(&transfer.log)
    );
}

fn describe(log: &LogGrowth) -> String {
    format!(
        "{:.0} kB in all; packets {:.0} kB, {} deltas with {} pages {:.0} kB",
        log.all / 1e3,
        log.packets / 1e3,
        log.delta_count,
        log.delta_pages,
        log.deltas / 1e3
    )
}

/// Prints what the log of a VM costs that does nothing.
pub(super) fn print_idle(idle: &Idle) {
    println!(
        "log of an idle VM: {:.4} Mbit/s; {:.0} B for each of its {} interrupts, {:.0} B of it without deltas ({})",
        idle.log.all * 8.0 / idle.seconds / 1e6,
        idle.log.all / idle.interrupts.max(1) as f64,
        idle.interrupts,
        (idle.log.all - idle.log.deltas) / idle.interrupts.max(1) as f64,
        describe(&idle.log)
    );
}
