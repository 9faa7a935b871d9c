//! The client outside the guest: keeps connections, remembers what it was told, and holds the guest to it.
//!
//! Owns the client's side of the services in [`crate::guest::protocol`], and the judgement of what came back. A client never
//! connects again by itself: that one and the same connection lives on is what is to be shown.

mod bulk;
mod history;
mod journal;
mod percentiles;
mod simple;
mod steady;

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

pub use bulk::{Bulk, BulkOutcome, SinkLoad, SourceLoad};
pub use history::{Exchange, History, Verdict, check};
pub use journal::{JournalLoad, Pace};
pub use percentiles::Percentiles;
pub use simple::{ComputeTimes, Control, compute, durable_history, echo_round_trips_us};
pub use steady::Steady;

use crate::runner::Namespace;

/// For how long a client that has a connection waits for the guest before it calls the connection dead.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Connects from inside `namespace`; tries until `timeout` is over, for a guest may still boot.
pub fn connect(
    namespace: &Namespace,
    address: Ipv4Addr,
    port: u16,
    timeout: Duration,
) -> Result<TcpStream> {
    let deadline = Instant::now() + timeout;
    // A socket stays in the namespace where it was made, whichever thread uses it.
    let stream = namespace.run(|| try_connect((address, port).into(), deadline));
    let stream = stream.with_context(|| format!("cannot connect to {address}:{port}"))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn try_connect(address: SocketAddr, deadline: Instant) -> io::Result<TcpStream> {
    const TRY_TIMEOUT: Duration = Duration::from_secs(1);
    const PAUSE: Duration = Duration::from_millis(50);
    loop {
        match TcpStream::connect_timeout(&address, TRY_TIMEOUT) {
            Ok(stream) => return Ok(stream),
            Err(error) if Instant::now() >= deadline => return Err(error),
            Err(_) => sleep(PAUSE),
        }
    }
}

/// Time since `start`, in µs.
fn microseconds_since(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX)
}
