//! What changed in a page of guest memory, as runs of words: most pages that are shipped again
//! differ from what was shipped before in a few words.
//!
//! Owns the encoding. Does not own which page a patch is of, or what it is applied to
//! (`page_cache`).

use alloc::vec::Vec;

use crate::bytes::{Reader, put_varint};
use crate::error::DecodeError;
use crate::record::PAGE_SIZE;

/// Bytes that are compared, skipped and sent together.
const WORD: usize = 8;
/// Equal words that end a run. A shorter gap costs less to send than a new run.
const GAP_WORDS: usize = 2;
/// A longer patch is not worth it: the page itself is sent.
pub(crate) const PATCH_BYTES_MAX: usize = PAGE_SIZE / 2;

/// What turns `old` into `new`, or `None` where the page itself costs little more.
pub(crate) fn between(old: &[u8; PAGE_SIZE], new: &[u8; PAGE_SIZE]) -> Option<Vec<u8>> {
    let (old, _) = old.as_chunks::<WORD>();
    let (words, _) = new.as_chunks::<WORD>();
    let differs = |at: usize| old.get(at) != words.get(at);
    let mut out = Vec::new();
    let (mut at, mut sent) = (0, 0);
    while at < words.len() {
        if !differs(at) {
            at += 1;
            continue;
        }
        let (start, mut end) = (at, at + 1);
        while at < words.len() && at < end + GAP_WORDS {
            if differs(at) {
                end = at + 1;
            }
            at += 1;
        }
        put_varint(&mut out, (start - sent) as u64);
        put_varint(&mut out, (end - start) as u64);
        out.extend_from_slice(words[start..end].as_flattened());
        (at, sent) = (end, end);
        if out.len() > PATCH_BYTES_MAX {
            return None;
        }
    }
    Some(out)
}

/// Makes `page` what it was changed into.
///
/// # Errors
///
/// When the bytes are no patch. The page may have been changed in part then.
pub(crate) fn apply(page: &mut [u8; PAGE_SIZE], patch: &[u8]) -> Result<(), DecodeError> {
    const OUTSIDE: DecodeError = DecodeError::OutOfRange { what: "a run of a patch" };
    let mut reader = Reader::new(patch);
    let mut at = 0usize;
    while reader.remaining() > 0 {
        let skipped = usize::from(reader.varint_u16("words skipped")?);
        let length = usize::from(reader.varint_u16("words changed")?) * WORD;
        let start = at + skipped * WORD;
        let run = page.get_mut(start..start + length).filter(|run| !run.is_empty());
        run.ok_or(OUTSIDE)?.copy_from_slice(reader.take(length, "words")?);
        at = start + length;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn page(fill: u8, changes: &[(usize, u8)]) -> [u8; PAGE_SIZE] {
        let mut page = [fill; PAGE_SIZE];
        for (at, byte) in changes {
            page[at % PAGE_SIZE] = *byte;
        }
        page
    }

    #[test]
    fn a_word_that_changed_costs_ten_bytes_or_so() {
        let patch = between(&page(1, &[]), &page(1, &[(4095, 2)])).unwrap();
        assert!(patch.len() <= 11, "{}", patch.len());
        assert_eq!(between(&page(1, &[]), &page(1, &[])).unwrap(), [0; 0]);
    }

    #[test]
    fn a_page_that_is_another_is_not_patched() {
        assert_eq!(between(&page(1, &[]), &page(2, &[])), None);
    }

    #[test]
    fn runs_outside_the_page_are_refused() {
        let mut target = page(0, &[]);
        for bytes in [&[0x80, 0x04, 1][..], &[0, 0], &[0, 1, 2], &[0xff, 0xff, 3, 1]] {
            assert!(apply(&mut target, bytes).is_err(), "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn a_patch_makes_the_old_page_the_new_one(
            old in prop::collection::vec((any::<usize>(), any::<u8>()), 0..60),
            new in prop::collection::vec((any::<usize>(), any::<u8>()), 0..60),
        ) {
            let mut page_now = page(7, &old);
            let wanted = page(7, &new);
            if let Some(patch) = between(&page_now, &wanted) {
                prop_assert!(patch.len() <= PATCH_BYTES_MAX);
                apply(&mut page_now, &patch).unwrap();
                prop_assert_eq!(page_now, wanted);
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic(patch in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = apply(&mut page(0, &[]), &patch);
        }
    }
}
