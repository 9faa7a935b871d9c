//! What changes hosts: the join of a busy VM, and a failover, as a client sees them.
//!
//! Owns the two scenes and the sentences about them.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::client::{JournalLoad, Pace};
use crate::guest::protocol::Ask;
use crate::vm::{Pair, pause};

const REWRITTEN_MIB: u32 = 256;
const TAKEOVER: Duration = Duration::from_secs(60);
/// Around what happens, so that the client knows how the VM is otherwise.
const MARGIN: Duration = Duration::from_secs(3);
const PACE: Pace = Pace { client: 1, payload_size: 100, interval: Duration::from_millis(2) };

/// Protects a VM that has a client and that rewrites much of its memory.
pub(super) fn join(pair: &mut Pair<'_>) -> Result<()> {
    let mut control = pair.guest().control()?;
    control.ask(&Ask::StartRewriting { mib: REWRITTEN_MIB })?;
    let calm = client(pair)?;
    pause(MARGIN)?;
    let calm = gap_ms(calm)?;
    let load = client(pair)?;
    pause(MARGIN)?;
    pair.add_backup()?;
    let begun = Instant::now();
    pair.enable()?;
    let took = begun.elapsed();
    pause(MARGIN)?;
    let gap = gap_ms(load)?;
    control.ask(&Ask::StopRewriting)?;
    let answer = pair.primary().ask(&["ft-info"])?;
    let join = &answer["join"];
    println!(
        "join, {REWRITTEN_MIB} of 1024 MiB being rewritten: protected after {} ms; {} rounds, {} pages of which {} zero; the \
         VM stood still {} us; a client that asks all the time waited {gap} ms, before the join {calm} ms",
        took.as_millis(),
        join["round"],
        join["pages"],
        join["zero_pages"],
        join["pause_us"]
    );
    Ok(())
}

/// Kills the primary.
pub(super) fn failover(pair: &mut Pair<'_>) -> Result<()> {
    let load = client(pair)?;
    pause(MARGIN)?;
    pair.kill_primary()?;
    pair.wait_for_takeover(TAKEOVER)?;
    pause(MARGIN)?;
    let history = load.stop()?;
    let gap = history.longest_gap().map_or(0, |(_, gap_us)| gap_us);
    println!("failover, primary killed: a client that asks all the time waited {} ms", gap / 1000);
    let broken = history.broken.unwrap_or_else(|| "held".to_owned());
    println!("its connection: {broken}");
    Ok(())
}

fn client(pair: &Pair<'_>) -> Result<JournalLoad> {
    pair.guest().journal(PACE, Instant::now())
}

fn gap_ms(load: JournalLoad) -> Result<u64> {
    let history = load.stop()?;
    Ok(history.longest_gap().map_or(0, |(_, gap_us)| gap_us / 1000))
}
