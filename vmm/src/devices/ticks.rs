//! Conversions between machine time and the ticks of a device's own oscillator.
//!
//! A device counts on a grid that starts at machine time 0, in whole numbers, so that periodic
//! timers do not drift however often they are looked at.

const NS_PER_SECOND: u128 = 1_000_000_000;

/// Ticks of an oscillator with `frequency` Hz that have passed at `now` ns.
pub(super) fn at(now: u64, frequency: u32) -> u64 {
    // At most u64::MAX · u32::MAX / 10⁹; fits 2⁶⁴ for frequencies up to 1 GHz.
    (u128::from(now) * u128::from(frequency) / NS_PER_SECOND) as u64
}

/// The first moment, in ns, at which `ticks` have passed; `u64::MAX` if it never comes.
pub(super) fn reached(ticks: u64, frequency: u32) -> u64 {
    let ns = (u128::from(ticks) * NS_PER_SECOND).div_ceil(u128::from(frequency));
    u64::try_from(ns).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_tick_is_reached_exactly_when_it_counts(
            ticks in 0u64..1 << 40,
            frequency in prop::sample::select(vec![32_768u32, 1_193_182, 3_579_545]),
        ) {
            let moment = super::reached(ticks, frequency);
            prop_assert_eq!(super::at(moment, frequency), ticks);
            prop_assert!(moment == 0 || super::at(moment - 1, frequency) < ticks);
        }
    }
}
