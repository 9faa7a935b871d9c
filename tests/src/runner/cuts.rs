//! Cuts: what does not get through although the cables are in.
//!
//! Owns their meaning and the filters that make them, at the ports of the bridge outside all hosts: nobody on a host can tell
//! a cut from a network that loses everything. What is cut is gone without a word: no reset, no ICMP.

use std::io::Write;
use std::net::Ipv4Addr;

use anyhow::Result;

use super::network::{CLIENT_ADDRESS, Network, Place, SINK};

/// One end of what is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Party {
    /// A host itself, without its guests.
    Host(usize),
    /// All guests on a host, whoever they speak with. With this for one end the other end makes no difference.
    Guests(usize),
    /// The storage that the hosts share.
    Storage,
    /// The client outside.
    Client,
}

/// What of it is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Traffic {
    /// All of it, ARP included.
    Everything,
    /// TCP, to and from this port.
    Tcp(u16),
    /// UDP, to and from this port.
    Udp(u16),
    /// ICMP: pings, and the word that nobody listens at a port.
    Icmp,
}

/// One way from one party to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Who is not heard.
    pub from: Party,
    /// Who does not hear.
    pub to: Party,
    /// What is not heard.
    pub what: Traffic,
}

impl Cut {
    /// One way.
    pub fn one_way(from: Party, to: Party, what: Traffic) -> Self {
        Self { from, to, what }
    }

    /// Both ways.
    pub fn both_ways(one: Party, other: Party, what: Traffic) -> [Self; 2] {
        [Self::one_way(one, other, what), Self::one_way(other, one, what)]
    }

    /// The guests of a host hear nobody and are not heard.
    pub fn client_network(host_index: usize) -> [Self; 2] {
        Self::both_ways(Party::Guests(host_index), Party::Client, Traffic::Everything)
    }
}

/// Whether this machine's kernel can make cuts. If not, says so and why: the test that asks is to be left out.
pub fn can_cut() -> Result<bool> {
    let network = Network::create()?;
    network.add_tap(Place::Host(0))?;
    let made = network.cut(&Cut::both_ways(Party::Host(0), Party::Client, Traffic::Icmp));
    let Err(error) = made.and_then(Cuts::mend) else { return Ok(true) };
    // Not `eprintln!`: the test harness would keep that for itself when a test passes.
    let _ = writeln!(
        std::io::stderr(),
        "\n*** SKIPPED: this machine's kernel cannot cut a network (it needs clsact, cls_u32, act_mirred): {error:#} ***\n"
    );
    Ok(false)
}

/// Cuts that are made, and mended when this is dropped.
#[must_use = "a cut is mended when it is dropped"]
pub struct Cuts<'a> {
    network: &'a Network,
    filters: Vec<Filter>,
}

impl Network {
    /// Makes these cuts, all at once.
    pub fn cut<'a>(&'a self, cuts: &[Cut]) -> Result<Cuts<'a>> {
        let filters: Vec<Filter> =
            cuts.iter().flat_map(|cut| filters(cut, || self.next_filter())).collect();
        filters.iter().try_for_each(|filter| self.hook(&filter.port))?;
        // Were one to fail, those before it would be taken back.
        let made = Cuts { network: self, filters };
        made.each(Filter::adding)?;
        Ok(made)
    }
}

impl Cuts<'_> {
    /// Mends them.
    pub fn mend(mut self) -> Result<()> {
        self.take_back()
    }

    fn take_back(&mut self) -> Result<()> {
        let mended = self.each(Filter::removing);
        self.filters.clear();
        mended
    }

    /// Has `tc` do a line for each filter.
    fn each(&self, line: impl Fn(&Filter) -> String) -> Result<()> {
        if self.filters.is_empty() {
            return Ok(());
        }
        let lines: String = self.filters.iter().map(|filter| line(filter) + "\n").collect();
        self.network.namespace().tool_with_input("tc", "-force -batch -", &lines)
    }
}

impl Drop for Cuts<'_> {
    fn drop(&mut self) {
        // The network may be on its way out, too.
        let _ = self.take_back();
    }
}

/// One filter at one port.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Filter {
    port: String,
    /// As the bridge sees it: `ingress` is what the port's host says, `egress` what it hears.
    hook: &'static str,
    /// Tells it from all others.
    preference: u16,
    protocol: &'static str,
    matches: String,
}

impl Filter {
    fn adding(&self) -> String {
        let Self { port, hook, preference, protocol, matches } = self;
        // Plain dropping is a module that some kernels lack; what is sent to a link without a reader is dropped, too.
        format!(
            "filter add dev {port} {hook} pref {preference} protocol {protocol} u32 {matches} \
             action mirred egress redirect dev {SINK}"
        )
    }

    fn removing(&self) -> String {
        let Self { port, hook, preference, .. } = self;
        format!("filter del dev {port} {hook} pref {preference}")
    }
}

impl Party {
    /// The port at which it is, unless it is on the bridge itself.
    fn port(self) -> Option<String> {
        match self {
            Self::Host(index) | Self::Guests(index) => Some(Place::Host(index).port()),
            Self::Storage => Some(Place::Storage.port()),
            Self::Client => None,
        }
    }

    /// Its one address.
    fn address(self) -> Option<Ipv4Addr> {
        match self {
            Self::Host(index) => Some(Place::Host(index).address()),
            Self::Storage => Some(Place::Storage.address()),
            Self::Client => Some(CLIENT_ADDRESS),
            Self::Guests(_) => None,
        }
    }
}

/// All guests' hardware addresses begin with 52:54:00:77:01. Offsets are from the network header.
const FROM_GUESTS: &str = "match u32 0x52540077 0xffffffff at -8 match u16 0x0100 0xff00 at -4";
const TO_GUESTS: &str = "match u16 0x5254 0xffff at -14 match u32 0x00770100 0xffffff00 at -12";
/// Guests' addresses are 10.77.0.101 to 200; hosts' and the client's are below 64.
const ASKS_FOR_GUESTS: [&str; 2] =
    ["match u32 0x0a4d0040 0xffffffc0 at 24", "match u32 0x0a4d0080 0xffffff80 at 24"];

fn filters(cut: &Cut, mut next: impl FnMut() -> u16) -> Vec<Filter> {
    let Cut { from, to, what } = *cut;
    // At the speaker's port, if it has one; guests that hear nothing are at the hearer's.
    let at_hearer = matches!(to, Party::Guests(_)) || from.port().is_none();
    let (hook, place) = if at_hearer { ("egress", to) } else { ("ingress", from) };
    // From the client to itself there is no way to cut.
    let Some(port) = place.port() else { return Vec::new() };
    let filter = |(protocol, matches)| Filter {
        port: port.clone(),
        hook,
        preference: next(),
        protocol,
        matches,
    };
    selections(from, to, what).into_iter().map(filter).collect()
}

/// Protocols and matches; what meets one of them is cut.
fn selections(from: Party, to: Party, what: Traffic) -> Vec<(&'static str, String)> {
    let ends = match (from.address(), to.address()) {
        (Some(from), Some(to)) => format!("match ip src {from}/32 match ip dst {to}/32"),
        (None, _) => FROM_GUESTS.to_owned(),
        (_, None) => TO_GUESTS.to_owned(),
    };
    let ports = |protocol: u8, port: u16| {
        ["sport", "dport"].map(|end| {
            let ports = format!("match ip protocol {protocol} 0xff match ip {end} {port} 0xffff");
            ("ip", format!("{ends} {ports}"))
        })
    };
    match what {
        Traffic::Tcp(port) => ports(6, port).to_vec(),
        Traffic::Udp(port) => ports(17, port).to_vec(),
        Traffic::Icmp => vec![("ip", format!("{ends} match ip protocol 1 0xff"))],
        Traffic::Everything => match (from.address(), to.address()) {
            (Some(from), Some(to)) => vec![("ip", ends), ("arp", arp(from, to))],
            (None, _) => vec![("all", ends)],
            (_, None) => {
                let asks = ASKS_FOR_GUESTS.map(|asks| ("arp", asks.to_owned()));
                [vec![("all", ends)], asks.to_vec()].concat()
            }
        },
    }
}

/// ARP from one to the other: the sender's address is at byte 14, the target's at byte 24.
fn arp(from: Ipv4Addr, to: Ipv4Addr) -> String {
    let (from, to) = (from.to_bits(), to.to_bits());
    format!(
        "match u16 {:#06x} 0xffff at 14 match u16 {:#06x} 0xffff at 16 match u32 {to:#010x} 0xffffffff at 24",
        from >> 16,
        from & 0xffff
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_is_made_where_its_speaker_is_and_has_a_number_of_its_own() {
        let mut count = 0;
        let mut made = |cut| {
            let filters = filters(&cut, || {
                count += 1;
                count
            });
            filters.into_iter().map(|one| (one.port, one.hook, one.preference)).collect::<Vec<_>>()
        };
        let at = |port: &str, hook, preference| (port.to_owned(), hook, preference);
        let (host, storage) = (Party::Host(0), Party::Storage);
        let tcp = Traffic::Tcp(7000);
        assert_eq!(
            made(Cut::one_way(host, storage, tcp)),
            [at("port0", "ingress", 1), at("port0", "ingress", 2)]
        );
        assert_eq!(made(Cut::one_way(storage, host, Traffic::Icmp)), [at("storage", "ingress", 3)]);
        assert_eq!(
            made(Cut::one_way(Party::Client, host, Traffic::Icmp)),
            [at("port0", "egress", 4)]
        );
        assert_eq!(
            made(Cut::one_way(Party::Guests(1), Party::Client, Traffic::Everything)),
            [at("port1", "ingress", 5)]
        );
        assert_eq!(made(Cut::one_way(Party::Client, Party::Client, tcp)), []);
    }
}
