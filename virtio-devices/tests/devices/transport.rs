//! The PCI transport: configuration space, negotiation, MSI-X, reset, restore.

use crate::driver::{Driver, EVENT_INDEX, SLOT, VERSION_1};
use virtio_devices::{BlockConfig, Effect, NetConfig, PciSlot, VirtioPci};

fn rng() -> Driver {
    Driver::new(VirtioPci::new_rng(0, SLOT).unwrap())
}

fn all() -> Vec<VirtioPci> {
    let net = NetConfig { mac: [2, 0, 0, 0, 0, 1], mtu: Some(1500) };
    let block = BlockConfig { capacity_sectors: 64, read_only: false, serial: "s".into() };
    vec![
        VirtioPci::new_net(0, net, SLOT).unwrap(),
        VirtioPci::new_block(1, block, SLOT).unwrap(),
        VirtioPci::new_console(2, SLOT).unwrap(),
        VirtioPci::new_rng(3, SLOT).unwrap(),
    ]
}

#[test]
fn every_device_shows_a_modern_identity_and_starts() {
    for (device, kind) in all().into_iter().zip([1_u16, 2, 3, 4]) {
        let mut config = [0; 16];
        let mut driver = Driver::new(device);
        driver.device.config_read(0, &mut config);
        let id = [[0xf4, 0x1a], (0x1040 + kind).to_le_bytes()].concat();
        assert_eq!(config[..4], id, "vendor and device");
        assert_eq!(config[8], 1, "revision");
        assert_eq!(driver.areas.device.is_some(), kind != 4, "rng has no configuration");
        driver.enable_interrupts();
        driver.negotiate(u64::MAX);
        driver.set_up_queues(1024);
        driver.set_status(15);
        assert_eq!(driver.status(), 15);
    }
}

#[test]
fn the_bar_tells_its_size_and_moves() {
    let mut driver = rng();
    assert_eq!(driver.device.bars(), None, "memory decoding is off");
    driver.config_write(0x10, &u32::MAX.to_le_bytes());
    let mut bar = [0; 4];
    driver.device.config_read(0x10, &mut bar);
    assert_eq!(u32::from_le_bytes(bar), !0x7fff);
    driver.config_write(0x10, &0xc010_0000_u32.to_le_bytes());
    driver.config_write(4, &[2]);
    assert_eq!(driver.device.bars(), Some((0xc010_0000, 0x8000)));
}

#[test]
fn identity_and_capabilities_can_not_be_written() {
    let mut driver = rng();
    let mut before = [0; 256];
    driver.device.config_read(0, &mut before);
    for offset in (0..0x10).chain(0x14..0x3c).chain(0x40..0x84).chain(0x9c..0x100) {
        if !(4..6).contains(&offset) && offset != 0xc {
            driver.config_write(offset, &[0xff]);
        }
    }
    let mut after = [0; 256];
    driver.device.config_read(0, &mut after);
    assert_eq!(before, after);
}

#[test]
fn features_that_were_not_offered_are_not_accepted() {
    let mut driver = rng();
    let common = driver.areas.common;
    driver.set_status(3);
    driver.write(common + 8, &1_u32.to_le_bytes());
    driver.write(common + 12, &0b11_u32.to_le_bytes());
    driver.set_status(11);
    assert_eq!(driver.status(), 3, "bit 33 was not offered");
    driver.write(common + 12, &1_u32.to_le_bytes());
    driver.set_status(11);
    assert_eq!(driver.status(), 11);
    driver.write(common + 12, &0_u32.to_le_bytes());
    assert_eq!(driver.device.state.common.driver_features, VERSION_1, "settled by FEATURES_OK");
}

#[test]
fn a_driver_that_knows_no_version_1_is_refused() {
    let mut driver = rng();
    driver.negotiate(EVENT_INDEX);
    assert_eq!(driver.status(), 3);
    driver.set_status(7);
    assert_eq!(driver.status(), 3, "no DRIVER_OK without FEATURES_OK");
}

#[test]
fn a_queue_outside_memory_breaks_the_device() {
    for (register, address) in [(0x20, 1 << 40), (0x28, u64::MAX - 1), (0x30, 0x1002)] {
        let mut driver = rng();
        driver.negotiate(VERSION_1);
        let common = driver.areas.common;
        for place in [0x20, 0x28, 0x30] {
            driver.write(common + place, &0x1000_u64.to_le_bytes());
        }
        driver.write(common + register, &u64::to_le_bytes(address));
        driver.write(common + 0x1c, &1_u16.to_le_bytes());
        assert_eq!(driver.status(), 11 | 64, "address {address:#x} in register {register:#x}");
        assert_eq!(driver.read::<2>(common + 0x1c), [0, 0]);
    }
}

#[test]
fn masked_messages_wait_and_are_sent_on_unmasking() {
    let mut driver = Driver::started(VirtioPci::new_rng(0, SLOT).unwrap(), VERSION_1, 8);
    let fill = |driver: &mut Driver| {
        let buffer = driver.allocate(8);
        driver.add(0, &[(buffer, 8, true)]);
        driver.kick(0);
        driver.device.entropy(&driver.memory, &[1; 8], &mut driver.effects);
        driver.interrupts()
    };
    assert_eq!(fill(&mut driver), [1]);

    let entry = driver.areas.msix_table + 16;
    driver.write(entry + 12, &1_u32.to_le_bytes());
    assert_eq!(fill(&mut driver), [0; 0]);
    assert_eq!(driver.read::<8>(driver.areas.msix_pending), [2, 0, 0, 0, 0, 0, 0, 0]);
    driver.write(entry + 12, &0_u32.to_le_bytes());
    assert_eq!(driver.interrupts(), [1]);
    assert_eq!(driver.read::<8>(driver.areas.msix_pending), [0; 8]);

    driver.config_write(driver.areas.msix_control, &0xc000_u16.to_le_bytes());
    assert_eq!(fill(&mut driver), [0; 0]);
    assert_eq!(fill(&mut driver), [0; 0], "two become one");
    driver.config_write(driver.areas.msix_control, &0x8000_u16.to_le_bytes());
    assert_eq!(driver.interrupts(), [1]);
}

#[test]
fn without_msix_the_interrupt_status_tells_until_it_is_read() {
    let mut driver = Driver::new(VirtioPci::new_rng(0, SLOT).unwrap());
    driver.negotiate(VERSION_1);
    driver.set_up_queues(8);
    driver.set_status(15);
    let buffer = driver.allocate(8);
    driver.add(0, &[(buffer, 8, true)]);
    driver.kick(0);
    driver.device.entropy(&driver.memory, &[1; 8], &mut driver.effects);
    assert_eq!(driver.interrupts(), [0; 0]);
    assert_eq!(driver.read::<1>(driver.areas.isr), [1]);
    assert_eq!(driver.read::<1>(driver.areas.isr), [0]);
}

#[test]
fn a_vector_that_does_not_exist_is_not_taken() {
    let mut driver = rng();
    let place = driver.areas.common + 0x10;
    driver.write(place, &1_u16.to_le_bytes());
    assert_eq!(driver.read::<2>(place), [1, 0]);
    driver.write(place, &2_u16.to_le_bytes());
    assert_eq!(driver.read::<2>(place), [0xff, 0xff]);
}

#[test]
fn interrupts_are_suppressed_as_the_driver_asks() {
    // By flag.
    let mut driver = Driver::started(VirtioPci::new_console(0, SLOT).unwrap(), VERSION_1, 8);
    let ring = driver.rings[1];
    let text = driver.place(b"x");
    let print = |driver: &mut Driver| {
        driver.add(1, &[(text, 1, false)]);
        driver.kick(1);
        driver.interrupts().len()
    };
    assert_eq!(print(&mut driver), 1);
    vm_memory::Bytes::write_obj(&driver.memory, 1_u16, vm_memory::GuestAddress(ring.available))
        .unwrap();
    assert_eq!(print(&mut driver), 0);

    // By event index.
    let device = VirtioPci::new_console(0, SLOT).unwrap();
    let mut driver = Driver::started(device, VERSION_1 | EVENT_INDEX, 8);
    driver.set_used_event(1, 2);
    assert_eq!([print(&mut driver), print(&mut driver), print(&mut driver)], [0, 0, 1]);
    assert_eq!(print(&mut driver), 0);
    assert_eq!(driver.available_event(1), 4, "it wants to hear of the very next chain");
}

#[test]
fn a_reset_forgets_the_driver_but_not_the_place() {
    let mut driver = Driver::started(VirtioPci::new_rng(0, SLOT).unwrap(), VERSION_1, 8);
    driver.set_status(0);
    let common = driver.areas.common;
    assert_eq!(driver.status(), 0);
    assert_eq!(driver.read::<2>(common + 0x1c), [0, 0], "queue disabled");
    assert_eq!(driver.read::<2>(common + 0x10), [0xff, 0xff]);
    assert_eq!(driver.device.bars(), Some((0xe000_0000, 0x8000)));
    driver.negotiate(VERSION_1);
    driver.set_up_queues(4);
    driver.set_status(15);
    assert_eq!(driver.status(), 15);
}

#[test]
fn the_configuration_window_reaches_the_registers() {
    let mut driver = rng();
    let window = driver.areas.window;
    let status = driver.areas.common as u32 + 0x14;
    driver.config_write(window + 4, &[0]);
    driver.config_write(window + 8, &status.to_le_bytes());
    driver.config_write(window + 12, &1_u32.to_le_bytes());
    driver.config_write(window + 16, &[3]);
    assert_eq!(driver.status(), 3);
    let mut data = [0; 1];
    driver.device.config_read(window + 16, &mut data);
    assert_eq!(data, [3]);
    // Nowhere: ignored, and reads as zeros.
    driver.config_write(window + 8, &0xffff_fff0_u32.to_le_bytes());
    driver.config_write(window + 16, &[0]);
    driver.device.config_read(window + 16, &mut data);
    assert_eq!((driver.status(), data), (3, [0]));
}

#[test]
fn notifications_before_driver_ok_do_nothing() {
    let mut driver = rng();
    driver.negotiate(VERSION_1);
    driver.set_up_queues(8);
    let buffer = driver.allocate(8);
    driver.add(0, &[(buffer, 8, true)]);
    driver.kick(0);
    driver.kick(77);
    assert_eq!(driver.take_effects(), []);
}

#[test]
fn a_saved_device_goes_on_where_it_was() {
    for device in all() {
        let driver = Driver::started(device, u64::MAX, 8);
        let bytes = postcard::to_allocvec(&driver.device.state).unwrap();
        let state = postcard::from_bytes(&bytes).unwrap();
        assert_eq!(VirtioPci::restore(state).unwrap(), driver.device);
    }
}

#[test]
fn forged_states_are_refused_in_a_sentence() {
    type Forgery = fn(&mut VirtioPci);
    let forgeries: [Forgery; 7] = [
        |device| device.state.queues.truncate(0),
        |device| device.state.queues[0].size = 3,
        |device| device.state.queues[0].size = 0,
        |device| device.state.queues[0].size_max = 1 << 15,
        |device| device.state.queues[0].used_ring = 1,
        |device| device.state.msix.entries.clear(),
        |device| device.state.pci.bar_address = 1,
    ];
    for (number, forge) in forgeries.into_iter().enumerate() {
        let device = VirtioPci::new_rng(5, SLOT).unwrap();
        let mut driver = Driver::started(device, VERSION_1, 8);
        forge(&mut driver.device);
        let error = VirtioPci::restore(driver.device.state).unwrap_err().to_string();
        let start = "the saved state of virtio device 5 can't be restored: ";
        assert!(error.starts_with(start), "forgery {number}: {error}");
    }
}

#[test]
fn impossible_configurations_are_refused() {
    let slot = PciSlot { number: 32, bar_address: 0 };
    assert!(VirtioPci::new_rng(0, slot).is_err());
    let slot = PciSlot { number: 1, bar_address: 0x1000 };
    assert!(VirtioPci::new_rng(0, slot).is_err());
    let serial = "one-and-twenty-letter".to_owned();
    let config = BlockConfig { capacity_sectors: 1, read_only: false, serial };
    assert!(VirtioPci::new_block(0, config, SLOT).is_err());
    let multicast = NetConfig { mac: [1, 0, 0, 0, 0, 0], mtu: None };
    assert!(VirtioPci::new_net(0, multicast, SLOT).is_err());
}

#[test]
fn effects_survive_a_round_trip() {
    let effect = Effect::Packet { device: 3, bytes: vec![1, 2, 3] };
    let bytes = postcard::to_allocvec(&effect).unwrap();
    assert_eq!(postcard::from_bytes::<Effect>(&bytes).unwrap(), effect);
}
