//! The binary `ch-remote` against our server: its commands, what it prints, how it fails.

mod common;

use std::io::Write;
use std::process::{Command, Output, Stdio};

use common::StubVmm;
use vmm::api::{FtInfo, FtState, VmInfo, VmState};

fn command(stub: &StubVmm, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ch-remote"));
    command.arg("--api-socket").arg(stub.socket()).args(arguments);
    command
}

fn run(stub: &StubVmm, arguments: &[&str]) -> Output {
    command(stub, arguments).output().unwrap()
}

/// What a command prints if it succeeds.
fn printed(stub: &StubVmm, arguments: &[&str]) -> String {
    let output = run(stub, arguments);
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// What a command says if it fails.
fn failure(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(output.stdout.is_empty(), "{output:?}");
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn create(stub: &StubVmm, config: &str) -> Output {
    let mut child = command(stub, &["create"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(config.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

fn state(stub: &StubVmm) -> VmState {
    serde_json::from_str::<VmInfo>(&printed(stub, &["info"])).unwrap().state
}

#[test]
fn the_life_of_a_vm_from_the_command_line() {
    let stub = StubVmm::start();
    assert!(printed(&stub, &["ping"]).contains("\"build_version\": \"v"));
    assert!(create(&stub, r#"{"payload":{"kernel":"/k"}}"#).status.success());
    for (name, expected) in [
        ("boot", VmState::Running),
        ("pause", VmState::Paused),
        ("resume", VmState::Running),
        ("reboot", VmState::Running),
        ("power-button", VmState::Shutdown),
        ("boot", VmState::Running),
        ("shutdown", VmState::Shutdown),
    ] {
        assert_eq!(printed(&stub, &[name]), "");
        assert_eq!(state(&stub), expected, "after {name}");
    }
    assert!(printed(&stub, &["counters"]).contains("\"rx_bytes\": 7"));
    printed(&stub, &["delete"]);
    printed(&stub, &["shutdown-vmm"]);
}

#[test]
fn a_configuration_may_come_from_a_file() {
    let stub = StubVmm::start();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&file, r#"{"payload":{"kernel":"/k"}}"#).unwrap();
    printed(&stub, &["create", file.path().to_str().unwrap()]);
    assert_eq!(state(&stub), VmState::Created);
    assert_eq!(
        failure(&run(&stub, &["create", "/missing.json"])),
        "ch-remote: The VM configuration /missing.json cannot be read: No such file or directory \
         (os error 2).\n"
    );
}

#[test]
fn a_vm_is_protected_looked_at_and_released() {
    let stub = StubVmm::start();
    create(&stub, r#"{"payload":{"kernel":"/k"}}"#);
    printed(&stub, &["ft-enable", "role=primary,peer=b:7000,arbiter=none,ack=verified"]);
    let text = printed(&stub, &["ft-info"]);
    let info: FtInfo = serde_json::from_str(&text).unwrap();
    assert_eq!((info.state, info.peer.as_deref()), (FtState::Protected, Some("b:7000")));
    assert!(text.contains("\"ack\": \"verified\"") && text.contains("A backup joined."), "{text}");
    printed(&stub, &["ft-disable"]);
    assert_eq!(failure(&run(&stub, &["ft-failover"])), "ch-remote: The VM is not protected.\n");
}

#[test]
fn a_wrong_protection_never_reaches_the_vmm() {
    let stub = StubVmm::start();
    assert_eq!(
        failure(&run(&stub, &["ft-enable", "role=primary,peer=b:7000"])),
        "ch-remote: --ft: arbiter= is missing. Say arbiter=file:PATH with a path on storage both \
         hosts share, or arbiter=etcd:https://HOST:PORT, so that never two VMs live. arbiter=none \
         does without, at your own risk.\n"
    );
}

#[test]
fn the_vmms_own_sentence_is_what_the_user_reads() {
    let stub = StubVmm::start();
    assert_eq!(failure(&run(&stub, &["boot"])), "ch-remote: No VM has been created.\n");
    let said = failure(&create(&stub, "{"));
    assert!(
        said.starts_with("ch-remote: The VM configuration is not valid JSON for it: EOF"),
        "{said}"
    );
}

#[test]
fn no_vmm_no_command_no_socket() {
    let stub = StubVmm::start();
    let nowhere = Command::new(env!("CARGO_BIN_EXE_ch-remote"))
        .args(["--api-socket", "/nowhere/api", "ping"])
        .output()
        .unwrap();
    assert_eq!(
        failure(&nowhere),
        "ch-remote: No VMM can be reached at /nowhere/api: No such file or directory (os error \
         2). Is it running with --api-socket?\n"
    );
    assert!(failure(&run(&stub, &["dance"])).contains("unrecognized subcommand 'dance'"));
    assert_eq!(
        failure(&run(&stub, &["resize", "--memory", "2G"])),
        "ch-remote: resize is one of Cloud Hypervisor's commands but not there yet in this VMM.\n"
    );
    let bare = Command::new(env!("CARGO_BIN_EXE_ch-remote")).arg("ping").output().unwrap();
    assert!(failure(&bare).contains("--api-socket"));
}

#[test]
fn help_and_version_are_no_failures() {
    let stub = StubVmm::start();
    let help = printed(&stub, &["--help"]);
    assert!(help.contains("ft-failover") && help.contains("power-button"), "{help}");
    assert!(!help.contains("add-disk"), "{help}");
    assert_eq!(
        printed(&stub, &["--version"]),
        format!("ch-remote v{}\n", env!("CARGO_PKG_VERSION"))
    );
}

#[test]
fn a_socket_of_something_else_is_recognised() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("other");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let other = std::thread::spawn(move || {
        for answer in ["220 mail.example ESMTP\r\n", ""] {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(answer.as_bytes()).unwrap();
        }
    });
    let ask = || {
        Command::new(env!("CARGO_BIN_EXE_ch-remote"))
            .arg("--api-socket")
            .arg(&path)
            .arg("ping")
            .output()
            .unwrap()
    };
    assert_eq!(
        failure(&ask()),
        "ch-remote: The answer is not HTTP/1.1, so this is not the socket of a VMM's API.\n"
    );
    let said = failure(&ask());
    assert!(said.starts_with("ch-remote: The connection to the VMM broke"), "{said}");
    other.join().unwrap();
}
