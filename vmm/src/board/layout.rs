//! Guest-physical addresses, I/O ports and interrupt numbers of the board, named once.
//!
//! Owns the memory map. Where a kernel, its initramfs and its boot data go inside it is the loader's
//! business (`loader::placement`).

/// Start of the largest hole below 4 GiB: RAM ends here and goes on at [`HIGH_RAM_START`].
pub const LOW_RAM_END: u64 = 0xc000_0000;
/// Where RAM that does not fit below [`LOW_RAM_END`] goes on.
pub const HIGH_RAM_START: u64 = 0x1_0000_0000;

/// First byte of the window from which PCI memory BARs are assigned.
pub const PCI_MMIO_START: u64 = LOW_RAM_END;
/// First byte behind that window.
pub const PCI_MMIO_END: u64 = IOAPIC_ADDRESS;
/// Bytes that each PCI slot owns inside the window.
pub const BAR_SIZE: u64 = 0x1_0000;
/// Slots on bus 0, the only bus. Slot 0 is the host bridge.
pub const PCI_SLOTS: u8 = 32;

/// Register page of the I/O APIC.
pub const IOAPIC_ADDRESS: u64 = 0xfec0_0000;
/// Register page of the local APIC, where it lies after reset. It cannot be moved.
pub const LAPIC_ADDRESS: u64 = 0xfee0_0000;
/// Bytes of each of the two register pages.
pub const APIC_PAGE_SIZE: u64 = 0x1000;

/// Lowest address for a kernel.
pub const KERNEL_START: u64 = 0x10_0000;

/// End of conventional memory: the extended BIOS data area begins.
pub const CONVENTIONAL_END: u64 = 0x9_fc00;
/// The root pointer of ACPI; inside the range that operating systems scan, too.
pub const RSDP_ADDRESS: u64 = 0xe_0000;
/// The rest of the ACPI tables.
pub const ACPI_TABLES: u64 = 0xe_0040;
/// First byte behind the area that ACPI may use.
pub const ACPI_END: u64 = 0x10_0000;

/// Ports of the first serial line (16550A).
pub const SERIAL_PORT: u16 = 0x3f8;
/// ACPI PM1a event block: status and enable, 16 bit each.
pub const PM1_EVENT_PORT: u16 = 0x600;
/// ACPI PM1a control register, 16 bit.
pub const PM1_CONTROL_PORT: u16 = 0x604;
/// ACPI PM timer, 32 bit.
pub const PM_TIMER_PORT: u16 = 0x608;
/// ACPI general-purpose event block 0: status and enable, 16 bit each.
pub const GPE0_PORT: u16 = 0x620;
/// Reset control register of Intel chip sets, named as reset register by the FADT.
pub const RESET_PORT: u16 = 0xcf9;
/// What the guest writes to [`RESET_PORT`] to reset the machine.
pub const RESET_VALUE: u8 = 0x06;
/// `SLP_TYP` of S5, soft off.
pub const SLEEP_TYPE_S5: u8 = 5;

/// Global system interrupt of the PIT: ISA interrupt 0 is wired to pin 2.
pub const TIMER_GSI: u8 = 2;
/// ISA interrupt (and GSI) of the first serial line.
pub const SERIAL_IRQ: u8 = 4;
/// ISA interrupt (and GSI) of the real-time clock.
pub const RTC_IRQ: u8 = 8;
/// ISA interrupt (and GSI) of ACPI events. Level-triggered, active high.
pub const SCI_IRQ: u8 = 9;
/// Pins of the I/O APIC.
pub const IOAPIC_PINS: u8 = 24;

/// APIC id of the I/O APIC.
pub const IOAPIC_ID: u8 = 0;

/// RAM as `(address, bytes)`, ascending, for a guest with `size` bytes in all.
#[must_use]
pub fn ram_regions(size: u64) -> Vec<(u64, u64)> {
    let low = size.min(LOW_RAM_END);
    let mut regions = Vec::with_capacity(2);
    if low > 0 {
        regions.push((0, low));
    }
    if size > low {
        regions.push((HIGH_RAM_START, size - low));
    }
    regions
}

/// What a range of the memory map is for. The numbers are those of e820 and PVH alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum MemoryKind {
    /// Free for the guest.
    Ram = 1,
    /// Not to be touched.
    Reserved = 2,
}

/// One entry of the memory map that the guest is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryRange {
    /// First byte.
    pub address: u64,
    /// Length in bytes, never 0.
    pub size: u64,
    /// Its use.
    pub kind: MemoryKind,
}

/// The memory map for e820 or PVH: ascending, no overlaps.
///
/// The ACPI area is reserved rather than offered for reclaim, so that the tables survive a kexec.
#[must_use]
pub fn memory_map(ram_size: u64) -> Vec<MemoryRange> {
    let mut map = Vec::with_capacity(6);
    let mut push = |start: u64, end: u64, kind| {
        if start < end {
            map.push(MemoryRange { address: start, size: end - start, kind });
        }
    };
    for (address, size) in ram_regions(ram_size) {
        let end = address + size;
        if address == 0 {
            push(0, end.min(CONVENTIONAL_END), MemoryKind::Ram);
            push(CONVENTIONAL_END, end.min(0xa_0000), MemoryKind::Reserved);
            push(RSDP_ADDRESS, ACPI_END, MemoryKind::Reserved);
            push(KERNEL_START, end, MemoryKind::Ram);
        } else {
            push(address, end, MemoryKind::Ram);
        }
    }
    push(IOAPIC_ADDRESS, IOAPIC_ADDRESS + APIC_PAGE_SIZE, MemoryKind::Reserved);
    push(LAPIC_ADDRESS, LAPIC_ADDRESS + APIC_PAGE_SIZE, MemoryKind::Reserved);
    map.sort_by_key(|range| range.address);
    map
}

/// Address of the memory BAR of the function in `slot`, fixed before boot.
///
/// [`BAR_SIZE`] bytes each, naturally aligned. Slots past [`PCI_SLOTS`] share the last one's.
#[must_use]
pub fn bar_address(slot: u8) -> u64 {
    PCI_MMIO_START + u64::from(slot.min(PCI_SLOTS - 1)) * BAR_SIZE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_is_split_around_the_hole() {
        assert_eq!(ram_regions(512 << 20), [(0, 512 << 20)]);
        assert_eq!(ram_regions(LOW_RAM_END), [(0, LOW_RAM_END)]);
        assert_eq!(ram_regions(LOW_RAM_END + 4096), [(0, LOW_RAM_END), (HIGH_RAM_START, 4096)]);
        assert_eq!(ram_regions(0), []);
    }

    #[test]
    fn the_memory_map_is_ordered_without_overlaps_and_keeps_acpi() {
        for size in [1 << 20, 256 << 20, LOW_RAM_END, 8 << 30] {
            let map = memory_map(size);
            for pair in map.windows(2) {
                assert!(pair[0].address + pair[0].size <= pair[1].address, "{pair:x?}");
            }
            assert!(map.iter().any(|range| range.kind == MemoryKind::Reserved
                && range.address <= RSDP_ADDRESS
                && range.address + range.size >= ACPI_END));
            assert!(map.iter().filter(|range| range.kind == MemoryKind::Ram).all(|range| {
                range.address + range.size <= RSDP_ADDRESS || range.address >= ACPI_END
            }));
        }
    }

    #[test]
    fn bars_stay_inside_the_window() {
        for slot in 0..=255 {
            let address = bar_address(slot);
            assert_eq!(address % BAR_SIZE, 0);
            assert!(address >= PCI_MMIO_START && address + BAR_SIZE <= PCI_MMIO_END);
        }
        assert_ne!(bar_address(1), bar_address(2));
    }
}
