//! What a standby's memory holds before the machine is copied to it: pages of the same machine, from
//! an earlier join, that need not be sent again.
//!
//! Owns what the primary notes of it. That the pages are compared, and only before they are sent for
//! the first time, is the driver's part: what the standby told is true until then.

use alloc::vec::Vec;

use crate::record::{PAGE_SIZE, Page};

/// Frames in one message at most.
pub const TOUCHED_AT_ONCE_MAX: usize = 4096;

/// Tells two pages apart, as well as 64 bits can. That of a page of zeros is zero.
///
/// XXH64 and not XXH3: it needs no vector instructions, which cost an emulated host dearly, and
/// memory is read no faster than it digests.
pub type PageDigest = [u8; 8];

/// Digests in one message at most.
pub const KEPT_AT_ONCE_MAX: usize = 4096;

impl Page {
    /// The page's digest.
    #[must_use]
    pub fn digest(&self) -> PageDigest {
        match self {
            Self::Zero => [0; 8],
            Self::Data(bytes) => xxhash_rust::xxh64::xxh64(&bytes[..], 0).to_le_bytes(),
        }
    }
}

/// The pages of a standby's memory, as far as it has told them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeptPages {
    /// The first frame of each run, ascending, and the digests of the pages from there on.
    runs: Vec<(u64, Vec<PageDigest>)>,
}

impl KeptPages {
    /// Notes the pages from `first_frame` on. Whether they fit: they come in ascending order, and
    /// end at `frames_end` at the latest.
    #[must_use]
    pub fn note(&mut self, first_frame: u64, digests: Vec<PageDigest>, frames_end: u64) -> bool {
        let noted_to = self.runs.last().map_or(0, end_of);
        let run = (first_frame, digests);
        let fits = first_frame >= noted_to && !run.1.is_empty() && end_of(&run) <= frames_end;
        if fits {
            self.runs.push(run);
        }
        fits
    }

    /// Whether nothing is known of the standby's memory: it is zero then.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// Whether the standby's page is like this one. One that it has told nothing of is zero if it has
    /// told nothing at all, and unknown otherwise.
    #[must_use]
    pub fn has(&self, frame: u64, page: &Page) -> bool {
        if self.is_empty() {
            return *page == Page::Zero;
        }
        let after = self.runs.partition_point(|(first, _)| *first <= frame);
        let run = after.checked_sub(1).and_then(|at| self.runs.get(at));
        let digest = run.and_then(|(first, digests)| {
            digests.get(usize::try_from(frame.checked_sub(*first)?).ok()?)
        });
        digest.is_some_and(|digest| *digest == page.digest())
    }
}

fn end_of((first, digests): &(u64, Vec<PageDigest>)) -> u64 {
    first.saturating_add(digests.len() as u64)
}

const _: () = assert!(KEPT_AT_ONCE_MAX * size_of::<PageDigest>() < PAGE_SIZE * 16);
// A frame takes ten bytes at most.
const _: () = assert!(TOUCHED_AT_ONCE_MAX * 10 < PAGE_SIZE * 16);

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::{boxed::Box, vec};

    fn page(byte: u8) -> Page {
        Page::from_bytes(&[byte; PAGE_SIZE])
    }

    #[test]
    fn a_memory_of_which_nothing_was_told_is_zero() {
        let kept = KeptPages::default();
        assert!(kept.has(7, &Page::Zero));
        assert!(!kept.has(7, &page(1)));
    }

    #[test]
    fn pages_are_told_apart_by_frame_and_content() {
        let mut kept = KeptPages::default();
        assert!(kept.note(2, vec![page(1).digest(), Page::Zero.digest()], 100));
        assert!(kept.note(10, vec![page(2).digest()], 100));
        assert!(kept.has(2, &page(1)) && kept.has(3, &Page::Zero) && kept.has(10, &page(2)));
        assert!(!kept.has(2, &page(2)) && !kept.has(3, &page(1)) && !kept.has(2, &Page::Zero));
        for frame in [0, 1, 4, 9, 11, u64::MAX] {
            assert!(!kept.has(frame, &Page::Zero), "nothing was told of frame {frame}");
        }
        let mut almost = Box::new([1; PAGE_SIZE]);
        almost[PAGE_SIZE - 1] ^= 0x80;
        assert!(!kept.has(2, &Page::Data(almost)));
    }

    #[test]
    fn what_is_out_of_order_empty_or_beyond_the_end_does_not_fit() {
        let mut kept = KeptPages::default();
        assert!(!kept.note(0, vec![], 10));
        assert!(!kept.note(9, vec![[0; 8]; 2], 10));
        assert!(!kept.note(u64::MAX, vec![[0; 8]; 2], u64::MAX - 1));
        assert!(kept.note(4, vec![[0; 8]; 2], 10));
        assert!(!kept.note(5, vec![[0; 8]], 10));
        assert!(!kept.note(0, vec![[0; 8]], 10));
        assert!(kept.note(6, vec![[0; 8]; 4], 10));
    }
}
