//! The service that does what is asked, one line of JSON at a time.
//!
//! Owns the translation of an ask into an answer; the work is elsewhere.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;

use super::{End, Guest, entropy, programs, statistics};
use crate::guest::protocol::{Answer, Ask};

const LINE_SIZE_MAX: u64 = 4096;
const FILE_SIZE_MAX: u64 = 1 << 20;

pub(super) fn serve(mut stream: TcpStream, guest: &Guest) -> io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    loop {
        let mut line = String::new();
        if reader.by_ref().take(LINE_SIZE_MAX).read_line(&mut line)? == 0 {
            return Ok(());
        }
        let answer = match serde_json::from_str(&line) {
            Ok(ask) => {
                answer(&ask, guest).unwrap_or_else(|error| Answer::Failed(error.to_string()))
            }
            Err(error) => Answer::Failed(format!("not understood: {error}")),
        };
        let mut line = serde_json::to_vec(&answer)?;
        line.push(b'\n');
        stream.write_all(&line)?;
    }
}

fn answer(ask: &Ask, guest: &Guest) -> io::Result<Answer> {
    Ok(match ask {
        Ask::Entropy { bytes } => {
            let entropy = entropy::read(*bytes)?;
            Answer::Entropy {
                kernel: hexadecimal(&entropy.kernel),
                hardware: entropy.hardware.as_deref().map(hexadecimal),
            }
        }
        Ask::StartDisk { block_size, slots } => {
            guest.writer.start(*block_size, *slots)?;
            Answer::Done
        }
        Ask::DiskProgress => Answer::Durable { blocks: guest.writer.durable() },
        Ask::StopDisk => Answer::Durable { blocks: guest.writer.stop()? },
        Ask::VerifyDisk => Answer::Durable { blocks: guest.writer.verify()? },
        Ask::Statistics => Answer::Statistics(statistics::read(guest)?),
        Ask::Read { path } => {
            let mut content = Vec::new();
            std::fs::File::open(path)?.take(FILE_SIZE_MAX).read_to_end(&mut content)?;
            Answer::Text(String::from_utf8_lossy(&content).into_owned())
        }
        Ask::Run { program } => Answer::Took { duration_ns: programs::run(*program)? },
        Ask::StartRewriting { mib } => {
            guest.rewriter.start(*mib)?;
            Answer::Done
        }
        Ask::StopRewriting => Answer::Rewritten { pages: guest.rewriter.stop()? },
        Ask::Symbol { name } => Answer::Text(symbol(name)?),
        Ask::TimeStamp => Answer::Text(time_stamp().to_string()),
        Ask::PowerOff => end(guest, End::PowerOff)?,
        Ask::Reboot => end(guest, End::Reboot)?,
    })
}

fn end(guest: &Guest, end: End) -> io::Result<Answer> {
    guest.end.send(end).map_err(io::Error::other)?;
    Ok(Answer::Done)
}

fn symbol(name: &str) -> io::Result<String> {
    for line in BufReader::new(std::fs::File::open("/proc/kallsyms")?).lines() {
        let line = line?;
        let mut words = line.split_whitespace();
        if let (Some(address), Some(_kind), Some(found)) =
            (words.next(), words.next(), words.next())
            && found == name
        {
            return Ok(address.to_owned());
        }
    }
    Err(io::Error::other(format!("the kernel has no symbol {name}")))
}

/// Asks for what no log has: nothing but a divergence can come of it.
fn time_stamp() -> u64 {
    // SAFETY: the instruction is part of every x86-64 processor, reads no memory and changes nothing.
    unsafe { core::arch::x86_64::_rdtsc() }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
