//! Tests of `validate.rs`: every rule and the sentence that tells of it.

use super::super::{CpusConfig, FtConfig, PayloadConfig};
use super::*;

fn vm() -> VmConfig {
    VmConfig {
        payload: PayloadConfig { kernel: Some("/k".into()), ..Default::default() },
        disks: Some(vec![DiskConfig { path: Some("/a".into()), ..Default::default() }]),
        net: Some(vec![NetConfig { tap: Some("tap0".into()), ..Default::default() }]),
        ..Default::default()
    }
}

/// The sentence for a VM with one thing changed.
fn sentence(change: impl FnOnce(&mut VmConfig)) -> String {
    let mut config = vm();
    change(&mut config);
    config.validate().unwrap_err().to_string()
}

fn disk(config: &mut VmConfig) -> &mut DiskConfig {
    &mut config.disks.as_mut().unwrap()[0]
}

fn net(config: &mut VmConfig) -> &mut NetConfig {
    &mut config.net.as_mut().unwrap()[0]
}

#[test]
fn an_ordinary_vm_is_fine_before_and_after_it_is_completed() {
    let mut config = vm();
    config.validate().unwrap();
    config.complete().unwrap();
    config.validate().unwrap();
}

#[test]
fn one_vcpu_is_all_there_is() {
    let cpus = |boot_vcpus, max_vcpus| CpusConfig { boot_vcpus, max_vcpus };
    assert_eq!(
        sentence(|vm| vm.cpus = cpus(2, 2)),
        "2 vCPUs are asked for, but this version runs VMs with one vCPU only: say boot=1,max=1."
    );
    for (boot, max) in [(0, 1), (2, 1)] {
        assert_eq!(
            sentence(|vm| vm.cpus = cpus(boot, max)),
            format!(
                "A VM cannot boot with {boot} vCPUs of at most {max}: both must be at least 1, \
                 and max at least boot."
            )
        );
    }
}

#[test]
fn memory_is_whole_mebibytes_within_bounds() {
    for size in [0, 31 << 20, (512 << 20) + 4096, u64::MAX] {
        assert_eq!(
            sentence(|vm| vm.memory.size = size),
            format!(
                "A memory size of {size} bytes cannot be used: it must be a whole number of MiB \
                 from 32M to 512G."
            )
        );
    }
}

#[test]
fn a_vm_needs_a_kernel_and_only_a_kernel() {
    assert_eq!(
        sentence(|vm| vm.payload.kernel = None),
        "The VM has nothing to boot: give a kernel (--kernel PATH, or \"payload\": {\"kernel\": \
         \"PATH\"})."
    );
    assert_eq!(
        sentence(|vm| vm.payload.firmware = Some("/fw".into())),
        "Booting a firmware (/fw) is not there yet: give a Linux kernel as the payload's kernel."
    );
}

#[test]
fn who_follows_a_log_has_no_vm_of_its_own() {
    let with = |ft: &str| {
        let ft = FtConfig::parse(ft).unwrap();
        sentence(|vm| vm.ft = Some(ft))
    };
    assert!(with("replay=x").starts_with("A replay takes its VM from its log"));
    assert!(with("role=backup,listen=0.0.0.0:1").starts_with("A backup gets its VM"));
}

#[test]
fn an_image_belongs_to_one_disk_unless_nobody_writes() {
    let disks = |readonly: [bool; 2]| {
        let disk =
            |readonly| DiskConfig { path: Some("/a".into()), readonly, ..DiskConfig::default() };
        VmConfig { disks: Some(readonly.map(disk).to_vec()), ..vm() }
    };
    disks([true, true]).validate().unwrap();
    for readonly in [[false, true], [true, false], [false, false]] {
        let said = disks(readonly).validate().unwrap_err().to_string();
        assert!(said.starts_with("Two disks use the image /a"), "{said}");
    }
}

#[test]
fn a_command_line_fits_the_kernels_buffer() {
    assert_eq!(
        sentence(|vm| vm.payload.cmdline = Some("x".repeat(2048))),
        "The kernel command line has 2048 bytes; it may have at most 2047, none of them zero."
    );
    assert!(sentence(|vm| vm.payload.cmdline = Some("a\0b".into())).contains("none of them zero"));
}

#[test]
fn consoles_have_what_their_mode_needs_and_nothing_else() {
    let console = |mode, file: bool, socket: bool| ConsoleConfig {
        mode,
        file: file.then(|| "/f".into()),
        socket: socket.then(|| "/s".into()),
    };
    assert_eq!(
        sentence(|vm| vm.serial = console(ConsoleMode::File, false, false)),
        "The serial port's mode is File but it has no file: give one (file=PATH)."
    );
    assert_eq!(
        sentence(|vm| vm.serial = console(ConsoleMode::Null, true, false)),
        "The serial port has a file but its mode is Null: the mode must be the one that uses it."
    );
    assert!(sentence(|vm| vm.serial.mode = ConsoleMode::Socket).contains("a socket yet"));
    assert_eq!(
        sentence(|vm| vm.console.mode = ConsoleMode::Pty),
        "The console cannot be a pseudo terminal yet: use tty, file=PATH, null or off."
    );
    assert_eq!(
        sentence(|vm| vm.console = console(ConsoleMode::Socket, false, true)),
        "The console cannot be a socket yet: use tty, file=PATH, null or off."
    );
    assert_eq!(
        sentence(|vm| vm.serial = console(ConsoleMode::Socket, false, true)),
        "The serial port cannot be a socket yet: use tty, file=PATH, null or off."
    );
    assert_eq!(
        sentence(|vm| vm.serial.mode = ConsoleMode::Tty),
        "The serial port and the console cannot both be the terminal: give one of them another \
         mode (--console off, for example)."
    );
}

#[test]
fn devices_have_names_of_their_own() {
    assert_eq!(
        sentence(|vm| {
            disk(vm).id = Some("a".into());
            net(vm).id = Some("a".into());
        }),
        "Two devices have the id \"a\": every device needs its own."
    );
    for id in ["", "a b", "__rng", "ä", &"x".repeat(65)] {
        let said = sentence(|vm| disk(vm).id = Some(id.into()));
        assert!(said.starts_with("The device id \""), "{said}");
        assert!(said.contains("1 to 64 letters, digits"), "{said}");
    }
}

#[test]
fn there_is_room_for_so_many_devices() {
    assert_eq!(
        sentence(|vm| vm.disks = Some(vec![disk(vm).clone(); 30])),
        "31 disks and network devices are asked for; there is room for 24."
    );
}

#[test]
fn a_disk_needs_a_path_and_a_short_serial() {
    assert_eq!(
        sentence(|vm| disk(vm).path = None),
        "disks[0] has no path: give a raw image file or a block device (--disk path=…)."
    );
    assert_eq!(
        sentence(|vm| disk(vm).serial = Some("x".repeat(21))),
        "disks[0] has a serial number of 21 bytes; it may have at most 20, all ASCII."
    );
}

#[test]
fn a_network_device_must_make_sense() {
    let mac = |bytes| Some(MacAddress(bytes));
    assert_eq!(
        sentence(|vm| net(vm).tap = Some("a/b".into())),
        "net[0]: \"a/b\" is not the name of an interface: 1 to 15 characters, no / and no space."
    );
    assert_eq!(
        sentence(|vm| net(vm).mac = mac([1, 0, 0, 0, 0, 1])),
        "net[0]: 01:00:00:00:00:01 is no address of a single network card."
    );
    assert!(sentence(|vm| net(vm).mac = mac([0; 6])).contains("single network card"));
    assert_eq!(
        sentence(|vm| net(vm).mtu = Some(67)),
        "net[0]: an MTU of 67 is too small; the least is 68."
    );
    assert_eq!(
        sentence(|vm| net(vm).mask = Some("255.0.255.0".parse().unwrap())),
        "net[0]: 255.0.255.0 is not a network mask."
    );
    assert_eq!(
        sentence(|vm| net(vm).mask = Some("255.0.0.0".parse().unwrap())),
        "net[0]: a mask (255.0.0.0) needs an ip= that it belongs to."
    );
    assert_eq!(
        sentence(|vm| net(vm).ip = Some(Ipv4Addr::UNSPECIFIED)),
        "net[0]: 0.0.0.0 is no address this host's end of the tap can have."
    );
}

#[test]
fn two_network_devices_share_neither_tap_nor_mac() {
    let twice = |vm: &mut VmConfig| vm.net = Some(vec![net(vm).clone(), net(vm).clone()]);
    assert_eq!(sentence(twice), "Two network devices use the tap tap0: every one needs its own.");
    assert_eq!(
        sentence(|vm| {
            net(vm).tap = None;
            net(vm).mac = Some(MacAddress([2, 0, 0, 0, 0, 1]));
            twice(vm);
        }),
        "Two network devices have the MAC address 02:00:00:00:00:01: every one needs its own."
    );
}

#[test]
fn a_backup_has_no_vm_of_its_own() {
    assert_eq!(
        sentence(|vm| vm.ft = Some(FtConfig::parse("role=backup,listen=0.0.0.0:1").unwrap())),
        "A backup gets its VM from its primary: start it without a VM of its own."
    );
}
