//! The network device with one pair of queues (virtio 1.2, section 5.1).
//!
//! Owns negotiation of offloads, transmit and receive. The control queue is in `net_control`.

use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_CTRL_GUEST_OFFLOADS, VIRTIO_NET_F_CTRL_VQ,
    VIRTIO_NET_F_GUEST_ANNOUNCE, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN,
    VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_HOST_ECN,
    VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS, VIRTIO_NET_S_ANNOUNCE, VIRTIO_NET_S_LINK_UP,
};

use super::{ConfigImage, Context, has};
use crate::GuestMemory;
use crate::effect::{Effect, NET_HEADER_BYTES, NET_PACKET_BYTES_MAX};
use crate::queue::{Malformed, QueueState, Walk};
use crate::segments::Chain;

#[path = "net_control.rs"]
mod control;

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
const CONTROL: usize = 2;

/// The sizes a packet can have, its header included. Any other is lost, as on any card.
const PACKET_BYTES: RangeInclusive<u64> = NET_HEADER_BYTES as u64..=NET_PACKET_BYTES_MAX as u64;

/// Below this many receive buffers the driver is asked to say when it adds one. Well above what the
/// largest packet needs, well below what Linux keeps posted: in steady state it never notifies.
const RECEIVE_LOW_WATER: u16 = 64;

/// Offload bits of the tun driver, for `TUNSETOFFLOAD`.
mod tun {
    pub(super) const CSUM: u32 = 0x01;
    pub(super) const TSO4: u32 = 0x02;
    pub(super) const TSO6: u32 = 0x04;
    pub(super) const TSO_ECN: u32 = 0x08;
}

/// What a network card is told when it is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetConfig {
    /// The Ethernet address.
    pub mac: [u8; 6],
    /// The largest frame payload in bytes that the network carries, if the guest is to be told.
    pub mtu: Option<u16>,
}

/// The network card.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetState {
    /// What it was told when it was built.
    pub config: NetConfig,
    /// Whether the guest was asked to announce itself and has not yet.
    pub announce: bool,
    /// Offloads that the guest can receive, as `TUN_F_*` bits.
    pub offloads: u32,
}

impl NetState {
    pub(crate) fn new(config: NetConfig) -> Self {
        Self { config, announce: false, offloads: 0 }
    }

    pub(crate) fn check(&self) -> Result<(), &'static str> {
        // Virtio 1.2, section 5.1.4.1: 68 is the least that IPv4 allows.
        if self.config.mtu.is_some_and(|mtu| mtu < 68) {
            return Err("an MTU must be at least 68 bytes");
        }
        if self.config.mac[0] & 1 != 0 {
            return Err("the MAC address is a multicast address");
        }
        if self.offloads & !(tun::CSUM | tun::TSO4 | tun::TSO6 | tun::TSO_ECN) != 0 {
            return Err("it has offloads that do not exist");
        }
        Ok(())
    }

    pub(crate) fn features(&self) -> u64 {
        const ALWAYS: [u32; 15] = [
            VIRTIO_NET_F_MAC,
            VIRTIO_NET_F_STATUS,
            VIRTIO_NET_F_MRG_RXBUF,
            VIRTIO_NET_F_CTRL_VQ,
            VIRTIO_NET_F_CTRL_GUEST_OFFLOADS,
            VIRTIO_NET_F_GUEST_ANNOUNCE,
            VIRTIO_NET_F_CSUM,
            VIRTIO_NET_F_HOST_TSO4,
            VIRTIO_NET_F_HOST_TSO6,
            VIRTIO_NET_F_HOST_ECN,
            VIRTIO_NET_F_GUEST_CSUM,
            VIRTIO_NET_F_GUEST_TSO4,
            VIRTIO_NET_F_GUEST_TSO6,
            VIRTIO_NET_F_GUEST_ECN,
            // Offered only with an MTU, see below; listed so that the set is all in one place.
            VIRTIO_NET_F_MTU,
        ];
        let all = ALWAYS.iter().fold(0, |bits, feature| bits | 1 << feature);
        if self.config.mtu.is_some() { all } else { all & !(1 << VIRTIO_NET_F_MTU) }
    }

    pub(crate) fn config_image(&self) -> ConfigImage {
        let mut status = VIRTIO_NET_S_LINK_UP;
        if self.announce {
            status |= VIRTIO_NET_S_ANNOUNCE;
        }
        ConfigImage::new(12)
            .put(0, &self.config.mac)
            .put(6, &(status as u16).to_le_bytes())
            .put(8, &1_u16.to_le_bytes())
            .put(10, &self.config.mtu.unwrap_or(0).to_le_bytes())
    }

    pub(crate) fn activate(&mut self, context: &mut Context<'_>) {
        self.set_offloads(context, context.features);
    }

    /// Takes over the receive offloads among `features`, given as feature bits.
    fn set_offloads(&mut self, context: &mut Context<'_>, features: u64) {
        self.offloads = offloads(features);
        context
            .effects
            .push(Effect::NetOffloads { device: context.device, offloads: self.offloads });
    }

    pub(crate) fn reset(&mut self, device: u16, effects: &mut Vec<Effect>) {
        self.announce = false;
        if self.offloads != 0 {
            self.offloads = 0;
            effects.push(Effect::NetOffloads { device, offloads: 0 });
        }
    }

    /// Asks the guest to announce itself; false if it can't.
    pub(crate) fn announce(&mut self, features: u64) -> bool {
        let can = has(features, VIRTIO_NET_F_GUEST_ANNOUNCE);
        self.announce |= can;
        can
    }

    pub(crate) fn kick(
        &mut self,
        queue: usize,
        context: &mut Context<'_>,
    ) -> Result<(), Malformed> {
        match queue {
            TRANSMIT => transmit(context),
            CONTROL => self.control(context),
            // New receive buffers: the machine asks `can_receive` at every exit anyway.
            _ => Ok(()),
        }
    }

    /// Whether there is any receive buffer. A broken queue takes a packet too, and with it the
    /// device learns that it is broken.
    pub(crate) fn can_receive(&self, memory: &GuestMemory, queues: &[QueueState]) -> bool {
        let Some(queue) = queues.get(RECEIVE).filter(|queue| queue.ready) else {
            return true;
        };
        queue.walk(memory).and_then(|walk| walk.remaining()) != Ok(0)
    }

    /// Whether [`receive`](Self::receive) would take a packet of `length` bytes.
    pub(crate) fn can_receive_packet(
        &self,
        memory: &GuestMemory,
        queues: &[QueueState],
        features: u64,
        length: usize,
    ) -> bool {
        let Some(queue) = queues.get(RECEIVE).filter(|queue| queue.ready) else {
            return true;
        };
        if !PACKET_BYTES.contains(&(length as u64)) {
            return true;
        }
        let gathered = queue.walk(memory).and_then(|mut walk| {
            gather(&mut walk, has(features, VIRTIO_NET_F_MRG_RXBUF), length as u64)
        });
        !matches!(gathered, Ok(Gathered::TooFew))
    }

    /// Copies a packet into the guest's buffers; false, with nothing changed, if they are too few.
    pub(crate) fn receive(
        &mut self,
        context: &mut Context<'_>,
        packet: &[u8],
    ) -> Result<bool, Malformed> {
        let Some((header, _)) = packet.split_first_chunk::<NET_HEADER_BYTES>() else {
            return Ok(true);
        };
        if !PACKET_BYTES.contains(&(packet.len() as u64)) {
            return Ok(true);
        }
        let Some(mut walk) = context.walk(RECEIVE)? else {
            return Ok(true);
        };
        let mergeable = context.negotiated(VIRTIO_NET_F_MRG_RXBUF);
        let chains = match gather(&mut walk, mergeable, packet.len() as u64)? {
            Gathered::Enough(chains) => chains,
            Gathered::TooFew => return Ok(false),
            Gathered::Never => return Ok(true),
        };
        deliver(context.memory, &mut walk, &chains, header, packet)?;
        let low_water = RECEIVE_LOW_WATER.min(walk.size() / 2);
        context.finish(RECEIVE, walk, low_water)?;
        Ok(true)
    }
}

/// What became of the search for receive buffers.
enum Gathered {
    /// These hold the packet.
    Enough(Vec<Chain>),
    /// The driver has to add buffers first.
    TooFew,
    /// No number of buffers will do: without merging, the packet has to fit into one.
    Never,
}

/// Takes as many chains as `length` bytes need.
fn gather(walk: &mut Walk<'_>, mergeable: bool, length: u64) -> Result<Gathered, Malformed> {
    let mut chains = Vec::new();
    let mut room = 0_u64;
    while room < length {
        if chains.len() >= usize::from(walk.size()) {
            // The driver has filled its ring, and all of it can't hold the packet.
            return Ok(Gathered::Never);
        }
        let Some(chain) = walk.pop()? else {
            return Ok(Gathered::TooFew);
        };
        let bytes = chain.writable_bytes();
        // The header has to lie in the first buffer (virtio 1.2, section 5.1.6.3.1).
        if bytes < NET_HEADER_BYTES as u64 || !chain.readable.is_empty() {
            return Err(Malformed);
        }
        room += bytes;
        chains.push(chain);
        if !mergeable && room < length {
            return Ok(Gathered::Never);
        }
    }
    Ok(Gathered::Enough(chains))
}

/// Writes a packet to chains that have room for it and returns them.
fn deliver(
    memory: &GuestMemory,
    walk: &mut Walk<'_>,
    chains: &[Chain],
    header: &[u8; NET_HEADER_BYTES],
    packet: &[u8],
) -> Result<(), Malformed> {
    let mut header = *header;
    // The number of chains used is the device's to fill in, whatever came with the packet.
    header[10..12].copy_from_slice(&(chains.len() as u16).to_le_bytes());
    let mut rest = packet;
    for (number, chain) in chains.iter().enumerate() {
        let length = chain.writable_bytes().min(rest.len() as u64) as usize;
        let (now, later) = rest.split_at(length);
        if number == 0 {
            chain.write(memory, 0, &header)?;
            let frame = now.get(NET_HEADER_BYTES..).unwrap_or_default();
            chain.write(memory, NET_HEADER_BYTES as u64, frame)?;
        } else {
            chain.write(memory, 0, now)?;
        }
        walk.push(chain.head, length as u32)?;
        rest = later;
    }
    Ok(())
}

/// Copies out and returns every packet the driver made available.
fn transmit(context: &mut Context<'_>) -> Result<(), Malformed> {
    let Some(mut walk) = context.walk(TRANSMIT)? else {
        return Ok(());
    };
    for _ in 0..walk.size() {
        let Some(chain) = walk.pop()? else {
            break;
        };
        let length = chain.readable_bytes();
        if PACKET_BYTES.contains(&length) {
            let mut bytes = vec![0; length as usize];
            chain.read(context.memory, 0, &mut bytes)?;
            context.effects.push(Effect::Packet { device: context.device, bytes });
        }
        walk.push(chain.head, 0)?;
    }
    context.finish(TRANSMIT, walk, 0)
}

/// The tap's offloads for what the guest can receive. Segmentation needs checksums on both sides.
fn offloads(features: u64) -> u32 {
    if !has(features, VIRTIO_NET_F_GUEST_CSUM) {
        return 0;
    }
    let bits = [(VIRTIO_NET_F_GUEST_TSO4, tun::TSO4), (VIRTIO_NET_F_GUEST_TSO6, tun::TSO6)];
    let mut offloads = bits
        .iter()
        .filter(|(feature, _)| has(features, *feature))
        .fold(tun::CSUM, |offloads, (_, bit)| offloads | bit);
    // The tun driver refuses ECN without any segmentation.
    if offloads != tun::CSUM && has(features, VIRTIO_NET_F_GUEST_ECN) {
        offloads |= tun::TSO_ECN;
    }
    offloads
}
