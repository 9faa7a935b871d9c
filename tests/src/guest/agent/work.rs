//! Work without a client, as the kernel's command line asks for it:
//! `ft.run=workload:cpu,disk,net,entropy;poweroff`.
//!
//! Owns the grammar and the work. Every piece of work ends with a checksum, so that two runs that must be the same can be
//! compared by one line of their consoles.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::FileExt;
use std::thread;

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::{End, compute, entropy, writer};
use crate::guest::protocol::DONE_MARK;
use crate::guest::{blocks, pattern};

/// What to do, and what to do then.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Work {
    pieces: Vec<Piece>,
    gateway: Option<Ipv4Addr>,
    then: Option<End>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Piece {
    Cpu,
    Disk,
    Network,
    Entropy,
}

const COMPUTE_ROUNDS: u64 = 100_000_000;
const BLOCK_SIZE: u32 = 4096;
const BLOCKS: u64 = 200;
const DATAGRAMS: u64 = 200;
const LOOP_BYTES: u64 = 1 << 20;
const ENTROPY_READS: u32 = 50;
/// Nobody answers on this port; that it is asked is the work.
const DISCARD_PORT: u16 = 9;

/// The work in the kernel's command line.
pub(super) fn parse(line: &str) -> Result<Option<Work>, String> {
    let value = |key: &str| line.split_whitespace().find_map(|word| word.strip_prefix(key));
    let Some(run) = value("ft.run=") else { return Ok(None) };
    let gateway = value("ft.gw=").and_then(|gateway| gateway.parse().ok());
    let mut work = Work { pieces: Vec::new(), gateway, then: None };
    for command in run.split(';').filter(|command| !command.is_empty()) {
        match command.split_once(':').unwrap_or((command, "")) {
            ("workload", names) => {
                work.pieces = names.split(',').map(piece).collect::<Result<_, _>>()?;
            }
            ("poweroff", "") => work.then = Some(End::PowerOff),
            ("reboot", "") => work.then = Some(End::Reboot),
            _ => return Err(format!("ft.run does not know '{command}'")),
        }
    }
    Ok(Some(work))
}

fn piece(name: &str) -> Result<Piece, String> {
    match name {
        "cpu" => Ok(Piece::Cpu),
        "disk" => Ok(Piece::Disk),
        "net" => Ok(Piece::Network),
        "entropy" => Ok(Piece::Entropy),
        other => Err(format!("ft.run does not know the workload '{other}'")),
    }
}

/// Does all the work, then tells the checksum of it.
pub(super) fn run(work: &Work) -> io::Result<Option<End>> {
    let mut checksum = 0;
    for piece in &work.pieces {
        let result = match piece {
            Piece::Cpu => compute::compute(COMPUTE_ROUNDS),
            Piece::Disk => disk()?,
            Piece::Network => network(work.gateway)?,
            Piece::Entropy => random()?,
        };
        checksum = xxh3_64_with_seed(&result.to_le_bytes(), checksum);
    }
    println!("{DONE_MARK} {checksum:016x}");
    Ok(work.then)
}

/// Writes blocks, each durable before the next, and reads them back from the disk.
fn disk() -> io::Result<u64> {
    const PATH: &str = "/data/work";
    let file = File::create(PATH)?;
    for number in 0..BLOCKS {
        let place = number * u64::from(BLOCK_SIZE);
        file.write_all_at(&blocks::block(number, BLOCK_SIZE), place)?;
        file.sync_data()?;
    }
    writer::drop_caches()?;
    let mut content = Vec::new();
    File::open(PATH)?.read_to_end(&mut content)?;
    Ok(xxh3_64_with_seed(&content, 0))
}

/// Sends datagrams to the gateway, and a stream to itself.
fn network(gateway: Option<Ipv4Addr>) -> io::Result<u64> {
    if let Some(gateway) = gateway {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        for number in 0..DATAGRAMS {
            let mut datagram = [0; 1024];
            pattern::fill(number * 1024, &mut datagram);
            // A gateway that refuses is as good as one that does not.
            let _ = socket.send_to(&datagram, (gateway, DISCARD_PORT));
        }
    }
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let sender = thread::spawn(move || -> io::Result<()> {
        let mut stream = TcpStream::connect(address)?;
        let mut bytes = vec![0; LOOP_BYTES as usize];
        pattern::fill(0, &mut bytes);
        stream.write_all(&bytes)
    });
    let mut received = Vec::new();
    listener.accept()?.0.read_to_end(&mut received)?;
    sender.join().map_err(|_| io::Error::other("the sending to ourselves failed"))??;
    pattern::check(0, &received)
        .map_err(|place| io::Error::other(format!("byte {place} to ourselves came out wrong")))?;
    Ok(xxh3_64_with_seed(&received, 0))
}

fn random() -> io::Result<u64> {
    let mut checksum = 0;
    for _ in 0..ENTROPY_READS {
        let entropy = entropy::read(64)?;
        checksum = xxh3_64_with_seed(&entropy.kernel, checksum);
        checksum = xxh3_64_with_seed(&entropy.hardware.unwrap_or_default(), checksum);
    }
    Ok(checksum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_line_is_understood() {
        let line = "console=ttyS0 ft.gw=10.77.0.1 ft.run=workload:cpu,entropy;poweroff quiet\n";
        let work = Work {
            pieces: vec![Piece::Cpu, Piece::Entropy],
            gateway: Some(Ipv4Addr::new(10, 77, 0, 1)),
            then: Some(End::PowerOff),
        };
        assert_eq!(parse(line), Ok(Some(work)));
        assert_eq!(parse("console=ttyS0"), Ok(None));
    }

    #[test]
    fn what_is_not_known_is_named() {
        assert!(parse("ft.run=workload:gpu").unwrap_err().contains("'gpu'"));
        assert!(parse("ft.run=explode").unwrap_err().contains("'explode'"));
    }
}
