//! `ft-log`: a look into log files. Everything but the process is in [`vmm::logfile::tool`].

use std::io::{BufWriter, ErrorKind, Write, stderr, stdout};
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut out = BufWriter::new(stdout().lock());
    let code = vmm::logfile::tool::run(std::env::args_os(), &mut out, &mut stderr());
    match out.flush() {
        // A reader that went away (`| head`) is no failure; it has seen what it wanted.
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            vmm::words::complain("ft-log", &format!("the output cannot be written: {error}"));
            ExitCode::FAILURE
        }
        Ok(()) | Err(_) => ExitCode::from(code),
    }
}
