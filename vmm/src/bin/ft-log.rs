//! `ft-log`: a look into log files. Everything but the process is in [`vmm::logfile::tool`].

use std::io::{BufWriter, Write, stderr, stdout};
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut out = BufWriter::new(stdout().lock());
    let code = vmm::logfile::tool::run(std::env::args_os(), &mut out, &mut stderr());
    // A reader that went away is no failure; it has seen what it wanted.
    let _ = out.flush();
    ExitCode::from(code)
}
