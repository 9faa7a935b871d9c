//! Cuts, with plain sockets and nothing of a VM: each stops exactly what it says, without a word, and nothing else.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use crate::runner::direct::join;
use crate::runner::network::{CLIENT_ADDRESS, PREFIX_LENGTH, guest_address};
use crate::runner::{Cut, Namespace, Network, Party, Place, Traffic, can_cut};

const HOST: usize = 0;
const OTHER: usize = 1;
const STORAGE: usize = 2;
const CLIENT: usize = 3;
const GUEST: usize = 4;
const STATIONS: usize = 5;

const CHANNEL: u16 = 7000;
const ELSEWHERE: u16 = 7001;

/// What passes without a cut is there after this time; what is not there then was stopped.
const SOON: Duration = Duration::from_millis(250);
/// TCP sends again what was lost, at growing intervals.
const AGAIN: Duration = Duration::from_secs(10);

/// A kind of traffic from one station to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Flow {
    Tcp(u16),
    Udp(u16),
    /// That nobody listens at a port of the second one's, as the first one hears it.
    Refusal,
}

type Heard = BTreeSet<(Flow, usize, usize)>;

/// Namespaces with sockets, each with a connection to each other one.
struct Lan<'a> {
    udp: Vec<[UdpSocket; 2]>,
    /// By port, from whom, to whom: what the first one writes into.
    tcp: Vec<(u16, usize, usize, TcpStream)>,
    round: u32,
    stations: &'a [(&'a Namespace, Ipv4Addr)],
}

impl<'a> Lan<'a> {
    fn new(stations: &'a [(&'a Namespace, Ipv4Addr)]) -> Self {
        let bind = |(namespace, address): &(&Namespace, Ipv4Addr), port| {
            let socket = namespace.run(|| UdpSocket::bind((*address, port))).unwrap();
            socket.set_nonblocking(true).unwrap();
            socket
        };
        let udp = stations.iter().map(|one| [bind(one, CHANNEL), bind(one, ELSEWHERE)]).collect();
        for (namespace, _) in stations {
            // Else a host says only once a second that nobody listens.
            namespace.set("ipv4/icmp_ratelimit", "0").unwrap();
        }
        let mut tcp = Vec::new();
        for port in [CHANNEL, ELSEWHERE] {
            for (to, (namespace, address)) in stations.iter().enumerate() {
                let listener = namespace.run(|| TcpListener::bind((*address, port))).unwrap();
                for (from, (namespace, _)) in stations.iter().enumerate().take(to) {
                    let ours = namespace.run(|| TcpStream::connect((*address, port))).unwrap();
                    let (theirs, _) = listener.accept().unwrap();
                    for (from, to, stream) in [(from, to, ours), (to, from, theirs)] {
                        stream.set_nonblocking(true).unwrap();
                        stream.set_nodelay(true).unwrap();
                        tcp.push((port, from, to, stream));
                    }
                }
            }
        }
        Self { udp, tcp, round: 0, stations }
    }

    /// Everybody says something to everybody in every way; what of it is heard in this time, at the latest when it is
    /// all of this.
    fn speak(&mut self, wait: Duration, all: usize) -> Heard {
        self.round += 1;
        let word = self.round.to_le_bytes();
        for (_, _, _, stream) in &mut self.tcp {
            stream.write_all(&word).unwrap();
        }
        let refusals = self.speak_udp(word);
        let (start, mut heard) = (Instant::now(), Heard::new());
        while start.elapsed() < wait && heard.len() < all {
            self.hear_tcp(word, &mut heard);
            self.hear_udp(word, &mut heard);
            for (from, to, socket) in &refusals {
                // An error that was reported is reported once.
                if socket
                    .recv(&mut [0; 4])
                    .is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
                {
                    heard.insert((Flow::Refusal, *to, *from));
                }
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        heard
    }

    /// The sockets on which a refusal may come: who is refused, by whom.
    fn speak_udp(&self, word: [u8; 4]) -> Vec<(usize, usize, UdpSocket)> {
        const NOBODY: u16 = 9;
        let mut refusals = Vec::new();
        for (from, sockets) in self.udp.iter().enumerate() {
            for (to, (_, address)) in self.stations.iter().enumerate().filter(|(to, _)| *to != from)
            {
                for (socket, port) in sockets.iter().zip([CHANNEL, ELSEWHERE]) {
                    socket.send_to(&word, (*address, port)).unwrap();
                }
                let (namespace, own) = self.stations[from];
                let socket = namespace.run(|| UdpSocket::bind((own, 0))).unwrap();
                socket.set_nonblocking(true).unwrap();
                socket.connect((*address, NOBODY)).unwrap();
                socket.send(&word).unwrap();
                refusals.push((from, to, socket));
            }
        }
        refusals
    }

    fn hear_tcp(&mut self, word: [u8; 4], heard: &mut Heard) {
        for (port, to, from, stream) in &mut self.tcp {
            let mut bytes = [0; 4];
            // What an earlier cut had stopped comes first.
            while stream.read_exact(&mut bytes).is_ok() {
                if bytes == word {
                    heard.insert((Flow::Tcp(*port), *from, *to));
                }
            }
        }
    }

    fn hear_udp(&self, word: [u8; 4], heard: &mut Heard) {
        for (to, sockets) in self.udp.iter().enumerate() {
            for (socket, port) in sockets.iter().zip([CHANNEL, ELSEWHERE]) {
                let mut bytes = [0; 4];
                while let Ok((_, SocketAddr::V4(sender))) = socket.recv_from(&mut bytes) {
                    let from = self.stations.iter().position(|(_, one)| one == sender.ip());
                    if bytes == word {
                        heard.insert((Flow::Udp(port), from.unwrap(), to));
                    }
                }
            }
        }
    }
}

/// Everything that can be heard.
fn everything() -> Heard {
    let pairs = (0..STATIONS).flat_map(|from| (0..STATIONS).map(move |to| (from, to)));
    let kinds = [
        Flow::Tcp(CHANNEL),
        Flow::Tcp(ELSEWHERE),
        Flow::Udp(CHANNEL),
        Flow::Udp(ELSEWHERE),
        Flow::Refusal,
    ];
    pairs
        .filter(|(from, to)| from != to)
        .flat_map(|(from, to)| kinds.map(|flow| (flow, from, to)))
        .collect()
}

/// Whether a cut stops this, and so it must not be heard.
fn stops(cut: &Cut, (flow, from, to): (Flow, usize, usize)) -> bool {
    let is = |party: Party, station: usize| match party {
        Party::Host(index) => station == index,
        Party::Storage => station == STORAGE,
        Party::Client => station == CLIENT,
        // The guest is on the first host.
        Party::Guests(index) => station == GUEST && index == HOST,
    };
    // A guest is cut off from all but the host it is on, which is no way through the network.
    let anybody = |party: Party| matches!(party, Party::Guests(_));
    let way = |from: usize, to: usize| {
        (is(cut.from, from) || anybody(cut.to))
            && (is(cut.to, to) || anybody(cut.from))
            && !(from + to == HOST + GUEST && from.abs_diff(to) == GUEST)
    };
    match (cut.what, flow) {
        // Somebody who is not heard is not refused either.
        (Traffic::Everything, Flow::Refusal) => way(from, to) || way(to, from),
        (Traffic::Everything, _) => way(from, to),
        (Traffic::Tcp(port), Flow::Tcp(other)) => port == other && way(from, to),
        (Traffic::Udp(port), Flow::Udp(other)) => port == other && way(from, to),
        (Traffic::Icmp, Flow::Refusal) => way(from, to),
        _ => false,
    }
}

/// A guest on a host: a namespace behind the host's own bridge, with a guest's addresses.
fn guest_on(host: &Namespace) -> Namespace {
    let guest = Namespace::create().unwrap();
    host.ip("link add guest type veth peer name far").unwrap();
    host.ip("link set guest master br0 up").unwrap();
    host.ip(&format!("link set far netns {} name eth0", guest.path().display())).unwrap();
    guest.ip("link set eth0 address 52:54:00:77:01:00 up").unwrap();
    guest.ip(&format!("address add {}/{PREFIX_LENGTH} dev eth0", guest_address(0))).unwrap();
    guest
}

#[test]
fn every_cut_stops_what_it_says_and_nothing_else_and_is_mended_without_a_trace() {
    if !can_cut().unwrap() {
        return;
    }
    let network = Network::create().unwrap();
    let places = [Place::Host(0), Place::Host(1), Place::Storage];
    let hosts = places.map(|place| join(place, &network).unwrap());
    let guest = guest_on(&hosts[HOST]);
    let [host, other, storage] = &hosts;
    let stations = [
        (host, Place::Host(0).address()),
        (other, Place::Host(1).address()),
        (storage, Place::Storage.address()),
        (network.namespace(), CLIENT_ADDRESS),
        (&guest, guest_address(0)),
    ];
    let mut lan = Lan::new(&stations);
    let all = everything();
    assert_eq!(lan.speak(AGAIN, all.len()), all);

    let (one, two) = (Party::Host(HOST), Party::Host(OTHER));
    let mut cases: Vec<Vec<Cut>> = Vec::new();
    for what in [Traffic::Everything, Traffic::Tcp(CHANNEL), Traffic::Udp(CHANNEL), Traffic::Icmp] {
        cases.push(vec![Cut::one_way(one, two, what)]);
        cases.push(vec![Cut::one_way(two, one, what)]);
        cases.push(Cut::both_ways(one, two, what).to_vec());
    }
    cases.push(Cut::both_ways(one, Party::Storage, Traffic::Everything).to_vec());
    cases.push(vec![Cut::one_way(Party::Storage, two, Traffic::Everything)]);
    cases.push(vec![Cut::one_way(Party::Client, one, Traffic::Tcp(CHANNEL))]);
    cases.push(vec![Cut::one_way(one, Party::Client, Traffic::Everything)]);
    cases.push(Cut::client_network(HOST).to_vec());
    cases.push(Cut::client_network(OTHER).to_vec());
    let client = Cut::client_network(HOST).to_vec();
    let channel = Cut::both_ways(one, two, Traffic::Tcp(CHANNEL)).to_vec();
    cases.push([client, channel].concat());
    for cuts in cases {
        let made = network.cut(&cuts).unwrap();
        let expected: Heard =
            all.iter().copied().filter(|flow| !cuts.iter().any(|cut| stops(cut, *flow))).collect();
        let heard = lan.speak(SOON, all.len());
        let wrong: Vec<_> = heard.symmetric_difference(&expected).collect();
        assert!(wrong.is_empty(), "{cuts:?}: {wrong:?}");
        made.mend().unwrap();
        // The connections are still there, and nothing that was said over them is lost.
        let heard = lan.speak(AGAIN, all.len());
        let missing: Vec<_> = all.difference(&heard).collect();
        assert!(missing.is_empty(), "{cuts:?}, mended: {missing:?}");
    }
}

#[test]
fn cuts_lie_over_each_other_and_are_mended_one_by_one() {
    if !can_cut().unwrap() {
        return;
    }
    let network = Network::create().unwrap();
    let hosts = [0, 1].map(|index| join(Place::Host(index), &network).unwrap());
    let ends = hosts
        .each_ref()
        .map(|host| host.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, CHANNEL))).unwrap());
    ends[1].set_read_timeout(Some(SOON)).unwrap();
    let to = Place::Host(1).address();
    let heard = || {
        ends[0].send_to(b"word", (to, CHANNEL)).unwrap();
        ends[1].recv(&mut [0; 4]).is_ok()
    };
    assert!(heard());
    let [way, _] = Cut::both_ways(Party::Host(0), Party::Host(1), Traffic::Everything);
    let first = network.cut(&[way]).unwrap();
    let second = network.cut(&[Cut { what: Traffic::Udp(CHANNEL), ..way }]).unwrap();
    assert!(!heard());
    first.mend().unwrap();
    assert!(!heard());
    drop(second);
    assert!(heard());
    network.unplug(Place::Host(0)).unwrap();
    assert!(!heard());
    network.plug_in(Place::Host(0)).unwrap();
    assert!(heard());
}
