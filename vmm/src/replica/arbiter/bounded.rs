//! An arbiter that is waited for only so long.
//!
//! Owns the threads that ask, and the question that is still open when patience ends: it is waited
//! for again when it is asked again, so that storage that hangs holds one thread and not many. Does
//! not own the asking again (`ft`).

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::{Arbiter, Question, Verdict};
use crate::error::Error;
use crate::seccomp::start_helper;

/// How long one answer is waited for. Outputs are held meanwhile, and the asking goes on after it.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);
/// Threads of this process that may hang in an arbiter at once, whoever's they are.
const HANGING_MAX: usize = 32;

static HANGING: AtomicUsize = AtomicUsize::new(0);

/// An answer that may still come.
type Pending = Receiver<Result<Verdict, Error>>;

/// An arbiter whose answers come soon, or count as none.
#[derive(Debug)]
pub struct BoundedArbiter {
    arbiter: Arc<dyn Arbiter>,
    patience: Duration,
    /// The question that is still with the arbiter.
    open: Mutex<Option<(Question, Pending)>>,
}

/// Counts a thread while it is in an arbiter.
struct Presence;

impl BoundedArbiter {
    /// Waits for `arbiter` for 5 s at most.
    pub fn new(arbiter: Arc<dyn Arbiter>) -> Self {
        Self::with_patience(arbiter, PATIENCE)
    }

    /// Waits for `arbiter` for `patience` at most.
    pub fn with_patience(arbiter: Arc<dyn Arbiter>, patience: Duration) -> Self {
        Self { arbiter, patience, open: Mutex::new(None) }
    }

    /// Where the arbiter is, in the words of `arbiter=`.
    pub fn place(&self) -> String {
        self.arbiter.place()
    }

    /// Asks, or goes on waiting for the answer if this very question is open already.
    ///
    /// # Errors
    /// There is no answer (yet), which is different from *no*.
    pub fn claim(&self, question: &Question) -> Result<Verdict, Error> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let answer = match open.take() {
            Some((asked, answer)) if asked == *question => answer,
            Some(_) | None => {
                let question = *question;
                self.on_a_thread(move |arbiter| arbiter.claim(&question))?
            }
        };
        match answer.recv_timeout(self.patience) {
            Ok(answer) => answer,
            Err(RecvTimeoutError::Timeout) => {
                *open = Some((*question, answer));
                Err(self.too_slow())
            }
            Err(RecvTimeoutError::Disconnected) => Err(fell()),
        }
    }

    /// Finds out whether the arbiter could be asked now.
    ///
    /// # Errors
    /// A sentence that says why not.
    pub fn check(&self) -> Result<(), Error> {
        let answer = self.on_a_thread(|arbiter| arbiter.check())?;
        match answer.recv_timeout(self.patience) {
            Ok(answer) => answer,
            Err(RecvTimeoutError::Timeout) => Err(Error::Arbiter(format!(
                "the arbiter at {}: {}; is its storage, or its server, there?",
                self.place(),
                self.too_slow()
            ))),
            Err(RecvTimeoutError::Disconnected) => Err(fell()),
        }
    }

    fn on_a_thread<T: Send + 'static>(
        &self,
        work: impl FnOnce(&dyn Arbiter) -> Result<T, Error> + Send + 'static,
    ) -> Result<Receiver<Result<T, Error>>, Error> {
        let presence = Presence::enter()?;
        // Room for the one answer: the thread never waits for somebody who has gone.
        let (sender, receiver): (SyncSender<Result<T, Error>>, _) = sync_channel(1);
        let arbiter = Arc::clone(&self.arbiter);
        // As a helper whoever asks: what a name's lookup or TLS calls is not on any other's list.
        start_helper("arbiter-call", move || {
            let answer = work(&*arbiter);
            drop(presence);
            let _ = sender.send(answer);
        })?;
        Ok(receiver)
    }

    fn too_slow(&self) -> Error {
        Error::Arbiter(format!("nothing came within {} ms", self.patience.as_millis()))
    }
}

impl Presence {
    fn enter() -> Result<Self, Error> {
        let before = HANGING.fetch_add(1, Ordering::Relaxed);
        let presence = Self;
        if before < HANGING_MAX {
            return Ok(presence);
        }
        Err(Error::Arbiter(format!("{before} earlier questions have not come back yet")))
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        HANGING.fetch_sub(1, Ordering::Relaxed);
    }
}

fn fell() -> Error {
    Error::Arbiter("the thread that asked has ended without an answer".to_owned())
}

#[cfg(test)]
mod tests {
    use std::sync::Condvar;

    use super::*;

    const SHORT: Duration = Duration::from_millis(30);
    const QUESTION: Question = Question { vm_id: [1; 16], generation: 2, claimant: [3; 16] };

    /// Answers when it is let; counts how often it was asked.
    #[derive(Debug, Default)]
    struct Stuck {
        asked: AtomicUsize,
        open: Mutex<bool>,
        opened: Condvar,
    }

    impl Stuck {
        fn let_go(&self) {
            *self.open.lock().unwrap() = true;
            self.opened.notify_all();
        }
    }

    impl Arbiter for Stuck {
        fn place(&self) -> String {
            "a test".to_owned()
        }

        fn claim(&self, _: &Question) -> Result<Verdict, Error> {
            self.asked.fetch_add(1, Ordering::Relaxed);
            let open = self.open.lock().unwrap();
            let _open = self.opened.wait_while(open, |open| !*open).unwrap();
            Ok(Verdict::Won)
        }

        fn check(&self) -> Result<(), Error> {
            self.claim(&QUESTION).map(|_| ())
        }
    }

    #[test]
    fn a_question_that_hangs_is_no_answer_and_is_waited_for_again_not_asked_twice() {
        let stuck = Arc::new(Stuck::default());
        let arbiter = BoundedArbiter::with_patience(Arc::clone(&stuck) as _, SHORT);
        for _ in 0..4 {
            let error = arbiter.claim(&QUESTION).unwrap_err().to_string();
            assert_eq!(error, "nothing came within 30 ms");
        }
        assert_eq!(stuck.asked.load(Ordering::Relaxed), 1);
        stuck.let_go();
        let patient = Duration::from_secs(20);
        let arbiter = BoundedArbiter { patience: patient, ..arbiter };
        assert_eq!(arbiter.claim(&QUESTION).unwrap(), Verdict::Won);
        // That answer is taken: whoever asks now asks anew.
        assert_eq!(arbiter.claim(&QUESTION).unwrap(), Verdict::Won);
        assert_eq!(stuck.asked.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn another_question_does_not_get_the_answer_to_one_that_hangs() {
        let stuck = Arc::new(Stuck::default());
        let arbiter = BoundedArbiter::with_patience(Arc::clone(&stuck) as _, SHORT);
        assert!(arbiter.claim(&QUESTION).is_err());
        assert!(arbiter.claim(&Question { generation: 3, ..QUESTION }).is_err());
        assert_eq!(stuck.asked.load(Ordering::Relaxed), 2);
        stuck.let_go();
    }

    #[test]
    fn a_check_that_hangs_is_told_in_a_sentence() {
        let stuck = Arc::new(Stuck::default());
        let arbiter = BoundedArbiter::with_patience(Arc::clone(&stuck) as _, SHORT);
        assert_eq!(
            arbiter.check().unwrap_err().to_string(),
            "the arbiter at a test: nothing came within 30 ms; is its storage, or its server, \
             there?"
        );
        stuck.let_go();
    }
}
