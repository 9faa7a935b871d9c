//! The agent inside an emulated host; `/init` starts it with the device of its serial port.

use std::fs::File;
use std::process::ExitCode;

fn main() -> ExitCode {
    let Some(path) = std::env::args_os().nth(1) else {
        eprintln!("host-agent: the device of the serial port must be given");
        return ExitCode::from(2);
    };
    let served =
        File::options().read(true).write(true).open(&path).and_then(tests::runner::agent::serve);
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("host-agent: {}: {error}", path.display());
            ExitCode::FAILURE
        }
    }
}
