//! How much log there is: bytes by kind of record since a log began, and over the last seconds.
//!
//! It reads no clock: who counts says when.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use ft::{Chunk, Decoder};

use crate::api::LogTraffic;

/// Whole seconds that rates are taken over, besides the one that has begun.
const WINDOW_SECONDS: u64 = 5;

/// Bytes by kind of record.
type ByKind = BTreeMap<&'static str, u64>;

/// What is to be known of a chunk once it is someone else's.
#[derive(Clone, Debug)]
pub(super) struct Tally {
    pub number: u64,
    pub end_moment: u64,
    bytes: ByKind,
}

impl Tally {
    /// Reads the chunk's records as far as they are records.
    pub(super) fn of(chunk: &Chunk) -> Self {
        let mut bytes = ByKind::new();
        let mut decoder = Decoder::new(chunk.start_moment, &chunk.records);
        let mut left = chunk.records.len();
        while let Ok(Some((_, record))) = decoder.next_record() {
            let now = decoder.remaining();
            *bytes.entry(record.name()).or_default() += (left - now) as u64;
            left = now;
        }
        Self { number: chunk.number, end_moment: chunk.end_moment, bytes }
    }
}

/// The counters of one log.
#[derive(Debug)]
pub(super) struct Traffic {
    begun: Instant,
    totals: ByKind,
    /// What was counted in each of the last seconds since the beginning, oldest first.
    seconds: VecDeque<(u64, ByKind)>,
}

impl Traffic {
    pub(super) fn new(now: Instant) -> Self {
        Self { begun: now, totals: ByKind::new(), seconds: VecDeque::new() }
    }

    pub(super) fn count(&mut self, tally: &Tally, now: Instant) {
        let second = now.saturating_duration_since(self.begun).as_secs();
        if self.seconds.back().is_none_or(|(last, _)| *last != second) {
            self.seconds.push_back((second, ByKind::new()));
            while self.seconds.len() as u64 > WINDOW_SECONDS + 1 {
                self.seconds.pop_front();
            }
        }
        for (kind, bytes) in &tally.bytes {
            *self.totals.entry(kind).or_default() += bytes;
            if let Some((_, counted)) = self.seconds.back_mut() {
                *counted.entry(kind).or_default() += bytes;
            }
        }
    }

    /// The log so far and its rates.
    pub(super) fn report(&self, now: Instant) -> LogTraffic {
        let passed = now.saturating_duration_since(self.begun);
        let first = passed.as_secs().saturating_sub(WINDOW_SECONDS);
        // A log that has just begun has no rate yet: a second is the least that one is taken over.
        let window = (passed - Duration::from_secs(first)).max(Duration::from_secs(1));
        let window_ms = u64::try_from(window.as_millis()).unwrap_or(u64::MAX);
        let mut recent: ByKind = self.totals.keys().map(|kind| (*kind, 0)).collect();
        for (_, counted) in self.seconds.iter().filter(|(second, _)| *second >= first) {
            for (kind, bytes) in counted {
                *recent.entry(kind).or_default() += bytes;
            }
        }
        let rate = |bytes: u64| bytes.saturating_mul(1000) / window_ms;
        LogTraffic {
            bytes: self.totals.values().sum(),
            bytes_per_second: rate(recent.values().sum()),
            bytes_by_kind: named(&self.totals, |bytes| bytes),
            bytes_per_second_by_kind: named(&recent, rate),
        }
    }
}

fn named(by_kind: &ByKind, value: impl Fn(u64) -> u64) -> BTreeMap<String, u64> {
    by_kind.iter().map(|(kind, bytes)| ((*kind).to_owned(), value(*bytes))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(bytes: &[(&'static str, u64)]) -> Tally {
        Tally { number: 1, end_moment: 0, bytes: bytes.iter().copied().collect() }
    }

    #[test]
    fn bytes_are_counted_by_kind_of_record() {
        let mut records = Vec::new();
        let mut encoder = ft::Encoder::new(5);
        encoder.append_input(
            6,
            &ft::Input::Packet { device: 0, bytes: vec![0; 100] },
            &mut records,
        );
        let packet = records.len() as u64;
        encoder.append_input(7, &ft::Input::PowerButton, &mut records);
        let button = records.len() as u64 - packet;
        // What is no record is not counted, and harms nobody.
        records.push(0xff);
        let outputs = ft::Trail::default();
        let chunk = Chunk { number: 3, start_moment: 5, end_moment: 7, outputs, records };
        let tally = Tally::of(&chunk);
        assert_eq!((tally.number, tally.end_moment), (3, 7));
        assert_eq!(tally.bytes, ByKind::from([("packet", packet), ("power-button", button)]));
    }

    #[test]
    fn rates_are_those_of_the_last_seconds_and_totals_those_since_the_beginning() {
        let begun = Instant::now();
        let at = |ms: u64| begun + Duration::from_millis(ms);
        let mut traffic = Traffic::new(begun);
        for second in 0..10 {
            traffic.count(&tally(&[("tick", 100), ("packet", 900)]), at(second * 1000));
        }
        let report = traffic.report(at(10_000));
        assert_eq!((report.bytes, report.bytes_per_second), (10_000, 1000));
        assert_eq!(report.bytes_by_kind["packet"], 9_000);
        assert_eq!(report.bytes_per_second_by_kind["tick"], 100);
        // Nothing came since: the totals stay, the rate is forgotten.
        let later = traffic.report(at(60_000));
        assert_eq!((later.bytes, later.bytes_per_second), (10_000, 0));
        assert_eq!(later.bytes_per_second_by_kind["packet"], 0);
    }

    #[test]
    fn a_log_that_has_just_begun_has_no_monstrous_rate() {
        let begun = Instant::now();
        let mut traffic = Traffic::new(begun);
        traffic.count(&tally(&[("pages", 4096)]), begun);
        assert_eq!(traffic.report(begun).bytes_per_second, 4096);
        assert_eq!(traffic.report(begun + Duration::from_secs(2)).bytes_per_second, 2048);
    }

    #[test]
    fn counting_for_long_takes_no_more_room() {
        let begun = Instant::now();
        let mut traffic = Traffic::new(begun);
        for second in 0..1000 {
            traffic.count(&tally(&[("tick", 1)]), begun + Duration::from_secs(second));
        }
        assert!(traffic.seconds.len() <= 6);
    }
}
