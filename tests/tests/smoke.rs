//! A VM without protection, on a host: what everything else is built on.

use std::sync::{Mutex, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use tests::client::{History, JournalLoad, Pace, check};
use tests::guest::protocol::JOURNAL_PORT;
use tests::runner::{Cluster, Ended, Options};
use tests::vm::{GuestClient, SingleVm, VmOptions, wait_until};

/// An emulated host keeps a core busy: one after the other is quicker.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

const BOOT_TIMEOUT: Duration = Duration::from_secs(180);
const SOON: Duration = Duration::from_secs(60);

fn load(guest: GuestClient, client: u32, start: Instant) -> JournalLoad {
    let pace = Pace { client, payload_size: 100, interval: Duration::from_millis(2) };
    JournalLoad::start(guest.connect_within(JOURNAL_PORT, SOON).unwrap(), pace, start)
}

fn wait_for_answers(load: &JournalLoad, more: usize) {
    let goal = load.acknowledged() + more;
    wait_until("answers", SOON, Duration::from_millis(5), || {
        Ok((load.acknowledged() >= goal).then_some(()))
    })
    .unwrap();
}

#[test]
fn a_vm_stands_still_while_paused_and_ends_well_at_the_power_button() {
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let cluster = Cluster::start(&Options::new(1).unwrap()).unwrap();
    let start = Instant::now();
    let options = VmOptions { quick_boot: false, ..VmOptions::default() };
    let mut vm = SingleVm::start(&cluster, 0, &options).unwrap();
    println!("services up after {} ms", start.elapsed().as_millis());
    let guest = vm.guest();
    let load = load(guest, 1, start);
    wait_for_answers(&load, 100);

    answers_about_itself(&mut vm);
    stands_still_while_paused(&mut vm, &load);
    wait_for_answers(&load, 100);
    assert_eq!(vm.vmm().ft_info().unwrap().state, "off");

    let history = load.stop().unwrap();
    println!("round trips: {:?}", history.round_trips(0..u64::MAX));
    let verdict = check(std::slice::from_ref(&history), &guest.durable_history().unwrap());
    assert!(verdict.is_clean() && verdict.acknowledged >= 200, "{verdict:?}");

    vm.vmm().ask(&["power-button"]).unwrap();
    assert_eq!(vm.vmm().wait(SOON).unwrap(), Ended::Exited(0), "{}", vm.vmm().describe());
    // Unmounted, as a guest leaves its disk that was told in time.
    let disk = vm.disk().unwrap();
    let copy = disk.recovered(&cluster.shared_dir().join("copy")).unwrap();
    assert_eq!(copy.journal().unwrap(), disk.journal().unwrap());
    assert_eq!(check(&[history], &disk.journal().unwrap()), verdict);
}

fn answers_about_itself(vm: &mut SingleVm) {
    let ping = vm.vmm().ask(&["ping"]).unwrap();
    assert_eq!(ping["pid"], vm.vmm().pid(), "{ping}");
    let info = vm.vmm().ask(&["info"]).unwrap();
    assert_eq!(info["state"], "Running", "{info}");
    assert_eq!(info["config"]["memory"]["size"], 256 << 20, "{info}");
    let disk = vm.disk().unwrap().path().display().to_string();
    assert_eq!(info["config"]["disks"][0]["path"], disk, "{info}");
    let counters = vm.vmm().ask(&["counters"]).unwrap();
    for (device, counter) in
        [("_disk0", "write_bytes"), ("_net1", "rx_frames"), ("_net1", "tx_frames")]
    {
        let count = counters[device][counter].as_u64();
        assert!(count.is_some_and(|count| count > 0), "{device}.{counter}: {counters}");
    }
}

/// The client's connection stays: a pause is no end.
fn stands_still_while_paused(vm: &mut SingleVm, load: &JournalLoad) {
    let start = Instant::now();
    let uptime_ms = vm.guest().statistics().unwrap().uptime_ms;
    vm.vmm().ask(&["pause"]).unwrap();
    assert_eq!(vm.vmm().ask(&["info"]).unwrap()["state"], "Paused");
    let again = vm.vmm().ch_remote(&["pause"]).unwrap();
    assert!(!again.ended.success() && !again.stderr.is_empty(), "{again:?}");
    // An answer that had left the VM before may still be on its way.
    sleep(Duration::from_millis(200));
    let paused = Instant::now();
    let before = load.acknowledged();
    sleep(Duration::from_secs(2));
    assert_eq!(load.acknowledged(), before, "a VM that is paused answers");
    let paused_ms = paused.elapsed().as_millis();
    vm.vmm().ask(&["resume"]).unwrap();
    assert_eq!(vm.vmm().ask(&["info"]).unwrap()["state"], "Running");
    wait_for_answers(load, 10);
    let passed_ms = vm.guest().statistics().unwrap().uptime_ms - uptime_ms;
    let outside_ms = start.elapsed().as_millis();
    println!("paused {paused_ms} ms; of {outside_ms} ms around it the guest saw {passed_ms} ms");
    assert!(u128::from(passed_ms) + paused_ms <= outside_ms + 100, "its clock went on");
}

#[test]
fn a_vm_that_is_rebooted_finds_its_disk_as_it_left_it() {
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let cluster = Cluster::start(&Options::new(1).unwrap()).unwrap();
    let start = Instant::now();
    let mut vm = SingleVm::start(&cluster, 0, &VmOptions::default()).unwrap();
    let guest = vm.guest();
    let first_boot = guest.statistics().unwrap().boot_id;

    let before = finish(load(guest, 1, start));
    vm.vmm().ask(&["reboot"]).unwrap();
    vm.vmm().wait_for_guest(2, BOOT_TIMEOUT).unwrap();
    assert_ne!(guest.statistics().unwrap().boot_id, first_boot);
    let after = finish(load(guest, 2, start));

    let verdict = check(&[before, after], &guest.durable_history().unwrap());
    assert!(verdict.is_clean() && verdict.acknowledged >= 100, "{verdict:?}");
    assert_eq!(vm.shutdown().unwrap(), Ended::Exited(0), "{}", vm.vmm().describe());
    vm.disk().unwrap().recovered(&cluster.shared_dir().join("copy")).unwrap();
}

fn finish(load: JournalLoad) -> History {
    wait_for_answers(&load, 50);
    load.stop().unwrap()
}
