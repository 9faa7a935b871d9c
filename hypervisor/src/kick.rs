//! Interrupting a virtual CPU, from any thread or at a point in time, without losing a wake-up.
//!
//! A kick is a real-time signal to the virtual CPU's thread. Its handler notes that the CPU was
//! kicked and sets `immediate_exit` in the page shared with KVM. Wherever the signal strikes, the
//! kick takes effect: inside the guest, KVM leaves; just before the guest, KVM sees
//! `immediate_exit`; elsewhere, the next [`Vcpu::run`](crate::Vcpu::run) sees the note and returns
//! without entering the guest.

use std::cell::{Cell, RefCell};
use std::io;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering, compiler_fence};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use libc::{c_int, c_void, siginfo_t};

use crate::run_page::RunPage;
use crate::{Error, Result};

/// The value of `deadline_ns` while no deadline is set.
const NO_DEADLINE: u64 = u64::MAX;

/// What a kick acts on. Shared by the virtual CPU, its kickers and its thread.
#[derive(Debug)]
pub(crate) struct Target {
    page: RunPage,
    kicked: AtomicBool,
    /// The thread that runs the CPU; zero while there is none.
    thread: AtomicI32,
    /// The deadline that `timer` is set to: a copy for a quick look.
    deadline_ns: AtomicU64,
    timer: Mutex<Option<Timer>>,
}

thread_local! {
    /// What the signal handler on this thread acts on. Plain, so that reading it in a signal
    /// handler neither allocates nor locks.
    static CURRENT: Cell<*const Target> = const { Cell::new(std::ptr::null()) };
    /// Keeps the target of `CURRENT` alive.
    static OWNER: RefCell<Owner> = const { RefCell::new(Owner(None)) };
}

struct Owner(Option<Arc<Target>>);

impl Owner {
    fn replace(&mut self, target: Option<Arc<Target>>) {
        CURRENT.set(std::ptr::null());
        compiler_fence(Ordering::SeqCst);
        if let Some(old) = self.0.take() {
            old.release_thread();
        }
        let pointer = target.as_ref().map_or(std::ptr::null(), Arc::as_ptr);
        self.0 = target;
        compiler_fence(Ordering::SeqCst);
        CURRENT.set(pointer);
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.replace(None);
    }
}

extern "C" fn on_kick(_signal: c_int, _info: *mut siginfo_t, _context: *mut c_void) {
    let target = CURRENT.get();
    // SAFETY: on this thread `CURRENT` is either null or points to the target that `OWNER` of the
    // same thread keeps alive; `Owner::replace` clears the pointer before it lets the target go.
    if let Some(target) = unsafe { target.as_ref() } {
        target.kicked.store(true, Ordering::SeqCst);
        target.page.set_immediate_exit(true);
    }
}

fn signal_number() -> c_int {
    libc::SIGRTMIN()
}

fn install_handler() -> Result<()> {
    static INSTALLED: OnceLock<std::result::Result<(), i32>> = OnceLock::new();
    INSTALLED
        .get_or_init(|| {
            vmm_sys_util::signal::register_signal_handler(signal_number(), on_kick)
                .map_err(|errno| errno.errno())
        })
        .map_err(|errno| Error::Kick {
            action: "handle the signal that interrupts it",
            source: io::Error::from_raw_os_error(errno),
        })
}

impl Target {
    pub(crate) fn new(page: RunPage) -> Arc<Self> {
        Arc::new(Self {
            page,
            kicked: AtomicBool::new(false),
            thread: AtomicI32::new(0),
            deadline_ns: AtomicU64::new(NO_DEADLINE),
            timer: Mutex::new(None),
        })
    }

    pub(crate) fn page(&self) -> &RunPage {
        &self.page
    }

    /// Makes the calling thread the one that kicks go to.
    pub(crate) fn bind(self: &Arc<Self>) -> Result<()> {
        install_handler()?;
        vmm_sys_util::signal::unblock_signal(signal_number()).map_err(|_| Error::Kick {
            action: "receive the signal that interrupts it",
            source: io::Error::last_os_error(),
        })?;
        // SAFETY: the call has no arguments and cannot fail.
        let thread = unsafe { libc::gettid() };
        let timer = Timer::new(thread)?;
        OWNER.with_borrow_mut(|owner| owner.replace(Some(Arc::clone(self))));
        let mut place = self.timer.lock().unwrap_or_else(PoisonError::into_inner);
        *place = Some(timer);
        self.deadline_ns.store(NO_DEADLINE, Ordering::Relaxed);
        drop(place);
        self.thread.store(thread, Ordering::SeqCst);
        Ok(())
    }

    /// Ends the binding to the calling thread, if there is one.
    pub(crate) fn unbind(self: &Arc<Self>) {
        // While the thread's own storage is being torn down there is nothing left to undo.
        let _ = OWNER.try_with(|owner| {
            let mut owner = owner.borrow_mut();
            if owner.0.as_ref().is_some_and(|bound| Arc::ptr_eq(bound, self)) {
                owner.replace(None);
            }
        });
    }

    fn release_thread(&self) {
        self.thread.store(0, Ordering::SeqCst);
        let mut place = self.timer.lock().unwrap_or_else(PoisonError::into_inner);
        *place = None;
        self.deadline_ns.store(NO_DEADLINE, Ordering::Relaxed);
    }

    /// Before the guest is entered: whether a kick wants it not to be. If not, then from here on a
    /// kick makes KVM return at once.
    pub(crate) fn take_kick_before_entry(&self) -> bool {
        self.page.set_immediate_exit(false);
        compiler_fence(Ordering::SeqCst);
        self.kicked.load(Ordering::SeqCst) && self.kicked.swap(false, Ordering::SeqCst)
    }

    /// After the guest was interrupted: the kick, if it was one, has been served.
    pub(crate) fn served(&self) {
        self.kicked.store(false, Ordering::SeqCst);
    }
}

/// Interrupts one virtual CPU. Clones interrupt the same one.
#[derive(Clone, Debug)]
pub struct Kicker {
    target: Arc<Target>,
}

impl Kicker {
    pub(crate) fn new(target: Arc<Target>) -> Self {
        Self { target }
    }

    /// Makes [`Vcpu::run`](crate::Vcpu::run) return [`Exit::Interrupted`](crate::Exit::Interrupted)
    /// soon: the call that is under way or, if none is, the next one. Kicks that come before
    /// it returns count as one.
    pub fn kick(&self) {
        self.target.kicked.store(true, Ordering::SeqCst);
        let thread = self.target.thread.load(Ordering::SeqCst);
        if thread != 0 {
            // SAFETY: the call touches no memory. If the thread has just ended, the call fails, or
            // reaches a newer thread of this process, whose handler finds nothing to act on.
            unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, signal_number()) };
        }
    }

    /// Kicks the CPU once when `CLOCK_MONOTONIC` reaches `deadline_ns`, instead of at an earlier
    /// set deadline. One that has passed kicks at once. Setting the deadline that is already set,
    /// or was set last and has passed, does nothing and costs nothing.
    ///
    /// Without a thread ([`Vcpu::bind_to_this_thread`](crate::Vcpu::bind_to_this_thread)) there is
    /// nothing to interrupt, and nothing happens.
    pub fn kick_at(&self, deadline_ns: u64) {
        let deadline_ns = deadline_ns.min(NO_DEADLINE - 1);
        if self.target.deadline_ns.load(Ordering::Relaxed) != deadline_ns {
            self.set_timer(deadline_ns);
        }
    }

    /// As [`kick_at`](Self::kick_at), but an earlier deadline that has not passed stays.
    pub fn kick_by(&self, deadline_ns: u64) {
        let set = self.target.deadline_ns.load(Ordering::Relaxed);
        let stands = set != NO_DEADLINE && set <= deadline_ns && set > monotonic_ns();
        if !stands {
            self.kick_at(deadline_ns);
        }
    }

    /// Takes back the deadline, if one is set. A kick that is already under way still arrives.
    pub fn disarm(&self) {
        if self.target.deadline_ns.load(Ordering::Relaxed) != NO_DEADLINE {
            self.set_timer(NO_DEADLINE);
        }
    }

    fn set_timer(&self, deadline_ns: u64) {
        let place = self.target.timer.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(timer) = place.as_ref() {
            timer.set(deadline_ns);
            self.target.deadline_ns.store(deadline_ns, Ordering::Relaxed);
        }
    }
}

/// `CLOCK_MONOTONIC` in nanoseconds: the clock that deadlines are given by.
#[must_use]
pub fn monotonic_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a live local that the call fills.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// `CLOCK_BOOTTIME` in milliseconds: a clock that goes on while the host is suspended, as leases
/// and timeouts between hosts must.
#[must_use]
pub fn boottime_ms() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a live local that the call fills.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &mut now) };
    now.tv_sec as u64 * 1_000 + now.tv_nsec as u64 / 1_000_000
}

/// A timer of the kernel's that signals one thread.
#[derive(Debug)]
struct Timer(libc::timer_t);

// SAFETY: the identity of a timer is a number of the process, usable from all its threads.
unsafe impl Send for Timer {}

impl Timer {
    fn new(thread: libc::pid_t) -> Result<Self> {
        // SAFETY: all bytes zero is a valid value of this plain structure of the C library.
        let mut event: libc::sigevent = unsafe { std::mem::zeroed() };
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_signo = signal_number();
        event.sigev_notify_thread_id = thread;
        let mut timer: libc::timer_t = null_mut();
        // SAFETY: both pointers are to live locals that the call reads and writes during the call.
        let result = unsafe { libc::timer_create(libc::CLOCK_MONOTONIC, &mut event, &mut timer) };
        if result != 0 {
            let source = io::Error::last_os_error();
            return Err(Error::Kick { action: "create the timer that interrupts it", source });
        }
        Ok(Self(timer))
    }

    fn set(&self, deadline_ns: u64) {
        // All zero means "off" to the kernel, so a deadline at zero becomes one at 1 ns.
        let deadline_ns = if deadline_ns == NO_DEADLINE { 0 } else { deadline_ns.max(1) };
        let value = libc::itimerspec {
            it_interval: libc::timespec { tv_sec: 0, tv_nsec: 0 },
            it_value: libc::timespec {
                tv_sec: (deadline_ns / 1_000_000_000) as libc::time_t,
                tv_nsec: (deadline_ns % 1_000_000_000) as libc::c_long,
            },
        };
        // SAFETY: the timer lives as long as `self`, and `value` is a live local.
        let result =
            unsafe { libc::timer_settime(self.0, libc::TIMER_ABSTIME, &value, null_mut()) };
        // Only a bad timer or a bad time can fail here, and both are made above.
        assert!(result == 0, "timer_settime: {}", io::Error::last_os_error());
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        // SAFETY: the timer was created by `new`, and nobody can use it after this.
        unsafe { libc::timer_delete(self.0) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run_page::tests::page_without_kvm;
    use std::time::{Duration, Instant};

    fn immediate_exit(target: &Target) -> bool {
        let mut bytes = [0; 2];
        assert!(target.page().read(0, &mut bytes));
        bytes[1] != 0
    }

    fn wait_for(what: &str, mut happened: impl FnMut() -> bool) {
        let start = Instant::now();
        while !happened() {
            assert!(start.elapsed() < Duration::from_secs(20), "{what} did not happen");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn a_kick_without_a_thread_is_kept_for_the_next_run() {
        let target = Target::new(page_without_kvm());
        Kicker::new(Arc::clone(&target)).kick();
        assert!(target.take_kick_before_entry());
        assert!(!target.take_kick_before_entry(), "a kick counts once");
    }

    #[test]
    fn a_kick_from_another_thread_makes_kvm_return_at_once() {
        let target = Target::new(page_without_kvm());
        target.bind().expect("bind");
        assert!(!target.take_kick_before_entry());
        let kicker = Kicker::new(Arc::clone(&target));
        std::thread::spawn(move || kicker.kick()).join().expect("kicked");
        wait_for("the kick", || immediate_exit(&target));
        assert!(target.take_kick_before_entry());
        assert!(!immediate_exit(&target), "cleared before the guest is entered");
    }

    #[test]
    fn a_deadline_kicks_once_when_it_comes() {
        let target = Target::new(page_without_kvm());
        target.bind().expect("bind");
        let kicker = Kicker::new(Arc::clone(&target));
        let deadline_ns = monotonic_ns() + 30_000_000;
        kicker.kick_at(deadline_ns);
        wait_for("the timer's kick", || target.take_kick_before_entry());
        assert!(monotonic_ns() >= deadline_ns, "came too early");
        kicker.kick_at(deadline_ns);
        std::thread::sleep(Duration::from_millis(20));
        assert!(!target.take_kick_before_entry(), "the same deadline kicked twice");
    }

    #[test]
    fn a_deadline_in_the_past_kicks_at_once() {
        let target = Target::new(page_without_kvm());
        target.bind().expect("bind");
        Kicker::new(Arc::clone(&target)).kick_at(0);
        wait_for("the timer's kick", || target.take_kick_before_entry());
    }

    #[test]
    fn a_disarmed_deadline_does_not_kick() {
        let target = Target::new(page_without_kvm());
        target.bind().expect("bind");
        let kicker = Kicker::new(Arc::clone(&target));
        kicker.kick_at(monotonic_ns() + 50_000_000);
        kicker.disarm();
        std::thread::sleep(Duration::from_millis(120));
        assert!(!target.take_kick_before_entry());
    }

    #[test]
    fn a_kicker_outlives_the_thread_and_the_cpu() {
        let target = Target::new(page_without_kvm());
        let kicker = Kicker::new(Arc::clone(&target));
        let bound = Arc::clone(&target);
        std::thread::spawn(move || bound.bind()).join().expect("ended").expect("bound");
        drop(target);
        kicker.kick();
        kicker.kick_at(1);
        kicker.disarm();
        assert!(kicker.target.take_kick_before_entry(), "kept for another thread");
    }

    #[test]
    fn the_last_bound_cpu_of_a_thread_gets_the_kicks() {
        let first = Target::new(page_without_kvm());
        let second = Target::new(page_without_kvm());
        first.bind().expect("bind");
        second.bind().expect("bind");
        first.unbind();
        Kicker::new(Arc::clone(&second)).kick();
        wait_for("the kick", || immediate_exit(&second));
        assert!(!immediate_exit(&first));
        second.unbind();
        assert_eq!(second.thread.load(Ordering::SeqCst), 0);
    }
}
