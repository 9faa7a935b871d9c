//! What an operator sees of a pair, on either host: `ft-info`, `ft-metrics`, `ft-watch` and the event monitor, before and
//! after the primary's death.

mod common;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use common::takeover_timeout;
use serde_json::Value;
use tests::client::Pace;
use tests::runner::{Cluster, Options};
use tests::vm::{Acknowledgement, FtInfo, Pair, VmmProcess, wait_until};

#[test]
fn both_hosts_tell_the_whole_story_of_a_pair() {
    let cluster = Cluster::start(&Options::new(2).unwrap()).unwrap();
    common::conclude(&cluster, play(&cluster));
}

fn play(cluster: &Cluster) -> Result<()> {
    let mut pair = common::small_pair(cluster, Acknowledgement::Received)?;
    let pace = Pace { client: 1, payload_size: 100, interval: Duration::from_millis(20) };
    let load = pair.guest().journal(pace, Instant::now())?;
    wait_until("answers", Duration::from_secs(60), Duration::from_millis(100), || {
        Ok((load.acknowledged() >= 100).then_some(()))
    })?;
    both_sides_count_the_log(&mut pair)?;
    seen(pair.primary(), "primary protected", "protected")?;
    seen(backup(&mut pair)?, "backup following", "following")?;
    load.stop()?;
    pair.kill_primary()?;
    pair.wait_for_takeover(takeover_timeout())?;
    let live = event(pair.primary(), "live")?;
    ensure!(live["generation"] == 2 && live["moment"].as_u64() > Some(0), "{live}");
    let protected = event(pair.primary(), "protected")?;
    ensure!(protected["generation"] == 1, "{protected}");
    ensure!(event(pair.primary(), "taking-over")?["why"].is_string());
    seen(pair.primary(), "backup live", "live")?;
    let info = pair.ft_info()?;
    ensure!(info.lag_ms == 0, "whoever is the VM is behind nobody: {info:?}");
    Ok(())
}

fn backup<'p, 'a>(pair: &'p mut Pair<'a>) -> Result<&'p mut VmmProcess<'a>> {
    pair.backup().ok_or_else(|| anyhow!("there is no backup"))
}

/// The backup has received what the primary has made, but for what was made between the two questions.
fn both_sides_count_the_log(pair: &mut Pair<'_>) -> Result<()> {
    let followed = backup(pair)?.ft_info()?;
    let made = pair.primary().ft_info()?;
    for info in [&followed, &made] {
        let of = |kind: &str| info.log.bytes_by_kind.get(kind).copied().unwrap_or_default();
        for kind in ["pages", "packet", "tick", "digest"] {
            ensure!(of(kind) > 0, "{kind} is missing: {info:?}");
        }
        ensure!(info.log.bytes_per_second > 0, "{info:?}");
        ensure!(info.generation == 1 && info.divergences == 0, "{info:?}");
        ensure!(info.acknowledged_moment > 0 && info.moment > 0, "{info:?}");
        ensure!(info.lag_ms < 5_000, "{info:?}");
        ensure!(info.deltas > 0 && info.delta_pages > 0, "{info:?}");
    }
    let pages = |info: &FtInfo| info.log.bytes_by_kind["pages"];
    ensure!(pages(&followed) <= pages(&made), "{followed:?} {made:?}");
    ensure!(followed.acknowledged_moment <= made.moment, "{followed:?} {made:?}");
    ensure!(followed.log.bytes <= made.log.bytes, "{followed:?} {made:?}");
    ensure!(made.output_delay_us.p50 > 0, "{made:?}");
    Ok(())
}

/// A person and a scraper see the same.
fn seen(vmm: &VmmProcess<'_>, words: &str, state: &str) -> Result<()> {
    let view = vmm.ch_remote(&["ft-watch", "--once"])?;
    ensure!(view.ended.success() && view.stdout.contains(words), "{}", view.stdout);
    println!("{}", view.stdout);
    let metrics = vmm.ch_remote(&["ft-metrics"])?.stdout;
    let line = format!("vmm_ft_state{{state=\"{state}\"}} 1\n");
    ensure!(
        metrics.contains(&line) && metrics.contains("vmm_ft_log_bytes_total{kind="),
        "{metrics}"
    );
    Ok(())
}

/// The properties of the last event of that name.
fn event(vmm: &VmmProcess<'_>, name: &str) -> Result<Value> {
    let events = vmm.events();
    let last = events.into_iter().rev().find(|event| event.source == "ft" && event.event == name);
    Ok(last.with_context(|| format!("{name} was not reported"))?.properties)
}
