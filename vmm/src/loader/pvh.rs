//! Writes what the kernel finds at its PVH entry: `hvm_start_info`, version 1, and what it points to.
//!
//! Owns the encoding (Xen's `arch-x86/hvm/start_info.h`, by way of `linux-loader`). The addresses
//! are those of [`placement`](super::placement); loading kernel and initramfs is elsewhere.

use linux_loader::configurator::pvh::PvhBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::elf::start_info::{
    XEN_HVM_MEMMAP_TYPE_ACPI, XEN_HVM_MEMMAP_TYPE_NVS, XEN_HVM_MEMMAP_TYPE_RAM,
    XEN_HVM_MEMMAP_TYPE_RESERVED, XEN_HVM_START_MAGIC_VALUE, hvm_memmap_table_entry,
    hvm_modlist_entry, hvm_start_info,
};
use vm_memory::{Bytes, GuestAddress};

use super::error::LoaderError;
use super::placement::{
    COMMAND_LINE, COMMAND_LINE_BYTES_MAX, MEMORY_MAP, MEMORY_MAP_ENTRIES_MAX, MODULE_LIST,
    START_INFO,
};
use super::{GuestMemory, MemoryKind, MemoryMapEntry};

/// What there is to tell the kernel.
#[derive(Debug)]
pub struct BootData<'a> {
    /// Kernel command line, without a final zero byte.
    pub command_line: &'a str,
    /// Guest-physical address of the ACPI RSDP, or 0.
    pub rsdp_address: u64,
    /// Guest-physical memory, to be handed over as it is.
    pub memory_map: &'a [MemoryMapEntry],
    /// Guest-physical address and size in bytes of the initramfs.
    pub initramfs: Option<(u64, u64)>,
}

/// Checks what the limits of the boot protocol allow, before anything is written.
pub fn check(command_line: &str, memory_map: &[MemoryMapEntry]) -> Result<(), LoaderError> {
    if command_line.len() > COMMAND_LINE_BYTES_MAX {
        return Err(LoaderError::CommandLineTooLong { length_bytes: command_line.len() });
    }
    if let Some(position) = command_line.bytes().position(|byte| byte == 0) {
        return Err(LoaderError::CommandLineZeroByte { position });
    }
    if memory_map.len() > MEMORY_MAP_ENTRIES_MAX {
        return Err(LoaderError::MemoryMapTooLong { entries: memory_map.len() });
    }
    Ok(())
}

/// Writes all of it to guest memory.
pub fn write(memory: &GuestMemory, data: &BootData<'_>) -> Result<(), LoaderError> {
    check(data.command_line, data.memory_map)?;
    let mut command_line = data.command_line.as_bytes().to_vec();
    command_line.push(0);
    memory.write_slice(&command_line, GuestAddress(COMMAND_LINE)).map_err(|error| {
        LoaderError::WriteBootData { address: COMMAND_LINE, reason: error.to_string() }
    })?;

    let memory_map: Vec<_> = data.memory_map.iter().map(entry).collect();
    let modules: Vec<_> = data
        .initramfs
        .iter()
        .map(|&(paddr, size)| hvm_modlist_entry { paddr, size, ..Default::default() })
        .collect();
    let start_info = hvm_start_info {
        magic: XEN_HVM_START_MAGIC_VALUE,
        version: 1,
        nr_modules: modules.len() as u32,
        modlist_paddr: if modules.is_empty() { 0 } else { MODULE_LIST },
        cmdline_paddr: COMMAND_LINE,
        rsdp_paddr: data.rsdp_address,
        memmap_paddr: MEMORY_MAP,
        memmap_entries: memory_map.len() as u32,
        ..Default::default()
    };
    let mut parameters = BootParams::new(&start_info, GuestAddress(START_INFO));
    parameters.set_sections(&memory_map, GuestAddress(MEMORY_MAP));
    if !modules.is_empty() {
        parameters.set_modules(&modules, GuestAddress(MODULE_LIST));
    }
    PvhBootConfigurator::write_bootparams(&parameters, memory).map_err(|error| {
        LoaderError::WriteBootData { address: START_INFO, reason: error.to_string() }
    })
}

fn entry(entry: &MemoryMapEntry) -> hvm_memmap_table_entry {
    let type_ = match entry.kind {
        MemoryKind::Ram => XEN_HVM_MEMMAP_TYPE_RAM,
        MemoryKind::Reserved => XEN_HVM_MEMMAP_TYPE_RESERVED,
        MemoryKind::AcpiTables => XEN_HVM_MEMMAP_TYPE_ACPI,
        MemoryKind::AcpiNvs => XEN_HVM_MEMMAP_TYPE_NVS,
    };
    hvm_memmap_table_entry { addr: entry.start, size: entry.size, type_, reserved: 0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loader::testing::{guest_memory, memory_map};

    fn field<T: vm_memory::ByteValued>(memory: &GuestMemory, address: u64) -> T {
        memory.read_obj(GuestAddress(address)).unwrap()
    }

    #[test]
    fn the_kernel_finds_everything_from_the_start_info() {
        let memory = guest_memory(16 << 20);
        let memory_map = memory_map(16 << 20);
        let data = BootData {
            command_line: "console=ttyS0",
            rsdp_address: 0xe_0000,
            memory_map: &memory_map,
            initramfs: Some((0xf0_0000, 1234)),
        };
        write(&memory, &data).unwrap();
        let info: hvm_start_info = field(&memory, START_INFO);
        assert_eq!((info.magic, info.version), (0x336e_c578, 1));
        assert_eq!((info.rsdp_paddr, info.nr_modules, info.flags), (0xe_0000, 1, 0));
        let module: hvm_modlist_entry = field(&memory, info.modlist_paddr);
        assert_eq!((module.paddr, module.size), (0xf0_0000, 1234));
        let mut line = [0; 14];
        memory.read_slice(&mut line, GuestAddress(info.cmdline_paddr)).unwrap();
        assert_eq!(&line, b"console=ttyS0\0");
        assert_eq!(info.memmap_entries as usize, memory_map.len());
        let last: hvm_memmap_table_entry =
            field(&memory, info.memmap_paddr + 24 * (memory_map.len() as u64 - 1));
        assert_eq!((last.addr, last.addr + last.size, last.type_), (0x10_0000, 16 << 20, 1));
    }

    #[test]
    fn without_an_initramfs_there_is_no_module() {
        let memory = guest_memory(16 << 20);
        let data = BootData { command_line: "", rsdp_address: 0, memory_map: &[], initramfs: None };
        write(&memory, &data).unwrap();
        let info: hvm_start_info = field(&memory, START_INFO);
        assert_eq!((info.nr_modules, info.modlist_paddr, info.memmap_entries), (0, 0, 0));
    }

    #[test]
    fn command_lines_that_the_kernel_would_cut_are_refused() {
        assert!(check(&"x".repeat(2047), &[]).is_ok());
        let error = check(&"x".repeat(2048), &[]).unwrap_err();
        assert!(error.to_string().contains("2048 bytes"), "{error}");
        assert!(matches!(
            check("a\0b", &[]),
            Err(LoaderError::CommandLineZeroByte { position: 1 })
        ));
    }

    #[test]
    fn a_memory_map_with_too_many_entries_is_refused() {
        let entry = MemoryMapEntry { start: 0, size: 1, kind: MemoryKind::Reserved };
        let map = vec![entry; MEMORY_MAP_ENTRIES_MAX + 1];
        assert!(check("", &map[1..]).is_ok());
        assert!(matches!(check("", &map), Err(LoaderError::MemoryMapTooLong { entries: 129 })));
    }
}
