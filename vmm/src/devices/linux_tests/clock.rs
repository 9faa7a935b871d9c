//! The real-time clock as `rtc-mc146818-lib.c` and `rtc-cmos.c` use it.

use super::*;

const VECTOR: u8 = 0x38;
const SECOND_NS: u64 = 1_000_000_000;

fn cmos_read(guest: &mut Guest, index: u8) -> u8 {
    guest.outb(0x70, index);
    guest.inb(0x71)
}

fn cmos_write(guest: &mut Guest, index: u8, value: u8) {
    guest.outb(0x70, index);
    guest.outb(0x71, value);
}

/// Year, month, day, hour, minute and second, as they stand in the registers.
fn registers(guest: &mut Guest) -> [u8; 6] {
    [9, 8, 7, 4, 2, 0].map(|index| cmos_read(guest, index))
}

fn open() -> Guest {
    let mut guest = Guest::new();
    guest.set_up_local_apic();
    guest.route(8, VECTOR, false);
    guest
}

/// `mc146818_set_time` for 1999-12-31 23:59:58.
fn set_time(guest: &mut Guest) {
    let control = cmos_read(guest, 0x0b);
    cmos_write(guest, 0x0b, control | 0x80);
    let frequency = cmos_read(guest, 0x0a);
    cmos_write(guest, 0x0a, frequency | 0x70);
    let values = [(9, 0x99), (8, 0x12), (7, 0x31), (4, 0x23), (2, 0x59), (0, 0x58), (0x32, 0x19)];
    for (index, value) in values {
        cmos_write(guest, index, value);
    }
    cmos_write(guest, 0x0b, control);
    cmos_write(guest, 0x0a, frequency);
}

#[test]
fn the_probe_finds_a_working_clock_with_the_time_of_day() {
    let mut guest = Guest::new();
    assert_eq!(cmos_read(&mut guest, 0x0d) & 0x7f, 0);
    assert_eq!(cmos_read(&mut guest, 0x0a) & 0x80, 0);
    assert_eq!(cmos_read(&mut guest, 0x0b) & 0x06, 0x02, "BCD and 24 hours");
    assert_eq!(registers(&mut guest), [0x21, 0x03, 0x04, 0x05, 0x06, 0x07]);
    assert_eq!(cmos_read(&mut guest, 6), 5, "Thursday");
    assert_eq!(cmos_read(&mut guest, 0x32), 0x20);
    guest.time.now += 3 * SECOND_NS;
    assert_eq!(cmos_read(&mut guest, 0), 0x10);
}

#[test]
fn an_update_is_announced_before_the_second_ends() {
    let mut guest = Guest::new();
    guest.time.now = SECOND_NS / 2 - 245_000;
    guest.outb(0x70, 0x0a);
    assert_eq!(guest.inb(0x71) & 0x80, 0x80);
    guest.time.now = SECOND_NS / 2;
    assert_eq!(guest.inb(0x71) & 0x80, 0);
}

#[test]
fn setting_the_time_starts_the_next_second_half_a_second_later() {
    let mut guest = Guest::new();
    set_time(&mut guest);
    let set = guest.time.now;
    assert_eq!(registers(&mut guest), [0x99, 0x12, 0x31, 0x23, 0x59, 0x58]);
    guest.time.now = set + SECOND_NS / 2 - 20_000;
    assert_eq!(cmos_read(&mut guest, 0), 0x58);
    guest.time.now = set + SECOND_NS / 2;
    assert_eq!(cmos_read(&mut guest, 0), 0x59);
    guest.time.now += SECOND_NS;
    assert_eq!(registers(&mut guest), [0x00, 0x01, 0x01, 0x00, 0x00, 0x00]);
    assert_eq!(cmos_read(&mut guest, 0x32), 0x20);
}

#[test]
fn a_held_clock_stands_still() {
    let mut guest = Guest::new();
    cmos_write(&mut guest, 0x0b, 0x82);
    let before = registers(&mut guest);
    guest.time.now += 5 * SECOND_NS;
    assert_eq!(registers(&mut guest), before);
    assert_eq!(guest.platform.next_deadline(), None);
}

#[test]
fn binary_and_twelve_hours() {
    let mut guest = Guest::new();
    guest.time.now = 16 * 3600 * SECOND_NS;
    cmos_write(&mut guest, 0x0b, 0x04);
    assert_eq!(registers(&mut guest), [21, 3, 4, 0x80 | 9, 6, 7]);
    cmos_write(&mut guest, 4, 0x80 | 12);
    cmos_write(&mut guest, 0x0b, 0x06);
    assert_eq!(cmos_read(&mut guest, 4), 12);
}

#[test]
fn each_interrupt_comes_when_it_is_due_and_once() {
    // Periodic at 64 Hz, update ended, alarm at 05:06:10.
    for (enable, flag, wait_ns) in
        [(0x40, 0xc0, SECOND_NS / 64), (0x10, 0x90, SECOND_NS / 2), (0x20, 0xa0, 5 * SECOND_NS / 2)]
    {
        let mut guest = open();
        cmos_write(&mut guest, 0x0a, 0x2a);
        for (index, value) in [(1, 0x10), (3, 0x06), (5, 0xc0)] {
            cmos_write(&mut guest, index, value);
        }
        cmos_read(&mut guest, 0x0c);
        cmos_write(&mut guest, 0x0b, 0x02 | enable);
        let due = guest.wait().expect("an interrupt is enabled");
        assert!(due.abs_diff(wait_ns) < 10, "{enable:#x} at {due}");
        assert_eq!(guest.take_interrupt(), Some(VECTOR));
        assert_eq!(guest.platform.next_deadline(), None, "nothing more until it is seen");
        assert_eq!(cmos_read(&mut guest, 0x0c) & (0x80 | enable), flag);
        assert_eq!(guest.take_interrupt(), None);
        assert!(guest.platform.next_deadline().expect("enabled still") > due);
    }
}

#[test]
fn an_alarm_that_can_not_come_has_no_deadline() {
    let mut guest = open();
    cmos_write(&mut guest, 1, 0x75);
    cmos_write(&mut guest, 0x0b, 0x22);
    assert_eq!(guest.platform.next_deadline(), None);
}

#[test]
fn an_alarm_a_moment_ago_comes_tomorrow() {
    let mut guest = open();
    for (index, value) in [(1, 0x06), (3, 0x06), (5, 0x05)] {
        cmos_write(&mut guest, index, value);
    }
    cmos_write(&mut guest, 0x0b, 0x22);
    let due = guest.platform.next_deadline().expect("the alarm is enabled");
    assert_eq!(due, 86_400 * SECOND_NS - 3 * SECOND_NS / 2);
}

#[test]
fn memory_remembers() {
    let mut guest = Guest::new();
    for index in 0x0e..0x80 {
        if index != 0x32 {
            cmos_write(&mut guest, index, index ^ 0x5a);
        }
    }
    for index in 0x0e..0x80 {
        if index != 0x32 {
            assert_eq!(cmos_read(&mut guest, index), index ^ 0x5a);
        }
    }
}

#[test]
fn flags_tell_what_happened_with_no_interrupt_enabled() {
    let mut guest = Guest::new();
    cmos_read(&mut guest, 0x0c);
    assert_eq!(cmos_read(&mut guest, 0x0c), 0);
    guest.time.now += 2 * SECOND_NS;
    guest.platform.advance(guest.time.now);
    assert_eq!(cmos_read(&mut guest, 0x0c), 0x50);
    assert_eq!(guest.platform.next_deadline(), None);
}
