//! Whether a host can run a guest that was given its processor elsewhere.

use super::table::{Flag, Row, TABLE, Word};
use super::{Cpuid, CpuidEntry, find};
use crate::{Error, Result};

const REGISTERS: [&str; 4] = ["eax", "ebx", "ecx", "edx"];

/// Checks that a host, by what its KVM supports, can run a guest that was given `wanted`.
///
/// # Errors
///
/// It cannot: the error names the first thing that is missing.
pub fn check_cpuid(wanted: &Cpuid, host: &[CpuidEntry]) -> Result<()> {
    for row in TABLE {
        let index = row.index.unwrap_or(0);
        let Some(guest) = find(&wanted.0, row.function, index) else { continue };
        let offered = find(host, row.function, index).unwrap_or_default();
        let pairs = guest.registers().into_iter().zip(offered.registers());
        for (place, (wanted, offered)) in pairs.enumerate() {
            check_word(row, place, wanted, offered)?;
        }
    }
    Ok(())
}

fn check_word(row: &Row, place: usize, wanted: u32, offered: u32) -> Result<()> {
    let fail = |text: String| Err(Error::Cpuid(text));
    match row.words[place] {
        Word::Identity if wanted != offered => fail(
            "the guest started on a processor of another maker, whose instructions differ".into(),
        ),
        Word::Widths { bytes } => {
            let too_narrow = (0..4)
                .map(|byte| byte * 8)
                .filter(|shift| bytes >> shift & 0xff != 0)
                .find(|shift| wanted >> shift & 0xff > offered >> shift & 0xff);
            match too_narrow {
                Some(shift) => fail(format!(
                    "its processor has {}-bit {} addresses, the guest was given {} bits",
                    offered >> shift & 0xff,
                    if shift == 0 { "physical" } else { "virtual" },
                    wanted >> shift & 0xff
                )),
                None => Ok(()),
            }
        }
        Word::Flags { allowed, always } => {
            let missing = wanted & !offered & !always;
            if missing == 0 {
                return Ok(());
            }
            fail(format!(
                "its processor lacks {}, which the guest was given",
                name_of(row, place, allowed, missing.trailing_zeros())
            ))
        }
        Word::Zero | Word::Fixed(_) | Word::AtMost(_) | Word::Identity | Word::Host => Ok(()),
    }
}

fn name_of(row: &Row, place: usize, allowed: &[Flag], bit: u32) -> String {
    match allowed.iter().find(|flag| flag.mask() == 1 << bit) {
        Some(flag) => flag.name.to_owned(),
        None => format!("bit {bit} of {} in CPUID leaf {:#x}", REGISTERS[place], row.function),
    }
}
