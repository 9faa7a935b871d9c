//! The agent's frames: the one vocabulary of both ends.
//!
//! On the wire: length of the body (`u32`), request (`u32`), kind (`u8`), body; numbers are little-endian. The request is
//! chosen by the outside; whatever comes back because of it carries the same number.

use std::io::{self, Read, Write};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// A command to run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// The program and its arguments.
    pub arguments: Vec<String>,
    /// Environment variables, added to those of the agent.
    pub environment: Vec<(String, String)>,
    /// The folder to run in; the agent's own if there is none.
    pub folder: Option<PathBuf>,
    /// Where standard output and standard error go, both, instead of to the outside.
    pub log: Option<PathBuf>,
    /// Whether its standard input comes from the outside; it is empty otherwise.
    pub input: bool,
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ended {
    /// It exited with this status.
    Exited(i32),
    /// This signal killed it.
    Killed(i32),
}

impl Ended {
    /// The status a shell would report.
    pub fn status(self) -> i32 {
        match self {
            Self::Exited(status) => status,
            Self::Killed(signal) => 128 + signal,
        }
    }

    /// Whether it exited with status 0.
    pub fn success(self) -> bool {
        self == Self::Exited(0)
    }
}

/// What one end says to the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// To the agent: run this.
    Start(Order),
    /// To the agent: send this signal to this process.
    Signal {
        /// The process.
        pid: i32,
        /// The number of the signal.
        signal: i32,
    },
    /// To the agent: the next piece of the command's standard input, or its end if it is empty.
    Input(Vec<u8>),
    /// To the agent: are you there?
    Ping,
    /// From the agent: yes. Also sent unasked, for request 0, when the agent starts.
    Pong,
    /// From the agent: the command runs as this process.
    Started(i32),
    /// From the agent: the command wrote this to its standard output.
    Stdout(Vec<u8>),
    /// From the agent: the command wrote this to its standard error.
    Stderr(Vec<u8>),
    /// From the agent: the command has ended and has no more output.
    Ended(Ended),
    /// Either way: a piece of output, or of input, has been taken off the sender's hands. What bounds the pieces under way.
    Consumed,
    /// From the agent: the signal is sent.
    Done,
    /// From the agent: it could not be done, and why.
    Refused(String),
    /// From the agent: the command could not be started, and why.
    NotStarted {
        /// Whether there is no such program.
        missing: bool,
        /// The system's reason.
        why: String,
    },
}

const HEADER_SIZE: usize = 9;
/// A body is an environment at most, or a piece of output; more is a broken stream.
const BODY_SIZE_MAX: usize = 4 << 20;

/// Writes one frame, in one piece.
pub fn write_frame(writer: &mut impl Write, request: u32, frame: &Frame) -> io::Result<()> {
    let (kind, body) = encode(frame)?;
    let length = u32::try_from(body.len()).map_err(io::Error::other)?;
    let mut bytes = Vec::with_capacity(HEADER_SIZE + body.len());
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(&request.to_le_bytes());
    bytes.push(kind);
    bytes.extend_from_slice(&body);
    writer.write_all(&bytes)?;
    writer.flush()
}

/// Reads one frame; the end of the stream between two frames is an `UnexpectedEof` like any other.
pub fn read_frame(reader: &mut impl Read) -> io::Result<(u32, Frame)> {
    let mut header = [0; HEADER_SIZE];
    reader.read_exact(&mut header)?;
    let number = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|byte| header[at + byte]));
    let length = number(0) as usize;
    if length > BODY_SIZE_MAX {
        return Err(io::Error::other(format!("a frame of the host's agent claims {length} bytes")));
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    Ok((number(4), decode(header[8], body)?))
}

fn encode(frame: &Frame) -> io::Result<(u8, Vec<u8>)> {
    Ok(match frame {
        Frame::Start(order) => (1, serde_json::to_vec(order)?),
        Frame::Signal { pid, signal } => (2, serde_json::to_vec(&(pid, signal))?),
        Frame::Ping => (3, Vec::new()),
        Frame::Pong => (4, Vec::new()),
        Frame::Started(pid) => (5, serde_json::to_vec(pid)?),
        Frame::Stdout(bytes) => (6, bytes.clone()),
        Frame::Stderr(bytes) => (7, bytes.clone()),
        Frame::Ended(ended) => (8, serde_json::to_vec(ended)?),
        Frame::Done => (9, Vec::new()),
        Frame::Refused(why) => (10, why.clone().into_bytes()),
        Frame::Input(bytes) => (11, bytes.clone()),
        Frame::Consumed => (12, Vec::new()),
        Frame::NotStarted { missing, why } => (13, serde_json::to_vec(&(missing, why))?),
    })
}

fn decode(kind: u8, body: Vec<u8>) -> io::Result<Frame> {
    Ok(match kind {
        1 => Frame::Start(serde_json::from_slice(&body)?),
        2 => {
            let (pid, signal) = serde_json::from_slice(&body)?;
            Frame::Signal { pid, signal }
        }
        3 => Frame::Ping,
        4 => Frame::Pong,
        5 => Frame::Started(serde_json::from_slice(&body)?),
        6 => Frame::Stdout(body),
        7 => Frame::Stderr(body),
        8 => Frame::Ended(serde_json::from_slice(&body)?),
        9 => Frame::Done,
        10 => Frame::Refused(String::from_utf8_lossy(&body).into_owned()),
        11 => Frame::Input(body),
        12 => Frame::Consumed,
        13 => {
            let (missing, why) = serde_json::from_slice(&body)?;
            Frame::NotStarted { missing, why }
        }
        unknown => {
            return Err(io::Error::other(format!(
                "a frame of the host's agent is of kind {unknown}"
            )));
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_frame_comes_back_as_it_was() {
        let order = Order {
            arguments: vec!["ls".into(), "-l".into()],
            environment: vec![("A".into(), "b c".into())],
            folder: Some("/tmp".into()),
            log: None,
            input: true,
        };
        let frames = [
            Frame::Start(order),
            Frame::Signal { pid: 7, signal: 9 },
            Frame::Ping,
            Frame::Pong,
            Frame::Started(41),
            Frame::Stdout(vec![0, 255, 10]),
            Frame::Stderr(vec![]),
            Frame::Ended(Ended::Killed(9)),
            Frame::Done,
            Frame::Refused("no".into()),
            Frame::Input(vec![1, 2]),
            Frame::Consumed,
            Frame::NotStarted { missing: true, why: "no".into() },
        ];
        let mut wire = Vec::new();
        for frame in &frames {
            write_frame(&mut wire, 5, frame).unwrap();
        }
        let mut reader = wire.as_slice();
        for frame in frames {
            assert_eq!(read_frame(&mut reader).unwrap(), (5, frame));
        }
    }

    #[test]
    fn a_length_beyond_reason_is_refused_before_it_is_allocated() {
        let wire = [0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 6];
        assert!(read_frame(&mut wire.as_slice()).is_err());
    }
}
