//! Backups that lie: they speak the protocol as they should for a while, and then say what is not so.
//!
//! Owns what they say and hear. What a primary makes of it is the tests' question.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use anyhow::{Result, bail};
use ft::{Ack, Link, Message, Record, Word};

/// One whom a primary has called.
struct Liar {
    stream: TcpStream,
    link: Link,
}

/// Hears a primary's greeting, says these words, and listens until it hangs up.
///
/// # Errors
/// It never greeted, or said what is not the protocol.
pub fn talk(listener: &TcpListener, words: &[Message]) -> Result<()> {
    let mut liar = Liar::called(listener)?;
    liar.say(words)?;
    liar.listen_on();
    Ok(())
}

/// Follows a primary until that counts on it, then does as [`talk`].
///
/// # Errors
/// The same, or the primary hung up before.
pub fn follow_and_talk(listener: &TcpListener, words: &[Message]) -> Result<()> {
    let mut liar = Liar::called(listener)?;
    liar.say(&[Message::Word(Word::Welcome)])?;
    let mut ack = Ack::default();
    loop {
        match liar.hear()? {
            Message::Append(chunk) => {
                ack = Ack { received: chunk.number, executed: chunk.number, ..ack };
                ack.outputs = chunk.outputs;
                liar.say(&[Message::Word(Word::Ack(ack))])?;
                let whole =
                    |record: &Record| matches!(record, Record::Delta { machine: Some(_), .. });
                if chunk.decode()?.records.iter().any(|(_, record)| whole(record)) {
                    liar.say(&[Message::Word(Word::Ready)])?;
                }
            }
            Message::Word(Word::Ping { stamp_ms }) => {
                ack.echo_ms = Some(stamp_ms);
                liar.say(&[Message::Word(Word::Ack(ack))])?;
            }
            Message::Word(Word::Protect) => break,
            other => bail!("the primary said {other:?}"),
        }
    }
    liar.say(&[Message::Word(Word::Following)])?;
    liar.say(words)?;
    liar.listen_on();
    Ok(())
}

impl Liar {
    fn called(listener: &TcpListener) -> Result<Self> {
        let (stream, _) = listener.accept()?;
        let mut liar = Self { stream, link: Link::backup() };
        liar.hear()?;
        Ok(liar)
    }

    fn hear(&mut self) -> Result<Message> {
        let mut bytes = vec![0; 64 << 10];
        loop {
            if let Some(message) = self.link.next_message()? {
                return Ok(message);
            }
            let count = self.stream.read(&mut bytes)?;
            if count == 0 {
                bail!("the primary hung up");
            }
            self.link.push(&bytes[..count]);
        }
    }

    fn say(&mut self, words: &[Message]) -> Result<()> {
        for word in words {
            self.stream.write_all(&self.link.seal(word)?)?;
        }
        Ok(())
    }

    fn listen_on(&mut self) {
        let _ = std::io::copy(&mut self.stream, &mut std::io::sink());
    }
}
