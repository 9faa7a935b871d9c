//! What is shown of a pair, as lines of a given width. It asks nobody and draws nothing.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use super::numbers::{age, bytes, clock, count, microseconds, milliseconds};
use crate::api::{FtEvent, FtInfo, FtRole, FtState};

/// The least that a line is laid out for; a narrower terminal cuts it.
const COLUMNS_MIN: usize = 40;
/// The first column.
const NAME_COLUMNS: usize = 14;
/// Kinds of log record shown by themselves.
const KINDS_MAX: usize = 4;

/// What is known of one side.
#[derive(Clone, Debug, Default)]
pub(super) struct Side {
    /// What the view calls it.
    pub label: char,
    /// Where its VMM is asked.
    pub socket: String,
    /// Its last answer.
    pub info: Option<FtInfo>,
    /// Why there is no newer answer, and for how long, ms.
    pub gone: Option<(String, u64)>,
}

/// How a piece of text is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tone {
    /// As it is.
    Plain,
    /// As it should be.
    Good,
    /// To be looked at.
    Care,
    /// To be acted on.
    Bad,
    /// Names of things.
    Faint,
}

/// One line: pieces of text from left to right.
pub(super) type Line = Vec<(String, Tone)>;

/// The view, `columns` wide; with `rows`, exactly so many lines.
pub(super) fn lines(sides: &[Side], columns: usize, rows: Option<usize>) -> Vec<Line> {
    let columns = columns.max(COLUMNS_MIN);
    let mut view = head(sides, columns);
    view.extend(table(sides, columns));
    view.push(vec![(fitted("", columns), Tone::Plain)]);
    let left = rows.map(|rows| rows.saturating_sub(view.len()));
    view.extend(history(sides, columns, left));
    if let Some(rows) = rows {
        view.resize(rows, vec![(fitted("", columns), Tone::Plain)]);
    }
    view
}

/// One side in one line, for a log.
pub(super) fn summary(side: &Side) -> String {
    let label = side.label;
    if let Some((why, _)) = &side.gone {
        return format!("{label} gone: {}", clean(why));
    }
    let Some(info) = &side.info else { return format!("{label} not asked yet") };
    format!(
        "{label} {} generation {} moment {} lag {} ms delay p50 {} us p99 {} us held {} log {} B/s \
         deltas {} divergences {}",
        state(info),
        info.generation,
        info.moment,
        info.lag_ms,
        info.output_delay_us.p50,
        info.output_delay_us.p99,
        info.outputs_held,
        info.log.bytes_per_second,
        info.deltas,
        info.divergences,
    )
}

/// One event in one line.
pub(super) fn event_text(label: char, event: &FtEvent) -> String {
    format!("{label} {} {}", clock(event.when_unix_ms), clean(&event.what))
}

/// The most important thing in a sentence, and who does not answer.
fn head(sides: &[Side], columns: usize) -> Vec<Line> {
    let (sentence, tone) = verdict(sides);
    let mut head: Vec<Line> = wrapped(sentence, columns).map(|line| vec![(line, tone)]).collect();
    for side in sides {
        if let Some((why, _)) = &side.gone {
            let sentence = format!("{}: {why}", side.label);
            head.extend(wrapped(&sentence, columns).map(|line| vec![(line, Tone::Bad)]));
        }
    }
    head
}

/// What an operator has to know first.
fn verdict(sides: &[Side]) -> (&'static str, Tone) {
    let here = |states: &[FtState]| {
        let current = sides.iter().filter(|side| side.gone.is_none());
        current.flat_map(|side| &side.info).any(|info| states.contains(&info.state))
    };
    use FtState::{
        Diverged, Following, Halted, Healing, Holding, Joining, Live, Off, Protected, Recording,
        Replayed, Replaying, Solo, TakingOver, Waiting,
    };
    if sides.iter().all(|side| side.info.is_none() && side.gone.is_none()) {
        return ("Asking …", Tone::Faint);
    }
    if here(&[Holding]) {
        return (
            "HOLDING. The backup is lost, nothing leaves the VM, the arbiter is asked.",
            Tone::Bad,
        );
    }
    if here(&[TakingOver]) {
        return ("TAKING OVER. The primary is lost.", Tone::Bad);
    }
    if here(&[Healing]) {
        return (
            "HEALING. The copies differ; nothing leaves the VM until they are equal again.",
            Tone::Bad,
        );
    }
    if here(&[Joining]) {
        return (
            "JOINING. The backup is given the VM; until it has it, nobody takes over.",
            Tone::Care,
        );
    }
    if here(&[Protected]) {
        return ("PROTECTED. Either host may die.", Tone::Good);
    }
    if here(&[Solo, Live, Off]) {
        return ("UNPROTECTED. The VM is on one host only; give it a backup.", Tone::Bad);
    }
    if here(&[Following]) {
        return ("FOLLOWING. This side takes over if the primary is lost.", Tone::Good);
    }
    if here(&[Waiting]) {
        return ("WAITING. No primary has come.", Tone::Care);
    }
    if here(&[Recording, Replaying, Replayed]) {
        return ("A log file is written or read; there is no second host.", Tone::Plain);
    }
    if here(&[Diverged, Halted]) {
        return ("STOPPED. This side is not the VM.", Tone::Bad);
    }
    ("Nobody answers.", Tone::Bad)
}

/// How a state is meant.
fn tone_of(state: FtState) -> Tone {
    match state {
        FtState::Protected | FtState::Following => Tone::Good,
        FtState::Joining | FtState::Waiting => Tone::Care,
        FtState::Off
        | FtState::Solo
        | FtState::Live
        | FtState::Healing
        | FtState::Holding
        | FtState::TakingOver
        | FtState::Halted
        | FtState::Diverged => Tone::Bad,
        FtState::Recording | FtState::Replaying | FtState::Replayed => Tone::Plain,
    }
}

fn state(info: &FtInfo) -> String {
    match info.role {
        Some(role) => format!("{} {}", role.name(), info.state.name()),
        None => info.state.name().to_owned(),
    }
}

/// A cell's text and tone for one side's answer.
type Cell = fn(&FtInfo) -> (String, Tone);

const ROWS: &[(&str, Cell)] = &[
    ("state", |info| (state(info), tone_of(info.state))),
    ("peer", |info| plain(info.peer.clone().unwrap_or_default())),
    ("generation", |info| plain(info.generation.to_string())),
    ("mode", |info| plain(format!("{}, ack {}", info.mode.name(), info.ack.name()))),
    ("moment", |info| plain(count(info.moment))),
    ("acknowledged", |info| plain(count(info.acknowledged_moment))),
    ("lag", |info| match info.slowdown_percent {
        0 => plain(milliseconds(info.lag_ms)),
        percent => {
            let lag = milliseconds(info.lag_ms);
            (format!("{lag}, VM slowed down by {percent} %"), Tone::Care)
        }
    }),
    ("output delay", |info| match info.role {
        Some(FtRole::Primary) => {
            let (p50, p99) = (info.output_delay_us.p50, info.output_delay_us.p99);
            plain(format!("p50 {}, p99 {}", microseconds(p50), microseconds(p99)))
        }
        Some(FtRole::Backup | FtRole::Recorder | FtRole::Replayer) | None => plain(String::new()),
    }),
    ("outputs held", |info| plain(count(info.outputs_held))),
    ("deltas", |info| plain(format!("{}, {} pages", count(info.deltas), count(info.delta_pages)))),
    ("divergences", |info| {
        let tone = if info.divergences == 0 { Tone::Plain } else { Tone::Bad };
        (count(info.divergences), tone)
    }),
    ("join", |info| plain(join(info))),
    ("log", |info| plain(traffic(info.log.bytes_per_second, info.log.bytes))),
];

fn plain(text: String) -> (String, Tone) {
    (text, Tone::Plain)
}

/// A join that is under way, or the pause of the last one.
fn join(info: &FtInfo) -> String {
    let Some(join) = &info.join else { return String::new() };
    match join.pause_us {
        Some(pause_us) => format!(
            "took {}, stood still {}",
            milliseconds(join.elapsed_ms),
            microseconds(pause_us)
        ),
        None => format!("round {}, {} pages left", join.round, count(join.pages_left)),
    }
}

fn traffic(per_second: u64, in_all: u64) -> String {
    format!("{}/s, {} in all", bytes(per_second), bytes(in_all))
}

fn table(sides: &[Side], columns: usize) -> Vec<Line> {
    let width = (columns - NAME_COLUMNS) / sides.len().max(1);
    let row = |name: &str, cell: &dyn Fn(&Side) -> (String, Tone)| {
        let mut line: Line = vec![(fitted(name, NAME_COLUMNS), Tone::Faint)];
        for side in sides {
            let (text, tone) = cell(side);
            line.push((fitted(&text, width - 1) + " ", tone));
        }
        line
    };
    let mut table = vec![row("", &|side| {
        (format!("{} {}", side.label, ending(&side.socket, width.saturating_sub(3))), Tone::Faint)
    })];
    for (name, cell) in ROWS {
        let shown = |side: &Side| match (&side.info, &side.gone) {
            (_, Some((_, ms))) if *name == "state" => (format!("gone for {}", age(*ms)), Tone::Bad),
            (Some(info), None) => cell(info),
            (_, Some(_)) | (None, None) => plain(String::new()),
        };
        // What nobody has anything to say about is not worth a line of 24.
        if sides.iter().any(|side| !shown(side).0.is_empty()) {
            table.push(row(name, &shown));
        }
    }
    for kind in busiest_kinds(sides) {
        table.push(row(&format!("  {kind}"), &|side| {
            let Some(info) = side.info.as_ref().filter(|_| side.gone.is_none()) else {
                return plain(String::new());
            };
            let of =
                |by_kind: &BTreeMap<String, u64>| by_kind.get(&kind).copied().unwrap_or_default();
            plain(traffic(of(&info.log.bytes_per_second_by_kind), of(&info.log.bytes_by_kind)))
        }));
    }
    table
}

/// The kinds of record that make most of the log now, or made most of it.
fn busiest_kinds(sides: &[Side]) -> Vec<String> {
    let infos = || sides.iter().filter(|side| side.gone.is_none()).flat_map(|side| &side.info);
    let kinds: BTreeSet<&String> = infos().flat_map(|info| info.log.bytes_by_kind.keys()).collect();
    let mut kinds: Vec<&String> = kinds.into_iter().collect();
    kinds.sort_by_key(|kind| {
        let most = |by_kind: fn(&FtInfo) -> &BTreeMap<String, u64>| {
            infos().filter_map(|info| by_kind(info).get(*kind)).max().copied()
        };
        Reverse((
            most(|info| &info.log.bytes_per_second_by_kind),
            most(|info| &info.log.bytes_by_kind),
        ))
    });
    kinds.into_iter().take(KINDS_MAX).cloned().collect()
}

/// What happened at either side, oldest first, as far as it fits.
fn history(sides: &[Side], columns: usize, rows: Option<usize>) -> Vec<Line> {
    let mut all: Vec<(char, &FtEvent)> = sides
        .iter()
        .flat_map(|side| side.info.iter().flat_map(|info| &info.events).map(|e| (side.label, e)))
        .collect();
    all.sort_by_key(|(_, event)| event.when_unix_ms);
    let newest_ms = all.last().map_or(0, |(_, event)| event.when_unix_ms + event.ago_ms);
    let mut lines = Vec::new();
    for (label, event) in all {
        let ago = age(newest_ms.saturating_sub(event.when_unix_ms));
        let prefix = format!("{} {ago:>11} {label}  ", clock(event.when_unix_ms));
        let room = columns.saturating_sub(prefix.chars().count()).max(1);
        for (index, piece) in wrapped(&event.what, room).enumerate() {
            let before = if index == 0 { prefix.clone() } else { fitted("", columns - room) };
            lines.push(vec![(before, Tone::Faint), (piece, Tone::Plain)]);
        }
    }
    let skipped = rows.map_or(0, |rows| lines.len().saturating_sub(rows));
    lines.split_off(skipped)
}

/// The text, cut or filled to exactly `width` characters.
fn fitted(text: &str, width: usize) -> String {
    let text = clean(text);
    let length = text.chars().count();
    if length <= width {
        return format!("{text:<width$}");
    }
    text.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}

/// Text without what a terminal would take for an order: a peer may have had a say in it.
fn clean(text: &str) -> String {
    text.chars().map(|letter| if letter.is_control() { ' ' } else { letter }).collect()
}

/// The end of a path, which tells it from others.
fn ending(text: &str, width: usize) -> String {
    let length = text.chars().count();
    if length <= width {
        return text.to_owned();
    }
    let kept = text.chars().skip(length - width.saturating_sub(1));
    ['…'].into_iter().chain(kept).collect()
}

/// The text in lines of exactly `width` characters, broken between words where possible.
fn wrapped(text: &str, width: usize) -> impl Iterator<Item = String> {
    let mut lines: Vec<String> = vec![String::new()];
    for word in text.split_whitespace() {
        let mut letters: Vec<char> = word.chars().collect();
        while !letters.is_empty() {
            let line = lines.len() - 1;
            let used = lines[line].chars().count();
            let gap = usize::from(used > 0);
            if used > 0 && used + gap + letters.len().min(width) > width {
                lines.push(String::new());
                continue;
            }
            if gap > 0 {
                lines[line].push(' ');
            }
            let rest = letters.split_off(letters.len().min(width));
            lines[line].extend(std::mem::replace(&mut letters, rest));
        }
    }
    lines.into_iter().map(move |line| fitted(&line, width))
}

#[cfg(test)]
#[path = "view_tests.rs"]
mod tests;
