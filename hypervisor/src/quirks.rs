//! Two places where KVM, or the processor under it, gives a detail away that depends on when the
//! host was interrupted. Both are turned into functions of the guest's state alone.
//!
//! **The window after `sti`.** `sti` lets interrupts in only after the *next* instruction. Some
//! emulated AMD processors (QEMU before 9.1) forget that shadow if the host was interrupted just
//! before, so that the interrupt window opens one instruction too early. A window right after an
//! `sti` is therefore not reported: the shadow is cast again and the guest entered, so that the
//! window opens one instruction later, whether the shadow was lost or the guest came there in
//! another way (by returning from an exception). Where it opens at the same place again, the
//! instruction in the shadow jumps to itself, and the window is reported.
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
    /// Where the guest was when the last window was passed over, if nothing was reported since.
    passed_over: Option<u64>,
}

impl WindowRule {
    /// Whether a window at `rip`, with `before` the byte in memory before it, is reported. If not,
    /// the guest is to run one instruction in a shadow.
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
    fn a_window_right_after_sti_is_passed_over() {
        let mut rule = WindowRule::default();
        assert!(!rule.report(0x1000, Some(STI)));
        assert!(rule.report(0x1002, Some(0x90)), "the instruction in the shadow has run");
    }

    #[test]
    fn a_jump_to_itself_after_sti_does_not_keep_interrupts_out() {
        let mut rule = WindowRule::default();
        assert!(!rule.report(0x1000, Some(STI)));
        assert!(rule.report(0x1000, Some(STI)));
        assert!(!rule.report(0x1000, Some(STI)), "and is passed over the next time round");
    }

    #[test]
    fn a_lost_shadow_and_a_kept_one_report_the_same_place() {
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
