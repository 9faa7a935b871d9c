//! What came of it, as numbers.
//!
//! Owns their names in JSON and how they follow from the client's history. What they say to people is `verdict`'s.

use serde::Serialize;

use super::{Kill, Place};
use crate::client::{History, Percentiles, Verdict};
use crate::vm::{Acknowledgement, FtInfo};

/// Everything that was measured.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// Whether the connection survived and nothing was lost, doubled or altered.
    pub survived: bool,
    /// Why not, in sentences.
    pub faults: Vec<String>,
    /// What was killed: `vmm` or `host`.
    pub killed: &'static str,
    /// When answers may leave: `received` or `verified`.
    pub ack: &'static str,
    /// Whether the one connection lasted to the end.
    pub connection_survived: bool,
    /// What became of the requests.
    pub requests: Requests,
    /// The longest time without an answer around the kill, in ms.
    pub gap_ms: f64,
    /// The longest time without an answer while the backup joined, in ms.
    pub joining_gap_ms: f64,
    /// Round trips, in µs.
    pub round_trips: RoundTrips,
    /// What the primary said of its log and outputs before it was killed.
    pub protection: Option<FtInfo>,
    /// When things happened, in ms since the client's start.
    pub times_ms: Times,
    /// Where it ran.
    pub place: Place,
}

/// What became of the requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Requests {
    /// Acknowledged to the client.
    pub acknowledged: usize,
    /// On the disk.
    pub durable: usize,
    /// Acknowledged, but not on the disk.
    pub lost: usize,
    /// On the disk more than once.
    pub doubled: usize,
    /// On the disk, but not as they were sent.
    pub altered: usize,
    /// On the disk, but not in the place that was acknowledged.
    pub disordered: usize,
}

/// Round trips of the three times.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RoundTrips {
    /// The VM was not protected yet.
    pub before: Percentiles,
    /// Its backup followed.
    pub protected: Percentiles,
    /// The backup has become the VM, and is alone.
    pub after: Percentiles,
}

/// When things happened, in ms since the client's start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Times {
    /// The protection was asked for.
    pub enabled: u64,
    /// The backup followed.
    pub protected: u64,
    /// The backup had caught up with what happened while it was copied to.
    pub settled: u64,
    /// The kill; zero if there was none.
    pub killed: u64,
    /// The first answer to a request that was sent after the kill; zero if there was none.
    pub answered: u64,
    /// The end.
    pub ended: u64,
}

/// What the report is made from.
pub struct Evidence<'a> {
    /// What the client was told.
    pub history: &'a History,
    /// What the disk says to that.
    pub verdict: &'a Verdict,
    /// When things happened.
    pub times_ms: Times,
    /// What the primary said last.
    pub protection: Option<FtInfo>,
    /// What else is wrong.
    pub faults: Vec<String>,
}

impl Report {
    /// Draws the conclusions.
    pub fn new(kill: Kill, ack: Acknowledgement, place: Place, evidence: Evidence) -> Self {
        let Evidence { history, verdict, times_ms, protection, mut faults } = evidence;
        let requests = Requests {
            acknowledged: verdict.acknowledged,
            durable: verdict.durable,
            lost: verdict.lost.len(),
            doubled: verdict.doubled.len(),
            altered: verdict.altered.len(),
            disordered: verdict.disordered.len(),
        };
        faults.extend(faults_of(verdict));
        let answered = times_ms.answered > 0;
        let us = |ms: u64| ms * 1000;
        let span = |from_ms, to_ms| history.round_trips(us(from_ms)..us(to_ms));
        let killed = if times_ms.killed == 0 { times_ms.ended } else { times_ms.killed };
        let after = if answered { times_ms.answered } else { times_ms.ended };
        Self {
            survived: faults.is_empty(),
            faults,
            killed: kill.name(),
            ack: ack.name(),
            connection_survived: history.broken.is_none() && (answered || times_ms.killed == 0),
            requests,
            gap_ms: kill_gap(history, &times_ms).1 as f64 / 1000.0,
            joining_gap_ms: gap(history, us(times_ms.enabled), us(times_ms.protected)).1 as f64
                / 1000.0,
            round_trips: RoundTrips {
                before: span(0, times_ms.enabled),
                protected: span(times_ms.settled, killed),
                after: span(after, times_ms.ended),
            },
            protection,
            times_ms,
            place,
        }
    }
}

fn faults_of(verdict: &Verdict) -> Vec<String> {
    let mut faults: Vec<String> =
        verdict.broken.iter().map(|why| format!("the connection broke: {why}")).collect();
    let counts = [
        (verdict.lost.len(), "acknowledged but not on the disk"),
        (verdict.doubled.len(), "on the disk more than once"),
        (verdict.altered.len(), "on the disk but not as they were sent"),
        (verdict.disordered.len(), "on the disk but not where the acknowledgement said"),
    ];
    let named = counts.iter().filter(|(count, _)| *count > 0);
    faults.extend(named.map(|(count, what)| format!("{count} requests are {what}")));
    if let Some(place) = verdict.torn {
        faults.push(format!("record {place} on the disk does not follow from the one before it"));
    }
    faults
}

/// The gap around the kill, if there was a kill: when it began, and its length, in µs.
pub fn kill_gap(history: &History, times_ms: &Times) -> (u64, u64) {
    match times_ms.killed {
        0 => (0, 0),
        killed => gap(history, killed * 1000, times_ms.ended * 1000),
    }
}

/// The longest time without an answer among those that ended in this span, or lasted to its end: when it began, and its length, in µs. Unlike a
/// round trip it does not count from the request but from the answer before, if that came later.
pub fn gap(history: &History, from_us: u64, to_us: u64) -> (u64, u64) {
    let mut last_us = 0;
    let mut longest = (from_us, 0);
    for exchange in &history.exchanges {
        // A request without an answer waits for one to the end.
        let at_us = exchange.answer.map_or(to_us, |(at_us, _)| at_us);
        let start_us = exchange.sent_us.max(last_us);
        let length_us = at_us.saturating_sub(start_us);
        if (from_us..=to_us).contains(&at_us) && length_us > longest.1 {
            longest = (start_us, length_us);
        }
        last_us = at_us;
    }
    longest
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::client::Exchange;
    use crate::guest::protocol::Acknowledgement as Answer;

    /// A request every 10 ms, answered after 1 ms each, but the one at 2 s after 500 ms.
    pub fn history() -> History {
        let mut history = History::default();
        let mut sent_us = 0;
        for id in 0..400 {
            let round_trip_us = if id == 200 { 500_000 } else { 1_000 };
            let answer = Answer { id, count: id + 1, history: 0 };
            let answer = Some((sent_us + round_trip_us, answer));
            history.exchanges.push(Exchange { id, checksum: 0, sent_us, answer });
            sent_us += round_trip_us.max(10_000);
        }
        history
    }

    /// A report as it is when all went well.
    pub fn report(history: &History, faults: Vec<String>) -> Report {
        let place = Place {
            runner: "virtual",
            emulator: Some("QEMU 10".to_owned()),
            processor: "a processor".to_owned(),
            processors: 2,
            kernel: "Linux 6".to_owned(),
            guest_kernel: "Debian Linux 6.1".to_owned(),
        };
        let verdict = Verdict { acknowledged: 400, durable: 400, ..Verdict::default() };
        let times_ms = Times {
            enabled: 900,
            protected: 950,
            settled: 1_000,
            killed: 2_000,
            answered: 2_500,
            ended: 4_490,
        };
        let evidence = Evidence { history, verdict: &verdict, times_ms, protection: None, faults };
        Report::new(Kill::Vmm, Acknowledgement::Received, place, evidence)
    }

    #[test]
    fn the_gap_is_that_around_the_kill_and_the_round_trips_are_those_of_their_times() {
        let report = report(&history(), Vec::new());
        assert!(report.survived && report.connection_survived);
        assert!((report.gap_ms - 500.0).abs() < 0.001, "{report:?}");
        assert!((report.joining_gap_ms - 1.0).abs() < 0.001, "{report:?}");
        assert_eq!(report.round_trips.before.samples, 90);
        assert_eq!(report.round_trips.protected.samples, 100);
        assert_eq!(report.round_trips.protected.max_us, 1_000);
    }

    #[test]
    fn an_answer_that_never_came_is_a_gap_to_the_end_and_no_connection() {
        let mut history = history();
        history.exchanges.truncate(201);
        history.exchanges[200].answer = None;
        assert_eq!(gap(&history, 1_900_000, 4_000_000), (2_000_000, 2_000_000));
        let times_ms = Times { killed: 2_000, ended: 4_000, ..Times::default() };
        let verdict = Verdict::default();
        let faults = vec!["nobody answered".to_owned()];
        let evidence =
            Evidence { history: &history, verdict: &verdict, times_ms, protection: None, faults };
        let place = report(&history, Vec::new()).place;
        let report = Report::new(Kill::Host, Acknowledgement::Received, place, evidence);
        assert!(!report.survived && !report.connection_survived);
        assert!((report.gap_ms - 2_000.0).abs() < 0.001);
        assert_eq!(report.round_trips.after.samples, 0);
    }

    #[test]
    fn whatever_is_wrong_with_the_disk_or_the_connection_is_a_fault() {
        assert!(faults_of(&Verdict::default()).is_empty());
        let spoilt = [
            Verdict { lost: vec![1], ..Verdict::default() },
            Verdict { doubled: vec![1], ..Verdict::default() },
            Verdict { altered: vec![1], ..Verdict::default() },
            Verdict { disordered: vec![1], ..Verdict::default() },
            Verdict { torn: Some(3), ..Verdict::default() },
            Verdict { broken: vec!["reset".to_owned()], ..Verdict::default() },
        ];
        for verdict in spoilt {
            assert_eq!(faults_of(&verdict).len(), 1, "{verdict:?}");
        }
    }
}
