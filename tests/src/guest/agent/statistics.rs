//! How the guest is, as its kernel tells.
//!
//! Owns the reading of `/proc`.

use std::fs::read_to_string;
use std::io;

use super::Guest;
use crate::guest::protocol::Statistics;

pub(super) fn read(guest: &Guest) -> io::Result<Statistics> {
    let uptime = read_to_string("/proc/uptime")?;
    let stat = read_to_string("/proc/stat")?;
    let clock = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
    Ok(Statistics {
        uptime_ms: milliseconds(&uptime),
        interrupts: total(&stat, "intr"),
        context_switches: total(&stat, "ctxt"),
        boot_id: read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned(),
        clock_source: read_to_string(clock)?.trim().to_owned(),
        journal_records: guest.journal.count(),
    })
}

/// The first number, seconds with hundredths, in ms.
fn milliseconds(uptime: &str) -> u64 {
    let digits: String = uptime
        .split_whitespace()
        .next()
        .unwrap_or_default()
        .chars()
        .filter(char::is_ascii_digit)
        .collect();
    digits.parse::<u64>().unwrap_or_default() * 10
}

/// The first number in the line that begins with `key`.
fn total(stat: &str, key: &str) -> u64 {
    let line = stat.lines().find(|line| line.split_whitespace().next() == Some(key));
    let number = line.and_then(|line| line.split_whitespace().nth(1));
    number.and_then(|number| number.parse().ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_as_the_kernel_writes_them() {
        assert_eq!(milliseconds("12.34 5.67\n"), 12_340);
        assert_eq!(total("cpu 1 2\nintr 77 0 1\nctxt 9\n", "intr"), 77);
        assert_eq!(total("cpu 1 2\n", "intr"), 0);
    }
}
