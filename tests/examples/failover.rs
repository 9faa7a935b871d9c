//! One takeover, by hand: for a look at a pair while working on it.
use std::time::{Duration, Instant};
use tests::client::{Pace, check};
use tests::runner::{Cluster, Options};
use tests::vm::{Pair, PairOptions};

fn main() -> anyhow::Result<()> {
    let cluster = Cluster::start(&Options::new(2)?)?;
    println!("hosts up");
    let begun = Instant::now();
    let mut pair = if std::env::var("LOOK").is_ok() {
        let mut pair = Pair::launch(
            &cluster,
            PairOptions { timeout_ms: Some(4000), ..PairOptions::default() },
            true,
        )?;
        for _ in 0..12 {
            std::thread::sleep(Duration::from_secs(3));
            println!("{:?}", pair.ft_info()?);
            println!("{:?}", pair.backup().map(|b| b.ft_info()));
        }
        println!("{}", pair.describe());
        return Ok(());
    } else {
        Pair::start(&cluster, PairOptions { timeout_ms: Some(4000), ..PairOptions::default() })?
    };
    println!("protected after {:?}: {:?}", begun.elapsed(), pair.ft_info()?);
    let start = Instant::now();
    let load = pair.guest().journal(
        Pace { client: 1, payload_size: 100, interval: Duration::from_millis(5) },
        start,
    )?;
    std::thread::sleep(Duration::from_secs(5));
    println!("{} acknowledged; {:?}", load.acknowledged(), pair.ft_info()?);
    let kills: usize = std::env::args().nth(1).map_or(1, |n| n.parse().unwrap_or(1));
    for kill in 0..kills {
        pair.kill_primary()?;
        let takeover = pair.wait_for_takeover(Duration::from_secs(20));
        println!("kill {kill}: {takeover:?}");
        if takeover.is_err() {
            println!("{}", pair.describe());
            break;
        }
        std::thread::sleep(Duration::from_secs(2));
        println!("{} acknowledged", load.acknowledged());
        if kill + 1 < kills {
            let begun = Instant::now();
            pair.reprotect()?;
            println!("protected again after {:?}", begun.elapsed());
            std::thread::sleep(Duration::from_secs(1));
        }
    }
    std::thread::sleep(Duration::from_secs(2));
    let history = load.stop()?;
    println!("longest gap: {:?}", history.longest_gap());
    let records = pair.guest().durable_history()?;
    println!("{:?}", check(&[history], &records));
    println!("{}", pair.describe());
    Ok(())
}
