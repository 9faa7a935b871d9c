//! Programs that everybody knows, and their input.
//!
//! Owns the input, which is the same each time. The programs are busybox's; their output is thrown away.

use std::fmt::Write;
use std::fs::{self, File};
use std::io;
use std::process::{Command, Stdio};
use std::time::Instant;

use crate::guest::protocol::Program;

const TEXT: &str = "/tmp/text";
const LINES: u64 = 60_000;

/// Runs the program; how long it took, in ns by the guest's clock.
pub(super) fn run(program: Program) -> io::Result<u64> {
    fs::create_dir_all("/tmp")?;
    if !fs::exists(TEXT)? {
        fs::write(TEXT, text())?;
    }
    let applet = match program {
        Program::Gzip => "gzip",
        Program::Sort => "sort",
    };
    let mut command = Command::new("/bin/busybox");
    command.arg(applet).stdin(File::open(TEXT)?).stdout(Stdio::null());
    let start = Instant::now();
    let status = command.status()?;
    let duration = start.elapsed();
    if !status.success() {
        return Err(io::Error::other(format!("{applet} ended with {status}")));
    }
    Ok(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX))
}

/// Lines in no order, of words that come again.
fn text() -> String {
    const WORDS: [&str; 8] =
        ["moment", "delta", "log", "guest", "host", "primary", "backup", "arbiter"];
    let mut text = String::new();
    let mut state = 1_u64;
    for _ in 0..LINES {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let number = state >> 33;
        // Writing to a string can't fail.
        let _ = write!(text, "{number:08x}");
        for place in 0..4 {
            let word = WORDS.get((number >> (place * 3)) as usize % WORDS.len());
            let _ = write!(text, " {}", word.copied().unwrap_or_default());
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_the_same_each_time_and_in_no_order() {
        let text = text();
        assert_eq!(text, super::text());
        assert_eq!(text.lines().count() as u64, LINES);
        assert!(!text.lines().is_sorted());
    }
}
