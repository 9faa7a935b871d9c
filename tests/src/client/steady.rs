//! Clients that ask the same thing again and again over one connection, and hold each answer against the ones before it.
//!
//! Owns the loop, and what must be true of the answers: time does not run backwards, a block that was durable stays so, a
//! computation has the one result it can have.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Result, anyhow, bail, ensure};

use super::Control;
use crate::guest::agent;
use crate::guest::protocol::{Answer, Ask, numbers};

/// A running client.
pub struct Steady {
    progress: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<()>>,
}

impl Steady {
    /// Asks the guest each `interval` how it is, and so leaves it idle otherwise. The progress is the number of answers.
    pub fn idle(mut control: Control, interval: Duration) -> Self {
        let mut before: Option<(String, u64)> = None;
        Self::start(move |answers| {
            thread::sleep(interval);
            let Answer::Statistics(now) = control.ask(&Ask::Statistics)? else {
                bail!("the guest answered out of turn");
            };
            if let Some((boot_id, uptime_ms)) = &before {
                ensure!(*boot_id == now.boot_id, "the guest has booted anew");
                ensure!(*uptime_ms <= now.uptime_ms, "the guest's clock ran backwards");
            }
            before = Some((now.boot_id, now.uptime_ms));
            Ok(answers + 1)
        })
    }

    /// Has the guest write blocks of this size, and asks each `interval` how far it has come. The progress is the number
    /// of blocks that are durable.
    pub fn disk(
        mut control: Control,
        block_size: u32,
        slots: u32,
        interval: Duration,
    ) -> Result<Self> {
        control.ask(&Ask::StartDisk { block_size, slots })?;
        Ok(Self::start(move |durable| {
            thread::sleep(interval);
            let Answer::Durable { blocks } = control.ask(&Ask::DiskProgress)? else {
                bail!("the guest answered out of turn");
            };
            ensure!(blocks >= durable, "{durable} blocks were durable, now {blocks} are");
            Ok(blocks)
        }))
    }

    /// Has the guest compute without a pause, so many rounds each time. The progress is the number of right results.
    pub fn compute(mut stream: TcpStream, rounds: u64) -> Self {
        let expected = agent::compute(rounds);
        Self::start(move |results| {
            stream.write_all(&rounds.to_le_bytes())?;
            let mut answer = [0; 16];
            stream.read_exact(&mut answer)?;
            let [_duration_ns, checksum] = numbers(answer);
            ensure!(checksum == expected, "the guest computed a wrong result");
            Ok(results + 1)
        })
    }

    /// Repeats a step, which is given the progress so far and returns what it is then.
    fn start(mut step: impl FnMut(u64) -> Result<u64> + Send + 'static) -> Self {
        let (progress, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (shared, stopped) = (progress.clone(), stop.clone());
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let next = step(shared.load(Ordering::Relaxed))?;
                shared.store(next, Ordering::Relaxed);
            }
            Ok(())
        });
        Self { progress, stop, thread }
    }

    /// How far it has come.
    pub fn progress(&self) -> u64 {
        self.progress.load(Ordering::Relaxed)
    }

    /// Ends after the answer at hand; how far it has come.
    pub fn stop(self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("the client's thread failed"))??;
        Ok(self.progress.load(Ordering::Relaxed))
    }
}
