//! A thread makes a call that is not on its list: the kernel sends the thread SIGSYS instead of
//! carrying the call out, and the process says which thread and which call, and ends.
//!
//! The handler runs in the middle of anything, so it allocates nothing and takes no lock.

use std::cell::Cell;
use std::fmt::{self, Write};

use libc::{c_int, c_void, siginfo_t};

use super::calls;
use crate::error::Error;
use crate::logger;

/// The exit code of a process that ends so: that of one which SIGSYS kills, as a shell shows it.
const EXIT_CODE: c_int = 128 + libc::SIGSYS;

/// `si_code` of a SIGSYS that comes from a filter.
const FROM_A_FILTER: c_int = 1;

thread_local! {
    static THREAD: Cell<&'static str> = const { Cell::new("without a name") };
}

/// What the kernel says in a `siginfo_t` of SIGSYS.
#[repr(C)]
struct Violation {
    signal: c_int,
    error: c_int,
    code: c_int,
    address: *const c_void,
    call: c_int,
    architecture: c_int,
}

const _: () = assert!(size_of::<Violation>() <= size_of::<siginfo_t>());

/// What the calling thread is called in a message from now on.
pub(super) fn name_this_thread(name: &'static str) {
    THREAD.set(name);
}

/// From now on a violation ends the process with a message.
pub(super) fn watch() -> Result<(), Error> {
    vmm_sys_util::signal::register_signal_handler(libc::SIGSYS, on_violation)
        .map_err(|errno| Error::Seccomp(format!("no handler for SIGSYS: {errno}")))
}

extern "C" fn on_violation(_signal: c_int, info: *mut siginfo_t, _context: *mut c_void) {
    // SAFETY: the kernel hands the handler of a signal a valid `siginfo_t`, which is larger than
    // `Violation` (checked above); for SIGSYS its fields are laid out as those, and integers and
    // pointers have no invalid values.
    let violation = unsafe { &*info.cast::<Violation>() };
    if violation.code != FROM_A_FILTER {
        return;
    }
    let mut text = Text { bytes: [0; 512], length: 0 };
    let _ = describe(&mut text, THREAD.get(), violation.call);
    for descriptor in logger::descriptors() {
        // SAFETY: the bytes are a live local, as many as are said; a descriptor that is closed is
        // an error that nobody could be told.
        unsafe { libc::write(descriptor, text.bytes.as_ptr().cast(), text.length) };
    }
    // SAFETY: ends the process at once, without running anything of it.
    unsafe { libc::_exit(EXIT_CODE) };
}

pub(super) fn describe(text: &mut impl Write, thread: &str, call: c_int) -> fmt::Result {
    write!(text, "cloud-hypervisor: the thread {thread} made the system call {call}")?;
    if let Some(name) = calls::name(call.into()) {
        write!(text, " ({name}, with arguments or on a thread that it is not allowed for)")?;
    }
    writeln!(
        text,
        ", which a VMM that does its work does not make: the process ends. If this was no attack, \
         report it, and go on with --seccomp log, which only notes such calls in the host's log."
    )
}

/// A text that is not longer than its place; what is longer is cut.
struct Text {
    bytes: [u8; 512],
    length: usize,
}

impl Write for Text {
    fn write_str(&mut self, part: &str) -> fmt::Result {
        let place = self.bytes.get_mut(self.length..).unwrap_or_default();
        let length = part.len().min(place.len());
        for (place, byte) in place.iter_mut().zip(part.bytes()) {
            *place = byte;
        }
        self.length += length;
        Ok(())
    }
}
