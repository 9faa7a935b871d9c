//! A recorded run of a stock kernel, replayed: the promise that everything else is built on. `FT_REPLAYS` says how often.

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;
use tests::client::{Pace, check, compute, echo_round_trips_us};
use tests::guest::protocol::{Answer, Ask, COMPUTE_PORT, ECHO_PORT};
use tests::runner::{Cluster, Ended, Options, binaries};
use tests::vm::{GuestClient, SingleVm, VmOptions, VmmProcess, wait_until};

/// What the recorded run must have at least.
const MOMENTS: u64 = 100_000;
/// Unless another number is asked for.
const REPLAYS: usize = 3;
const RECORDING_TIMEOUT: Duration = Duration::from_secs(300);
const REPLAY_TIMEOUT: Duration = Duration::from_secs(400);

/// A run with work for CPU, disk, network and entropy, and a client outside; then three replays of it.
#[test]
fn a_recorded_run_replays_three_times_with_equal_registers_devices_memory_and_console() {
    let cluster = Cluster::start(&Options::new(2).unwrap()).unwrap();
    let log = cluster.shared_dir().join("log");
    let recorded_console = record(&cluster, &log);
    let summary = summary(&log);
    holds_what_it_should(&summary);

    let count = common::number("FT_REPLAYS").map_or(REPLAYS, |count| count as usize);
    // Two at a time, one a host; a replay has neither disk nor tap and needs none.
    for first in (0..count).step_by(2) {
        let replays: Vec<_> = (first..count.min(first + 2))
            .map(|number| (Instant::now(), replay(&cluster, number % 2, &log)))
            .collect();
        for (start, mut vmm) in replays {
            let ended = vmm.wait(REPLAY_TIMEOUT).unwrap();
            assert_eq!(ended, Ended::Exited(0), "{}", vmm.describe());
            println!("replayed in {} ms: {}", start.elapsed().as_millis(), vmm.log().trim());
            let moments = format!("up to moment {}", summary["last_moment"]);
            assert!(vmm.log().contains(&moments), "{}", vmm.describe());
            assert!(vmm.log().contains("every comparison was equal"), "{}", vmm.describe());
            assert_eq!(vmm.console(), recorded_console, "the guest said something else");
        }
    }
    a_damaged_log_is_refused(&cluster, &log);
}

/// Records a run; returns what the guest said.
fn record(cluster: &Cluster, log: &Path) -> String {
    let options = VmOptions {
        arguments: vec!["--ft".to_owned(), format!("record={}", log.display())],
        // A recording has all that a stock kernel does.
        quick_boot: false,
        ..VmOptions::default()
    };
    let start = Instant::now();
    let mut vm = SingleVm::start(cluster, 0, &options).unwrap();
    println!("services up after {} ms", start.elapsed().as_millis());
    work(&mut vm, start);
    assert_eq!(vm.shutdown().unwrap(), Ended::Exited(0), "{}", vm.vmm().describe());
    println!("recorded in {} ms", start.elapsed().as_millis());
    vm.vmm().console()
}

/// Has the guest work until the recording is long enough.
fn work(vm: &mut SingleVm, start: Instant) {
    let guest = vm.guest();
    let pace = Pace { client: 1, payload_size: 1000, interval: Duration::ZERO };
    let journal = guest.journal(pace, start).unwrap();
    for bulk in [guest.source().unwrap(), guest.sink().unwrap()] {
        wait_until("bulk transfer", RECORDING_TIMEOUT, Duration::from_millis(10), || {
            Ok((bulk.bytes() > 2 << 20).then_some(()))
        })
        .unwrap();
        let outcome = bulk.stop().unwrap();
        assert_eq!(outcome.broken, None);
    }
    compute(&mut guest.connect(COMPUTE_PORT).unwrap(), 50_000_000).unwrap();
    ask_for_entropy(guest);
    let mut echo = guest.connect(ECHO_PORT).unwrap();
    // A little more than is asked for: the moments of the shutdown do not count.
    while vm.vmm().ft_info().unwrap().moment < MOMENTS + 2_000 {
        assert!(start.elapsed() < RECORDING_TIMEOUT, "{}", vm.vmm().describe());
        echo_round_trips_us(&mut echo, 200, 100).unwrap();
    }
    let history = journal.stop().unwrap();
    let verdict = check(&[history], &guest.durable_history().unwrap());
    assert!(verdict.is_clean(), "{verdict:?}");
    println!("{} requests acknowledged while recording", verdict.acknowledged);
}

fn ask_for_entropy(guest: GuestClient) {
    let mut control = guest.control().unwrap();
    for _ in 0..20 {
        match control.ask(&Ask::Entropy { bytes: 64 }).unwrap() {
            Answer::Entropy { hardware: Some(bytes), .. } => assert_eq!(bytes.len(), 128),
            other => panic!("{other:?}"),
        }
    }
}

fn holds_what_it_should(summary: &Value) {
    println!("{summary:#}");
    let number = |value: &Value| value.as_u64().unwrap();
    assert!(number(&summary["moments"]) >= MOMENTS, "{summary:#}");
    assert_eq!(summary["end"], "power-off");
    assert!(number(&summary["deltas"]) > 0, "nothing was interrupted in its computing");
    let records = &summary["records"];
    let count = |kind: &str| number(&records[kind]["count"]);
    // Every moment but those of deltas has its registers, whole device states come all the time.
    let deltas = count("delta");
    assert_eq!(count("registers") + deltas, number(&summary["last_moment"]));
    assert!(count("devices") >= MOMENTS / 10_000, "{summary:#}");
    assert_eq!(count("state-digest"), 1, "the one at the end, with memory");
    for kind in ["packet", "block-done", "entropy", "tick", "time-read"] {
        assert!(count(kind) > 20, "there is hardly any {kind}: {summary:#}");
    }
    let per_tick = number(&summary["bytes_per_tick_hundredths"]);
    println!("a timer tick takes {}.{:02} bytes", per_tick / 100, per_tick % 100);
}

fn replay<'a>(cluster: &'a Cluster, host: usize, log: &Path) -> VmmProcess<'a> {
    let words = ["--ft".to_owned(), format!("replay={}", log.display())];
    VmmProcess::start(cluster, host, "replay", &words).unwrap()
}

/// One flipped byte, a cut tail: told in a sentence by the tool and by a replay.
fn a_damaged_log_is_refused(cluster: &Cluster, log: &Path) {
    let mut bytes = std::fs::read(log).unwrap();
    let whole = ft_log(&["verify", &log.display().to_string()]);
    assert_eq!(whole.0, Some(0), "{whole:?}");

    let torn = cluster.shared_dir().join("torn");
    std::fs::write(&torn, &bytes[..bytes.len() - 10]).unwrap();
    let (code, text) = ft_log(&["verify", &torn.display().to_string()]);
    assert!(code == Some(1) && text.contains("the tail is torn: at byte "), "{text}");

    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    std::fs::write(log, &bytes).unwrap();
    let (code, text) = ft_log(&["verify", &log.display().to_string()]);
    assert!(code == Some(2) && text.contains("damaged (at byte "), "{text}");
    let mut vmm = replay(cluster, 0, log);
    assert_eq!(vmm.wait(REPLAY_TIMEOUT).unwrap(), Ended::Exited(1), "{}", vmm.describe());
    assert!(vmm.log().contains("damaged (at byte "), "{}", vmm.describe());
}

fn summary(log: &Path) -> Value {
    let (code, text) = ft_log(&["summary", "--json", &log.display().to_string()]);
    assert_eq!(code, Some(0), "{text}");
    serde_json::from_str(&text).unwrap()
}

/// Runs `ft-log` here, outside all hosts; its exit code, and what it says.
fn ft_log(words: &[&str]) -> (Option<i32>, String) {
    let tool: PathBuf = binaries().unwrap().join("ft-log");
    let output = Command::new(tool).args(words).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&text).into_owned())
}
