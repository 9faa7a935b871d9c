//! Who is who: this build, and ids that nobody else has.

use std::fs::File;
use std::io::Read;
use std::sync::OnceLock;

use xxhash_rust::xxh3::Xxh3;

use crate::error::Error;

/// Names the exact build: two sides of a log must share it. It is a digest of this program's
/// file, so that equal names mean equal code.
pub fn build_id() -> String {
    static BUILD: OnceLock<String> = OnceLock::new();
    BUILD
        .get_or_init(|| {
            let version = env!("CARGO_PKG_VERSION");
            match digest_of_this_program() {
                Ok(digest) => format!("{version}-{digest:016x}"),
                Err(error) => {
                    log::warn!("this program's file cannot be read: {error}");
                    format!("{version}-unknown")
                }
            }
        })
        .clone()
}

fn digest_of_this_program() -> std::io::Result<u64> {
    let mut file = File::open("/proc/self/exe")?;
    let mut hasher = Xxh3::new();
    let mut bytes = vec![0; 1 << 20];
    loop {
        match file.read(&mut bytes)? {
            0 => return Ok(hasher.digest()),
            count => hasher.update(&bytes[..count]),
        }
    }
}

/// 16 random bytes.
///
/// # Errors
/// The host's random source cannot be read.
pub fn random_id() -> Result<[u8; 16], Error> {
    let mut id = [0; 16];
    File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut id)).map_err(|source| {
        Error::File { what: "No random id can be drawn:", path: "/dev/urandom".into(), source }
    })?;
    Ok(id)
}

/// An id in hexadecimal digits.
pub fn hex(id: &[u8]) -> String {
    id.iter().map(|byte| format!("{byte:02x}")).collect()
}
