//! The stream between two replicas: messages in order over TCP, never waiting.
//!
//! Owns the socket and what is not written yet. What is read is bounded by one frame, and by what
//! one turn of reading may unpack; what is written is bounded by the log's limit, which `ft` keeps.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, RawFd};

use ft::{Link, Message};

use crate::error::Error;

/// Bytes read from the socket at once.
const READ_BYTES: usize = 256 << 10;
/// Bytes read, or unpacked from what was read, before the event loop's other sources have their
/// turn. Only the last read of a turn can unpack to more than that.
const READ_TURN_BYTES: usize = 4 << 20;

/// What came of reading.
#[derive(Debug, Default)]
pub struct Received {
    /// Whole messages, in order.
    pub messages: Vec<Message>,
    /// The other side, or the network, closed the stream.
    pub closed: bool,
    /// The stream carries something else: why.
    pub damaged: Option<String>,
}

/// One end of the stream.
pub struct Channel {
    stream: TcpStream,
    link: Link,
    unsent: VecDeque<Vec<u8>>,
    /// Bytes of the first unsent frame that are sent.
    sent: usize,
    buffer: Vec<u8>,
    /// Bytes sent so far.
    pub bytes_sent: u64,
    /// Bytes received so far.
    pub bytes_received: u64,
}

impl Channel {
    /// Takes over a connected socket.
    ///
    /// # Errors
    /// The socket does not take its options.
    pub fn new(stream: TcpStream, link: Link) -> Result<Self, Error> {
        let prepare = || -> std::io::Result<()> {
            stream.set_nonblocking(true)?;
            stream.set_nodelay(true)
        };
        prepare()
            .map_err(|error| Error::Channel(format!("the channel cannot be set up: {error}")))?;
        let buffer = vec![0; READ_BYTES];
        Ok(Self {
            stream,
            link,
            unsent: VecDeque::new(),
            sent: 0,
            buffer,
            bytes_sent: 0,
            bytes_received: 0,
        })
    }

    /// Where the other side is.
    pub fn peer(&self) -> Option<SocketAddr> {
        self.stream.peer_addr().ok()
    }

    /// The other side's address without its port.
    pub fn peer_ip(&self) -> Option<IpAddr> {
        self.peer().map(|peer| peer.ip())
    }

    /// Queues a message and sends what the socket takes.
    ///
    /// # Errors
    /// The message is too large for any frame. A socket that failed is noticed when it is read.
    pub fn send(&mut self, message: &Message) -> Result<(), Error> {
        let bytes = self.link.seal(message).map_err(|error| Error::Channel(error.to_string()))?;
        self.unsent.push_back(bytes);
        self.flush();
        Ok(())
    }

    /// Sends what waits, as far as the socket takes it.
    pub fn flush(&mut self) {
        while let Some(first) = self.unsent.front() {
            match self.stream.write(&first[self.sent..]) {
                Ok(count) => {
                    self.sent += count;
                    self.bytes_sent += count as u64;
                    if self.sent == first.len() {
                        self.unsent.pop_front();
                        self.sent = 0;
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    // Reading tells the same as an end of the stream.
                    log::debug!("the channel takes no more: {error}");
                    self.unsent.clear();
                    self.sent = 0;
                }
            }
        }
    }

    /// Whether something waits for the socket.
    pub fn wants_write(&self) -> bool {
        !self.unsent.is_empty()
    }

    /// Reads what has arrived.
    pub fn receive(&mut self) -> Received {
        let mut received = Received::default();
        let mut left = READ_TURN_BYTES;
        while left > 0 && received.damaged.is_none() {
            match self.stream.read(&mut self.buffer) {
                Ok(0) => {
                    received.closed = true;
                    break;
                }
                Ok(count) => {
                    self.bytes_received += count as u64;
                    self.link.push(&self.buffer[..count]);
                    let unpacked = self.take_messages(&mut received);
                    left = left.saturating_sub(count.max(unpacked));
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    log::debug!("the channel failed: {error}");
                    received.closed = true;
                    break;
                }
            }
        }
        received
    }

    /// Takes what is whole, and says how many bytes of log that is.
    fn take_messages(&mut self, received: &mut Received) -> usize {
        let mut log_bytes = 0;
        loop {
            match self.link.next_message() {
                Ok(Some(message)) => {
                    if let Message::Append(chunk) = &message {
                        log_bytes += chunk.records.len();
                    }
                    received.messages.push(message);
                }
                Ok(None) => return log_bytes,
                Err(error) => {
                    received.damaged = Some(error.to_string());
                    return log_bytes;
                }
            }
        }
    }
}

impl AsRawFd for Channel {
    fn as_raw_fd(&self) -> RawFd {
        self.stream.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ft::Word;
    use std::net::TcpListener;

    fn pair() -> (Channel, Channel) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let one = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (other, _) = listener.accept().unwrap();
        (Channel::new(one, Link::primary(1)).unwrap(), Channel::new(other, Link::backup()).unwrap())
    }

    fn receive_some(channel: &mut Channel) -> Received {
        for _ in 0..1000 {
            let received = channel.receive();
            if !received.messages.is_empty() || received.closed || received.damaged.is_some() {
                return received;
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        Received::default()
    }

    #[test]
    fn messages_arrive_in_order_and_the_end_is_seen() {
        let (mut primary, mut backup) = pair();
        for stamp_ms in 0..3 {
            primary.send(&Message::Word(Word::Ping { stamp_ms })).unwrap();
        }
        let mut messages = Vec::new();
        while messages.len() < 3 {
            messages.extend(receive_some(&mut backup).messages);
        }
        let stamps: Vec<Message> =
            (0..3).map(|stamp_ms| Message::Word(Word::Ping { stamp_ms })).collect();
        assert_eq!(messages, stamps);
        drop(primary);
        assert!(receive_some(&mut backup).closed);
    }

    #[test]
    fn what_travels_is_counted_as_it_travels() {
        for compression in ft::Compression::ALL {
            let (mut primary, mut backup) = pair();
            primary.link = Link::primary(1).packing(compression);
            let records = vec![5; 64 << 10];
            let (outputs, plain_bytes) = (ft::Trail::default(), records.len() as u64);
            let chunk = ft::Chunk { number: 1, start_moment: 0, end_moment: 1, outputs, records };
            let message = Message::Append(chunk);
            primary.send(&message).unwrap();
            let mut messages = Vec::new();
            while messages.is_empty() {
                primary.flush();
                messages = receive_some(&mut backup).messages;
            }
            assert_eq!(messages, [message]);
            assert_eq!(backup.bytes_received, primary.bytes_sent);
            assert_eq!(primary.bytes_sent > plain_bytes, compression == ft::Compression::Off);
        }
    }

    #[test]
    fn bytes_of_another_protocol_are_damage_and_no_panic() {
        let (primary, mut backup) = pair();
        (&primary.stream).write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        assert!(receive_some(&mut backup).damaged.is_some());
    }
}
