//! What is counted while a VM is protected or recorded, for `ft-info`.

use std::collections::VecDeque;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use ft::{Chunk, Decoder};

use crate::api::{FtEvent, JoinInfo, LogTraffic};
use crate::engine::CopyProgress;

/// Rates are taken over this long.
const WINDOW_SECONDS: usize = 5;

/// Counters of one protection.
#[derive(Debug, Default)]
pub struct Statistics {
    /// Where the machine is, as far as the shell knows.
    pub moment: u64,
    /// What the backup acknowledged.
    pub acknowledged_moment: u64,
    /// Deltas taken or applied.
    pub deltas: u64,
    /// Their pages.
    pub delta_pages: u64,
    /// Divergences found.
    pub divergences: u64,
    /// Machine time that a replay has reached, ns.
    pub replayed_ns: u64,
    /// Execution lag in ms.
    pub lag_ms: u64,
    /// The last join that this side gave its machine to.
    pub copy: Option<CopyProgress>,
    bytes: u64,
    by_kind: std::collections::BTreeMap<String, u64>,
    /// Per whole second: bytes and bytes by kind at its end.
    history: VecDeque<(Instant, u64, std::collections::BTreeMap<String, u64>)>,
    last: Option<(String, SystemTime, Option<u64>)>,
}

impl Statistics {
    /// Counts one chunk of log.
    pub fn count(&mut self, chunk: &Chunk) {
        self.moment = self.moment.max(chunk.end_moment);
        let total = chunk.records.len() as u64;
        self.bytes += total;
        let mut decoder = Decoder::new(chunk.start_moment, &chunk.records);
        let mut left = chunk.records.len();
        while let Ok(Some((_, record))) = decoder.next_record() {
            let now = decoder.remaining();
            *self.by_kind.entry(record.name().to_owned()).or_default() += (left - now) as u64;
            left = now;
        }
    }

    /// Notes what happened.
    pub fn happened(&mut self, what: impl Into<String>) {
        let what = what.into();
        log::info!("{what}");
        self.last = Some((what, SystemTime::now(), Some(self.moment)));
    }

    /// The VM has ended.
    pub fn stopped(&mut self) {
        self.lag_ms = 0;
    }

    /// What happened last.
    pub fn last_event(&self) -> Option<FtEvent> {
        let (what, when, moment) = self.last.clone()?;
        let ms = |d: std::time::Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
        Some(FtEvent {
            what,
            when_unix_ms: when.duration_since(UNIX_EPOCH).map_or(0, ms),
            ago_ms: when.elapsed().map_or(0, ms),
            moment,
        })
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

    /// Keeps the history that rates are taken from. Cheap to call often.
    pub fn tick(&mut self, now: Instant) {
        let due = self.history.back().is_none_or(|(at, ..)| now - *at >= WINDOW);
        if due {
            self.history.push_back((now, self.bytes, self.by_kind.clone()));
            if self.history.len() > WINDOW_SECONDS + 1 {
                self.history.pop_front();
            }
        }
    }

    /// The log so far and its rates.
    pub fn traffic(&self, now: Instant) -> LogTraffic {
        let none = (now, self.bytes, self.by_kind.clone());
        let (since, bytes, by_kind) = self.history.front().unwrap_or(&none);
        let ms = (now - *since).as_millis().max(1) as u64;
        let rate = |new: u64, old: u64| new.saturating_sub(old) * 1000 / ms;
        LogTraffic {
            bytes: self.bytes,
            bytes_per_second: rate(self.bytes, *bytes),
            bytes_by_kind: self.by_kind.clone(),
            bytes_per_second_by_kind: self
                .by_kind
                .iter()
                .map(|(kind, new)| (kind.clone(), rate(*new, *by_kind.get(kind).unwrap_or(&0))))
                .collect(),
        }
    }
}

const WINDOW: std::time::Duration = std::time::Duration::from_secs(1);
