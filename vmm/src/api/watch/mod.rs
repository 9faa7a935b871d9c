//! `ch-remote ft-watch`: a pair, or one side of it, looked at again and again.
//!
//! Owns who is asked when and what is written where. What is shown is `view`'s matter, the
//! terminal `screen`'s.

mod numbers;
mod screen;
mod view;

use std::io::{self, IsTerminal, Write, stdout};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use self::screen::{Screen, Wish};
use self::view::{Side, Tone, event_text, lines, summary};
use super::FtInfo;
use super::client::{ClientError, request_within};

/// How long a VMM may take to answer. One that is stopped never does.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(3);
/// How often keys are looked for.
const KEY_INTERVAL: Duration = Duration::from_millis(100);
/// The width of what is not shown on a terminal.
const PLAIN_COLUMNS: usize = 100;

/// What is to be watched, and how.
#[derive(Clone, Debug)]
pub(super) struct Watch {
    /// The API sockets of one VMM or two.
    pub sockets: Vec<PathBuf>,
    /// From one question to the next.
    pub interval: Duration,
    /// Ask once, show it, and end.
    pub once: bool,
}

/// One side's answer.
type Answer = Result<FtInfo, ClientError>;

/// Watches until the user has seen enough.
///
/// # Errors
/// The terminal cannot be used; with `once`, a VMM does not answer.
pub(super) fn watch(watch: &Watch) -> Result<(), ClientError> {
    let mut sides: Vec<Seen> = watch.sockets.iter().zip('A'..).map(Seen::new).collect();
    if watch.once {
        return show_once(&mut sides);
    }
    let answers = ask_for_ever(&watch.sockets, watch.interval)?;
    let ended = match stdout().is_terminal().then(Screen::open) {
        Some(Ok(screen)) => show(&mut sides, &answers, screen),
        Some(Err(_)) | None => tell(&mut sides, &answers),
    };
    match ended {
        // A reader that went away has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        ended => Ok(ended?),
    }
}

/// What is known of one side, and since when.
struct Seen {
    side: Side,
    /// When it answered last, or was first asked.
    heard: Instant,
    /// When the newest event that was written happened.
    told_ms: u64,
}

impl Seen {
    fn new((socket, label): (&PathBuf, char)) -> Self {
        let socket = socket.display().to_string();
        let side = Side { label, socket, ..Side::default() };
        Self { side, heard: Instant::now(), told_ms: 0 }
    }

    fn take(&mut self, answer: Result<&FtInfo, String>) {
        match answer {
            Ok(info) => {
                self.heard = Instant::now();
                self.side.gone = None;
                self.side.info = Some(info.clone());
            }
            Err(why) => self.side.gone = Some((why, 0)),
        }
        self.age();
    }

    /// Brings the age of what is known up to date.
    fn age(&mut self) {
        let silent = self.heard.elapsed();
        if self.side.gone.is_none() && silent > 2 * ANSWER_TIME_MAX {
            self.side.gone = Some((format!("{} does not answer.", self.side.socket), 0));
        }
        if let Some((_, ms)) = &mut self.side.gone {
            *ms = u64::try_from(silent.as_millis()).unwrap_or(u64::MAX);
        }
    }

    /// Events that have not been written yet.
    fn news(&mut self) -> Vec<String> {
        let told_ms = self.told_ms;
        let events = self.side.info.iter().flat_map(|info| &info.events);
        let news: Vec<_> = events.filter(|event| event.when_unix_ms > told_ms).collect();
        let newest_ms = news.iter().map(|event| event.when_unix_ms).max();
        let news = news.into_iter().map(|event| event_text(self.side.label, event)).collect();
        self.told_ms = newest_ms.unwrap_or(told_ms);
        news
    }
}

fn ask(socket: &Path) -> Answer {
    let text = request_within(socket, "GET", "vm.ft-info", None, Some(ANSWER_TIME_MAX))?;
    serde_json::from_str(&text.unwrap_or_default()).map_err(|_| ClientError::NotHttp)
}

/// A thread for each VMM: one that is stuck holds up nobody.
fn ask_for_ever(sockets: &[PathBuf], interval: Duration) -> io::Result<Receiver<(usize, Answer)>> {
    let (sender, answers) = sync_channel(sockets.len());
    for (index, socket) in sockets.iter().cloned().enumerate() {
        let sender: SyncSender<(usize, Answer)> = sender.clone();
        thread::Builder::new().name(format!("watch{index}")).spawn(move || {
            while sender.send((index, ask(&socket))).is_ok() {
                thread::sleep(interval);
            }
        })?;
    }
    Ok(answers)
}

fn show_once(sides: &mut [Seen]) -> Result<(), ClientError> {
    let mut failed = None;
    for seen in sides.iter_mut() {
        let answer = ask(Path::new(&seen.side.socket));
        seen.take(answer.as_ref().map_err(ToString::to_string));
        failed = failed.or(answer.err());
    }
    let mut out = stdout().lock();
    for line in lines(&known(sides), PLAIN_COLUMNS, None) {
        let text: String = line.into_iter().map(|(text, _)| text).collect();
        writeln!(out, "{}", text.trim_end())?;
    }
    failed.map_or(Ok(()), Err)
}

fn known(sides: &[Seen]) -> Vec<Side> {
    sides.iter().map(|seen| seen.side.clone()).collect()
}

/// On a terminal: in place, until a key ends it.
fn show(
    sides: &mut [Seen],
    answers: &Receiver<(usize, Answer)>,
    mut screen: Screen,
) -> io::Result<()> {
    let mut drawn: Option<Instant> = None;
    loop {
        let mut due = drawn.is_none_or(|at| at.elapsed() >= Duration::from_secs(1));
        while let Ok((index, answer)) = answers.try_recv() {
            sides[index].take(answer.as_ref().map_err(ToString::to_string));
            due = true;
        }
        if due {
            sides.iter_mut().for_each(Seen::age);
            let (columns, rows) = screen.size();
            let mut view = lines(&known(sides), columns, Some(rows.saturating_sub(1)));
            view.push(vec![("q: leave".to_owned(), Tone::Faint)]);
            screen.draw(&view)?;
            drawn = Some(Instant::now());
        }
        match screen.wait(KEY_INTERVAL)? {
            Wish::None => {}
            Wish::Redraw => {
                screen.clear()?;
                drawn = None;
            }
            Wish::End => return Ok(()),
        }
    }
}

/// Anywhere else: a line for each answer, and for each event.
fn tell(sides: &mut [Seen], answers: &Receiver<(usize, Answer)>) -> io::Result<()> {
    for (index, answer) in answers {
        let seen = &mut sides[index];
        let said = seen.side.gone.as_ref().map(|(why, _)| why.clone());
        seen.take(answer.as_ref().map_err(ToString::to_string));
        let again = said.is_some() && said == seen.side.gone.as_ref().map(|(why, _)| why.clone());
        if again {
            continue;
        }
        let mut out = stdout().lock();
        for event in seen.news() {
            writeln!(out, "{event}")?;
        }
        writeln!(out, "{}", summary(&seen.side))?;
        out.flush()?;
    }
    Ok(())
}
