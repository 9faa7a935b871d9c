//! A thread that executes the requests of one disk in the order in which they were submitted.
//!
//! One thread and one queue keep the two promises the models rely on: requests that touch the same
//! sectors never overtake each other, and a flush completes after every write before it.

use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use super::BlockBackend;
use crate::effect::{BlockRequest, BlockStatus};
use crate::{Error, Result};

/// The thread of a disk. Dropping it waits until every submitted request is complete.
#[derive(Debug)]
pub struct DiskWorker {
    requests: Option<Sender<BlockRequest>>,
    pending: Arc<Pending>,
    thread: Option<JoinHandle<()>>,
}

/// Counts what was submitted and not completed.
#[derive(Debug, Default)]
struct Pending {
    count: Mutex<usize>,
    idle: Condvar,
}

impl DiskWorker {
    /// Starts the thread. It calls `begin` first, and then `completions` with token, status and what a read has read, in
    /// the order of submission and from the thread itself.
    pub fn spawn<A, B, C>(begin: A, disk: B, completions: C) -> Result<Self>
    where
        A: FnOnce() + Send + 'static,
        B: BlockBackend + Send + 'static,
        C: Fn(u64, BlockStatus, Vec<u8>) + Send + 'static,
    {
        let (sender, receiver) = mpsc::channel();
        let pending = Arc::new(Pending::default());
        let shared = Arc::clone(&pending);
        let thread = thread::Builder::new()
            .name("disk".to_owned())
            .spawn(move || {
                begin();
                run(disk, &receiver, &completions, shared);
            })
            .map_err(Error::WorkerStart)?;
        Ok(Self { requests: Some(sender), pending, thread: Some(thread) })
    }

    /// Hands over a request. Never waits: how much can be under way is bounded by the model.
    pub fn submit(&self, request: BlockRequest) -> Result<()> {
        *self.pending.lock() += 1;
        let sent = self.requests.as_ref().is_some_and(|requests| requests.send(request).is_ok());
        if sent {
            Ok(())
        } else {
            self.pending.completed();
            Err(Error::WorkerGone)
        }
    }

    /// How many requests were submitted and not completed.
    pub fn pending(&self) -> usize {
        *self.pending.lock()
    }

    /// Waits until every submitted request is complete.
    pub fn drain(&self) {
        let mut count = self.pending.lock();
        while *count > 0 {
            count = self.pending.idle.wait(count).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Completes what was submitted and ends the thread.
    pub fn shutdown(self) {
        drop(self);
    }
}

impl Drop for DiskWorker {
    fn drop(&mut self) {
        self.requests = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("the thread that executes disk requests ended in a panic");
        }
    }
}

impl Pending {
    fn lock(&self) -> MutexGuard<'_, usize> {
        self.count.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn completed(&self) {
        let mut count = self.lock();
        *count = count.saturating_sub(1);
        if *count == 0 {
            self.idle.notify_all();
        }
    }
}

/// Lets nobody wait for a thread that is gone, however it went.
struct Farewell(Arc<Pending>);

impl Drop for Farewell {
    fn drop(&mut self) {
        *self.0.lock() = 0;
        self.0.idle.notify_all();
    }
}

fn run<B: BlockBackend>(
    mut disk: B,
    requests: &Receiver<BlockRequest>,
    completions: &impl Fn(u64, BlockStatus, Vec<u8>),
    pending: Arc<Pending>,
) {
    let farewell = Farewell(pending);
    while let Ok(request) = requests.recv() {
        let (status, data) = disk.execute(&request.kind);
        completions(request.token, status, data);
        farewell.0.completed();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::memory::MemoryDisk;
    use crate::effect::BlockKind;

    fn write(token: u64, byte: u8) -> BlockRequest {
        BlockRequest { token, kind: BlockKind::Write { sector: 1, data: vec![byte; 512] } }
    }

    #[test]
    fn requests_complete_in_the_order_of_submission_and_see_each_other() {
        let (sender, receiver) = mpsc::channel();
        let worker = DiskWorker::spawn(
            || {},
            MemoryDisk::new(4),
            move |token, status, data| {
                sender.send((token, status, data)).unwrap();
            },
        )
        .unwrap();
        for token in 0..100 {
            worker.submit(write(token, token as u8)).unwrap();
        }
        worker.submit(BlockRequest { token: 100, kind: BlockKind::Flush }).unwrap();
        let read = BlockKind::Read { sector: 1, length: 512 };
        worker.submit(BlockRequest { token: 101, kind: read }).unwrap();
        worker.drain();
        assert_eq!(worker.pending(), 0);
        worker.shutdown();
        let done: Vec<_> = receiver.iter().collect();
        assert!(done.iter().map(|(token, ..)| *token).eq(0..=101));
        assert!(done.iter().all(|(_, status, _)| *status == BlockStatus::Ok));
        assert_eq!(done[101].2, vec![99; 512]);
    }

    #[test]
    fn shutdown_completes_what_was_submitted() {
        let (sender, receiver) = mpsc::channel();
        let worker = DiskWorker::spawn(
            || {},
            MemoryDisk::new(4),
            move |token, _, _| {
                sender.send(token).unwrap();
            },
        )
        .unwrap();
        for token in 0..10 {
            worker.submit(write(token, 1)).unwrap();
        }
        worker.shutdown();
        assert_eq!(receiver.iter().count(), 10);
    }
}
