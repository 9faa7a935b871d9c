//! What came of it, in words.
//!
//! Owns the block of text at the end.

use std::fmt::Write;

use super::Report;
use crate::client::Percentiles;

impl Report {
    /// The verdict, for people.
    pub fn in_words(&self) -> String {
        let mut text = String::new();
        let title = if self.survived { "The VM outlived its host." } else { "FAILED." };
        let mut line = |name: &str, value: String| {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "  {name:<22}{value}");
        };
        let connection = if self.connection_survived { "survived" } else { "BROKE" };
        line("connection", format!("{connection} (one TCP connection, never opened again)"));
        let requests = &self.requests;
        line(
            "requests",
            format!(
                "{} acknowledged, {} lost, {} doubled",
                grouped(requests.acknowledged as u64),
                requests.lost,
                requests.doubled
            ),
        );
        line("longest wait", format!("{:.0} ms while the backup joined", self.joining_gap_ms));
        if self.times_ms.killed > 0 {
            line("", format!("{:.0} ms at the kill, as the client saw it", self.gap_ms));
        }
        line("round trip", "     p50        p99        max".to_owned());
        line("  before protection", row(&self.round_trips.before));
        line("  under protection", row(&self.round_trips.protected));
        line("  after the takeover", row(&self.round_trips.after));
        if let Some(protection) = &self.protection {
            let log = &protection.log;
            line(
                "log",
                format!(
                    "{}/s ({} deltas, {} divergences in {})",
                    bytes(log.bytes_per_second),
                    protection.deltas,
                    protection.divergences,
                    bytes(log.bytes)
                ),
            );
        }
        line(
            "killed",
            format!("{} (--kill {}, --ack {})", victim(self.killed), self.killed, self.ack),
        );
        line("ran on", self.place.in_words());
        for fault in &self.faults {
            line("fault", fault.clone());
        }
        let rule = "─".repeat(title.chars().count());
        let mut block = format!("\n{title}\n{rule}\n{text}");
        if self.place.emulator.is_some() {
            block.push_str(
                "\n  Emulated hosts take some 40 µs for an exit of the VM that takes 1 µs in reality: compare the\n  \
                 times with each other, not with those of real machines.\n",
            );
        }
        block
    }
}

fn victim(killed: &str) -> &'static str {
    if killed == "host" { "the primary's whole host" } else { "the primary's VMM, by SIGKILL" }
}

fn row(ranks: &Percentiles) -> String {
    if ranks.samples == 0 {
        return "         no requests in this time".to_owned();
    }
    let ms = |us: u64| format!("{:>8.2} ms", us as f64 / 1000.0);
    format!(
        "{}{}{}   ({} requests)",
        ms(ranks.p50_us),
        ms(ranks.p99_us),
        ms(ranks.max_us),
        grouped(ranks.samples as u64)
    )
}

/// A number with its thousands apart.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// An amount of bytes.
pub fn bytes(number: u64) -> String {
    match number {
        0..10_000 => format!("{number} B"),
        10_000..10_000_000 => format!("{:.1} kB", number as f64 / 1e3),
        _ => format!("{:.1} MB", number as f64 / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::{history, report};
    use super::*;

    #[test]
    fn the_verdict_says_what_a_user_asks_first() {
        let text = report(&history(), Vec::new()).in_words();
        for words in
            ["outlived", "survived", "400 acknowledged, 0 lost, 0 doubled", "500 ms", "1.00 ms"]
        {
            assert!(text.contains(words), "{words}: {text}");
        }
        let failed = report(&history(), vec!["it fell over".to_owned()]).in_words();
        assert!(failed.contains("FAILED") && failed.contains("it fell over"), "{failed}");
    }

    #[test]
    fn numbers_are_readable() {
        assert_eq!([grouped(7), grouped(1234), grouped(1_234_567)], ["7", "1,234", "1,234,567"]);
        assert_eq!([bytes(9), bytes(20_500), bytes(12_340_000)], ["9 B", "20.5 kB", "12.3 MB"]);
    }
}
