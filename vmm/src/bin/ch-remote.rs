//! `ch-remote`: one request to a running VMM. Everything but process status and output is in
//! [`vmm::api::remote`].

use std::process::ExitCode;

use vmm::api::remote::{RemoteError, run};
use vmm::words::{complain, print, usage_sentence};

const NAME: &str = "ch-remote";

fn main() -> ExitCode {
    match run(std::env::args_os()) {
        Ok(text) => print(NAME, &text),
        Err(error) => {
            let sentence = match &error {
                RemoteError::Usage(usage) => usage_sentence(usage),
                other => other.to_string(),
            };
            complain(NAME, &sentence);
            ExitCode::FAILURE
        }
    }
}
