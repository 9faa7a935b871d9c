//! The guest's services and the client, with QEMU for a VMM.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::client::{
    Control, JournalLoad, Pace, Percentiles, SinkLoad, SourceLoad, check, compute, connect,
    durable_history, echo_round_trips_us,
};
use crate::guest::disk::DiskImage;
use crate::guest::image::write_initramfs;
use crate::guest::protocol::{
    Answer, Ask, COMPUTE_PORT, CONTROL_PORT, DONE_MARK, ECHO_PORT, HISTORY_PORT, JOURNAL_PORT,
    Program, READY_MARK, SINK_PORT, SOURCE_PORT,
};
use crate::runner::network::{CLIENT_ADDRESS, Place, guest_address};
use crate::runner::{Cache, Cluster, Network, Options, Order};

/// A guest under QEMU, on the network of the client.
struct PlainGuest {
    qemu: Child,
    network: Network,
    folder: tempfile::TempDir,
}

const BOOT_TIMEOUT: Duration = Duration::from_secs(120);

impl PlainGuest {
    fn boot(words: &str) -> Result<Self> {
        let cache = Cache::open()?;
        let folder = tempfile::tempdir()?;
        let network = Network::create()?;
        network.add_tap(Place::Host(0))?;
        let words =
            command_line(&cache, folder.path(), &Place::Host(0).port(), ["tcg", "EPYC"], words)?;
        let (program, arguments) = words.split_first().context("an empty command line")?;
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stderr(Stdio::null());
        let qemu = network.namespace().spawn(command)?;
        Ok(Self { qemu, network, folder })
    }

    fn connect(&self, port: u16) -> std::net::TcpStream {
        connect(self.network.namespace(), guest_address(0), port, BOOT_TIMEOUT)
            .with_context(|| self.console())
            .unwrap()
    }

    fn control(&self) -> Control {
        Control::new(self.connect(CONTROL_PORT))
    }

    fn console(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("console")).unwrap_or_default()
    }

    /// Waits until the guest has switched itself off.
    fn wait(&mut self) {
        let deadline = Instant::now() + BOOT_TIMEOUT;
        while self.qemu.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "the guest goes on: {}", self.console());
            sleep(Duration::from_millis(50));
        }
    }

    fn disk(&self) -> DiskImage {
        DiskImage::open(&self.folder.path().join("disk"))
    }
}

/// Makes what the guest boots from in `folder`, and the command line of QEMU for it.
fn command_line(
    cache: &Cache,
    folder: &Path,
    tap: &str,
    [accelerator, cpu]: [&str; 2],
    words: &str,
) -> Result<Vec<String>> {
    let file = |name: &str| folder.join(name).display().to_string();
    write_initramfs(cache, &folder.join("initramfs"))?;
    DiskImage::create(&folder.join("disk"), 64)?;
    let append =
        format!("console=ttyS0 quiet ft.ip={}/24 ft.gw={CLIENT_ADDRESS} {words}", guest_address(0));
    let mut line = vec![cache.qemu().display().to_string()];
    line.extend(
        "-nodefaults -no-user-config -display none -no-reboot -M q35 -m 512 -device virtio-rng-pci
            -device virtio-net-pci,netdev=net,romfile="
            .split_whitespace()
            .map(str::to_owned),
    );
    let named = [
        ("-accel", accelerator.to_owned()),
        ("-cpu", cpu.to_owned()),
        ("-kernel", cache.vmlinux().display().to_string()),
        ("-initrd", file("initramfs")),
        ("-append", append),
        ("-netdev", format!("tap,id=net,ifname={tap},script=no,downscript=no")),
        ("-drive", format!("if=virtio,format=raw,file={}", file("disk"))),
        ("-serial", format!("file:{}", file("console"))),
    ];
    line.extend(named.into_iter().flat_map(|(name, value)| [name.to_owned(), value]));
    Ok(line)
}

impl Drop for PlainGuest {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

#[test]
fn every_service_of_the_guest_answers_and_the_disk_keeps_what_was_acknowledged() {
    let start = Instant::now();
    let mut guest = PlainGuest::boot("").unwrap();
    let mut control = guest.control();
    let Answer::Statistics(statistics) = control.ask(&Ask::Statistics).unwrap() else { panic!() };
    println!("services up after {} ms: {statistics:?}", start.elapsed().as_millis());
    assert!(statistics.uptime_ms > 0 && statistics.interrupts > 0);
    assert!(guest.console().contains(READY_MARK));
    assert!(!guest.console().contains("failed"), "{}", guest.console());

    ask_for_entropy(&mut control);
    let round_trips = echo_round_trips_us(&mut guest.connect(ECHO_PORT), 64, 50).unwrap();
    println!("echo: {:?}", Percentiles::of(round_trips));
    let times = compute(&mut guest.connect(COMPUTE_PORT), 1_000_000).unwrap();
    assert!(Duration::ZERO < times.guest && times.guest <= times.client, "{times:?}");
    for program in [Program::Gzip, Program::Sort] {
        let answer = control.ask(&Ask::Run { program }).unwrap();
        println!("{program:?}: {answer:?}");
        assert!(matches!(answer, Answer::Took { duration_ns } if duration_ns > 0));
    }
    // A guest on a machine that is busy may not come to write before it is told to stop.
    assert!((1..=20).any(|attempt| {
        control.ask(&Ask::StartRewriting { mib: 4 }).unwrap();
        sleep(attempt * Duration::from_millis(100));
        matches!(control.ask(&Ask::StopRewriting).unwrap(), Answer::Rewritten { pages } if pages > 0)
    }));

    control.ask(&Ask::StartDisk { block_size: 4096, slots: 32 }).unwrap();
    let loads = [1, 2].map(|client| {
        let pace = Pace { client, payload_size: 100, interval: Duration::from_millis(5) };
        JournalLoad::start(guest.connect(JOURNAL_PORT), pace, start)
    });
    let source = SourceLoad::start(guest.connect(SOURCE_PORT));
    let sink = SinkLoad::start(guest.connect(SINK_PORT));
    sleep(Duration::from_secs(2));
    for bulk in [source.stop().unwrap(), sink.stop().unwrap()] {
        println!("{bulk:?}");
        assert!(bulk.broken.is_none() && bulk.bytes > 1 << 20, "{bulk:?}");
    }
    let Answer::Durable { blocks } = control.ask(&Ask::VerifyDisk).unwrap() else { panic!() };
    assert!(blocks > 32, "{blocks}");

    let histories = loads.map(|load| load.stop().unwrap());
    println!("requests: {:?}", histories[0].round_trips(0..u64::MAX));
    let live = check(&histories, &durable_history(guest.connect(HISTORY_PORT)).unwrap());
    assert!(live.is_clean() && live.acknowledged > 20, "{live:?}");

    // What the image has now, were the power to fail, is sound and has every acknowledged request.
    let copy = guest.disk().recovered(&guest.folder.path().join("copy")).unwrap();
    let recovered = check(&histories, &copy.journal().unwrap());
    assert!(recovered.is_clean(), "{recovered:?}");

    // The guest may be gone before its answer is; that it ends is what counts.
    let _ = control.ask(&Ask::PowerOff);
    guest.wait();
    assert_eq!(check(&histories, &guest.disk().journal().unwrap()), live);
}

fn ask_for_entropy(control: &mut Control) {
    let mut entropy = || match control.ask(&Ask::Entropy { bytes: 16 }).unwrap() {
        Answer::Entropy { kernel, hardware } => (kernel, hardware.expect("there is a device")),
        other => panic!("{other:?}"),
    };
    let (first, second) = (entropy(), entropy());
    assert_eq!((first.0.len(), first.1.len()), (32, 32));
    assert!(first.0 != second.0 && first.1 != second.1);
}

#[test]
fn work_on_the_command_line_is_done_without_a_client() {
    let start = Instant::now();
    let mut guest = PlainGuest::boot("ft.run=workload:cpu,disk,net,entropy;poweroff").unwrap();
    guest.wait();
    println!("booted, worked and off after {} ms", start.elapsed().as_millis());
    let console = guest.console();
    let done = console.lines().find_map(|line| line.strip_prefix(DONE_MARK));
    assert_eq!(done.map(|checksum| checksum.trim().len()), Some(16), "{console}");
    assert!(!console.contains("failed"), "{console}");
}

#[test]
#[ignore = "slow, and of use only when the harness itself is changed"]
fn a_guest_on_a_host_is_reached_from_outside_and_dies_with_its_host() {
    let cluster = Cluster::start(&Options::new(1).unwrap()).unwrap();
    let host = cluster.host(0);
    host.add_tap("guest0").unwrap();
    let folder = cluster.shared_dir();
    let line = command_line(cluster.cache(), &folder, "guest0", ["kvm", "host"], "").unwrap();
    let start = Instant::now();
    let qemu = host.spawn(Order::new(line).log_to(folder.join("qemu"))).unwrap();
    let client = cluster.client_namespace();
    let mut stream = connect(client, guest_address(0), ECHO_PORT, BOOT_TIMEOUT)
        .with_context(|| std::fs::read_to_string(folder.join("console")).unwrap_or_default())
        .with_context(|| std::fs::read_to_string(folder.join("qemu")).unwrap_or_default())
        .unwrap();
    println!("a guest on a host is up after {} ms", start.elapsed().as_millis());
    let round_trips = echo_round_trips_us(&mut stream, 64, 50).unwrap();
    println!("echo: {:?}", Percentiles::of(round_trips));
    let rounds = 100_000_000;
    let duration = compute(
        &mut connect(client, guest_address(0), COMPUTE_PORT, BOOT_TIMEOUT).unwrap(),
        rounds,
    );
    println!("{rounds} rounds of computing took {:?}", duration.unwrap());
    drop(qemu);
    host.end().unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    assert!(echo_round_trips_us(&mut stream, 64, 1).is_err());
}
