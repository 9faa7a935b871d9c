//! The filters in place, each in a process of its own: a filter cannot be taken off again.
//!
//! A test starts this very test program once more, for the test [`child`] alone, with what that is to
//! do in its environment.

use std::fs::{self, File};
use std::io::Write;
use std::net::UdpSocket;
use std::os::unix::process::CommandExt;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output};
use std::time::Duration;

use super::*;
use crate::config::Arbiter;
use crate::replica::open_arbiter;
use calls::of;

/// Says to [`child`] what to do: the mode, the thread, the deed.
const ORDER: &str = "FT_SECCOMP_CHILD";

#[test]
fn child() {
    let Ok(order) = std::env::var(ORDER) else { return };
    let words: Vec<&str> = order.split(' ').collect();
    let [mode, thread, deed] = words[..] else { panic!("{order}") };
    let mode = match mode {
        "true" => Seccomp::Enforce,
        "log" => Seccomp::Log,
        _ => Seccomp::Off,
    };
    start(mode).unwrap();
    let kind = Thread::ALL.into_iter().find(|kind| format!("{kind:?}") == thread).unwrap();
    let worker = std::thread::Builder::new().name("tested".into()).spawn(deed_of(deed, kind));
    worker.unwrap().join().unwrap();
    std::process::exit(0);
}

fn deed_of(deed: &str, kind: Thread) -> Box<dyn FnOnce() + Send> {
    let deed: fn() = match deed {
        "work" => work,
        "panic" => || drop(std::panic::catch_unwind(|| panic!("a panic in a test"))),
        "create" => || drop(File::create(temporary("create")).unwrap()),
        "socket" => || drop(UdpSocket::bind("127.0.0.1:0").unwrap()),
        // Comes back only if it failed.
        "execute" => {
            || assert!(Command::new("/bin/true").exec().raw_os_error() == Some(libc::ENOSYS))
        }
        "thread" => || std::thread::spawn(work).join().unwrap(),
        "vm" => vm,
        "arbiters" => arbiters,
        "names" => || drop(std::net::ToSocketAddrs::to_socket_addrs("localhost:1").unwrap()),
        other => panic!("{other}"),
    };
    Box::new(move || {
        enter(kind).unwrap();
        deed();
    })
}

fn temporary(name: &str) -> std::path::PathBuf {
    std::env::temp_dir().join(format!("ft-seccomp-{name}-{}", std::process::id()))
}

/// What any thread does.
fn work() {
    let mut blocks = Vec::new();
    for round in 0..200 {
        // Small and large, kept and given back, grown: every way of the allocator.
        blocks.push(vec![1_u8; 1 << (round % 23)]);
        let mut grown = vec![0_u8; 1 << 20];
        grown.resize(3 << 20, 1);
        if round % 3 == 0 {
            blocks.clear();
        }
    }
    std::thread::sleep(Duration::from_millis(2));
    assert!(!fs::read("/proc/self/stat").unwrap().is_empty());
    assert!(fs::metadata("/").unwrap().is_dir());
    std::io::stderr().write_all(b"a line of the log\n").unwrap();
    let map: std::collections::HashMap<u8, u8> = (0..9).map(|key| (key, key)).collect();
    assert_eq!(map.len(), 9);
}

/// The main thread with a disk and a vCPU, as they are when a VM runs.
fn vm() {
    let path = temporary("disk");
    fs::write(&path, [7; 4096]).unwrap();
    let disk = File::options().read(true).write(true).open(&path).unwrap();
    let worker = std::thread::spawn(move || {
        use std::os::unix::fs::FileExt;
        enter(Thread::Disk).unwrap();
        work();
        disk.write_all_at(&[8; 512], 512).unwrap();
        disk.read_exact_at(&mut [0; 512], 0).unwrap();
        disk.sync_data().unwrap();
    });
    let vcpu = std::thread::spawn(|| {
        enter(Thread::Vcpu).unwrap();
        work();
    });
    worker.join().unwrap();
    vcpu.join().unwrap();
    fs::remove_file(path).unwrap();
}

/// Asks arbiters, as a backup's main thread does before a join: one by a name that has to be looked
/// up, and one in a directory.
fn arbiters() {
    let directory = std::env::temp_dir();
    for (text, fails) in [
        ("arbiter=etcd:http://nobody.invalid:1".to_owned(), true),
        (format!("arbiter=file:{}", directory.display()), false),
    ] {
        let config = Arbiter::parse(&text).unwrap();
        let checked = open_arbiter(Some(&config)).unwrap().unwrap().check();
        assert_eq!(checked.is_err(), fails, "{text}: {checked:?}");
    }
}

/// Has a child do something; what it said, and how it ended.
fn order(mode: &str, thread: Thread, deed: &str) -> (Option<i32>, String) {
    let Output { status, stdout, stderr } = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "seccomp::tests::child", "--nocapture"])
        .env(ORDER, format!("{mode} {thread:?} {deed}"))
        .env("RUST_BACKTRACE", "full")
        .output()
        .unwrap();
    let said = [stdout, stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    (status.code().or_else(|| status.signal().map(|signal| 128 + signal)), said)
}

fn does(mode: &str, thread: Thread, deed: &str) {
    let (code, said) = order(mode, thread, deed);
    assert_eq!(code, Some(0), "{thread:?}, {deed}: {said}");
}

fn ends(thread: Thread, deed: &str, call: &str) {
    let (code, said) = order("true", thread, deed);
    assert_eq!(code, Some(128 + libc::SIGSYS), "{thread:?}, {deed}: {said}");
    // The C library starts a thread with all signals blocked: the kernel ends the process itself.
    if call.is_empty() {
        return;
    }
    let sentence = format!("the thread {} made the system call {call}", thread.name());
    assert!(said.contains(&sentence), "{said}");
}

#[test]
fn every_thread_does_its_work_panics_included() {
    for thread in Thread::ALL {
        does("true", thread, "work");
        let (code, said) = order("true", thread, "panic");
        assert_eq!(code, Some(0), "{thread:?}: {said}");
        assert!(said.contains("a panic in a test"), "{said}");
    }
    does("true", Thread::Main, "vm");
    does("true", Thread::Main, "arbiters");
    does("true", Thread::Http, "thread");
    does("true", Thread::Helpers, "thread");
    does("true", Thread::Helpers, "names");
}

#[test]
fn a_call_that_is_not_on_a_threads_list_ends_the_process_with_a_sentence() {
    ends(Thread::Main, "execute", "59,");
    ends(Thread::Vcpu, "socket", "41 (socket");
    ends(Thread::Vcpu, "create", "257 (openat");
    ends(Thread::Vcpu, "thread", "");
    ends(Thread::Disk, "socket", "41 (socket");
    ends(Thread::Disk, "create", "257 (openat");
    ends(Thread::Http, "socket", "41 (socket");
    ends(Thread::Http, "create", "257 (openat");
}

#[test]
fn helpers_are_denied_what_is_not_on_their_list_and_go_on() {
    does("true", Thread::Helpers, "execute");
    let (_, said) = order("true", Thread::Helpers, "execute");
    assert!(!said.contains("system call"), "{said}");
}

#[test]
fn without_enforcement_every_call_is_carried_out() {
    for mode in ["log", "false"] {
        for (thread, deed) in [(Thread::Disk, "socket"), (Thread::Vcpu, "thread")] {
            does(mode, thread, deed);
        }
    }
}

/// Filters add up: what a thread of the VM may do and the main thread may not, it may not do.
#[test]
fn the_main_threads_list_has_all_that_the_threads_it_starts_need() {
    for thread in [Thread::Vcpu, Thread::Disk] {
        for call in of(thread) {
            let same = of(Thread::Main).any(|own| {
                own.number == call.number
                    && (own.is_unconditional() || format!("{own:?}") == format!("{call:?}"))
            });
            assert!(same, "{thread:?} has {call:?}");
        }
    }
}

#[test]
fn a_message_names_the_call_if_any_thread_may_make_it() {
    let text = |call| {
        let mut text = String::new();
        violation::describe(&mut text, "vcpu0", call).unwrap();
        text
    };
    assert!(
        text(41).starts_with("cloud-hypervisor: the thread vcpu0 made the system call 41 (socket")
    );
    assert!(
        text(59).contains("call 59, which a VMM that does its work does not make"),
        "{}",
        text(59)
    );
    assert!(text(59).contains("--seccomp log") && text(59).len() < 512);
}
