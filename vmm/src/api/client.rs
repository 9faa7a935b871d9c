//! A client of the API: one request over the Unix socket, one answer. For `ch-remote` and tests.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;

/// Bytes an answer may have.
const ANSWER_LENGTH_MAX: u64 = 64 << 20;

/// Why a request brought no good answer.
#[derive(Debug, Error)]
pub enum ClientError {
    /// Nobody listens, or nobody may connect.
    #[error("No VMM can be reached at {}: {source}. Is it running with --api-socket?", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// The host's reason.
        source: io::Error,
    },
    /// The connection broke.
    #[error("The connection to the VMM broke before it answered: {0}.")]
    Broken(#[from] io::Error),
    /// It took too long.
    #[error("The VMM at {} does not answer. Is it stopped?", path.display())]
    Silent {
        /// The socket.
        path: PathBuf,
    },
    /// The answer is not HTTP.
    #[error("The answer is not HTTP/1.1, so this is not the socket of a VMM's API.")]
    NotHttp,
    /// The VMM refused.
    #[error("{}", sentence(*status, body))]
    Refused {
        /// The HTTP status.
        status: u16,
        /// The body of the answer.
        body: String,
    },
}

/// What the VMM says in an error: the sentences of its JSON array, or whatever it sent.
fn sentence(status: u16, body: &str) -> String {
    match serde_json::from_str::<Vec<String>>(body) {
        Ok(sentences) if !sentences.is_empty() => sentences.join(": "),
        _ if body.trim().is_empty() => {
            format!("The VMM answered {status} and said nothing else.")
        }
        _ => format!("The VMM answered {status}: {}", body.trim()),
    }
}

/// Sends `method` `/api/v1/name` with `body` to the VMM at `socket`; the answer's body, if any.
/// Waits for the answer for as long as it takes.
///
/// # Errors
/// If there is no VMM, no answer, or an answer that is an error.
pub fn request(
    socket: &Path,
    method: &str,
    name: &str,
    body: Option<&str>,
) -> Result<Option<String>, ClientError> {
    request_within(socket, method, name, body, None)
}

/// The same with a VMM that may fall silent for `at_most`, if that is given.
///
/// # Errors
/// As [`request`], and if the VMM is silent for longer.
pub fn request_within(
    socket: &Path,
    method: &str,
    name: &str,
    body: Option<&str>,
    at_most: Option<Duration>,
) -> Result<Option<String>, ClientError> {
    let mut stream = UnixStream::connect(socket)
        .map_err(|source| ClientError::Connect { path: socket.to_owned(), source })?;
    stream.set_read_timeout(at_most)?;
    stream.set_write_timeout(at_most)?;
    let body = body.unwrap_or_default();
    let head = format!(
        "{method} /api/v1/{name} HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n\
         Content-Type: application/json\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    // The VMM may refuse before it has read everything; then its answer matters, not our pipe.
    let sent = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body.as_bytes()));
    let mut answer = Vec::new();
    let received = stream.take(ANSWER_LENGTH_MAX).read_to_end(&mut answer);
    if answer.is_empty() {
        sent.and(received.map(|_| ())).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => ClientError::Silent { path: socket.to_owned() },
            _ => error.into(),
        })?;
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    read_answer(&answer)
}

fn read_answer(answer: &[u8]) -> Result<Option<String>, ClientError> {
    let mut rest = answer;
    loop {
        let mut headers = [httparse::EMPTY_HEADER; 64];
        let mut response = httparse::Response::new(&mut headers);
        let length = match response.parse(rest) {
            Ok(httparse::Status::Complete(length)) => length,
            Ok(httparse::Status::Partial) | Err(_) => return Err(ClientError::NotHttp),
        };
        let status = response.code.unwrap_or_default();
        let expected = response
            .headers
            .iter()
            .find(|header| header.name.eq_ignore_ascii_case("content-length"))
            .and_then(|header| std::str::from_utf8(header.value).ok()?.trim().parse().ok())
            .unwrap_or(0_usize);
        rest = rest.get(length..).unwrap_or_default();
        if status == 100 {
            continue;
        }
        let Some(body) = rest.get(..expected) else {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        };
        let body = String::from_utf8_lossy(body).into_owned();
        return match status {
            200..=299 => Ok(Some(body).filter(|body| !body.is_empty())),
            _ => Err(ClientError::Refused { status, body }),
        };
    }
}
