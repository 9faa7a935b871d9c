//! Every file in `seeds/`, through its target: what was found once stays mended, and a parser that
//! no longer stands what it stood is noticed without a fuzzer.

use std::fs;
use std::path::{Path, PathBuf};

use fuzz::TARGETS;

fn files(folder: &Path) -> Vec<PathBuf> {
    // Targets that read structure out of any bytes have no seeds but what was found once.
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

/// Runs of each target on noise: enough to notice that it does not stand anything any more.
const RANDOM_INPUTS: u64 = 100;

/// Bytes that look random and are the same each time.
fn noise(seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..seed * 4).flat_map(|_| next()).collect()
}

/// One test and not one a target: the bound on memory counts what the whole process takes.
#[test]
fn every_seed_is_stood_by_its_target() {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds");
    for target in TARGETS {
        target.run(&[]);
        (1..RANDOM_INPUTS).for_each(|seed| target.run(&noise(seed)));
        for file in files(&seeds.join(target.name)) {
            // A panic below does not say which file it was.
            println!("{}", file.display());
            target.run(&fs::read(&file).unwrap());
        }
    }
}

#[test]
fn no_seed_belongs_to_a_target_that_is_gone() {
    for folder in files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds")) {
        let name = folder.file_name().unwrap().to_str().unwrap();
        assert!(TARGETS.iter().any(|target| target.name == name), "{name}");
    }
}
