//! A guest driver in miniature: finds its device through PCI capabilities, negotiates, and works
//! with rings that it lays out in guest memory itself.
//!
//! It shares no code with the device, so that both can't be wrong in the same way.

use virtio_devices::{BAR_BYTES, Effect, GuestMemory, PciSlot, VirtioPci};
use vm_memory::{Bytes, GuestAddress};

pub const MEMORY_BYTES: usize = 8 << 20;
pub const SLOT: PciSlot = PciSlot { number: 3, bar_address: 0xe000_0000 };
pub const VERSION_1: u64 = 1 << 32;
pub const EVENT_INDEX: u64 = 1 << 29;
pub const INDIRECT: u64 = 1 << 28;

const DESCRIPTOR_NEXT: u16 = 1;
const DESCRIPTOR_WRITE: u16 = 2;
const DESCRIPTOR_INDIRECT: u16 = 4;

/// A buffer of a chain: address, length, and whether the device writes it.
pub type Buffer = (u64, u32, bool);

/// Where the driver put one queue.
#[derive(Clone, Copy)]
pub struct Ring {
    pub size: u16,
    pub descriptors: u64,
    pub available: u64,
    pub used: u64,
    next_descriptor: u16,
    next_available: u16,
    next_used: u16,
}

pub struct Driver {
    pub device: VirtioPci,
    pub memory: GuestMemory,
    /// Effects that no test has taken yet.
    pub effects: Vec<Effect>,
    pub rings: Vec<Ring>,
    pub areas: Areas,
    heap: u64,
}

/// Offsets in the BAR, as the capabilities name them.
#[derive(Clone, Copy, Default, Debug)]
pub struct Areas {
    pub common: u64,
    pub isr: u64,
    pub device: Option<u64>,
    pub notify: u64,
    pub notify_multiplier: u64,
    pub msix_table: u64,
    pub msix_pending: u64,
    pub msix_control: u16,
    pub window: u16,
}

pub fn guest_memory() -> GuestMemory {
    GuestMemory::from_ranges(&[(GuestAddress(0), MEMORY_BYTES)]).unwrap()
}

impl Driver {
    /// A driver that has found its device and touched nothing else.
    pub fn new(mut device: VirtioPci) -> Self {
        let areas = find_areas(&mut device);
        let heap = 1 << 20;
        Self { device, memory: guest_memory(), effects: Vec::new(), rings: Vec::new(), areas, heap }
    }

    /// A driver that runs its device with the features in `wanted` that it offers.
    pub fn started(device: VirtioPci, wanted: u64, queue_size: u16) -> Self {
        let mut driver = Self::new(device);
        driver.enable_interrupts();
        driver.negotiate(wanted);
        driver.set_up_queues(queue_size);
        driver.set_status(15);
        assert_eq!(driver.status(), 15);
        driver
    }

    pub fn config_write(&mut self, offset: u16, data: &[u8]) {
        self.device.config_write(&self.memory, offset, data, &mut self.effects);
    }

    pub fn read<const N: usize>(&mut self, offset: u64) -> [u8; N] {
        let mut data = [0xaa; N];
        self.device.bar_read(offset, &mut data);
        data
    }

    pub fn write(&mut self, offset: u64, data: &[u8]) {
        self.device.bar_write(&self.memory, offset, data, &mut self.effects);
    }

    pub fn status(&mut self) -> u8 {
        self.read::<1>(self.areas.common + 0x14)[0]
    }

    pub fn set_status(&mut self, status: u8) {
        self.write(self.areas.common + 0x14, &[status]);
    }

    /// Memory decoding and bus master on, MSI-X on, vector `n` with data `0x40 + n`.
    pub fn enable_interrupts(&mut self) {
        self.config_write(4, &6_u16.to_le_bytes());
        for vector in 0..self.device.state.msix.entries.len() as u64 {
            let entry = self.areas.msix_table + 16 * vector;
            self.write(entry, &0xfee0_0000_u32.to_le_bytes());
            self.write(entry + 4, &0_u32.to_le_bytes());
            self.write(entry + 8, &(0x40 + vector as u32).to_le_bytes());
            self.write(entry + 12, &0_u32.to_le_bytes());
        }
        self.config_write(self.areas.msix_control, &0x8000_u16.to_le_bytes());
    }

    /// From reset to FEATURES_OK. Returns what was agreed on.
    pub fn negotiate(&mut self, wanted: u64) -> u64 {
        let common = self.areas.common;
        self.set_status(0);
        self.set_status(1);
        self.set_status(3);
        let mut offered = 0;
        for half in 0..2_u32 {
            self.write(common, &half.to_le_bytes());
            let bits = u32::from_le_bytes(self.read(common + 4));
            offered |= u64::from(bits) << (32 * half);
        }
        let agreed = offered & wanted;
        for half in 0..2_u32 {
            self.write(common + 8, &half.to_le_bytes());
            self.write(common + 12, &((agreed >> (32 * half)) as u32).to_le_bytes());
        }
        self.set_status(11);
        agreed
    }

    /// Lays out and enables every queue; queue `n` gets vector `n + 1`, configuration vector 0.
    pub fn set_up_queues(&mut self, size: u16) {
        let common = self.areas.common;
        self.rings.clear();
        self.write(common + 0x10, &0_u16.to_le_bytes());
        let count = u16::from_le_bytes(self.read(common + 0x12));
        for queue in 0..count {
            self.write(common + 0x16, &queue.to_le_bytes());
            let size = size.min(u16::from_le_bytes(self.read(common + 0x18)));
            let ring = Ring::new(0x10000 * u64::from(queue + 1), size);
            self.memory.write_slice(&[0; 0x8000], GuestAddress(ring.descriptors)).unwrap();
            self.write(common + 0x18, &size.to_le_bytes());
            self.write(common + 0x1a, &(queue + 1).to_le_bytes());
            self.write(common + 0x20, &(ring.descriptors as u32).to_le_bytes());
            self.write(common + 0x24, &0_u32.to_le_bytes());
            self.write(common + 0x28, &ring.available.to_le_bytes());
            self.write(common + 0x30, &ring.used.to_le_bytes());
            self.write(common + 0x1c, &1_u16.to_le_bytes());
            self.rings.push(ring);
        }
    }

    /// Room for `length` bytes that nothing else uses.
    pub fn allocate(&mut self, length: usize) -> u64 {
        let address = self.heap;
        self.heap += (length as u64).next_multiple_of(16);
        assert!(self.heap <= MEMORY_BYTES as u64);
        address
    }

    /// Room that holds `bytes`.
    pub fn place(&mut self, bytes: &[u8]) -> u64 {
        let address = self.allocate(bytes.len());
        self.memory.write_slice(bytes, GuestAddress(address)).unwrap();
        address
    }

    pub fn peek(&self, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }

    /// Makes a chain available without a notification. Returns its head.
    pub fn add(&mut self, queue: usize, buffers: &[Buffer]) -> u16 {
        let ring = &mut self.rings[queue];
        let head = ring.next_descriptor % ring.size;
        for (number, buffer) in buffers.iter().enumerate() {
            let index = ring.next_descriptor % ring.size;
            ring.next_descriptor = (index + 1) % ring.size;
            let more = number + 1 < buffers.len();
            let address = ring.descriptors + 16 * u64::from(index);
            write_descriptor(&self.memory, address, *buffer, more, ring.next_descriptor);
        }
        ring.publish(&self.memory, head);
        head
    }

    /// The same with an indirect table.
    pub fn add_indirect(&mut self, queue: usize, buffers: &[Buffer]) -> u16 {
        let table = self.allocate(16 * buffers.len());
        for (number, buffer) in buffers.iter().enumerate() {
            let next = number as u16 + 1;
            let address = table + 16 * number as u64;
            let more = number + 1 < buffers.len();
            write_descriptor(&self.memory, address, *buffer, more, next);
        }
        let ring = &mut self.rings[queue];
        let head = ring.next_descriptor % ring.size;
        ring.next_descriptor = (head + 1) % ring.size;
        let address = ring.descriptors + 16 * u64::from(head);
        write_descriptor(
            &self.memory,
            address,
            (table, 16 * buffers.len() as u32, false),
            false,
            0,
        );
        let flags = DESCRIPTOR_INDIRECT.to_le();
        self.memory.write_obj(flags, GuestAddress(address + 12)).unwrap();
        ring.publish(&self.memory, head);
        head
    }

    pub fn kick(&mut self, queue: usize) {
        let offset = self.areas.notify + self.areas.notify_multiplier * queue as u64;
        self.write(offset, &(queue as u16).to_le_bytes());
    }

    /// Chains that came back since the last call: head and length.
    pub fn used(&mut self, queue: usize) -> Vec<(u32, u32)> {
        let ring = &mut self.rings[queue];
        let index = load(&self.memory, ring.used + 2);
        let mut chains = Vec::new();
        while ring.next_used != index {
            let place = ring.used + 4 + 8 * u64::from(ring.next_used % ring.size);
            let head: u32 = self.memory.read_obj(GuestAddress(place)).unwrap();
            let length: u32 = self.memory.read_obj(GuestAddress(place + 4)).unwrap();
            chains.push((head, length));
            ring.next_used = ring.next_used.wrapping_add(1);
        }
        chains
    }

    /// The position at which the driver wants its next interrupt, with event indices.
    pub fn set_used_event(&mut self, queue: usize, position: u16) {
        let ring = self.rings[queue];
        let place = ring.available + 4 + 2 * u64::from(ring.size);
        self.memory.write_obj(position, GuestAddress(place)).unwrap();
    }

    /// The position at which the device wants its next notification, with event indices.
    pub fn available_event(&self, queue: usize) -> u16 {
        let ring = self.rings[queue];
        load(&self.memory, ring.used + 4 + 8 * u64::from(ring.size))
    }

    pub fn take_effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    /// The vectors that fired since the last call; every other effect is dropped.
    pub fn interrupts(&mut self) -> Vec<u32> {
        let vector = |effect| match effect {
            Effect::Msi { address: 0xfee0_0000, data } => Some(data - 0x40),
            _ => None,
        };
        self.take_effects().into_iter().filter_map(vector).collect()
    }

    pub fn receive(&mut self, packet: &[u8]) -> bool {
        self.device.receive(&self.memory, packet, &mut self.effects)
    }
}

impl Ring {
    fn new(descriptors: u64, size: u16) -> Self {
        Self {
            size,
            descriptors,
            available: descriptors + 0x2000,
            used: descriptors + 0x4000,
            next_descriptor: 0,
            next_available: 0,
            next_used: 0,
        }
    }

    pub fn publish(&mut self, memory: &GuestMemory, head: u16) {
        let place = self.available + 4 + 2 * u64::from(self.next_available % self.size);
        memory.write_obj(head, GuestAddress(place)).unwrap();
        self.next_available = self.next_available.wrapping_add(1);
        memory.write_obj(self.next_available, GuestAddress(self.available + 2)).unwrap();
    }
}

fn load(memory: &GuestMemory, address: u64) -> u16 {
    memory.read_obj(GuestAddress(address)).unwrap()
}

fn write_descriptor(memory: &GuestMemory, address: u64, buffer: Buffer, more: bool, next: u16) {
    let (target, length, writable) = buffer;
    let mut flags = if more { DESCRIPTOR_NEXT } else { 0 };
    if writable {
        flags |= DESCRIPTOR_WRITE;
    }
    memory.write_obj(target, GuestAddress(address)).unwrap();
    memory.write_obj(length, GuestAddress(address + 8)).unwrap();
    memory.write_obj(flags, GuestAddress(address + 12)).unwrap();
    memory.write_obj(next, GuestAddress(address + 14)).unwrap();
}

/// Walks the capability list as a driver does.
fn find_areas(device: &mut VirtioPci) -> Areas {
    let mut config = [0; 256];
    device.config_read(0, &mut config);
    let long = |at: usize| u32::from_le_bytes(config[at..at + 4].try_into().unwrap());
    let mut areas = Areas::default();
    let mut at = usize::from(config[0x34]);
    let mut seen = 0;
    while at != 0 {
        seen += 1;
        assert!(seen < 16, "the capability list is a circle");
        let offset = u64::from(long(at + 8));
        match (config[at], config[at + 3]) {
            (0x09, 5) => areas.window = at as u16,
            (0x09, kind) => {
                let bytes = u64::from(long(at + 12));
                assert!(bytes > 0 && offset + bytes <= u64::from(BAR_BYTES));
                match kind {
                    1 => areas.common = offset,
                    2 => {
                        areas.notify = offset;
                        areas.notify_multiplier = u64::from(long(at + 16));
                    }
                    3 => areas.isr = offset,
                    4 => areas.device = Some(offset),
                    _ => panic!("unknown kind of virtio capability {kind}"),
                }
            }
            (0x11, _) => {
                areas.msix_control = at as u16 + 2;
                areas.msix_table = u64::from(long(at + 4));
                areas.msix_pending = u64::from(long(at + 8));
            }
            (id, _) => panic!("unknown capability {id:#x}"),
        }
        at = usize::from(config[at + 1]);
    }
    areas
}
