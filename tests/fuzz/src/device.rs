//! The four virtio devices, and what a guest and the world can do to one of them.
//!
//! Shared by the targets that have devices: those are new or in a state from elsewhere.

use arbitrary::Arbitrary;
use virtio_devices::{
    BlockConfig, BlockStatus, DeviceModel, Effect, GuestMemory, NetConfig, PciSlot, VirtioPci,
};
use vm_memory::{Bytes, GuestAddress};

/// Bytes of guest memory: as few as hold rings and buffers, since each run makes some anew.
pub(crate) const MEMORY_BYTES: usize = 128 << 10;
/// Where rings and buffers are put for the fuzzer, which may move them.
const RINGS: u64 = 0x1000;
const RING_BYTES: u64 = 0x2000;
const BUFFERS: u64 = 0x8000;
/// More than any model asks for in one step: see `virtio-devices/tests/devices/arbitrary.rs`.
const EFFECTS_MAX: usize = 256 + 64 + 16;

/// What happens to a device.
#[derive(Arbitrary, Clone, Debug)]
pub(crate) enum Step {
    /// Any register of the BAR.
    BarRead {
        offset: u16,
        length: u8,
    },
    BarWrite {
        offset: u16,
        data: [u8; 4],
        length: u8,
    },
    /// The registers of the transport, which are what matters most.
    Common {
        offset: u8,
        data: [u8; 4],
        length: u8,
    },
    ConfigRead {
        offset: u16,
        length: u8,
    },
    ConfigWrite {
        offset: u8,
        data: [u8; 4],
        length: u8,
    },
    /// Reset, negotiate, lay out and enable all queues, as a driver does.
    Start {
        features: u64,
        size: u8,
    },
    /// Descriptors of one chain, made available and notified.
    Chain {
        queue: u8,
        segments: Vec<Segment>,
    },
    /// Any bytes anywhere in memory.
    Memory {
        address: u32,
        data: Vec<u8>,
    },
    /// One descriptor as the guest likes it.
    Descriptor {
        queue: u8,
        index: u8,
        address: u32,
        length: u32,
        flags: u16,
        next: u16,
    },
    /// The available ring's index, without anything in it.
    Available {
        queue: u8,
        index: u16,
    },
    Notify {
        queue: u8,
    },
    Packet {
        data: Vec<u8>,
        more: u16,
    },
    Complete {
        number: u8,
        status: u8,
        length: Option<u16>,
    },
    Console {
        data: Vec<u8>,
    },
    Entropy {
        length: u16,
    },
    Announce,
    PowerCycle,
    SaveAndRestore,
}

/// A buffer of a chain.
#[derive(Arbitrary, Clone, Debug)]
pub(crate) struct Segment {
    /// What lies there.
    head: [u8; 16],
    length: u16,
    writable: bool,
}

/// Memory for devices.
pub(crate) fn memory() -> GuestMemory {
    GuestMemory::from_ranges(&[(GuestAddress(0), MEMORY_BYTES)]).expect("some memory")
}

/// A device of each kind.
pub(crate) fn devices() -> Vec<VirtioPci> {
    let slot = |number| PciSlot { number, bar_address: 0xc000_0000 + u32::from(number) * 0x1_0000 };
    let net = NetConfig { mac: [2, 0, 0, 0, 0, 1], mtu: Some(1500) };
    let block =
        BlockConfig { capacity_sectors: 64, read_only: false, serial: String::from("a disk") };
    let made = [
        VirtioPci::new_net(0, net, slot(1)),
        VirtioPci::new_block(1, block, slot(2)),
        VirtioPci::new_console(2, slot(3)),
        VirtioPci::new_rng(3, slot(4)),
    ];
    made.into_iter().map(|device| device.expect("a device that is possible")).collect()
}

/// Takes a step; returns what the device wants of the world.
pub(crate) fn take(device: &mut VirtioPci, memory: &GuestMemory, step: &Step) -> Vec<Effect> {
    let mut effects = Vec::new();
    guest_side(device, memory, step, &mut effects);
    world_side(device, memory, step, &mut effects);
    let bound = match step {
        // Many accesses in one.
        Step::Start { .. } => usize::MAX,
        _ => EFFECTS_MAX,
    };
    assert!(effects.len() <= bound, "{} effects of one step", effects.len());
    effects
}

fn guest_side(
    device: &mut VirtioPci,
    memory: &GuestMemory,
    step: &Step,
    effects: &mut Vec<Effect>,
) {
    match step {
        Step::BarRead { offset, length } => {
            device.bar_read((*offset).into(), &mut [0; 255][..usize::from(*length)]);
        }
        Step::BarWrite { offset, data, length } => {
            device.bar_write(memory, (*offset).into(), part(data, *length), effects);
        }
        Step::Common { offset, data, length } => {
            let offset = u64::from(*offset) & 0x3f;
            device.bar_write(memory, offset, part(data, *length), effects);
        }
        Step::ConfigRead { offset, length } => {
            device.config_read(*offset, &mut [0; 255][..usize::from(*length)]);
        }
        Step::ConfigWrite { offset, data, length } => {
            device.config_write(memory, (*offset).into(), part(data, *length), effects);
        }
        Step::Start { features, size } => start(device, memory, *features, *size, effects),
        Step::Chain { queue, segments } => chain(device, memory, *queue, segments, effects),
        Step::Memory { address, data } => write(memory, (*address).into(), data),
        Step::Descriptor { queue, index, address, length, flags, next } => {
            let place = ring(*queue) + 16 * u64::from(*index);
            descriptor(memory, place, (*address).into(), *length, *flags, *next);
        }
        Step::Available { queue, index } => {
            write(memory, available(*queue) + 2, &index.to_le_bytes());
        }
        Step::Notify { queue } => notify(device, memory, *queue, effects),
        Step::Packet { .. }
        | Step::Complete { .. }
        | Step::Console { .. }
        | Step::Entropy { .. }
        | Step::Announce
        | Step::PowerCycle
        | Step::SaveAndRestore => {}
    }
}

fn world_side(
    device: &mut VirtioPci,
    memory: &GuestMemory,
    step: &Step,
    effects: &mut Vec<Effect>,
) {
    match step {
        Step::Packet { data, more } => {
            let mut packet = data.clone();
            packet.resize(data.len() + usize::from(*more), 0x5a);
            let can = device.can_receive_packet(memory, packet.len());
            let before = device.clone();
            let taken = device.receive(memory, &packet, effects);
            assert_eq!(can, taken, "the answer before and what happened differ");
            assert!(taken || *device == before, "a refused packet left a trace");
        }
        Step::Complete { number, status, length } => {
            complete(device, memory, *number, *status, *length, effects);
        }
        Step::Console { data } => {
            let taken = device.console_input(memory, data, effects);
            assert!(taken <= data.len());
        }
        Step::Entropy { length } => {
            device.entropy(memory, &vec![7; usize::from(*length)], effects);
        }
        Step::Announce => device.announce(effects),
        Step::PowerCycle => device.power_cycle(effects),
        Step::SaveAndRestore => {
            let bytes = postcard::to_stdvec(&device.state).expect("a state fits in memory");
            let state = postcard::from_bytes(&bytes).expect("what was written can be read");
            let restored = VirtioPci::restore(state).expect("a state that was reached");
            assert_eq!(restored, *device);
        }
        Step::BarRead { .. }
        | Step::BarWrite { .. }
        | Step::Common { .. }
        | Step::ConfigRead { .. }
        | Step::ConfigWrite { .. }
        | Step::Start { .. }
        | Step::Chain { .. }
        | Step::Memory { .. }
        | Step::Descriptor { .. }
        | Step::Available { .. }
        | Step::Notify { .. } => {}
    }
}

/// The world answers a disk request, honestly or with any number of bytes.
fn complete(
    device: &mut VirtioPci,
    memory: &GuestMemory,
    number: u8,
    status: u8,
    length: Option<u16>,
    effects: &mut Vec<Effect>,
) {
    let status = match status % 3 {
        0 => BlockStatus::Ok,
        1 => BlockStatus::IoError,
        _ => BlockStatus::Unsupported,
    };
    let open = device.open_requests();
    let token = open.get(usize::from(number)).copied().unwrap_or(number.into());
    let asked = device.open_request(token).map_or(0, |kind| kind.transfer_bytes());
    let length = length.map_or(asked, u64::from);
    device.complete(memory, token, status, &vec![3; length as usize], effects);
}

fn part(data: &[u8; 4], length: u8) -> &[u8] {
    &data[..usize::from(length % 5)]
}

fn ring(queue: u8) -> u64 {
    RINGS + u64::from(queue % 3) * RING_BYTES
}

fn available(queue: u8) -> u64 {
    ring(queue) + 0x1000
}

/// A write that leaves memory half-way is one as well.
fn write(memory: &GuestMemory, address: u64, data: &[u8]) {
    let _ = memory.write(data, GuestAddress(address));
}

fn descriptor(memory: &GuestMemory, place: u64, address: u64, length: u32, flags: u16, next: u16) {
    write(memory, place, &address.to_le_bytes());
    write(memory, place + 8, &length.to_le_bytes());
    write(memory, place + 12, &flags.to_le_bytes());
    write(memory, place + 14, &next.to_le_bytes());
}

fn start(
    device: &mut VirtioPci,
    memory: &GuestMemory,
    features: u64,
    size: u8,
    effects: &mut Vec<Effect>,
) {
    let queues = device.state.queues.len() as u8;
    let mut set = |offset, data: &[u8]| device.bar_write(memory, offset, data, effects);
    for status in [0_u8, 1, 3] {
        set(0x14, &[status]);
    }
    // What a driver accepts beyond what is offered would only keep it from starting.
    let accepted = features | 1 << 32;
    for half in 0..2_u32 {
        set(8, &half.to_le_bytes());
        set(12, &((accepted >> (32 * half)) as u32).to_le_bytes());
    }
    set(0x14, &[11]);
    for queue in 0..queues {
        set(0x16, &u16::from(queue).to_le_bytes());
        set(0x18, &(1_u16 << (size % 9)).to_le_bytes());
        set(0x1a, &u16::from(queue + 1).to_le_bytes());
        let places = [(0x20, ring(queue)), (0x28, available(queue)), (0x30, ring(queue) + 0x1800)];
        for (register, place) in places {
            set(register, &(place as u32).to_le_bytes());
        }
        set(0x1c, &1_u16.to_le_bytes());
        write(memory, available(queue), &[0; 4]);
    }
    set(0x14, &[15]);
}

fn chain(
    device: &mut VirtioPci,
    memory: &GuestMemory,
    queue: u8,
    segments: &[Segment],
    effects: &mut Vec<Effect>,
) {
    let Some(state) = device.state.queues.get(usize::from(queue % 3)) else { return };
    let (size, mut place) = (state.size.max(1), BUFFERS);
    let segments = &segments[..segments.len().min(size.into())];
    for (index, segment) in (0_u16..).zip(segments) {
        write(memory, place, &segment.head);
        let more = usize::from(index) + 1 < segments.len();
        let flags = u16::from(more) | u16::from(segment.writable) << 1;
        let at = ring(queue) + 16 * u64::from(index);
        descriptor(memory, at, place, segment.length.into(), flags, index + 1);
        place += u64::from(segment.length);
    }
    let mut index = [0; 2];
    let _ = memory.read_slice(&mut index, GuestAddress(available(queue) + 2));
    let index = u16::from_le_bytes(index);
    write(memory, available(queue) + 4 + 2 * u64::from(index % size), &0_u16.to_le_bytes());
    write(memory, available(queue) + 2, &index.wrapping_add(1).to_le_bytes());
    notify(device, memory, queue, effects);
}

fn notify(device: &mut VirtioPci, memory: &GuestMemory, queue: u8, effects: &mut Vec<Effect>) {
    let queue = u16::from(queue % 4);
    device.bar_write(memory, 0x3000 + 4 * u64::from(queue), &queue.to_le_bytes(), effects);
}

/// Whether a model's own counters stay what they should be.
pub(crate) fn check(device: &VirtioPci) {
    match &device.state.model {
        DeviceModel::Block(block) => assert!(block.open.len() <= 128),
        DeviceModel::Rng(rng) => assert!(rng.pending.len() <= 256),
        DeviceModel::Net(_) | DeviceModel::Console(_) => {}
    }
}
