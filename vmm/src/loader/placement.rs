//! Where the loader puts what the kernel reads at boot, in guest-physical addresses.
//!
//! Owns the layout of the low memory handed over with the PVH entry. Everything above 1 MiB belongs
//! to the kernel's own program headers and to the initramfs, whose place follows from the memory map.

/// The `hvm_start_info` structure; its address is in `%ebx` at the PVH entry.
pub const START_INFO: u64 = 0x6000;

/// The list of modules (`hvm_modlist_entry`), of which there is at most one: the initramfs.
pub const MODULE_LIST: u64 = 0x6100;

/// The memory map (`hvm_memmap_table_entry`).
pub const MEMORY_MAP: u64 = 0x7000;

/// Most entries the memory map may have: as many as fit between it and the command line, and few
/// enough for Linux, whose zero page has room for 128.
pub const MEMORY_MAP_ENTRIES_MAX: usize = 128;

/// The kernel command line, terminated by a zero byte.
pub const COMMAND_LINE: u64 = 0x2_0000;

/// Longest command line in bytes, the final zero byte not counted: x86 Linux cuts the rest off
/// without a word, so the loader refuses it instead.
pub const COMMAND_LINE_BYTES_MAX: usize = 2047;

/// End of the low memory in use here. The kernel's own segments must start above it.
pub const LOW_END: u64 = 0x3_0000;

/// Lowest address at which a kernel segment or an initramfs may lie: the area below is the legacy
/// one with this module's structures, the EBDA and the video memory.
pub const HIGH_START: u64 = 0x10_0000;

/// Alignment of the initramfs in bytes.
pub const PAGE_SIZE: u64 = 0x1000;

const _: () = assert!(START_INFO + 56 <= MODULE_LIST);
const _: () = assert!(MODULE_LIST + 32 <= MEMORY_MAP);
const _: () = assert!(MEMORY_MAP + 24 * MEMORY_MAP_ENTRIES_MAX as u64 <= COMMAND_LINE);
const _: () = assert!(COMMAND_LINE + (COMMAND_LINE_BYTES_MAX as u64) < LOW_END);
