//! What the demonstration draws.
//!
//! Owns which numbers go into the picture, and its words.

use super::report::kill_gap;
use super::{Chart, Mark, Phase, Report};
use crate::client::History;

const UNPROTECTED: &str = "#f3f4f6";
const JOINING: &str = "#fef3c7";
const PROTECTED: &str = "#dcfce7";
const AFTER: &str = "#e0f2fe";
const RED: &str = "#b91c1c";
const GREEN: &str = "#15803d";

/// The picture of a run.
pub(super) fn of(history: &History, report: &Report) -> Chart {
    let times = &report.times_ms;
    let ms = |ms: u64| ms as f64;
    let killed = if times.killed == 0 { times.ended } else { times.killed };
    let answered = if times.answered == 0 { times.ended } else { times.answered };
    let spans = [
        ("unprotected", UNPROTECTED, 0, times.enabled),
        ("joining", JOINING, times.enabled, times.protected),
        ("protected", PROTECTED, times.protected, killed),
        ("", JOINING, killed, answered),
        ("taken over", AFTER, answered, times.ended),
    ];
    let phases = spans.into_iter().map(|(name, colour, start, end)| Phase {
        name: name.to_owned(),
        colour,
        start_ms: ms(start),
        end_ms: ms(end),
    });
    let victim = if report.killed == "host" { "host A ended" } else { "primary killed" };
    let marks = [(times.protected, "protected", GREEN), (killed, victim, RED)];
    let (start_us, length_us) = kill_gap(history, times);
    let start_ms = start_us as f64 / 1000.0;
    let points = history.exchanges.iter().filter_map(|exchange| {
        let round_trip_us = exchange.round_trip_us()?;
        Some((exchange.sent_us as f64 / 1000.0, round_trip_us as f64 / 1000.0))
    });
    Chart {
        title: title(report),
        subtitle: subtitle(report),
        footer: report.place.in_words(),
        points: points.collect(),
        phases: phases.collect(),
        marks: marks
            .into_iter()
            .map(|(at, name, colour)| Mark { name: name.to_owned(), at_ms: ms(at), colour })
            .collect(),
        gap: (length_us > 0).then_some((start_ms, start_ms + length_us as f64 / 1000.0)),
        end_ms: ms(times.ended),
    }
}

fn title(report: &Report) -> String {
    let end = if report.survived { "and its VM goes on" } else { "and its VM does not go on" };
    let victim = if report.killed == "host" { "A host dies" } else { "A VMM is killed" };
    format!("{victim}, {end}")
}

fn subtitle(report: &Report) -> String {
    let requests = &report.requests;
    let trips = &report.round_trips;
    let ms = |us: u64| us as f64 / 1000.0;
    format!(
        "One TCP connection: {} requests acknowledged, {} lost, {} doubled. Round trip p50 {:.1} ms unprotected, \
         {:.1} ms protected.",
        requests.acknowledged,
        requests.lost,
        requests.doubled,
        ms(trips.before.p50_us),
        ms(trips.protected.p50_us)
    )
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::{history, report};
    use super::*;

    #[test]
    fn every_answer_is_a_point_and_the_kill_and_its_gap_are_shown() {
        let history = history();
        let chart = of(&history, &report(&history, Vec::new()));
        assert_eq!(chart.points.len(), 400);
        let (start_ms, end_ms) = chart.gap.unwrap();
        assert!((start_ms - 2000.0).abs() < 0.1 && (end_ms - 2500.0).abs() < 0.1);
        let svg = chart.to_svg();
        assert!(svg.contains("primary killed") && svg.contains("500 ms without an answer"));
    }
}
