//! The services that need no load of their own: a question, an answer.
//!
//! Owns the client's side of control, echo, compute and history.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::microseconds_since;
use crate::guest::agent;
use crate::guest::protocol::{Answer, Ask, Record, numbers, read_number};

/// A connection to the control service.
pub struct Control {
    stream: BufReader<TcpStream>,
}

impl Control {
    /// Over this connection.
    pub fn new(stream: TcpStream) -> Self {
        Self { stream: BufReader::new(stream) }
    }

    /// Asks, and waits for the answer. A failure in the guest is an error.
    pub fn ask(&mut self, ask: &Ask) -> Result<Answer> {
        let mut line = serde_json::to_vec(ask)?;
        line.push(b'\n');
        self.stream.get_mut().write_all(&line)?;
        let mut answer = String::new();
        self.stream.read_line(&mut answer).context("the guest did not answer")?;
        let answer = serde_json::from_str(&answer).context("the guest's answer is cut short")?;
        if let Answer::Failed(why) = &answer {
            anyhow::bail!("the guest could not do {ask:?}: {why}");
        }
        Ok(answer)
    }
}

/// Sends `size` bytes to the echo service and waits for them, `count` times; the round trips, in µs.
pub fn echo_round_trips_us(stream: &mut TcpStream, size: usize, count: usize) -> Result<Vec<u64>> {
    let mut round_trips = Vec::with_capacity(count);
    for number in 0..count {
        let sent = vec![number as u8; size];
        let mut received = vec![0; size];
        let start = Instant::now();
        stream.write_all(&sent)?;
        stream.read_exact(&mut received)?;
        round_trips.push(microseconds_since(start));
        ensure!(sent == received, "the echo is not what was sent");
    }
    Ok(round_trips)
}

/// How long a computation took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ComputeTimes {
    /// By the guest's own clock.
    pub guest: Duration,
    /// By the client's, asking and answering included.
    pub client: Duration,
}

/// Has the guest compute; how long that took. The result is checked.
pub fn compute(stream: &mut TcpStream, rounds: u64) -> Result<ComputeTimes> {
    let expected = agent::compute(rounds);
    let start = Instant::now();
    stream.write_all(&rounds.to_le_bytes())?;
    let mut answer = [0; 16];
    stream.read_exact(&mut answer)?;
    let client = start.elapsed();
    let [duration_ns, checksum] = numbers(answer);
    ensure!(checksum == expected, "the guest computed a wrong result");
    Ok(ComputeTimes { guest: Duration::from_nanos(duration_ns), client })
}

/// The records that the guest's journal has on the disk.
pub fn durable_history(mut stream: TcpStream) -> Result<Vec<Record>> {
    let count = read_number(&mut stream)?;
    let mut records = Vec::new();
    for _ in 0..count {
        let mut bytes = [0; Record::SIZE];
        stream.read_exact(&mut bytes).context("the guest's history is cut short")?;
        records.push(Record::from_bytes(bytes));
    }
    // The goodbye itself is of no account.
    let _ = stream.shutdown(Shutdown::Both);
    Ok(records)
}
