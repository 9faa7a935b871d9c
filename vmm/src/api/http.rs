//! HTTP/1.1 as far as the API needs it: one request read from a stream under limits of size and
//! time, one response written. It knows no path and no VM.
//!
//! `httparse` reads the head; the rest (body length, `Expect`, keep-alive) is here.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// Bytes a request line and its headers may have.
pub(super) const HEAD_LENGTH_MAX: usize = 16 << 10;
/// Bytes a body may have.
pub(super) const BODY_LENGTH_MAX: usize = 1 << 20;
const HEADERS_MAX: usize = 64;
const READ_SIZE: usize = 4 << 10;

/// One request.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct HttpRequest {
    pub(super) method: String,
    /// The path without its query.
    pub(super) path: String,
    pub(super) body: Vec<u8>,
    /// Whether the client will not send another one.
    pub(super) close: bool,
}

/// One response. A body is always JSON.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct HttpResponse {
    pub(super) status: u16,
    pub(super) body: Option<String>,
    /// Methods for the `Allow` header of a 405.
    pub(super) allow: Option<&'static str>,
}

/// Why no request could be read.
#[derive(Debug)]
pub(super) enum ReadFailure {
    /// The client is gone or silent; there is nobody to answer.
    Gone,
    /// The client is to be told; then the connection ends.
    Refused(HttpResponse),
}

impl HttpResponse {
    /// An error in Cloud Hypervisor's shape: a JSON array of sentences.
    pub(super) fn error(status: u16, sentence: &str) -> Self {
        let body = serde_json::Value::from(vec![sentence]).to_string();
        HttpResponse { status, body: Some(body), allow: None }
    }

    /// Writes the response; `close` tells the client that it is the last one.
    pub(super) fn write_to(&self, stream: &mut impl Write, close: bool) -> io::Result<()> {
        let mut text = format!("HTTP/1.1 {} {}\r\n", self.status, reason(self.status));
        text.push_str("Server: Cloud Hypervisor API\r\n");
        if let Some(allow) = self.allow {
            text.push_str(&format!("Allow: {allow}\r\n"));
        }
        if close {
            text.push_str("Connection: close\r\n");
        }
        match &self.body {
            // RFC 9110, 8.6: a 204 has no Content-Length.
            None if self.status == 204 => text.push_str("\r\n"),
            None => text.push_str("Content-Length: 0\r\n\r\n"),
            Some(body) => text.push_str(&format!(
                "Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            )),
        }
        stream.write_all(text.as_bytes())?;
        stream.flush()
    }
}

/// The standard phrase of a status; clients read the number.
pub(super) fn reason(status: u16) -> &'static str {
    match status {
        100 => "Continue",
        200 => "OK",
        204 => "No Content",
        400 => "Bad Request",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        411 => "Length Required",
        413 => "Content Too Large",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        503 => "Service Unavailable",
        _ => "Unknown",
    }
}

/// Reads requests from one connection; bytes that came too early wait for the next one.
#[derive(Debug)]
pub(super) struct RequestReader {
    stream: UnixStream,
    received: Vec<u8>,
    /// How long a client may stay silent between requests.
    idle_max: Duration,
    /// How long it may take to send a request it has begun.
    request_time_max: Duration,
}

/// What the head of a request says.
struct Head {
    method: String,
    path: String,
    length: usize,
    body_length: usize,
    close: bool,
    expects_continue: bool,
}

impl RequestReader {
    pub(super) fn new(stream: UnixStream, idle_max: Duration, request_time_max: Duration) -> Self {
        RequestReader { stream, received: Vec::new(), idle_max, request_time_max }
    }

    /// The next request.
    pub(super) fn next(&mut self) -> Result<HttpRequest, ReadFailure> {
        if self.received.is_empty() {
            self.receive(Instant::now() + self.idle_max).map_err(|_| ReadFailure::Gone)?;
        }
        let deadline = Instant::now() + self.request_time_max;
        let head = loop {
            if let Some(head) = parse_head(&self.received)? {
                break head;
            }
            if self.received.len() > HEAD_LENGTH_MAX {
                return Err(refused(
                    431,
                    &format!("The request's headers are longer than {HEAD_LENGTH_MAX} bytes."),
                ));
            }
            self.receive(deadline).map_err(|error| too_slow(&error))?;
        };
        if head.expects_continue && head.body_length > 0 {
            self.stream
                .write_all(b"HTTP/1.1 100 Continue\r\n\r\n")
                .map_err(|_| ReadFailure::Gone)?;
        }
        let length = head.length + head.body_length;
        while self.received.len() < length {
            self.receive(deadline).map_err(|error| too_slow(&error))?;
        }
        let rest = self.received.split_off(length);
        let body = std::mem::replace(&mut self.received, rest).split_off(head.length);
        Ok(HttpRequest { method: head.method, path: head.path, body, close: head.close })
    }

    /// Reads what there is, waiting for it until `deadline`.
    fn receive(&mut self, deadline: Instant) -> io::Result<()> {
        let mut buffer = [0; READ_SIZE];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.stream.set_read_timeout(Some(left))?;
            match self.stream.read(&mut buffer) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => {
                    self.received.extend_from_slice(&buffer[..count]);
                    return Ok(());
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }
}

fn too_slow(error: &io::Error) -> ReadFailure {
    if error.kind() == io::ErrorKind::TimedOut {
        return refused(408, "The request did not arrive in time; send it in one go.");
    }
    ReadFailure::Gone
}

fn refused(status: u16, sentence: &str) -> ReadFailure {
    ReadFailure::Refused(HttpResponse::error(status, sentence))
}

/// The head, if it is complete.
fn parse_head(received: &[u8]) -> Result<Option<Head>, ReadFailure> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    let length = match request.parse(received) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => {
            return Err(refused(431, &format!("The request has more than {HEADERS_MAX} headers.")));
        }
        Err(error) => {
            return Err(refused(400, &format!("This is not an HTTP/1.1 request: {error}.")));
        }
    };
    let mut head = Head {
        method: request.method.unwrap_or_default().to_owned(),
        path: path_of(request.path.unwrap_or_default()).to_owned(),
        length,
        body_length: 0,
        close: request.version == Some(0),
        expects_continue: false,
    };
    for header in request.headers.iter() {
        head.take_header(header)?;
    }
    Ok(Some(head))
}

impl Head {
    fn take_header(&mut self, header: &httparse::Header<'_>) -> Result<(), ReadFailure> {
        let value = std::str::from_utf8(header.value).unwrap_or_default().trim();
        if header.name.eq_ignore_ascii_case("content-length") {
            let digits = !value.is_empty() && value.bytes().all(|digit| digit.is_ascii_digit());
            if !digits {
                return Err(refused(400, "The Content-Length of the request is not a number."));
            }
            // A number too large for usize is too large for us.
            let length = value.parse().unwrap_or(usize::MAX);
            if length > BODY_LENGTH_MAX {
                return Err(refused(
                    413,
                    &format!(
                        "The request's body has {value} bytes; at most {BODY_LENGTH_MAX} are \
                         accepted."
                    ),
                ));
            }
            self.body_length = length;
        } else if header.name.eq_ignore_ascii_case("transfer-encoding") {
            return Err(refused(
                411,
                "The request's body has no Content-Length; chunked bodies are not accepted.",
            ));
        } else if header.name.eq_ignore_ascii_case("connection") {
            self.close |= value.eq_ignore_ascii_case("close");
        } else if header.name.eq_ignore_ascii_case("expect") {
            self.expects_continue = value.eq_ignore_ascii_case("100-continue");
        }
        Ok(())
    }
}

/// `/path` of `/path?query` and of `http://host/path`.
fn path_of(target: &str) -> &str {
    let target = target.split('?').next().unwrap_or_default();
    match target.split_once("://") {
        Some((_, rest)) => rest.find('/').map_or("/", |at| &rest[at..]),
        None => target,
    }
}
