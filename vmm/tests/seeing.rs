//! `vm.ft-metrics` and `ch-remote ft-watch` against our server: what scrapers, scripts and people
//! see of a protected VM, and of one that is gone.

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::StubVmm;

fn ch_remote(socket: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ch-remote"));
    command.arg("--api-socket").arg(socket).args(arguments);
    command
}

fn run(socket: &Path, arguments: &[&str]) -> Output {
    ch_remote(socket, arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A VMM whose VM is protected.
fn protected() -> StubVmm {
    let stub = StubVmm::start();
    let mut create = ch_remote(&stub.socket(), &["create"]).stdin(Stdio::piped()).spawn().unwrap();
    create.stdin.take().unwrap().write_all(br#"{"payload":{"kernel":"/k"}}"#).unwrap();
    assert!(create.wait().unwrap().success());
    let enabled = run(&stub.socket(), &["ft-enable", "role=primary,peer=b:7000,arbiter=none"]);
    assert!(enabled.status.success(), "{enabled:?}");
    stub
}

/// A child that is gone when the test ends, however it ends.
struct Kept(Child);

impl Drop for Kept {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_scraper_gets_the_text_and_the_type_that_it_asks_for() {
    let stub = protected();
    let mut stream = UnixStream::connect(stub.socket()).unwrap();
    let request = "GET /api/v1/vm.ft-metrics HTTP/1.1\r\nHost: x\r\n\
                   Accept: text/plain;version=0.0.4;q=0.5,*/*;q=0.1\r\nConnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    assert!(head.contains("\r\nContent-Type: text/plain; version=0.0.4\r\n"), "{head}");
    assert!(head.contains(&format!("\r\nContent-Length: {}", body.len())), "{head}");
    assert!(body.contains("\nvmm_ft_state{state=\"protected\"} 1\n"), "{body}");
    let printed = run(&stub.socket(), &["ft-metrics"]);
    assert!(printed.status.success());
    assert_eq!(text(&printed.stdout), body);
}

#[test]
fn one_look_at_one_side_and_at_two() {
    let (stub, other) = (protected(), StubVmm::start());
    let one = run(&stub.socket(), &["ft-watch", "--once"]);
    assert!(one.status.success(), "{one:?}");
    let shown = text(&one.stdout);
    assert!(shown.starts_with("PROTECTED. Either host may die.\n"), "{shown}");
    assert!(shown.contains("\n00:00:01"), "{shown}");
    assert!(shown.ends_with(" A  A backup joined.\n"), "{shown}");
    let two = run(&stub.socket(), &["ft-watch", "--once", other.socket().to_str().unwrap()]);
    let shown = text(&two.stdout);
    let state = shown.lines().find(|line| line.starts_with("state")).unwrap();
    assert_eq!(
        state.split_whitespace().collect::<Vec<_>>(),
        ["state", "primary", "protected", "off"]
    );
}

#[test]
fn a_look_at_a_vmm_that_is_gone_fails_in_a_sentence() {
    let stub = protected();
    let nowhere = "/nowhere/api";
    let output = run(&stub.socket(), &["ft-watch", "--once", nowhere]);
    assert_eq!(output.status.code(), Some(1));
    let sentence = "No VMM can be reached at /nowhere/api: No such file or directory (os error 2). \
                    Is it running with --api-socket?";
    assert_eq!(text(&output.stderr), format!("ch-remote: {sentence}\n"));
    let shown = text(&output.stdout).replace('\n', " ");
    assert!(shown.contains("PROTECTED") && shown.contains("gone for 0 s"), "{shown}");
}

#[test]
fn a_vmm_that_is_stopped_is_not_waited_for() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("api");
    let _listener = UnixListener::bind(&socket).unwrap();
    let begun = Instant::now();
    let output = run(&socket, &["ft-watch", "--once"]);
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    let said = text(&output.stderr);
    assert!(said.ends_with(" does not answer. Is it stopped?\n"), "{said}");
}

#[test]
fn without_a_terminal_each_answer_is_a_line_and_a_vmm_may_go() {
    let stub = protected();
    let mut watch = ch_remote(&stub.socket(), &["ft-watch", "--interval-ms", "100"]);
    let mut watch = Kept(watch.stdout(Stdio::piped()).spawn().unwrap());
    let mut lines = BufReader::new(watch.0.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert_eq!(lines.next().unwrap(), "A 00:00:01 A backup joined.");
    for _ in 0..3 {
        let line = lines.next().unwrap();
        assert!(line.starts_with("A primary protected generation 1 moment 0 lag 0 ms"), "{line}");
    }
    drop(stub);
    let gone = lines.find(|line| !line.starts_with("A primary")).unwrap();
    assert!(gone.starts_with("A gone: No VMM can be reached at "), "{gone}");
    assert!(watch.0.try_wait().unwrap().is_none(), "it goes on trying");
}

/// What a terminal is sent from the first to the last by `ch-remote ft-watch` when `keys` are
/// pressed after the first view, and whether it ended well.
fn on_a_terminal(socket: &Path, keys: &[u8]) -> (String, bool) {
    let words = format!(
        "stty rows 24 cols 80; '{}' --api-socket '{}' ft-watch",
        env!("CARGO_BIN_EXE_ch-remote"),
        socket.display()
    );
    let mut script = Command::new("script");
    script.args(["-qfec", &words, "/dev/null"]).env("TERM", "xterm");
    let mut child = Kept(script.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap());
    let mut out = child.0.stdout.take().unwrap();
    let mut shown = Vec::new();
    let mut buffer = [0; 4096];
    while !text(&shown).contains("PROTECTED") {
        let count = out.read(&mut buffer).unwrap();
        assert!(count > 0, "it ended by itself: {}", text(&shown));
        shown.extend_from_slice(&buffer[..count]);
    }
    let mut stdin = child.0.stdin.take().unwrap();
    stdin.write_all(keys).unwrap();
    out.read_to_end(&mut shown).unwrap();
    (text(&shown), child.0.wait().unwrap().success())
}

#[test]
fn on_a_terminal_it_draws_in_place_and_gives_the_terminal_back() {
    let stub = protected();
    for keys in [&b"q"[..], b"\x1b", b"xyzq", b"\x03"] {
        let (shown, well) = on_a_terminal(&stub.socket(), keys);
        assert!(well, "{keys:?}: {shown:?}");
        let enter = shown.find("\x1b[?1049h").unwrap();
        let leave = shown.rfind("\x1b[?1049l").unwrap();
        let cursor = shown.rfind("\x1b[?25h").unwrap();
        assert!(enter < leave && leave < cursor, "{shown:?}");
        assert!(shown.contains("PROTECTED. Either host may die."), "{shown:?}");
    }
}
