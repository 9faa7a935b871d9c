//! Numbered blocks, written round and round a file: the load on the disk, and what it must have left there.
//!
//! Owns their layout and their check. Writing is the guest's; checking is the guest's, or the outside's on the image.

use std::io::{self, Read};

use xxhash_rust::xxh3::xxh3_64;

use super::pattern;
use super::protocol::{numbers, words};

/// Number and checksum of a block, before its content; in bytes.
const HEADER_SIZE: usize = 16;
/// The least size of a block, in bytes.
pub const BLOCK_SIZE_MIN: u32 = 512;

/// The block of this number.
pub fn block(number: u64, size: u32) -> Vec<u8> {
    let mut block = vec![0; size as usize];
    let (header, content) = block.split_at_mut(HEADER_SIZE);
    pattern::fill(number.wrapping_mul(u64::from(size)), content);
    header.copy_from_slice(&words::<2, HEADER_SIZE>([number, xxh3_64(content)]));
    block
}

/// Checks a file of `slots` blocks after the first `durable` were made durable. One more may have been begun: its slot
/// may have it, or what it had before, or (a write was cut short) anything.
pub fn check(
    file: &mut impl Read,
    size: u32,
    slots: u32,
    durable: u64,
) -> io::Result<Result<(), String>> {
    let slots = u64::from(slots);
    for slot in 0..slots.min(durable) {
        let mut found = vec![0; size as usize];
        file.read_exact(&mut found)?;
        let last = durable - 1;
        // The highest number below `durable` that goes into this slot.
        let expected = last - (last % slots + slots - slot) % slots;
        if durable % slots == slot {
            continue;
        }
        if found != block(expected, size) {
            let header = found.first_chunk::<HEADER_SIZE>().copied().unwrap_or_default();
            let [number, _] = numbers(header);
            return Ok(Err(format!(
                "slot {slot} must have block {expected} ({durable} were durable) and claims {number}"
            )));
        }
    }
    Ok(Ok(()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(slots: u64, written: u64) -> Vec<u8> {
        let mut file = vec![0; 512 * slots as usize];
        for number in 0..written {
            let start = (number % slots) as usize * 512;
            file[start..start + 512].copy_from_slice(&block(number, 512));
        }
        file
    }

    #[test]
    fn what_was_written_passes_before_and_after_the_turn() {
        for durable in 0..14 {
            for begun in [durable, durable + 1] {
                let file = file(5, begun);
                assert_eq!(check(&mut file.as_slice(), 512, 5, durable).unwrap(), Ok(()));
            }
        }
    }

    #[test]
    fn a_durable_block_that_is_missing_is_found() {
        for durable in 6..14 {
            let mut old = file(5, durable - 1);
            // Whatever was in the slot that may have been begun is of no account.
            let free = (durable % 5) as usize * 512;
            old[free..free + 512].fill(0);
            let verdict = check(&mut old.as_slice(), 512, 5, durable).unwrap();
            assert!(verdict.is_err(), "{durable}");
        }
    }
}
