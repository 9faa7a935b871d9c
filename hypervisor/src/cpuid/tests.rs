//! What the policy promises: nothing of the host's clock, entropy, place or hypervisor shows.

use super::*;
use proptest::prelude::*;

const SIGNIFICANT: u32 = KVM_CPUID_FLAG_SIGNIFCANT_INDEX;

fn entry(function: u32, index: u32, registers: [u32; 4]) -> CpuidEntry {
    let [eax, ebx, ecx, edx] = registers;
    let flags = if matches!(function, 4 | 7 | 0xb | 0xd | 0x1f | 0x8000_001d | 0x8000_001e) {
        SIGNIFICANT
    } else {
        0
    };
    CpuidEntry { function, index, flags, eax, ebx, ecx, edx }
}

const MAKER: [u32; 3] = [0x6874_7541, 0x444d_4163, 0x6974_6e65];

/// A processor that has everything, also what is not invented yet: every bit of every leaf is one.
fn host_with_everything() -> Vec<CpuidEntry> {
    let basic = 0..=0x24;
    let hypervisor = 0x4000_0000..=0x4000_0001;
    let extended = 0x8000_0000..=0x8000_0026;
    let mut host: Vec<_> = basic
        .chain(hypervisor)
        .chain(extended)
        .flat_map(|function| {
            let indices = if matches!(function, 4 | 7 | 0xb | 0xd | 0x1f) { 0..4 } else { 0..1 };
            indices.map(move |index| entry(function, index, [u32::MAX; 4]))
        })
        .collect();
    let [ebx, edx, ecx] = MAKER;
    host[0] = entry(0, 0, [0x24, ebx, ecx, edx]);
    host
}

fn get(cpuid: &Cpuid, function: u32) -> CpuidEntry {
    find(&cpuid.0, function, 0).unwrap_or_else(|| panic!("leaf {function:#x} is missing"))
}

fn change(host: &mut [CpuidEntry], function: u32, what: impl Fn(&mut CpuidEntry)) {
    let mut changed = false;
    for entry in host.iter_mut().filter(|entry| entry.function == function) {
        what(entry);
        changed = true;
    }
    assert!(changed, "no leaf {function:#x}");
}

/// Bits that must never be seen: leaf, register (0 is `eax`), bit, and what it is.
const HIDDEN: &[(u32, usize, u32, &str)] = &[
    (1, 2, 2, "64-bit debug store"),
    (1, 2, 3, "monitor and mwait"),
    (1, 2, 5, "vmx"),
    (1, 2, 12, "fma, which needs xsave"),
    (1, 2, 15, "performance capabilities"),
    (1, 2, 21, "x2apic"),
    (1, 2, 24, "tsc deadline"),
    (1, 2, 26, "xsave"),
    (1, 2, 27, "osxsave"),
    (1, 2, 28, "avx"),
    (1, 2, 30, "rdrand"),
    (1, 2, 31, "hypervisor"),
    (1, 3, 4, "tsc"),
    (1, 3, 7, "machine check exception"),
    (1, 3, 12, "mtrr"),
    (1, 3, 14, "machine check architecture"),
    (1, 3, 21, "debug store"),
    (1, 3, 22, "thermal control"),
    (1, 3, 28, "several logical processors"),
    (1, 3, 29, "thermal monitor"),
    (7, 1, 1, "tsc adjust"),
    (7, 1, 2, "sgx"),
    (7, 1, 4, "hle"),
    (7, 1, 5, "avx2"),
    (7, 1, 11, "rtm"),
    (7, 1, 18, "rdseed"),
    (7, 1, 25, "processor trace"),
    (7, 2, 3, "protection keys"),
    (7, 2, 5, "waitpkg"),
    (7, 2, 22, "rdpid"),
    (0x8000_0001, 2, 2, "svm"),
    (0x8000_0001, 2, 10, "ibs"),
    (0x8000_0001, 2, 22, "topology extensions"),
    (0x8000_0001, 2, 23, "performance counters"),
    (0x8000_0001, 2, 28, "performance counters of the last cache"),
    (0x8000_0001, 2, 29, "mwaitx"),
    (0x8000_0001, 3, 4, "tsc"),
    (0x8000_0001, 3, 27, "rdtscp"),
];

#[test]
fn what_is_not_deterministic_is_hidden() {
    let guest = guest_cpuid(&host_with_everything());
    for (function, place, bit, name) in HIDDEN {
        let seen = get(&guest, *function).registers()[*place] >> bit & 1;
        assert_eq!(seen, 0, "{name} shows in leaf {function:#x}");
    }
}

#[test]
fn leaves_of_clocks_counters_and_topology_do_not_exist() {
    let guest = guest_cpuid(&host_with_everything());
    for function in
        [5, 0xa, 0xb, 0xd, 0x14, 0x15, 0x16, 0x1f, 0x4000_0000, 0x4000_0001, 0x8000_0007]
    {
        assert_eq!(find(&guest.0, function, 0), None, "leaf {function:#x}");
    }
    let highest = guest.0.iter().map(|entry| entry.function).max();
    assert_eq!(highest, Some(0x8000_0008), "nothing beyond, so no 0x8000001e either");
    assert_eq!(get(&guest, 0).eax, 7);
    assert_eq!(get(&guest, 0x8000_0000).eax, 0x8000_0008);
}

#[test]
fn the_apic_id_of_the_hosts_cpu_never_shows() {
    let host = host_with_everything();
    let expected = guest_cpuid(&host);
    assert_eq!(get(&expected, 1).ebx >> 24, 0);
    for id in [0, 1, 5, 0x7f] {
        let mut elsewhere = host.clone();
        change(&mut elsewhere, 1, |entry| entry.ebx = entry.ebx & 0x00ff_ffff | id << 24);
        change(&mut elsewhere, 0xb, |entry| entry.edx = id);
        change(&mut elsewhere, 0x1f, |entry| entry.edx = id);
        change(&mut elsewhere, 0x8000_001e, |entry| entry.eax = id);
        assert_eq!(guest_cpuid(&elsewhere), expected, "seen from a CPU with APIC id {id}");
    }
}

#[test]
fn undoing_a_treatment_shows_what_it_hid() {
    let mut host = host_with_everything();
    let leave_tsc = CpuidPolicy { hide_tsc: false, ..Default::default() };
    let guest = guest_cpuid_with(&host, leave_tsc);
    assert_ne!(get(&guest, 1).edx & TSC, 0);
    assert_ne!(get(&guest, 0x8000_0001).edx & RDTSCP, 0);

    let leave_apic_id = CpuidPolicy { hide_apic_id: false, ..Default::default() };
    change(&mut host, 0x8000_001e, |entry| entry.eax = 3);
    let here = guest_cpuid_with(&host, leave_apic_id);
    change(&mut host, 0x8000_001e, |entry| entry.eax = 4);
    let there = guest_cpuid_with(&host, leave_apic_id);
    assert_ne!(here, there);
    assert!(get(&here, 0x8000_0000).eax >= 0x8000_001e, "the guest can reach the leaf");
}

#[test]
fn the_apic_is_there_whatever_the_host_says() {
    let mut host = host_with_everything();
    change(&mut host, 1, |entry| entry.edx = 0);
    assert_eq!(get(&guest_cpuid(&host), 1).edx, 1 << 9);
}

#[test]
fn user_spaces_of_the_second_level_run() {
    // x86-64-v2: cx16, lahf, popcnt, sse3, ssse3, sse4.1, sse4.2.
    let guest = guest_cpuid(&host_with_everything());
    for bit in [0, 9, 13, 19, 20, 23] {
        assert_ne!(get(&guest, 1).ecx & 1 << bit, 0, "bit {bit}");
    }
    assert_ne!(get(&guest, 0x8000_0001).ecx & 1, 0, "lahf in 64-bit mode");
}

#[test]
fn the_host_order_of_leaves_does_not_matter() {
    let mut host = host_with_everything();
    let expected = guest_cpuid(&host);
    host.reverse();
    assert_eq!(guest_cpuid(&host), expected);
    assert!(expected.0.is_sorted_by_key(|entry| (entry.function, entry.index)));
}

#[test]
fn leaves_that_the_host_lacks_are_not_made_up() {
    let mut host = host_with_everything();
    change(&mut host, 4, |found| *found = entry(4, found.index, [0; 4]));
    host.retain(|entry| entry.function != 2);
    let guest = guest_cpuid(&host);
    assert!(guest.0.iter().all(|entry| !matches!(entry.function, 2 | 4)));
    assert_eq!(guest_cpuid(&[]), Cpuid(Vec::new()));
}

#[test]
fn a_host_can_run_its_own_guests() {
    let host = host_with_everything();
    check_cpuid(&guest_cpuid(&host), &host).expect("its own");
}

#[test]
fn a_missing_feature_is_named() {
    let wanted = guest_cpuid(&host_with_everything());
    let mut host = host_with_everything();
    change(&mut host, 1, |entry| entry.ecx &= !(1 << 20));
    let error = check_cpuid(&wanted, &host).expect_err("sse4.2 is missing").to_string();
    assert!(error.contains("lacks sse4.2"), "{error}");
}

#[test]
fn a_missing_bit_without_a_name_is_named_by_its_place() {
    let mut wanted = guest_cpuid(&host_with_everything());
    change(&mut wanted.0, 1, |entry| entry.ecx |= 1 << 30);
    let mut host = host_with_everything();
    change(&mut host, 1, |entry| entry.ecx &= !(1 << 30));
    let error = check_cpuid(&wanted, &host).expect_err("rdrand is missing").to_string();
    assert!(error.contains("bit 30 of ecx in CPUID leaf 0x1"), "{error}");
}

#[test]
fn a_processor_of_another_maker_is_refused() {
    let wanted = guest_cpuid(&host_with_everything());
    let mut host = host_with_everything();
    change(&mut host, 0, |entry| entry.ebx ^= 1);
    let error = check_cpuid(&wanted, &host).expect_err("another maker").to_string();
    assert!(error.contains("another maker"), "{error}");
}

#[test]
fn narrower_addresses_are_refused_and_wider_ones_are_not() {
    let mut host = host_with_everything();
    change(&mut host, 0x8000_0008, |entry| entry.eax = 48 << 8 | 40);
    let wanted = guest_cpuid(&host);
    change(&mut host, 0x8000_0008, |entry| entry.eax = 57 << 8 | 52);
    check_cpuid(&wanted, &host).expect("wider");
    change(&mut host, 0x8000_0008, |entry| entry.eax = 48 << 8 | 39);
    let error = check_cpuid(&wanted, &host).expect_err("narrower").to_string();
    assert!(error.contains("39-bit physical addresses"), "{error}");
}

#[test]
fn another_model_of_the_same_maker_with_all_features_is_taken() {
    let wanted = guest_cpuid(&host_with_everything());
    let mut host = host_with_everything();
    change(&mut host, 1, |entry| entry.eax = 0x00a2_0f12);
    change(&mut host, 0x8000_0002, |entry| entry.eax = 0x4242_4242);
    check_cpuid(&wanted, &host).expect("the same features");
}

fn any_host() -> impl Strategy<Value = Vec<CpuidEntry>> {
    let word = prop_oneof![Just(0), Just(u32::MAX), any::<u32>()];
    let words = proptest::collection::vec(word, 4 * 64);
    words.prop_map(|words| {
        let mut words = words.into_iter().cycle();
        let mut host = host_with_everything();
        for entry in host.iter_mut().skip(1) {
            (entry.eax, entry.ebx) = (words.next().unwrap_or(0), words.next().unwrap_or(0));
            (entry.ecx, entry.edx) = (words.next().unwrap_or(0), words.next().unwrap_or(0));
        }
        host
    })
}

proptest! {
    #[test]
    fn no_host_shows_more_than_the_host_with_everything(host in any_host()) {
        let most = guest_cpuid(&host_with_everything());
        for (function, place, bit, name) in HIDDEN {
            if let Some(entry) = find(&guest_cpuid(&host).0, *function, 0) {
                prop_assert_eq!(entry.registers()[*place] >> bit & 1, 0, "{}", name);
            }
        }
        for entry in &guest_cpuid(&host).0 {
            prop_assert!(find(&most.0, entry.function, entry.index).is_some());
        }
    }

    #[test]
    fn the_policy_applied_twice_is_the_policy(host in any_host()) {
        let guest = guest_cpuid(&host);
        prop_assert_eq!(guest_cpuid(&guest.0), guest);
    }

    #[test]
    fn every_host_can_run_its_own_guests(host in any_host()) {
        prop_assert!(check_cpuid(&guest_cpuid(&host), &host).is_ok());
    }

    #[test]
    fn no_list_from_elsewhere_can_break_the_check(
        functions in proptest::collection::vec((any::<u32>(), 0_u32..8, any::<[u32; 4]>()), 0..64),
    ) {
        let list: Vec<_> =
            functions.into_iter().map(|(f, i, registers)| entry(f % 0x24, i, registers)).collect();
        let _ = check_cpuid(&Cpuid(list.clone()), &host_with_everything());
        let _ = check_cpuid(&guest_cpuid(&host_with_everything()), &list);
        let _ = guest_cpuid(&list);
    }
}
