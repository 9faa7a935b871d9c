//! The serial line as `8250_port.c` finds and drives it.

use super::*;

const PORT: u16 = 0x3f8;
const VECTOR: u8 = 0x34;

fn serial_out(guest: &mut Guest, offset: u16, value: u8) {
    guest.outb(PORT + offset, value);
}

fn serial_in(guest: &mut Guest, offset: u16) -> u8 {
    guest.inb(PORT + offset)
}

/// A guest whose driver has opened the line for interrupts.
fn open() -> Guest {
    let mut guest = Guest::new();
    guest.set_up_local_apic();
    guest.route(4, VECTOR, false);
    serial_out(&mut guest, 2, 0x01);
    serial_out(&mut guest, 4, 0x0b);
    serial_out(&mut guest, 1, 0x05);
    guest
}

#[test]
fn autoconfig_finds_a_16550a() {
    let mut guest = Guest::new();
    serial_out(&mut guest, 1, 0x00);
    assert_eq!(serial_in(&mut guest, 1) & 0x0f, 0);
    serial_out(&mut guest, 1, 0x0f);
    assert_eq!(serial_in(&mut guest, 1) & 0x0f, 0x0f);
    serial_out(&mut guest, 1, 0x00);
    serial_out(&mut guest, 4, 0x10 | 0x0a);
    assert_eq!(serial_in(&mut guest, 6) & 0xf0, 0x90);
    serial_out(&mut guest, 4, 0x00);
    serial_out(&mut guest, 2, 0x01);
    assert_eq!(serial_in(&mut guest, 2) >> 6, 3);
    // Neither a TI16750 (bit 5 with 64-byte FIFOs) nor an XScale (bit 6 of the enable register).
    serial_out(&mut guest, 2, 0x21);
    assert_eq!(serial_in(&mut guest, 2) & 0x20, 0);
    serial_out(&mut guest, 1, 0x40);
    assert_eq!(serial_in(&mut guest, 1) & 0x40, 0);
}

#[test]
fn startup_finds_no_transmitter_bugs() {
    let mut guest = Guest::new();
    serial_out(&mut guest, 1, 0x02);
    assert_eq!(serial_in(&mut guest, 2) & 0x01, 0);
    serial_out(&mut guest, 1, 0x00);
    serial_out(&mut guest, 1, 0x02);
    assert_eq!(serial_in(&mut guest, 2) & 0x01, 0, "UART_BUG_THRE");
    serial_out(&mut guest, 1, 0x00);
    serial_out(&mut guest, 1, 0x02);
    assert_eq!(serial_in(&mut guest, 5) & 0x60, 0x60);
    assert_eq!(serial_in(&mut guest, 2) & 0x01, 0, "UART_BUG_TXEN");
}

#[test]
fn console_bytes_leave_in_order() {
    let mut guest = Guest::new();
    for byte in b"Linux version 6.1\r\n" {
        assert_ne!(serial_in(&mut guest, 5) & 0x20, 0);
        serial_out(&mut guest, 0, *byte);
    }
    assert_eq!(guest.effects, [Effect::Serial(b"Linux version 6.1\r\n".to_vec())]);
    assert_eq!(guest.time.asked, 0, "a console needs no time");
}

#[test]
fn input_interrupts_until_it_is_read() {
    let mut guest = open();
    assert_eq!(guest.platform.serial_input(b"ls\n"), 3);
    assert_eq!(guest.take_interrupt(), Some(VECTOR));
    assert_eq!(serial_in(&mut guest, 2), 0xc4);
    let mut line = Vec::new();
    while serial_in(&mut guest, 5) & 0x01 != 0 {
        line.push(serial_in(&mut guest, 0));
    }
    assert_eq!(line, b"ls\n");
    assert_eq!(serial_in(&mut guest, 2), 0xc1);
    assert_eq!(guest.take_interrupt(), None);
    guest.platform.serial_input(b"x");
    assert_eq!(guest.take_interrupt(), Some(VECTOR));
}

#[test]
fn input_is_bounded() {
    let mut guest = open();
    let room = guest.platform.serial_room();
    assert_eq!(guest.platform.serial_input(&vec![0; room + 1]), room);
    assert_eq!((guest.platform.serial_room(), guest.platform.serial_input(b"x")), (0, 0));
    serial_in(&mut guest, 0);
    assert_eq!(guest.platform.serial_room(), 1);
}

#[test]
fn the_transmitter_interrupts_when_it_is_empty() {
    let mut guest = open();
    serial_out(&mut guest, 1, 0x07);
    assert_eq!(guest.take_interrupt(), Some(VECTOR));
    assert_eq!(serial_in(&mut guest, 2), 0xc2);
    assert_eq!(serial_in(&mut guest, 2), 0xc1);
    serial_out(&mut guest, 0, b'x');
    assert_eq!(guest.take_interrupt(), Some(VECTOR));
    serial_out(&mut guest, 1, 0x05);
    assert_eq!(serial_in(&mut guest, 2), 0xc1);
}

#[test]
fn without_out2_the_line_is_silent() {
    let mut guest = open();
    serial_out(&mut guest, 4, 0x03);
    guest.platform.serial_input(b"x");
    assert_eq!(guest.take_interrupt(), None);
    serial_out(&mut guest, 4, 0x0b);
    assert_eq!(guest.take_interrupt(), Some(VECTOR));
}

#[test]
fn a_loop_brings_bytes_back_and_lets_none_out() {
    let mut guest = Guest::new();
    serial_out(&mut guest, 4, 0x10);
    serial_out(&mut guest, 0, b'x');
    assert_eq!(serial_in(&mut guest, 0), b'x');
    assert_eq!(guest.effects, []);
}

#[test]
fn a_machine_without_the_line_has_nothing_at_its_ports() {
    let mut platform = Platform::new(PlatformConfig { serial: false, boot_time_unix_ns: 0 });
    let (mut time, mut effects) = (Time { now: 0, asked: 0 }, Vec::new());
    assert!(!platform.io_read(PORT, &mut [0], &mut time));
    assert!(!platform.io_write(PORT, b"x", &mut time, &mut effects));
    assert_eq!(platform.serial_input(b"abc"), 3);
}
