//! The one program in the guest: services for the client, and work on request of the kernel's command line.
//!
//! Owns what runs in the guest. A service is a function of one connection; each connection has a thread.

mod bulk;
mod button;
mod compute;
mod control;
mod entropy;
mod journal;
mod programs;
mod rewriter;
mod statistics;
mod work;
mod writer;

use std::io;
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread;

use super::protocol::{
    COMPUTE_PORT, CONTROL_PORT, ECHO_PORT, FAILED_MARK, HISTORY_PORT, JOURNAL_PORT, READY_MARK,
    SINK_PORT, SOURCE_PORT,
};
pub use compute::compute;
use journal::Journal;
use rewriter::Rewriter;
use writer::Writer;

/// How the guest is to end. `/init` knows the numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Switch off.
    PowerOff = 0,
    /// Boot again.
    Reboot = 10,
}

/// What the services share.
struct Guest {
    journal: Journal,
    writer: Writer,
    rewriter: Rewriter,
    end: Sender<End>,
}

type Service = fn(TcpStream, &Guest) -> io::Result<()>;

const SERVICES: [(u16, Service); 7] = [
    (JOURNAL_PORT, journal::serve),
    (HISTORY_PORT, journal::serve_history),
    (ECHO_PORT, bulk::echo),
    (SOURCE_PORT, bulk::source),
    (SINK_PORT, bulk::sink),
    (COMPUTE_PORT, compute::serve),
    (CONTROL_PORT, control::serve),
];

/// Runs until the guest is to end.
pub fn run() -> io::Result<End> {
    let (end, ends) = channel();
    let journal = Journal::open("/data/journal".as_ref())?;
    let (writer, rewriter) = (Writer::default(), Rewriter::default());
    let guest = Arc::new(Guest { journal, writer, rewriter, end: end.clone() });
    for (port, service) in SERVICES {
        let listener = TcpListener::bind(("0.0.0.0", port))?;
        let guest = guest.clone();
        thread::spawn(move || accept(&listener, service, &guest));
    }
    button::watch(&end);
    println!("{READY_MARK}");
    let words = std::fs::read_to_string("/proc/cmdline")?;
    if let Some(work) = work::parse(&words).map_err(io::Error::other)?
        && let Some(how) = work::run(&work)?
    {
        return Ok(how);
    }
    // Whoever could still send an end also holds the sender.
    ends.recv().map_err(io::Error::other)
}

fn accept(listener: &TcpListener, service: Service, guest: &Arc<Guest>) {
    for stream in listener.incoming() {
        let guest = guest.clone();
        let serve = move || {
            let stream = stream?;
            stream.set_nodelay(true)?;
            service(stream, &guest)
        };
        thread::spawn(move || {
            if let Err(error) = serve()
                && !is_goodbye(&error)
            {
                println!("{FAILED_MARK}: {error}");
            }
        });
    }
}

/// Clients come and go as they like.
fn is_goodbye(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
    )
}
