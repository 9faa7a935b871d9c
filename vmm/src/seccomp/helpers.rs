//! Threads for what may take its time, started by one thread that the main thread's filter does not
//! hold for.
//!
//! What they do is looking up names, connecting and asking an arbiter: all of it through code of the
//! host (modules for names) or of libraries (TLS) whose calls nobody can list for good. A call that
//! is not on their list therefore fails, where elsewhere it would end the process.

use std::io;
use std::sync::OnceLock;
use std::sync::mpsc::{Sender, channel, sync_channel};

use super::{Thread, enter};
use crate::error::Error;

type Work = Box<dyn FnOnce() + Send>;

struct Helper {
    name: String,
    work: Work,
    /// Whether the host gave a thread.
    started: std::sync::mpsc::SyncSender<io::Result<()>>,
}

static STARTER: OnceLock<Sender<Helper>> = OnceLock::new();

/// Starts the thread that starts the others.
pub(super) fn start() -> Result<(), Error> {
    let (sender, helpers) = channel::<Helper>();
    let (entered, result) = sync_channel(1);
    std::thread::Builder::new()
        .name("helpers".to_owned())
        .spawn(move || {
            let restricted = enter(Thread::Helpers);
            let well = restricted.is_ok();
            let _ = entered.send(restricted);
            // Ends with the process: the other end is a static.
            for helper in helpers.iter().take_while(|_| well) {
                let started = thread(helper.name, helper.work);
                let _ = helper.started.send(started);
            }
        })
        .map_err(Error::Thread)?;
    result.recv().map_err(|_| Error::EngineGone)??;
    let _ = STARTER.set(sender);
    Ok(())
}

/// Runs `work` on a thread of its own with this name, as a helper.
///
/// # Errors
/// The host gives no thread.
pub fn start_helper(name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), Error> {
    let (name, work) = (name.to_owned(), Box::new(work));
    let Some(starter) = STARTER.get() else { return thread(name, work).map_err(Error::Thread) };
    let (started, result) = sync_channel(1);
    let gone = || Error::Thread(io::Error::other("the thread that starts others is gone"));
    starter.send(Helper { name, work, started }).map_err(|_| gone())?;
    result.recv().map_err(|_| gone())?.map_err(Error::Thread)
}

fn thread(name: String, work: Work) -> io::Result<()> {
    std::thread::Builder::new().name(name).spawn(work).map(drop)
}
