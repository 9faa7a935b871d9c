//! The outside's end of an agent: requests go in, events come back by request.
//!
//! Owns the connection and the thread that reads it. Knows nothing of QEMU: any stream with an agent at its other end
//! will do.

use std::collections::BTreeMap;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};

use super::frame::{Ended, Frame, Order, read_frame, write_frame};

/// What a started command does, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// It wrote this to its standard output.
    Stdout(Vec<u8>),
    /// It wrote this to its standard error.
    Stderr(Vec<u8>),
    /// It ended; nothing follows.
    Ended(Ended),
}

/// Who waits for the answers to which request. `None` once the connection is gone.
type Waiting = Arc<Mutex<Option<BTreeMap<u32, Sender<Frame>>>>>;

/// The agent of one host.
pub struct Agent {
    stream: Mutex<UnixStream>,
    waiting: Waiting,
    request: AtomicU32,
}

/// The request whose `Pong` an agent sends unasked when it starts.
const GREETING: u32 = 0;
/// An agent that is alive answers at once; an emulated host that is busy may need seconds.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

impl Agent {
    /// Waits for the agent's greeting at the other end of `stream`. `alive` is asked now and then whether there is any
    /// sense in waiting on.
    pub fn connect(
        stream: UnixStream,
        timeout: Duration,
        mut alive: impl FnMut() -> Result<()>,
    ) -> Result<Self> {
        const SLICE: Duration = Duration::from_millis(50);
        let reader = stream.try_clone()?;
        let (sender, greeting) = channel();
        let waiting: Waiting = Arc::new(Mutex::new(Some(BTreeMap::from([(GREETING, sender)]))));
        let agent = Self {
            stream: Mutex::new(stream),
            waiting: waiting.clone(),
            request: AtomicU32::new(1),
        };
        std::thread::Builder::new()
            .name("agent-reader".into())
            .spawn(move || read_all(reader, &waiting))?;
        let mut waited = Duration::ZERO;
        while greeting.recv_timeout(SLICE).is_err() {
            alive()?;
            waited += SLICE;
            if waited > timeout {
                bail!("its agent did not answer within {} s", timeout.as_secs());
            }
        }
        Ok(agent)
    }

    /// Ends the connection: from now on the host is gone for whoever asks or waits.
    pub fn close(&self) {
        // The reading thread has the other handle; this ends it. A stream already closed is as good.
        let _ = lock(&self.stream).shutdown(Shutdown::Both);
    }

    /// Asks whether the agent is there.
    pub fn ping(&self) -> Result<()> {
        match self.answer(&self.ask(&Frame::Ping)?)? {
            Frame::Pong => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// Sends a signal to a process of the host.
    pub fn signal(&self, pid: i32, signal: i32) -> Result<()> {
        match self.answer(&self.ask(&Frame::Signal { pid, signal })?)? {
            Frame::Done => Ok(()),
            Frame::Refused(why) => bail!("cannot send signal {signal} to process {pid}: {why}"),
            other => Err(unexpected(&other)),
        }
    }

    /// Starts a command: its process, and the events to come.
    pub fn start(&self, order: Order) -> Result<(i32, Events)> {
        let name = order.arguments.first().cloned().unwrap_or_default();
        let answers = self.ask(&Frame::Start(order))?;
        match self.answer(&answers)? {
            Frame::Started(pid) => Ok((pid, Events { answers })),
            Frame::Refused(why) => bail!("cannot run {name}: {why}"),
            other => Err(unexpected(&other)),
        }
    }

    fn ask(&self, frame: &Frame) -> Result<Receiver<Frame>> {
        let request = self.request.fetch_add(1, Ordering::Relaxed);
        let (sender, answers) = channel();
        match lock(&self.waiting).as_mut() {
            Some(waiting) => drop(waiting.insert(request, sender)),
            None => bail!("the host is gone"),
        }
        write_frame(&mut *lock(&self.stream), request, frame).context("the host is gone")?;
        Ok(answers)
    }

    fn answer(&self, answers: &Receiver<Frame>) -> Result<Frame> {
        answers
            .recv_timeout(ANSWER_TIMEOUT)
            .map_err(|_| anyhow!("the host is gone or does not answer"))
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.close();
    }
}

/// The events of one command. It may be asked for from another thread than the one that started it.
pub struct Events {
    answers: Receiver<Frame>,
}

impl Events {
    /// The next event; `None` if there is none within `timeout`.
    pub fn next(&self, timeout: Option<Duration>) -> Result<Option<Event>> {
        use std::sync::mpsc::RecvTimeoutError;
        let received = match timeout {
            Some(timeout) => self.answers.recv_timeout(timeout),
            None => self.answers.recv().map_err(RecvTimeoutError::from),
        };
        match received {
            Ok(Frame::Stdout(bytes)) => Ok(Some(Event::Stdout(bytes))),
            Ok(Frame::Stderr(bytes)) => Ok(Some(Event::Stderr(bytes))),
            Ok(Frame::Ended(ended)) => Ok(Some(Event::Ended(ended))),
            Ok(other) => Err(unexpected(&other)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => bail!("the host ended before the command did"),
        }
    }
}

fn read_all(mut reader: UnixStream, waiting: &Waiting) {
    while let Ok((request, frame)) = read_frame(&mut reader) {
        let last = matches!(frame, Frame::Pong | Frame::Done | Frame::Refused(_) | Frame::Ended(_));
        let mut waiting = lock(waiting);
        let Some(waiting) = waiting.as_mut() else { return };
        if let Some(sender) = waiting.get(&request) {
            // Whoever asked may have lost interest.
            let _ = sender.send(frame);
        }
        if last {
            waiting.remove(&request);
        }
    }
    // Dropping the senders wakes all who wait.
    *lock(waiting) = None;
}

fn unexpected(frame: &Frame) -> anyhow::Error {
    anyhow!("the host's agent answered out of turn: {frame:?}")
}

/// A panic of another thread leaves nothing half done under these locks.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
