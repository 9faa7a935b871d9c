//! When the next checkpoint is due.
//!
//! A checkpoint costs as a delta does: the guest stands still while state and pages are read, and
//! every page it writes afterwards faults once more. Where nobody waits they come at a steady pace
//! that bounds what a takeover sets the machine back by. An output that waits is worth one at once,
//! as long as the checkpoints leave the guest half of its time.
//! Owns the arithmetic only; time is handed in.

/// A page written again faults: what that costs is about what reading it did.
const REFAULT_FACTOR: u64 = 2;
/// Nobody waits: the guest has at least so many times what a checkpoint costs.
const GUEST_SHARE_AT_REST: u64 = 9;

/// The pace of one machine's checkpoints.
#[derive(Clone, Debug)]
pub(super) struct CheckpointPace {
    /// From one to the next where nothing waits, ns.
    interval_ns: u64,
    /// When the last one ended, monotonic ns.
    ended_ns: u64,
    /// What one costs, smoothed.
    cost_ns: u64,
    /// The machine has changed since the last one.
    changed: bool,
    /// An output waits for the next one.
    awaited: bool,
}

impl CheckpointPace {
    /// Checkpoints `interval_ns` apart, from `now_ns` on.
    pub(super) fn new(interval_ns: u64, now_ns: u64) -> Self {
        Self { interval_ns, ended_ns: now_ns, cost_ns: 0, changed: false, awaited: false }
    }

    /// The machine runs, or an input is applied.
    pub(super) fn note_change(&mut self) {
        self.changed = true;
    }

    /// An output was made that may not leave before the next checkpoint.
    pub(super) fn note_waiting(&mut self) {
        self.changed = true;
        self.awaited = true;
    }

    /// A checkpoint was taken, from `begun_ns` to `now_ns`.
    pub(super) fn took(&mut self, begun_ns: u64, now_ns: u64) {
        let cost_ns = now_ns.saturating_sub(begun_ns).saturating_mul(REFAULT_FACTOR);
        // One that was dear once does not spoil the pace for long.
        self.cost_ns = if self.cost_ns == 0 { cost_ns } else { (self.cost_ns + cost_ns) / 2 };
        self.ended_ns = now_ns;
        self.changed = false;
        self.awaited = false;
    }

    /// When the next one is due, monotonic ns; `None` while there is nothing that one would tell.
    pub(super) fn due_ns(&self) -> Option<u64> {
        if !self.changed {
            return None;
        }
        let rest_ns = if self.awaited {
            self.cost_ns
        } else {
            self.interval_ns.max(self.cost_ns.saturating_mul(GUEST_SHARE_AT_REST))
        };
        Some(self.ended_ns.saturating_add(rest_ns))
    }

    /// Whether it is due.
    pub(super) fn is_due(&self, now_ns: u64) -> bool {
        self.due_ns().is_some_and(|due_ns| now_ns >= due_ns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn a_machine_that_stands_still_needs_no_checkpoint() {
        let mut pace = CheckpointPace::new(25 * MS, 0);
        assert_eq!(pace.due_ns(), None);
        pace.note_change();
        assert_eq!(pace.due_ns(), Some(25 * MS));
        pace.took(25 * MS, 26 * MS);
        assert!(!pace.is_due(u64::MAX));
    }

    #[test]
    fn an_output_after_a_quiet_spell_is_covered_at_once() {
        let mut pace = CheckpointPace::new(25 * MS, 0);
        pace.note_change();
        pace.took(MS, 2 * MS);
        pace.note_change();
        assert!(!pace.is_due(20 * MS));
        pace.note_waiting();
        assert!(pace.is_due(20 * MS));
    }

    #[test]
    fn a_guest_whose_outputs_always_wait_has_half_of_its_time() {
        for cost in [MS / 4, 10 * MS] {
            let mut pace = CheckpointPace::new(25 * MS, 0);
            let (mut now, mut standing) = (0, 0);
            for _ in 0..1000 {
                pace.note_waiting();
                now = now.max(pace.due_ns().unwrap());
                pace.took(now, now + cost);
                now += cost;
                standing += cost;
            }
            assert!(standing * 2 < now, "{standing} of {now} ns");
            assert!(standing * 4 > now, "outputs waited without need: {standing} of {now} ns");
        }
    }

    #[test]
    fn dear_checkpoints_that_nobody_waits_for_come_less_often() {
        let mut pace = CheckpointPace::new(25 * MS, 0);
        pace.note_change();
        pace.took(0, 10 * MS);
        pace.note_change();
        assert_eq!(pace.due_ns(), Some(10 * MS + 180 * MS));
        // A single dear one is forgotten.
        for _ in 0..20 {
            pace.took(0, MS / 10);
            pace.note_change();
        }
        assert_eq!(pace.due_ns(), Some(MS / 10 + 25 * MS));
    }
}
