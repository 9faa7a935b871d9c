//! The entropy device.

use crate::driver::{Driver, EVENT_INDEX, SLOT, VERSION_1};
use virtio_devices::{Effect, VirtioPci};

fn started() -> Driver {
    Driver::started(VirtioPci::new_rng(7, SLOT).unwrap(), VERSION_1, 8)
}

#[test]
fn random_bytes_fill_the_buffers_in_the_order_of_asking() {
    let mut driver = started();
    let first = driver.allocate(64);
    let second = driver.allocate(64);
    let heads = [driver.add(0, &[(first, 64, true)]), driver.add(0, &[(second, 16, true)])];
    driver.kick(0);
    let asked = driver.take_effects();
    let entropy = |length| Effect::Entropy { device: 7, length };
    assert_eq!(asked, [entropy(64), entropy(16)]);
    assert_eq!(driver.device.standing_effects(), asked);

    driver.device.entropy(&driver.memory, &[1; 64], &mut driver.effects);
    driver.device.entropy(&driver.memory, &[2; 64], &mut driver.effects);
    assert_eq!(driver.interrupts(), [1, 1]);
    assert_eq!(driver.used(0), [(heads[0].into(), 64), (heads[1].into(), 16)]);
    assert_eq!(driver.peek(first, 64), [1; 64]);
    assert_eq!(driver.peek(second, 17), [&[2; 16][..], &[0]].concat());
}

#[test]
fn one_request_gets_no_more_than_a_page() {
    let mut driver = started();
    let buffer = driver.allocate(65536);
    driver.add(0, &[(buffer, 65536, true)]);
    driver.kick(0);
    assert_eq!(driver.take_effects(), [Effect::Entropy { device: 7, length: 4096 }]);
}

#[test]
fn bytes_that_nobody_asked_for_change_nothing() {
    let mut driver = started();
    let before = driver.device.clone();
    driver.device.entropy(&driver.memory, &[1; 64], &mut driver.effects);
    assert_eq!(driver.device, before);
    assert!(driver.take_effects().is_empty());
}

#[test]
fn a_buffer_that_can_not_be_written_breaks_the_device_until_reset() {
    let device = VirtioPci::new_rng(7, SLOT).unwrap();
    let mut driver = Driver::started(device, VERSION_1 | EVENT_INDEX, 8);
    let buffer = driver.allocate(16);
    driver.add(0, &[(buffer, 16, false)]);
    driver.kick(0);
    assert_eq!(driver.status(), 15 | 64);
    assert_eq!(driver.interrupts(), [0], "the driver is told by a configuration interrupt");
    driver.set_status(0);
    assert_eq!(driver.status(), 0);
}
