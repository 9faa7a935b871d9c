//! Who is heard: which host the frames of a guest come from, seen from outside all hosts.
//!
//! Owns the capture at the hosts' ports, and the order in which hosts spoke for the guest. That there are never two of a
//! VM is a matter of what the world hears: a replica that runs on in silence does no harm.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::Cluster;
use super::network::Place;

/// A stretch of frames that all came from one host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Speech {
    /// The host.
    pub host_index: usize,
    /// How many frames.
    pub frames: u64,
    /// When the first one was heard.
    pub first: Instant,
    /// When the last one was heard.
    pub last: Instant,
}

/// Listens until it is dropped.
pub struct Witness {
    heard: Arc<Mutex<Vec<Speech>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

const ETHERNET_HEADER_SIZE: usize = 14;
/// A read ends after this time, so that the thread sees that it is to stop.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
const BUFFER_BYTES: libc::c_int = 8 << 20;

impl Witness {
    /// Begins to listen for frames that this MAC address sends from any host.
    pub fn start(cluster: &Cluster, mac: [u8; 6]) -> Result<Self> {
        let hosts = cluster.hosts().len();
        let opened = cluster.client_namespace().run(|| -> io::Result<_> {
            let ports: Vec<_> = (0..hosts).map(port_number).collect::<io::Result<_>>()?;
            Ok((open_socket()?, ports))
        });
        let (socket, ports) = opened.context("cannot listen at the hosts' ports")?;
        let (heard, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (shared, stopped) = (heard.clone(), stop.clone());
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                if let Some(host_index) = next_speaker(&socket, &ports, mac) {
                    note(&mut lock(&shared), host_index);
                }
            }
        });
        Ok(Self { heard, stop, thread: Some(thread) })
    }

    /// All that was heard so far, in order.
    pub fn heard(&self) -> Vec<Speech> {
        lock(&self.heard).clone()
    }

    /// The hosts that spoke for the guest, in order, each named once for as long as no other one spoke.
    pub fn speakers(&self) -> Vec<usize> {
        lock(&self.heard).iter().map(|speech| speech.host_index).collect()
    }

    /// How many frames came from anywhere.
    pub fn frames(&self) -> u64 {
        lock(&self.heard).iter().map(|speech| speech.frames).sum()
    }

    /// Forgets what was heard.
    pub fn forget(&self) {
        lock(&self.heard).clear();
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn lock(heard: &Mutex<Vec<Speech>>) -> MutexGuard<'_, Vec<Speech>> {
    heard.lock().unwrap_or_else(PoisonError::into_inner)
}

fn note(heard: &mut Vec<Speech>, host_index: usize) {
    let now = Instant::now();
    match heard.last_mut() {
        Some(last) if last.host_index == host_index => {
            last.frames += 1;
            last.last = now;
        }
        Some(_) | None => heard.push(Speech { host_index, frames: 1, first: now, last: now }),
    }
}

/// The number of a host's port, as this namespace counts its interfaces.
fn port_number(host_index: usize) -> io::Result<i32> {
    let name = std::ffi::CString::new(Place::Host(host_index).port()).map_err(io::Error::other)?;
    // SAFETY: the name is a string that ends with a zero, and lives until the call returns.
    match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        0 => Err(io::Error::last_os_error()),
        number => i32::try_from(number).map_err(io::Error::other),
    }
}

/// A socket that hears every frame on every interface of this namespace: one socket, so one order.
fn open_socket() -> io::Result<OwnedFd> {
    let protocol = (libc::ETH_P_ALL as u16).to_be();
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
    // SAFETY: socket(2) takes plain numbers.
    let number = unsafe { libc::socket(libc::AF_PACKET, kind, i32::from(protocol)) };
    if number < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the number is a descriptor that was just made and that nobody else has.
    let socket = unsafe { OwnedFd::from_raw_fd(number) };
    let timeout = libc::timeval { tv_sec: 0, tv_usec: LOOK_INTERVAL.as_micros() as _ };
    set_option(&socket, libc::SO_RCVTIMEO, &timeout)?;
    set_option(&socket, libc::SO_RCVBUFFORCE, &BUFFER_BYTES)?;
    Ok(socket)
}

fn set_option<T>(socket: &OwnedFd, option: libc::c_int, value: &T) -> io::Result<()> {
    let size = size_of::<T>() as libc::socklen_t;
    let value = std::ptr::from_ref(value).cast();
    // SAFETY: the pointer and the size are those of one value, which lives until the call returns.
    let result =
        unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, option, value, size) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Waits for a frame; the host it came from, if it came from the guest.
fn next_speaker(socket: &OwnedFd, ports: &[i32], mac: [u8; 6]) -> Option<usize> {
    let mut frame = [0_u8; ETHERNET_HEADER_SIZE];
    // SAFETY: an address of all zeros is a valid value of this type.
    let mut from: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    let mut size = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the buffer and the address are valid for writes of the sizes given, and live until the call returns.
    let length = unsafe {
        libc::recvfrom(
            socket.as_raw_fd(),
            frame.as_mut_ptr().cast(),
            frame.len(),
            0,
            std::ptr::from_mut(&mut from).cast(),
            &raw mut size,
        )
    };
    let whole = usize::try_from(length) == Ok(frame.len());
    // What goes out at a port was heard at another one, or is the client's.
    let comes_in = from.sll_pkttype != libc::PACKET_OUTGOING;
    let speaks = whole && comes_in && frame[6..12] == mac;
    ports.iter().position(|port| speaks && *port == from.sll_ifindex)
}
