//! The agent inside a host: runs commands on request and sends back what becomes of them.
//!
//! Owns the processes it starts. Does not set the host up: `/init` has done that before.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use super::super::namespace::die_with_parent;
use super::frame::{Ended, Frame, Order, read_frame, write_frame};

/// One writer for all threads: a frame is never torn.
type Outside = Arc<Mutex<File>>;

const PIECE_SIZE: usize = 32 << 10;

/// Serves requests that come over `port` until it is closed.
pub fn serve(port: File) -> io::Result<()> {
    let mut requests = port.try_clone()?;
    let outside = Arc::new(Mutex::new(port));
    send(&outside, 0, &Frame::Pong)?;
    loop {
        let (request, frame) = read_frame(&mut requests)?;
        match frame {
            Frame::Ping => send(&outside, request, &Frame::Pong)?,
            Frame::Signal { pid, signal } => send(&outside, request, &send_signal(pid, signal))?,
            Frame::Start(order) => match start(&order) {
                Ok(child) => follow(child, request, &outside)?,
                Err(error) => send(&outside, request, &Frame::Refused(error.to_string()))?,
            },
            Frame::Pong
            | Frame::Started(_)
            | Frame::Stdout(_)
            | Frame::Stderr(_)
            | Frame::Ended(_)
            | Frame::Done
            | Frame::Refused(_) => {
                let why = "this is for the agent to say".to_owned();
                send(&outside, request, &Frame::Refused(why))?;
            }
        }
    }
}

/// Starts a command as the leader of a group of its own, without standard input. It dies with the thread that serves.
fn start(order: &Order) -> io::Result<Child> {
    let (program, arguments) =
        order.arguments.split_first().ok_or_else(|| io::Error::other("no command is given"))?;
    let mut command = Command::new(program);
    command.args(arguments).envs(order.environment.iter().cloned());
    command.stdin(Stdio::null()).process_group(0);
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

fn follow(mut child: Child, request: u32, outside: &Outside) -> io::Result<()> {
    let pid = i32::try_from(child.id()).map_err(io::Error::other)?;
    send(outside, request, &Frame::Started(pid))?;
    let stdout = child.stdout.take().map(|pipe| pump(pipe, request, Frame::Stdout, outside));
    let stderr = child.stderr.take().map(|pipe| pump(pipe, request, Frame::Stderr, outside));
    let outside = outside.clone();
    thread::spawn(move || {
        let ended = child.wait().map_or(Ended::Exited(-1), ended);
        for pump in [stdout, stderr].into_iter().flatten() {
            let _ = pump.join();
        }
        // If the outside is gone, so is this host in a moment.
        let _ = send(&outside, request, &Frame::Ended(ended));
    });
    Ok(())
}

fn pump(
    mut pipe: impl Read + Send + 'static,
    request: u32,
    wrap: fn(Vec<u8>) -> Frame,
    outside: &Outside,
) -> thread::JoinHandle<()> {
    let outside = outside.clone();
    thread::spawn(move || {
        let mut piece = vec![0; PIECE_SIZE];
        while let Ok(length @ 1..) = pipe.read(&mut piece) {
            if send(&outside, request, &wrap(piece[..length].to_vec())).is_err() {
                return;
            }
        }
    })
}

fn send_signal(pid: i32, signal: i32) -> Frame {
    // SAFETY: kill(2) takes plain numbers and touches no memory of ours.
    match unsafe { libc::kill(pid, signal) } {
        0 => Frame::Done,
        _ => Frame::Refused(io::Error::last_os_error().to_string()),
    }
}

fn send(outside: &Outside, request: u32, frame: &Frame) -> io::Result<()> {
    let mut port = outside.lock().unwrap_or_else(PoisonError::into_inner);
    write_frame(&mut *port, request, frame)?;
    port.flush()
}
