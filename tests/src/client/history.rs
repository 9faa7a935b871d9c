//! What a client asked and was told, and whether the guest's disk agrees.
//!
//! Owns the judgement. Every acknowledgement is a promise: that the request is the record of that number, after exactly
//! those before it.

use std::collections::{BTreeMap, BTreeSet};

use super::percentiles::Percentiles;
use crate::guest::protocol::{Acknowledgement, Record};

/// One request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exchange {
    /// The client's name for it.
    pub id: u64,
    /// XXH3 of its payload.
    pub checksum: u64,
    /// When it was sent, in µs since the load's start.
    pub sent_us: u64,
    /// When it was answered, likewise, and the answer.
    pub answer: Option<(u64, Acknowledgement)>,
}

impl Exchange {
    /// How long the answer took, in µs.
    pub fn round_trip_us(&self) -> Option<u64> {
        self.answer.map(|(at_us, _)| at_us.saturating_sub(self.sent_us))
    }
}

/// All requests of one connection, in the order of their sending.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    /// The requests.
    pub exchanges: Vec<Exchange>,
    /// What ended the connection, if not the client.
    pub broken: Option<String>,
}

impl History {
    /// How many were answered.
    pub fn acknowledged(&self) -> usize {
        self.exchanges.iter().filter(|exchange| exchange.answer.is_some()).count()
    }

    /// Round trips of the requests sent in this span of time, in µs since the load's start.
    pub fn round_trips(&self, span_us: std::ops::Range<u64>) -> Percentiles {
        let within = self.exchanges.iter().filter(|exchange| span_us.contains(&exchange.sent_us));
        Percentiles::of(within.filter_map(Exchange::round_trip_us))
    }

    /// The longest time without an answer while one was due: when it began, in µs since the load's start, and how long it
    /// was, in µs.
    pub fn longest_gap(&self) -> Option<(u64, u64)> {
        // Answers come in the order of the requests: what is waited for is always the oldest without one.
        let mut last_answer_us = 0;
        let mut longest: Option<(u64, u64)> = None;
        for exchange in &self.exchanges {
            let Some((at_us, _)) = exchange.answer else { break };
            let start_us = exchange.sent_us.max(last_answer_us);
            let length_us = at_us.saturating_sub(start_us);
            if longest.is_none_or(|(_, other)| length_us > other) {
                longest = Some((start_us, length_us));
            }
            last_answer_us = at_us;
        }
        longest
    }
}

/// What is wrong, and how much is right.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Requests that were acknowledged.
    pub acknowledged: usize,
    /// Records on the disk.
    pub durable: usize,
    /// Acknowledged requests that are not on the disk.
    pub lost: Vec<u64>,
    /// Requests that are on the disk more than once.
    pub doubled: Vec<u64>,
    /// Records that are not what the client sent under their id, or that no client sent.
    pub altered: Vec<u64>,
    /// Requests that are on the disk, but not where the acknowledgement said, or not in the order of their sending.
    pub disordered: Vec<u64>,
    /// The first record that does not follow from the one before it.
    pub torn: Option<usize>,
    /// What ended connections, if not the client.
    pub broken: Vec<String>,
}

impl Verdict {
    /// Whether all promises were kept.
    pub fn is_clean(&self) -> bool {
        self.lost.is_empty()
            && self.doubled.is_empty()
            && self.altered.is_empty()
            && self.disordered.is_empty()
            && self.torn.is_none()
            && self.broken.is_empty()
    }
}

/// Holds the records on the disk against what the clients were told.
pub fn check(histories: &[History], records: &[Record]) -> Verdict {
    let mut verdict = Verdict { durable: records.len(), ..Verdict::default() };
    verdict.torn = first_torn(records);
    let mut places = BTreeMap::new();
    for (place, record) in records.iter().enumerate() {
        if places.insert(record.id, place).is_some() {
            verdict.doubled.push(record.id);
        }
    }
    let mut known = BTreeSet::new();
    for history in histories {
        verdict.broken.extend(history.broken.clone());
        let mut before = None;
        for exchange in &history.exchanges {
            known.insert(exchange.id);
            let place = places.get(&exchange.id).copied();
            judge(exchange, place, before, records, &mut verdict);
            before = place.or(before);
        }
    }
    verdict.altered.extend(places.into_keys().filter(|id| !known.contains(id)));
    verdict
}

fn first_torn(records: &[Record]) -> Option<usize> {
    let mut history = 0;
    records.iter().position(|record| {
        let follows = record.follows(history);
        history = record.history;
        !follows
    })
}

/// `place` is where the request is on the disk, `before` where the one before it of the same connection is.
fn judge(
    exchange: &Exchange,
    place: Option<usize>,
    before: Option<usize>,
    records: &[Record],
    verdict: &mut Verdict,
) {
    let record = place.and_then(|place| records.get(place));
    if record.is_some_and(|record| record.checksum != exchange.checksum) {
        verdict.altered.push(exchange.id);
    }
    let promise = exchange.answer.map(|(_, acknowledgement)| acknowledgement);
    verdict.acknowledged += usize::from(promise.is_some());
    match (place, promise) {
        (None, Some(_)) => verdict.lost.push(exchange.id),
        (None, None) => {}
        (Some(place), promise) => {
            let kept = promise.is_none_or(|promise| {
                promise.count == place as u64 + 1
                    && record.is_some_and(|record| record.history == promise.history)
            });
            if !kept || before.is_some_and(|before| before >= place) {
                verdict.disordered.push(exchange.id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use xxhash_rust::xxh3::xxh3_64;

    /// Five requests, all stored, the last one not acknowledged.
    fn sound() -> (History, Vec<Record>) {
        let mut records: Vec<Record> = Vec::new();
        let mut history = History::default();
        for id in 1..=5_u64 {
            let payload = id.to_le_bytes();
            let record = Record::next(records.last().map_or(0, |last| last.history), id, &payload);
            records.push(record);
            let answer = Acknowledgement { id, count: id, history: record.history };
            history.exchanges.push(Exchange {
                id,
                checksum: xxh3_64(&payload),
                sent_us: id * 100,
                answer: (id < 5).then_some((id * 100 + 10 * id, answer)),
            });
        }
        (history, records)
    }

    fn rechain(records: &mut [Record]) {
        let mut history = 0;
        for record in records {
            // The payload of a request is its id.
            *record = Record::next(history, record.id, &record.id.to_le_bytes());
            history = record.history;
        }
    }

    #[test]
    fn promises_that_are_kept_pass() {
        let (history, records) = sound();
        let verdict = check(&[history], &records);
        assert!(verdict.is_clean(), "{verdict:?}");
        assert_eq!((verdict.acknowledged, verdict.durable), (4, 5));
    }

    #[test]
    fn a_request_without_an_answer_may_be_missing_but_not_one_with() {
        let (history, mut records) = sound();
        records.pop();
        assert!(check(std::slice::from_ref(&history), &records).is_clean());
        records.pop();
        assert_eq!(check(&[history], &records).lost, [4]);
    }

    #[test]
    fn a_request_stored_twice_is_found() {
        let (history, mut records) = sound();
        records.push(records[1]);
        rechain(&mut records);
        assert_eq!(check(&[history], &records).doubled, [2]);
    }

    #[test]
    fn another_order_than_was_promised_is_found() {
        let (history, mut records) = sound();
        records.swap(1, 2);
        rechain(&mut records);
        let verdict = check(&[history], &records);
        assert!(verdict.disordered.contains(&2) && verdict.disordered.contains(&3), "{verdict:?}");
    }

    #[test]
    fn altered_and_foreign_and_torn_records_are_found() {
        let (history, mut records) = sound();
        records[4] = Record::next(records[3].history, 5, b"other");
        assert_eq!(check(std::slice::from_ref(&history), &records).altered, [5]);
        records.push(Record::next(records[4].history, 99, b""));
        assert_eq!(check(std::slice::from_ref(&history), &records).altered, [5, 99]);
        records[2].history ^= 1;
        assert_eq!(check(&[history], &records).torn, Some(2));
    }

    #[test]
    fn the_longest_gap_is_that_of_the_slowest_answer() {
        let (history, _) = sound();
        assert_eq!(history.longest_gap(), Some((400, 40)));
        assert_eq!(history.round_trips(0..u64::MAX).max_us, 40);
    }
}
