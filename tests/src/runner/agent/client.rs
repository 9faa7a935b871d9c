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
    /// A piece of input has been handed to it: the next one may be sent.
    Fed,
    /// It ended; nothing follows.
    Ended(Ended),
}

/// Why a command does not run.
#[derive(Clone, Debug, thiserror::Error)]
#[error("cannot run {name}: {why}")]
pub struct NotStarted {
    /// The program.
    pub name: String,
    /// Whether there is no such program.
    pub missing: bool,
    /// The host's reason.
    pub why: String,
}

/// Who waits for the answers to which request. `None` once the connection is gone.
type Waiting = Arc<Mutex<Option<BTreeMap<u32, Sender<Frame>>>>>;
/// One writer for all threads: a frame is never torn.
type Stream = Arc<Mutex<UnixStream>>;

/// The agent of one host.
pub struct Agent {
    stream: Stream,
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
        let stream = Arc::new(Mutex::new(stream));
        let agent = Self {
            stream: stream.clone(),
            waiting: waiting.clone(),
            request: AtomicU32::new(GREETING + 1),
        };
        std::thread::Builder::new()
            .name("agent-reader".into())
            .spawn(move || read_all(reader, &waiting, &stream))?;
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
        let (request, answers) = self.request(&Frame::Start(order))?;
        match self.answer(&answers)? {
            Frame::Started(pid) => {
                Ok((pid, Events { request, answers, stream: self.stream.clone() }))
            }
            Frame::NotStarted { missing, why } => Err(NotStarted { name, missing, why }.into()),
            other => Err(unexpected(&other)),
        }
    }

    fn ask(&self, frame: &Frame) -> Result<Receiver<Frame>> {
        self.request(frame).map(|(_, answers)| answers)
    }

    fn request(&self, frame: &Frame) -> Result<(u32, Receiver<Frame>)> {
        let request = self.request.fetch_add(1, Ordering::Relaxed);
        let (sender, answers) = channel();
        match lock(&self.waiting).as_mut() {
            Some(waiting) => drop(waiting.insert(request, sender)),
            None => bail!("the host is gone"),
        }
        write_frame(&mut *lock(&self.stream), request, frame).context("the host is gone")?;
        Ok((request, answers))
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
    request: u32,
    answers: Receiver<Frame>,
    stream: Stream,
}

impl Events {
    /// The next event; `None` if there is none within `timeout`. A command whose output nobody asks for waits when it has
    /// said a MiB.
    pub fn next(&self, timeout: Option<Duration>) -> Result<Option<Event>> {
        use std::sync::mpsc::RecvTimeoutError;
        let received = match timeout {
            Some(timeout) => self.answers.recv_timeout(timeout),
            None => self.answers.recv().map_err(RecvTimeoutError::from),
        };
        let event = match received {
            Ok(Frame::Stdout(bytes)) => Event::Stdout(bytes),
            Ok(Frame::Stderr(bytes)) => Event::Stderr(bytes),
            Ok(Frame::Consumed) => Event::Fed,
            Ok(Frame::Ended(ended)) => Event::Ended(ended),
            Ok(other) => return Err(unexpected(&other)),
            Err(RecvTimeoutError::Timeout) => return Ok(None),
            Err(RecvTimeoutError::Disconnected) => bail!("the host ended before the command did"),
        };
        if matches!(event, Event::Stdout(_) | Event::Stderr(_)) {
            // A host that is gone says no more anyhow.
            let _ = write_frame(&mut *lock(&self.stream), self.request, &Frame::Consumed);
        }
        Ok(Some(event))
    }

    /// The way to the command's standard input.
    pub fn input(&self) -> Input {
        Input { request: self.request, stream: self.stream.clone() }
    }
}

/// The way to the standard input of one command.
pub struct Input {
    request: u32,
    stream: Stream,
}

impl Input {
    /// Sends the next piece; an empty one is the end. The piece before must have been [`Event::Fed`].
    pub fn send(&self, piece: Vec<u8>) -> Result<()> {
        let frame = Frame::Input(piece);
        write_frame(&mut *lock(&self.stream), self.request, &frame).context("the host is gone")
    }
}

fn read_all(mut reader: UnixStream, waiting: &Waiting, stream: &Stream) {
    while let Ok((request, frame)) = read_frame(&mut reader) {
        let last = matches!(
            frame,
            Frame::Pong
                | Frame::Done
                | Frame::Refused(_)
                | Frame::NotStarted { .. }
                | Frame::Ended(_)
        );
        let output = matches!(frame, Frame::Stdout(_) | Frame::Stderr(_));
        let mut waiting = lock(waiting);
        let Some(waiting) = waiting.as_mut() else { return };
        let heard = waiting.get(&request).is_some_and(|sender| sender.send(frame).is_ok());
        if last {
            waiting.remove(&request);
        } else if output && !heard {
            // Nobody wants to hear it any more, but the command shall not wait for that.
            let _ = write_frame(&mut *lock(stream), request, &Frame::Consumed);
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
