//! What is counted while a VM is protected, recorded or replayed, and what happened to it.
//!
//! Counters belong to one protection: [`Statistics::begin`] starts them anew. What happened, and
//! how often the copies differed, is kept for as long as the process lives.

use std::collections::VecDeque;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ft::Chunk;

use super::traffic::{Tally, Traffic};
use crate::api::{FtEvent, JoinInfo, LogTraffic};
use crate::engine::CopyProgress;

/// Events that are kept.
pub const EVENTS_MAX: usize = 64;

/// Counters of one protection, and the events of this process.
#[derive(Debug)]
pub struct Statistics {
    /// Where the machine is, as far as the shell knows.
    pub moment: u64,
    /// Up to where the backup has acknowledged the log; at the backup, up to where this side has.
    pub acknowledged_moment: u64,
    /// Deltas taken or applied.
    pub deltas: u64,
    /// Their pages.
    pub delta_pages: u64,
    /// Divergences found since the process began.
    pub divergences: u64,
    /// Copies healed since the process began.
    pub healings: u64,
    /// Pages sent for the last of them.
    pub healing_pages: u64,
    /// Machine time that a replay has reached, ns.
    pub replayed_ns: u64,
    /// How far the backup's execution is behind, ms, as the primary knows it.
    pub lag_ms: u64,
    /// The last join that this side gave its machine to.
    pub copy: Option<CopyProgress>,
    traffic: Traffic,
    /// At a backup: the chunks that it holds and has not executed, and since when.
    waiting: VecDeque<(u64, Instant)>,
    events: VecDeque<Happened>,
}

#[derive(Debug)]
struct Happened {
    what: String,
    when: SystemTime,
    moment: u64,
}

impl Statistics {
    /// Nothing counted yet.
    pub fn new(now: Instant) -> Self {
        Self {
            moment: 0,
            acknowledged_moment: 0,
            deltas: 0,
            delta_pages: 0,
            divergences: 0,
            healings: 0,
            healing_pages: 0,
            replayed_ns: 0,
            lag_ms: 0,
            copy: None,
            traffic: Traffic::new(now),
            waiting: VecDeque::new(),
            events: VecDeque::new(),
        }
    }

    /// A protection, recording or replay begins.
    pub fn begin(&mut self, now: Instant) {
        *self = Self {
            moment: self.moment,
            divergences: self.divergences,
            healings: self.healings,
            healing_pages: self.healing_pages,
            events: std::mem::take(&mut self.events),
            ..Self::new(now)
        };
    }

    /// Counts one chunk of log that was made here.
    pub fn made(&mut self, chunk: &Chunk, now: Instant) {
        self.moment = self.moment.max(chunk.end_moment);
        self.traffic.count(&Tally::of(chunk), now);
    }

    /// Counts one chunk of log that a replay read.
    pub fn read(&mut self, chunk: &Chunk, now: Instant) {
        self.traffic.count(&Tally::of(chunk), now);
    }

    /// Counts one chunk of log that this side took, to execute it.
    pub(super) fn received(&mut self, tally: &Tally, now: Instant) {
        self.acknowledged_moment = tally.end_moment;
        self.traffic.count(tally, now);
        self.waiting.push_back((tally.number, now));
    }

    /// Log up to this chunk was executed.
    pub fn executed(&mut self, number: u64) {
        while self.waiting.pop_front_if(|(waiting, _)| *waiting <= number).is_some() {}
    }

    /// How far the backup's execution is behind, ms: as this side hears, or is itself.
    pub fn lag_ms(&self, now: Instant) -> u64 {
        let oldest = self.waiting.front();
        oldest.map_or(self.lag_ms, |(_, since)| whole_ms(now.saturating_duration_since(*since)))
    }

    /// Notes what happened.
    pub fn happened(&mut self, what: impl Into<String>) {
        let what = what.into();
        log::info!("{what}");
        if self.events.len() == EVENTS_MAX {
            self.events.pop_front();
        }
        self.events.push_back(Happened { what, when: SystemTime::now(), moment: self.moment });
    }

    /// The VM has ended.
    pub fn stopped(&mut self) {
        self.lag_ms = 0;
        self.waiting.clear();
    }

    /// What happened, newest last.
    pub fn events(&self) -> Vec<FtEvent> {
        let event = |happened: &Happened| FtEvent {
            what: happened.what.clone(),
            when_unix_ms: happened.when.duration_since(UNIX_EPOCH).map_or(0, whole_ms),
            ago_ms: happened.when.elapsed().map_or(0, whole_ms),
            moment: Some(happened.moment),
        };
        self.events.iter().map(event).collect()
    }

    /// The last join.
    pub fn join(&self) -> Option<JoinInfo> {
        let copy = self.copy?;
        let milliseconds = |ns: u64| ns / 1_000_000;
        let left_ns = u128::from(copy.elapsed_ns) * u128::from(copy.pages_left)
            / u128::from(copy.pages.max(1));
        Some(JoinInfo {
            round: copy.round,
            pages: copy.pages,
            zero_pages: copy.zero_pages,
            kept_pages: copy.kept_pages,
            pages_left: copy.pages_left,
            bytes: copy.bytes,
            throttle_percent: copy.throttle_percent,
            elapsed_ms: milliseconds(copy.elapsed_ns),
            round_ends_in_ms: copy
                .pause_ns
                .is_none()
                .then(|| u64::try_from(left_ns / 1_000_000).unwrap_or(u64::MAX)),
            pause_us: copy.pause_ns.map(|ns| ns / 1_000),
        })
    }

    /// The log so far and its rates.
    pub fn traffic(&self, now: Instant) -> LogTraffic {
        self.traffic.report(now)
    }
}

fn whole_ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(number: u64, end_moment: u64) -> Chunk {
        let mut records = Vec::new();
        ft::Encoder::new(end_moment).append_input(
            end_moment,
            &ft::Input::PowerButton,
            &mut records,
        );
        let outputs = ft::Trail::default();
        Chunk { number, start_moment: end_moment, end_moment, outputs, records }
    }

    #[test]
    fn a_backup_is_behind_by_the_age_of_the_oldest_chunk_it_has_not_executed() {
        let begun = Instant::now();
        let at = |ms| begun + Duration::from_millis(ms);
        let mut statistics = Statistics::new(begun);
        assert_eq!(statistics.lag_ms(at(5)), 0);
        statistics.received(&Tally::of(&chunk(1, 10)), at(10));
        statistics.received(&Tally::of(&chunk(2, 20)), at(30));
        assert_eq!((statistics.acknowledged_moment, statistics.moment), (20, 0));
        assert_eq!(statistics.lag_ms(at(50)), 40);
        statistics.executed(1);
        assert_eq!(statistics.lag_ms(at(50)), 20);
        statistics.executed(2);
        assert_eq!(statistics.lag_ms(at(90)), 0);
        assert!(statistics.traffic(at(90)).bytes_by_kind["power-button"] > 0);
    }

    #[test]
    fn a_new_protection_counts_anew_and_forgets_no_event_and_no_divergence() {
        let begun = Instant::now();
        let mut statistics = Statistics::new(begun);
        statistics.made(&chunk(1, 7), begun);
        statistics.received(&Tally::of(&chunk(1, 7)), begun);
        statistics.happened("protected");
        (statistics.deltas, statistics.delta_pages, statistics.divergences) = (1, 2, 3);
        statistics.begin(begun);
        assert_eq!((statistics.deltas, statistics.delta_pages, statistics.divergences), (0, 0, 3));
        assert_eq!((statistics.moment, statistics.acknowledged_moment), (7, 0));
        assert_eq!(statistics.traffic(begun), LogTraffic::default());
        assert_eq!(statistics.lag_ms(begun + Duration::from_secs(1)), 0);
        assert_eq!(statistics.events().len(), 1);
    }

    #[test]
    fn the_oldest_events_are_forgotten_first() {
        let mut statistics = Statistics::new(Instant::now());
        for number in 0..=EVENTS_MAX {
            statistics.happened(format!("event {number}"));
        }
        let events = statistics.events();
        assert_eq!(events.len(), EVENTS_MAX);
        assert_eq!(events[0].what, "event 1");
        assert_eq!(events[EVENTS_MAX - 1].what, format!("event {EVENTS_MAX}"));
    }
}
