//! The network outside the hosts: a bridge, one port for each host and for the storage, and the client's address on the
//! bridge itself.
//!
//! Owns the namespace these are in, and the cables. What is cut while the cables are in is `cuts`' matter; what is inside a
//! host is not of concern here.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Mutex, PoisonError};

use anyhow::Result;

use super::namespace::Namespace;

/// Length of the network's prefix, in bits.
pub const PREFIX_LENGTH: u8 = 24;

/// The address of the client, which stands beside the hosts.
pub const CLIENT_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);

/// The address of the storage, which the hosts share.
pub const STORAGE_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);

/// The address of a host, by its index.
pub fn host_address(index: usize) -> Ipv4Addr {
    address(11, index)
}

/// An address for a guest, by an index of the test's choice (below 100).
pub fn guest_address(index: usize) -> Ipv4Addr {
    address(101, index)
}

fn address(first: u8, index: usize) -> Ipv4Addr {
    let last = u8::try_from(index).ok().filter(|index| *index < 100).map(|index| first + index);
    Ipv4Addr::new(10, 77, 0, last.expect("a network of tests has fewer than 100 hosts"))
}

/// Who has a cable into the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// A host, by its index. Its guests share its cable.
    Host(usize),
    /// The storage that the hosts share.
    Storage,
}

impl Place {
    /// Its address.
    pub fn address(self) -> Ipv4Addr {
        match self {
            Self::Host(index) => host_address(index),
            Self::Storage => STORAGE_ADDRESS,
        }
    }

    /// The hardware address of its network card: locally administered, and unlike those of guests in the fifth byte.
    pub fn mac(self) -> String {
        match self {
            Self::Host(index) => format!("52:54:00:77:00:{index:02x}"),
            Self::Storage => "52:54:00:77:00:ff".to_owned(),
        }
    }

    /// The name of its port in the bridge.
    pub fn port(self) -> String {
        match self {
            Self::Host(index) => format!("port{index}"),
            Self::Storage => "storage".to_owned(),
        }
    }
}

/// Whatever is sent here is gone.
pub(super) const SINK: &str = "sink";

/// The network of one cluster.
pub struct Network {
    namespace: Namespace,
    /// How many filters there have been; tells them apart.
    filters: AtomicU16,
    /// Ports at which there can be filters.
    hooked: Mutex<BTreeSet<String>>,
}

impl Network {
    /// Makes the bridge, with the client's address on it.
    pub fn create() -> Result<Self> {
        let namespace = Namespace::create()?;
        // Nobody here speaks version 6; its announcements would only be noise in captures.
        namespace.set("ipv6/conf/all/disable_ipv6", "1")?;
        namespace.set("ipv6/conf/default/disable_ipv6", "1")?;
        namespace.ip("link add lan type bridge stp_state 0 forward_delay 0 mcast_snooping 0")?;
        namespace.ip(&format!("address add {CLIENT_ADDRESS}/{PREFIX_LENGTH} dev lan"))?;
        namespace.ip("link set lan up")?;
        namespace.ip(&format!("tuntap add {SINK} mode tap"))?;
        namespace.ip(&format!("link set {SINK} up"))?;
        Ok(Self { namespace, filters: AtomicU16::new(0), hooked: Mutex::default() })
    }

    /// The namespace in which the client is.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    pub(super) fn next_filter(&self) -> u16 {
        self.filters.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Makes the tap for the network card of an emulated host and plugs it in.
    pub fn add_tap(&self, place: Place) -> Result<()> {
        self.namespace.ip(&format!("tuntap add {} mode tap", place.port()))?;
        self.add_port(place)
    }

    /// Makes a cable whose other end, `eth0`, is in the namespace of a host.
    pub fn add_cable(&self, place: Place, host: &Namespace) -> Result<()> {
        let (port, host) = (place.port(), host.path());
        let host = host.display();
        self.namespace.ip(&format!("link add {port} type veth peer name far"))?;
        self.namespace.ip(&format!("link set far netns {host} name eth0"))?;
        self.add_port(place)
    }

    fn add_port(&self, place: Place) -> Result<()> {
        self.namespace.ip(&format!("link set {} master lan up", place.port()))
    }

    /// Makes sure that there can be filters at this port. Networks in which nothing is ever cut ask nothing of the kernel.
    pub(super) fn hook(&self, port: &str) -> Result<()> {
        let mut hooked = self.hooked.lock().unwrap_or_else(PoisonError::into_inner);
        if !hooked.contains(port) {
            self.namespace.tool("tc", &format!("qdisc add dev {port} clsact"))?;
            hooked.insert(port.to_owned());
        }
        Ok(())
    }

    /// Pulls a cable: nothing comes in, nothing goes out.
    pub fn unplug(&self, place: Place) -> Result<()> {
        self.namespace.ip(&format!("link set {} down", place.port()))
    }

    /// Undoes [`Self::unplug`].
    pub fn plug_in(&self, place: Place) -> Result<()> {
        self.namespace.ip(&format!("link set {} up", place.port()))
    }
}
