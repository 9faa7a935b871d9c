//! The network outside the hosts: a bridge, one port for each host, and the client's address on the bridge itself.
//!
//! Owns the namespace these are in, and the breaking and mending of links. Does not own what is inside a host.

use std::net::Ipv4Addr;

use anyhow::Result;

use super::namespace::Namespace;

/// Length of the network's prefix, in bits.
pub const PREFIX_LENGTH: u8 = 24;

/// The address of the client, which stands beside the hosts.
pub const CLIENT_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);

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

/// Whatever is sent here is gone.
const SINK: &str = "sink";

/// The network of one cluster.
pub struct Network {
    namespace: Namespace,
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
        Ok(Self { namespace })
    }

    /// The namespace in which the client is.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Makes the tap for the network card of an emulated host and plugs it in.
    pub fn add_tap(&self, index: usize) -> Result<()> {
        self.namespace.ip(&format!("tuntap add {} mode tap", port(index)))?;
        self.plug(index)
    }

    /// Makes a cable whose other end, `eth0`, is in the namespace of a host.
    pub fn add_cable(&self, index: usize, host: &Namespace) -> Result<()> {
        let (port, host) = (port(index), host.path());
        let host = host.display();
        self.namespace.ip(&format!("link add {port} type veth peer name far{index}"))?;
        self.namespace.ip(&format!("link set far{index} netns {host} name eth0"))?;
        self.plug(index)
    }

    fn plug(&self, index: usize) -> Result<()> {
        self.namespace.ip(&format!("link set {} master lan up", port(index)))
    }

    /// Cuts a host off: nothing comes in, nothing goes out.
    pub fn cut(&self, index: usize) -> Result<()> {
        self.namespace.ip(&format!("link set {} down", port(index)))
    }

    /// Undoes whatever was done to a host's link.
    pub fn mend(&self, index: usize) -> Result<()> {
        let port = port(index);
        self.namespace.ip(&format!("link set {port} up"))?;
        self.namespace.tool("bridge", &format!("link set dev {port} isolated off"))?;
        // There is nothing to remove if the host was not muted.
        let _ = self.namespace.tool("tc", &format!("qdisc del dev {port} ingress"));
        Ok(())
    }

    /// Cuts one way: the host still hears all others, but nobody hears it.
    pub fn mute(&self, index: usize) -> Result<()> {
        self.drop_from(index, "protocol all", "match u32 0 0")
    }

    /// Cuts one way between two hosts: the first still hears the second, which does not hear the first. The client and
    /// guests hear both.
    pub fn mute_towards(&self, index: usize, other: usize) -> Result<()> {
        let address = host_address(other);
        self.drop_from(index, "protocol ip", &format!("match ip dst {address}/32"))
    }

    /// Drops what comes from a host and matches.
    fn drop_from(&self, index: usize, protocol: &str, matches: &str) -> Result<()> {
        let port = port(index);
        // It is there already if the host is muted towards another one.
        let _ = self.namespace.tool("tc", &format!("qdisc add dev {port} ingress"));
        // Plain dropping is a module that some kernels lack; what is sent to a link without a reader is dropped, too.
        let filter = format!("filter add dev {port} ingress {protocol} u32 {matches}");
        self.namespace.tool("tc", &format!("{filter} action mirred egress redirect dev {SINK}"))
    }

    /// Cuts a host off from all other isolated hosts, but not from the client.
    pub fn isolate(&self, index: usize) -> Result<()> {
        self.namespace.tool("bridge", &format!("link set dev {} isolated on", port(index)))
    }
}

/// The name of a host's port in the bridge.
pub fn port(index: usize) -> String {
    format!("port{index}")
}
