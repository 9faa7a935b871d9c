//! The real programs, started as a user starts them, and what has to be true of every refusal: one
//! sentence, an exit code, an end in good time, and nothing left behind.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

/// A refusal takes no longer than this, even on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// The programs under test.
#[derive(Clone, Copy, Debug)]
#[allow(dead_code)] // not every test uses each of them
pub enum Program {
    Vmm,
    ChRemote,
    FtLog,
}

impl Program {
    pub fn name(self) -> &'static str {
        match self {
            Program::Vmm => "cloud-hypervisor",
            Program::ChRemote => "ch-remote",
            Program::FtLog => "ft-log",
        }
    }

    fn path(self) -> &'static str {
        match self {
            Program::Vmm => env!("CARGO_BIN_EXE_cloud-hypervisor"),
            Program::ChRemote => env!("CARGO_BIN_EXE_ch-remote"),
            Program::FtLog => env!("CARGO_BIN_EXE_ft-log"),
        }
    }
}

/// A folder in which programs are started, with files to name.
pub struct Place {
    folder: tempfile::TempDir,
}

#[allow(dead_code)] // not every test uses all of it
impl Place {
    pub fn new() -> Self {
        Place { folder: tempfile::tempdir().unwrap() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A file with this content.
    pub fn file(&self, name: &str, content: &[u8]) -> &Self {
        std::fs::write(self.path(name), content).unwrap();
        self
    }

    /// A file of zeros with this size.
    pub fn image(&self, name: &str, bytes: u64) -> &Self {
        std::fs::File::create(self.path(name)).unwrap().set_len(bytes).unwrap();
        self
    }

    pub fn folder(&self, name: &str) -> &Self {
        std::fs::create_dir(self.path(name)).unwrap();
        self
    }

    pub fn command(&self, program: Program, words: &[&str]) -> Command {
        let mut command = Command::new(program.path());
        command.args(words).current_dir(self.folder.path()).stdin(Stdio::null());
        command.env("RUST_BACKTRACE", "1");
        command
    }

    /// Runs a program to its end.
    pub fn run(&self, program: Program, words: &[&str]) -> Output {
        let mut command = self.command(program, words);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        finish(child, words)
    }

    /// Runs a program that must refuse with one sentence that holds all of `parts`, and must leave
    /// the folder as it was. Returns the sentence, without the program's name.
    pub fn refused(&self, program: Program, words: &[&str], parts: &[&str]) -> String {
        let before = self.content();
        let output = self.run(program, words);
        let said = sentence(program, words, &output);
        for part in parts {
            assert!(said.contains(part), "{words:?}: \"{part}\" is not in: {said}");
        }
        assert_eq!(self.content(), before, "{words:?} left something behind");
        said
    }

    fn content(&self) -> Vec<PathBuf> {
        fn look(folder: &Path, found: &mut Vec<PathBuf>) {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() && !path.is_symlink() {
                    look(&path, found);
                }
                found.push(path);
            }
        }
        let mut found = Vec::new();
        look(self.folder.path(), &mut found);
        found.sort();
        found
    }
}

/// What a program that refused has said.
pub fn sentence(program: Program, words: &[&str], output: &Output) -> String {
    let said = String::from_utf8(output.stderr.clone()).unwrap();
    let code = output.status.code();
    assert!(
        matches!(code, Some(1 | 2)),
        "{words:?} ended with {:?} and said {said}",
        output.status
    );
    assert!(output.stdout.is_empty(), "{words:?} printed {output:?}");
    let prefix = format!("{}: ", program.name());
    let rest = said.strip_prefix(&prefix).unwrap_or_else(|| panic!("{words:?} said {said}"));
    assert_eq!(rest.trim_end().lines().count(), 1, "{words:?} did not say one line: {said}");
    assert!(!said.contains("panicked"), "{said}");
    // The operating system's reason once, not once for each layer it went through.
    assert!(said.matches("(os error").count() <= 1, "{said}");
    rest.trim_end().to_owned()
}

/// Waits for the end of a program; one that does not end is killed.
pub fn finish(mut child: Child, words: &[&str]) -> Output {
    if wait(&mut child).is_none() {
        let _ = child.kill();
        let output = child.wait_with_output().unwrap();
        panic!("{words:?} did not end: {output:?}");
    }
    child.wait_with_output().unwrap()
}

/// How the program ended, if it did in good time.
pub fn wait(child: &mut Child) -> Option<ExitStatus> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status);
        }
        if Instant::now() > deadline {
            return None;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
