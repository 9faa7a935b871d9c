//! A kernel file, from its first byte to guest memory.

use std::sync::OnceLock;

use vm_memory::GuestAddress;
use vmm::board::layout;
use vmm::loader::{self, GuestMemory, LoadOptions, LoadRequest, MemoryKind, MemoryMapEntry};

use crate::scratch::with_file;

const MEMORY_BYTES: usize = 32 << 20;

pub(crate) fn run(data: &[u8]) {
    static MEMORY: OnceLock<GuestMemory> = OnceLock::new();
    let memory = MEMORY.get_or_init(|| {
        GuestMemory::from_ranges(&[(GuestAddress(0), MEMORY_BYTES)]).expect("32 MiB of memory")
    });
    let (command_line, kernel) = data.split_at(data.len().min(1));
    let command_line = "x".repeat(command_line.first().map_or(0, |byte| usize::from(*byte) * 10));
    with_file(kernel, |path| {
        let request = LoadRequest {
            kernel: path,
            initramfs: Some(path),
            cmdline: &command_line,
            rsdp_address: layout::RSDP_ADDRESS,
            memory_map: memory_map(),
            options: LoadOptions::default(),
        };
        match loader::load(memory, &request) {
            Ok(loaded) => {
                assert!(loaded.entry < loaded.kernel_end);
                assert!(loaded.kernel_end <= MEMORY_BYTES as u64);
            }
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    });
}

fn memory_map() -> Vec<MemoryMapEntry> {
    let ranges = layout::memory_map(MEMORY_BYTES as u64).into_iter();
    ranges
        .map(|range| MemoryMapEntry {
            start: range.address,
            size: range.size,
            kind: match range.kind {
                layout::MemoryKind::Ram => MemoryKind::Ram,
                layout::MemoryKind::Reserved => MemoryKind::Reserved,
            },
        })
        .collect()
}
