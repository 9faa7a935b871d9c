//! The payload of a bzImage, unpacked.

use vmm::loader::decompress::unpack_at_most;

/// Small enough that a bomb is one, large enough for two blocks of LZ4.
const UNPACKED_BYTES_MAX: u64 = 16 << 20;

pub(crate) fn run(data: &[u8]) {
    match unpack_at_most(data, UNPACKED_BYTES_MAX) {
        Ok(unpacked) => assert!(unpacked.len() as u64 <= UNPACKED_BYTES_MAX),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}
