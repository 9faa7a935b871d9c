//! The one policy about model-specific registers: which of them KVM answers, and what the guest
//! gets from all others.
//!
//! KVM is told to deny all that is not in [`IN_KERNEL`]. Whatever else the guest touches comes to
//! user space as an exit and is answered from one fixed table, the same on every host: a register
//! of another kernel version, of another processor, or with a clock behind it cannot leak in.
//! A register that is in neither table does not exist: the guest gets a general protection fault,
//! as it would on a processor without it. So TSC, TSC_ADJUST, TSC_AUX, APERF, MPERF, the
//! performance counters and kvm-clock do not exist, in step with what CPUID says.

use kvm_ioctls::{MsrFilterDefaultAction, MsrFilterRange, MsrFilterRangeFlags, VmFd};

use crate::{Error, Result};

/// One register that KVM itself reads and writes for the guest.
struct InKernel {
    index: u32,
    /// Whether its value is saved as an MSR (or as part of the system registers).
    saved: bool,
}

const fn saved(index: u32) -> InKernel {
    InKernel { index, saved: true }
}

const fn with_system_registers(index: u32) -> InKernel {
    InKernel { index, saved: false }
}

/// All that KVM answers by itself: state that only the guest changes, and that we save.
const IN_KERNEL: &[InKernel] = &[
    with_system_registers(0x1b),        // APIC_BASE
    saved(0x174),                       // SYSENTER_CS
    saved(0x175),                       // SYSENTER_ESP
    saved(0x176),                       // SYSENTER_EIP
    saved(0x277),                       // PAT
    with_system_registers(0xc000_0080), // EFER
    saved(0xc000_0081),                 // STAR
    saved(0xc000_0082),                 // LSTAR
    saved(0xc000_0083),                 // CSTAR
    saved(0xc000_0084),                 // SFMASK
    with_system_registers(0xc000_0100), // FS_BASE
    with_system_registers(0xc000_0101), // GS_BASE
    saved(0xc000_0102),                 // KERNEL_GS_BASE
];

/// Registers that a kernel reads or sets without asking whether they exist, with what it reads.
/// Writes to them are ignored.
const FIXED: &[(u32, u64)] = &[
    (0x17, 0),             // PLATFORM_ID: which microcode a processor takes
    (0x3a, 1),             // FEAT_CTL: locked, neither VMX nor SGX
    (0x8b, 0x1_0100_0065), // microcode revision; Intel's is the upper half, AMD's the lower
    (0x1a0, 0x1801),       // MISC_ENABLE: fast strings; no branch trace, no PEBS
    (0x1d9, 0),            // DEBUGCTL
    (0xc001_0010, 0),      // AMD SYSCFG
    (0xc001_0015, 0),      // AMD HWCR
    (0xc001_001f, 0),      // AMD NB_CFG
    (0xc001_0055, 0),      // AMD INT_PENDING_MSG
    (0xc001_0058, 0),      // AMD MMIO_CONF_BASE
    (0xc001_0112, 0),      // AMD TSEG_ADDR
    (0xc001_1020, 0),      // AMD LS_CFG
    (0xc001_1021, 0),      // AMD IC_CFG
    (0xc001_1022, 0),      // AMD DC_CFG
    (0xc001_1023, 0),      // AMD BU_CFG or TW_CFG
    (0xc001_1029, 1 << 1), // AMD DE_CFG: LFENCE waits for all instructions before it
    (0xc001_102a, 0),      // AMD BU_CFG2
];

/// What the guest reads from a register that KVM does not answer, or `None` if it does not exist
/// (a general protection fault).
#[must_use]
pub fn answer_unknown_msr(index: u32) -> Option<u64> {
    FIXED.iter().find(|(known, _)| *known == index).map(|(_, value)| *value)
}

/// Whether a write of the guest to a register that KVM does not take is ignored (`Some`, with the
/// value that reads go on to give) or is a general protection fault (`None`).
#[must_use]
pub fn accept_unknown_msr_write(index: u32, _value: u64) -> Option<u64> {
    answer_unknown_msr(index)
}

/// The registers that are saved with a virtual CPU, in ascending order.
pub(crate) fn saved_indices() -> impl Iterator<Item = u32> {
    IN_KERNEL.iter().filter(|register| register.saved).map(|register| register.index)
}

/// First registers of the ranges that the filter lists bit by bit, and their length.
const RANGES: [u32; 2] = [0, 0xc000_0000];
const RANGE_REGISTERS: u32 = 0x400;

/// The filter's bits: one for each register of a range, set for those that KVM answers.
fn allowed_bits(base: u32) -> [u8; RANGE_REGISTERS as usize / 8] {
    let mut bits = [0; RANGE_REGISTERS as usize / 8];
    for register in IN_KERNEL {
        let Some(place) = register.index.checked_sub(base) else { continue };
        if let Some(byte) = bits.get_mut(place as usize / 8) {
            *byte |= 1 << (place % 8);
        }
    }
    bits
}

/// Denies all registers to the guest but those in [`IN_KERNEL`].
pub(crate) fn install_filter(vm: &VmFd) -> Result<()> {
    let bits = RANGES.map(allowed_bits);
    let ranges: Vec<_> = RANGES
        .iter()
        .zip(&bits)
        .map(|(base, bitmap)| MsrFilterRange {
            flags: MsrFilterRangeFlags::READ | MsrFilterRangeFlags::WRITE,
            base: *base,
            msr_count: RANGE_REGISTERS,
            bitmap,
        })
        .collect();
    vm.set_msr_filter(MsrFilterDefaultAction::DENY, &ranges)
        .map_err(Error::request("filter model-specific registers"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Registers with a clock or a counter behind them, or that set one.
    const CLOCKS: &[u32] = &[
        0x10,        // TSC
        0x3b,        // TSC_ADJUST
        0xe7,        // MPERF
        0xe8,        // APERF
        0xc1,        // the first performance counter
        0x186,       // its selector
        0x309,       // a fixed performance counter
        0x38f,       // performance counters, global control
        0x6e0,       // TSC deadline
        0x802,       // x2APIC id
        0x839,       // x2APIC current count
        0x11,        // kvm-clock wall clock, old
        0x12,        // kvm-clock system time, old
        0x4b56_4d00, // kvm-clock wall clock
        0x4b56_4d01, // kvm-clock system time
        0x4b56_4d02, // asynchronous page faults
        0x4b56_4d03, // steal time
        0x4000_0020, // Hyper-V reference counter
        0xc000_0103, // TSC_AUX
        0xc000_0104, // TSC ratio
        0xc001_0004, // AMD performance counter
        0xc001_0200, // AMD performance counter, extended
    ];

    fn passes_the_filter(index: u32) -> bool {
        RANGES.iter().any(|base| {
            index.checked_sub(*base).is_some_and(|place| {
                allowed_bits(*base)
                    .get(place as usize / 8)
                    .is_some_and(|byte| byte >> (place % 8) & 1 != 0)
            })
        })
    }

    #[test]
    fn no_clock_exists_for_the_guest() {
        for index in CLOCKS {
            assert!(!passes_the_filter(*index), "{index:#x} reaches KVM");
            assert_eq!(answer_unknown_msr(*index), None, "{index:#x} is answered");
            assert_eq!(accept_unknown_msr_write(*index, 1), None, "{index:#x} can be written");
        }
    }

    #[test]
    fn system_call_registers_stay_with_kvm() {
        for index in [0x1b, 0x174, 0x277, 0xc000_0080, 0xc000_0082, 0xc000_0102] {
            assert!(passes_the_filter(index), "{index:#x} is cut off");
        }
    }

    #[test]
    fn every_register_has_exactly_one_owner() {
        for register in IN_KERNEL {
            assert!(passes_the_filter(register.index), "{:#x} is in no range", register.index);
            assert_eq!(answer_unknown_msr(register.index), None, "{:#x}", register.index);
        }
        for (index, _) in FIXED {
            assert!(!passes_the_filter(*index), "{index:#x}");
        }
    }

    #[test]
    fn the_filter_lets_nothing_else_pass() {
        let passing =
            RANGES.iter().flat_map(|base| allowed_bits(*base)).map(u8::count_ones).sum::<u32>();
        assert_eq!(passing as usize, IN_KERNEL.len());
    }

    #[test]
    fn saved_registers_are_in_ascending_order() {
        let indices: Vec<_> = saved_indices().collect();
        assert!(indices.is_sorted(), "{indices:x?}");
        assert!(indices.contains(&0xc000_0102));
    }
}
