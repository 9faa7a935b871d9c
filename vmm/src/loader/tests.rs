//! Whole loads: from files to guest memory, good and bad, and a real kernel if there is one.

use std::path::{Path, PathBuf};

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::testing::{
    ElfBuilder, LOAD_ADDRESS, Packing, bzimage, guest_memory, memory_map, sample_code, vmlinux,
};
use super::*;

const RAM: usize = 32 << 20;

/// A folder with files to load, and what they are loaded into.
struct Bench {
    folder: tempfile::TempDir,
    memory: GuestMemory,
    map: Vec<MemoryMapEntry>,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Bench { folder, memory: guest_memory(RAM), map: memory_map(RAM as u64) }
    }

    fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    }

    fn load(&self, kernel: &Path, initramfs: Option<&Path>) -> Result<Loaded, LoaderError> {
        self.load_with(kernel, initramfs, LoadOptions::default())
    }

    fn load_with(
        &self,
        kernel: &Path,
        initramfs: Option<&Path>,
        options: LoadOptions,
    ) -> Result<Loaded, LoaderError> {
        let request = LoadRequest {
            kernel,
            initramfs,
            cmdline: "console=ttyS0",
            rsdp_address: 0xe_0000,
            memory_map: self.map.clone(),
            options,
        };
        load(&self.memory, &request)
    }

    fn read(&self, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }
}

fn code_with_sites() -> Vec<u8> {
    let mut code = sample_code(500);
    code.extend([0x0f, 0x31]);
    code.extend(sample_code(500));
    code.extend([0x0f, 0x01, 0xf9]);
    code.extend(sample_code(30));
    code
}

#[test]
fn every_form_of_a_kernel_ends_up_the_same_in_memory() {
    let bench = Bench::new();
    let elf = vmlinux(&code_with_sites());
    let from_elf = bench.load(&bench.file("vmlinux", &elf), None).unwrap();
    assert_eq!(from_elf.entry, LOAD_ADDRESS);
    assert_eq!(from_elf.start_info, placement::START_INFO);
    assert_eq!(from_elf.tsc_sites, TscSites { rdtsc: 1, rdtscp: 1 });
    let expected = bench.read(LOAD_ADDRESS, 2000);
    for packing in Packing::ALL {
        let bench = Bench::new();
        let loaded = bench.load(&bench.file("bzImage", &bzimage(&elf, packing)), None).unwrap();
        assert_eq!(loaded, from_elf, "{packing:?}");
        assert!(bench.read(LOAD_ADDRESS, 2000) == expected, "{packing:?}");
    }
}

#[test]
fn time_stamp_reads_become_port_reads_unless_told_otherwise() {
    let bench = Bench::new();
    let code = code_with_sites();
    let kernel = bench.file("vmlinux", &vmlinux(&code));
    let mut expected = code.clone();
    let rdtsc = code.windows(2).position(|bytes| bytes == [0x0f, 0x31]).unwrap();
    expected[rdtsc..rdtsc + 2].copy_from_slice(&[0xe5, RDTSC_PORT]);
    let rdtscp = code.windows(3).position(|bytes| bytes == [0x0f, 0x01, 0xf9]).unwrap();
    expected[rdtscp..rdtscp + 3].copy_from_slice(&[0xe5, RDTSCP_PORT, 0x90]);

    bench.load(&kernel, None).unwrap();
    assert_eq!(bench.read(LOAD_ADDRESS, code.len()), expected);

    let loaded = bench
        .load_with(&kernel, None, LoadOptions { rewrite_tsc: false, ..LoadOptions::default() })
        .unwrap();
    assert_eq!(loaded.tsc_sites, TscSites::default());
    assert_eq!(bench.read(LOAD_ADDRESS, code.len()), code);
}

#[test]
fn bss_is_cleared_even_in_memory_that_was_used_before() {
    let bench = Bench::new();
    bench.memory.write_slice(&[0xaa; 300_000], GuestAddress(LOAD_ADDRESS)).unwrap();
    let code = [0x90; 64];
    let elf = ElfBuilder { bss_bytes: 200_000, ..ElfBuilder::new(&code) }.build();
    let loaded = bench.load(&bench.file("vmlinux", &elf), None).unwrap();
    assert_eq!(loaded.kernel_end, LOAD_ADDRESS + 200_064);
    assert!(bench.read(LOAD_ADDRESS + 64, 200_000).iter().all(|&byte| byte == 0));
    assert_eq!(bench.read(loaded.kernel_end, 1), [0xaa]);
}

#[test]
fn the_initramfs_lies_page_aligned_at_the_top_of_ram() {
    let bench = Bench::new();
    let kernel = bench.file("vmlinux", &vmlinux(&[0x90; 64]));
    let content: Vec<u8> = (0..10_000u32).map(|i| (i % 251) as u8).collect();
    let initramfs = bench.file("initramfs", &content);
    bench.load(&kernel, Some(&initramfs)).unwrap();
    let address = (RAM as u64 - 10_000) & !0xfff;
    assert_eq!(bench.read(address, content.len()), content);
    assert_eq!(bench.read(placement::MODULE_LIST, 8), address.to_le_bytes());
    assert_eq!(bench.read(placement::MODULE_LIST + 8, 8), 10_000u64.to_le_bytes());
}

#[test]
fn the_initramfs_stays_clear_of_ranges_that_are_not_ram() {
    let mut bench = Bench::new();
    bench.map[2].size -= 0x1_0000;
    let acpi = MemoryMapEntry {
        start: RAM as u64 - 0x1_0000,
        size: 0x1_0000,
        kind: MemoryKind::AcpiTables,
    };
    let high = MemoryMapEntry { start: 1 << 32, size: 1 << 30, kind: MemoryKind::Ram };
    bench.map.extend([acpi, high]);
    let kernel = bench.file("vmlinux", &vmlinux(&[0x90; 64]));
    let initramfs = bench.file("initramfs", &[1; 0x1001]);
    bench.load(&kernel, Some(&initramfs)).unwrap();
    assert_eq!(bench.read(RAM as u64 - 0x1_2000, 1), [1]);
    assert_eq!(bench.read(placement::MODULE_LIST, 8), (RAM as u64 - 0x1_2000).to_le_bytes());
}

#[test]
fn a_kernel_or_initramfs_too_large_for_the_memory_is_told_so() {
    let bench = Bench::new();
    let kernel = bench.file("vmlinux", &vmlinux(&[0x90; 64]));
    let huge = bench.file("initramfs", &[]);
    std::fs::File::options().write(true).open(&huge).unwrap().set_len(1 << 40).unwrap();
    let error = bench.load(&kernel, Some(&huge)).unwrap_err();
    assert!(matches!(error, LoaderError::InitramfsTooLarge { size_bytes: 0x100_0000_0000, .. }));

    let room = RAM as u64 - LOAD_ADDRESS;
    let code = [0x90; 64];
    let fits = ElfBuilder { bss_bytes: room - 64, ..ElfBuilder::new(&code) }.build();
    assert!(bench.load(&bench.file("fits", &fits), None).is_ok());
    let large = ElfBuilder { bss_bytes: room - 63, ..ElfBuilder::new(&code) }.build();
    let error = bench.load(&bench.file("large", &large), None).unwrap_err();
    assert!(matches!(error, LoaderError::KernelOutsideMemory { .. }), "{error}");
    assert!(error.to_string().contains("more memory"));
}

#[test]
fn bad_files_are_named_in_a_sentence() {
    let bench = Bench::new();
    let kernel = bench.file("vmlinux", &vmlinux(&[0x90; 64]));
    let empty = bench.file("empty", &[]);
    let script = bench.file("script", b"#!/bin/sh\n");
    let missing = bench.folder.path().join("missing");
    let stripped = bench
        .file("stripped", &ElfBuilder { sections: false, ..ElfBuilder::new(&[0x90; 64]) }.build());
    let cases: [(&Path, Option<&Path>, &str); 6] = [
        (&missing, None, "The kernel '"),
        (&empty, None, "is empty"),
        (&script, None, "neither an ELF 'vmlinux' nor a 'bzImage'"),
        (&stripped, None, "no section headers"),
        (&kernel, Some(&missing), "The initramfs '"),
        (&kernel, Some(&empty), "is empty"),
    ];
    for (kernel, initramfs, words) in cases {
        let error = bench.load(kernel, initramfs).unwrap_err().to_string();
        assert!(error.contains(words) && error.ends_with('.'), "{error}");
    }
    let left = LoadOptions { may_leave_tsc: true, ..LoadOptions::default() };
    assert!(bench.load_with(&stripped, None, left).is_ok());
}

/// Loads from memory, as `load` does from a file.
fn digest(bytes: &[u8]) {
    if let Ok(image) = image::elf_of(bytes)
        && let Ok(kernel) = elf::Kernel::parse(&image)
    {
        let _ = find_tsc_sites(&kernel, &image);
        for segment in &kernel.segments {
            let _ = check_in_ram(segment, &memory_map(RAM as u64));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..4096)) {
        digest(&bytes);
        let _ = decompress::unpack(&bytes);
        let _ = tsc::find(&bytes);
    }

    #[test]
    fn damaged_kernels_never_panic(
        packing in prop::sample::select(&Packing::ALL),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        in_headers in any::<bool>(),
    ) {
        let mut image = match packing {
            Packing::None => vmlinux(&sample_code(600)),
            packing => bzimage(&vmlinux(&sample_code(600)), packing),
        };
        let reach = if in_headers { 200 } else { image.len() };
        for (index, byte) in damage {
            image[index.index(reach)] = byte;
        }
        digest(&image);
    }

    #[test]
    fn damaged_payloads_never_panic(
        packing in prop::sample::select(&Packing::COMPRESSED),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let mut payload = testing::pack(&testing::sample_text(5000), packing);
        for (index, byte) in damage {
            let index = index.index(payload.len());
            payload[index] = byte;
        }
        let _ = decompress::unpack(&payload);
    }
}
