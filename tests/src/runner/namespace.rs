//! A network namespace without a name.
//!
//! Owns the namespace and the thread that lives in it. Because nothing but that thread, its children and an open file
//! keep such a namespace, the kernel removes it with all its links whichever way this process ends: there is nothing to
//! clean up, and two runs cannot be in each other's way.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::thread;

use anyhow::{Context, Result, anyhow, ensure};

type Job = Box<dyn FnOnce() + Send>;

/// A network namespace of our own.
pub struct Namespace {
    file: File,
    jobs: Sender<Job>,
}

impl Namespace {
    /// Makes a namespace with nothing in it but a loopback device, which is up.
    pub fn create() -> Result<Self> {
        let (jobs, inbox) = channel::<Job>();
        let (sender, opened) = channel();
        thread::Builder::new().name("namespace".into()).spawn(move || {
            let file = enter_new();
            let entered = file.is_ok();
            if sender.send(file).is_ok() && entered {
                inbox.into_iter().for_each(|job| job());
            }
        })?;
        let file = opened
            .recv()
            .map_err(|_| anyhow!("the namespace's thread is gone"))?
            .context("cannot make a network namespace (this needs root)")?;
        let namespace = Self { file, jobs };
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    /// A path under which tools of this process's children find the namespace.
    pub fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd()).into()
    }

    /// Runs `work` in a thread inside the namespace and waits for it. Sockets it opens stay in the namespace, as do
    /// the threads it starts.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let descriptor = self.file.as_raw_fd();
        thread::scope(|scope| {
            let inside = scope.spawn(move || {
                enter(descriptor).expect("a namespace that was made can be entered");
                work()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Starts a command inside the namespace. It is killed when this process ends, however that ends.
    pub fn spawn(&self, mut command: Command) -> io::Result<Child> {
        die_with_parent(&mut command);
        let (sender, started) = channel();
        self.jobs
            .send(Box::new(move || {
                let _ = sender.send(command.spawn());
            }))
            .map_err(|_| io::Error::other("the namespace's thread is gone"))?;
        started.recv().map_err(io::Error::other)?
    }

    /// Runs `ip` with these words.
    pub fn ip(&self, words: &str) -> Result<()> {
        self.tool("ip", words)
    }

    /// Runs a tool with these words inside the namespace; what it says belongs to the error if it fails.
    pub fn tool(&self, tool: &str, words: &str) -> Result<()> {
        self.tool_with_input(tool, words, "")
    }

    /// Does the same with this on its standard input, which must be short.
    pub fn tool_with_input(&self, tool: &str, words: &str, input: &str) -> Result<()> {
        let mut command = Command::new(tool);
        command.args(words.split_whitespace());
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let run = move || {
            let mut child = command.spawn()?;
            if let Some(mut stdin) = child.stdin.take() {
                // A tool that needs no input may end before it has read any.
                let _ = stdin.write_all(input.as_bytes());
            }
            child.wait_with_output()
        };
        let output = self
            .run(run)
            .with_context(|| format!("cannot run {tool}; scripts/lib/deps.sh installs it"))?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "'{tool} {words}' failed: {}\n{input}", said.trim());
        Ok(())
    }

    /// Writes a setting below `/proc/sys/net`, which shows the namespace of whoever looks.
    pub fn set(&self, setting: &str, value: &str) -> Result<()> {
        let path = format!("/proc/sys/net/{setting}");
        self.run(|| std::fs::write(&path, value)).with_context(|| format!("cannot write {path}"))
    }

    /// What tells this namespace from others: the inode of its file.
    pub fn identity(&self) -> Result<u64> {
        use std::os::unix::fs::MetadataExt;
        Ok(self.file.metadata()?.ino())
    }
}

fn enter_new() -> io::Result<File> {
    // SAFETY: unshare(2) takes a plain number; a new network namespace changes nothing that memory safety rests on.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
        return Err(io::Error::last_os_error());
    }
    File::open("/proc/thread-self/ns/net")
}

fn enter(descriptor: RawFd) -> io::Result<()> {
    // SAFETY: setns(2) takes plain numbers; the descriptor is open for as long as its `Namespace` is borrowed.
    match unsafe { libc::setns(descriptor, libc::CLONE_NEWNET) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Has the command killed when the *thread* that starts it ends: start it from one that lives as long as it is wanted.
pub(super) fn die_with_parent(command: &mut Command) {
    let parent = std::process::id();
    // SAFETY: between fork and exec only prctl and getppid are called, both safe after a fork.
    unsafe { command.pre_exec(move || die_with(parent)) };
}

/// Asks the kernel to kill this process when its parent is gone, and sees whether it is gone already.
fn die_with(parent: u32) -> io::Result<()> {
    // SAFETY: this prctl takes plain numbers.
    if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: getppid(2) cannot fail and touches no memory.
    if u32::try_from(unsafe { libc::getppid() }) != Ok(parent) {
        return Err(io::Error::from_raw_os_error(libc::ESRCH));
    }
    Ok(())
}
