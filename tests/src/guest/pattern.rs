//! An endless sequence of bytes of which any part can be made and checked without the rest.
//!
//! Owns the sequence. Every aligned eight bytes are a number that depends on their place alone, so that a lost, doubled,
//! moved or altered piece shows.

const WORD_SIZE: usize = 8;

fn word(index: u64) -> [u8; WORD_SIZE] {
    // An odd factor with no pattern in its bits; the index is never lost, for the product can be divided again.
    (index.wrapping_add(1)).wrapping_mul(0xd1b5_4a32_d192_ed03).to_le_bytes()
}

/// Fills `bytes` with the sequence from `offset` on.
pub fn fill(offset: u64, bytes: &mut [u8]) {
    let (mut index, skipped) = split(offset);
    let (head, rest) = bytes.split_at_mut(head_size(skipped, bytes.len()));
    for (byte, value) in head.iter_mut().zip(word(index).into_iter().skip(skipped)) {
        *byte = value;
    }
    index += u64::from(skipped > 0);
    for chunk in rest.chunks_mut(WORD_SIZE) {
        let size = chunk.len();
        chunk.copy_from_slice(&word(index)[..size]);
        index += 1;
    }
}

/// Checks that `bytes` are the sequence from `offset` on; the place of the first byte in `bytes` that is not.
pub fn check(offset: u64, bytes: &[u8]) -> Result<(), usize> {
    let (mut index, skipped) = split(offset);
    let (head, rest) = bytes.split_at(head_size(skipped, bytes.len()));
    let expected = word(index);
    if let Some(place) = difference(head, &expected[skipped..]) {
        return Err(place);
    }
    index += u64::from(skipped > 0);
    for (number, chunk) in rest.chunks(WORD_SIZE).enumerate() {
        if let Some(place) = difference(chunk, &word(index)) {
            return Err(head.len() + number * WORD_SIZE + place);
        }
        index += 1;
    }
    Ok(())
}

fn split(offset: u64) -> (u64, usize) {
    (offset / WORD_SIZE as u64, (offset % WORD_SIZE as u64) as usize)
}

/// How many bytes there are before the first whole word.
fn head_size(skipped: usize, size: usize) -> usize {
    if skipped == 0 { 0 } else { (WORD_SIZE - skipped).min(size) }
}

/// The first byte that is not as expected; what is expected may be longer.
fn difference(bytes: &[u8], expected: &[u8]) -> Option<usize> {
    if bytes == &expected[..bytes.len()] {
        return None;
    }
    bytes.iter().zip(expected).position(|(byte, expected)| byte != expected)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_part_is_the_same_as_in_the_whole() {
        let mut whole = [0; 64];
        fill(0, &mut whole);
        for start in 0..40 {
            for size in 0..24 {
                let mut part = vec![0; size];
                fill(start as u64, &mut part);
                assert_eq!(part, whole[start..start + size], "{size} bytes from {start}");
                assert_eq!(check(start as u64, &part), Ok(()));
            }
        }
    }

    #[test]
    fn the_first_bad_byte_is_found() {
        let mut bytes = [0; 50];
        fill(3, &mut bytes);
        for place in 0..50 {
            let mut altered = bytes;
            altered[place] ^= 1;
            assert_eq!(check(3, &altered), Err(place));
        }
        assert!(check(11, &bytes).is_err());
    }
}
