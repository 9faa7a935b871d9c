//! The local APIC's timer: a 32-bit counter behind a divider on a 1 GHz bus.
//!
//! Owns counting down and when it reaches zero. Whether that raises an interrupt (the mask in the
//! LVT) is decided in [`super::lapic`]. Intel SDM volume 3, section 11.5.4.

use serde::{Deserialize, Serialize};

use super::PERIODIC_MINIMUM_NS;

/// The counter. A bus tick is a nanosecond of machine time, so no rounding can accumulate.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LapicTimerState {
    /// Initial count register.
    pub initial: u32,
    /// Divide configuration register, bits 0, 1 and 3.
    pub divide: u8,
    /// Whether the counter reloads at zero.
    pub periodic: bool,
    /// Machine time, in ns, at which the counter held `anchor_count`.
    pub anchor_ns: u64,
    /// The counter at that time; 0 if it stands still.
    pub anchor_count: u32,
}

impl LapicTimerState {
    fn divisor(&self) -> u64 {
        let code = (self.divide & 0b11) | (self.divide & 0b1000) >> 1;
        if code == 0b111 { 1 } else { 2 << code }
    }

    /// Whether the counter runs.
    pub(super) fn running(&self) -> bool {
        self.anchor_count != 0
    }

    /// Starts to count down from `count`; 0 stops.
    pub(super) fn start(&mut self, count: u32, now: u64) {
        self.initial = count;
        self.anchor_count = count;
        self.anchor_ns = now;
    }

    /// The moment the counter is at zero next.
    pub(super) fn expiry(&self) -> Option<u64> {
        let span = u64::from(self.anchor_count) * self.divisor();
        self.running().then(|| self.anchor_ns.saturating_add(span))
    }

    /// When to look again: [`Self::expiry`], but not sooner than a periodic timer may fire.
    pub(super) fn deadline(&self) -> Option<u64> {
        let pause =
            if self.periodic { self.anchor_ns.saturating_add(PERIODIC_MINIMUM_NS) } else { 0 };
        self.expiry().map(|expiry| expiry.max(pause))
    }

    /// Brings the counter to `now`; whether it went through zero. Several periods count as one.
    pub(super) fn settle(&mut self, now: u64) -> bool {
        let (Some(expiry), Some(deadline)) = (self.expiry(), self.deadline()) else {
            return false;
        };
        if now < deadline {
            return false;
        }
        if self.periodic && self.initial != 0 {
            let period = u64::from(self.initial) * self.divisor();
            self.anchor_ns = expiry + (now - expiry) / period * period;
            self.anchor_count = self.initial;
        } else {
            self.anchor_count = 0;
        }
        true
    }

    /// The current count register.
    pub(super) fn count(&self, now: u64) -> u32 {
        let passed = now.saturating_sub(self.anchor_ns) / self.divisor();
        let anchor = u64::from(self.anchor_count);
        if passed < anchor {
            (anchor - passed) as u32
        } else if self.periodic && self.running() && self.initial != 0 {
            let initial = u64::from(self.initial);
            (initial - (passed - anchor) % initial) as u32
        } else {
            0
        }
    }

    /// Changes the divider; a running counter goes on from where it is.
    pub(super) fn set_divide(&mut self, divide: u8, now: u64) {
        if self.running() {
            self.anchor_count = self.count(now);
            self.anchor_ns = now;
        }
        self.divide = divide & 0b1011;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timer(divide: u8, periodic: bool) -> LapicTimerState {
        LapicTimerState { divide, periodic, ..Default::default() }
    }

    #[test]
    fn every_divider_of_the_manual() {
        let divisors = [(0, 2), (1, 4), (2, 8), (3, 16), (8, 32), (9, 64), (10, 128), (11, 1)];
        for (divide, divisor) in divisors {
            assert_eq!(timer(divide, false).divisor(), divisor);
        }
    }

    #[test]
    fn one_shot_fires_once() {
        let mut timer = timer(3, false);
        timer.start(1000, 500);
        assert_eq!(timer.deadline(), Some(16_500));
        assert_eq!(timer.count(500 + 16 * 999), 1);
        assert!(!timer.settle(16_499));
        assert!(timer.settle(16_500));
        assert_eq!((timer.deadline(), timer.count(20_000)), (None, 0));
        assert!(!timer.settle(u64::MAX));
    }

    #[test]
    fn periodic_keeps_its_grid_and_coalesces() {
        let mut timer = timer(3, true);
        timer.start(62_500, 0); // 1 ms
        assert!(timer.settle(1_000_007));
        assert_eq!(timer.deadline(), Some(2_000_000));
        assert!(timer.settle(9_500_000));
        assert!(!timer.settle(9_500_000));
        assert_eq!(timer.deadline(), Some(10_000_000));
        assert_eq!(timer.count(9_500_000), 31_250);
    }

    #[test]
    fn a_tiny_period_is_held_back() {
        let mut timer = timer(11, true);
        timer.start(1, 0);
        assert_eq!(timer.deadline(), Some(PERIODIC_MINIMUM_NS));
        assert!(timer.settle(PERIODIC_MINIMUM_NS));
        assert_eq!(timer.deadline(), Some(2 * PERIODIC_MINIMUM_NS));
    }

    #[test]
    fn a_new_divider_keeps_the_count() {
        let mut timer = timer(11, false);
        timer.start(1000, 0);
        timer.set_divide(0, 400);
        assert_eq!(timer.count(400), 600);
        assert_eq!(timer.deadline(), Some(400 + 1200));
    }
}
