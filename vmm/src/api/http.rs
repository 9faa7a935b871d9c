//! One client's connection: requests read and answers written under limits of size and time, by
//! `dbs-uhttp`. It knows no path and no VM.
//!
//! `dbs-uhttp`'s `HttpServer` reads all its clients in one loop without blocking, and takes a
//! request whose body is not there yet for one that failed. Its `HttpConnection` is used here as
//! one would use it in a loop of one's own, with a thread a client: the socket blocks, the
//! socket's timeout is the time that is left, and a piece of a request is not an error.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use dbs_uhttp::{
    Body, ConnectionError, HttpConnection, HttpHeaderError, MediaType, Request, RequestError,
    Response, StatusCode, Version,
};

/// Bytes a body may have.
pub(super) const BODY_LENGTH_MAX: usize = 1 << 20;
/// Pieces in which a request may arrive. `dbs-uhttp` reads at most 1 KiB at once and bounds the
/// body and each line, but not the number of headers: this bounds them all, to 16 MiB.
const PIECES_MAX: usize = 16 << 10;
/// How long a client may take to read a part of its answer.
const WRITE_TIME_MAX: Duration = Duration::from_secs(10);
/// How much and how long is read on after a refusal, so that the client sees the answer and not a
/// broken pipe.
const DRAIN_LENGTH_MAX: usize = 16 << 20;
const DRAIN_TIME_MAX: Duration = Duration::from_secs(2);

/// How patient the server is; tests are less so.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// How long a client may stay silent between requests.
    pub(super) idle_max: Duration,
    /// How long it may take to send a request it has begun.
    pub(super) request_time_max: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Patience { idle_max: Duration::from_secs(60), request_time_max: Duration::from_secs(10) }
    }
}

/// Why no request could be read.
#[derive(Debug)]
pub(super) enum ReadFailure {
    /// The client is gone or silent; there is nobody to answer.
    Gone,
    /// The client is to be told; then the connection ends.
    Refused(Response),
}

/// One connected client.
pub(super) struct Client {
    connection: HttpConnection<UnixStream>,
    /// The same socket: for its timeouts and the answers.
    stream: UnixStream,
    patience: Patience,
    /// The answer to what came behind the requests that were read already.
    refusal: Option<Response>,
}

/// An answer without a body.
pub(super) fn empty_response(status: StatusCode) -> Response {
    let mut response = Response::new(Version::Http11, status);
    response.set_server("Cloud Hypervisor API");
    response
}

/// An answer with a JSON body.
pub(super) fn json_response(status: StatusCode, json: String) -> Response {
    let mut response = empty_response(status);
    response.set_body(Body::new(json));
    response
}

/// An answer with a body of text.
pub(super) fn text_response(status: StatusCode, text: String) -> Response {
    let mut response = empty_response(status);
    response.set_content_type(MediaType::PlainText);
    response.set_body(Body::new(text));
    response
}

/// An error in Cloud Hypervisor's shape: a JSON array of sentences.
pub(super) fn error_response(status: StatusCode, sentence: &str) -> Response {
    json_response(status, serde_json::Value::from(vec![sentence]).to_string())
}

/// Sends an answer; `close` tells the client that it is the last one.
pub(super) fn write(stream: &mut UnixStream, response: &Response, close: bool) -> io::Result<()> {
    let mut bytes = Vec::new();
    response.write_all(&mut bytes)?;
    if close {
        // `dbs-uhttp` promises to keep every connection; a client that believes it would send its
        // next request into a closed one.
        amend(&mut bytes, b"\r\nConnection: keep-alive\r\n", b"\r\nConnection: close\r\n");
    }
    if response.content_type() == MediaType::PlainText {
        // It knows no parameters of a type, and Prometheus names its format in one.
        const TYPE: &[u8] = b"\r\nContent-Type: text/plain; version=0.0.4\r\n";
        amend(&mut bytes, b"\r\nContent-Type: text/plain\r\n", TYPE);
    }
    stream.write_all(&bytes)
}

/// Replaces a line of an answer's head: the first place it is found at, as heads come first.
fn amend(bytes: &mut Vec<u8>, line: &[u8], by: &[u8]) {
    if let Some(at) = bytes.windows(line.len()).position(|window| window == line) {
        bytes.splice(at..at + line.len(), by.iter().copied());
    }
}

impl Client {
    /// Fails if the host refuses the socket's settings.
    pub(super) fn new(stream: UnixStream, patience: Patience) -> io::Result<Self> {
        stream.set_nonblocking(false)?;
        stream.set_write_timeout(Some(WRITE_TIME_MAX))?;
        let mut connection = HttpConnection::new(stream.try_clone()?);
        connection.set_payload_max_size(BODY_LENGTH_MAX);
        Ok(Client { connection, stream, patience, refusal: None })
    }

    /// The next request.
    pub(super) fn next(&mut self) -> Result<Request, ReadFailure> {
        let mut deadline = Instant::now() + self.patience.idle_max;
        for piece in 0..PIECES_MAX {
            if let Some(request) = self.connection.pop_parsed_request() {
                return whole(request);
            }
            if let Some(refusal) = self.refusal.take() {
                return Err(ReadFailure::Refused(refusal));
            }
            match self.receive(deadline) {
                Ok(()) => {}
                Err(ConnectionError::ParseError(error)) => self.refusal = Some(refusal(&error)),
                Err(ConnectionError::StreamReadError(error))
                    if error.errno() == libc::EAGAIN && piece > 0 =>
                {
                    return Err(refused("The request did not arrive in time; send it in one go."));
                }
                Err(_) => return Err(ReadFailure::Gone),
            }
            if piece == 0 {
                deadline = Instant::now() + self.patience.request_time_max;
            }
        }
        Err(refused("The request came in too many pieces; send it in one go."))
    }

    /// Reads what there is, waiting for it until `deadline` (then the error is `EAGAIN`).
    fn receive(&mut self, deadline: Instant) -> Result<(), ConnectionError> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            // A timeout of zero would be none at all.
            let left = left.max(Duration::from_micros(1));
            self.stream.set_read_timeout(Some(left)).map_err(ConnectionError::StreamWriteError)?;
            match self.connection.try_read() {
                Err(ConnectionError::StreamReadError(error)) if error.errno() == libc::EINTR => {}
                Err(error) => return Err(error),
                Ok(()) => break,
            }
        }
        // A client that asked whether to send its body waits for this `100 Continue`.
        while self.connection.pending_write() {
            self.connection.try_write()?;
        }
        Ok(())
    }

    /// Sends an answer; `close` tells the client that it is the last one.
    pub(super) fn answer(&mut self, response: &Response, close: bool) -> io::Result<()> {
        write(&mut self.stream, response, close)
    }

    /// Sends the last answer to a client that may still be sending, and reads on within bounds.
    pub(super) fn refuse(mut self, response: &Response) {
        if self.answer(response, true).is_err() {
            return;
        }
        let deadline = Instant::now() + DRAIN_TIME_MAX;
        let _ = self.stream.shutdown(Shutdown::Write);
        let mut buffer = [0; 4096];
        let mut drained = 0;
        while drained < DRAIN_LENGTH_MAX {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || self.stream.set_read_timeout(Some(left)).is_err() {
                return;
            }
            match self.stream.read(&mut buffer) {
                Ok(0) | Err(_) => return,
                Ok(count) => drained += count,
            }
        }
    }
}

/// Whether the client will send no further request.
pub(super) fn is_last(request: &Request) -> bool {
    request.http_version() == Version::Http10
        || request.headers.custom_entries().iter().any(|(name, value)| {
            name.eq_ignore_ascii_case("connection") && value.eq_ignore_ascii_case("close")
        })
}

/// Refuses a request whose body `dbs-uhttp` has not read: it would be taken for the next request.
fn whole(request: Request) -> Result<Request, ReadFailure> {
    if request.headers.chunked() {
        return Err(refused(
            "The request's body has no Content-Length; chunked bodies are not accepted.",
        ));
    }
    Ok(request)
}

fn refused(sentence: &str) -> ReadFailure {
    ReadFailure::Refused(error_response(StatusCode::BadRequest, sentence))
}

/// The answer to what cannot be read.
fn refusal(error: &RequestError) -> Response {
    let too_large = |size: &str| {
        let sentence =
            format!("The request's body has {size} bytes; at most {BODY_LENGTH_MAX} are accepted.");
        error_response(StatusCode::PayloadTooLarge, &sentence)
    };
    match error {
        RequestError::SizeLimitExceeded(_, size) => too_large(&size.to_string()),
        RequestError::HeaderError(HttpHeaderError::InvalidValue(name, value))
            if name.trim().eq_ignore_ascii_case("content-length") =>
        {
            let size = value.trim();
            if !size.is_empty() && size.bytes().all(|digit| digit.is_ascii_digit()) {
                return too_large(size);
            }
            let sentence = "The Content-Length of the request is not a number.";
            error_response(StatusCode::BadRequest, sentence)
        }
        RequestError::HeaderError(HttpHeaderError::SizeLimitExceeded(_)) => {
            let sentence = "A header of the request is longer than 1024 bytes.";
            error_response(StatusCode::BadRequest, sentence)
        }
        error => {
            let why = error.to_string();
            let sentence =
                format!("This is not an HTTP/1.1 request: {}.", why.trim_end_matches('.'));
            error_response(StatusCode::BadRequest, &sentence)
        }
    }
}
