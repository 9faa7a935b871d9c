//! `scripts/bench`: what protection, a join and a failover cost, as ratios of one run.
//!
//! Owns the command line; the measurements are `bench/`.

use std::process::ExitCode;

use clap::Parser;
use tests::bench::{Section, run};

/// Measures one VM unprotected, protected and unprotected again, then a join and a failover, and prints ratios.
#[derive(Parser)]
#[command(name = "bench")]
struct Arguments {
    /// Measure only these; all of them if not given.
    #[arg(long, value_name = "SECTION", value_delimiter = ',', value_enum)]
    only: Vec<Section>,
}

fn main() -> ExitCode {
    match run(&Arguments::parse().only) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}
