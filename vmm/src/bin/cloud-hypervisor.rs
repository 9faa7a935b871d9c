//! The VMM's process: command line, log, API server, and the shell that does the rest.

use std::process::ExitCode;

use vmm::api::{ApiServer, api_queue};
use vmm::cli::{Invocation, Parsed, parse};
use vmm::error::Error;
use vmm::seccomp;
use vmm::shell::{Outcome, Shell};
use vmm::words::{complain, print};

const NAME: &str = "cloud-hypervisor";
/// The exit code of a command line that cannot be followed.
const BAD_COMMAND_LINE: u8 = 2;

fn main() -> ExitCode {
    hypervisor::keep_freed_memory();
    let invocation = match parse(std::env::args_os()) {
        Ok(Parsed::Run(invocation)) => invocation,
        Ok(Parsed::Print(text)) => return print(NAME, &text),
        Err(error) => {
            complain(NAME, &error.to_string());
            return ExitCode::from(BAD_COMMAND_LINE);
        }
    };
    match run(*invocation) {
        Ok(Outcome::Well) => ExitCode::SUCCESS,
        Ok(Outcome::Badly(why)) => {
            complain(NAME, &why);
            ExitCode::FAILURE
        }
        Err(error) => {
            // The sentence holds its cause already.
            complain(NAME, &error.to_string());
            ExitCode::FAILURE
        }
    }
}

fn run(invocation: Invocation) -> Result<Outcome, Error> {
    // Before this process opens anything that could get the same number.
    vmm::inherited::check(&invocation)?;
    vmm::logger::start(invocation.verbosity, invocation.log_file.as_deref())?;
    // Before any thread: those of the API and of the helpers are to have filters of their own, and
    // not the main thread's.
    seccomp::start(invocation.seccomp)?;
    let (submitter, queue) = api_queue().map_err(Error::EventFd)?;
    let server = match &invocation.api_socket {
        Some(place) => Some(
            ApiServer::start(place, move |call| submitter.submit(call))
                .map_err(|error| Error::Api(error.to_string()))?,
        ),
        None => None,
    };
    seccomp::enter(seccomp::Thread::Main)?;
    let outcome = Shell::new(invocation, queue)?.run();
    if let Some(server) = server {
        server.stop();
    }
    outcome
}
