//! Finds the time-stamp reads in a kernel's code, and says what to put in their place.
//!
//! `rdtsc` and `rdtscp` do not leave the guest on stock KVM, and what they return differs between a
//! primary and its backup. Stock kernels run them for entropy at every interrupt even when CPUID
//! announces no TSC. Each becomes an `in eax, imm8` of the same length (padded by a `nop`) on a port
//! of ours, which leaves the guest and is answered from the log.
//!
//! The machine that answers has more to do than for a plain `in`: `rdtsc` also writes `rdx` and
//! `rdtscp` also `rdx` and `rcx`, so it sets those registers once the `in` has completed.
//!
//! This module looks at bytes only: what is code is for the caller to know, and so is writing.

use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic};

/// The port that stands for `rdtsc`: nothing in a PC answers there.
pub const RDTSC_PORT: u8 = 0x5c;
/// The port that stands for `rdtscp`.
pub const RDTSCP_PORT: u8 = 0x5d;

const RDTSC: &[u8] = &[0x0f, 0x31];
const RDTSCP: &[u8] = &[0x0f, 0x01, 0xf9];
/// `in eax, imm8`.
const IN_EAX_IMM8: u8 = 0xe5;
const NOP: u8 = 0x90;

/// How far before a candidate the disassembler starts. x86 code falls into step after a few
/// instructions wherever one begins, so this many bytes (some sixty instructions) are plenty.
const LEAD_BYTES: usize = 256;
/// From how many neighbouring bytes it starts: they vote. No single start is trusted, as it may lie
/// in a constant or in padding.
const STARTS: usize = 16;
/// More places to look at than any kernel has (6.1 of Debian: 236): bounds the work.
pub const CANDIDATES_MAX: usize = 1 << 16;

/// Which instruction a site has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TscKind {
    /// `rdtsc`.
    Rdtsc,
    /// `rdtscp`.
    Rdtscp,
}

/// One instruction to replace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TscSite {
    /// Offset of its first byte in the code.
    pub offset: usize,
    /// Its length in bytes, prefixes included.
    pub length: usize,
    /// Which instruction it is.
    pub kind: TscKind,
}

impl TscSite {
    /// The bytes that replace it: as many as it has.
    pub fn replacement(&self) -> Vec<u8> {
        let port = match self.kind {
            TscKind::Rdtsc => RDTSC_PORT,
            TscKind::Rdtscp => RDTSCP_PORT,
        };
        let mut bytes = vec![NOP; self.length.max(2)];
        if let Some(head) = bytes.first_chunk_mut() {
            *head = [IN_EAX_IMM8, port];
        }
        bytes
    }
}

/// How many sites were rewritten.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TscSites {
    /// Number of `rdtsc`.
    pub rdtsc: usize,
    /// Number of `rdtscp`.
    pub rdtscp: usize,
}

impl TscSites {
    /// Counts one site.
    pub fn add(&mut self, kind: TscKind) {
        match kind {
            TscKind::Rdtsc => self.rdtsc += 1,
            TscKind::Rdtscp => self.rdtscp += 1,
        }
    }
}

/// Finds all sites in `code`, which begins with an instruction. In ascending order.
///
/// Bytes that look like one of the instructions but lie within another (in a constant, say) are
/// told apart by disassembly. Returns `None` if there are more than [`CANDIDATES_MAX`] such places.
pub fn find(code: &[u8]) -> Option<Vec<TscSite>> {
    let mut sites: Vec<TscSite> = Vec::new();
    let mut candidates = 0;
    for (offset, _) in code.iter().enumerate().filter(|&(_, &byte)| byte == RDTSC[0]) {
        let rest = code.get(offset..).unwrap_or_default();
        if !rest.starts_with(RDTSC) && !rest.starts_with(RDTSCP) {
            continue;
        }
        candidates += 1;
        if candidates > CANDIDATES_MAX {
            return None;
        }
        sites.extend(site_at(code, offset));
    }
    Some(sites)
}

/// The site whose opcode is at `offset`, if most starts of the disassembler agree that it is one.
fn site_at(code: &[u8], offset: usize) -> Option<TscSite> {
    let last = offset.saturating_sub(LEAD_BYTES);
    let first = last.saturating_sub(STARTS - 1);
    let votes: Vec<Option<TscSite>> =
        (first..=last).map(|start| covering(code, start, offset)).collect();
    let winner = votes.iter().flatten().next()?;
    let agreeing = votes.iter().filter(|vote| vote.as_ref() == Some(winner)).count();
    (agreeing * 2 > votes.len()).then_some(*winner)
}

/// Disassembles from `start` up to the instruction that covers `offset`; returns it if it is a
/// site. Skips a byte where there is no valid instruction.
fn covering(code: &[u8], start: usize, offset: usize) -> Option<TscSite> {
    // A window keeps the decoder's arithmetic small and its end well defined.
    let window = code.get(start..code.len().min(offset + 16))?;
    let mut decoder = Decoder::with_ip(64, window, start as u64, DecoderOptions::NONE);
    let mut instruction = Instruction::default();
    let mut position = start;
    while position <= offset {
        decoder.set_position(position - start).ok()?;
        decoder.decode_out(&mut instruction);
        let length = if instruction.is_invalid() { 1 } else { instruction.len().max(1) };
        if position + length > offset {
            let kind = match instruction.mnemonic() {
                Mnemonic::Rdtsc => TscKind::Rdtsc,
                Mnemonic::Rdtscp => TscKind::Rdtscp,
                _ => return None,
            };
            return Some(TscSite { offset: position, length, kind });
        }
        position += length;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loader::testing::sample_code;

    /// `mov eax, imm32`, `mov rax, imm64`, `mov rax, [rip + disp32]` and an SSE shuffle with the
    /// bytes of the two instructions as constants.
    const DECOYS: [&[u8]; 4] = [
        &[0xb8, 0x0f, 0x31, 0x0f, 0x31],
        &[0x48, 0xb8, 0x0f, 0x01, 0xf9, 0x90, 0x0f, 0x31, 0x0f, 0x31],
        &[0x48, 0x8b, 0x05, 0x0f, 0x01, 0xf9, 0x0f],
        &[0x66, 0x0f, 0x70, 0xc1, 0x0f],
    ];

    fn find_all(code: &[u8]) -> Vec<TscSite> {
        find(code).unwrap()
    }

    #[test]
    fn both_instructions_are_found_where_they_stand() {
        let mut code = sample_code(10_000);
        let first = code.len();
        code.extend_from_slice(RDTSC);
        code.extend(sample_code(700));
        let second = code.len();
        code.extend_from_slice(RDTSCP);
        code.extend(sample_code(20));
        assert_eq!(
            find_all(&code),
            [
                TscSite { offset: first, length: 2, kind: TscKind::Rdtsc },
                TscSite { offset: second, length: 3, kind: TscKind::Rdtscp },
            ]
        );
    }

    #[test]
    fn constants_that_look_like_them_are_left_alone() {
        for decoy in DECOYS {
            for lead_bytes in [0, 3, 40, 300, 5000] {
                let mut code = sample_code(lead_bytes);
                code.extend_from_slice(decoy);
                code.extend(sample_code(50));
                assert_eq!(find_all(&code), [], "{decoy:x?} after {lead_bytes} bytes");
            }
        }
    }

    #[test]
    fn sites_at_the_very_start_and_end_are_found() {
        assert_eq!(find_all(RDTSC).len(), 1);
        assert_eq!(find_all(RDTSCP).len(), 1);
        let back_to_back = [RDTSC, RDTSCP, RDTSC].concat();
        assert_eq!(find_all(&back_to_back).len(), 3);
        assert_eq!(find_all(&[]), []);
        assert_eq!(find_all(&[0x0f]), []);
    }

    #[test]
    fn a_prefix_belongs_to_the_site() {
        let mut code = sample_code(300);
        let offset = code.len();
        code.extend_from_slice(&[0x66, 0x0f, 0x31]);
        let expected = TscSite { offset, length: 3, kind: TscKind::Rdtsc };
        assert_eq!(find_all(&code), [expected]);
        assert_eq!(expected.replacement(), [0xe5, RDTSC_PORT, 0x90]);
    }

    #[test]
    fn data_before_a_function_does_not_hide_its_sites() {
        let mut code = sample_code(1000);
        code.extend((0..200u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8));
        code.extend([0xcc; 16]);
        code.extend(sample_code(24));
        let offset = code.len();
        code.extend_from_slice(RDTSC);
        let site = TscSite { offset, length: 2, kind: TscKind::Rdtsc };
        assert!(find_all(&code).contains(&site));
    }

    #[test]
    fn replacements_read_the_ports_and_keep_the_length() {
        let rdtsc = TscSite { offset: 0, length: 2, kind: TscKind::Rdtsc };
        let rdtscp = TscSite { offset: 0, length: 3, kind: TscKind::Rdtscp };
        assert_eq!(rdtsc.replacement(), [0xe5, 0x5c]);
        assert_eq!(rdtscp.replacement(), [0xe5, 0x5d, 0x90]);
        assert_eq!(find_all(&rdtsc.replacement()), []);
    }

    #[test]
    fn absurdly_many_candidates_are_refused_rather_than_waited_for() {
        assert_eq!(find(&RDTSC.repeat(CANDIDATES_MAX + 1)), None);
    }
}
