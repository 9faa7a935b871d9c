//! The ACPI tables of the board.
//!
//! Owns their content and placement. The registers they describe are modelled in
//! `devices::acpi_pm`; the addresses come from [`super::layout`].
//!
//! The flags are chosen so that Linux probes nothing that is not there: no PS/2 controller, no VGA,
//! no PCI Express hierarchy (hence no `_OSC` negotiation), no general interrupt routing since every
//! PCI function signals by MSI-X.

use acpi_tables::{
    Aml, aml,
    facs::FACS,
    fadt::{FADTBuilder, Flags, PmProfile},
    gas::{AccessSize, AddressSpace, GAS},
    rsdp::Rsdp,
    sdt::Sdt,
    xsdt::XSDT,
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap, bitmap::AtomicBitmap};

use super::layout;

const OEM_ID: [u8; 6] = *b"CLOUDH";
const OEM_TABLE_ID: [u8; 8] = *b"CHFTBORD";
const OEM_REVISION: u32 = 1;

/// What the tables depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AcpiConfig {
    /// Processors, with APIC ids from 0 upwards.
    pub cpus: u8,
    /// Whether the first serial line exists.
    pub serial: bool,
}

/// Writes the tables to guest memory.
///
/// # Errors
///
/// Guest memory does not reach [`layout::ACPI_END`].
pub fn write_acpi(
    memory: &GuestMemoryMmap<AtomicBitmap>,
    config: &AcpiConfig,
) -> Result<(), GuestMemoryError> {
    for (address, table) in build(config) {
        memory.write_slice(&table, GuestAddress(address))?;
    }
    Ok(())
}

/// The tables as `(address, bytes)`: the root pointer at [`layout::RSDP_ADDRESS`], the others
/// behind each other from [`layout::ACPI_TABLES`].
#[must_use]
pub fn build(config: &AcpiConfig) -> Vec<(u64, Vec<u8>)> {
    let mut placed = Placed { tables: Vec::new(), next: layout::ACPI_TABLES };
    // The FACS must be aligned to 64 bytes (ACPI 6.5, section 5.2.10); so is everything here.
    let facs = placed.add(&FACS::new());
    let dsdt = placed.add(&dsdt(config));
    let fadt = placed.add(&fadt(facs, dsdt).finalize());
    let madt = placed.add(&madt(config));
    let mut root = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    root.add_entry(fadt);
    root.add_entry(madt);
    let xsdt = placed.add(&root);
    // 255 processors take some 2 KiB of the area's 128.
    assert!(placed.next <= layout::ACPI_END, "the ACPI tables outgrew their area");
    placed.tables.insert(0, (layout::RSDP_ADDRESS, bytes(&Rsdp::new(OEM_ID, xsdt))));
    placed.tables
}

struct Placed {
    tables: Vec<(u64, Vec<u8>)>,
    next: u64,
}

impl Placed {
    fn add(&mut self, table: &dyn Aml) -> u64 {
        let address = self.next;
        let bytes = bytes(table);
        self.next = (address + bytes.len() as u64).next_multiple_of(64);
        self.tables.push((address, bytes));
        address
    }
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

fn port(address: u16, bits: u8, size: AccessSize) -> GAS {
    GAS::new(AddressSpace::SystemIo, bits, 0, size, u64::from(address))
}

/// Fixed ACPI description table (ACPI 6.5, section 5.2.9).
fn fadt(facs: u64, dsdt: u64) -> FADTBuilder {
    const LEGACY_DEVICES: u16 = 1 << 0;
    const VGA_NOT_PRESENT: u16 = 1 << 2;
    const NO_PCIE_ASPM: u16 = 1 << 4;

    // No SMI command port: the machine is in ACPI mode from the start. A power button flag of 0
    // says that it is a fixed one; a sleep button flag of 1, that there is none.
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .preferred_pm_profile(PmProfile::EnterpriseServer)
        .firmware_ctrl_32(facs as u32)
        .dsdt_64(dsdt)
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        .flag(Flags::SlpButton)
        .flag(Flags::FixRtc)
        .flag(Flags::TmrValExt)
        .flag(Flags::ResetRegSup)
        .gpe_info(u32::from(layout::GPE0_PORT), 0, 4, 0, 0);
    fadt.dsdt = (dsdt as u32).into();
    fadt.sci_int = u16::from(layout::SCI_IRQ).into();
    fadt.pm1a_evt_blk = u32::from(layout::PM1_EVENT_PORT).into();
    fadt.pm1a_cnt_blk = u32::from(layout::PM1_CONTROL_PORT).into();
    fadt.pm_tmr_blk = u32::from(layout::PM_TIMER_PORT).into();
    fadt.pm1_evt_len = 4;
    fadt.pm1_cnt_len = 2;
    fadt.pm_tmr_len = 4;
    // Latencies above the limits of 100 and 1000 µs: C2 and C3 do not exist.
    fadt.p_lvl2_lat = 0x0fff.into();
    fadt.p_lvl3_lat = 0x0fff.into();
    fadt.century = 0x32;
    fadt.iapc_boot_arch = (LEGACY_DEVICES | VGA_NOT_PRESENT | NO_PCIE_ASPM).into();
    fadt.reset_reg = port(layout::RESET_PORT, 8, AccessSize::ByteAccess);
    fadt.reset_value = layout::RESET_VALUE;
    fadt.x_pm1a_evt_blk = port(layout::PM1_EVENT_PORT, 32, AccessSize::WordAccess);
    fadt.x_pm1a_cnt_blk = port(layout::PM1_CONTROL_PORT, 16, AccessSize::WordAccess);
    fadt.x_pm_tmr_blk = port(layout::PM_TIMER_PORT, 32, AccessSize::DwordAccess);
    fadt.x_gpe0_blk = port(layout::GPE0_PORT, 32, AccessSize::WordAccess);
    fadt
}

/// Multiple APIC description table (ACPI 6.5, section 5.2.12).
///
/// Built from bytes: the library's own type lacks interrupt source overrides and the flags.
fn madt(config: &AcpiConfig) -> Sdt {
    const PCAT_COMPAT: u32 = 1;
    const ENABLED: u32 = 1;
    const ISA_BUS: u8 = 0;
    const CONFORMING: u16 = 0;
    const LEVEL_ACTIVE_HIGH: u16 = 0b1101;

    let mut madt = Sdt::new(*b"APIC", 44, 5, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    madt.write_u32(36, layout::LAPIC_ADDRESS as u32);
    madt.write_u32(40, PCAT_COMPAT);
    for cpu in 0..config.cpus {
        madt.append_slice(&[0, 8, cpu, cpu]);
        madt.append_slice(&ENABLED.to_le_bytes());
    }
    madt.append_slice(&[1, 12, layout::IOAPIC_ID, 0]);
    madt.append_slice(&(layout::IOAPIC_ADDRESS as u32).to_le_bytes());
    madt.append_slice(&0u32.to_le_bytes());
    for (irq, gsi, flags) in
        [(0, layout::TIMER_GSI, CONFORMING), (layout::SCI_IRQ, layout::SCI_IRQ, LEVEL_ACTIVE_HIGH)]
    {
        madt.append_slice(&[2, 10, ISA_BUS, irq]);
        madt.append_slice(&u32::from(gsi).to_le_bytes());
        madt.append_slice(&flags.to_le_bytes());
    }
    madt
}

/// Differentiated system description table: what Linux cannot find by itself.
fn dsdt(config: &AcpiConfig) -> Sdt {
    let mut dsdt = Sdt::new(*b"DSDT", 36, 6, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    let s5 = layout::SLEEP_TYPE_S5;
    let soft_off = aml::Package::new(vec![&s5, &s5, &aml::ZERO, &aml::ZERO]);
    dsdt.append_slice(&bytes(&aml::Name::new("_S5_".into(), &soft_off)));
    dsdt.append_slice(&pci_host());
    if config.serial {
        dsdt.append_slice(&isa_device(
            "COM1",
            "PNP0501",
            layout::SERIAL_PORT,
            8,
            layout::SERIAL_IRQ,
        ));
    }
    dsdt.append_slice(&isa_device("RTC_", "PNP0B00", 0x70, 2, layout::RTC_IRQ));
    dsdt
}

/// The root bridge: conventional PCI, so that Linux asks for no PCI Express features.
fn pci_host() -> Vec<u8> {
    bytes(&aml::Device::new(
        "_SB_.PCI0".into(),
        vec![
            &aml::Name::new("_HID".into(), &aml::EISAName::new("PNP0A03")),
            &aml::Name::new("_UID".into(), &aml::ZERO),
            &aml::Name::new("_ADR".into(), &aml::ZERO),
            &aml::Name::new("_BBN".into(), &aml::ZERO),
            &aml::Name::new(
                "_CRS".into(),
                &aml::ResourceTemplate::new(vec![
                    &aml::AddressSpace::new_bus_number(0u16, 0u16),
                    &aml::IO::new(0xcf8, 0xcf8, 1, 8),
                    &aml::AddressSpace::new_io(0u16, 0x0cf7u16, None),
                    &aml::AddressSpace::new_io(0x0d00u16, 0xffffu16, None),
                    &aml::AddressSpace::new_memory(
                        aml::AddressSpaceCacheable::NotCacheable,
                        true,
                        layout::PCI_MMIO_START as u32,
                        (layout::PCI_MMIO_END - 1) as u32,
                        None,
                    ),
                ]),
            ),
        ],
    ))
}

fn isa_device(name: &str, id: &str, port: u16, ports: u8, irq: u8) -> Vec<u8> {
    let path = format!("_SB_.{name}");
    bytes(&aml::Device::new(
        path.as_str().into(),
        vec![
            &aml::Name::new("_HID".into(), &aml::EISAName::new(id)),
            &aml::Name::new("_UID".into(), &aml::ZERO),
            &aml::Name::new(
                "_CRS".into(),
                &aml::ResourceTemplate::new(vec![
                    &aml::IO::new(port, port, 1, ports),
                    &aml::Interrupt::new(true, true, false, false, u32::from(irq)),
                ]),
            ),
        ],
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: AcpiConfig = AcpiConfig { cpus: 1, serial: true };

    fn find<'a>(tables: &'a [(u64, Vec<u8>)], signature: &[u8]) -> &'a (u64, Vec<u8>) {
        tables.iter().find(|(_, table)| table.starts_with(signature)).expect("the table exists")
    }

    fn number(table: &[u8], offset: usize, length: usize) -> u64 {
        let bytes = &table[offset..offset + length];
        bytes.iter().rev().fold(0, |sum, byte| (sum << 8) | u64::from(*byte))
    }

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    #[test]
    fn checksums_lengths_and_places_are_right() {
        for cpus in [1, 255] {
            let tables = build(&AcpiConfig { cpus, serial: false });
            assert_eq!(tables[0].0, layout::RSDP_ADDRESS);
            assert_eq!((sum(&tables[0].1[..20]), sum(&tables[0].1)), (0, 0));
            for (address, table) in &tables[1..] {
                assert_eq!(number(table, 4, 4), table.len() as u64);
                assert!(*address >= layout::ACPI_TABLES && address % 64 == 0);
                assert!(address + table.len() as u64 <= layout::ACPI_END);
                assert!(table.starts_with(b"FACS") || sum(table) == 0);
            }
            for pair in tables.windows(2) {
                assert!(pair[0].0 + pair[0].1.len() as u64 <= pair[1].0);
            }
        }
    }

    #[test]
    fn every_table_is_reached_from_the_root() {
        let tables = build(&CONFIG);
        let xsdt = find(&tables, b"XSDT");
        assert_eq!(number(&tables[0].1, 24, 8), xsdt.0);
        let entries: Vec<u64> = xsdt.1[36..].chunks(8).map(|entry| number(entry, 0, 8)).collect();
        let fadt = find(&tables, b"FACP");
        assert_eq!(entries, [fadt.0, find(&tables, b"APIC").0]);
        assert_eq!(number(&fadt.1, 36, 4), find(&tables, b"FACS").0);
        assert_eq!(number(&fadt.1, 40, 4), find(&tables, b"DSDT").0);
        assert_eq!(number(&fadt.1, 140, 8), find(&tables, b"DSDT").0);
    }

    #[test]
    fn the_fadt_names_the_modelled_ports() {
        let tables = build(&CONFIG);
        let fadt = &find(&tables, b"FACP").1;
        assert_eq!(fadt.len(), 276);
        assert_eq!(number(fadt, 46, 2), 9);
        assert_eq!(number(fadt, 76, 4), u64::from(layout::PM_TIMER_PORT));
        assert_eq!(number(fadt, 212, 8), u64::from(layout::PM_TIMER_PORT));
        assert_eq!(number(fadt, 120, 8), u64::from(layout::RESET_PORT));
        let flags = number(fadt, 112, 4);
        assert_eq!(flags & (1 << 4), 0, "a power button among the fixed events");
        assert_eq!(flags & (1 << 10), 1 << 10, "a reset register");
        assert_eq!(number(fadt, 109, 2) & 0b10, 0, "no keyboard controller");
    }

    #[test]
    fn the_madt_lists_processors_the_ioapic_and_two_overrides() {
        let tables = build(&AcpiConfig { cpus: 2, serial: true });
        let madt = &find(&tables, b"APIC").1;
        let mut rest = &madt[44..];
        let mut kinds = Vec::new();
        while let [kind, length, ..] = rest {
            kinds.push(*kind);
            rest = &rest[usize::from(*length)..];
        }
        assert_eq!(kinds, [0, 0, 1, 2, 2]);
        assert!(madt.windows(10).any(|entry| entry == [2, 10, 0, 0, 2, 0, 0, 0, 0, 0]));
        assert!(madt.windows(10).any(|entry| entry == [2, 10, 0, 9, 9, 0, 0, 0, 0x0d, 0]));
    }

    #[test]
    fn guest_memory_that_ends_too_early_is_an_error() {
        let memory = |size| {
            GuestMemoryMmap::<AtomicBitmap>::from_ranges(&[(GuestAddress(0), size)])
                .expect("the test has memory")
        };
        assert!(write_acpi(&memory(0x8_0000), &CONFIG).is_err());
        let memory = memory(0x20_0000);
        write_acpi(&memory, &CONFIG).expect("it fits");
        let mut signature = [0; 8];
        memory.read_slice(&mut signature, GuestAddress(layout::RSDP_ADDRESS)).expect("in range");
        assert_eq!(&signature, b"RSD PTR ");
    }
}
