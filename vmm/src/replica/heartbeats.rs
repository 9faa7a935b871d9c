//! Heartbeats between two replicas: datagrams beside the stream.
//!
//! Owns the UDP socket, and the news that nobody listens at the other end: once the socket is
//! connected, the other host's refusal of a datagram proves that the process there has ended.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, RawFd};

use ft::Heartbeat;

use crate::error::Error;

/// More than any heartbeat is long.
const DATAGRAM_BYTES: usize = 512;
/// Datagrams taken before the event loop's other sources have their turn.
const DATAGRAMS_A_TURN: usize = 64;

/// What came.
#[derive(Debug, Default)]
pub struct Beats {
    /// Heartbeats, in order.
    pub heartbeats: Vec<Heartbeat>,
    /// The other host says that nobody listens there.
    pub refused: bool,
}

/// One end.
pub struct Heartbeats {
    socket: UdpSocket,
    /// Who may speak; the port is learnt from the first heartbeat at a backup.
    peer_ip: Option<IpAddr>,
    connected: bool,
}

impl Heartbeats {
    /// A backup's end: waits at `address`.
    ///
    /// # Errors
    /// The port is in use.
    pub fn listen(address: SocketAddr) -> Result<Self, Error> {
        let socket = open(address)?;
        Ok(Self { socket, peer_ip: None, connected: false })
    }

    /// A primary's end: speaks to `peer`.
    ///
    /// # Errors
    /// The host is out of ports, or has no way to `peer`.
    pub fn connect(peer: SocketAddr) -> Result<Self, Error> {
        let any: IpAddr = match peer {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = open(SocketAddr::new(any, 0))?;
        let mut heartbeats = Self { socket, peer_ip: Some(peer.ip()), connected: false };
        heartbeats.settle_on(peer);
        Ok(heartbeats)
    }

    /// Forgets the peer: waits at `address` again.
    ///
    /// # Errors
    /// The port is in use.
    pub fn renew(&mut self, address: SocketAddr) -> Result<(), Error> {
        // The old socket has the port until it is closed.
        self.socket = open(SocketAddr::new(address.ip(), 0))?;
        self.socket = open(address)?;
        (self.peer_ip, self.connected) = (None, false);
        Ok(())
    }

    /// From now on only this host is listened to.
    pub fn expect(&mut self, peer_ip: Option<IpAddr>) {
        self.peer_ip = peer_ip;
    }

    /// Sends a heartbeat. One that cannot be sent is lost, as any may be.
    pub fn send(&self, heartbeat: &Heartbeat) {
        if self.connected
            && let Err(error) = self.socket.send(&heartbeat.to_bytes())
        {
            log::trace!("a heartbeat was not sent: {error}");
        }
    }

    /// Takes what has come. Anything that is no heartbeat from the peer is dropped.
    pub fn receive(&mut self) -> Beats {
        let mut beats = Beats::default();
        let mut bytes = [0; DATAGRAM_BYTES];
        for _ in 0..DATAGRAMS_A_TURN {
            match self.socket.recv_from(&mut bytes) {
                Ok((count, from)) => {
                    if self.peer_ip != Some(from.ip()) {
                        continue;
                    }
                    if let Ok(heartbeat) = Heartbeat::from_bytes(&bytes[..count]) {
                        if !self.connected {
                            self.settle_on(from);
                        }
                        beats.heartbeats.push(heartbeat);
                    }
                }
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => beats.refused = true,
                Err(_) => break,
            }
        }
        beats
    }

    fn settle_on(&mut self, peer: SocketAddr) {
        match self.socket.connect(peer) {
            Ok(()) => self.connected = true,
            Err(error) => log::warn!("heartbeats to {peer} are not possible: {error}"),
        }
    }
}

impl AsRawFd for Heartbeats {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

fn open(address: SocketAddr) -> Result<UdpSocket, Error> {
    let failed = |error: std::io::Error| {
        Error::Channel(format!(
            "heartbeats cannot be received at UDP {address}: {error}; is the port in use?"
        ))
    };
    let socket = UdpSocket::bind(address).map_err(failed)?;
    socket.set_nonblocking(true).map_err(failed)?;
    Ok(socket)
}
