//! The VMM's process: command line, log, API server, and the shell that does the rest.

use std::process::ExitCode;

use anyhow::Context;
use vmm::api::{ApiServer, api_queue};
use vmm::cli::{Invocation, Parsed, parse};
use vmm::seccomp;
use vmm::shell::{Outcome, Shell};

fn main() -> ExitCode {
    let invocation = match parse(std::env::args_os()) {
        Ok(Parsed::Run(invocation)) => invocation,
        Ok(Parsed::Print(text)) => {
            print!("{text}");
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("cloud-hypervisor: {error}");
            return ExitCode::from(2);
        }
    };
    match run(*invocation) {
        Ok(Outcome::Well) => ExitCode::SUCCESS,
        Ok(Outcome::Badly(why)) => {
            eprintln!("cloud-hypervisor: {why}");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("cloud-hypervisor: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(invocation: Invocation) -> anyhow::Result<Outcome> {
    vmm::logger::start(invocation.verbosity, invocation.log_file.as_deref())
        .context("The log cannot be written")?;
    // Before any thread: those of the API and of the helpers are to have filters of their own, and
    // not the main thread's.
    seccomp::start(invocation.seccomp)?;
    let (submitter, queue) = api_queue().context("No queue for the API can be made")?;
    let server = match &invocation.api_socket {
        Some(place) => Some(ApiServer::start(place, move |call| submitter.submit(call))?),
        None => None,
    };
    seccomp::enter(seccomp::Thread::Main)?;
    let outcome = Shell::new(invocation, queue)?.run();
    if let Some(server) = server {
        server.stop();
    }
    Ok(outcome?)
}
