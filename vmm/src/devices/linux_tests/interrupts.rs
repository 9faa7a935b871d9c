//! Interrupt controllers and timers: `check_timer`, `calibrate_APIC_clock`, the i8253 clock event.

use super::*;

const HZ: u64 = 250;
/// `PIT_LATCH`: ticks of the PIT in a jiffy.
const LATCH: u16 = 4773;
const JIFFY_NS: u64 = 4_000_152;
const TIMER_VECTOR: u8 = 0x30;
const LOCAL_TIMER_VECTOR: u8 = 0xec;

/// `init_8259A`.
fn init_8259a(guest: &mut Guest, automatic_end: bool) {
    guest.outb(0x21, 0xff);
    for (port, value) in [(0x20, 0x11), (0x21, 0x30), (0x21, 0x04)] {
        guest.outb(port, value);
    }
    guest.outb(0x21, if automatic_end { 3 } else { 1 });
    for (port, value) in [(0xa0, 0x11), (0xa1, 0x38), (0xa1, 0x02), (0xa1, 0x01)] {
        guest.outb(port, value);
    }
    guest.outb(0x21, 0xfb);
    guest.outb(0xa1, 0xff);
}

/// `pit_set_periodic`.
fn pit_set_periodic(guest: &mut Guest) {
    guest.outb(0x43, 0x34);
    guest.outb(0x40, LATCH as u8);
    guest.outb(0x40, (LATCH >> 8) as u8);
}

#[test]
fn the_timer_comes_through_the_8259_before_the_apic_is_set_up() {
    let mut guest = Guest::new();
    init_8259a(&mut guest, false);
    guest.outb(0x21, 0xfa);
    pit_set_periodic(&mut guest);
    for _ in 0..3 {
        assert!(!guest.platform.pending_interrupt());
        guest.wait().expect("the PIT runs");
        assert!(guest.platform.pending_interrupt());
        assert_eq!(guest.platform.acknowledge(), Some(0x30));
        guest.outb(0x20, 0x60);
    }
}

#[test]
fn check_timer_finds_the_timer_at_pin_2() {
    let mut guest = Guest::new();
    init_8259a(&mut guest, false);
    pit_set_periodic(&mut guest);
    guest.set_up_local_apic();
    init_8259a(&mut guest, true);
    guest.route(2, TIMER_VECTOR, false);
    let start = guest.time.now;
    let mut ticks = 0;
    while guest.time.now < start + 10 * JIFFY_NS {
        guest.wait().expect("the PIT runs");
        while let Some(vector) = guest.take_interrupt() {
            assert_eq!(vector, TIMER_VECTOR);
            ticks += 1;
        }
    }
    assert!((9..=11).contains(&ticks), "{ticks} ticks in 10 jiffies");
}

#[test]
fn a_masked_periodic_timer_wakes_nobody() {
    let mut guest = Guest::new();
    init_8259a(&mut guest, true);
    guest.set_up_local_apic();
    pit_set_periodic(&mut guest);
    assert_eq!(guest.platform.next_deadline(), None);
    guest.route(2, TIMER_VECTOR, false);
    assert!(guest.platform.next_deadline().is_some());
}

#[test]
fn shutting_the_pit_down_leaves_one_last_tick() {
    let mut guest = Guest::new();
    guest.set_up_local_apic();
    guest.route(2, TIMER_VECTOR, false);
    pit_set_periodic(&mut guest);
    guest.wait();
    assert_eq!(guest.take_interrupt(), Some(TIMER_VECTOR));
    for (port, value) in [(0x43, 0x30), (0x40, 0), (0x40, 0)] {
        guest.outb(port, value);
    }
    guest.wait().expect("mode 0 reaches its terminal count");
    assert_eq!(guest.take_interrupt(), Some(TIMER_VECTOR));
    assert_eq!(guest.wait(), None);
}

#[test]
fn the_pit_one_shot_of_the_clock_event_fires_once() {
    let mut guest = Guest::new();
    guest.set_up_local_apic();
    guest.route(2, TIMER_VECTOR, false);
    guest.outb(0x43, 0x38);
    assert_eq!(guest.platform.next_deadline(), None);
    guest.outb(0x40, 0xa9);
    guest.outb(0x40, 0x04);
    let start = guest.time.now;
    let fired = guest.wait().expect("a count was loaded");
    assert!((fired - start).abs_diff(1_000_000) < 2000, "{} ns", fired - start);
    assert_eq!(guest.take_interrupt(), Some(TIMER_VECTOR));
    assert_eq!(guest.platform.next_deadline(), None);
}

#[test]
fn a_missed_second_of_ticks_is_one_tick() {
    let mut guest = Guest::new();
    guest.set_up_local_apic();
    guest.route(2, TIMER_VECTOR, false);
    pit_set_periodic(&mut guest);
    guest.time.now += 1_000_000_000;
    guest.platform.advance(guest.time.now);
    assert_eq!(guest.take_interrupt(), Some(TIMER_VECTOR));
    assert_eq!(guest.take_interrupt(), None);
    assert!(guest.platform.next_deadline().expect("runs on") > guest.time.now);
}

#[test]
fn calibrate_apic_clock_agrees_with_the_pm_timer() {
    let mut guest = Guest::new();
    guest.set_up_local_apic();
    guest.route(2, TIMER_VECTOR, false);
    pit_set_periodic(&mut guest);
    guest.apic_write(LVT_TIMER, 0x1_00ec);
    guest.apic_write(DIVIDE, 0x3);
    guest.apic_write(INITIAL_COUNT, u32::MAX);
    let sample = |guest: &mut Guest| {
        guest.wait().expect("the PIT runs");
        assert_eq!(guest.take_interrupt(), Some(TIMER_VECTOR));
        (guest.apic_read(CURRENT_COUNT), guest.inl(0x608))
    };
    let first = sample(&mut guest);
    let loops = (HZ / 10) as u32;
    let mut last = first;
    for _ in 0..loops {
        last = sample(&mut guest);
    }
    let pm_ticks = u64::from(last.1.wrapping_sub(first.1) & 0x00ff_ffff);
    let expected = 3_579_545 / 10;
    assert!(pm_ticks.abs_diff(expected) < expected / 100, "{pm_ticks} in 100 ms");
    let apic_ticks = u64::from(first.0 - last.0);
    assert!(apic_ticks.abs_diff(6_250_000) < 62_500, "{apic_ticks} in 100 ms");
}

#[test]
fn high_resolution_one_shot_asks_the_clock_once_an_event() {
    let mut guest = Guest::new();
    guest.set_up_local_apic();
    guest.apic_write(LVT_TIMER, u32::from(LOCAL_TIMER_VECTOR));
    guest.apic_write(DIVIDE, 0x3);
    for _ in 0..3 {
        let asked = guest.time.asked;
        guest.apic_write(INITIAL_COUNT, 62_500);
        let start = guest.time.now;
        assert_eq!(guest.platform.next_deadline(), Some(start + 1_000_000));
        guest.platform.advance(start + 999_999);
        assert!(!guest.platform.pending_interrupt());
        guest.wait();
        assert_eq!(guest.take_interrupt(), Some(LOCAL_TIMER_VECTOR));
        assert_eq!(guest.platform.next_deadline(), None);
        assert_eq!(guest.time.asked, asked + 1);
    }
}

#[test]
fn unmasking_an_expired_one_shot_raises_nothing() {
    let mut guest = Guest::new();
    guest.set_up_local_apic();
    guest.apic_write(LVT_TIMER, 0x1_0000 | u32::from(LOCAL_TIMER_VECTOR));
    guest.apic_write(INITIAL_COUNT, 10);
    guest.time.now += 1_000_000;
    guest.apic_write(LVT_TIMER, u32::from(LOCAL_TIMER_VECTOR));
    guest.platform.advance(guest.time.now + 1_000_000);
    assert!(!guest.platform.pending_interrupt());
}

#[test]
fn reading_the_time_past_a_deadline_makes_its_interrupt_pending() {
    let mut guest = Guest::new();
    guest.set_up_local_apic();
    guest.apic_write(LVT_TIMER, u32::from(LOCAL_TIMER_VECTOR));
    guest.apic_write(INITIAL_COUNT, 1000);
    assert!(!guest.platform.pending_interrupt());
    guest.time.now += 10_000;
    guest.inl(0x608);
    assert_eq!(guest.take_interrupt(), Some(LOCAL_TIMER_VECTOR));
}

#[test]
fn priorities_of_the_local_apic() {
    let mut guest = Guest::new();
    guest.set_up_local_apic();
    let msi = |guest: &mut Guest, vector| guest.platform.msi(0xfee0_100c, vector);
    msi(&mut guest, 0x41);
    msi(&mut guest, 0x55);
    msi(&mut guest, 0x4f);
    assert_eq!(guest.platform.acknowledge(), Some(0x55));
    assert!(!guest.platform.pending_interrupt());
    msi(&mut guest, 0x61);
    assert_eq!(guest.platform.acknowledge(), Some(0x61));
    guest.apic_write(END_OF_INTERRUPT, 0);
    assert!(!guest.platform.pending_interrupt());
    guest.apic_write(END_OF_INTERRUPT, 0);
    guest.platform.set_tpr(0x40);
    assert!(!guest.platform.pending_interrupt());
    assert_eq!(guest.apic_read(0x0a0), 0x40);
    guest.platform.set_tpr(0);
    assert_eq!(guest.take_interrupt(), Some(0x4f));
    assert_eq!(guest.take_interrupt(), Some(0x41));
    assert_eq!(guest.take_interrupt(), None);
}

#[test]
fn interrupts_to_itself_by_each_address() {
    let mut guest = Guest::new();
    guest.set_up_local_apic();
    for (high, low) in [(0, 0x4_00fb), (0, 0x8_00fb), (0, 0xfb), (1 << 24, 0x8fb)] {
        guest.apic_write(0x310, high);
        guest.apic_write(0x300, low);
        assert_eq!(guest.take_interrupt(), Some(0xfb), "{high:#x} {low:#x}");
    }
    for (high, low) in [(0, 0xc_00fb), (7 << 24, 0xfb), (2 << 24, 0x8fb)] {
        guest.apic_write(0x310, high);
        guest.apic_write(0x300, low);
        assert_eq!(guest.take_interrupt(), None, "{high:#x} {low:#x}");
    }
}

#[test]
fn illegal_vectors_are_reported_through_the_error_register() {
    let mut guest = Guest::new();
    guest.set_up_local_apic();
    guest.apic_write(0x370, 0xfe);
    guest.apic_write(0x300, 0x4_0003);
    assert_eq!(guest.take_interrupt(), Some(0xfe));
    guest.apic_write(0x280, 0);
    assert_eq!(guest.apic_read(0x280), 1 << 5);
    guest.apic_write(0x280, 0);
    assert_eq!(guest.apic_read(0x280), 0);
}

#[test]
fn a_disabled_local_apic_takes_nothing_and_masks_its_vectors() {
    let mut guest = Guest::new();
    guest.set_up_local_apic();
    guest.apic_write(LVT_TIMER, u32::from(LOCAL_TIMER_VECTOR));
    guest.apic_write(SPURIOUS, 0x0ff);
    guest.platform.msi(0xfee0_0000, 0x41);
    assert!(!guest.platform.pending_interrupt());
    assert_eq!(guest.apic_read(LVT_TIMER), 0x1_00ec);
    guest.apic_write(LVT_TIMER, u32::from(LOCAL_TIMER_VECTOR));
    assert_eq!(guest.apic_read(LVT_TIMER), 0x1_00ec);
}

#[test]
fn the_second_pit_channel_measures_behind_its_gate() {
    let mut guest = Guest::new();
    let old = guest.inb(0x61);
    guest.outb(0x61, old & !0x02 & !0x01);
    guest.outb(0x43, 0xb0);
    guest.outb(0x42, 0xff);
    guest.outb(0x42, 0x10);
    guest.time.now += 50_000_000;
    assert_eq!(guest.inb(0x61) & 0x20, 0, "the gate holds the counter");
    guest.outb(0x61, old & !0x02 | 0x01);
    let start = guest.time.now;
    while guest.inb(0x61) & 0x20 == 0 {}
    let expected_ns = 0x10ff * 1_000_000_000 / 1_193_182;
    assert!((guest.time.now - start).abs_diff(expected_ns) < 10_000);
}

#[test]
fn a_latched_count_stays_until_read_and_status_comes_first() {
    let mut guest = Guest::new();
    pit_set_periodic(&mut guest);
    guest.outb(0x43, 0xc2);
    guest.time.now += 1_000_000;
    let status = guest.inb(0x40);
    let count = u16::from_le_bytes([guest.inb(0x40), guest.inb(0x40)]);
    assert_eq!(status, 0xb4);
    assert!(count > LATCH - 10 && count <= LATCH, "{count}");
    guest.outb(0x43, 0x00);
    let count = u16::from_le_bytes([guest.inb(0x40), guest.inb(0x40)]);
    assert!((LATCH - count).abs_diff(1193) < 20, "{count}");
}

#[test]
fn the_early_entropy_of_kaslr_finds_a_count() {
    let mut guest = Guest::new();
    guest.outb(0x43, 0xc0 | 0x02);
    assert_eq!(guest.inb(0x40) & 0x40, 0, "the count is not ready");
    let first = u16::from_le_bytes([guest.inb(0x40), guest.inb(0x40)]);
    guest.time.now += 10_000;
    guest.outb(0x43, 0xc0 | 0x02);
    guest.inb(0x40);
    assert_ne!(u16::from_le_bytes([guest.inb(0x40), guest.inb(0x40)]), first);
}
