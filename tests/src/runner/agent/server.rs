//! The agent inside a host: runs commands on request and sends back what becomes of them.
//!
//! Owns the processes it starts. Does not set the host up: `/init` has done that before.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, ErrorKind, PipeReader, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use super::super::namespace::die_with_parent;
use super::frame::{Ended, Frame, Order, read_frame, write_frame};

/// One writer for all threads: a frame is never torn.
type Outside = Arc<Mutex<File>>;
/// The commands that have not ended, by their requests.
type Running = Arc<Mutex<BTreeMap<u32, Streams>>>;

const PIECE_SIZE: usize = 32 << 10;
/// So many pieces of a command's output may be on their way. A command that says more waits, as it would at a full pipe.
const PIECES_MAX: usize = 32;

/// What a pipe can hold, in bytes, if nobody has raised the system's limit.
const PIPE_SIZE_MAX: usize = 1 << 20;

/// What the outside may still say to a command that runs.
struct Streams {
    window: Arc<Window>,
    input: Option<SyncSender<Vec<u8>>>,
}

/// Serves requests that come over `port` until the outside closes it.
pub fn serve(port: File) -> io::Result<()> {
    let mut requests = port.try_clone()?;
    let outside = Arc::new(Mutex::new(port));
    let running = Running::default();
    send(&outside, 0, &Frame::Pong)?;
    loop {
        let (request, frame) = match read_frame(&mut requests) {
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(()),
            read => read?,
        };
        match frame {
            Frame::Ping => send(&outside, request, &Frame::Pong)?,
            Frame::Signal { pid, signal } => send(&outside, request, &send_signal(pid, signal))?,
            Frame::Start(order) => match start(&order) {
                Ok(child) => follow(child, request, &outside, &running)?,
                Err(error) => send(&outside, request, &not_started(&error))?,
            },
            Frame::Input(piece) => {
                if let Some(Streams { input: Some(input), .. }) = lock(&running).get(&request) {
                    // The outside sends the next piece when it hears that one was taken; a command that reads no more
                    // takes none.
                    let _ = input.try_send(piece);
                }
            }
            Frame::Consumed => {
                if let Some(streams) = lock(&running).get(&request) {
                    streams.window.widen();
                }
            }
            Frame::Pong
            | Frame::Started(_)
            | Frame::Stdout(_)
            | Frame::Stderr(_)
            | Frame::Ended(_)
            | Frame::Done
            | Frame::Refused(_)
            | Frame::NotStarted { .. } => {
                let why = "this is for the agent to say".to_owned();
                send(&outside, request, &Frame::Refused(why))?;
            }
        }
    }
}

fn not_started(error: &io::Error) -> Frame {
    Frame::NotStarted { missing: error.kind() == ErrorKind::NotFound, why: error.to_string() }
}

/// Starts a command as the leader of a group of its own. It dies with the thread that serves.
fn start(order: &Order) -> io::Result<Child> {
    let (program, arguments) =
        order.arguments.split_first().ok_or_else(|| io::Error::other("no command is given"))?;
    let mut command = Command::new(program);
    command.args(arguments).envs(order.environment.iter().cloned()).process_group(0);
    command.stdin(if order.input { Stdio::piped() } else { Stdio::null() });
    if let Some(folder) = &order.folder {
        command.current_dir(folder);
    }
    match &order.log {
        Some(log) => {
            let log = File::options().create(true).append(true).open(log)?;
            command.stdout(log.try_clone()?).stderr(log);
        }
        None => {
            command.stdout(Stdio::piped()).stderr(Stdio::piped());
        }
    }
    die_with_parent(&mut command);
    command.spawn()
}

/// How a process ended.
fn ended(status: ExitStatus) -> Ended {
    match (status.code(), status.signal()) {
        (Some(code), _) => Ended::Exited(code),
        (None, Some(signal)) => Ended::Killed(signal),
        (None, None) => Ended::Exited(-1),
    }
}

fn follow(mut child: Child, request: u32, outside: &Outside, running: &Running) -> io::Result<()> {
    let pid = i32::try_from(child.id()).map_err(io::Error::other)?;
    let window = Arc::new(Window::default());
    let input = child.stdin.take().map(|stdin| {
        let (input, pieces) = sync_channel(1);
        let outside = outside.clone();
        thread::spawn(move || feed(stdin, &pieces, request, &outside));
        input
    });
    lock(running).insert(request, Streams { window: window.clone(), input });
    send(outside, request, &Frame::Started(pid))?;
    let (alive, end) = io::pipe()?;
    let outputs = [
        child
            .stdout
            .take()
            .map(|pipe| (OwnedFd::from(pipe), Frame::Stdout as fn(Vec<u8>) -> Frame)),
        child
            .stderr
            .take()
            .map(|pipe| (OwnedFd::from(pipe), Frame::Stderr as fn(Vec<u8>) -> Frame)),
    ];
    let mut pumps = Vec::new();
    for (pipe, wrap) in outputs.into_iter().flatten() {
        let pump =
            Pump { pipe: File::from(pipe), alive: alive.try_clone()?, window: window.clone() };
        let outside = outside.clone();
        pumps.push(thread::spawn(move || {
            // If the outside is gone, so is this host in a moment.
            let _ = pump.run(|piece| send(&outside, request, &wrap(piece)));
        }));
    }
    let (outside, running) = (outside.clone(), running.clone());
    thread::spawn(move || {
        let ended = child.wait().map_or(Ended::Exited(-1), ended);
        drop(end);
        for pump in pumps {
            let _ = pump.join();
        }
        lock(&running).remove(&request);
        // If the outside is gone, so is this host in a moment.
        let _ = send(&outside, request, &Frame::Ended(ended));
    });
    Ok(())
}

/// Hands on what the outside says, until it says nothing more or the command wants to hear no more.
fn feed(mut stdin: ChildStdin, pieces: &Receiver<Vec<u8>>, request: u32, outside: &Outside) {
    for piece in pieces {
        if piece.is_empty() || stdin.write_all(&piece).is_err() {
            return;
        }
        if send(outside, request, &Frame::Consumed).is_err() {
            return;
        }
    }
}

/// Carries one kind of a command's output out.
struct Pump {
    pipe: File,
    /// Comes to its end when the command has ended.
    alive: PipeReader,
    window: Arc<Window>,
}

impl Pump {
    /// Reads to the end of the output, or, when the command has ended, what is in the pipe: something that the command left
    /// running in the background may keep that open, and write to it, for as long as it likes.
    fn run(mut self, mut send: impl FnMut(Vec<u8>) -> io::Result<()>) -> io::Result<()> {
        let mut piece = vec![0; PIECE_SIZE];
        let mut left = PIPE_SIZE_MAX;
        while left > 0 {
            let [readable, ended] = wait_for_either(&self.pipe, &self.alive)?;
            let length = if readable { self.pipe.read(&mut piece)? } else { 0 };
            if length == 0 {
                break;
            }
            if ended {
                left = left.saturating_sub(length);
            }
            self.window.narrow();
            send(piece[..length].to_vec())?;
        }
        Ok(())
    }
}

/// Waits until the pipe can be read or `alive` has come to its end; which of the two is the case.
fn wait_for_either(pipe: &File, alive: &PipeReader) -> io::Result<[bool; 2]> {
    let watch = |descriptor: i32| libc::pollfd { fd: descriptor, events: libc::POLLIN, revents: 0 };
    let mut watched = [watch(pipe.as_raw_fd()), watch(alive.as_raw_fd())];
    loop {
        // SAFETY: the array is valid for reads and writes, has two entries, and lives until the call returns.
        if unsafe { libc::poll(watched.as_mut_ptr(), 2, -1) } >= 0 {
            return Ok(watched.map(|one| one.revents != 0));
        }
        let error = io::Error::last_os_error();
        if error.kind() != ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// How many pieces of a command's output may still be sent before the outside has taken some.
struct Window {
    free: Mutex<usize>,
    widened: Condvar,
}

impl Default for Window {
    fn default() -> Self {
        Self { free: Mutex::new(PIECES_MAX), widened: Condvar::new() }
    }
}

impl Window {
    /// Waits until one more piece may be sent.
    fn narrow(&self) {
        let full = |free: &mut usize| *free == 0;
        let free = self.widened.wait_while(lock(&self.free), full);
        *free.unwrap_or_else(PoisonError::into_inner) -= 1;
    }

    fn widen(&self) {
        let mut free = lock(&self.free);
        *free = (*free + 1).min(PIECES_MAX);
        self.widened.notify_one();
    }
}

fn send_signal(pid: i32, signal: i32) -> Frame {
    // SAFETY: kill(2) takes plain numbers and touches no memory of ours.
    match unsafe { libc::kill(pid, signal) } {
        0 => Frame::Done,
        _ => Frame::Refused(io::Error::last_os_error().to_string()),
    }
}

fn send(outside: &Outside, request: u32, frame: &Frame) -> io::Result<()> {
    write_frame(&mut *lock(outside), request, frame)
}

/// A panic of another thread leaves nothing half done under these locks.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
