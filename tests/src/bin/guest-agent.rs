//! The agent inside the guest; `/init` starts it and does as its exit status says.

use std::process::ExitCode;

use tests::guest::agent;
use tests::guest::protocol::FAILED_MARK;

fn main() -> ExitCode {
    match agent::run() {
        Ok(end) => ExitCode::from(end as u8),
        Err(error) => {
            println!("{FAILED_MARK}: {error}");
            ExitCode::FAILURE
        }
    }
}
