//! The pages that were shipped last, the same on both sides of a log: what patches are of.
//!
//! Owns which pages are remembered. Writer and reader of a log come to the same answer because they
//! are told the same in the same order: every page that the log holds, once it holds a state.
//! Does not own guest memory: a page here is as the log last had it, not as the guest has it now.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;

use crate::record::{PAGE_SIZE, Page};

/// Pages remembered: 16 MiB. A guest whose deltas are larger than that gains nothing by patches.
const PAGES_MAX: usize = 4096;

type Content = Box<[u8; PAGE_SIZE]>;

/// Pages as they were last shipped.
#[derive(Clone, Debug, Default)]
pub(crate) struct PageCache {
    /// Nothing is remembered before the log's first state: a join ships every page once.
    active: bool,
    /// By frame: when it was noted, and its content.
    pages: BTreeMap<u64, (u64, Content)>,
    /// By when it was noted: the frame.
    order: BTreeMap<u64, u64>,
    noted: u64,
}

impl PageCache {
    /// The log has the whole state: from here on pages are remembered.
    pub(crate) fn activate(&mut self) {
        self.active = true;
    }

    /// The page as it was last shipped.
    pub(crate) fn get(&self, frame: u64) -> Option<&[u8; PAGE_SIZE]> {
        self.pages.get(&frame).map(|(_, content)| &**content)
    }

    /// The page is shipped like this. The one that was not shipped for longest is forgotten where
    /// there is no room.
    pub(crate) fn note(&mut self, frame: u64, page: &Page) {
        if !self.active {
            return;
        }
        if let Some((when, _)) = self.pages.remove(&frame) {
            self.order.remove(&when);
        }
        let Page::Data(content) = page else { return };
        self.noted += 1;
        self.pages.insert(frame, (self.noted, content.clone()));
        self.order.insert(self.noted, frame);
        if self.pages.len() > PAGES_MAX
            && let Some((_, oldest)) = self.order.pop_first()
        {
            self.pages.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(fill: u8) -> Page {
        Page::from_bytes(&[fill; PAGE_SIZE])
    }

    #[test]
    fn nothing_is_remembered_before_there_is_a_state() {
        let mut cache = PageCache::default();
        cache.note(1, &page(1));
        assert!(cache.get(1).is_none());
        cache.activate();
        cache.note(1, &page(1));
        assert_eq!(cache.get(1), Some(&[1; PAGE_SIZE]));
        cache.note(1, &Page::Zero);
        assert!(cache.get(1).is_none());
        cache.note(1, &page(2));
        cache.activate();
        assert_eq!(cache.get(1), Some(&[2; PAGE_SIZE]));
    }

    #[test]
    fn the_page_that_was_shipped_longest_ago_makes_room() {
        let mut cache = PageCache::default();
        cache.activate();
        for frame in 0..PAGES_MAX as u64 {
            cache.note(frame, &page(1));
        }
        cache.note(0, &page(2));
        cache.note(9_999, &page(1));
        assert!(cache.get(0).is_some() && cache.get(1).is_none() && cache.get(2).is_some());
        assert_eq!((cache.pages.len(), cache.order.len()), (PAGES_MAX, PAGES_MAX));
    }
}
