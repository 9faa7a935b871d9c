//! Every file in `seeds/`, through its target: what was found once stays mended, and a parser that
//! no longer stands what it stood is noticed without a fuzzer.

use std::fs;
use std::path::{Path, PathBuf};

use fuzz::TARGETS;

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| {
        panic!("{}: {error}; a target has a folder of seeds", folder.display())
    });
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

/// One test and not one a target: the bound on memory counts what the whole process takes.
#[test]
fn every_seed_is_stood_by_its_target() {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds");
    for target in TARGETS {
        target.run(&[]);
        let files = files(&seeds.join(target.name));
        assert!(!files.is_empty(), "{} has no seeds", target.name);
        for file in files {
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
