//! What is left of a VM that was followed here: its memory. The next join of the same VM sends only
//! what differs, which is how a backup that diverged, or lost its primary to a cut, is whole again in
//! little time. A copy that differs is told in the same way while it waits to be healed.
//!
//! Owns the memory between two joins, and telling the primary what is in it: no machine runs in it
//! then. Does not own the comparison, which is the primary's.

use std::ops::Range;
use std::time::{Duration, Instant};

use ft::{KEPT_AT_ONCE_MAX, PageDigest};
use hypervisor::GuestMemory;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::Shell;
use super::primary_side::now_ms;
use crate::board::layout;
use crate::error::Error;
use crate::machine::{PAGE_SIZE, page_at};
use crate::replica::Channel;

/// So long the event loop's other sources wait while memory is read.
const TURN: Duration = Duration::from_millis(10);

/// The memory of a VM that is not followed any more.
pub(super) struct Remains {
    pub vm_id: [u8; 16],
    pub memory: GuestMemory,
}

impl Remains {
    /// The memory, if it is that of this VM with `size` bytes of RAM.
    pub(super) fn of(self, vm_id: [u8; 16], size: u64) -> Option<GuestMemory> {
        let regions = layout::ram_regions(size);
        let fits = self.memory.num_regions() == regions.len()
            && regions.iter().all(|(start, length)| {
                let region = self.memory.find_region(GuestAddress(*start));
                region.is_some_and(|found| found.start_addr().0 == *start && found.len() == *length)
            });
        (self.vm_id == vm_id && fits).then_some(self.memory)
    }
}

/// A memory whose pages are being told to the primary.
pub(super) struct Telling {
    memory: GuestMemory,
    /// Frames still to be told, in descending order of their runs.
    left: Vec<Range<u64>>,
}

impl Telling {
    pub(super) fn new(memory: GuestMemory) -> Self {
        let frames = |start: u64, length: u64| start / PAGE_SIZE..(start + length) / PAGE_SIZE;
        let left = memory.iter().map(|region| frames(region.start_addr().0, region.len()));
        let mut left: Vec<Range<u64>> = left.collect();
        left.reverse();
        Self { memory, left }
    }

    /// The first frame and the digests of the next pages, or `None` once all were told.
    fn next(&mut self) -> Result<Option<(u64, Vec<PageDigest>)>, Error> {
        let Some(run) = self.left.last_mut() else { return Ok(None) };
        let now = run.start..run.end.min(run.start + KEPT_AT_ONCE_MAX as u64);
        run.start = now.end;
        if run.is_empty() {
            self.left.pop();
        }
        let digest = |frame| page_at(&self.memory, frame).map(|page| page.digest());
        Ok(Some((now.start, now.map(digest).collect::<Result<_, _>>()?)))
    }
}

impl Shell {
    /// Tells the primary what memory is left of its VM, as fast as it takes that, and then that it is
    /// welcome.
    pub(super) fn tell_remains(&mut self) -> Result<(), Error> {
        let begun = Instant::now();
        while begun.elapsed() < TURN {
            let Some(side) = self.backup_side() else { return Ok(()) };
            let Some(telling) = &mut side.telling else { return Ok(()) };
            if side.channel.as_ref().is_some_and(Channel::wants_write) {
                return Ok(());
            }
            let actions = match telling.next() {
                Ok(Some((first_frame, digests))) => {
                    side.backup.kept(now_ms(), first_frame, digests)
                }
                Ok(None) => {
                    side.telling = None;
                    side.told(Ok(()))
                }
                Err(error) => {
                    side.telling = None;
                    side.told(Err(error.to_string()))
                }
            };
            self.act_backup(actions)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::memory;
    use ft::{KeptPages, Page};
    use vm_memory::Bytes;

    #[test]
    fn the_memory_of_another_vm_or_of_another_size_is_not_used() {
        let remains = || Remains { vm_id: [1; 16], memory: memory(8 << 20).unwrap() };
        assert!(remains().of([1; 16], 8 << 20).is_some());
        assert!(remains().of([2; 16], 8 << 20).is_none());
        assert!(remains().of([1; 16], 16 << 20).is_none());
        assert!(remains().of([1; 16], 4 << 30).is_none());
    }

    #[test]
    fn every_page_is_told_once_and_in_order() {
        let size = 24 << 20;
        let memory = memory(size).unwrap();
        memory.write_slice(&[7; PAGE_SIZE as usize], GuestAddress(3 * PAGE_SIZE)).unwrap();
        let mut telling = Telling::new(memory.clone());
        let (mut kept, mut told) = (KeptPages::default(), 0);
        while let Some((first_frame, digests)) = telling.next().unwrap() {
            told += digests.len() as u64;
            assert!(digests.len() <= KEPT_AT_ONCE_MAX);
            assert!(kept.note(first_frame, digests, size / PAGE_SIZE));
        }
        assert_eq!(told, size / PAGE_SIZE);
        assert!(kept.has(3, &page_at(&memory, 3).unwrap()) && !kept.has(3, &Page::Zero));
        assert!(kept.has(2, &Page::Zero) && kept.has(size / PAGE_SIZE - 1, &Page::Zero));
    }
}
