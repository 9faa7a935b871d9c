//! A VM that moves from host to host by Cloud Hypervisor's own verbs, and nobody notices; and one whose destination dies
//! in the middle of it.
//!
//! One client keeps one connection to the guest's journal from first to last.

mod common;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use common::must_answer;
use tests::client::{JournalLoad, Pace, check};
use tests::runner::{Cluster, Ended, Options, RemoteProcess};
use tests::vm::{SingleVm, VmOptions, VmmProcess, wait_until};

/// Everything that is waited for is there within this time.
const SOON: Duration = Duration::from_secs(90);
const PORT: u16 = 7100;

#[test]
fn a_vm_moves_there_and_back_and_survives_the_death_of_a_destination() {
    let cluster = Cluster::start(&Options::new(2).unwrap()).unwrap();
    common::conclude(&cluster, play(&cluster));
}

fn play(cluster: &Cluster) -> Result<()> {
    let options = VmOptions { memory_mib: 192, ..VmOptions::default() };
    let mut vm = SingleVm::start(cluster, 0, &options)?;
    let pace = Pace { client: 1, payload_size: 100, interval: Duration::from_millis(10) };
    let load = vm.guest().journal(pace, Instant::now())?;
    must_answer(&load)?;
    for to in [1, 0] {
        moves(cluster, &mut vm, to, &options, &load).with_context(|| format!("to host {to}"))?;
    }
    destination_dies(cluster, &mut vm, &options, &load).context("the destination dies")?;

    let history = load.stop()?;
    let verdict = check(&[history], &vm.guest().durable_history()?);
    ensure!(verdict.is_clean(), "promises were broken: {verdict:?}");
    println!("{} requests acknowledged, all stored once", verdict.acknowledged);
    let ended = vm.shutdown()?;
    ensure!(ended == Ended::Exited(0), "the last VMM ended badly: {ended:?}");
    Ok(())
}

/// A VMM that waits for the VM, and whoever waits for that.
fn receiver<'a>(
    cluster: &'a Cluster,
    host_index: usize,
    options: &VmOptions,
    vm: &SingleVm,
) -> Result<(VmmProcess<'a>, RemoteProcess)> {
    let vmm = VmmProcess::start_empty(cluster, host_index, "receiver")?;
    let serial = format!("file={}", vmm.console_file().display());
    let tap = format!("id=_net1,tap={}", options.tap());
    let disk = vm.disk().map(|disk| disk.path().display().to_string()).unwrap_or_default();
    let disk = format!("id=_disk0,path={disk}");
    let (waiting, _) = vmm.begin(&[
        "receive-migration",
        &format!("tcp:0.0.0.0:{PORT}"),
        "--serial",
        &serial,
        "--net",
        &tap,
        "--disk",
        &disk,
    ])?;
    wait_until("the receiver", SOON, Duration::from_millis(50), || {
        Ok((vmm.ft_info()?.state == "waiting").then_some(()))
    })?;
    Ok((vmm, waiting))
}

fn url(cluster: &Cluster, host_index: usize) -> String {
    format!("tcp:{}:{PORT}", cluster.host(host_index).address())
}

fn moves<'a>(
    cluster: &'a Cluster,
    vm: &mut SingleVm<'a>,
    to: usize,
    options: &VmOptions,
    load: &JournalLoad,
) -> Result<()> {
    let (receiver, mut waiting) = receiver(cluster, to, options, vm)?;
    let begun = Instant::now();
    let sent = vm.vmm().ask(&["send-migration", &url(cluster, to)]);
    sent.with_context(|| format!("{}{}", vm.vmm().describe(), receiver.describe()))?;
    let took_ms = begun.elapsed().as_millis();
    let received = waiting.wait_at_most(SOON)?;
    ensure!(received == Some(Ended::Exited(0)), "receive-migration: {received:?}");
    let mut sender = vm.move_to(receiver);
    let ended = sender.wait(SOON)?;
    ensure!(ended == Ended::Exited(0), "the sender: {ended:?}\n{}", sender.describe());
    must_answer(load).with_context(|| vm.vmm().describe())?;
    is_plain(vm.vmm())?;
    println!("moved to host {to} within {took_ms} ms");
    Ok(())
}

/// It is there, and nobody protects it or is looked for.
fn is_plain(vmm: &mut VmmProcess) -> Result<()> {
    wait_until("a plain VM", SOON, Duration::from_millis(100), || {
        Ok((vmm.ft_info()?.state == "off").then_some(()))
    })?;
    let info = vmm.ask(&["info"])?;
    ensure!(info["state"] == "Running", "{info}");
    Ok(())
}

fn destination_dies<'a>(
    cluster: &'a Cluster,
    vm: &mut SingleVm<'a>,
    options: &VmOptions,
    load: &JournalLoad,
) -> Result<()> {
    let (mut receiver, _waiting) = receiver(cluster, 1, options, vm)?;
    vm.vmm().forget_events();
    let (mut sending, said) = vm.vmm().begin(&["send-migration", &url(cluster, 1)])?;
    vm.vmm().wait_for_event("ft", "joining", SOON)?;
    receiver.kill()?;
    let ended = sending.wait_at_most(SOON)?;
    let said = std::fs::read_to_string(&said)?;
    ensure!(ended == Some(Ended::Exited(1)), "send-migration ended with {ended:?}: {said}");
    ensure!(said.contains("did not move, and runs on here"), "it says: {said}");
    println!("{}", said.trim());
    must_answer(load).with_context(|| vm.vmm().describe())?;
    is_plain(vm.vmm())
}
