//! Work for the CPU alone.
//!
//! Owns the work. It makes no system call while it runs, and its result depends on nothing but the number of rounds.

use std::io::{self, Write};
use std::net::TcpStream;
use std::time::Instant;

use super::Guest;
use crate::guest::protocol::{read_number, words};

/// Serves one client: rounds in, duration and checksum out.
pub(super) fn serve(mut stream: TcpStream, _guest: &Guest) -> io::Result<()> {
    loop {
        let rounds = read_number(&mut stream)?;
        let start = Instant::now();
        let checksum = compute(rounds);
        let duration_ns = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        stream.write_all(&words::<2, 16>([duration_ns, checksum]))?;
    }
}

/// A chain of shifts: no round can begin before the one before it has ended.
pub fn compute(rounds: u64) -> u64 {
    let mut value = 0x2545_f491_4f6c_dd1d_u64;
    for _ in 0..rounds {
        value ^= value << 13;
        value ^= value >> 7;
        value ^= value << 17;
    }
    value
}
