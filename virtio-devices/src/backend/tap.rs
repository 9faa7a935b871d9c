//! A tap: the host's end of a virtual network cable.
//!
//! Owns opening or creating it with virtio-net headers, its address and its state, and packets in
//! both directions without waiting. It parses no packet.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::mem;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;

use super::NetBackend;
use crate::effect::{NET_HEADER_BYTES, NET_PACKET_BYTES_MAX};
use crate::{Error, Result};

/// A tap whose packets start with the 12-byte virtio-net header.
#[derive(Debug)]
pub struct Tap {
    file: File,
    name: String,
    buffer: Box<[u8]>,
}

impl Tap {
    /// Opens the tap `name`, or creates it if there is none and this process may. It is gone with
    /// the process then. Without a name the host picks one (`vmtap0`, `vmtap1`, ...).
    ///
    /// The tap is opened as it is: [`set_address`](Self::set_address) and
    /// [`bring_up`](Self::bring_up) do the rest. Fails if it is in use, of another kind, or not for
    /// this user.
    pub fn open(name: Option<&str>) -> Result<Self> {
        let wanted = name.unwrap_or("vmtap%d");
        let mut request = interface_request(wanted)?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open("/dev/net/tun")
            .map_err(Error::TapDriver)?;
        let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        request.ifr_ifru.ifru_flags = flags as libc::c_short;
        control(&file, libc::TUNSETIFF, &mut request)
            .map_err(|source| open_error(wanted, source))?;
        let name = interface_name(&request);
        let mut header_bytes = NET_HEADER_BYTES as libc::c_int;
        control(&file, libc::TUNSETVNETHDRSZ, &mut header_bytes).map_err(|source| Error::Tap {
            name: name.clone(),
            action: "set the header size of",
            source,
        })?;
        let buffer = vec![0; NET_PACKET_BYTES_MAX].into_boxed_slice();
        let mut tap = Self { file, name, buffer };
        // A tap keeps the offloads of whoever had it open before.
        tap.set_offloads(0)?;
        Ok(tap)
    }

    /// The interface's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Gives the host's end of the cable an address.
    pub fn set_address(&self, address: Ipv4Addr, mask: Ipv4Addr) -> Result<()> {
        let action = "set the address of";
        let socket = self.control_socket(action)?;
        for (code, value) in [(libc::SIOCSIFADDR, address), (libc::SIOCSIFNETMASK, mask)] {
            let mut request = interface_request(&self.name)?;
            request.ifr_ifru.ifru_addr = socket_address(value);
            control(&socket, code, &mut request).map_err(|source| self.error(action, source))?;
        }
        Ok(())
    }

    /// Brings the interface up, if it is not.
    pub fn bring_up(&self) -> Result<()> {
        let action = "bring up";
        let socket = self.control_socket(action)?;
        let mut request = interface_request(&self.name)?;
        control(&socket, libc::SIOCGIFFLAGS, &mut request)
            .map_err(|source| self.error(action, source))?;
        // SAFETY: SIOCGIFFLAGS succeeded, so that the kernel has filled in `ifru_flags`; any bits
        // are a valid integer in any case.
        let flags = unsafe { request.ifr_ifru.ifru_flags };
        let up = flags | libc::IFF_UP as libc::c_short;
        // Who may not change the interface may still use one that is up.
        if flags == up {
            return Ok(());
        }
        request.ifr_ifru.ifru_flags = up;
        control(&socket, libc::SIOCSIFFLAGS, &mut request)
            .map_err(|source| self.error(action, source))
    }

    fn control_socket(&self, action: &'static str) -> Result<UdpSocket> {
        UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).map_err(|source| self.error(action, source))
    }

    fn error(&self, action: &'static str, source: io::Error) -> Error {
        Error::Tap { name: self.name.clone(), action, source }
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl NetBackend for Tap {
    fn send(&mut self, packet: &[u8]) -> io::Result<bool> {
        match self.file.write(packet) {
            // A tap takes a packet whole or not at all.
            Ok(length) => Ok(length == packet.len()),
            Err(error) => match error.raw_os_error() {
                // No room, no sense, interface down: the packet is lost, the tap is well.
                Some(libc::EAGAIN | libc::EINVAL | libc::EIO | libc::ENOMEM | libc::ENOBUFS) => {
                    Ok(false)
                }
                _ => Err(error),
            },
        }
    }

    fn receive(&mut self) -> io::Result<Option<&[u8]>> {
        loop {
            match self.file.read(&mut self.buffer) {
                Ok(length) => return Ok(Some(&self.buffer[..length])),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }

    fn set_offloads(&mut self, offloads: u32) -> Result<()> {
        // SAFETY: TUNSETOFFLOAD takes its argument by value, so that the kernel touches no memory
        // of ours; the descriptor is open as long as `self.file`.
        let done = unsafe {
            libc::ioctl(self.file.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(offloads))
        };
        if done < 0 {
            return Err(self.error("set the offloads of", io::Error::last_os_error()));
        }
        Ok(())
    }
}

/// Calls an ioctl that takes a pointer to `argument`.
fn control<T: Argument>(
    descriptor: &impl AsRawFd,
    code: libc::Ioctl,
    argument: &mut T,
) -> io::Result<()> {
    // SAFETY: `argument` is a live, exclusive reference to one of the two types of `Argument`, and
    // the requests this file makes (TUNSETIFF, TUNSETVNETHDRSZ, SIOC[GS]IF*) read and write no more
    // than the type they are given here: `ifreq` for interfaces, `int` for the header size.
    let done = unsafe { libc::ioctl(descriptor.as_raw_fd(), code, std::ptr::from_mut(argument)) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// What the ioctls of this file point to.
trait Argument {}
impl Argument for libc::ifreq {}
impl Argument for libc::c_int {}

fn interface_request(name: &str) -> Result<libc::ifreq> {
    let possible = !name.is_empty()
        && name.len() < libc::IFNAMSIZ
        && name != "."
        && name != ".."
        && name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/');
    if !possible {
        return Err(Error::TapName { name: name.to_owned() });
    }
    // SAFETY: `ifreq` is plain data of integers, arrays, and a pointer that may be null; all zeros
    // is a value of it.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    for (place, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *place = byte as libc::c_char;
    }
    Ok(request)
}

fn interface_name(request: &libc::ifreq) -> String {
    let bytes = request.ifr_name.iter().take_while(|byte| **byte != 0);
    bytes.map(|byte| char::from(*byte as u8)).collect()
}

fn socket_address(address: Ipv4Addr) -> libc::sockaddr {
    let [a, b, c, d] = address.octets().map(|byte| byte as libc::c_char);
    libc::sockaddr {
        sa_family: libc::AF_INET as libc::sa_family_t,
        // Port, address, padding: `sockaddr_in` as its bytes lie in memory.
        sa_data: [0, 0, a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0],
    }
}

fn open_error(name: &str, source: io::Error) -> Error {
    let name = name.to_owned();
    match source.raw_os_error() {
        Some(libc::EBUSY) => Error::TapBusy { name },
        Some(libc::EPERM | libc::EACCES) => Error::TapPermission { name },
        Some(libc::EINVAL) => Error::TapKind { name },
        _ => Error::Tap { name, action: "open", source },
    }
}
