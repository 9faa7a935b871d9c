//! The HTTP server: a thread `http-server` that accepts, and one thread a connection, so that a
//! client that is slow, silent or gone holds up nobody else.
//!
//! Everything has a bound: connections, the time a request may take to arrive, its size. Only the
//! VMM's own answer is waited for without one.

use std::collections::BTreeMap;
use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use dbs_uhttp::{Body, Request, Response, StatusCode};
use thiserror::Error;
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::poll::PollContext;

use super::http::{Client, Patience, ReadFailure, error_response, is_last, write};
use super::routes::{path_of, read_request, write_response};
use super::socket::Listener;
use super::{ApiCall, ApiSocket, call};
use crate::seccomp::{Thread, enter_or_warn};

/// Clients that may be connected at once.
const CONNECTIONS_MAX: usize = 64;
/// How long answers that are under way may take to leave when the server stops.
const STOP_TIME_MAX: Duration = Duration::from_secs(2);

/// Why the API cannot be served.
#[derive(Debug, Error)]
pub enum ApiServerError {
    /// Another process listens at the path.
    #[error(
        "The API socket {} is in use by another process; choose another path or end that process.",
        path.display()
    )]
    InUse {
        /// The path.
        path: PathBuf,
    },
    /// The path exists and is something else.
    #[error(
        "The API socket {} exists already and is not a socket; choose another path or remove it.",
        path.display()
    )]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// The socket cannot be created.
    #[error("The API socket {} cannot be created: {source}.", path.display())]
    Bind {
        /// The path.
        path: PathBuf,
        /// The host's reason.
        source: io::Error,
    },
    /// The descriptor is no listening Unix socket.
    #[error("The API socket fd={fd} is not a listening Unix socket: {source}.")]
    BadFd {
        /// The descriptor's number.
        fd: i32,
        /// The host's reason.
        source: io::Error,
    },
    /// The host refuses a thread or a descriptor.
    #[error("The API server cannot be started: {0}.")]
    Start(#[from] io::Error),
}

/// A running server. Dropping it stops it.
#[derive(Debug)]
pub struct ApiServer {
    stop: EventFd,
    thread: Option<JoinHandle<()>>,
    connections: Arc<Connections>,
}

type Submit = dyn Fn(ApiCall) -> Result<(), Box<ApiCall>> + Send + Sync;

impl ApiServer {
    /// Serves the API at `place` until it is stopped; every request goes through `submit`, which
    /// must not wait (see [`super::ApiSubmitter::submit`]).
    ///
    /// # Errors
    /// If the socket is taken or cannot be made, or the host gives no thread.
    pub fn start<S>(place: &ApiSocket, submit: S) -> Result<Self, ApiServerError>
    where
        S: Fn(ApiCall) -> Result<(), Box<ApiCall>> + Send + Sync + 'static,
    {
        Self::start_with(place, Arc::new(submit), Patience::default())
    }

    pub(super) fn start_with(
        place: &ApiSocket,
        submit: Arc<Submit>,
        patience: Patience,
    ) -> Result<Self, ApiServerError> {
        let listener = Listener::open(place)?;
        let stop = EventFd::new(0)?;
        let connections = Arc::new(Connections::default());
        let accepting = Accepting {
            stop: stop.try_clone()?,
            connections: connections.clone(),
            submit,
            patience,
        };
        let thread = thread::Builder::new().name("http-server".into()).spawn(move || {
            enter_or_warn(Thread::Http);
            accepting.run(&listener);
        })?;
        Ok(ApiServer { stop, thread: Some(thread), connections })
    }

    /// Accepts no more clients, removes the socket's file, lets answers under way leave (for two
    /// seconds at most) and ends every connection.
    pub fn stop(mut self) {
        self.finish();
    }

    fn finish(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        let _ = self.stop.write(1);
        let _ = thread.join();
        self.connections.finish(Instant::now() + STOP_TIME_MAX);
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.finish();
    }
}

/// The accepting thread.
struct Accepting {
    stop: EventFd,
    connections: Arc<Connections>,
    submit: Arc<Submit>,
    patience: Patience,
}

impl Accepting {
    fn run(&self, listener: &Listener) {
        if let Err(error) = self.accept_until_stopped(listener) {
            log::error!("The API server has to end: {error}.");
        }
    }

    fn accept_until_stopped(&self, listener: &Listener) -> io::Result<()> {
        const STOP: u32 = 0;
        const CLIENT: u32 = 1;
        listener.socket.set_nonblocking(true)?;
        let poll = PollContext::<u32>::new()?;
        poll.add(&self.stop, STOP)?;
        poll.add(&listener.socket, CLIENT)?;
        loop {
            for event in poll.wait()?.iter_readable() {
                if event.token() == STOP {
                    return Ok(());
                }
                match listener.socket.accept() {
                    Ok((stream, _)) => self.serve(stream),
                    // The client left before it was accepted.
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => {
                        log::warn!("An API client could not be accepted: {error}.");
                        // Out of descriptors, most likely: spinning would not free any.
                        thread::sleep(Duration::from_millis(10));
                    }
                }
            }
        }
    }

    fn serve(&self, mut stream: UnixStream) {
        let Ok(handle) = stream.try_clone() else { return };
        let Some(ticket) = self.connections.enter(handle) else {
            let sentence = "Too many clients are connected; try again later.";
            // A fresh connection's buffer is empty, so this does not wait.
            let response = error_response(StatusCode::ServiceUnavailable, sentence);
            let _ = write(&mut stream, &response, true);
            return;
        };
        let Ok(client) = Client::new(stream, self.patience) else { return };
        let submit = self.submit.clone();
        let spawned = thread::Builder::new()
            .name("http-client".into())
            .spawn(move || converse(client, &ticket, &*submit));
        if let Err(error) = spawned {
            log::warn!("An API client could not be served: {error}.");
        }
    }
}

/// One client, from its first request to its last.
fn converse(mut client: Client, ticket: &Ticket, submit: &Submit) {
    loop {
        let request = match client.next() {
            Ok(request) => request,
            Err(ReadFailure::Gone) => return,
            Err(ReadFailure::Refused(response)) => return client.refuse(&response),
        };
        let _busy = ticket.busy();
        let response = match read_request(&request) {
            Ok(api_request) => write_response(call(submit, api_request)),
            Err(response) => response,
        };
        log_refusal(&request, &response);
        let close = is_last(&request) || ticket.connections.stopping.load(Ordering::Acquire);
        if client.answer(&response, close).is_err() || close {
            return;
        }
    }
}

fn log_refusal(request: &Request, response: &Response) {
    if matches!(response.status(), StatusCode::OK | StatusCode::NoContent) {
        return;
    }
    let (method, path) = (request.method().to_str(), path_of(request));
    let said = response.body().unwrap_or_else(|| Body::new(""));
    log::info!("API {method} {path}: {}", String::from_utf8_lossy(said.raw()));
}

/// Who is connected.
#[derive(Debug, Default)]
struct Connections {
    stopping: AtomicBool,
    open: Mutex<Open>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Open {
    next: u64,
    streams: BTreeMap<u64, Connection>,
}

#[derive(Debug)]
struct Connection {
    stream: UnixStream,
    busy: bool,
}

/// One connection's place among the others; dropping it frees the place.
struct Ticket {
    number: u64,
    connections: Arc<Connections>,
}

/// Held while a request is carried out and answered.
struct Busy<'a>(&'a Ticket);

impl Connections {
    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(self: &Arc<Self>, stream: UnixStream) -> Option<Ticket> {
        let mut open = self.lock();
        if open.streams.len() >= CONNECTIONS_MAX {
            return None;
        }
        let number = open.next;
        open.next += 1;
        open.streams.insert(number, Connection { stream, busy: false });
        Some(Ticket { number, connections: self.clone() })
    }

    /// Ends idle connections at once and busy ones when they have answered or time is up.
    fn finish(&self, deadline: Instant) {
        self.stopping.store(true, Ordering::Release);
        let mut open = self.lock();
        loop {
            for connection in open.streams.values().filter(|connection| !connection.busy) {
                let _ = connection.stream.shutdown(Shutdown::Both);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if open.streams.is_empty() || left.is_zero() {
                break;
            }
            open = match self.changed.wait_timeout(open, left) {
                Ok((open, _)) => open,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
        for connection in open.streams.values() {
            let _ = connection.stream.shutdown(Shutdown::Both);
        }
    }
}

impl Ticket {
    fn busy(&self) -> Busy<'_> {
        self.mark(true);
        Busy(self)
    }

    fn mark(&self, busy: bool) {
        if let Some(connection) = self.connections.lock().streams.get_mut(&self.number) {
            connection.busy = busy;
        }
        self.connections.changed.notify_all();
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.mark(false);
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.connections.lock().streams.remove(&self.number);
        self.connections.changed.notify_all();
    }
}
