//! Somebody who has no business here: what a program sees on its ports and its socket when anybody may knock.
//!
//! Owns the nuisance, and what must come of it at once (an answer, or the end of the connection). What must not come of it,
//! harm to a VM, is for tests to see.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

/// An answer takes no longer than this.
const PATIENCE: Duration = Duration::from_secs(60);
/// So many connections at once.
const CROWD: usize = 100;
/// A frame's header as it should begin: magic, version, kind, body length.
const HEADER_BEGIN: [u8; 12] = *b"CHFT\x01\x00\x01\x00\x40\x00\x00\x00";

/// Pesters a backup's channel port. Returns connections that stay open and say nothing more.
pub fn pester_channel(address: SocketAddr) -> Result<Vec<TcpStream>> {
    let connect = || -> Result<TcpStream> {
        let stream = TcpStream::connect_timeout(&address, PATIENCE);
        let stream = stream.with_context(|| format!("cannot connect to {address}"))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(stream)
    };
    let garbage = [
        b"GET / HTTP/1.1\r\nHost: backup\r\n\r\n".to_vec(),
        vec![0; 100_000],
        // A header with a wrong checksum, and one that announces more than anybody may send.
        [&HEADER_BEGIN[..], &[0; 52]].concat(),
        [&HEADER_BEGIN[..8], &[0xff; 56]].concat(),
    ];
    for bytes in garbage {
        let mut stream = connect()?;
        // The other side may hang up before it has all of it.
        let _ = stream.write_all(&bytes);
        must_end(&mut stream)?;
    }
    let mut open = Vec::new();
    for length in [0, 1, HEADER_BEGIN.len()] {
        // One that goes away in the middle of a header, and one that stays there.
        for stays in [false, true] {
            let mut stream = connect()?;
            stream.write_all(&HEADER_BEGIN[..length])?;
            if stays {
                open.push(stream);
            }
        }
    }
    for _ in 0..CROWD {
        open.push(connect()?);
    }
    Ok(open)
}

/// The other side ends the connection, one way or another, and says nothing.
fn must_end(stream: &mut TcpStream) -> Result<()> {
    let mut said = Vec::new();
    match stream.read_to_end(&mut said) {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
        Err(error) => return Err(error).context("garbage did not end the connection"),
    }
    ensure!(said.is_empty(), "garbage was answered: {said:?}");
    Ok(())
}

/// Pesters a heartbeat port, which never answers anybody it does not know.
pub fn pester_heartbeats(address: SocketAddr) -> Result<()> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    for size in [0, 1, 63, 64, 65, 200, 1400] {
        for byte in [0, b'C', 0xff] {
            let mut bytes = vec![byte; size];
            let length = size.min(HEADER_BEGIN.len());
            socket.send_to(&bytes, address)?;
            bytes[..length].copy_from_slice(&HEADER_BEGIN[..length]);
            socket.send_to(&bytes, address)?;
        }
    }
    Ok(())
}

/// Pesters an API socket.
pub fn pester_api(socket: &Path) -> Result<()> {
    let put = |length: usize, body: &[u8]| {
        let head = format!(
            "PUT /api/v1/vm.ft-enable HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n"
        );
        [head.as_bytes(), body].concat()
    };
    let silent: Vec<_> = (0..20).map(|_| UnixStream::connect(socket)).collect::<Result<_, _>>()?;
    for (what, bytes, status) in [
        ("a body that is too large", put(3 << 20, &vec![b' '; 3 << 20]), "413"),
        ("a body that is said to be too large", put(usize::MAX, b"{"), "413"),
        ("JSON that is cut off", put(9, b"{\"role\":\""), "400"),
        ("JSON that is too deep", put(5000, "[".repeat(5000).as_bytes()), "400"),
        ("another protocol", b"SSH-2.0-stranger\r\n\r\n".to_vec(), "400"),
    ] {
        let answer = answer(socket, &bytes)?;
        let begins = answer.starts_with("HTTP/1.1 ") && answer[9..].starts_with(status);
        ensure!(begins, "{what} was answered with {answer}");
    }
    for cut in [put(100, b"{\"ro"), b"PUT /api/v1/vm.ft-enable HTTP/1.1\r\nContent-".to_vec()] {
        UnixStream::connect(socket)?.write_all(&cut)?;
    }
    let mut slow = UnixStream::connect(socket)?;
    for byte in b"GET /api/v1/vmm.ping HTTP" {
        slow.write_all(&[*byte])?;
        sleep(Duration::from_millis(20));
    }
    drop((slow, silent));
    Ok(())
}

fn answer(socket: &Path, bytes: &[u8]) -> Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    // It may be refused before it is all there.
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(Shutdown::Write);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
