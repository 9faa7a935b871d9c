//! Tests of `cli.rs`.

use super::*;
use crate::config::{AckMode, ConsoleMode};

fn parse_line(line: &str) -> Result<Parsed, CliError> {
    parse(std::iter::once("cloud-hypervisor").chain(line.split_whitespace()))
}

fn run(line: &str) -> Invocation {
    match parse_line(line).unwrap_or_else(|error| panic!("{line}: {error}")) {
        Parsed::Run(invocation) => *invocation,
        Parsed::Print(text) => panic!("{line} only printed {text}"),
    }
}

fn sentence(line: &str) -> String {
    parse_line(line).expect_err(line).to_string()
}

fn printed(line: &str) -> String {
    match parse_line(line).unwrap() {
        Parsed::Print(text) => text,
        Parsed::Run(invocation) => panic!("{line} runs {invocation:?}"),
    }
}

#[test]
fn a_cloud_hypervisor_command_line_is_understood() {
    let invocation =
        run("--kernel /k --initramfs /i --cmdline console=ttyS0 --cpus boot=1 --memory size=1G \
         --disk path=/a.img,readonly=on path=/b.img --net tap=t0,mac=52:54:00:00:00:01 \
         --disk path=/c.img --rng src=/dev/random --serial file=/log --console off \
         --api-socket path=/run/ch.sock --event-monitor path=/events --log-file /vmm.log -vv \
         --seccomp log --no-shutdown");
    let vm = invocation.vm.unwrap();
    assert_eq!(vm.payload.kernel, Some("/k".into()));
    assert_eq!(vm.payload.initramfs, Some("/i".into()));
    assert_eq!(vm.payload.cmdline.as_deref(), Some("console=ttyS0"));
    assert_eq!(vm.memory.size, 1 << 30);
    let paths: Vec<_> = vm.disks().iter().map(|disk| disk.path.clone().unwrap()).collect();
    assert_eq!(paths, ["/a.img", "/b.img", "/c.img"].map(PathBuf::from));
    assert!(vm.disks()[0].readonly && !vm.disks()[1].readonly);
    assert_eq!(vm.nets()[0].tap.as_deref(), Some("t0"));
    assert_eq!(vm.rng.src, PathBuf::from("/dev/random"));
    assert_eq!((vm.serial.mode, vm.console.mode), (ConsoleMode::File, ConsoleMode::Off));
    assert_eq!(invocation.api_socket, Some(ApiSocket::Path("/run/ch.sock".into())));
    assert_eq!(invocation.event_monitor, Some(EventMonitor::Path("/events".into())));
    assert_eq!(invocation.log_file, Some("/vmm.log".into()));
    assert_eq!((invocation.verbosity, invocation.seccomp), (2, Seccomp::Log));
    assert!(invocation.no_shutdown && invocation.overrides.is_empty());
    assert_eq!((invocation.ft, vm.ft), (None, None));
}

#[test]
fn a_kernel_alone_is_a_vm_with_every_default() {
    let invocation = run("--kernel /k");
    let vm = invocation.vm.unwrap();
    assert_eq!(vm.memory.size, 512 << 20);
    assert_eq!((vm.serial.mode, vm.console.mode), (ConsoleMode::Null, ConsoleMode::Tty));
    assert_eq!((invocation.api_socket, invocation.verbosity), (None, 0));
    assert_eq!(invocation.seccomp, Seccomp::Enforce);
}

#[test]
fn an_api_socket_alone_waits_for_a_vm() {
    assert_eq!(run("--api-socket /run/ch.sock").vm, None);
    assert_eq!(run("--api-socket fd=7").api_socket, Some(ApiSocket::Fd(7)));
    for fd in ["2", "x", "-1"] {
        assert_eq!(
            sentence(&format!("--api-socket fd={fd}")),
            format!(
                "--api-socket: fd={fd} cannot be read: the number of an open descriptor above 2 \
                 is needed."
            )
        );
    }
    assert!(sentence("--api-socket path=").contains("the path of a file is needed"));
}

#[test]
fn a_primary_and_a_recording_have_their_vm() {
    let line = "--kernel /k --ft role=primary,peer=b:7000,ack=verified,arbiter=file:/s/a";
    let invocation = run(line);
    assert_eq!(invocation.ft.as_ref().unwrap().ack, AckMode::Verified);
    assert_eq!(invocation.vm.unwrap().ft, invocation.ft);
    assert!(run("--kernel /k --ft record=/log").vm.is_some());
    let needs_vm = "--ft needs a VM to protect or record: give its --kernel, or start without \
                    --ft and protect a VM that runs with ch-remote ft-enable.";
    assert_eq!(sentence("--api-socket /s --ft role=primary,peer=b:1,arbiter=none"), needs_vm);
    assert_eq!(sentence("--ft record=/log"), needs_vm);
}

#[test]
fn a_backup_says_only_what_belongs_to_its_host() {
    let invocation = run("--api-socket /path --ft role=backup,listen=0.0.0.0:7000 \
                          --net id=_net1,tap=tap3 --disk id=_disk0,path=/mnt/x.img");
    assert_eq!(invocation.vm, None);
    assert!(matches!(invocation.ft.unwrap().mode, FtMode::Backup { .. }));
    assert_eq!(invocation.overrides.disks[0].path, PathBuf::from("/mnt/x.img"));
    assert_eq!(invocation.overrides.net[0].tap, "tap3");
    assert_eq!(invocation.overrides.serial, None);
    let here = run("--ft role=backup,listen=0.0.0.0:7000 --serial file=/l --rng src=/r").overrides;
    assert_eq!(here.serial.unwrap().file, Some("/l".into()));
    assert_eq!((here.console, here.rng.unwrap().src), (None, "/r".into()));
}

#[test]
fn a_backup_may_not_bring_a_vm() {
    let backup = "--ft role=backup,listen=0.0.0.0:7000";
    for (option, value) in
        [("kernel", "/k"), ("cpus", "boot=1"), ("memory", "size=1G"), ("cmdline", "quiet")]
    {
        let said = sentence(&format!("{backup} --{option} {value}"));
        assert!(
            said.starts_with(&format!(
                "--{option} contradicts --ft: a backup gets its VM from its primary"
            )),
            "{said}"
        );
    }
    assert!(sentence(&format!("{backup} --disk path=/x")).contains("--disk: id= is missing"));
}

#[test]
fn what_a_backup_says_of_its_host_is_judged_before_a_primary_comes() {
    let backup = "--ft role=backup,listen=0.0.0.0:7000";
    for (options, expected) in [
        ("--serial socket=/s", "The serial port cannot be a socket yet"),
        ("--console pty", "The console cannot be a pseudo terminal yet"),
        ("--disk id=a,path=/x id=a,path=/y", "--disk: the device \"a\" is given twice"),
        ("--net id=n,tap=a/b", "--net id=n: \"a/b\" is not the name of an interface"),
        ("--net id=a:b,tap=t", "The device id \"a:b\" cannot be used"),
    ] {
        let said = sentence(&format!("{backup} {options}"));
        assert!(said.starts_with(expected), "{options}: {said}");
    }
}

#[test]
fn a_replay_takes_its_vm_from_the_log() {
    let invocation = run("--ft replay=/log --disk id=_disk0,path=/copy.img");
    assert_eq!((invocation.vm, invocation.overrides.disks.len()), (None, 1));
    let said = sentence("--kernel /k --ft replay=/log");
    assert!(said.starts_with("--kernel contradicts --ft:"), "{said}");
}

#[test]
fn nothing_to_do_is_said() {
    assert_eq!(
        sentence(""),
        "There is nothing to do: give a VM to run (--kernel PATH …) or a socket to wait at \
         (--api-socket PATH). --help lists the options."
    );
    assert!(sentence("--api-socket /s --disk path=/a").starts_with("The VM has nothing to boot"));
}

#[test]
fn what_is_not_there_yet_says_so() {
    for (line, name) in [
        ("--kernel /k --balloon size=1G", "balloon"),
        ("--kernel /k --watchdog", "watchdog"),
        ("--restore source_url=file:///x", "restore"),
        ("--kernel /k --fs tag=a,socket=/s tag=b,socket=/t", "fs"),
        ("--kernel /k --debug-console tty", "debug-console"),
    ] {
        assert_eq!(
            sentence(line),
            format!(
                "--{name} is one of Cloud Hypervisor's options but not there yet in this VMM; \
                 docs/COMPATIBILITY.md says what is."
            )
        );
    }
    run("--kernel /k --debug-console off,iobase=0xe9");
    assert!(sentence("--firmware /fw").starts_with("Booting a firmware (/fw) is not there yet"));
}

#[test]
fn an_unknown_option_is_named() {
    let said = sentence("--kernel /k --kernal /x");
    assert!(said.contains("unexpected argument '--kernal'"), "{said}");
    assert!(sentence("--kernel /k --seccomp maybe").contains("invalid value 'maybe'"));
    assert!(sentence("--kernel").contains("a value is required for '--kernel"));
    assert!(sentence("--kernel /k /x").contains("unexpected argument '/x'"));
}

#[test]
fn wrong_values_are_told_by_those_who_read_them() {
    assert!(sentence("--kernel /k --cpus boot=2").starts_with("2 vCPUs are asked for"));
    assert!(sentence("--kernel /k --serial tty").starts_with("The serial port and the console"));
    assert!(sentence("--kernel /k --memory 1G").starts_with("--memory: \"1G\" is not a list"));
    assert!(sentence("--kernel /k --serial screen").starts_with("--serial: mode=screen cannot"));
}

#[test]
fn treatments_can_be_undone_but_help_does_not_tempt() {
    let invocation = run("--kernel /k --debug-undo tsc-rewrite --debug-undo apic-id");
    assert_eq!(invocation.debug_undo, [DebugUndo::TscRewrite, DebugUndo::ApicId]);
    assert!(sentence("--kernel /k --debug-undo everything").contains("invalid value"));
    let help = printed("--help");
    assert!(!help.contains("debug-undo") && !help.contains("balloon"), "{help}");
    for option in ["--kernel", "--disk", "--ft", "role=primary", "--api-socket", "Protection"] {
        assert!(help.contains(option), "{option}: {help}");
    }
}

#[test]
fn the_version_is_printed_as_cloud_hypervisor_prints_it() {
    assert_eq!(printed("--version"), format!("cloud-hypervisor v{}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn the_grammar_is_consistent() {
    command().debug_assert();
    crate::api::remote::command().debug_assert();
}

proptest::proptest! {
    #[test]
    fn no_command_line_panics(words in proptest::collection::vec(
        "(--(kernel|disk|net|ft|cpus|memory|serial|console|rng|api-socket|balloon|debug-undo)|-v|\
          [a-z0-9=,:/\\[\\]\"]{0,16})", 0..8,
    )) {
        let _ = parse(std::iter::once("cloud-hypervisor".to_owned()).chain(words));
    }
}
