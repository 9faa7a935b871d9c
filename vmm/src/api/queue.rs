//! The bounded queue from the API's threads to the thread that owns the VM, with a file
//! descriptor that an epoll loop can wait for.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::ApiCall;

/// Requests that may wait before further ones are turned away.
pub const QUEUE_CAPACITY: usize = 64;

/// The end that requests are put into; clones feed the same queue.
#[derive(Clone, Debug)]
pub struct ApiSubmitter {
    sender: SyncSender<ApiCall>,
    wakeup: Arc<EventFd>,
}

/// The end that the VM's thread takes requests from.
#[derive(Debug)]
pub struct ApiQueue {
    receiver: Receiver<ApiCall>,
    wakeup: Arc<EventFd>,
}

/// A queue and both its ends.
///
/// # Errors
/// Fails if the host gives no event descriptor.
pub fn api_queue() -> io::Result<(ApiSubmitter, ApiQueue)> {
    let (sender, receiver) = sync_channel(QUEUE_CAPACITY);
    let wakeup = Arc::new(EventFd::new(EFD_NONBLOCK)?);
    Ok((ApiSubmitter { sender, wakeup: wakeup.clone() }, ApiQueue { receiver, wakeup }))
}

impl ApiSubmitter {
    /// Puts a request in and wakes the VM's thread; never waits.
    ///
    /// # Errors
    /// Gives the request back if the queue is full or nobody takes from it any more.
    pub fn submit(&self, call: ApiCall) -> Result<(), Box<ApiCall>> {
        self.sender.try_send(call).map_err(|error| match error {
            TrySendError::Full(call) | TrySendError::Disconnected(call) => Box::new(call),
        })?;
        // The counter is full only if 2^64 - 2 wake-ups wait; then the thread is awake anyway.
        let _ = self.wakeup.write(1);
        Ok(())
    }
}

impl ApiQueue {
    /// The next request, if one waits. Reading also resets the descriptor, so take until `None`.
    pub fn take(&self) -> Option<ApiCall> {
        // Reset first: a request put in between is then either taken now or wakes us again.
        let _ = self.wakeup.read();
        self.receiver.try_recv().ok()
    }
}

impl AsRawFd for ApiQueue {
    fn as_raw_fd(&self) -> RawFd {
        self.wakeup.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::super::{ApiReply, ApiRequest, ReplySender, call};
    use super::*;

    #[test]
    fn a_full_queue_turns_requests_away_with_a_sentence() {
        let (submitter, _queue) = api_queue().unwrap();
        for _ in 0..QUEUE_CAPACITY {
            let (reply, _) = ReplySender::channel();
            submitter.submit(ApiCall { request: ApiRequest::VmmPing, reply }).unwrap();
        }
        let error = call(&|call| submitter.submit(call), ApiRequest::VmmPing).unwrap_err();
        assert_eq!(error.status, 503);
        assert_eq!(error.message, "The VMM has too many requests waiting; try again in a moment.");
    }

    #[test]
    fn an_answer_finds_its_asker_and_a_dropped_request_says_so() {
        let (submitter, queue) = api_queue().unwrap();
        let vmm = std::thread::spawn(move || {
            let mut answered = 0;
            while answered < 2 {
                let Some(one) = queue.take() else {
                    std::thread::yield_now();
                    continue;
                };
                answered += 1;
                if one.request == ApiRequest::VmPause {
                    one.reply.send(Ok(ApiReply::Empty));
                }
            }
        });
        let submit = |one| submitter.submit(one);
        assert_eq!(call(&submit, ApiRequest::VmPause), Ok(ApiReply::Empty));
        let error = call(&submit, ApiRequest::VmResume).unwrap_err();
        assert_eq!(error.message, "The VMM ended before it could answer this request.");
        vmm.join().unwrap();
    }
}
