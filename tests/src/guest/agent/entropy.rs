//! Random bytes, from both sources a guest has.
//!
//! Owns the reading of them.

use std::fs::File;
use std::io::{self, Read};

/// The most bytes that can be asked for at once.
const SIZE_MAX: u32 = 4096;

/// Bytes of the kernel, and of the hardware if there is any.
pub(super) struct Entropy {
    pub(super) kernel: Vec<u8>,
    pub(super) hardware: Option<Vec<u8>>,
}

pub(super) fn read(bytes: u32) -> io::Result<Entropy> {
    if bytes > SIZE_MAX {
        return Err(io::Error::other(format!("{bytes} random bytes are more than {SIZE_MAX}")));
    }
    let size = bytes as usize;
    let mut kernel = vec![0; size];
    // SAFETY: the kernel writes at most the given size, which is the vector's.
    let got = unsafe { libc::getrandom(kernel.as_mut_ptr().cast(), size, 0) };
    if usize::try_from(got) != Ok(size) {
        return Err(io::Error::other("getrandom gave fewer bytes than it was asked for"));
    }
    let mut hardware = vec![0; size];
    // Without a device behind it the file is there all the same, and cannot be read.
    let read = File::open("/dev/hwrng").and_then(|mut file| file.read_exact(&mut hardware));
    Ok(Entropy { kernel, hardware: read.ok().map(|()| hardware) })
}
