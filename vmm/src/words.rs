//! What the programs say on standard output and standard error.
//!
//! Owns writing there without a panic where nobody takes the text (`print!` has one), and the
//! rendering of a command line's error as one sentence. Does not own what is said.

use std::io::{ErrorKind, Write, stderr, stdout};
use std::process::ExitCode;

/// Prints `text` to standard output: the whole result of a program. A reader that went away
/// (`| head`) has seen what it wanted; anything else that keeps the text from its place is a
/// failure.
pub fn print(program: &str, text: &str) -> ExitCode {
    let mut out = stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.kind() == ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            complain(program, &format!("the output cannot be written: {error}"));
            ExitCode::FAILURE
        }
    }
}

/// Says `sentence` on standard error, in the name of `program`.
pub fn complain(program: &str, sentence: &str) {
    // Nobody is left to tell that telling failed.
    let _ = writeln!(stderr(), "{program}: {sentence}");
}

/// A command line's error as one sentence: what is wrong, what was perhaps meant, where to look.
pub fn usage_sentence(error: &clap::Error) -> String {
    use clap::error::ErrorKind::{DisplayHelpOnMissingArgumentOrSubcommand, MissingSubcommand};
    if matches!(error.kind(), MissingSubcommand | DisplayHelpOnMissingArgumentOrSubcommand) {
        return "a command is missing; --help lists them".to_owned();
    }
    let text = error.to_string();
    // Paragraphs: the error, perhaps tips and values, the usage, a pointer to --help.
    let mut paragraphs = text
        .split("\n\n")
        .map(|paragraph| paragraph.split_whitespace().collect::<Vec<_>>().join(" "));
    let first = paragraphs.next().unwrap_or_default();
    let mut sentence = first.strip_prefix("error: ").unwrap_or(&first).to_owned();
    for paragraph in paragraphs {
        if let Some(tip) = paragraph.strip_prefix("tip: ") {
            sentence.push_str(&format!("; {tip}"));
        }
    }
    sentence.push_str("; --help tells what there is");
    sentence
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sentence(words: &[&str]) -> String {
        let error = crate::cli::command().try_get_matches_from(words).unwrap_err();
        usage_sentence(&error)
    }

    #[test]
    fn an_error_of_the_command_line_is_one_line() {
        assert_eq!(
            sentence(&["cloud-hypervisor", "--kernal", "x"]),
            "unexpected argument '--kernal' found; a similar argument exists: '--kernel'; --help \
             tells what there is"
        );
        assert_eq!(
            sentence(&["cloud-hypervisor", "--kernel"]),
            "a value is required for '--kernel <PATH>' but none was supplied; --help tells what \
             there is"
        );
        assert!(sentence(&["cloud-hypervisor", "--seccomp", "no"]).starts_with(
            "invalid value 'no' for '--seccomp <MODE>' [possible values: true, false, log]"
        ));
    }

    #[test]
    fn what_is_required_is_named() {
        let error = |words: &[&str]| {
            let error = crate::api::remote::command().try_get_matches_from(words).unwrap_err();
            usage_sentence(&error)
        };
        assert_eq!(
            error(&["ch-remote", "ping"]),
            "the following required arguments were not provided: --api-socket <PATH>; --help \
             tells what there is"
        );
        assert_eq!(error(&["ch-remote"]), "a command is missing; --help lists them");
    }
}
