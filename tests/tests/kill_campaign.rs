//! The promise, again and again: the primary is killed at random moments under every kind of load, and the clients'
//! connections, the answers and the disk come through all of it. In between the backup is killed, too: while it is being
//! joined, or while it follows.
//!
//! One VM boots once and lives through all kills, from host to host. `FT_CAMPAIGN_SEED` repeats the moments of a run,
//! `FT_CAMPAIGN_KILLS` sets the primaries killed for each kind of load, `FT_CAMPAIGN_LOADS` chooses kinds (`disk,compute`),
//! `FT_CAMPAIGN_TOTAL` ends it after so many kills of either side, as often round all loads as that takes (`scripts/soak kills`).

mod campaign;
mod common;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use campaign::load::{BLOCK_SIZE, BLOCK_SLOTS, Load, WORKLOADS, Workload};
use tests::client::{History, check};
use tests::guest::blocks;
use tests::guest::protocol::Ask;
use tests::runner::{Cluster, Ended, Options};
use tests::vm::{Acknowledgement, Pair, pause, wait_until};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// A kill comes this long after the protection began, at the latest.
const DELAY_MS_MAX: u64 = 1500;
/// A join takes a few seconds: kills come in all parts of it.
const JOIN_MS_MAX: u64 = 3000;
/// For as long as the primary may take to see that its backup is gone.
const NOTICE: Duration = Duration::from_secs(60);

struct Campaign<'a> {
    pair: Pair<'a>,
    seed: u64,
    kills: u64,
    total: u64,
    /// Kills of either side after which it ends; not at all before all loads had theirs if not given.
    total_most: Option<u64>,
    draws: u64,
    start: Instant,
    histories: Vec<History>,
    durable_blocks: u64,
    slowest: Duration,
}

#[test]
fn connections_answers_and_disk_survive_every_kill_under_every_load() {
    let seed = common::number("FT_CAMPAIGN_SEED").unwrap_or_else(common::seed_of_now);
    let kills = common::number("FT_CAMPAIGN_KILLS").unwrap_or(10);
    println!("FT_CAMPAIGN_SEED={seed}, {kills} kills under each load");
    let cluster = Cluster::start(&Options::new(2).unwrap()).unwrap();
    common::conclude(&cluster, run(&cluster, seed, kills));
}

fn run(cluster: &Cluster, seed: u64, kills: u64) -> Result<()> {
    let start = Instant::now();
    let pair = common::small_pair(cluster, Acknowledgement::Received)?;
    println!("protected after {:.1} s", start.elapsed().as_secs_f64());
    let (histories, slowest) = (Vec::new(), Duration::ZERO);
    let mut campaign = Campaign {
        pair,
        seed,
        kills,
        total: 0,
        total_most: common::number("FT_CAMPAIGN_TOTAL"),
        draws: 0,
        start,
        histories,
        durable_blocks: 0,
        slowest,
    };
    let mut client = 0;
    while campaign.total_most.map_or(client == 0, |most| campaign.total < most) {
        for workload in chosen_workloads() {
            client += 1;
            let survived = campaign.survive(workload, client);
            survived.with_context(|| {
                format!("{workload:?}, seed {seed}\n{}", campaign.pair.describe())
            })?;
        }
    }
    println!(
        "{} kills of either side survived in {:.0} s, longest gap {} ms",
        campaign.total,
        start.elapsed().as_secs_f64(),
        campaign.slowest.as_millis()
    );
    campaign.conclude(cluster)
}

impl Campaign<'_> {
    /// All kills under one load. Its connections are made before the first one and closed after the last one.
    fn survive(&mut self, workload: Workload, client: u32) -> Result<()> {
        let guest = self.pair.guest();
        let load = Load::start(workload, guest, client, self.start)?;
        load.must_get_on()?;
        let before = self.total;
        for kill in 0..self.kills {
            if self.total_most.is_some_and(|most| self.total >= most) {
                break;
            }
            if let Err(error) = self.kill_once(workload, &load, kill) {
                let said = load.finish(guest, &mut self.histories);
                return Err(error.context(format!("kill {kill}; the client: {said:?}")));
            }
        }
        let done = load.finish(guest, &mut self.histories)?;
        if workload == Workload::Disk {
            self.durable_blocks = done.split(' ').next().unwrap_or_default().parse()?;
        }
        println!("{workload:?}: {} kills of either side survived; {done}", self.total - before);
        Ok(())
    }

    fn kill_once(&mut self, workload: Workload, load: &Load, kill: u64) -> Result<()> {
        let delay = Duration::from_millis(self.random(DELAY_MS_MAX));
        pause(delay)?;
        let (mut moment, mut waited, mut host_index) = (0, Duration::ZERO, 0);
        let pair = &mut self.pair;
        let gap = load.longest_gap_during(|| {
            pair.kill_primary()?;
            let takeover = pair.wait_for_takeover(common::takeover_timeout())?;
            (waited, host_index) = (takeover.waited, takeover.host_index);
            moment = pair
                .primary()
                .events()
                .iter()
                .rev()
                .find(|event| event.event == "live")
                .and_then(|event| event.properties["moment"].as_u64())
                .unwrap_or_default();
            Ok(())
        })?;
        self.total += 1;
        self.slowest = self.slowest.max(gap);
        let again = Instant::now();
        let how = self.protect_again(load)?;
        println!(
            "{workload:?} {kill}: killed {} ms after it was protected, at moment {moment}; live on host {host_index} \
             after {} ms, the client's gap {} ms; {how}, protected again after {} ms",
            delay.as_millis(),
            waited.as_millis(),
            gap.as_millis(),
            again.elapsed().as_millis()
        );
        Ok(())
    }

    /// Gives the survivor a backup; every third time that is killed on the way, every third time soon afterwards. The VM
    /// must not notice. Returns in words what was done.
    fn protect_again(&mut self, load: &Load) -> Result<&'static str> {
        let how = match self.random(3) {
            0 => {
                self.pair.begin_reprotection()?;
                let delay = self.random(JOIN_MS_MAX);
                self.kill_backup(load, delay)?;
                "its first backup was killed in the join"
            }
            1 => {
                self.pair.reprotect()?;
                let delay = self.random(DELAY_MS_MAX);
                self.kill_backup(load, delay)?;
                "its first backup was killed"
            }
            _ => "its backup was left alone",
        };
        self.pair.reprotect()?;
        Ok(how)
    }

    fn kill_backup(&mut self, load: &Load, delay_ms: u64) -> Result<()> {
        pause(Duration::from_millis(delay_ms))?;
        self.pair.backup().context("there is no backup")?.kill()?;
        self.total += 1;
        wait_until("the primary to go on alone", NOTICE, Duration::from_millis(200), || {
            let state = self.pair.ft_info()?.state;
            Ok((!["joining", "protected", "holding"].contains(&state.as_str())).then_some(()))
        })?;
        load.must_get_on()
    }

    /// A number below `limit` that the seed and the count of draws determine.
    fn random(&mut self, limit: u64) -> u64 {
        self.draws += 1;
        xxh3_64_with_seed(&self.draws.to_le_bytes(), self.seed) % limit
    }

    /// Switches the guest off; what it leaves on the disk must be what the clients were told.
    fn conclude(mut self, cluster: &Cluster) -> Result<()> {
        // The guest may be gone before its answer is.
        let _ = self.pair.guest().control()?.ask(&Ask::PowerOff);
        let ended = self.pair.primary().wait(Duration::from_secs(60))?;
        ensure!(ended == Ended::Exited(0), "the guest's end: {ended:?}\n{}", self.pair.describe());
        let disk = self.pair.disk()?;
        let disk = disk.recovered(&cluster.shared_dir().join("copy"))?;
        if !self.histories.is_empty() {
            let verdict = check(&self.histories, &disk.journal()?);
            ensure!(verdict.is_clean(), "the disk broke promises: {verdict:?}");
        }
        if self.durable_blocks > 0 {
            let content = disk.read("/blocks")?;
            let mut content = content.as_slice();
            blocks::check(&mut content, BLOCK_SIZE, BLOCK_SLOTS, self.durable_blocks)?
                .map_err(anyhow::Error::msg)?;
        }
        Ok(())
    }
}

fn chosen_workloads() -> Vec<Workload> {
    let Ok(chosen) = std::env::var("FT_CAMPAIGN_LOADS") else { return WORKLOADS.to_vec() };
    let name = |workload: &Workload| format!("{workload:?}").to_lowercase();
    WORKLOADS.into_iter().filter(|load| chosen.split(',').any(|one| one == name(load))).collect()
}
