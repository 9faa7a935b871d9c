//! What a replay owes to single treatments: undone, it diverges, and says how. And a disk that is full under the log.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tests::runner::{Cluster, Ended, Options, Order, Output, binaries};
use tests::vm::{SingleVm, VmOptions, VmmProcess, initramfs, wait_until};

const SOON: Duration = Duration::from_secs(180);
/// Moments of a short recording: the kernel has set up its processor, its clock and its interrupts, and starts its first
/// programs.
const MOMENTS: u64 = 8_000;

/// Begins to record a boot.
fn start_recording<'a>(
    cluster: &'a Cluster,
    name: &str,
    undo: &[&str],
) -> (VmmProcess<'a>, PathBuf) {
    let log = cluster.shared_dir().join(name);
    let mut words: Vec<String> = [
        "--kernel",
        &cluster.cache().vmlinux().display().to_string(),
        "--initramfs",
        &initramfs(cluster).unwrap().display().to_string(),
        "--cmdline",
        "console=ttyS0 lpj=4000000 quiet mitigations=off cryptomgr.notests",
        "--memory",
        "size=128M",
        "--console",
        "off",
        "--ft",
        &format!("record={},digest_every=1000", log.display()),
    ]
    .map(str::to_owned)
    .to_vec();
    words.extend(undo.iter().map(|word| (*word).to_owned()));
    (VmmProcess::start(cluster, 0, name, &words).unwrap(), log)
}

/// Ends a recording once it is long enough; the log.
fn recorded((mut vmm, log): (VmmProcess<'_>, PathBuf)) -> PathBuf {
    vmm.wait_for_socket(SOON).unwrap();
    wait_until("the guest's first moments", SOON, Duration::from_millis(200), || {
        Ok((vmm.ft_info()?.moment >= MOMENTS).then_some(()))
    })
    .unwrap();
    // A recording that is ended from outside is as whole as one that the guest ends.
    vmm.signal(libc::SIGTERM).unwrap();
    assert_eq!(vmm.wait(SOON).unwrap(), Ended::Exited(0), "{}", vmm.describe());
    log
}

/// Begins to replay a log.
fn start_replay<'a>(cluster: &'a Cluster, log: &Path, undo: &[&str]) -> VmmProcess<'a> {
    let mut words = vec!["--ft".to_owned(), format!("replay={}", log.display())];
    words.extend(undo.iter().map(|word| (*word).to_owned()));
    VmmProcess::start(cluster, 0, "replay", &words).unwrap()
}

/// How a replay ended and what it said.
fn replayed(mut vmm: VmmProcess<'_>) -> (Ended, String) {
    let ended = vmm.wait(SOON).unwrap();
    (ended, vmm.log())
}

/// A replay that must have found no difference.
fn must_be_equal((ended, text): &(Ended, String), why: &str) {
    assert_eq!(*ended, Ended::Exited(0), "{why}: {text}");
    assert!(text.contains("every comparison was equal"), "{why}: {text}");
}

/// A replay that must have found a difference; returns the moment.
fn divergence((ended, text): &(Ended, String)) -> u64 {
    assert_eq!(*ended, Ended::Exited(1), "{text}");
    let (_, report) = text.split_once("the replay diverged from its log\n").expect(text);
    println!("{report}");
    let (moment, rest) = report.strip_prefix("at moment ").unwrap().split_once(':').unwrap();
    assert!(rest.contains("guest instruction 0x"), "{rest}");
    moment.parse().unwrap()
}

/// On a host with two processors. Where the host's APIC id is left in CPUID, what is recorded on one differs from what is
/// replayed on the other: leaf 0x8000001e (or 1, or 0xb) tells.
///
/// One VM at a time: where QEMU emulates two processors at once that both run a guest, one of the guests is now and then
/// shut down out of nowhere, which a replay by itself then does not repeat.
#[test]
fn a_guest_that_reads_its_hosts_clock_or_apic_id_diverges_and_both_states_are_shown() {
    const TSC: &[&str] = &["--debug-undo", "tsc-rewrite"];
    const APIC_ID: &[&str] = &["--debug-undo", "apic-id"];
    let options = Options { cpus: 2, ..Options::new(1).unwrap() };
    let cluster = Cluster::start(&options).unwrap();
    // Everything that the agent starts from now on inherits its processor.
    let pin = |cpu: u32| {
        cluster.host(0).shell(&format!("taskset -acp {cpu} $PPID")).unwrap();
    };
    pin(0);
    let treated = recorded(start_recording(&cluster, "treated", &[]));
    let with_tsc = recorded(start_recording(&cluster, "with-tsc", TSC));
    shows_both_states(&replayed(start_replay(&cluster, &with_tsc, &[])));
    if std::env::var("FT_TREATMENTS").is_ok_and(|chosen| chosen == "tsc") {
        println!("    the APIC id is left out (FT_TREATMENTS=tsc)");
        pin(1);
        let elsewhere = replayed(start_replay(&cluster, &treated, &[]));
        return must_be_equal(&elsewhere, "the treatment makes processors equal");
    }
    let with_apic_id = recorded(start_recording(&cluster, "with-apic-id", APIC_ID));
    let again = replayed(start_replay(&cluster, &with_apic_id, APIC_ID));
    must_be_equal(&again, "on the same processor all is equal");

    pin(1);
    let elsewhere = replayed(start_replay(&cluster, &treated, &[]));
    must_be_equal(&elsewhere, "the treatment makes processors equal");
    divergence(&replayed(start_replay(&cluster, &with_apic_id, APIC_ID)));
}

fn shows_both_states(result: &(Ended, String)) {
    println!("diverged at moment {}", divergence(result));
    let (_, text) = result;
    assert!(text.contains("recorded guest instruction 0x"), "{text}");
    assert!(text.contains("replayed guest instruction 0x"), "{text}");
    let marked = text.lines().filter(|line| line.ends_with("<-- differs")).count();
    assert!((1..=18).contains(&marked), "{text}");
}

#[test]
fn a_full_disk_under_the_log_ends_the_recording_and_not_the_vm() {
    let cluster = Cluster::start(&Options::new(1).unwrap()).unwrap();
    let host = cluster.host(0);
    let folder = "/run/small";
    host.shell(&format!("mkdir {folder} && mount -t tmpfs -o size=64m none {folder}")).unwrap();
    let record = format!("record={folder}/log");
    let options = VmOptions { arguments: vec!["--ft".to_owned(), record], ..VmOptions::default() };
    let mut vm = SingleVm::start(&cluster, 0, &options).unwrap();
    assert!(vm.guest().statistics().unwrap().uptime_ms > 0, "the VM answers");
    let events = vm.vmm().events();
    assert!(events.iter().any(|event| event.event == "recording-failed"), "{events:?}");
    assert_eq!(vm.vmm().ft_info().unwrap().state, "off");
    // Its end is no success: somebody waits for a log that is not whole.
    assert_eq!(vm.shutdown().unwrap(), Ended::Exited(1), "{}", vm.vmm().describe());
    let text = vm.vmm().log();
    assert!(text.contains("No space left on device"), "{text}");

    let Output { ended, stdout, .. } = host.run(ft_log(&["verify", "/run/small/log"])).unwrap();
    assert_eq!(ended, Ended::Exited(1), "{stdout}");
    assert!(stdout.contains("the tail is torn") || stdout.contains("without an end"), "{stdout}");
    let (ended, text) = replayed(start_replay(&cluster, Path::new("/run/small/log"), &[]));
    assert_eq!(ended, Ended::Exited(1), "{text}");
    assert!(text.contains("the log ends without an end"), "{text}");
    assert!(text.contains("the replay was equal"), "{text}");

    // Nor is a log that is there overwritten.
    let mut vm = SingleVm::launch(&cluster, 0, &options).unwrap();
    assert_eq!(vm.vmm().wait(SOON).unwrap(), Ended::Exited(1), "{}", vm.vmm().describe());
    assert!(vm.vmm().log().contains("an existing one is never overwritten"));
}

fn ft_log(words: &[&str]) -> Order {
    let tool = binaries().unwrap().join("ft-log").display().to_string();
    Order::new([tool.as_str()].iter().chain(words).copied())
}
