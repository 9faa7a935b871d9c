//! Two places where KVM, or the processor under it, gives a detail away that depends on when the
//! host was interrupted. Both are turned into functions of the guest's state alone.
//!
//! **The window after `sti`.** `sti` lets interrupts in only after the *next* instruction. Emulated
//! AMD processors (QEMU) forget that shadow when `sti` is the first instruction after an entry, so
//! that the interrupt window opens one instruction too early if a host interrupt came just before
//! it. A window right after an `sti` is therefore not reported the first time: the guest is entered
//! again, and the window opens after the instruction in the shadow, as it should have. Where the
//! shadow is never lost, a window there is a real one (the guest returned there from an exception),
//! comes again at once, and is reported then.
//!
//! **`int3` without next-instruction saving.** On such AMD processors KVM asks its emulator to step
//! over an `int3` that it must deliver again, and the emulator does not know it. We step over it
//! and inject the breakpoint ourselves.

/// The opcode of `sti`.
const STI: u8 = 0xfb;
/// The opcode of `int3`.
const INT3: u8 = 0xcc;
/// The vector of a breakpoint.
pub(crate) const BREAKPOINT_VECTOR: u8 = 3;

/// Decides which interrupt windows are reported.
#[derive(Debug, Default)]
pub(crate) struct WindowRule {
    /// Where the last run ended with a window that was not reported.
    passed_over: Option<u64>,
}

impl WindowRule {
    /// Whether a window at `rip`, with `before` the byte in memory before it, is reported.
    pub(crate) fn report(&mut self, rip: u64, before: Option<u8>) -> bool {
        let again = self.passed_over.take() == Some(rip);
        if before == Some(STI) && !again {
            self.passed_over = Some(rip);
            return false;
        }
        true
    }

    /// The guest got somewhere else, or is somebody else.
    pub(crate) fn forget(&mut self) {
        self.passed_over = None;
    }
}

/// Whether an instruction that KVM could not emulate is a breakpoint to be injected instead.
pub(crate) fn is_breakpoint(instruction: &[u8]) -> bool {
    instruction.first() == Some(&INT3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_right_after_sti_is_passed_over_once() {
        let mut rule = WindowRule::default();
        assert!(!rule.report(0x1000, Some(STI)));
        assert!(rule.report(0x1002, Some(0x90)), "the instruction in the shadow has run");
    }

    #[test]
    fn a_real_window_after_sti_is_reported_when_it_comes_again() {
        let mut rule = WindowRule::default();
        assert!(!rule.report(0x1000, Some(STI)));
        assert!(rule.report(0x1000, Some(STI)));
        assert!(!rule.report(0x1000, Some(STI)), "and is passed over the next time round");
    }

    #[test]
    fn both_kinds_of_host_report_the_same_place_for_a_lost_shadow() {
        let (mut loses, mut keeps) = (WindowRule::default(), WindowRule::default());
        assert!(!loses.report(0x1000, Some(STI)));
        assert!(loses.report(0x1001, Some(0xf4)));
        assert!(keeps.report(0x1001, Some(0xf4)));
    }

    #[test]
    fn after_another_exit_the_rule_starts_anew() {
        let mut rule = WindowRule::default();
        assert!(!rule.report(0x1000, Some(STI)));
        rule.forget();
        assert!(!rule.report(0x1000, Some(STI)));
    }

    #[test]
    fn unreadable_memory_before_the_window_changes_nothing() {
        assert!(WindowRule::default().report(0, None));
    }

    #[test]
    fn only_int3_is_stepped_over() {
        assert!(is_breakpoint(&[0xcc, 0x90]));
        assert!(!is_breakpoint(&[0xcd, 0x03]));
        assert!(!is_breakpoint(&[]));
    }
}
