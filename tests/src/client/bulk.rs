//! Clients that move bytes as fast as they can and check every one.
//!
//! Owns the connections and the counting. Source and sink are named after the guest's service.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use anyhow::{Result, anyhow};

use super::microseconds_since;
use crate::guest::pattern;
use crate::guest::protocol::{ALL_ONES, read_number, words};

const PIECE_SIZE: usize = 64 << 10;

/// What became of the bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BulkOutcome {
    /// Bytes that arrived and were as they had to be.
    pub bytes: u64,
    /// How long it went on, in µs.
    pub duration_us: u64,
    /// The longest time without any progress, in µs.
    pub longest_gap_us: u64,
    /// What went wrong, if something did.
    pub broken: Option<String>,
}

/// A running transfer.
pub struct Bulk {
    bytes: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<BulkOutcome>,
}

/// The guest sends, the client checks.
pub struct SourceLoad;

/// The client sends, the guest checks.
pub struct SinkLoad;

impl Bulk {
    /// Bytes so far.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Ends the transfer.
    pub fn stop(self) -> Result<BulkOutcome> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("the transfer's thread failed"))
    }

    fn start(
        stream: TcpStream,
        transfer: impl FnOnce(TcpStream, &Progress) -> io::Result<()> + Send + 'static,
    ) -> Self {
        let (bytes, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let progress = Progress {
            bytes: bytes.clone(),
            stop: stop.clone(),
            start: Instant::now(),
            last_us: AtomicU64::new(0),
            longest_gap_us: AtomicU64::new(0),
        };
        let thread = thread::spawn(move || {
            let result = transfer(stream, &progress);
            progress.outcome(result)
        });
        Self { bytes, stop, thread }
    }
}

struct Progress {
    bytes: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    start: Instant,
    last_us: AtomicU64,
    longest_gap_us: AtomicU64,
}

impl Progress {
    fn reach(&self, bytes: u64) {
        self.bytes.store(bytes, Ordering::Relaxed);
        let now_us = microseconds_since(self.start);
        let last_us = self.last_us.swap(now_us, Ordering::Relaxed);
        self.longest_gap_us.fetch_max(now_us.saturating_sub(last_us), Ordering::Relaxed);
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn outcome(&self, result: io::Result<()>) -> BulkOutcome {
        BulkOutcome {
            bytes: self.bytes.load(Ordering::Relaxed),
            duration_us: microseconds_since(self.start),
            longest_gap_us: self.longest_gap_us.load(Ordering::Relaxed),
            broken: result.err().map(|error| error.to_string()),
        }
    }
}

impl SourceLoad {
    /// Starts receiving over a connection to the guest's source, without end.
    pub fn start(stream: TcpStream) -> Bulk {
        Bulk::start(stream, receive)
    }
}

impl SinkLoad {
    /// Starts sending over a connection to the guest's sink.
    pub fn start(stream: TcpStream) -> Bulk {
        Bulk::start(stream, send)
    }
}

fn receive(mut stream: TcpStream, progress: &Progress) -> io::Result<()> {
    stream.write_all(&words::<2, 16>([0, ALL_ONES]))?;
    let mut piece = vec![0; PIECE_SIZE];
    let mut count = 0;
    while !progress.stopped() {
        let length = stream.read(&mut piece)?;
        if length == 0 {
            return Err(io::Error::other(format!("the guest hung up after {count} bytes")));
        }
        if let Err(place) = pattern::check(count, &piece[..length]) {
            let place = count + place as u64;
            return Err(io::Error::other(format!("byte {place} from the guest is wrong")));
        }
        count += length as u64;
        progress.reach(count);
    }
    Ok(())
}

fn send(mut stream: TcpStream, progress: &Progress) -> io::Result<()> {
    let sent = AtomicU64::new(0);
    let mut counts = stream.try_clone()?;
    thread::scope(|scope| {
        let counting = scope.spawn(|| count(&mut counts, progress));
        let result = send_until_stopped(&mut stream, progress, &sent, || counting.is_finished());
        // Tells the guest that this was all; it then says how much that was.
        let closed = result.and_then(|()| stream.shutdown(Shutdown::Write));
        let counted = counting.join().map_err(|_| io::Error::other("the counting failed"))?;
        let counted = counted.and_then(|counted| closed.map(|()| counted))?;
        let sent = sent.load(Ordering::Relaxed);
        if counted != sent {
            return Err(io::Error::other(format!("the guest got {counted} bytes of {sent}")));
        }
        Ok(())
    })
}

fn send_until_stopped(
    stream: &mut TcpStream,
    progress: &Progress,
    sent: &AtomicU64,
    given_up: impl Fn() -> bool,
) -> io::Result<()> {
    let mut piece = vec![0; PIECE_SIZE];
    while !progress.stopped() && !given_up() {
        let count = sent.load(Ordering::Relaxed);
        pattern::fill(count, &mut piece);
        stream.write_all(&piece)?;
        sent.store(count + PIECE_SIZE as u64, Ordering::Relaxed);
    }
    Ok(())
}

/// Follows the guest's counts to the last one.
fn count(counts: &mut TcpStream, progress: &Progress) -> io::Result<u64> {
    let mut counted = 0;
    loop {
        match read_number(counts) {
            Ok(ALL_ONES) => {
                return Err(io::Error::other(format!(
                    "the guest got a wrong byte after {counted}"
                )));
            }
            Ok(count) => {
                counted = count;
                progress.reach(count);
            }
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(counted),
            Err(error) => return Err(error),
        }
    }
}
