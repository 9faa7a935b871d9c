//! The lists: which calls, and with which arguments.
//!
//! They were made by reading what each thread does and by running everything under
//! `--seccomp log`. A call that is missing ends a VM, so where the C library or the kernel has several
//! ways to do a thing (`clone` and `clone3`, `epoll_wait` and `epoll_pwait`), all of them are here.

use seccompiler::{BackendError, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompRule};

use super::Thread;

/// A call that is allowed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Call {
    /// Its number.
    pub(super) number: i64,
    /// Its name, for messages.
    pub(super) name: &'static str,
    only: Option<Only>,
}

/// A condition: the low 32 bits of an argument, as far as the mask selects them, have this value.
#[derive(Clone, Copy, Debug)]
struct Only {
    argument: u8,
    mask: u32,
    value: u32,
}

impl Call {
    const fn only(self, argument: u8, mask: u32, value: u32) -> Self {
        Call { only: Some(Only { argument, mask, value }), ..self }
    }

    /// Whether any arguments will do.
    pub(super) fn is_unconditional(&self) -> bool {
        self.only.is_none()
    }

    /// The condition in the words of the filter's compiler; `None` for a call without one.
    pub(super) fn rule(&self) -> Result<Option<SeccompRule>, BackendError> {
        let Some(Only { argument, mask, value }) = self.only else { return Ok(None) };
        let operator = SeccompCmpOp::MaskedEq(mask.into());
        let length = SeccompCmpArgLen::Dword;
        let condition = SeccompCondition::new(argument, length, operator, value.into())?;
        SeccompRule::new(vec![condition]).map(Some)
    }
}

/// Calls by their names in `libc`.
macro_rules! calls {
    ($($name:ident),+ $(,)?) => { &[$(call!($name)),+] };
}

macro_rules! call {
    ($name:ident) => {
        Call { number: libc::$name, name: stringify!($name), only: None }
    };
}

const WHOLE: u32 = u32::MAX;

/// What any thread may come to do: memory, locks, time, the log, reading a file, panicking, dying.
const COMMON: &[Call] = calls![
    // Memory, as the allocator and thread stacks have it.
    SYS_brk,
    SYS_madvise,
    SYS_mremap,
    SYS_munmap,
    // Threads and locks.
    SYS_exit,
    SYS_futex,
    SYS_getpid,
    SYS_gettid,
    SYS_restart_syscall,
    SYS_rseq,
    SYS_sched_getaffinity,
    SYS_sched_yield,
    SYS_set_robust_list,
    SYS_sigaltstack,
    // Signals: kicks of the vCPU, those that end the process (any thread may get them, and tells the
    // main thread through a socket), and the way a panic ends.
    SYS_rt_sigaction,
    SYS_rt_sigprocmask,
    SYS_rt_sigreturn,
    SYS_sendto,
    SYS_tgkill,
    SYS_exit_group,
    // Time, which the kernel is asked for where the clock cannot be read without it; the deadline of
    // the vCPU's next kick.
    SYS_clock_gettime,
    SYS_clock_nanosleep,
    SYS_gettimeofday,
    SYS_nanosleep,
    SYS_timer_delete,
    SYS_timer_settime,
    // Descriptors that are open: the log, eventfds.
    SYS_close,
    SYS_fcntl,
    SYS_fstat,
    SYS_lseek,
    SYS_poll,
    SYS_ppoll,
    SYS_read,
    SYS_write,
    SYS_writev,
    // Reading a file: a kernel on a reboot, debug information for a panic's backtrace, what the C
    // library wants to know of the host.
    SYS_getcwd,
    SYS_newfstatat,
    SYS_readlink,
    SYS_readlinkat,
    SYS_stat,
    SYS_statx,
    SYS_getrandom,
    SYS_prlimit64,
    SYS_sysinfo,
    SYS_uname,
];

/// As [`COMMON`], with arguments: nothing can be executed that was not when the process started,
/// files are opened to be read, and a thread gets a name.
const COMMON_IF: &[Call] = &[
    call!(SYS_mmap).only(2, libc::PROT_EXEC as u32, 0),
    call!(SYS_mprotect).only(2, libc::PROT_EXEC as u32, 0),
    call!(SYS_openat).only(2, OPEN_TO_CHANGE, 0),
    call!(SYS_prctl).only(0, WHOLE, libc::PR_SET_NAME as u32),
    call!(SYS_prctl).only(0, WHOLE, libc::PR_GET_NAME as u32),
    // The C library can give areas of memory names.
    call!(SYS_prctl).only(0, WHOLE, libc::PR_SET_VMA as u32),
];

/// Flags with which a file is opened for more than reading.
const OPEN_TO_CHANGE: u32 =
    (libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC | libc::O_APPEND) as u32;

/// Starting threads, and giving them filters of their own.
const THREADS: &[Call] = calls![SYS_clone, SYS_clone3, SYS_seccomp];
const THREADS_IF: &[Call] = &[call!(SYS_prctl).only(0, WHOLE, libc::PR_SET_NO_NEW_PRIVS as u32)];

/// An event loop.
const EVENTS: &[Call] = calls![
    SYS_epoll_create1,
    SYS_epoll_ctl,
    SYS_epoll_pwait,
    SYS_epoll_wait,
    SYS_eventfd2,
    SYS_pipe2,
    SYS_dup,
];

/// Sockets that are open.
const TALKING: &[Call] = calls![
    SYS_accept4,
    SYS_getpeername,
    SYS_getsockname,
    SYS_getsockopt,
    SYS_readv,
    SYS_recvfrom,
    SYS_recvmsg,
    SYS_sendmsg,
    SYS_setsockopt,
    SYS_shutdown,
];
const TALKING_IF: &[Call] = &[ioctl(libc::FIONBIO), ioctl(libc::FIOCLEX), ioctl(libc::FIONREAD)];

/// Making sockets.
const CONNECTING: &[Call] = calls![SYS_bind, SYS_connect, SYS_listen, SYS_socket, SYS_socketpair];

/// Opening anything: the main thread opens disks, taps, logs and consoles whenever it is told to.
const OPENING: &[Call] = calls![SYS_openat, SYS_unlink, SYS_unlinkat, SYS_ftruncate];

/// Reading and writing a disk image, a device or a log, and making it durable.
const STORING: &[Call] =
    calls![SYS_fdatasync, SYS_fsync, SYS_pread64, SYS_preadv, SYS_pwrite64, SYS_pwritev];

/// The main thread alone.
const MAIN: &[Call] = calls![SYS_flock];
const MAIN_IF: &[Call] = &[
    // The terminal, raw while a guest has it.
    ioctl(libc::TCGETS),
    ioctl(libc::TCSETS),
    ioctl(libc::TCSETSW),
    ioctl(libc::TCSETSF),
    ioctl(libc::TCGETS2),
    ioctl(libc::TCSETS2),
    ioctl(libc::TCSETSW2),
    ioctl(libc::TCSETSF2),
    // Taps.
    ioctl(libc::TUNSETIFF),
    ioctl(libc::TUNSETOFFLOAD),
    ioctl(libc::TUNSETVNETHDRSZ),
    ioctl(libc::SIOCGIFFLAGS),
    ioctl(libc::SIOCSIFFLAGS),
    ioctl(libc::SIOCSIFADDR),
    ioctl(libc::SIOCSIFNETMASK),
];

/// The vCPU, and who makes it. KVM's requests all have one letter, and only its descriptors answer
/// to it.
const KVM: &[Call] = calls![SYS_timer_create];
const KVM_IF: &[Call] = &[call!(SYS_ioctl).only(1, 0xff00, 0xae00)];

/// Looking up a name, in the ways that the C library and its usual modules do it: files, a DNS
/// server, the host's own service. They are loaded when they are needed.
const NAMES: &[Call] = calls![SYS_mmap, SYS_mprotect, SYS_recvmmsg, SYS_sendmmsg];

/// Looking at files and at who one is.
const LOOKING: &[Call] = calls![
    SYS_access,
    SYS_faccessat,
    SYS_faccessat2,
    SYS_fstatfs,
    SYS_getdents64,
    SYS_getegid,
    SYS_geteuid,
    SYS_getgid,
    SYS_getppid,
    SYS_getuid,
    SYS_lstat,
    SYS_statfs,
    SYS_time,
];

/// What the arbiter in a directory is: files of one's own, and links to them.
const ARBITRATING: &[Call] = calls![SYS_link, SYS_linkat, SYS_mkdir, SYS_rename, SYS_renameat2];

const fn ioctl(request: libc::Ioctl) -> Call {
    call!(SYS_ioctl).only(1, WHOLE, request as u32)
}

/// The lists of a kind of thread.
fn lists(thread: Thread) -> &'static [&'static [Call]] {
    match thread {
        Thread::Main => &[
            COMMON,
            COMMON_IF,
            THREADS,
            THREADS_IF,
            EVENTS,
            TALKING,
            TALKING_IF,
            CONNECTING,
            OPENING,
            LOOKING,
            STORING,
            ARBITRATING,
            MAIN,
            MAIN_IF,
            KVM,
            KVM_IF,
        ],
        Thread::Vcpu => &[KVM_IF, COMMON, COMMON_IF, KVM],
        Thread::Disk => &[COMMON, COMMON_IF, STORING],
        // The socket's file is removed at the end.
        Thread::Http => &[
            COMMON,
            COMMON_IF,
            THREADS,
            EVENTS,
            TALKING,
            TALKING_IF,
            calls![SYS_unlink, SYS_unlinkat],
        ],
        Thread::Helpers => &[
            COMMON,
            COMMON_IF,
            THREADS,
            EVENTS,
            TALKING,
            TALKING_IF,
            CONNECTING,
            OPENING,
            STORING,
            LOOKING,
            NAMES,
            ARBITRATING,
        ],
    }
}

/// All calls of a kind of thread.
pub(super) fn of(thread: Thread) -> impl Iterator<Item = &'static Call> {
    lists(thread).iter().copied().flatten()
}

/// The name of a call, if it is one that any thread may make.
pub(super) fn name(number: i64) -> Option<&'static str> {
    let call = Thread::ALL.into_iter().flat_map(of).find(|call| call.number == number)?;
    call.name.strip_prefix("SYS_")
}
