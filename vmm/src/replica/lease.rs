//! The right to touch the outside world, as disk workers see it.
//!
//! A primary may carry outputs out only while its backup has lately promised not to go live. The
//! event loop writes down until when; a disk worker looks right before each write, so that a
//! process that was stopped in between writes nothing once it runs again. Owns that number and the
//! count of writes under way.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use hypervisor::boottime_ms;
use virtio_devices::backend::BlockBackend;
use virtio_devices::{BlockKind, BlockStatus};

/// A worker that may not write looks again after this.
const RETRY: Duration = Duration::from_millis(1);

#[derive(Debug, Default)]
struct Inner {
    until_ms: AtomicU64,
    under_way: AtomicUsize,
    revoked: AtomicBool,
}

/// A lease that several threads look at.
#[derive(Clone, Debug, Default)]
pub struct Lease {
    inner: Arc<Inner>,
}

impl Lease {
    /// Without end: for a VM that nobody else could be.
    pub const UNLIMITED_MS: u64 = u64::MAX;

    /// Writes may begin until this time in ms of the clock since boot; 0: none may.
    pub fn set_until_ms(&self, until_ms: u64) {
        self.inner.until_ms.store(until_ms, Ordering::SeqCst);
    }

    /// No write ever again: those that wait fail.
    pub fn revoke(&self) {
        self.inner.revoked.store(true, Ordering::SeqCst);
    }

    /// No write ever again, if the right to write could have passed to somebody else.
    pub fn revoke_unless_unlimited(&self) {
        if self.inner.until_ms.load(Ordering::SeqCst) != Self::UNLIMITED_MS {
            self.revoke();
        }
    }

    /// Whether no write is being carried out.
    pub fn is_quiet(&self) -> bool {
        self.inner.under_way.load(Ordering::SeqCst) == 0
    }

    /// Waits until a write may begin. False: never. The write counts as under way until
    /// [`Lease::end`].
    fn begin(&self) -> bool {
        loop {
            if self.inner.revoked.load(Ordering::SeqCst) {
                return false;
            }
            // Counted before the look, so that whoever holds and then sees nothing under way can
            // be sure that nothing will be.
            self.inner.under_way.fetch_add(1, Ordering::SeqCst);
            if boottime_ms() < self.inner.until_ms.load(Ordering::SeqCst) {
                return true;
            }
            self.end();
            std::thread::sleep(RETRY);
        }
    }

    fn end(&self) {
        self.inner.under_way.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A disk whose writes wait for a lease.
pub struct LeasedDisk<B> {
    disk: B,
    lease: Lease,
}

impl<B> LeasedDisk<B> {
    /// `disk`, written only under `lease`.
    pub fn new(disk: B, lease: Lease) -> Self {
        Self { disk, lease }
    }
}

impl<B: BlockBackend> BlockBackend for LeasedDisk<B> {
    fn capacity_sectors(&self) -> u64 {
        self.disk.capacity_sectors()
    }

    fn execute(&mut self, kind: &BlockKind) -> (BlockStatus, Vec<u8>) {
        match kind {
            BlockKind::Read { .. } => self.disk.execute(kind),
            BlockKind::Write { .. } | BlockKind::Flush => {
                if !self.lease.begin() {
                    return (BlockStatus::IoError, Vec::new());
                }
                let result = self.disk.execute(kind);
                self.lease.end();
                result
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use virtio_devices::backend::memory::MemoryDisk;

    fn write() -> BlockKind {
        BlockKind::Write { sector: 0, data: vec![7; 512] }
    }

    #[test]
    fn a_write_waits_for_the_lease_and_a_read_does_not() {
        let lease = Lease::default();
        let mut disk = LeasedDisk::new(MemoryDisk::new(8), lease.clone());
        let (status, _) = disk.execute(&BlockKind::Read { sector: 0, length: 512 });
        assert_eq!(status, BlockStatus::Ok);
        let worker = std::thread::spawn(move || disk.execute(&write()).0);
        std::thread::sleep(Duration::from_millis(20));
        assert!(!worker.is_finished());
        lease.set_until_ms(Lease::UNLIMITED_MS);
        assert_eq!(worker.join().unwrap(), BlockStatus::Ok);
        assert!(lease.is_quiet());
    }

    #[test]
    fn a_revoked_lease_fails_what_waits() {
        let lease = Lease::default();
        let mut disk = LeasedDisk::new(MemoryDisk::new(8), lease.clone());
        lease.revoke();
        assert_eq!(disk.execute(&write()).0, BlockStatus::IoError);
    }
}
