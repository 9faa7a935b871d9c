//! The console.

use crate::driver::{Driver, SLOT, VERSION_1};
use virtio_devices::{Effect, VirtioPci};

fn started() -> Driver {
    Driver::started(VirtioPci::new_console(2, SLOT).unwrap(), VERSION_1, 8)
}

#[test]
fn what_the_guest_writes_comes_out_in_order() {
    let mut driver = started();
    for text in ["hello, ", "world"] {
        let address = driver.place(text.as_bytes());
        driver.add(1, &[(address, text.len() as u32, false)]);
    }
    driver.kick(1);
    let bytes = |text: &str| Effect::Console { device: 2, bytes: text.as_bytes().to_vec() };
    let effects = driver.take_effects();
    assert_eq!(effects[..2], [bytes("hello, "), bytes("world")]);
    assert_eq!(effects.len(), 3, "and one interrupt for both");
    assert_eq!(driver.used(1).len(), 2);
}

#[test]
fn input_fills_buffers_and_what_has_no_room_is_not_taken() {
    let mut driver = started();
    let memory = driver.memory.clone();
    assert!(!driver.device.can_take_console_input(&memory));
    let before = driver.device.clone();
    assert_eq!(driver.device.console_input(&memory, b"x", &mut driver.effects), 0);
    assert_eq!(driver.device, before);

    let first = driver.allocate(4);
    let second = driver.allocate(4);
    driver.add(0, &[(first, 4, true)]);
    driver.add(0, &[(second, 4, true)]);
    assert!(driver.device.can_take_console_input(&memory));
    assert_eq!(driver.device.console_input(&memory, b"0123456789", &mut driver.effects), 8);
    assert_eq!(driver.interrupts(), [1]);
    assert_eq!((driver.peek(first, 4), driver.peek(second, 4)), (b"0123".into(), b"4567".into()));
    assert_eq!(driver.used(0).iter().map(|(_, length)| *length).collect::<Vec<_>>(), [4, 4]);
}

#[test]
fn a_flood_in_one_chain_is_cut() {
    let mut driver = started();
    // The same megabyte eight times over: what a chain names need not be memory of its own.
    let megabyte = driver.allocate(1 << 20);
    driver.add(1, &[(megabyte, 1 << 20, false); 8]);
    driver.kick(1);
    let Some(Effect::Console { bytes, .. }) = driver.take_effects().into_iter().next() else {
        panic!("no output");
    };
    assert_eq!(bytes.len(), 64 * 1024);
}
