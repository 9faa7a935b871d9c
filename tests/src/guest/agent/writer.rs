//! The load on the disk: numbered blocks, each durable before the next is begun.
//!
//! Owns the thread that writes. The blocks themselves are `guest/blocks.rs`.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use crate::guest::blocks;
use crate::guest::protocol::FAILED_MARK;

const PATH: &str = "/data/blocks";
const BLOCK_SIZE_MAX: u32 = 1 << 20;

/// At most one writing at a time.
#[derive(Default)]
pub(super) struct Writer {
    writing: Mutex<Option<Writing>>,
}

struct Writing {
    block_size: u32,
    slots: u32,
    durable: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Writer {
    /// Starts anew, with block 0.
    pub(super) fn start(&self, block_size: u32, slots: u32) -> io::Result<()> {
        if !(blocks::BLOCK_SIZE_MIN..=BLOCK_SIZE_MAX).contains(&block_size) || slots < 2 {
            return Err(io::Error::other("blocks have 512 B to 1 MiB, and there are at least two"));
        }
        self.stop()?;
        let file = File::create(PATH)?;
        let durable = Arc::new(AtomicU64::new(0));
        let stop = Arc::new(AtomicBool::new(false));
        let (count, stopped) = (durable.clone(), stop.clone());
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let number = count.load(Ordering::Relaxed);
                if let Err(error) = write_durably(&file, number, block_size, slots) {
                    println!("{FAILED_MARK}: block {number}: {error}");
                    return;
                }
                count.store(number + 1, Ordering::Release);
            }
        });
        let writing = Writing { block_size, slots, durable, stop, thread: Some(thread) };
        *self.writing.lock().unwrap_or_else(PoisonError::into_inner) = Some(writing);
        Ok(())
    }

    /// Stops after the block at hand; how many are durable.
    pub(super) fn stop(&self) -> io::Result<u64> {
        let mut writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(writing) = writing.as_mut() else { return Ok(0) };
        writing.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = writing.thread.take() {
            thread.join().map_err(|_| io::Error::other("the writing of blocks failed"))?;
        }
        Ok(writing.durable.load(Ordering::Acquire))
    }

    /// How many blocks are durable.
    pub(super) fn durable(&self) -> u64 {
        let writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        writing.as_ref().map_or(0, |writing| writing.durable.load(Ordering::Acquire))
    }

    /// Reads all blocks back from the disk; how many were checked for.
    pub(super) fn verify(&self) -> io::Result<u64> {
        let durable = self.stop()?;
        let writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(writing) = writing.as_ref() else { return Ok(0) };
        drop_caches()?;
        let mut file = File::open(PATH)?;
        blocks::check(&mut file, writing.block_size, writing.slots, durable)?
            .map_err(io::Error::other)?;
        Ok(durable)
    }
}

fn write_durably(file: &File, number: u64, size: u32, slots: u32) -> io::Result<()> {
    let place = number % u64::from(slots) * u64::from(size);
    file.write_all_at(&blocks::block(number, size), place)?;
    file.sync_data()
}

/// What is read after this comes from the disk.
pub(super) fn drop_caches() -> io::Result<()> {
    std::fs::write("/proc/sys/vm/drop_caches", "1")
}
