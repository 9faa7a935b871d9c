//! What the programs do with command lines and files that make no sense: the real binaries, on
//! whatever machine this is. Nothing here gets as far as to need `/dev/kvm`.

// The loader's own little kernels, to be spoilt.
#[allow(dead_code)]
#[path = "../src/loader/testing.rs"]
mod kernels;
#[path = "common/program.rs"]
mod program;

use std::net::{TcpListener, UdpSocket};
use std::os::unix::net::UnixListener;
use std::process::Stdio;

use ft::prologue::LogStart;
use ft::{Assumptions, DigestMode, Prologue, Settings};
use kernels::{ElfBuilder, Packing, bzimage, sample_code, vmlinux};
use program::{Place, Program, finish, sentence};
use vmm::loader::{GuestMemory, MemoryKind, MemoryMapEntry};
use vmm::logfile::LogWriter;

use Program::{ChRemote, FtLog, Vmm};

/// Words that are separated by spaces.
fn words(line: &str) -> Vec<&str> {
    line.split_whitespace().collect()
}

/// Each command line is refused, and the sentence holds what stands behind it.
fn all_refused(place: &Place, program: Program, cases: &[(&str, &str)]) {
    for (line, part) in cases {
        place.refused(program, &words(line), &[part]);
    }
}

#[test]
fn unknown_and_contradictory_options_are_named() {
    let place = Place::new();
    place.file("k", b"x");
    let long = format!("--kernel k --cmdline {}", "x".repeat(3000));
    all_refused(
        &place,
        Vmm,
        &[
            ("", "There is nothing to do"),
            ("--kernel k --kernal k", "a similar argument exists: '--kernel'"),
            ("--kernel", "a value is required for '--kernel <PATH>'"),
            ("--kernel k --kernel k", "'--kernel <PATH>' cannot be used multiple times"),
            ("--kernel k k2", "unexpected argument 'k2'"),
            ("--kernel k --balloon size=1G", "--balloon is one of Cloud Hypervisor's options"),
            ("--kernel k --memory size=0", "A memory size of 0 bytes cannot be used"),
            ("--kernel k --memory size=1G,size=2G", "size= is given twice"),
            ("--kernel k --memory size=99999G", "from 32M to 512G"),
            ("--kernel k --memory size=1T", "a size in bytes such as 512M or 1G is needed"),
            ("--kernel k --cpus boot=4", "one vCPU only"),
            ("--kernel k --disk path=a,wether=1", "there is no key \"wether\""),
            ("--kernel k --disk readonly=on", "disks[0] has no path"),
            ("--kernel k --disk path=a path=a", "Two disks use the image a"),
            ("--kernel k --disk path=a,id=x path=b,id=x", "Two devices have the id \"x\""),
            ("--kernel k --net tap=t tap=t", "Two network devices use the tap t"),
            ("--kernel k --net tap=a-name-far-too-long", "is not the name of an interface"),
            ("--kernel k --net mac=52:54", "a MAC address such as"),
            ("--kernel k --net mac=01:00:5e:00:00:01", "no address of a single network card"),
            ("--kernel k --net mac=02:00:00:00:00:01 mac=02:00:00:00:00:01", "have the MAC"),
            ("--kernel k --serial socket=s", "The serial port cannot be a socket yet"),
            ("--kernel k --console pty", "The console cannot be a pseudo terminal yet"),
            ("--kernel k --serial tty", "cannot both be the terminal"),
            (&long, "The kernel command line has 3000 bytes"),
        ],
    );
}

#[test]
fn contradictory_fields_of_ft_are_named() {
    let place = Place::new();
    place.file("k", b"x");
    all_refused(
        &place,
        Vmm,
        &[
            ("--kernel k --ft peer=b:1", "role= is missing"),
            ("--kernel k --ft role=boss", "primary or backup is needed"),
            ("--kernel k --ft role=primary,arbiter=none", "peer= is missing"),
            ("--kernel k --ft role=primary,peer=b:1", "arbiter= is missing"),
            ("--kernel k --ft role=primary,peer=b,arbiter=none", "HOST:PORT"),
            ("--kernel k --ft role=primary,peer=b:1,arbiter=file:rel", "is not absolute"),
            ("--kernel k --ft role=primary,peer=b:1,arbiter=etcd:x", "etcd:https://HOST:PORT"),
            (
                "--kernel k --ft role=primary,peer=b:1,arbiter=etcd:https://e:1",
                "arbiter_ca= is miss",
            ),
            (
                "--kernel k --ft role=primary,peer=b:1,arbiter=file:/a,arbiter_ca=/c",
                "arbiter_ca= belongs to an arbiter in etcd",
            ),
            ("--kernel k --ft role=primary,peer=b:1,arbiter=none,x=1", "there is no key \"x\""),
            ("--kernel k --ft role=primary,role=backup", "role= is given twice"),
            ("--kernel k --ft record=a,replay=b", "contradict each other"),
            ("--kernel k --ft record=a,role=primary", "contradict each other"),
            ("--kernel k --ft record=a,ack=verified", "ack= belongs to role=primary"),
            (
                "--kernel k --ft role=primary,peer=b:1,arbiter=none,timeout_ms=9,heartbeat_ms=9",
                "timeout_ms=9 is less than four times heartbeat_ms=9",
            ),
            ("--ft role=primary,peer=b:1,arbiter=none", "--ft needs a VM to protect or record"),
            ("--ft role=backup", "listen= is missing"),
            ("--ft role=backup,peer=b:1", "role=backup and peer= contradict each other"),
            ("--ft role=backup,listen=7000", "ADDRESS:PORT"),
            ("--ft role=backup,listen=0.0.0.0:1,timeout_ms=9", "timeout_ms= belongs to"),
            ("--ft role=backup,listen=0.0.0.0:1 --kernel k", "--kernel contradicts --ft"),
            ("--ft role=backup,listen=0.0.0.0:1 --serial socket=s", "cannot be a socket yet"),
            ("--ft role=backup,listen=0.0.0.0:1 --disk path=a", "--disk: id= is missing"),
            ("--ft replay=log --kernel k", "--kernel contradicts --ft"),
        ],
    );
}

#[test]
fn what_is_no_kernel_is_told_why() {
    let place = Place::new();
    place.file("empty", b"").file("script", b"#!/bin/sh\n").folder("folder");
    let code = sample_code(5000);
    place.file("half-elf", &vmlinux(&code)[..2000]);
    let unlike = |change: fn(&mut ElfBuilder<'_>)| {
        let mut builder = ElfBuilder::new(&code);
        change(&mut builder);
        builder.build()
    };
    place.file("no-pvh", &unlike(|elf| elf.pvh_note = false));
    place.file("no-sections", &unlike(|elf| elf.sections = false));
    place.file("low", &unlike(|elf| (elf.address, elf.entry) = (0x1000, 0x1000)));
    place.file("huge", &unlike(|elf| elf.bss_bytes = 1 << 40));
    let mut arm = vmlinux(&code);
    arm[18] = 183;
    place.file("arm", &arm);
    all_refused(
        &place,
        Vmm,
        &[
            ("--kernel missing", "The kernel 'missing' cannot be read: No such file"),
            ("--kernel empty", "The kernel 'empty' is empty"),
            ("--kernel folder", "The kernel 'folder' is not a regular file"),
            ("--kernel /dev/zero", "The kernel '/dev/zero' is not a regular file"),
            ("--kernel script", "neither an ELF 'vmlinux' nor a 'bzImage'"),
            ("--kernel half-elf", "it is truncated"),
            ("--kernel no-pvh", "it has no PVH entry point: build it with CONFIG_PVH=y"),
            ("--kernel no-sections --ft record=run.log", "it has no section headers"),
            ("--kernel no-sections --ft role=primary,peer=h:1,arbiter=none,mode=replay", "section"),
            ("--kernel low", "lies below 1 MiB"),
            ("--kernel huge", "Give the virtual machine more memory"),
            ("--kernel arm", "it is not for this machine"),
        ],
    );
}

#[test]
fn a_compressed_kernel_that_was_cut_or_spoilt_is_told_apart() {
    let place = Place::new();
    for packing in Packing::COMPRESSED {
        let whole = bzimage(&vmlinux(&sample_code(100_000)), packing);
        for length in [0x200, 0x240, whole.len() / 2, whole.len() - 1] {
            place.file("k", &whole[..length]);
            let said = place.refused(Vmm, &["--kernel", "k"], &["The kernel 'k' cannot be loaded"]);
            assert!(
                said.contains("truncated") || said.contains("neither an ELF"),
                "{packing:?} {length}: {said}"
            );
        }
        // Right behind the payload's magic. What LZ4 has further behind is under no checksum.
        let mut spoilt = whole.clone();
        let payload = 5 * 512 + 33;
        spoilt[payload + 6..payload + 16].fill(0xff);
        place.file("k", &spoilt);
        let said = place.refused(Vmm, &["--kernel", "k"], &["The kernel 'k' cannot be loaded"]);
        assert!(said.contains("payload is damaged"), "{packing:?}: {said}");
    }
}

#[test]
fn an_initramfs_must_be_a_file_that_fits() {
    let place = Place::new();
    place.file("k", &vmlinux(&sample_code(5000))).image("large", 40 << 20).file("empty", b"");
    place.folder("folder");
    all_refused(
        &place,
        Vmm,
        &[
            ("--kernel k --initramfs missing", "The initramfs 'missing' cannot be read"),
            ("--kernel k --initramfs empty", "The initramfs 'empty' is empty"),
            ("--kernel k --initramfs folder", "The initramfs 'folder' is not a regular file"),
            ("--kernel k --memory size=32M --initramfs large", "Give the virtual machine more"),
        ],
    );
}

#[test]
fn disk_images_must_be_disks() {
    let place = Place::new();
    place.file("k", b"x").file("empty", b"").image("odd", 1000).image("whole", 1024);
    place.folder("folder");
    std::os::unix::fs::symlink("whole", place.path("same")).unwrap();
    all_refused(
        &place,
        Vmm,
        &[
            ("--kernel k --disk path=missing", "can't open the disk image missing"),
            ("--kernel k --disk path=empty", "a disk needs at least one sector"),
            ("--kernel k --disk path=odd", "has 1000 bytes, which is no whole number of sectors"),
            ("--kernel k --disk path=folder", "the disk image folder"),
            ("--kernel k --disk path=folder,readonly=on", "folder can't be a disk"),
            ("--kernel k --disk path=/dev/null", "/dev/null can't be a disk"),
            ("--kernel k --disk path=whole path=same", "whole and same are the same disk image"),
        ],
    );
}

#[test]
fn places_to_write_to_must_be_there_and_free() {
    let place = Place::new();
    place.file("k", b"x").file("file", b"x").folder("folder");
    let _other = UnixListener::bind(place.path("live")).unwrap();
    drop(UnixListener::bind(place.path("dead")).unwrap());
    all_refused(
        &place,
        Vmm,
        &[
            ("--api-socket nowhere/s", "The API socket nowhere/s cannot be created: No such file"),
            ("--api-socket file", "The API socket file exists already and is not a socket"),
            ("--api-socket folder", "The API socket folder exists already and is not a socket"),
            ("--api-socket live", "The API socket live is in use by another process"),
            ("--api-socket fd=99", "--api-socket fd=99: this process was started without"),
            ("--kernel k --log-file nowhere/l", "The log file (--log-file) cannot be opened"),
            ("--kernel k --log-file folder", "The log file (--log-file) cannot be opened"),
            ("--kernel k --event-monitor nowhere/e", "The event monitor cannot be opened"),
            ("--kernel k --event-monitor fd=99", "--event-monitor fd=99: this process was"),
            // A number that the VMM itself would use.
            ("--kernel k --event-monitor fd=5", "--event-monitor fd=5: this process was"),
        ],
    );
    let long = format!("--api-socket {}", "s".repeat(200));
    all_refused(&place, Vmm, &[(&long, "cannot be created")]);
    // What goes wrong after the socket was made takes the socket with it.
    all_refused(&place, Vmm, &[("--api-socket new --kernel missing", "The kernel 'missing'")]);
    assert!(place.path("live").exists() && place.path("dead").exists());
}

#[test]
fn a_backup_needs_an_address_and_ports_that_are_free() {
    let place = Place::new();
    let held_tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let held_udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    let listen =
        |address: std::net::SocketAddr| format!("--api-socket s --ft role=backup,listen={address}");
    all_refused(
        &place,
        Vmm,
        &[
            (&listen(held_tcp.local_addr().unwrap()), "Address already in use"),
            (
                &listen(held_udp.local_addr().unwrap()),
                "heartbeats cannot be received at UDP 127.0.0.1:",
            ),
            ("--ft role=backup,listen=192.0.2.1:7000", "no primary can be awaited at 192.0.2.1"),
        ],
    );
}

#[test]
fn a_replay_needs_a_log_of_this_build() {
    let place = Place::new();
    place.file("empty", b"").file("text", b"a shopping list, perhaps").folder("folder");
    let prologue = Prologue {
        assumptions: Assumptions::new("another-build", 7),
        vm_id: [1; 16],
        generation: 0,
        start: LogStart::Delta,
        digest_mode: DigestMode::Registers,
        settings: Settings::default(),
        arbiter: String::new(),
        machine: b"{}".to_vec(),
        cpuid: Vec::new(),
    };
    LogWriter::create(&place.path("foreign"), &prologue).unwrap().finish().unwrap();
    let foreign = std::fs::read(place.path("foreign")).unwrap();
    place.file("cut", &foreign[..foreign.len() - 1]).file("half-header", &foreign[..40]);
    let mut bytes = foreign;
    bytes[70] ^= 1;
    place.file("flipped", &bytes);
    let made = std::process::Command::new("mkfifo").arg(place.path("pipe")).status().unwrap();
    assert!(made.success());
    for (file, part) in [
        ("missing", "No such file"),
        ("empty", "it is empty or ends inside its first frame"),
        ("half-header", "it is empty or ends inside its first frame"),
        ("cut", "it is empty or ends inside its first frame"),
        ("text", "it does not start with CHFT"),
        ("flipped", "log flipped:"),
        ("folder", "it is no regular file"),
        ("pipe", "it is no regular file"),
    ] {
        place.refused(Vmm, &["--ft", &format!("replay={file}")], &[file, part]);
        place.refused(FtLog, &["verify", file], &[file, part]);
        place.refused(FtLog, &["dump", file], &[file, part]);
        place.refused(FtLog, &["summary", file], &[file, part]);
        place.refused(FtLog, &["compare", file, "foreign"], &[file, part]);
    }
    place.refused(Vmm, &["--ft", "replay=foreign"], &["log foreign:", "another-build"]);
}

#[test]
fn what_ch_remote_and_ft_log_do_not_know_is_named() {
    let place = Place::new();
    place.file("file", b"x");
    drop(UnixListener::bind(place.path("dead")).unwrap());
    all_refused(
        &place,
        ChRemote,
        &[
            ("", "a command is missing"),
            ("ping", "--api-socket <PATH>"),
            ("--api-socket s", "a command is missing"),
            ("--api-socket s dance", "unrecognized subcommand 'dance'"),
            ("--api-socket s resize --cpus 2", "resize is one of Cloud Hypervisor's commands"),
            ("--api-socket s ping", "No VMM can be reached at s: No such file"),
            ("--api-socket dead ping", "No VMM can be reached at dead: Connection refused"),
            ("--api-socket file ping", "No VMM can be reached at file"),
            ("--api-socket s ft-enable", "<config>"),
            ("--api-socket s ft-enable role=primary", "peer= is missing"),
            ("--api-socket s ft-enable nonsense", "is not a list of key=value pairs"),
            ("--api-socket s send-migration", "<destination>"),
            ("--api-socket s send-migration tcp:b", "tcp:HOST:PORT"),
            ("--api-socket s send-migration unix:/s", "through a Unix socket yet"),
            ("--api-socket s send-migration --local tcp:b:1", "local=true would share"),
            ("--api-socket s send-migration tcp:b:1", "No VMM can be reached at s"),
            ("--api-socket s receive-migration b:1", "is not a list of key=value pairs"),
            ("--api-socket s receive-migration tcp:b:1", "tcp:ADDRESS:PORT of this host"),
            ("--api-socket s receive-migration tcp:[::]:1 --disk path=a", "--disk: id= is missing"),
            ("--api-socket s receive-migration tcp:[::]:1 --serial pty", "pseudo terminal yet"),
            ("--api-socket s create missing.json", "missing.json cannot be read"),
        ],
    );
    all_refused(
        &place,
        FtLog,
        &[
            ("", "a command is missing"),
            ("dance", "unrecognized subcommand 'dance'"),
            ("verify", "<FILE>"),
            ("dump file --from x", "invalid value 'x'"),
        ],
    );
}

/// Neither a full disk below standard output nor a closed standard error is a reason to crash.
#[test]
fn where_nobody_takes_the_text_nothing_panics() {
    let place = Place::new();
    let full = || Stdio::from(std::fs::File::options().write(true).open("/dev/full").unwrap());
    for (program, words) in [(Vmm, ["--help"]), (ChRemote, ["--version"]), (FtLog, ["--help"])] {
        let mut command = place.command(program, &words);
        let child = command.stdout(full()).stderr(Stdio::piped()).spawn().unwrap();
        let output = finish(child, &words);
        assert!(sentence(program, &words, &output).contains("No space left"), "{output:?}");
    }
    for (program, words) in
        [(Vmm, ["--kernel", "missing"]), (ChRemote, ["--api-socket", "s"]), (FtLog, ["dump", "x"])]
    {
        let mut command = place.command(program, &words);
        let child = command.stdout(Stdio::piped()).stderr(full()).spawn().unwrap();
        let code = finish(child, &words).status.code();
        assert!(matches!(code, Some(1 | 2)), "{words:?}: {code:?}");
    }
}

/// What `kernels` is made of.
#[allow(dead_code)]
fn of_the_loader(_: GuestMemory, _: MemoryKind, _: MemoryMapEntry) {}
