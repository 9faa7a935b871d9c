//! A guest that is slowed down: of each period it has only a part.
//!
//! Owns the arithmetic only; time is handed in. How much the guest is to be slowed down is decided
//! by whoever knows the reason.

/// A guest rests and runs once in this time, ns: short enough for its clients not to notice more
/// than a slower machine.
const PERIOD_NS: u64 = 20_000_000;

/// The part of each period that the guest has to rest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Slowdown {
    percent: u64,
}

impl Slowdown {
    /// Rest `percent` of the time; 0 is full speed. A guest always has a little.
    pub(super) fn new(percent: u64) -> Self {
        Self { percent: percent.min(99) }
    }

    /// Whether the guest has to rest at this moment.
    pub(super) fn rests(self, now_ns: u64) -> bool {
        now_ns % PERIOD_NS < self.rest_ns()
    }

    /// When that changes, monotonic ns; never at full speed.
    pub(super) fn changes_ns(self, now_ns: u64) -> Option<u64> {
        if self.percent == 0 {
            return None;
        }
        let begun_ns = now_ns - now_ns % PERIOD_NS;
        Some(begun_ns + if self.rests(now_ns) { self.rest_ns() } else { PERIOD_NS })
    }

    fn rest_ns(self) -> u64 {
        PERIOD_NS * self.percent / 100
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn at_full_speed_a_guest_never_rests() {
        let full = Slowdown::default();
        assert!((0..100).all(|place| !full.rests(place * 1_234_567)));
        assert_eq!(full.changes_ns(5), None);
    }

    #[test]
    fn a_guest_rests_its_part_of_every_period() {
        let slow = Slowdown::new(25);
        let now = 7 * PERIOD_NS;
        assert!(slow.rests(now) && slow.rests(now + PERIOD_NS / 4 - 1));
        assert!(!slow.rests(now + PERIOD_NS / 4) && !slow.rests(now + PERIOD_NS - 1));
        assert_eq!(slow.changes_ns(now), Some(now + PERIOD_NS / 4));
        assert_eq!(slow.changes_ns(now + PERIOD_NS / 2), Some(now + PERIOD_NS));
    }

    #[test]
    fn even_the_slowest_guest_runs_a_little() {
        let slow = Slowdown::new(1_000);
        assert!(slow.rests(0) && !slow.rests(PERIOD_NS - 1));
    }
}
