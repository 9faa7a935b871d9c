//! The terminal: taken over, drawn on, and given back on every way out that a process can see.

use std::io::{self, Stdout, Write, stdout};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossterm::event::{Event, KeyCode, KeyModifiers, poll, read};
use crossterm::style::{Color, Print, ResetColor, SetForegroundColor};
use crossterm::terminal::{
    BeginSynchronizedUpdate, Clear, ClearType, EndSynchronizedUpdate, EnterAlternateScreen,
    LeaveAlternateScreen, disable_raw_mode, enable_raw_mode, size,
};
use crossterm::{cursor, execute, queue};
use signal_hook::consts::{SIGHUP, SIGTERM};

use super::view::{Line, Tone};

/// The terminal, until it is dropped.
pub(super) struct Screen {
    out: Stdout,
    /// A signal to end came.
    told_to_end: Arc<AtomicBool>,
}

/// What the user wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    /// Nothing yet.
    None,
    /// The terminal has another size.
    Redraw,
    /// To leave.
    End,
}

impl Screen {
    /// Takes the terminal over.
    pub(super) fn open() -> io::Result<Self> {
        let told_to_end = Arc::new(AtomicBool::new(false));
        for signal in [SIGTERM, SIGHUP] {
            signal_hook::flag::register(signal, told_to_end.clone())?;
        }
        enable_raw_mode()?;
        // From here on dropping it gives the terminal back.
        let mut screen = Self { out: stdout(), told_to_end };
        execute!(screen.out, EnterAlternateScreen, cursor::Hide)?;
        Ok(screen)
    }

    /// Forgets what is shown.
    pub(super) fn clear(&mut self) -> io::Result<()> {
        execute!(self.out, Clear(ClearType::All))
    }

    /// Columns and rows.
    pub(super) fn size(&self) -> (usize, usize) {
        // A terminal that does not know its size is drawn on as if it were the usual one.
        match size() {
            Ok((columns, rows)) if columns > 0 && rows > 0 => (columns.into(), rows.into()),
            Ok(_) | Err(_) => (80, 24),
        }
    }

    /// Replaces what is shown, row by row; rows without a line stay as they are.
    pub(super) fn draw(&mut self, lines: &[Line]) -> io::Result<()> {
        let (columns, rows) = self.size();
        queue!(self.out, BeginSynchronizedUpdate)?;
        for (row, line) in lines.iter().take(rows).enumerate() {
            queue!(self.out, cursor::MoveTo(0, u16::try_from(row).unwrap_or(u16::MAX)))?;
            let mut left = columns;
            for (text, tone) in line {
                let shown: String = text.chars().take(left).collect();
                left -= shown.chars().count();
                match color(*tone) {
                    Some(color) => {
                        queue!(self.out, SetForegroundColor(color), Print(shown), ResetColor)?;
                    }
                    None => queue!(self.out, Print(shown))?,
                }
            }
            // At the right edge the cursor stands on the last letter and would take it away.
            if left > 0 {
                queue!(self.out, Clear(ClearType::UntilNewLine))?;
            }
        }
        queue!(self.out, EndSynchronizedUpdate)?;
        self.out.flush()
    }

    /// Waits for the user, at most so long.
    pub(super) fn wait(&self, at_most: Duration) -> io::Result<Wish> {
        let came = match poll(at_most) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => false,
            came => came?,
        };
        if self.told_to_end.load(Ordering::Relaxed) {
            return Ok(Wish::End);
        }
        if !came {
            return Ok(Wish::None);
        }
        Ok(match read()? {
            Event::Key(key) => match key.code {
                KeyCode::Char('q' | 'Q') | KeyCode::Esc => Wish::End,
                KeyCode::Char('c' | 'd') if key.modifiers.contains(KeyModifiers::CONTROL) => {
                    Wish::End
                }
                _ => Wish::None,
            },
            Event::Resize(..) => Wish::Redraw,
            _ => Wish::None,
        })
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // A terminal that is gone need not be restored.
        let _ = execute!(self.out, LeaveAlternateScreen, cursor::Show);
        let _ = disable_raw_mode();
    }
}

fn color(tone: Tone) -> Option<Color> {
    match tone {
        Tone::Plain => None,
        Tone::Good => Some(Color::Green),
        Tone::Care => Some(Color::Yellow),
        Tone::Bad => Some(Color::Red),
        Tone::Faint => Some(Color::DarkGrey),
    }
}
