//! The loader against a distribution's kernel, if there is one on this machine.
//!
//! The kernel is the one that `FT_TEST_KERNEL` names, else the newest `vmlinuz-*` in the project's
//! cache (`.cache/`). Without either the tests say loudly that they did not run.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use iced_x86::{Decoder, DecoderOptions, Mnemonic};

use super::testing::{guest_memory, memory_map};
use super::tsc::{TscKind, TscSite};
use super::*;

fn kernel() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("FT_TEST_KERNEL") {
        return Some(PathBuf::from(path));
    }
    let cache = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.cache");
    let mut found = Vec::new();
    collect(&cache, 4, &mut found);
    found.sort();
    if found.is_empty() {
        // Not `eprintln!`: the test harness would keep that for itself when a test passes.
        let notice = "\n*** SKIPPED: no kernel (set FT_TEST_KERNEL, or fill .cache) ***\n";
        let _ = writeln!(std::io::stderr(), "{notice}");
    }
    found.pop()
}

/// Looks for `vmlinuz-*` in `folder`, at most `depth` levels down.
fn collect(folder: &Path, depth: u32, found: &mut Vec<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        if path.is_dir() && depth > 0 {
            collect(&path, depth - 1, found);
        } else if path.is_file() && entry.file_name().to_string_lossy().starts_with("vmlinuz-") {
            found.push(path);
        }
    }
}

/// All sites by one sweep from the first byte to the last: another method than the loader's.
fn sweep(code: &[u8]) -> Vec<TscSite> {
    let mut sites = Vec::new();
    let mut decoder = Decoder::new(64, code, DecoderOptions::NONE);
    while decoder.can_decode() {
        let offset = decoder.position();
        let instruction = decoder.decode();
        let length = instruction.len();
        match instruction.mnemonic() {
            Mnemonic::Rdtsc => sites.push(TscSite { offset, length, kind: TscKind::Rdtsc }),
            Mnemonic::Rdtscp => sites.push(TscSite { offset, length, kind: TscKind::Rdtscp }),
            _ => {}
        }
    }
    sites
}

#[test]
fn the_sites_are_those_of_a_sweep_through_all_code() {
    let Some(path) = kernel() else { return };
    let file = image::read_kernel(&path).unwrap();
    let started = Instant::now();
    let image = image::elf_of(&file).unwrap();
    let unpacked = started.elapsed();
    let parsed = elf::Kernel::parse(&image).unwrap();
    let started = Instant::now();
    let sites = find_tsc_sites(&parsed, &image).unwrap();
    let found = started.elapsed();
    let mut swept = Vec::new();
    for range in parsed.code.as_deref().unwrap() {
        let inside = sweep(&image[range.clone()]);
        swept.extend(
            inside.into_iter().map(|site| TscSite { offset: range.start + site.offset, ..site }),
        );
    }
    println!("{}: unpacked in {unpacked:?}, sites found in {found:?}", path.display());
    assert_eq!(sites, swept);
}

#[test]
fn a_distribution_kernel_loads_with_all_its_sites_rewritten() {
    let Some(path) = kernel() else { return };
    let memory = guest_memory(256 << 20);
    let request = LoadRequest {
        kernel: &path,
        initramfs: None,
        cmdline: "",
        rsdp_address: 0,
        memory_map: memory_map(256 << 20),
        options: LoadOptions::default(),
    };
    let loaded = load(&memory, &request).unwrap();
    println!("{}: {loaded:x?}", path.display());
    // Debian's 6.1.192 has 110 and 17, and an older 6.1 of theirs 107 and 17.
    assert!(loaded.tsc_sites.rdtsc > 50, "{:?}", loaded.tsc_sites);
    assert!(loaded.tsc_sites.rdtscp > 5, "{:?}", loaded.tsc_sites);

    let file = image::read_kernel(&path).unwrap();
    let image = image::elf_of(&file).unwrap();
    let parsed = elf::Kernel::parse(&image).unwrap();
    for range in parsed.code.as_deref().unwrap() {
        let Some(address) = parsed.address_of(range.start) else { continue };
        let mut code = vec![0; range.len()];
        memory.read_slice(&mut code, GuestAddress(address)).unwrap();
        assert_eq!(tsc::find(&code), Some(Vec::new()), "a site is left at {address:#x}");
        let changed = image[range.clone()].iter().zip(&code).filter(|(a, b)| a != b).count();
        let sites = tsc::find(&image[range.clone()]).unwrap();
        let bytes: usize = sites.iter().map(|site| site.length).sum();
        assert_eq!(changed, bytes, "something else changed at {address:#x}");
    }
}
