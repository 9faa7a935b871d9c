//! Exits as KVM writes them into the shared page, and what is read out of it.

use super::*;
use crate::run_page::tests::page_without_kvm;
use kvm_bindings::{KVM_EXIT_IO_OUT, KVM_INTERNAL_ERROR_DELIVERY_EV, KVM_MSR_EXIT_REASON_FILTER};

/// Where KVM puts the data of port I/O on x86.
const DATA: usize = 4096;

fn run_with(exit_reason: u32) -> kvm_run {
    kvm_run { exit_reason, ..Default::default() }
}

fn io(direction: u32, size: u8, count: u32) -> kvm_run {
    let mut run = run_with(KVM_EXIT_IO);
    // SAFETY: a member of a union of plain numbers, all zero.
    let io = unsafe { &mut run.__bindgen_anon_1.io };
    (io.direction, io.size, io.count, io.port) = (direction as u8, size, count, 0x3f8);
    io.data_offset = DATA as u64;
    run
}

#[test]
fn a_port_write_carries_its_bytes() {
    let page = page_without_kvm();
    page.write(DATA, &[0x41, 0x42, 0x43]);
    let (exit, pending) = decode(&io(KVM_EXIT_IO_OUT, 1, 1), &page);
    let data = IoData::new(&[0x41]);
    assert_eq!(exit, Exit::IoOut { port: 0x3f8, size: 1, count: 1, data });
    assert_eq!(pending, Pending::Completion);
}

#[test]
fn a_string_write_carries_all_its_bytes() {
    let page = page_without_kvm();
    let text: Vec<u8> = (0..=255).collect();
    page.write(DATA, &text);
    let (exit, _) = decode(&io(KVM_EXIT_IO_OUT, 2, 128), &page);
    let Exit::IoOut { data, size: 2, count: 128, .. } = exit else { panic!("{exit:?}") };
    assert_eq!(&data[..], text);
}

#[test]
fn a_port_read_waits_for_its_answer() {
    let page = page_without_kvm();
    let (exit, pending) = decode(&io(KVM_EXIT_IO_IN, 4, 3), &page);
    assert_eq!(exit, Exit::IoIn { port: 0x3f8, size: 4, count: 3 });
    assert_eq!(pending, Pending::Io { offset: DATA, length: 12 });
}

#[test]
fn output_outside_the_page_is_a_fault_and_not_a_crash() {
    let page = page_without_kvm();
    let mut run = io(KVM_EXIT_IO_OUT, 4, u32::MAX);
    assert!(matches!(decode(&run, &page).0, Exit::Fault(_)));
    run.__bindgen_anon_1.io.data_offset = u64::MAX;
    assert!(matches!(decode(&run, &page).0, Exit::Fault(_)));
}

#[test]
fn memory_mapped_accesses_have_address_size_and_data() {
    let page = page_without_kvm();
    let mut run = run_with(KVM_EXIT_MMIO);
    // SAFETY: a member of a union of plain numbers, all zero.
    let mmio = unsafe { &mut run.__bindgen_anon_1.mmio };
    (mmio.phys_addr, mmio.len, mmio.data) = (0xfee0_00b0, 4, [1, 2, 3, 4, 5, 6, 7, 8]);
    let (exit, pending) = decode(&run, &page);
    assert_eq!(exit, Exit::MmioRead { address: 0xfee0_00b0, size: 4 });
    assert_eq!(pending, Pending::Mmio { length: 4 });

    run.__bindgen_anon_1.mmio.is_write = 1;
    let data = [1, 2, 3, 4, 0, 0, 0, 0];
    let (exit, _) = decode(&run, &page);
    assert_eq!(exit, Exit::MmioWrite { address: 0xfee0_00b0, size: 4, data });

    run.__bindgen_anon_1.mmio.len = u32::MAX;
    let (exit, _) = decode(&run, &page);
    assert!(matches!(exit, Exit::MmioWrite { size: 8, .. }), "{exit:?}");
}

#[test]
fn msr_accesses_wait_for_their_answer() {
    let page = page_without_kvm();
    let mut run = run_with(KVM_EXIT_X86_WRMSR);
    // SAFETY: a member of a union of plain numbers, all zero.
    let msr = unsafe { &mut run.__bindgen_anon_1.msr };
    (msr.index, msr.data, msr.reason) = (0x10, 7, KVM_MSR_EXIT_REASON_FILTER);
    let write = Exit::MsrWrite { index: 0x10, value: 7 };
    assert_eq!(decode(&run, &page), (write, Pending::Msr));
    run.exit_reason = KVM_EXIT_X86_RDMSR;
    assert_eq!(decode(&run, &page), (Exit::MsrRead { index: 0x10 }, Pending::Msr));
}

#[test]
fn the_task_priority_comes_with_its_exit() {
    let run = kvm_run { exit_reason: KVM_EXIT_SET_TPR, cr8: 0xd, ..Default::default() };
    assert_eq!(decode(&run, &page_without_kvm()).0, Exit::SetTpr { value: 0xd });
}

#[test]
fn plain_exits_are_themselves() {
    let page = page_without_kvm();
    for (reason, exit) in [
        (KVM_EXIT_HLT, Exit::Halt),
        (KVM_EXIT_IRQ_WINDOW_OPEN, Exit::WindowOpen),
        (KVM_EXIT_SHUTDOWN, Exit::Shutdown),
        (KVM_EXIT_INTR, Exit::Interrupted),
    ] {
        assert_eq!(decode(&run_with(reason), &page), (exit, Pending::Nothing));
    }
}

#[test]
fn what_kvm_cannot_do_is_told_in_words() {
    let page = page_without_kvm();
    let text = |run: &kvm_run| match decode(run, &page).0 {
        Exit::Fault(info) => (info.kind, info.to_string()),
        exit => panic!("{exit:?}"),
    };
    let mut run = run_with(KVM_EXIT_INTERNAL_ERROR);
    run.__bindgen_anon_1.internal.suberror = KVM_INTERNAL_ERROR_EMULATION;
    let (kind, words) = text(&run);
    assert_eq!(kind, FaultKind::Emulation);
    assert!(words.contains("cannot emulate"), "{words}");

    // SAFETY: a member of a union of plain numbers.
    let internal = unsafe { &mut run.__bindgen_anon_1.internal };
    (internal.suberror, internal.ndata) = (KVM_INTERNAL_ERROR_DELIVERY_EV, u32::MAX);
    assert_eq!(text(&run).0, FaultKind::Internal);

    assert_eq!(text(&run_with(KVM_EXIT_FAIL_ENTRY)).0, FaultKind::EntryFailed);
    let (kind, words) = text(&run_with(77));
    assert_eq!(kind, FaultKind::Unknown);
    assert!(words.contains("77"), "{words}");
}

#[test]
fn few_and_many_bytes_look_the_same() {
    for length in [0, 1, 4, 5, 4096] {
        let bytes = vec![7; length];
        assert_eq!(&IoData::new(&bytes)[..], bytes);
    }
    assert_eq!(format!("{:?}", IoData::new(&[1, 0xff])), "[01, ff]");
}
