//! A file for parsers that want a path, in memory where there is such a place.
//!
//! One file a process, written anew for each run: making one each time would be most of the work.

use std::fs::File;
use std::io::{Seek, Write};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use tempfile::NamedTempFile;

/// Where files are in memory on Linux.
const SHARED_MEMORY: &str = "/dev/shm";

/// Calls `reader` with the path of a file that holds `bytes`.
///
/// # Panics
///
/// If the host has no place for the file.
pub(crate) fn with_file<T>(bytes: &[u8], reader: impl FnOnce(&Path) -> T) -> T {
    static FILE: Mutex<Option<NamedTempFile>> = Mutex::new(None);
    // A run that panicked left nothing behind that the next one does not overwrite.
    let mut guard = FILE.lock().unwrap_or_else(PoisonError::into_inner);
    let file = guard.get_or_insert_with(|| {
        NamedTempFile::new_in(SHARED_MEMORY)
            .or_else(|_| NamedTempFile::new())
            .expect("a place for a file")
    });
    fill(file.as_file_mut(), bytes).expect("room for the file");
    reader(file.path())
}

fn fill(file: &mut File, bytes: &[u8]) -> std::io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    file.write_all(bytes)
}
