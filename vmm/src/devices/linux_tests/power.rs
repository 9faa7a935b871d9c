//! ACPI as ACPICA drives it, the ways out of the machine, and the probe of PCI.

use super::*;

const VECTOR: u8 = 0x39;

fn open() -> Guest {
    let mut guest = Guest::new();
    guest.set_up_local_apic();
    guest.route(9, VECTOR, true);
    guest
}

#[test]
fn the_machine_is_in_acpi_mode() {
    assert_eq!(Guest::new().inw(0x604) & 1, 1);
}

#[test]
fn the_power_button_interrupts_until_its_status_is_cleared() {
    let mut guest = open();
    guest.outw(0x602, 0x0100);
    guest.platform.power_button();
    assert_eq!(guest.take_interrupt(), Some(VECTOR));
    assert_eq!(guest.platform.acknowledge(), Some(VECTOR), "the level holds");
    assert_eq!(guest.inw(0x600), 0x0100);
    guest.outw(0x600, 0x0100);
    guest.apic_write(END_OF_INTERRUPT, 0);
    assert_eq!(guest.take_interrupt(), None);
    assert_eq!(guest.inw(0x600), 0);
}

#[test]
fn a_press_before_the_driver_is_ready_is_not_lost() {
    let mut guest = open();
    guest.platform.power_button();
    assert_eq!(guest.take_interrupt(), None);
    guest.outw(0x602, 0x0120);
    assert_eq!(guest.take_interrupt(), Some(VECTOR));
}

#[test]
fn soft_off_needs_the_enable_bit_and_the_right_type() {
    let mut guest = Guest::new();
    guest.outw(0x604, 5 << 10);
    guest.outw(0x604, 1 << 13 | 3 << 10);
    assert_eq!(guest.effects, []);
    guest.outw(0x604, 1 << 13 | 5 << 10);
    assert_eq!(guest.effects, [Effect::PowerOff]);
}

#[test]
fn every_way_to_reset() {
    for writes in
        [&[(0xcf9, 0x06)][..], &[(0xcf9, 0x02), (0xcf9, 0x0e)], &[(0x64, 0xfe)], &[(0x92, 0x03)]]
    {
        let mut guest = Guest::new();
        for (port, value) in writes {
            assert_eq!(guest.effects, []);
            guest.outb(*port, *value);
        }
        assert_eq!(guest.effects, [Effect::Reset], "{writes:x?}");
    }
    let mut guest = Guest::new();
    assert_eq!(guest.inb(0x64) & 0x02, 0, "kb_wait");
}

#[test]
fn the_pm_timer_counts_at_its_rate_and_asks_once() {
    let mut guest = Guest::new();
    let first = guest.inl(0x608);
    guest.time.now += 2_000_000_000;
    let second = guest.inl(0x608);
    assert!((second - first).abs_diff(2 * 3_579_545) < 10);
    assert_eq!(guest.time.asked, 2);
}

#[test]
fn the_pm_timer_event_comes_when_the_top_bit_changes() {
    let mut guest = open();
    assert_eq!(guest.platform.next_deadline(), None);
    guest.outw(0x602, 0x0001);
    let due = guest.wait().expect("the event is enabled");
    assert_eq!(due / 1_000_000_000, (1u64 << 31) / 3_579_545);
    assert_eq!(guest.platform.acknowledge(), Some(VECTOR));
    assert_eq!(guest.platform.next_deadline(), None);
    guest.outw(0x600, 0x0001);
    assert!(guest.platform.next_deadline().expect("it comes again") > due);
}

#[test]
fn enabling_an_event_sticks_even_if_it_never_comes() {
    let mut guest = Guest::new();
    guest.outw(0x602, 0xffff);
    assert_eq!(guest.inw(0x602), 0x0721);
    assert_eq!(guest.inw(0x600), 0);
}

#[test]
fn general_purpose_events_are_quiet() {
    let mut guest = Guest::new();
    guest.outb(0x622, 0xff);
    guest.outb(0x620, 0xff);
    assert_eq!((guest.inb(0x620), guest.inb(0x622)), (0, 0xff));
    assert!(!guest.platform.pending_interrupt());
}

#[test]
fn pci_direct_access_finds_the_host_bridge_and_leaves_the_rest_to_the_machine() {
    let mut guest = Guest::new();
    guest.outl(0xcf8, 0x8000_0000);
    assert_eq!(guest.inl(0xcf8), 0x8000_0000);
    assert_eq!(guest.inl(0xcfc), 0x0008_1b36);
    assert_eq!(guest.inw(0xcfe), 0x0008);
    guest.outl(0xcf8, 0x8000_0800);
    assert_eq!(guest.inl(0xcfc), 0xffff_ffff);
    let target = guest.platform.state.pci_host.decode(0xcfc, 4).expect("it goes to slot 1");
    assert_eq!((target.slot, target.function, target.offset), (1, 0, 0));
    guest.outb(0xcf9, 0x02);
    assert_eq!(guest.inl(0xcf8), 0x8000_0800, "a byte there is not the address register");
}
