//! A thread of another process that is stopped while it waits in a system call, and makes other system calls for us.
//!
//! Owns the stopping, the calls and the letting go; the call in which it was goes on afterwards as if nothing had been. Does
//! not own which calls are made.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use libc::{PTRACE_EVENT_STOP, user_regs_struct};
use nix::errno::Errno;
use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// What `ptrace` reads and writes at once, in bytes.
pub const WORD_SIZE: usize = size_of::<u64>();

/// A thread that is told to stop, or to make a step, does so within this time.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two looks at a thread.
const LOOK_INTERVAL: Duration = Duration::from_millis(1);
/// Between two attempts to find a thread in a call.
const ATTEMPT_INTERVAL: Duration = Duration::from_millis(7);
/// Below its stack pointer, a function may use this many bytes without telling anybody.
const RED_ZONE: u64 = 128;
const STACK_ALIGNMENT: u64 = 64;
/// The instruction `syscall`.
const SYSCALL: [u8; 2] = [0x0f, 0x05];

/// A thread that is stopped in a system call.
#[derive(Debug)]
pub struct Captive {
    thread: Pid,
    saved: user_regs_struct,
    /// It was let go.
    released: bool,
}

/// Why a thread stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stop {
    /// It was told to.
    Interrupted,
    /// It made the one step it was to make.
    Step,
    /// It is about to get a signal; `None` for a real-time one.
    Signal(Option<Signal>),
}

impl Captive {
    /// Stops a thread as soon as it is in a system call whose number is `wanted`. It is looked at again and again until
    /// `patience` is over.
    ///
    /// # Errors
    /// There is no such thread, it must not be traced, or it was in no such call whenever it was looked at.
    pub fn take(thread: i32, patience: Duration, wanted: impl Fn(u64) -> bool) -> Result<Self> {
        let thread = Pid::from_raw(thread);
        ptrace::seize(thread, ptrace::Options::empty())
            .with_context(|| format!("cannot trace the thread {thread}"))?;
        // Who fails from here on lets it go by ending: a thread that was seized goes on when its tracer ends.
        let deadline = Instant::now() + patience;
        loop {
            let saved = interrupt(thread)?;
            if is_in_call(thread, &saved)? && wanted(saved.orig_rax) {
                return Ok(Self { thread, saved, released: false });
            }
            if Instant::now() >= deadline {
                ptrace::detach(thread, None)?;
                let (call, rip) = (saved.orig_rax as i64, saved.rip);
                bail!("the thread {thread} did not wait; last it was in call {call} at {rip:#x}");
            }
            ptrace::cont(thread, None).context("cannot let the thread go on")?;
            sleep(ATTEMPT_INTERVAL);
        }
    }

    /// The address of so many words that nobody uses, below its stack.
    pub fn scratch(&self, words: usize) -> u64 {
        let below = RED_ZONE + (words * WORD_SIZE) as u64;
        (self.saved.rsp - below) & !(STACK_ALIGNMENT - 1)
    }

    /// Has it make this system call. What the kernel gives back: from -4095 to -1 it is an error's number, negated.
    ///
    /// # Errors
    /// The thread cannot be moved, or ends.
    pub fn call(&mut self, number: u64, arguments: [u64; 3]) -> Result<i64> {
        let [rdi, rsi, rdx] = arguments;
        let (rip, after) = (self.saved.rip - SYSCALL.len() as u64, self.saved.rip);
        // Without the call that it was in: the kernel must not begin that one again now.
        let registers =
            user_regs_struct { rax: number, orig_rax: u64::MAX, rdi, rsi, rdx, rip, ..self.saved };
        ptrace::setregs(self.thread, registers).context("cannot set the thread's registers")?;
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            // A signal that comes in between is not passed on: its handler would run on changed registers.
            ptrace::step(self.thread, None).context("cannot have the thread make a step")?;
            match wait(self.thread)? {
                Stop::Step => {
                    let registers = ptrace::getregs(self.thread)?;
                    ensure!(registers.rip == after, "the step led to {:#x}", registers.rip);
                    return Ok(registers.rax as i64);
                }
                Stop::Interrupted | Stop::Signal(_) => {}
            }
        }
        bail!("the thread {} gets signals, and makes no step", self.thread)
    }

    /// Reads a word of its process's memory.
    ///
    /// # Errors
    /// There is no memory.
    pub fn read_word(&self, address: u64) -> Result<u64> {
        read_word(self.thread, address)
    }

    /// Writes a word of its process's memory.
    ///
    /// # Errors
    /// There is no memory.
    pub fn write_word(&mut self, address: u64, word: u64) -> Result<()> {
        ptrace::write(self.thread, address as ptrace::AddressType, word as libc::c_long)
            .with_context(|| format!("cannot write at {address:#x}"))
    }

    /// Lets it go on where it was.
    ///
    /// # Errors
    /// It has ended meanwhile.
    pub fn release(mut self) -> Result<()> {
        self.let_go()
    }

    fn let_go(&mut self) -> Result<()> {
        if self.released {
            return Ok(());
        }
        self.released = true;
        // If it was in a call that begins again after a signal, its registers say so: the kernel sees to it.
        ptrace::setregs(self.thread, self.saved).context("cannot set the registers back")?;
        ptrace::detach(self.thread, None).context("cannot let the thread go")
    }
}

impl Drop for Captive {
    fn drop(&mut self) {
        // After an error; what cannot be put right has been told already.
        let _ = self.let_go();
    }
}

/// Stops a thread; its registers.
fn interrupt(thread: Pid) -> Result<user_regs_struct> {
    ptrace::interrupt(thread).context("cannot stop the thread")?;
    loop {
        match wait(thread)? {
            Stop::Interrupted => return Ok(ptrace::getregs(thread)?),
            Stop::Signal(signal) => ptrace::cont(thread, signal)?,
            Stop::Step => ptrace::cont(thread, None)?,
        }
    }
}

/// Whether registers are those of a thread that stands behind a `syscall` and whose call has not come to its end for the
/// program.
fn is_in_call(thread: Pid, registers: &user_regs_struct) -> Result<bool> {
    if (registers.orig_rax as i64) < 0 {
        return Ok(false);
    }
    let before = read_word(thread, registers.rip - SYSCALL.len() as u64)?;
    Ok(before.to_le_bytes().starts_with(&SYSCALL))
}

fn read_word(thread: Pid, address: u64) -> Result<u64> {
    let word = ptrace::read(thread, address as ptrace::AddressType);
    Ok(word.with_context(|| format!("cannot read at {address:#x}"))? as u64)
}

/// Waits until a thread has stopped.
fn wait(thread: Pid) -> Result<Stop> {
    let deadline = Instant::now() + PATIENCE;
    // Without the first flag, threads that are not their process's first are not waited for.
    let flags = WaitPidFlag::__WALL | WaitPidFlag::WNOHANG;
    while Instant::now() < deadline {
        match waitpid(thread, Some(flags)) {
            Ok(WaitStatus::StillAlive) => sleep(LOOK_INTERVAL),
            Ok(WaitStatus::PtraceEvent(_, _, PTRACE_EVENT_STOP)) => return Ok(Stop::Interrupted),
            Ok(WaitStatus::Stopped(_, Signal::SIGTRAP)) => return Ok(Stop::Step),
            Ok(WaitStatus::Stopped(_, signal)) => return Ok(Stop::Signal(Some(signal))),
            // A signal that the binding has no name for.
            Err(Errno::EINVAL) => return Ok(Stop::Signal(None)),
            Ok(status) => bail!("the thread {thread} did not stop: {status:?}"),
            Err(error) => bail!("the thread {thread} cannot be waited for: {error}"),
        }
    }
    bail!("the thread {thread} does not stop")
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::process::{Child, Command, Stdio};

    use super::*;

    fn process_number(child: &Child) -> i32 {
        i32::try_from(child.id()).unwrap()
    }

    /// Takes a child and has it say its number, and that it may not close what is not open.
    fn must_obey(child: &Child, wanted: impl Fn(u64) -> bool) {
        let mut captive = Captive::take(process_number(child), PATIENCE, wanted).unwrap();
        let answer = captive.call(libc::SYS_getpid as u64, [0; 3]).unwrap();
        assert_eq!(answer, i64::from(child.id()));
        let answer = captive.call(libc::SYS_close as u64, [u64::MAX, 0, 0]).unwrap();
        assert_eq!(answer, -i64::from(libc::EBADF));
        captive.release().unwrap();
    }

    #[test]
    fn a_child_that_reads_makes_calls_for_us_and_then_reads_on() {
        let mut child = Command::new("cat")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("cat starts");
        for _ in 0..3 {
            must_obey(&child, |call| call == libc::SYS_read as u64);
        }
        child.stdin.take().unwrap().write_all(b"still here").unwrap();
        let mut said = String::new();
        child.stdout.take().unwrap().read_to_string(&mut said).unwrap();
        assert_eq!(said, "still here");
        assert!(child.wait().unwrap().success());
    }

    #[test]
    fn a_child_that_sleeps_makes_calls_for_us_and_sleeps_for_as_long_as_it_would_have() {
        let begun = Instant::now();
        // Long enough for both calls on a machine that is busy with other tests.
        let mut child = Command::new("sleep").arg("4").spawn().expect("sleep starts");
        let sleeps = |call| call == libc::SYS_clock_nanosleep as u64;
        must_obey(&child, sleeps);
        must_obey(&child, sleeps);
        assert!(child.wait().unwrap().success());
        assert!(begun.elapsed() >= Duration::from_secs(4), "it slept for {:?}", begun.elapsed());
    }

    #[test]
    fn what_a_call_writes_can_be_read_and_changed() {
        let mut child = Command::new("sleep").arg("60").spawn().expect("sleep starts");
        let mut captive = Captive::take(process_number(&child), PATIENCE, |_| true).unwrap();
        let limits = captive.scratch(2);
        let arguments = [libc::RLIMIT_CORE as u64, limits, 0];
        captive.write_word(limits, u64::MAX - 1).unwrap();
        assert_eq!(captive.call(libc::SYS_getrlimit as u64, arguments).unwrap(), 0);
        assert_ne!(captive.read_word(limits).unwrap(), u64::MAX - 1);
        captive.write_word(limits, 0).unwrap();
        assert_eq!(captive.call(libc::SYS_setrlimit as u64, arguments).unwrap(), 0);
        let seen = std::fs::read_to_string(format!("/proc/{}/limits", child.id())).unwrap();
        let line = seen.lines().find(|line| line.starts_with("Max core file size")).unwrap();
        assert_eq!(line.split_whitespace().nth(4), Some("0"), "{line}");
        drop(captive);
        assert!(child.try_wait().unwrap().is_none(), "it did not survive");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn a_child_that_never_waits_in_a_call_is_let_go_and_runs_on() {
        let mut child = Command::new("sh").args(["-c", "while :; do :; done"]).spawn().unwrap();
        let number = process_number(&child);
        let exec = Duration::from_millis(200);
        sleep(exec);
        let error = Captive::take(number, exec, |_| true).unwrap_err().to_string();
        assert!(error.contains("did not wait"), "{error}");
        assert!(child.try_wait().unwrap().is_none(), "it did not survive");
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
