//! Flips a bit of a register of a VM, from the host that its VMM runs on. For tests.

use std::process::ExitCode;

use clap::Parser;
use tests::flipping::flip_register;

/// Flips a bit of `r15` of the VM that a VMM runs or follows, and says what it was and is.
#[derive(Parser)]
struct Arguments {
    /// The VMM's process number.
    #[arg(value_name = "PID")]
    pid: i32,
}

fn main() -> ExitCode {
    match flip_register(Arguments::parse().pid) {
        Ok(flipped) => {
            println!("r15 was {:#x} and is {:#x}", flipped.before, flipped.after);
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("flip-register: {error:#}");
            ExitCode::FAILURE
        }
    }
}
