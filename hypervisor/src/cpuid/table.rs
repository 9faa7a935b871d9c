//! The table of what a guest sees of `cpuid`: rows in ascending order, one for each leaf.
//!
//! Left out on purpose, and why:
//!
//! * time: TSC, TSC deadline, RDTSCP, TSC_ADJUST, invariant TSC, leaves 0x15 and 0x16 (its rate),
//!   RDPID, UMWAIT, MWAIT, performance counters (leaf 0xa, AMD's PerfCtr), IBS, processor trace;
//! * entropy: RDRAND, RDSEED;
//! * where it runs: APIC ids and topology (leaves 1, 4, 0xb, 0x1f, 0x8000001d, 0x8000001e), x2APIC;
//! * what ends differently each time: TSX (a transaction aborts when the host is interrupted);
//! * state that instructions save in an undefined way (XSAVE's "modified" optimisation), and with
//!   it AVX, protection keys and AMX: no XSAVE at all for now;
//! * the hypervisor bit and all of 0x4000_0000: kvm-clock, steal time, asynchronous page faults;
//! * what this machine does not have: SVM, VMX, SGX, memory encryption, machine checks, MTRRs,
//!   thermal and power management;
//! * the speculation controls (leaf 7 `edx`, leaf 0x80000008 `ebx`): deterministic, but their
//!   registers would have to be saved. To be added with them.

/// What becomes of one register of a leaf.
#[derive(Clone, Copy, Debug)]
pub(super) enum Word {
    /// Hidden.
    Zero,
    /// The same on all hosts.
    Fixed(u32),
    /// The host's number, up to a limit: how many leaves there are.
    AtMost(u32),
    /// The host's, and only a host with the same can run the guest.
    Identity,
    /// The host's, a matter of information only.
    Host,
    /// Numbers of bits in the bytes that `bytes` keeps; a host needs at least as many.
    Widths {
        /// The mask of the bytes.
        bytes: u32,
    },
    /// Features: those of the host that are allowed, and those that the platform itself brings.
    Flags {
        /// What the guest may see if the host has it.
        allowed: &'static [Flag],
        /// What is there without the host's help.
        always: u32,
    },
}

/// One feature.
#[derive(Clone, Copy, Debug)]
pub(super) struct Flag {
    bit: u8,
    offered: bool,
    /// Its usual name, for messages.
    pub name: &'static str,
}

impl Flag {
    /// The feature's bit in its register; none if it is not offered.
    pub(super) const fn mask(self) -> u32 {
        if self.offered { 1 << self.bit } else { 0 }
    }
}

/// A leaf, or with `index` one sub-leaf of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Row {
    pub function: u32,
    pub index: Option<u32>,
    /// `eax`, `ebx`, `ecx`, `edx`.
    pub words: [Word; 4],
}

/// Whether guests see CMPXCHG16B, which x86-64-v2 user spaces need.
const OFFER_CX16: bool = true;

const fn flag(bit: u8, name: &'static str) -> Flag {
    Flag { bit, offered: true, name }
}

const fn flag_if(offered: bool, bit: u8, name: &'static str) -> Flag {
    Flag { bit, offered, name }
}

const fn flags(allowed: &'static [Flag]) -> Word {
    Word::Flags { allowed, always: 0 }
}

const fn row(function: u32, words: [Word; 4]) -> Row {
    Row { function, index: None, words }
}

const fn sub_row(function: u32, index: u32, words: [Word; 4]) -> Row {
    Row { function, index: Some(index), words }
}

const fn fixed(eax: u32, ebx: u32, ecx: u32, edx: u32) -> [Word; 4] {
    [Word::Fixed(eax), Word::Fixed(ebx), Word::Fixed(ecx), Word::Fixed(edx)]
}

/// Bit 9 of leaf 1, `edx`: the machine has a local APIC of its own, in user space.
const APIC: u32 = 1 << 9;

/// Leaf 1, `ebx`: APIC id 0, one logical processor, cache lines of 64 bytes, no brand index.
const ONE_PROCESSOR: u32 = 1 << 16 | 8 << 8;

const LEAF_1_ECX: &[Flag] = &[
    flag(0, "sse3"),
    flag(1, "pclmulqdq"),
    flag(9, "ssse3"),
    flag_if(OFFER_CX16, 13, "cx16"),
    flag(17, "pcid"),
    flag(19, "sse4.1"),
    flag(20, "sse4.2"),
    flag(22, "movbe"),
    flag(23, "popcnt"),
    flag(25, "aes"),
];

const LEAF_1_EDX: &[Flag] = &[
    flag(0, "fpu"),
    flag(1, "vme"),
    flag(2, "de"),
    flag(3, "pse"),
    flag(5, "msr"),
    flag(6, "pae"),
    flag(8, "cx8"),
    flag(11, "sep"),
    flag(13, "pge"),
    flag(15, "cmov"),
    flag(16, "pat"),
    flag(17, "pse36"),
    flag(19, "clflush"),
    flag(23, "mmx"),
    flag(24, "fxsr"),
    flag(25, "sse"),
    flag(26, "sse2"),
];

const LEAF_7_EBX: &[Flag] = &[
    flag(0, "fsgsbase"),
    flag(3, "bmi1"),
    flag(7, "smep"),
    flag(8, "bmi2"),
    flag(9, "erms"),
    flag(10, "invpcid"),
    flag(19, "adx"),
    flag(20, "smap"),
    flag(23, "clflushopt"),
    flag(24, "clwb"),
    flag(29, "sha_ni"),
];

const LEAF_80000001_ECX: &[Flag] = &[
    flag(0, "lahf_lm"),
    flag(5, "abm"),
    flag(6, "sse4a"),
    flag(7, "misalignsse"),
    flag(8, "3dnowprefetch"),
];

/// The lower bits repeat leaf 1 on AMD processors.
const LEAF_80000001_EDX: &[Flag] = &[
    flag(0, "fpu"),
    flag(1, "vme"),
    flag(2, "de"),
    flag(3, "pse"),
    flag(5, "msr"),
    flag(6, "pae"),
    flag(8, "cx8"),
    flag(9, "apic"),
    flag(11, "syscall"),
    flag(13, "pge"),
    flag(15, "cmov"),
    flag(16, "pat"),
    flag(17, "pse36"),
    flag(20, "nx"),
    flag(22, "mmxext"),
    flag(23, "mmx"),
    flag(24, "fxsr"),
    flag(26, "pdpe1gb"),
    flag(29, "lm"),
];

/// All that a guest sees. The caches are described the same on all hosts: 32 KiB each of data and
/// instructions, and a second level of 1 MiB (Intel's form, leaf 4) or 512 KiB (AMD's form).
pub(super) const TABLE: &[Row] = &[
    row(0, [Word::AtMost(7), Word::Identity, Word::Identity, Word::Identity]),
    row(
        1,
        [
            Word::Host,
            Word::Fixed(ONE_PROCESSOR),
            flags(LEAF_1_ECX),
            Word::Flags { allowed: LEAF_1_EDX, always: APIC },
        ],
    ),
    row(2, fixed(0x00fe_ff01, 0, 0, 0)),
    sub_row(4, 0, fixed(0x121, 7 << 22 | 63, 63, 0)),
    sub_row(4, 1, fixed(0x122, 7 << 22 | 63, 63, 0)),
    sub_row(4, 2, fixed(0x143, 15 << 22 | 63, 1023, 0)),
    sub_row(4, 3, fixed(0, 0, 0, 0)),
    // The APIC timer never stops: it is ours.
    row(6, fixed(1 << 2, 0, 0, 0)),
    sub_row(7, 0, [Word::Fixed(0), flags(LEAF_7_EBX), Word::Zero, flags(&[flag(4, "fsrm")])]),
    row(0x8000_0000, [Word::AtMost(0x8000_0008), Word::Host, Word::Host, Word::Host]),
    row(0x8000_0001, [Word::Host, Word::Zero, flags(LEAF_80000001_ECX), flags(LEAF_80000001_EDX)]),
    row(0x8000_0002, [Word::Host; 4]),
    row(0x8000_0003, [Word::Host; 4]),
    row(0x8000_0004, [Word::Host; 4]),
    row(0x8000_0005, fixed(0xff40_ff40, 0xff40_ff40, 0x2008_0140, 0x2008_0140)),
    row(0x8000_0006, fixed(0, 0, 0x0200_6140, 0)),
    row(0x8000_0008, [Word::Widths { bytes: 0xffff }, Word::Zero, Word::Zero, Word::Zero]),
];
