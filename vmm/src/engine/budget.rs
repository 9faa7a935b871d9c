//! How long an input may wait for a natural exit before a delta is forced.
//!
//! A delta costs: state and pages are read, and every page the guest writes afterwards faults
//! once more. Deltas may take a fixed share of the time; a single input after a quiet spell is
//! served within the least patience, a guest that computes for ever pays no more than that share.
//! Owns the arithmetic only; time is handed in.

/// Share of the time that deltas may take: one part in so many.
const SHARE: u64 = 25;
/// Waiting that is always worth it: most guests exit by themselves within this, ns.
const PATIENCE_LEAST_NS: u64 = 1_000_000;
/// No input waits longer than this for an exit, ns. Only hosts on which a delta takes
/// milliseconds (emulated ones) come near it.
const PATIENCE_MOST_NS: u64 = 100_000_000;
/// Credit that a quiet spell can save up, ns of delta time.
const CREDIT_MOST_NS: i64 = 10_000_000;
/// A page written again after a delta faults once: what that costs, in ns. An estimate for
/// hardware; the measured cost of the delta itself scales it on slow hosts.
const REFAULT_FACTOR: u64 = 2;

/// A token bucket of delta time.
#[derive(Clone, Debug)]
pub(super) struct DeltaBudget {
    credit_ns: i64,
    updated_ns: u64,
}

impl Default for DeltaBudget {
    fn default() -> Self {
        Self { credit_ns: CREDIT_MOST_NS, updated_ns: 0 }
    }
}

impl DeltaBudget {
    /// Accounts for a delta that ended at `now_ns` and took `cost_ns`.
    pub(super) fn spend(&mut self, now_ns: u64, cost_ns: u64) {
        let earned = now_ns.saturating_sub(self.updated_ns) / SHARE;
        self.updated_ns = now_ns;
        let cost = i64::try_from(cost_ns.saturating_mul(REFAULT_FACTOR)).unwrap_or(i64::MAX);
        self.credit_ns = self
            .credit_ns
            .saturating_add(i64::try_from(earned).unwrap_or(i64::MAX))
            .min(CREDIT_MOST_NS)
            .saturating_sub(cost);
    }

    /// How long an input may wait from now on, ns.
    pub(super) fn patience_ns(&self) -> u64 {
        let debt = u64::try_from(-self.credit_ns).unwrap_or(0);
        debt.saturating_mul(SHARE).clamp(PATIENCE_LEAST_NS, PATIENCE_MOST_NS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_delta_after_a_quiet_spell_comes_soon() {
        assert_eq!(DeltaBudget::default().patience_ns(), PATIENCE_LEAST_NS);
    }

    #[test]
    fn a_guest_that_always_computes_pays_its_share_and_no_more() {
        let mut budget = DeltaBudget::default();
        let (mut now, mut spent) = (0_u64, 0_u64);
        for _ in 0..10_000 {
            now += budget.patience_ns() + 300_000;
            budget.spend(now, 300_000);
            spent += 300_000;
        }
        assert!(spent * 10 < now, "deltas took {spent} of {now} ns");
    }

    #[test]
    fn patience_never_exceeds_its_bound_and_recovers() {
        let mut budget = DeltaBudget::default();
        budget.spend(1, u64::MAX);
        assert_eq!(budget.patience_ns(), PATIENCE_MOST_NS);
        let mut budget = DeltaBudget::default();
        budget.spend(1, 20_000_000);
        assert_eq!(budget.patience_ns(), PATIENCE_MOST_NS);
        budget.spend(10_000_000_000, 0);
        assert_eq!(budget.patience_ns(), PATIENCE_LEAST_NS);
    }
}
