//! What a guest may know about its processor: one pure function over one table ([`table`]).
//!
//! The table is an allow-list. A leaf, a register or a bit that it does not name is zero for the
//! guest, so what a future processor or kernel adds stays hidden until somebody has thought about
//! it. What depends on the physical CPU that happens to run KVM's query (its APIC id, its place in
//! the topology, its caches on a hybrid processor) is never taken over.

mod check;
mod table;
#[cfg(test)]
mod tests;

use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};
use serde::{Deserialize, Serialize};

pub use check::check_cpuid;
use table::{Row, TABLE, Word};

/// One leaf of the `cpuid` instruction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuidEntry {
    /// The leaf: `eax` before the instruction.
    pub function: u32,
    /// The sub-leaf: `ecx` before the instruction, if it matters.
    pub index: u32,
    /// KVM's flags: bit 0 says that `index` matters.
    pub flags: u32,
    /// `eax` after the instruction.
    pub eax: u32,
    /// `ebx` after the instruction.
    pub ebx: u32,
    /// `ecx` after the instruction.
    pub ecx: u32,
    /// `edx` after the instruction.
    pub edx: u32,
}

/// All leaves that a guest sees; others read as zero.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cpuid(pub Vec<CpuidEntry>);

/// Treatments that a test may undo to prove that they matter. Users have no reason to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuidPolicy {
    /// Whether the time stamp counter is hidden, `rdtscp` included.
    pub hide_tsc: bool,
    /// Whether the APIC id and topology of the host's CPU are hidden.
    pub hide_apic_id: bool,
}

impl Default for CpuidPolicy {
    fn default() -> Self {
        Self { hide_tsc: true, hide_apic_id: true }
    }
}

/// The processor that a guest on this host gets, from what KVM supports there.
#[must_use]
pub fn guest_cpuid(host: &[CpuidEntry]) -> Cpuid {
    guest_cpuid_with(host, CpuidPolicy::default())
}

/// As [`guest_cpuid`], with some treatments undone.
#[must_use]
pub fn guest_cpuid_with(host: &[CpuidEntry], policy: CpuidPolicy) -> Cpuid {
    let mut guest = Cpuid(TABLE.iter().filter_map(|row| guest_entry(row, host)).collect());
    if !policy.hide_tsc {
        show_tsc(&mut guest, host);
    }
    if !policy.hide_apic_id {
        show_apic_id(&mut guest, host);
    }
    guest
}

fn guest_entry(row: &Row, host: &[CpuidEntry]) -> Option<CpuidEntry> {
    // A leaf that this host does not have is not made up, a fixed one neither.
    let exists =
        host.iter().any(|entry| entry.function == row.function && entry.registers() != [0; 4]);
    if !exists {
        return None;
    }
    let host = find(host, row.function, row.index.unwrap_or(0)).unwrap_or_default();
    let registers = host.registers();
    let [eax, ebx, ecx, edx] =
        std::array::from_fn(|place| row.words[place].apply(registers[place]));
    let (index, flags) = match row.index {
        Some(index) => (index, KVM_CPUID_FLAG_SIGNIFCANT_INDEX),
        None => (0, 0),
    };
    Some(CpuidEntry { function: row.function, index, flags, eax, ebx, ecx, edx })
}

impl Word {
    /// What the guest sees of a register, given the host's.
    fn apply(&self, host: u32) -> u32 {
        match self {
            Self::Zero => 0,
            Self::Fixed(value) => *value,
            Self::AtMost(limit) => host.min(*limit),
            Self::Identity | Self::Host => host,
            Self::Widths { bytes } => host & bytes,
            Self::Flags { allowed, always } => {
                let mask = allowed.iter().fold(0, |mask, flag| mask | flag.mask());
                host & mask | always
            }
        }
    }
}

fn find(entries: &[CpuidEntry], function: u32, index: u32) -> Option<CpuidEntry> {
    let fits = |entry: &&CpuidEntry| {
        let any_index = entry.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX == 0;
        entry.function == function && (any_index || entry.index == index)
    };
    entries.iter().find(fits).copied()
}

const TSC: u32 = 1 << 4;
const TSC_DEADLINE: u32 = 1 << 24;
const RDTSCP: u32 = 1 << 27;

fn show_tsc(guest: &mut Cpuid, host: &[CpuidEntry]) {
    for entry in &mut guest.0 {
        let Some(host) = find(host, entry.function, entry.index) else { continue };
        match entry.function {
            1 => {
                entry.edx |= host.edx & TSC;
                entry.ecx |= host.ecx & TSC_DEADLINE;
            }
            0x8000_0001 => entry.edx |= host.edx & (TSC | RDTSCP),
            _ => {}
        }
    }
}

/// AMD: topology extensions, with the leaf that has the APIC id of the CPU that KVM asked.
const AMD_TOPOLOGY: u32 = 0x8000_001e;
const AMD_TOPOLOGY_FLAG: u32 = 1 << 22;

fn show_apic_id(guest: &mut Cpuid, host: &[CpuidEntry]) {
    let topology = find(host, AMD_TOPOLOGY, 0);
    for entry in &mut guest.0 {
        let Some(host) = find(host, entry.function, entry.index) else { continue };
        match entry.function {
            1 => entry.ebx = host.ebx,
            0x8000_0000 if topology.is_some() => entry.eax = AMD_TOPOLOGY,
            0x8000_0001 => entry.ecx |= host.ecx & AMD_TOPOLOGY_FLAG,
            _ => {}
        }
    }
    guest.0.extend(host.iter().filter(|entry| matches!(entry.function, 0xb | 0x1f)));
    guest.0.extend(topology);
}

impl CpuidEntry {
    fn registers(&self) -> [u32; 4] {
        [self.eax, self.ebx, self.ecx, self.edx]
    }
}

impl From<&kvm_cpuid_entry2> for CpuidEntry {
    fn from(entry: &kvm_cpuid_entry2) -> Self {
        let kvm_cpuid_entry2 { function, index, flags, eax, ebx, ecx, edx, .. } = *entry;
        Self { function, index, flags, eax, ebx, ecx, edx }
    }
}

impl From<&CpuidEntry> for kvm_cpuid_entry2 {
    fn from(entry: &CpuidEntry) -> Self {
        let CpuidEntry { function, index, flags, eax, ebx, ecx, edx } = *entry;
        Self { function, index, flags, eax, ebx, ecx, edx, ..Default::default() }
    }
}
