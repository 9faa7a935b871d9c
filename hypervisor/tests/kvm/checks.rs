//! The checks that need a real KVM. `main.rs` runs them as tests, `examples/smoke.rs` as a program
//! for a host that has no compiler.

#[path = "guest.rs"]
mod guest;

#[path = "input_output.rs"]
mod input_output;
#[path = "interrupts.rs"]
mod interrupts;
#[path = "replay.rs"]
mod replay;
#[path = "states.rs"]
mod states;

use guest::Outcome;
use hypervisor::Kvm;

/// A check: its name and what it does.
pub type Check = (&'static str, fn(&Kvm) -> Outcome);

/// All checks.
pub const CHECKS: &[Check] = &[
    ("ports and memory-mapped registers", input_output::ports_and_mmio),
    ("string output", input_output::string_output),
    ("model-specific registers", input_output::model_specific_registers),
    ("processor identification", input_output::processor_identification),
    ("halt, injection and window", interrupts::halt_injection_and_window),
    ("window after a return", interrupts::window_after_a_return),
    ("breakpoint", interrupts::breakpoint),
    ("task priority", interrupts::task_priority),
    ("kick of an endless loop", interrupts::kick_of_an_endless_loop),
    ("kick between two runs", interrupts::kick_between_two_runs),
    ("kick at a deadline", interrupts::kick_at_a_deadline),
    ("dirty log", states::dirty_log),
    ("save and restore in a second machine", states::save_and_restore),
    ("replacing a state in mid-access", states::replacing_in_mid_access),
    ("sixteen bytes compared and exchanged", states::sixteen_bytes_exchanged),
    ("the same exits in spite of kicks", replay::same_exits_in_spite_of_kicks),
];
