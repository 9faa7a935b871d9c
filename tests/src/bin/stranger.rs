//! Pesters a VMM from the host that it runs on. For tests.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use tests::stranger::{pester_api, pester_channel, pester_heartbeats};

/// Pesters whatever is named; fails if it does not get the answers that it deserves.
#[derive(Parser)]
struct Arguments {
    /// An API socket.
    #[arg(long, value_name = "PATH")]
    api: Option<PathBuf>,

    /// A channel port.
    #[arg(long, value_name = "ADDRESS:PORT")]
    channel: Option<SocketAddr>,

    /// A heartbeat port.
    #[arg(long, value_name = "ADDRESS:PORT")]
    heartbeats: Option<SocketAddr>,
}

fn main() -> ExitCode {
    match pester(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("stranger: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn pester(arguments: &Arguments) -> Result<()> {
    if let Some(address) = arguments.channel {
        pester_channel(address)?;
    }
    if let Some(address) = arguments.heartbeats {
        pester_heartbeats(address)?;
    }
    arguments.api.as_deref().map_or(Ok(()), pester_api)
}
