//! Which system calls each thread may make: filters of the host's kernel, one a kind of thread.
//!
//! A guest that breaks out of its devices, or a peer that breaks into the channel, has the thread it
//! broke into and no more calls than that one needs. Owns the kinds, the lists ([`calls`]), putting
//! them in place, and what happens when a thread makes another call ([`violation`]). Does not own any
//! thread: each says what it is, first thing in its life, with [`enter`].
//!
//! A filter is inherited: a thread has its own and those of whoever started it, and a call must be on
//! all of them. So the main thread's list holds what the threads of the VM need, and the threads that
//! need what it does not are started before it has a filter: the API server's, and the one that
//! starts helpers ([`start_helper`]).

mod calls;
mod helpers;
#[cfg(test)]
mod tests;
mod violation;

use std::collections::BTreeMap;
use std::sync::OnceLock;

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, SeccompRule, TargetArch};

use crate::cli::Seccomp;
use crate::error::Error;

pub use helpers::start_helper;

/// What a thread is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Thread {
    /// The shell. Its filter holds for all that it starts: the vCPU and the disks.
    Main,
    /// The engine: the guest.
    Vcpu,
    /// Executes the requests of one disk.
    Disk,
    /// The API: accepts clients, and serves them on threads that inherit the filter.
    Http,
    /// Starts helpers, which inherit the filter: they connect, look up names and ask the arbiter.
    Helpers,
}

impl Thread {
    /// Every kind.
    pub const ALL: [Thread; 5] =
        [Thread::Main, Thread::Vcpu, Thread::Disk, Thread::Http, Thread::Helpers];

    /// Its name in messages.
    fn name(self) -> &'static str {
        match self {
            Thread::Main => "main",
            Thread::Vcpu => "vcpu0",
            Thread::Disk => "disk",
            Thread::Http => "http-server",
            Thread::Helpers => "helpers",
        }
    }

    /// What becomes of a call that is not on its list.
    fn otherwise(self, mode: Seccomp) -> SeccompAction {
        match (mode, self) {
            (Seccomp::Off, _) => SeccompAction::Allow,
            (Seccomp::Log, _) => SeccompAction::Log,
            // Looking up a name loads whatever modules this host has for it, and nobody can list
            // what they call. What they may not do is as if this kernel did not know it.
            (Seccomp::Enforce, Thread::Helpers) => SeccompAction::Errno(libc::ENOSYS as u32),
            (Seccomp::Enforce, Thread::Main | Thread::Vcpu | Thread::Disk | Thread::Http) => {
                SeccompAction::Trap
            }
        }
    }
}

/// What the command line said, once it is known that the process is to be restricted.
static MODE: OnceLock<Seccomp> = OnceLock::new();

/// Prepares the process: from now on threads that [`enter`] are restricted. To be called once, by
/// the main thread, before it starts any other.
///
/// # Errors
/// The host does not let the process say what is to be done about a violation, or start a thread.
pub fn start(mode: Seccomp) -> Result<(), Error> {
    if mode == Seccomp::Off {
        return Ok(());
    }
    violation::watch()?;
    // Said twice, it counts once: there is one command line.
    let _ = MODE.set(mode);
    helpers::start()
}

/// Restricts the calling thread to what a thread of this kind needs. There is no way back. Does
/// nothing if the process is not restricted.
///
/// # Errors
/// The host's kernel cannot filter system calls.
pub fn enter(thread: Thread) -> Result<(), Error> {
    let Some(mode) = MODE.get() else { return Ok(()) };
    restrict(thread, *mode)
}

fn restrict(thread: Thread, mode: Seccomp) -> Result<(), Error> {
    violation::name_this_thread(thread.name());
    let program = program(thread, mode).map_err(|error| Error::Seccomp(error.to_string()))?;
    seccompiler::apply_filter(&program).map_err(|error| Error::Seccomp(error.to_string()))
}

/// As [`enter`], for a thread that has nobody to tell: what went wrong is logged. Filters that it
/// inherited hold all the same.
pub fn enter_or_warn(thread: Thread) {
    if let Err(error) = enter(thread) {
        log::warn!("the thread {} runs on with more rights than it needs: {error}", thread.name());
    }
}

/// The filter of a kind of thread, as the kernel wants it.
fn program(thread: Thread, mode: Seccomp) -> Result<BpfProgram, seccompiler::BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for call in calls::of(thread) {
        if let Some(rule) = call.rule()? {
            rules.entry(call.number).or_default().push(rule);
        }
    }
    // No rule at all stands for any arguments, whatever conditions another list has.
    for call in calls::of(thread).filter(|call| call.is_unconditional()) {
        rules.insert(call.number, Vec::new());
    }
    let otherwise = thread.otherwise(mode);
    SeccompFilter::new(rules, otherwise, SeccompAction::Allow, TargetArch::x86_64)?.try_into()
}
