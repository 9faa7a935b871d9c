//! How long things took, most of the time and at worst.
//!
//! Owns the ranking of samples; takes none itself.

use serde::{Deserialize, Serialize};

/// Ranks of a set of durations, in µs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Percentiles {
    /// How many samples there were.
    pub samples: usize,
    /// Half took no longer.
    pub p50_us: u64,
    /// 99 of 100 took no longer.
    pub p99_us: u64,
    /// None took longer.
    pub max_us: u64,
}

impl Percentiles {
    /// Ranks the samples; all ranks of none are zero.
    pub fn of(samples_us: impl IntoIterator<Item = u64>) -> Self {
        let mut sorted: Vec<u64> = samples_us.into_iter().collect();
        sorted.sort_unstable();
        // The nearest rank: the least sample that so many of 100 do not exceed.
        let rank = |percent: usize| {
            let place = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
            sorted.get(place).copied().unwrap_or_default()
        };
        Self { samples: sorted.len(), p50_us: rank(50), p99_us: rank(99), max_us: rank(100) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_are_samples() {
        let ranks = Percentiles::of((1..=200).rev());
        assert_eq!(ranks, Percentiles { samples: 200, p50_us: 100, p99_us: 198, max_us: 200 });
        assert_eq!(
            Percentiles::of([7]),
            Percentiles { samples: 1, p50_us: 7, p99_us: 7, max_us: 7 }
        );
        assert_eq!(Percentiles::of([]), Percentiles::default());
    }
}
