//! A slow loop that keeps the backup's lag low: the VM is slowed down a little as long as the
//! backup is behind, and a little less as soon as it has caught up.
//!
//! Owns the arithmetic only; time and lag are handed in. What bounds the lag at once is
//! [`super::primary_side::Brakes`]: this loop is there so that they are seldom needed.

/// The slowdown changes at most this often, ms.
const STEP_MS: u64 = 200;
/// How much more is rested after a step in which the backup was always behind, percent.
const SLOWER: u64 = 6;
/// How much less after one in which it was not, percent.
const FASTER: u64 = 2;
/// The guest always has some time left.
const MOST: u64 = 90;

/// The state of the loop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct LagLoop {
    percent: u64,
    step_begun_ms: u64,
    /// The least lag of this step: one long pause of the backup is no reason to slow down.
    least_ms: Option<u64>,
}

impl LagLoop {
    /// How much of its time the guest has to rest, percent.
    pub(super) fn percent(&self) -> u64 {
        self.percent
    }

    /// The backup is `lag_ms` behind now, where `most_ms` is allowed. What the slowdown is from
    /// now on, if it changes.
    pub(super) fn note(&mut self, now_ms: u64, lag_ms: u64, most_ms: u64) -> Option<u64> {
        // A step begins when it is first looked at: nobody looks while nothing happens.
        let Some(least_ms) = self.least_ms else {
            (self.step_begun_ms, self.least_ms) = (now_ms, Some(lag_ms));
            return None;
        };
        let least_ms = least_ms.min(lag_ms);
        self.least_ms = Some(least_ms);
        if now_ms < self.step_begun_ms.saturating_add(STEP_MS) {
            return None;
        }
        self.least_ms = None;
        let percent = if least_ms > most_ms / 2 {
            (self.percent + SLOWER).min(MOST)
        } else if least_ms <= most_ms / 4 {
            self.percent.saturating_sub(FASTER)
        } else {
            self.percent
        };
        (percent != std::mem::replace(&mut self.percent, percent)).then_some(percent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST_MS: u64 = 100;

    /// Plays `steps` steps of a backup that has `speed` percent of the primary's; the slowdown and
    /// the lag at the end.
    fn play(regulator: &mut LagLoop, lag_ms: &mut f64, speed: f64, steps: u64) {
        for _ in 0..steps * 20 {
            let now_ms = regulator.step_begun_ms.max(1_000) + 10;
            let made_ms = 10.0 * (100 - regulator.percent()) as f64 / 100.0;
            *lag_ms = (*lag_ms + made_ms - 10.0 * speed / 100.0).max(0.0);
            for part in 0..20 {
                regulator.note(now_ms + part * 10, *lag_ms as u64, MOST_MS);
            }
        }
    }

    #[test]
    fn a_backup_that_keeps_up_costs_nothing() {
        let (mut regulator, mut lag_ms) = (LagLoop::default(), 0.0);
        play(&mut regulator, &mut lag_ms, 105.0, 50);
        assert_eq!(regulator.percent(), 0);
    }

    #[test]
    fn a_slow_backup_slows_the_vm_down_to_its_own_speed_and_that_is_undone() {
        let (mut regulator, mut lag_ms) = (LagLoop::default(), 0.0);
        play(&mut regulator, &mut lag_ms, 60.0, 200);
        assert!((30..=60).contains(&regulator.percent()), "{regulator:?}");
        assert!(lag_ms < 2.0 * MOST_MS as f64, "{lag_ms}");
        play(&mut regulator, &mut lag_ms, 120.0, 200);
        assert_eq!(regulator.percent(), 0);
    }

    #[test]
    fn a_single_long_pause_of_the_backup_does_not_slow_the_vm_down() {
        let mut regulator = LagLoop::default();
        for step in 1..20_u64 {
            assert_eq!(regulator.note(step * 1_000, 90, MOST_MS), None);
            assert_eq!(regulator.note(step * 1_000 + 100, 5, MOST_MS), None);
        }
    }

    #[test]
    fn a_backup_that_stands_still_leaves_the_guest_some_time() {
        let mut regulator = LagLoop::default();
        for step in 1..100_u64 {
            regulator.note(step * 1_000, 5_000, MOST_MS);
        }
        assert_eq!(regulator.percent(), MOST);
    }
}
