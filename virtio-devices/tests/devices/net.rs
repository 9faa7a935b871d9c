//! The network card.

use crate::driver::{Driver, EVENT_INDEX, INDIRECT, SLOT, VERSION_1};
use virtio_devices::{Effect, NetConfig, VirtioPci};
use vm_memory::bitmap::Bitmap;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion, MmapRegion};

const MERGEABLE: u64 = 1 << 15;
const CONTROL: u64 = 1 << 17;
const CONTROL_OFFLOADS: u64 = 1 << 2;
const ANNOUNCE: u64 = 1 << 21;
const GUEST_CSUM: u64 = 1 << 1;
const GUEST_TSO4: u64 = 1 << 7;
const GUEST_ECN: u64 = 1 << 9;

fn started(features: u64, queue_size: u16) -> Driver {
    let config = NetConfig { mac: [2, 0, 0, 0, 0, 9], mtu: Some(1400) };
    let device = VirtioPci::new_net(1, config, SLOT).unwrap();
    let mut driver = Driver::started(device, VERSION_1 | features, queue_size);
    driver.take_effects();
    driver
}

/// A packet with its header whose bytes tell their place.
fn packet(length: usize) -> Vec<u8> {
    (0..length).map(|place| (place * 7 + place / 251) as u8).collect()
}

/// The packet as the guest finds it: the device fills in the number of buffers.
fn arrived(packet: &[u8], buffers: u16) -> Vec<u8> {
    let mut packet = packet.to_vec();
    packet[10..12].copy_from_slice(&buffers.to_le_bytes());
    packet
}

#[test]
fn the_configuration_shows_address_link_and_mtu() {
    let mut driver = started(0, 8);
    let device = driver.areas.device.unwrap();
    assert_eq!(driver.read::<12>(device), [2, 0, 0, 0, 0, 9, 1, 0, 1, 0, 0x78, 5]);
}

#[test]
fn packets_leave_whole_in_order_and_with_one_interrupt() {
    let mut driver = started(INDIRECT, 16);
    let packets = [packet(60), packet(1514), packet(12 + 65550)];
    for (number, packet) in packets.iter().enumerate() {
        let address = driver.place(packet);
        let (head, tail) = (10 + number as u64, packet.len() as u32 - 10 - number as u32);
        let buffers = [(address, head as u32, false), (address + head, tail, false)];
        if number == 1 {
            driver.add_indirect(1, &buffers);
        } else {
            driver.add(1, &buffers);
        }
    }
    driver.kick(1);
    let mut effects = driver.take_effects();
    assert_eq!(effects.pop(), Some(Effect::Msi { address: 0xfee0_0000, data: 0x42 }));
    let expected = packets.map(|bytes| Effect::Packet { device: 1, bytes });
    assert_eq!(effects, expected);
    assert_eq!(driver.used(1).iter().map(|(_, length)| *length).collect::<Vec<_>>(), [0, 0, 0]);
}

#[test]
fn a_packet_is_copied_out_at_the_kick() {
    let mut driver = started(0, 8);
    let address = driver.place(&packet(100));
    driver.add(1, &[(address, 100, false)]);
    driver.kick(1);
    driver.memory.clone_from(&crate::driver::guest_memory());
    assert_eq!(driver.take_effects()[0], Effect::Packet { device: 1, bytes: packet(100) });
}

#[test]
fn packets_of_impossible_size_are_lost() {
    let mut driver = started(0, 8);
    let address = driver.allocate(70_000);
    for length in [0, 11, 12 + 65551] {
        driver.add(1, &[(address, length, false)]);
    }
    driver.kick(1);
    assert_eq!(driver.interrupts(), [2]);
    assert_eq!(driver.used(1).len(), 3);
    assert_eq!(driver.status(), 15);
}

#[test]
fn a_packet_from_nowhere_breaks_the_device_until_reset() {
    let mut driver = started(0, 8);
    driver.add(1, &[(1 << 40, 100, false)]);
    driver.kick(1);
    assert_eq!(driver.interrupts(), [0]);
    assert_eq!(driver.status(), 15 | 64);
    let address = driver.place(&packet(100));
    driver.add(1, &[(address, 100, false)]);
    driver.kick(1);
    assert_eq!(driver.take_effects(), [], "nothing moves until the reset");
    driver.negotiate(VERSION_1);
    driver.set_up_queues(8);
    driver.set_status(15);
    driver.add(1, &[(address, 100, false)]);
    driver.kick(1);
    assert!(driver.take_effects().contains(&Effect::Packet { device: 1, bytes: packet(100) }));
}

#[test]
fn a_packet_spreads_over_merged_buffers() {
    let mut driver = started(MERGEABLE, 8);
    let addresses: Vec<_> = (0..3).map(|_| driver.allocate(1000)).collect();
    for address in &addresses {
        // The header itself is spread over two descriptors.
        driver.add(0, &[(*address, 5, true), (*address + 5, 995, true)]);
    }
    let sent = packet(2500);
    assert!(driver.device.can_receive_packet(&driver.memory, sent.len()));
    assert!(driver.receive(&sent));
    assert_eq!(driver.interrupts(), [1]);
    assert_eq!(driver.used(0), [(0, 1000), (2, 1000), (4, 500)]);
    let found: Vec<_> = addresses.iter().flat_map(|address| driver.peek(*address, 1000)).collect();
    assert_eq!(found[..2500], arrived(&sent, 3));
    assert_eq!(found[2500..], [0; 500]);
}

#[test]
fn too_few_buffers_leave_everything_as_it_was() {
    let mut driver = started(MERGEABLE | EVENT_INDEX, 8);
    let address = driver.allocate(1000);
    driver.add(0, &[(address, 1000, true)]);
    assert!(driver.device.can_receive(&driver.memory));
    assert!(!driver.device.can_receive_packet(&driver.memory, 1001));
    let (device, memory) = (driver.device.clone(), driver.peek(0, 0x40000));
    assert!(!driver.receive(&packet(1001)));
    assert_eq!(driver.device, device);
    assert!(driver.peek(0, 0x40000) == memory);
    assert!(driver.receive(&packet(1000)));
    assert!(!driver.device.can_receive(&driver.memory));
}

#[test]
fn without_merging_a_packet_fits_one_buffer_or_is_lost() {
    let mut driver = started(0, 8);
    let address = driver.allocate(1000);
    driver.add(0, &[(address, 12, true), (address + 12, 988, true)]);
    assert!(driver.receive(&packet(1001)), "no buffer of this driver will do: lost");
    assert_eq!(driver.used(0), []);
    assert!(driver.receive(&packet(1000)));
    assert_eq!(driver.used(0), [(0, 1000)]);
    assert_eq!(driver.peek(address, 1000), arrived(&packet(1000), 1));
}

#[test]
fn packets_that_can_not_be_are_dropped() {
    let mut driver = started(MERGEABLE, 8);
    let address = driver.allocate(70_000);
    driver.add(0, &[(address, 70_000, true)]);
    assert!(driver.receive(&packet(11)));
    assert!(driver.receive(&packet(12 + 65551)));
    assert_eq!(driver.used(0), []);
    assert!(driver.receive(&packet(12 + 65550)));
    assert_eq!(driver.used(0), [(0, 12 + 65550)]);
}

#[test]
fn a_full_ring_that_is_too_small_loses_the_packet_instead_of_waiting_for_ever() {
    let mut driver = started(MERGEABLE, 4);
    let address = driver.allocate(400);
    for number in 0..4 {
        driver.add(0, &[(address + 100 * number, 100, true)]);
    }
    assert!(driver.receive(&packet(401)));
    assert_eq!(driver.used(0), []);
    assert!(driver.receive(&packet(400)));
    assert_eq!(driver.used(0).len(), 4);
}

#[test]
fn without_a_driver_packets_are_lost() {
    let config = NetConfig { mac: [2; 6], mtu: None };
    let mut driver = Driver::new(VirtioPci::new_net(1, config, SLOT).unwrap());
    let before = driver.device.clone();
    assert!(driver.device.can_receive(&driver.memory));
    assert!(driver.receive(&packet(100)));
    assert_eq!(driver.device, before);
}

#[test]
fn received_bytes_mark_their_pages_dirty() {
    let mut driver = started(MERGEABLE, 8);
    let address = driver.allocate(8192) + 4096;
    driver.add(0, &[(address, 2000, true)]);
    let used = driver.rings[0].used;
    let dirty = |driver: &Driver| {
        let region = driver.memory.iter().next().unwrap();
        [address, used].map(|place| region.bitmap().dirty_at(place as usize))
    };
    let region = driver.memory.iter().next().unwrap();
    MmapRegion::bitmap(region).reset();
    assert_eq!(dirty(&driver), [false, false]);
    driver.receive(&packet(1000));
    assert_eq!(dirty(&driver), [true, true]);
}

#[test]
fn the_driver_is_asked_for_notifications_only_while_buffers_are_few() {
    let mut driver = started(MERGEABLE | EVENT_INDEX, 256);
    let address = driver.allocate(2000);
    for _ in 0..200 {
        driver.add(0, &[(address, 2000, true)]);
    }
    driver.receive(&packet(100));
    assert_eq!(driver.available_event(0), 1, "long passed: no notification");
    for _ in 0..140 {
        driver.receive(&packet(100));
    }
    assert_eq!(driver.available_event(0), 200, "the very next buffer notifies");
}

#[test]
fn the_guest_announces_itself_and_says_so() {
    let mut driver = started(CONTROL | ANNOUNCE, 8);
    let device = driver.areas.device.unwrap();
    let generation = driver.read::<1>(driver.areas.common + 0x15);
    driver.device.announce(&mut driver.effects);
    assert_eq!(driver.interrupts(), [0]);
    assert_eq!(driver.read::<2>(device + 6), [3, 0]);
    assert_ne!(driver.read::<1>(driver.areas.common + 0x15), generation);
    assert_eq!(command(&mut driver, &[3, 0]), 0);
    assert_eq!(driver.read::<2>(device + 6), [1, 0]);

    let mut driver = started(CONTROL, 8);
    driver.device.announce(&mut driver.effects);
    assert_eq!(driver.take_effects(), [], "a driver that can't is not asked");
}

fn command(driver: &mut Driver, bytes: &[u8]) -> u8 {
    let request = driver.place(bytes);
    let answer = driver.place(&[0xff]);
    driver.add(2, &[(request, bytes.len() as u32, false), (answer, 1, true)]);
    driver.kick(2);
    driver.peek(answer, 1)[0]
}

#[test]
fn offloads_follow_negotiation_control_and_reset() {
    let config = NetConfig { mac: [2; 6], mtu: None };
    let device = VirtioPci::new_net(4, config, SLOT).unwrap();
    let features = VERSION_1 | CONTROL | CONTROL_OFFLOADS | GUEST_CSUM | GUEST_TSO4 | GUEST_ECN;
    let mut driver = Driver::started(device, features, 8);
    let offloads = |offloads| Effect::NetOffloads { device: 4, offloads };
    assert_eq!(driver.take_effects(), [offloads(1 | 2 | 8)]);
    assert_eq!(driver.device.standing_effects(), [offloads(1 | 2 | 8)]);

    let set = |features: u64| [&[5, 0][..], &features.to_le_bytes()].concat();
    assert_eq!(command(&mut driver, &set(GUEST_CSUM)), 0);
    assert_eq!(driver.take_effects()[0], offloads(1));
    assert_eq!(command(&mut driver, &set(1 << 8)), 1, "TSO6 was not negotiated");
    assert_eq!(command(&mut driver, &[5, 0]), 1, "too short");
    assert_eq!(command(&mut driver, &[9, 9]), 1, "no such command");
    driver.take_effects();
    driver.set_status(0);
    assert_eq!(driver.take_effects(), [offloads(0)]);
}

#[test]
fn without_checksums_there_is_no_segmentation_to_receive() {
    let config = NetConfig { mac: [2; 6], mtu: None };
    let device = VirtioPci::new_net(4, config, SLOT).unwrap();
    let mut driver = Driver::started(device, VERSION_1 | GUEST_TSO4, 8);
    assert_eq!(driver.take_effects(), [Effect::NetOffloads { device: 4, offloads: 0 }]);
}
