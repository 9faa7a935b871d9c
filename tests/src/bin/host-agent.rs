//! The agent inside a host. In an emulated one `/init` starts it with the device of its serial port; where a host is but
//! namespaces, it gets `-`, and a socket for its standard input.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let Some(path) = std::env::args_os().nth(1) else {
        eprintln!("host-agent: the device of the serial port must be given, or '-'");
        return ExitCode::from(2);
    };
    match open(Path::new(&path)).and_then(tests::runner::agent::serve) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("host-agent: {}: {error}", path.display());
            ExitCode::FAILURE
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    if path == Path::new("-") {
        return Ok(File::from(io::stdin().as_fd().try_clone_to_owned()?));
    }
    File::options().read(true).write(true).open(path)
}
