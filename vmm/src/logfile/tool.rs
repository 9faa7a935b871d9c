//! `ft-log`: its command line, and its exit codes.
//!
//! 0: as asked. 1: the log is not whole, or the two logs differ. 2: bad input.

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;

use clap::{Parser, Subcommand};

use super::compare::{Comparison, compare};
use super::dump::{DumpOptions, dump};
use super::printed;
use super::summary::summarise;
use super::verify::verify;
use crate::error::Error;
use crate::words::usage_sentence;

/// Looks into logs of recorded virtual machines (cloud-hypervisor --ft record=FILE).
#[derive(Parser)]
#[command(name = "ft-log", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Prints the records, a line each.
    Dump {
        /// The log.
        file: PathBuf,
        /// First moment to print.
        #[arg(long, value_name = "MOMENT", default_value_t = 0)]
        from: u64,
        /// Last moment to print.
        #[arg(long, value_name = "MOMENT", default_value_t = u64::MAX, hide_default_value = true)]
        to: u64,
        /// Print states, all registers and the addresses of pages, too.
        #[arg(long)]
        full: bool,
    },
    /// Prints what a log holds, in figures.
    Summary {
        /// The log.
        file: PathBuf,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Checks frames, hash chain and records; the exit code is 1 if the log is not whole.
    Verify {
        /// The log.
        file: PathBuf,
    },
    /// Finds the first difference between two logs; the exit code is 1 if there is one.
    Compare {
        /// One log.
        one: PathBuf,
        /// The other.
        other: PathBuf,
    },
}

/// Everything went as asked.
const WELL: u8 = 0;
/// The log is not whole, or the logs differ.
const DIFFERENT: u8 = 1;
/// A command line that makes no sense, or a file that is no log.
const BAD_INPUT: u8 = 2;

/// Does what a command line asks for; returns the exit code.
pub fn run(
    arguments: impl IntoIterator<Item = OsString>,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> u8 {
    let arguments = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        Err(error) if error.use_stderr() => {
            let _ = writeln!(err, "ft-log: {}", usage_sentence(&error));
            return BAD_INPUT;
        }
        Err(error) => {
            let _ = write!(out, "{error}");
            return WELL;
        }
    };
    match carry_out(&arguments.command, out) {
        Ok(code) => code,
        // A reader that went away (`| head`) has seen what it wanted.
        Err(Error::Output(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => WELL,
        Err(error) => {
            let _ = writeln!(err, "ft-log: {error}");
            BAD_INPUT
        }
    }
}

fn carry_out(command: &Command, out: &mut dyn Write) -> Result<u8, Error> {
    match command {
        Command::Dump { file, from, to, full } => {
            dump(file, &DumpOptions { from: *from, to: *to, full: *full }, out)?;
            Ok(WELL)
        }
        Command::Summary { file, json } => {
            let (summary, about) = summarise(file)?;
            if *json {
                let text = serde_json::to_string_pretty(&summary)
                    .map_err(|error| Error::State(error.to_string()))?;
                printed(writeln!(out, "{text}"))?;
            } else {
                summary.print(&about, out)?;
            }
            Ok(WELL)
        }
        Command::Verify { file } => {
            let verified = verify(file)?;
            printed(writeln!(out, "{}: {}", file.display(), verified.sentence()))?;
            Ok(if verified.is_whole() { WELL } else { DIFFERENT })
        }
        Command::Compare { one, other } => print_comparison(&compare(one, other)?, out),
    }
}

fn print_comparison(comparison: &Comparison, out: &mut dyn Write) -> Result<u8, Error> {
    for (one, other) in &comparison.prologues {
        printed(writeln!(out, "< {one}\n> {other}"))?;
    }
    let equal = format!(
        "{} records are equal, up to moment {}",
        comparison.equal_records, comparison.equal_moment
    );
    match &comparison.difference {
        None => {
            printed(writeln!(out, "all {equal}"))?;
            Ok(WELL)
        }
        Some(records) => {
            let [one, other] = records
                .each_ref()
                .map(|record| record.as_deref().unwrap_or("the log has no more records"));
            printed(writeln!(out, "the first {equal}; then\n< {one}\n> {other}"))?;
            Ok(DIFFERENT)
        }
    }
}
