//! Numbers as people read them: few digits, always with a unit.

/// A length of time of some milliseconds.
pub(super) fn milliseconds(ms: u64) -> String {
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..10_000 => format!("{}.{} s", ms / 1_000, ms % 1_000 / 100),
        _ => age(ms),
    }
}

/// A length of time of some microseconds.
pub(super) fn microseconds(us: u64) -> String {
    match us {
        0..1_000 => format!("{us} µs"),
        1_000..10_000 => format!("{}.{} ms", us / 1_000, us % 1_000 / 100),
        _ => milliseconds(us / 1_000),
    }
}

/// How long ago something was, in whole seconds or more.
pub(super) fn age(ms: u64) -> String {
    let seconds = ms / 1_000;
    let (minutes, hours, days) = (seconds / 60, seconds / 3_600, seconds / 86_400);
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3_600 => format!("{minutes} min {} s", seconds % 60),
        3_600..86_400 => format!("{hours} h {} min", minutes % 60),
        _ => format!("{days} d {} h", hours % 24),
    }
}

/// An amount of data.
pub(super) fn bytes(bytes: u64) -> String {
    let mut unit = 1;
    for name in ["B", "kB", "MB", "GB", "TB"] {
        let whole = bytes / unit;
        if whole < 1_000 || name == "TB" {
            let tenth = bytes % unit * 10 / unit;
            let short = whole < 10 && unit > 1;
            return if short {
                format!("{whole}.{tenth} {name}")
            } else {
                format!("{whole} {name}")
            };
        }
        unit *= 1_000;
    }
    unreachable!("the last unit takes any number");
}

/// A count, in groups of three digits.
pub(super) fn count(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

/// The time of day in UTC.
pub(super) fn clock(unix_ms: u64) -> String {
    let seconds = unix_ms / 1_000 % 86_400;
    format!("{:02}:{:02}:{:02}", seconds / 3_600, seconds / 60 % 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_size_has_its_unit() {
        for (ms, text) in [(0, "0 ms"), (999, "999 ms"), (1_250, "1.2 s"), (61_000, "1 min 1 s")] {
            assert_eq!(milliseconds(ms), text);
        }
        for (us, text) in [(412, "412 µs"), (1_390, "1.3 ms"), (12_000, "12 ms")] {
            assert_eq!(microseconds(us), text);
        }
        for (ms, text) in [(999, "0 s"), (3_661_000, "1 h 1 min"), (180_000_000, "2 d 2 h")] {
            assert_eq!(age(ms), text);
        }
        for (amount, text) in
            [(999, "999 B"), (1_250, "1.2 kB"), (34_000_000, "34 MB"), (u64::MAX, "18446744 TB")]
        {
            assert_eq!(bytes(amount), text);
        }
        for (number, text) in [(0, "0"), (999, "999"), (1_234_567, "1 234 567")] {
            assert_eq!(count(number), text);
        }
        assert_eq!(clock(1_700_000_000_000), "22:13:20");
    }
}
