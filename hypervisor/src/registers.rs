//! The general registers of a virtual CPU: what is compared at every moment.

use std::fmt;

use kvm_bindings::kvm_regs;
use serde::{Deserialize, Serialize};

/// The general registers, the instruction pointer and the flags.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)] // the fields are the registers' own names
pub struct Registers {
    pub rax: u64,
    pub rbx: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub rsp: u64,
    pub rbp: u64,
    pub r8: u64,
    pub r9: u64,
    pub r10: u64,
    pub r11: u64,
    pub r12: u64,
    pub r13: u64,
    pub r14: u64,
    pub r15: u64,
    pub rip: u64,
    pub rflags: u64,
}

/// The registers' names in the order of [`Registers::named`].
const NAMES: [&str; 18] = [
    "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp", "r8", "r9", "r10", "r11", "r12", "r13",
    "r14", "r15", "rip", "rflags",
];

impl Registers {
    /// All registers with their names, in a fixed order.
    #[must_use]
    pub fn named(&self) -> [(&'static str, u64); 18] {
        let values = self.values();
        std::array::from_fn(|place| (NAMES[place], values[place]))
    }

    /// All registers, in the order of [`Registers::named`].
    #[must_use]
    pub fn values(&self) -> [u64; 18] {
        let Self { rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, .. } = *self;
        let Self { r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags, .. } = *self;
        [rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags]
    }

    /// The opposite of [`Registers::values`].
    #[must_use]
    pub fn from_values(values: &[u64; 18]) -> Self {
        let [rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, rest @ ..] = *values;
        let [r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags] = rest;
        Self {
            rax,
            rbx,
            rcx,
            rdx,
            rsi,
            rdi,
            rsp,
            rbp,
            r8,
            r9,
            r10,
            r11,
            r12,
            r13,
            r14,
            r15,
            rip,
            rflags,
        }
    }

    /// A number that differs, with all but certainty, whenever any register differs. It is the
    /// same on every host and in every build.
    #[must_use]
    pub fn digest(&self) -> u64 {
        // Each word is mixed with odd constants and a shift in between, so that a change of any
        // bit reaches all bits; the running value carries the order. Not for adversaries: the two
        // sides of a comparison trust each other.
        let mut digest = 0x6a09_e667_f3bc_c908_u64;
        for value in self.values() {
            digest = (digest ^ value).wrapping_mul(0xd6e8_feb8_6659_fd93);
            digest ^= digest >> 32;
            digest = digest.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            digest ^= digest >> 29;
        }
        digest
    }
}

impl fmt::Display for Registers {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, (name, value)) in self.named().into_iter().enumerate() {
            if place != 0 {
                formatter.write_str(if place % 4 == 0 { "\n" } else { "  " })?;
            }
            write!(formatter, "{name:>6} {value:016x}")?;
        }
        Ok(())
    }
}

impl From<&kvm_regs> for Registers {
    fn from(regs: &kvm_regs) -> Self {
        let kvm_regs { rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, .. } = *regs;
        let kvm_regs { r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags, .. } = *regs;
        Self {
            rax,
            rbx,
            rcx,
            rdx,
            rsi,
            rdi,
            rsp,
            rbp,
            r8,
            r9,
            r10,
            r11,
            r12,
            r13,
            r14,
            r15,
            rip,
            rflags,
        }
    }
}

impl From<&Registers> for kvm_regs {
    fn from(registers: &Registers) -> Self {
        let Registers { rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, .. } = *registers;
        let Registers { r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags, .. } = *registers;
        Self {
            rax,
            rbx,
            rcx,
            rdx,
            rsi,
            rdi,
            rsp,
            rbp,
            r8,
            r9,
            r10,
            r11,
            r12,
            r13,
            r14,
            r15,
            rip,
            rflags,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn numbered(first: u64) -> Registers {
        let word = |place: u64| first.wrapping_add(place);
        Registers {
            rax: word(0),
            rbx: word(1),
            rcx: word(2),
            rdx: word(3),
            rsi: word(4),
            rdi: word(5),
            rsp: word(6),
            rbp: word(7),
            r8: word(8),
            r9: word(9),
            r10: word(10),
            r11: word(11),
            r12: word(12),
            r13: word(13),
            r14: word(14),
            r15: word(15),
            rip: word(16),
            rflags: word(17),
        }
    }

    #[test]
    fn names_and_values_go_together() {
        let registers = numbered(0x100);
        let named = registers.named();
        assert_eq!(named[6], ("rsp", registers.rsp));
        assert_eq!(named[16], ("rip", registers.rip));
        assert_eq!(named[17], ("rflags", registers.rflags));
    }

    #[test]
    fn the_digest_never_changes_between_builds() {
        // Logs are compared across builds of the same format: this value is part of the format.
        assert_eq!(Registers::default().digest(), 0x6dd9_d203_c6bf_2716);
        assert_eq!(numbered(1).digest(), 0xb49c_ab80_4ede_36b2);
    }

    #[test]
    fn a_person_can_read_it() {
        let text = numbered(0).to_string();
        assert_eq!(text.lines().count(), 5);
        assert!(text.contains("   rip 0000000000000010  rflags 0000000000000011"), "{text}");
    }

    proptest! {
        #[test]
        fn one_flipped_bit_changes_the_digest(first: u64, place in 0_usize..18, bit in 0_u32..64) {
            let registers = numbered(first);
            let mut words = registers.values();
            words[place] ^= 1 << bit;
            let other = Registers::from_values(&words);
            prop_assert_eq!(other.values(), words);
            prop_assert_ne!(registers.digest(), other.digest());
        }

        #[test]
        fn swapped_registers_change_the_digest(first: u64) {
            let registers = numbered(first);
            let swapped = Registers { rax: registers.rbx, rbx: registers.rax, ..registers };
            prop_assert_ne!(registers.digest(), swapped.digest());
        }

        #[test]
        fn kvm_and_ours_convert_both_ways(first: u64) {
            let registers = numbered(first);
            prop_assert_eq!(Registers::from(&kvm_regs::from(&registers)), registers);
        }
    }
}
