//! Ports for servers that are told where to listen.
//!
//! Owns the choice. It is below what the system takes for connections that go out (from 32768 on in
//! Linux): one of those would otherwise, now and then, hold a port that was free a moment ago.

use std::net::{TcpListener, UdpSocket};
use std::sync::atomic::{AtomicU16, Ordering};

const FIRST: u16 = 12_000;
const PER_PROCESS: u16 = 64;
const PROCESSES: u32 = 300;

/// A port of the loopback that is free, for TCP and for UDP, and that no other test of this crate
/// takes: tests that run at the same time have process ids that lie close together.
pub fn free_port() -> u16 {
    static TAKEN: AtomicU16 = AtomicU16::new(0);
    let slot = u16::try_from(std::process::id() % PROCESSES).unwrap();
    loop {
        let taken = TAKEN.fetch_add(1, Ordering::Relaxed) % PER_PROCESS;
        let port = FIRST + slot * PER_PROCESS + taken;
        let address = ("127.0.0.1", port);
        if TcpListener::bind(address).is_ok() && UdpSocket::bind(address).is_ok() {
            return port;
        }
    }
}
