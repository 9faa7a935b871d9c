//! Round trips of a TCP connection between two hosts, as the log's channel has them. For `scripts/bench`.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Parser;
use tests::client::{Percentiles, echo_round_trips_us};

const SIZE: usize = 64;
const COUNT: usize = 500;
const PATIENCE: Duration = Duration::from_secs(20);

/// Answers one connection, or asks over one and prints how long the answers took.
#[derive(Parser)]
enum Arguments {
    /// Sends back what comes over the first connection, until that ends.
    Answer {
        /// Where to listen.
        #[arg(value_name = "PORT")]
        port: u16,
    },
    /// Sends 64 bytes there and back again, 500 times; prints the percentiles, as JSON.
    Ask {
        /// Who answers.
        #[arg(value_name = "ADDRESS:PORT")]
        address: SocketAddr,
    },
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse() {
        Arguments::Answer { port } => answer(port),
        Arguments::Ask { address } => ask(address),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("round-trip: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn answer(port: u16) -> Result<()> {
    let listener = TcpListener::bind(("0.0.0.0", port))
        .with_context(|| format!("cannot listen at port {port}"))?;
    let (mut stream, _) = listener.accept()?;
    stream.set_nodelay(true)?;
    let mut piece = [0; SIZE];
    loop {
        match stream.read(&mut piece)? {
            0 => return Ok(()),
            length => stream.write_all(&piece[..length])?,
        }
    }
}

fn ask(address: SocketAddr) -> Result<()> {
    let mut stream = connect(address)?;
    stream.set_nodelay(true)?;
    let percentiles = Percentiles::of(echo_round_trips_us(&mut stream, SIZE, COUNT)?);
    println!("{}", serde_json::to_string(&percentiles)?);
    Ok(())
}

/// Who answers may have been started a moment ago.
fn connect(address: SocketAddr) -> Result<TcpStream> {
    let start = Instant::now();
    loop {
        match TcpStream::connect_timeout(&address, PATIENCE) {
            Ok(stream) => return Ok(stream),
            Err(_) if start.elapsed() < PATIENCE => std::thread::sleep(Duration::from_millis(50)),
            Err(error) => return Err(error).with_context(|| format!("nobody at {address}")),
        }
    }
}
