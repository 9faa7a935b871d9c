//! The civil calendar (proleptic Gregorian, UTC) and seconds since 1970.

const DAY_S: i64 = 86_400;
/// Days in 400 years.
const ERA_DAYS: i64 = 146_097;
/// Days from 0000-03-01, where a year that ends with February begins, to 1970-01-01.
const EPOCH_DAYS: i64 = 719_468;

/// A second of the calendar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Civil {
    pub year: i64,
    /// 1 to 12.
    pub month: i64,
    /// 1 to 31.
    pub day: i64,
    pub hour: i64,
    pub minute: i64,
    pub second: i64,
}

impl Civil {
    /// The second that is `seconds` after 1970 began.
    pub fn from_unix(seconds: i64) -> Self {
        let days = seconds.div_euclid(DAY_S) + EPOCH_DAYS;
        let in_day = seconds.rem_euclid(DAY_S);
        let era = days.div_euclid(ERA_DAYS);
        let in_era = days.rem_euclid(ERA_DAYS);
        // Leap days before this one: one in 4 years, none in 100, one in 400 (the era's last).
        let year_in_era =
            (in_era - in_era / 1_460 + in_era / 36_524 - in_era / (ERA_DAYS - 1)) / 365;
        let in_year = in_era - (365 * year_in_era + year_in_era / 4 - year_in_era / 100);
        // Months from March: 153 days in each five of them.
        let march_month = (5 * in_year + 2) / 153;
        let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
        Self {
            year: era * 400 + year_in_era + i64::from(month <= 2),
            month,
            day: in_year - (153 * march_month + 2) / 5 + 1,
            hour: in_day / 3600,
            minute: in_day / 60 % 60,
            second: in_day % 60,
        }
    }

    /// Seconds since 1970 began. Fields out of range carry over, but for the month, which is held
    /// inside the year.
    pub fn to_unix(self) -> i64 {
        let month = self.month.clamp(1, 12);
        let year = if month <= 2 { self.year - 1 } else { self.year };
        let march_month = (month + 9) % 12;
        let in_year = (153 * march_month + 2) / 5 + self.day - 1;
        let year_in_era = year.rem_euclid(400);
        let in_era = 365 * year_in_era + year_in_era / 4 - year_in_era / 100 + in_year;
        let days = year.div_euclid(400) * ERA_DAYS + in_era - EPOCH_DAYS;
        days * DAY_S + self.hour * 3600 + self.minute * 60 + self.second
    }

    /// Day of the week, Sunday being 1.
    pub fn weekday(self) -> i64 {
        (self.to_unix().div_euclid(DAY_S) + 4).rem_euclid(7) + 1
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn known_days() {
        let civil = |year, month, day| Civil { year, month, day, hour: 0, minute: 0, second: 0 };
        for (seconds, date, weekday) in [
            (0, civil(1970, 1, 1), 5),
            (951_782_400, civil(2000, 2, 29), 3),
            (1_709_164_800, civil(2024, 2, 29), 5),
            (4_107_542_400, civil(2100, 3, 1), 2),
        ] {
            assert_eq!(Civil::from_unix(seconds), date);
            assert_eq!(date.to_unix(), seconds);
            assert_eq!(date.weekday(), weekday);
        }
    }

    proptest! {
        #[test]
        fn every_second_goes_there_and_back(seconds in -100_000_000_000i64..400_000_000_000) {
            let civil = Civil::from_unix(seconds);
            prop_assert_eq!(civil.to_unix(), seconds);
            prop_assert!((1..=12).contains(&civil.month) && (1..=31).contains(&civil.day));
        }
    }
}
