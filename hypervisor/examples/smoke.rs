//! Runs the crate's checks against this host's KVM, for hosts without a compiler: build it, carry
//! it there, run it. Prints a line for each check; the exit status is 0 only if all passed.

#[path = "../tests/kvm/checks.rs"]
mod checks;

use std::process::ExitCode;
use std::time::Instant;

use hypervisor::Kvm;

fn main() -> ExitCode {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    let kvm = match Kvm::open() {
        Ok(kvm) => kvm,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(2);
        }
    };
    let mut failed = 0;
    for (name, check) in checks::CHECKS {
        if !wanted.is_empty() && !wanted.iter().any(|word| name.contains(word.as_str())) {
            continue;
        }
        let start = Instant::now();
        match check(&kvm) {
            Ok(()) => println!("ok      {name} ({} ms)", start.elapsed().as_millis()),
            Err(error) => {
                failed += 1;
                println!("FAILED  {name}: {error}");
            }
        }
    }
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
