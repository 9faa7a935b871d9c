//! The crate against a real KVM. Without one, each test says loudly that it was skipped.

mod checks;

use checks::CHECKS;
use hypervisor::Kvm;

#[test]
fn the_crate_does_on_kvm_what_it_promises() {
    let Some(kvm) = kvm_or_skip("all tests against KVM") else { return };
    let mut failures = Vec::new();
    for (name, check) in CHECKS {
        if let Err(error) = check(&kvm) {
            failures.push(format!("{name}: {error}"));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// KVM, or a loud word that it is not there.
fn kvm_or_skip(what: &str) -> Option<Kvm> {
    let skip = |why: String| {
        eprintln!("SKIPPED: {what}: {why}");
        None
    };
    // There are kernels with a /dev/kvm on processors that cannot run a stock guest by themselves.
    let processor = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    if !processor.split_whitespace().any(|flag| flag == "svm" || flag == "vmx") {
        return skip("this processor has no hardware virtualisation".to_owned());
    }
    match Kvm::open().and_then(|kvm| kvm.create_vm().map(|_| kvm)) {
        Ok(kvm) => Some(kvm),
        Err(error) => skip(error.to_string()),
    }
}
