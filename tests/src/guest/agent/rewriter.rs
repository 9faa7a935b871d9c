//! The load on memory: every page is written to, over and over.
//!
//! Owns the memory and the thread that writes.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

const MIB: usize = 1 << 20;
const PAGE_SIZE: usize = 4096;

/// At most one rewriting at a time.
#[derive(Default)]
pub(super) struct Rewriter {
    rewriting: Mutex<Option<Rewriting>>,
}

struct Rewriting {
    pages: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Rewriter {
    /// Starts on so much new memory, once every page of it has been written to.
    pub(super) fn start(&self, mib: u32) -> io::Result<()> {
        self.stop()?;
        let mut memory = Vec::new();
        let size = mib as usize * MIB;
        memory.try_reserve_exact(size).map_err(io::Error::other)?;
        memory.resize(size, 0_u8);
        rewrite(&mut memory, 0, &AtomicBool::new(false));
        let pages = Arc::new(AtomicU64::new(0));
        let stop = Arc::new(AtomicBool::new(false));
        let (count, stopped) = (pages.clone(), stop.clone());
        let thread = thread::spawn(move || {
            let mut round = 1_u64;
            while !stopped.load(Ordering::Relaxed) {
                count.fetch_add(rewrite(&mut memory, round, &stopped), Ordering::Relaxed);
                round += 1;
            }
        });
        let mut rewriting = self.rewriting.lock().unwrap_or_else(PoisonError::into_inner);
        *rewriting = Some(Rewriting { pages, stop, thread });
        Ok(())
    }

    /// Stops; how many pages were written to, each counted as often as it was.
    pub(super) fn stop(&self) -> io::Result<u64> {
        let rewriting = self.rewriting.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(rewriting) = rewriting else { return Ok(0) };
        rewriting.stop.store(true, Ordering::Relaxed);
        rewriting.thread.join().map_err(|_| io::Error::other("the writing to memory failed"))?;
        Ok(rewriting.pages.load(Ordering::Relaxed))
    }
}

/// Writes a word that depends on the round to each page; how many it got to.
fn rewrite(memory: &mut [u8], round: u64, stop: &AtomicBool) -> u64 {
    let mut pages = 0;
    for (number, page) in memory.chunks_exact_mut(PAGE_SIZE).enumerate() {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let word = round.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ number as u64;
        if let Some(start) = page.first_chunk_mut::<8>() {
            *start = std::hint::black_box(word).to_le_bytes();
        }
        pages += 1;
    }
    pages
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_written_until_the_rewriting_is_stopped() {
        let rewriter = Rewriter::default();
        assert_eq!(rewriter.stop().unwrap(), 0);
        rewriter.start(1).unwrap();
        while rewriter.rewriting.lock().unwrap().as_ref().unwrap().pages.load(Ordering::Relaxed)
            == 0
        {
            thread::yield_now();
        }
        assert!(rewriter.stop().unwrap() > 0);
        assert_eq!(rewriter.stop().unwrap(), 0);
    }
}
