//! What is fuzzed: one module a parser of bytes that a guest, a network or a user chooses.
//!
//! Each module has one function that takes bytes and panics if something is wrong. Two callers feed
//! it: libFuzzer, through the programs in `fuzz_targets/` (`scripts/fuzz` builds and runs them), and
//! an ordinary test (`tests/seeds.rs`), which runs all files of `seeds/` through it, so that what was
//! found once stays mended. Owns which property holds whatever the bytes are, and how much memory one
//! run may take. Does not own the parsers, nor how long anybody fuzzes.

mod channel;
mod decompress;
mod device;
mod http;
mod json;
mod kernel_image;
mod log_file;
mod machine_state;
mod options;
mod platform;
mod replay;
mod replicas;
mod scratch;
mod tsc_scan;
mod virtio;

use std::alloc::System;

use cap::Cap;

/// Counts what is allocated, and refuses what is above the limit of the target that runs. The
/// process ends then: there is no other way to notice memory that a parser takes and gives back.
#[global_allocator]
static ALLOCATOR: Cap<System> = Cap::new(System, usize::MAX);

const MIB: usize = 1 << 20;

/// One thing to fuzz.
pub struct Target {
    /// Its name: that of its program, its folder of seeds and its module.
    pub name: &'static str,
    /// Bytes of heap that one run may take above what was taken before it.
    pub heap_bytes_max: usize,
    function: fn(&[u8]),
}

/// Every target there is.
pub const TARGETS: &[Target] = &[
    Target { name: "channel", heap_bytes_max: 64 * MIB, function: channel::run },
    Target { name: "decompress", heap_bytes_max: 192 * MIB, function: decompress::run },
    Target { name: "http", heap_bytes_max: 16 * MIB, function: http::run },
    Target { name: "json", heap_bytes_max: 16 * MIB, function: json::run },
    Target { name: "kernel_image", heap_bytes_max: 1024 * MIB, function: kernel_image::run },
    Target { name: "log_file", heap_bytes_max: 64 * MIB, function: log_file::run },
    Target { name: "machine_state", heap_bytes_max: 64 * MIB, function: machine_state::run },
    Target { name: "options", heap_bytes_max: 16 * MIB, function: options::run },
    Target { name: "platform", heap_bytes_max: 16 * MIB, function: platform::run },
    Target { name: "replay", heap_bytes_max: 64 * MIB, function: replay::run },
    Target { name: "replicas", heap_bytes_max: 64 * MIB, function: replicas::run },
    Target { name: "tsc_scan", heap_bytes_max: 16 * MIB, function: tsc_scan::run },
    Target { name: "virtio", heap_bytes_max: 64 * MIB, function: virtio::run },
];

/// The target of this name.
///
/// # Panics
///
/// If there is none.
#[must_use]
pub fn target(name: &str) -> &'static Target {
    let found = TARGETS.iter().find(|target| target.name == name);
    found.unwrap_or_else(|| panic!("there is no fuzz target '{name}'"))
}

impl Target {
    /// Runs the target on `data`, under its bound on memory.
    ///
    /// # Panics
    ///
    /// If something is wrong: that is what it is for. Too much memory ends the process.
    pub fn run(&self, data: &[u8]) {
        let limit = ALLOCATOR.allocated().saturating_add(self.heap_bytes_max);
        // A limit below what is allocated is the only thing it refuses.
        let _ = ALLOCATOR.set_limit(limit);
        (self.function)(data);
        let _ = ALLOCATOR.set_limit(usize::MAX);
    }
}

/// Runs the target `name` on `data`: the whole of a program in `fuzz_targets/`.
///
/// # Panics
///
/// As [`Target::run`].
pub fn run(name: &str, data: &[u8]) {
    target(name).run(data);
}
