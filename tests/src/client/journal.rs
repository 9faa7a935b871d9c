//! A client of the guest's journal that asks on and on, and remembers.
//!
//! Owns the connection and the history of it.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use xxhash_rust::xxh3::xxh3_64;

use super::history::{Exchange, History};
use super::microseconds_since;
use crate::guest::pattern;
use crate::guest::protocol::Acknowledgement;

/// How a client asks.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Tells this client's requests from those of others.
    pub client: u32,
    /// Size of a request's payload, in bytes; at most [`crate::guest::protocol::PAYLOAD_SIZE_MAX`].
    pub payload_size: usize,
    /// The least time from one request to the next; zero for as fast as answers come.
    pub interval: Duration,
}

/// A running client.
pub struct JournalLoad {
    history: Arc<Mutex<History>>,
    stop: Arc<AtomicBool>,
    start: Instant,
    thread: JoinHandle<()>,
}

impl JournalLoad {
    /// Starts asking over `stream`. Times are counted from `start`, so that several loads can share one clock.
    pub fn start(stream: TcpStream, pace: Pace, start: Instant) -> Self {
        let history = Arc::new(Mutex::new(History::default()));
        let stop = Arc::new(AtomicBool::new(false));
        let (shared, stopped) = (history.clone(), stop.clone());
        let thread = thread::spawn(move || {
            if let Err(error) = ask_on(stream, pace, start, &shared, &stopped) {
                lock(&shared).broken = Some(format!("client {}: {error:#}", pace.client));
            }
        });
        Self { history, stop, start, thread }
    }

    /// Time since the start, in µs, as in the history.
    pub fn now_us(&self) -> u64 {
        microseconds_since(self.start)
    }

    /// How many requests were answered so far.
    pub fn acknowledged(&self) -> usize {
        // All but the last, which may be on its way.
        let history = lock(&self.history);
        let waiting = history.exchanges.last().is_some_and(|last| last.answer.is_none());
        history.exchanges.len() - usize::from(waiting)
    }

    /// Looks at the history so far.
    pub fn look<T>(&self, look: impl FnOnce(&History) -> T) -> T {
        look(&lock(&self.history))
    }

    /// Stops after the answer at hand; the whole history.
    pub fn stop(self) -> Result<History> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("the client's thread failed"))?;
        Ok(std::mem::take(&mut *lock(&self.history)))
    }
}

fn ask_on(
    mut stream: TcpStream,
    pace: Pace,
    start: Instant,
    history: &Mutex<History>,
    stop: &AtomicBool,
) -> Result<()> {
    let mut payload = vec![0; pace.payload_size];
    for number in 0_u64.. {
        let next = Instant::now() + pace.interval;
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let id = u64::from(pace.client) << 40 | number;
        pattern::fill(id, &mut payload);
        let sent_us = microseconds_since(start);
        let checksum = xxh3_64(&payload);
        lock(history).exchanges.push(Exchange { id, checksum, sent_us, answer: None });
        stream.write_all(&request(id, &payload)?)?;
        let mut answer = [0; Acknowledgement::SIZE];
        stream.read_exact(&mut answer)?;
        let at_us = microseconds_since(start);
        let answer = Acknowledgement::from_bytes(answer);
        if answer.id != id {
            return Err(anyhow!("request {id} was answered as {}", answer.id));
        }
        if let Some(exchange) = lock(history).exchanges.last_mut() {
            exchange.answer = Some((at_us, answer));
        }
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    // The goodbye itself is of no account.
    let _ = stream.shutdown(Shutdown::Both);
    Ok(())
}

fn request(id: u64, payload: &[u8]) -> Result<Vec<u8>> {
    let mut request = id.to_le_bytes().to_vec();
    request.extend_from_slice(&u32::try_from(payload.len())?.to_le_bytes());
    request.extend_from_slice(payload);
    Ok(request)
}

fn lock(history: &Mutex<History>) -> std::sync::MutexGuard<'_, History> {
    history.lock().unwrap_or_else(PoisonError::into_inner)
}
