//! Lines with the time before them, and a line that tells how far the work at hand is.
//!
//! Owns standard output. A reader that has gone away (`| head`) is no reason to stop.

use std::cell::Cell;
use std::io::{IsTerminal, Write, stdout};
use std::time::{Duration, Instant};

/// The story as it is told.
pub struct Timeline {
    start: Instant,
    terminal: bool,
    /// A progress line stands on the terminal.
    dirty: Cell<bool>,
    /// When something was last told.
    told: Cell<Instant>,
}

/// The width of lines, in columns, and of what stands before them.
const WIDTH: usize = 100;
const INDENT: usize = 11;
/// On a terminal progress is told this often.
const GLIMPSE: Duration = Duration::from_millis(200);
/// Where lines stay, progress is told this often.
const QUIET: Duration = Duration::from_secs(5);

impl Timeline {
    /// The story begins now.
    pub fn start() -> Self {
        let now = Instant::now();
        Self {
            start: now,
            terminal: stdout().is_terminal(),
            dirty: Cell::new(false),
            told: Cell::new(now),
        }
    }

    /// When it began.
    pub fn started(&self) -> Instant {
        self.start
    }

    /// Something happened.
    pub fn say(&self, text: &str) {
        self.clear();
        let seconds = self.start.elapsed().as_secs_f64();
        let lines = wrap(text, WIDTH - INDENT);
        let mut out = format!("{seconds:>7.1} s  ");
        out.push_str(&lines.join(&format!("\n{:INDENT$}", "")));
        self.write(&format!("{out}\n"));
        self.told.set(Instant::now());
    }

    /// Text as it is, without the time.
    pub fn print(&self, text: &str) {
        self.clear();
        self.write(text);
    }

    /// How far it is: on a terminal in place, else as a line now and then.
    pub fn progress(&self, text: &str) {
        let due = if self.terminal { GLIMPSE } else { QUIET };
        if self.told.get().elapsed() < due {
            return;
        }
        if self.terminal {
            let seconds = self.start.elapsed().as_secs_f64();
            self.write(&format!("\r\x1b[K{seconds:>7.1} s  … {text}"));
            self.dirty.set(true);
            self.told.set(Instant::now());
        } else {
            self.say(&format!("… {text}"));
        }
    }

    fn clear(&self) {
        if self.dirty.replace(false) {
            self.write("\r\x1b[K");
        }
    }

    fn write(&self, text: &str) {
        let mut out = stdout().lock();
        // Whoever does not read on has seen enough.
        let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    }
}

/// Breaks a text into lines at its spaces, and a word that is longer than a line after its commas.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = String::new();
    for word in text.split_whitespace() {
        let breakable = word.chars().count() > width;
        let pieces = word.split_inclusive(|letter| breakable && letter == ',');
        for (place, piece) in pieces.enumerate() {
            let gap = if line.is_empty() || place > 0 { "" } else { " " };
            if line.chars().count() + gap.len() + piece.chars().count() > width && !line.is_empty()
            {
                lines.push(std::mem::take(&mut line));
            } else {
                line.push_str(gap);
            }
            line.push_str(piece);
        }
    }
    lines.push(line);
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_break_at_spaces_and_long_words_at_commas() {
        assert_eq!(wrap("one two three", 7), ["one two", "three"]);
        assert_eq!(wrap("a-word-longer-than-a-line b", 5), ["a-word-longer-than-a-line", "b"]);
        assert_eq!(wrap("x key=a,key=b,key=c", 12), ["x key=a,", "key=b,key=c"]);
        assert_eq!(wrap("say key=a,key=b now", 12), ["say", "key=a,key=b", "now"]);
        assert_eq!(wrap("", 5), [""]);
    }
}
