//! `scripts/runner`, as a stranger uses it: right and wrong, to its end and killed on the way.
//!
//! Where it makes no difference the hosts are namespaces, which cost no boot; they are called direct hosts here, even if
//! this machine has no KVM to offer them.

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use tests::runner::{Cache, Network};

const DIRECT: &str = "direct";
const VIRTUAL: &str = "virtual";
/// What a run inherits and hands on to all that it starts, so that nothing of it can hide.
const MARK: &str = "FT_RUNNER_TEST_MARK";
/// An emulated host boots within this time, and everything that is left of a run is gone after it.
const PATIENCE: Duration = Duration::from_secs(120);

/// One run of the runner.
struct Run {
    mark: String,
    command: Command,
    pid: u32,
}

impl Run {
    fn new(kind: &str, words: &[&str]) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let mark = format!("{}-{count}-", std::process::id());
        let mut command = Command::new(env!("CARGO_BIN_EXE_runner"));
        command.args(words).env("FT_RUNNER", kind).env(MARK, &mark);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Self { mark, command, pid: 0 }
    }

    /// Lets it come to its end, and sees that nothing is left.
    fn output(mut self) -> Output {
        let output = self.start().wait_with_output().unwrap();
        self.must_have_left_nothing();
        output
    }

    fn start(&mut self) -> Child {
        let child = self.command.spawn().unwrap();
        self.pid = child.id();
        child
    }

    /// No process, and no folder of the run. (Its namespaces have no name: they end with the last process in them.)
    fn must_have_left_nothing(&self) {
        let start = Instant::now();
        loop {
            let left = processes(&self.mark);
            let folders = folders(self.pid);
            if left.is_empty() && folders.is_empty() {
                return;
            }
            assert!(start.elapsed() < PATIENCE, "there are left: {left:?} {folders:?}");
            sleep(Duration::from_millis(20));
        }
    }
}

/// The command lines of the processes that carry this mark.
fn processes(mark: &str) -> Vec<String> {
    let wanted = format!("{MARK}={mark}\0");
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap() {
        let folder = entry.unwrap().path();
        let environment = fs::read(folder.join("environ")).unwrap_or_default();
        if environment.windows(wanted.len()).any(|window| window == wanted.as_bytes()) {
            let line = fs::read(folder.join("cmdline")).unwrap_or_default();
            found.push(String::from_utf8_lossy(&line).replace('\0', " "));
        }
    }
    found
}

/// The folders of this runner's runs.
fn folders(pid: u32) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(Cache::open().unwrap().folder().join("runs")) else {
        return Vec::new();
    };
    let of_run = |path: &PathBuf| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&format!("{pid}-")))
    };
    entries.map(|entry| entry.unwrap().path()).filter(of_run).collect()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The status with which a direct run of this line of shell ends.
fn status_of(line: &str) -> Option<i32> {
    Run::new(DIRECT, &["--", "sh", "-c", line]).output().status.code()
}

fn signal(child: &Child, signal: i32) {
    let pid = i32::try_from(child.id()).unwrap();
    // SAFETY: kill(2) takes plain numbers; the child is not reaped yet.
    assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
}

/// Waits until the run's process says this on its standard output.
fn wait_to_hear(child: &mut Child, word: &str) {
    let mut heard = String::new();
    let mut piece = [0; 64];
    while !heard.contains(word) {
        let length = child.stdout.as_mut().unwrap().read(&mut piece).unwrap();
        assert!(length > 0, "it ended and had said {heard:?}");
        heard.push_str(&text(&piece[..length]));
    }
}

#[test]
fn bad_input_gets_a_sentence_and_no_host() {
    let cases: &[(&[&str], &str)] = &[
        (&["--hosts", "0", "--", "true"], "1..=9"),
        (&["--hosts", "10", "--", "true"], "1..=9"),
        (&["--hosts", "two", "--", "true"], "--hosts"),
        (&["--memory", "1", "--", "true"], "256"),
        (&["--bogus", "--", "true"], "--bogus"),
        (&[], "COMMAND"),
        (&["--"], "COMMAND"),
        (&["true"], "true"),
        (&["--with", "/does/not/exist", "--", "true"], "cannot find /does/not/exist"),
        (&["--with", "", "--", "true"], "--with"),
        (&["--with", "/tmp", "--", "true"], "/tmp of their own"),
    ];
    for (words, sentence) in cases {
        let output = Run::new(DIRECT, words).output();
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{words:?}: {said}");
        assert!(said.contains(sentence) && !said.contains("panicked"), "{words:?}: {said}");
    }
    let output = Run::new("odd", &["--", "true"]).output();
    assert!(text(&output.stderr).contains("FT_RUNNER is 'odd'"), "{output:?}");
}

#[test]
fn a_command_ends_as_it_would_here() {
    assert_eq!(status_of("exit 0"), Some(0));
    assert_eq!(status_of("exit 77"), Some(77));
    assert_eq!(status_of("kill -9 $$"), Some(137));
    let output = Run::new(DIRECT, &["--", "no-such-command"]).output();
    assert_eq!(output.status.code(), Some(127));
    assert!(text(&output.stderr).contains("cannot run no-such-command"), "{output:?}");
    let output = Run::new(DIRECT, &["--", "/etc/passwd"]).output();
    assert_eq!(output.status.code(), Some(126));
    // A built program is found by its name, and hosts are told apart.
    let line = [
        "--hosts",
        "2",
        "--each",
        "--",
        "sh",
        "-c",
        "ch-remote --help >&2; echo at $FT_HOST; exit $FT_HOST",
    ];
    let output = Run::new(DIRECT, &line).output();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let said = text(&output.stdout);
    assert!(said.contains("at 0") && said.contains("at 1"), "{output:?}");
}

#[test]
fn what_a_command_starts_in_the_background_ends_with_the_run() {
    assert_eq!(status_of("sleep 1000 & setsid sleep 1000 & exit 3"), Some(3));
    assert_eq!(status_of("yes & exit 4"), Some(4));
}

#[test]
fn input_and_output_are_passed_through() {
    let mut run = Run::new(DIRECT, &["--", "sh", "-c", "cat; echo end >&2"]);
    let mut child = {
        run.command.stdin(Stdio::piped());
        run.start()
    };
    let mut stdin = child.stdin.take().unwrap();
    let sent: Vec<u8> = (0..5_000_000_u32).map(|index| (index % 251) as u8).collect();
    let all = sent.clone();
    let feeder = std::thread::spawn(move || stdin.write_all(&all));
    let output = child.wait_with_output().unwrap();
    feeder.join().unwrap().unwrap();
    assert!(output.stdout == sent, "{} bytes came back", output.stdout.len());
    assert_eq!((text(&output.stderr).as_str(), output.status.code()), ("end\n", Some(0)));
    run.must_have_left_nothing();
    // Input that nobody takes keeps nobody.
    let mut run = Run::new(DIRECT, &["--", "true"]);
    let mut child = {
        run.command.stdin(Stdio::piped());
        run.start()
    };
    assert!(child.wait().unwrap().success());
    run.must_have_left_nothing();
}

#[test]
fn output_that_nobody_takes_is_not_piled_up_and_its_end_is_the_end() {
    let mut run = Run::new(DIRECT, &["--", "yes"]);
    let mut child = run.start();
    wait_to_hear(&mut child, "y\n");
    sleep(Duration::from_secs(1));
    let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    let resident_kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!(resident_kib < 64 << 10, "{line}");
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), text(&output.stderr).as_str()), (Some(141), ""));
    run.must_have_left_nothing();
}

#[test]
fn every_signal_ends_a_run_and_two_runs_are_not_in_each_others_way() {
    let mut other = Run::new(DIRECT, &["--", "sh", "-c", "echo up; sleep 1000"]);
    let mut bystander = other.start();
    wait_to_hear(&mut bystander, "up");
    for (number, status) in [
        (libc::SIGINT, Some(130)),
        (libc::SIGTERM, Some(143)),
        (libc::SIGHUP, Some(129)),
        (libc::SIGKILL, None),
    ] {
        let mut run = Run::new(DIRECT, &["--", "sh", "-c", "sleep 1000 & echo up; sleep 1000"]);
        let mut child = run.start();
        wait_to_hear(&mut child, "up");
        signal(&child, number);
        assert_eq!(child.wait().unwrap().code(), status, "signal {number}");
        run.must_have_left_nothing();
        assert!(bystander.try_wait().unwrap().is_none());
    }
    signal(&bystander, libc::SIGTERM);
    assert_eq!(bystander.wait().unwrap().code(), Some(143));
    other.must_have_left_nothing();
}

#[test]
fn only_root_can_and_whoever_else_is_told() {
    let mut run = Run::new(DIRECT, &["--", "true"]);
    let runner = run.command.get_program().to_owned();
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]).arg(runner);
    command.args(["--", "true"]).env("FT_RUNNER", DIRECT).env(MARK, &run.mark);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    run.command = command;
    let output = run.output();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(text(&output.stderr).contains("only root can"), "{output:?}");
}

/// A cache of its own that has all packages, and no room for a run.
fn full_cache(folder: &Path) -> PathBuf {
    let cache = folder.join("cache");
    fs::create_dir_all(&cache).unwrap();
    for name in ["qemu", "kernel", "busybox"] {
        let package = Cache::open().unwrap().folder().join(name);
        std::os::unix::fs::symlink(package, cache.join(name)).unwrap();
    }
    cache
}

#[test]
fn a_cache_that_cannot_be_written_or_is_full_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let mut run = Run::new(VIRTUAL, &["--", "true"]);
    run.command.env("FT_CACHE", "/proc/cache");
    let output = run.output();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(text(&output.stderr).contains("cannot make the cache /proc/cache"), "{output:?}");
    // In a mount namespace of its own, a few KiB for runs.
    let cache = full_cache(folder.path());
    fs::create_dir(cache.join("runs")).unwrap();
    let line = "mount -t tmpfs -o size=64k tmpfs \"$FT_CACHE/runs\" && exec \"$0\" -- true";
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", line, env!("CARGO_BIN_EXE_runner")]);
    command.env("FT_CACHE", &cache).env("FT_RUNNER", VIRTUAL);
    let output = command.output().unwrap();
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("cannot write") && said.contains("No space left"), "{said}");
}

#[test]
fn an_emulated_host_runs_a_command_and_is_gone_however_the_run_ends() {
    let folder = tempfile::Builder::new().tempdir_in("/tmp").unwrap();
    let (file, link) = (folder.path().join("a file"), folder.path().join("link"));
    fs::write(&file, "shown\n").unwrap();
    std::os::unix::fs::symlink(&file, &link).unwrap();
    let (file, link) = (file.display().to_string(), link.display().to_string());
    let line = format!(
        "test -c /dev/kvm && cat '{file}' '{link}' && cat && head -c 3000000 /dev/zero && exit 9"
    );
    // What is shown twice, or within what is shown, is shown as it is.
    let within = folder.path().display().to_string();
    let words = ["--with", &file, "--with", &link, "--with", &within, "--with", &file];
    let mut run = Run::new(VIRTUAL, &[&words[..], &["--", "sh", "-c", &line]].concat());
    let mut child = {
        run.command.stdin(Stdio::piped());
        run.start()
    };
    child.stdin.take().unwrap().write_all(b"said\n").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(9), "{}", text(&output.stderr));
    let shown = b"shown\nshown\nsaid\n";
    assert!(output.stdout.starts_with(shown), "{}", text(&output.stdout[..100]));
    assert_eq!(output.stdout.len(), shown.len() + 3_000_000);
    assert_eq!(fs::read_to_string(&file).unwrap(), "shown\n");
    run.must_have_left_nothing();

    for (number, status, running) in [
        (libc::SIGINT, Some(130), false),
        (libc::SIGKILL, None, false),
        (libc::SIGTERM, Some(143), true),
        (libc::SIGKILL, None, true),
    ] {
        let mut run = Run::new(VIRTUAL, &["--hosts", "2", "--", "sh", "-c", "echo up; sleep 1000"]);
        let mut child = run.start();
        let start = Instant::now();
        if running {
            wait_to_hear(&mut child, "up");
        }
        while !processes(&run.mark).iter().any(|line| line.contains("-cpu EPYC")) {
            assert!(start.elapsed() < PATIENCE, "no host was started");
            sleep(Duration::from_millis(10));
        }
        signal(&child, number);
        assert_eq!(child.wait().unwrap().code(), status, "signal {number}");
        run.must_have_left_nothing();
    }
}

#[test]
fn a_host_that_cannot_start_says_why() {
    let output = Run::new(VIRTUAL, &["--memory", "400000000", "--", "true"]).output();
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("did not come up") && said.contains("memory"), "{said}");
}

#[test]
fn nothing_is_mounted_and_no_link_is_made_outside() {
    let state = || {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let links = fs::read_dir("/sys/class/net").unwrap();
        (mounts, links.map(|link| link.unwrap().file_name()).collect::<Vec<_>>())
    };
    let before = state();
    assert_eq!(status_of("exit 5"), Some(5));
    let mut run = Run::new(DIRECT, &["--hosts", "3", "--", "sh", "-c", "echo up; sleep 1000"]);
    let mut child = run.start();
    wait_to_hear(&mut child, "up");
    assert_eq!(state(), before);
    signal(&child, libc::SIGKILL);
    child.wait().unwrap();
    run.must_have_left_nothing();
    assert_eq!(state(), before);
    drop(Network::create().unwrap());
    assert_eq!(state(), before);
}
