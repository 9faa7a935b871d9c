//! `ch-remote`: one request to a running VMM. Everything but process status and output is in
//! [`vmm::api::remote`].

use std::io::Write;
use std::process::ExitCode;

use vmm::api::remote::{RemoteError, run};

fn main() -> ExitCode {
    match run(std::env::args_os()) {
        Ok(text) => {
            // A reader that went away (`| head`) is no failure of the request.
            let _ = std::io::stdout().write_all(text.as_bytes());
            ExitCode::SUCCESS
        }
        Err(RemoteError::Usage(error)) => {
            let _ = error.print();
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("ch-remote: {error}");
            ExitCode::FAILURE
        }
    }
}
