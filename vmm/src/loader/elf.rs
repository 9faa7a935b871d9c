//! What the loader needs to know of a kernel's ELF: its segments, its code and its PVH entry.
//!
//! Owns the checks that make the rest safe: after [`Kernel::parse`] every range lies in the file,
//! segments do not overlap, and no arithmetic on them overflows. Writes to no memory.

use std::ops::Range;

use object::LittleEndian;
use object::elf::{self, FileHeader64};
use object::read::elf::{FileHeader, NoteIterator, ProgramHeader, SectionHeader};

use super::error::ImageError;
use super::placement::HIGH_START;

/// The note that holds the 32-bit entry point (Xen's public `elfnote.h`).
const XEN_ELFNOTE_PHYS32_ENTRY: elf::NoteType = elf::NoteType(18);

type Header = FileHeader64<LittleEndian>;

/// A part of the file that goes to guest memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Guest-physical address.
    pub address: u64,
    /// Size in guest memory in bytes; what the file does not fill is zero.
    pub memory_bytes: u64,
    /// Where its content lies in the file.
    pub file: Range<usize>,
}

impl Segment {
    /// End in guest memory, exclusive.
    pub fn end(&self) -> u64 {
        self.address + self.memory_bytes
    }
}

/// A kernel's ELF image, checked.
#[derive(Debug, PartialEq, Eq)]
pub struct Kernel {
    /// The segments to load, by address, none of which is empty.
    pub segments: Vec<Segment>,
    /// The parts of the file that are code by their section headers, by offset, without overlap;
    /// `None` if there are no section headers.
    pub code: Option<Vec<Range<usize>>>,
    /// The 32-bit PVH entry point, guest-physical.
    pub entry: u64,
}

impl Kernel {
    /// Reads and checks the headers of `image`.
    ///
    /// # Errors
    ///
    /// A wrong machine, contradictory headers, content outside of the file, no PVH entry.
    pub fn parse(image: &[u8]) -> Result<Kernel, ImageError> {
        if image.len() < size_of::<Header>() {
            return Err(truncated(size_of::<Header>() as u64, image));
        }
        let header = Header::parse(image).map_err(|_| ImageError::WrongMachine)?;
        if !header.is_little_endian() || header.e_machine(LittleEndian) != elf::EM_X86_64 {
            return Err(ImageError::WrongMachine);
        }
        let program_headers = program_headers(header, image)?;
        let segments = segments(program_headers, image)?;
        let entry = pvh_entry(program_headers, image)?.ok_or(ImageError::NoPvhEntry)?;
        if !segments.iter().any(|segment| (segment.address..segment.end()).contains(&entry)) {
            return Err(ImageError::EntryOutsideSegments { entry });
        }
        let code = code(header, image)?;
        Ok(Kernel { segments, code, entry })
    }

    /// End of the last segment in guest memory.
    pub fn end(&self) -> u64 {
        self.segments.iter().map(Segment::end).max().unwrap_or(0)
    }

    /// Guest-physical address of the byte at `offset` of the file, if a segment holds it.
    pub fn address_of(&self, offset: usize) -> Option<u64> {
        let segment = self.segments.iter().find(|segment| segment.file.contains(&offset))?;
        Some(segment.address + (offset - segment.file.start) as u64)
    }
}

fn truncated(needed_bytes: u64, image: &[u8]) -> ImageError {
    ImageError::Truncated { needed_bytes, present_bytes: image.len() as u64 }
}

fn bad(reason: &'static str) -> ImageError {
    ImageError::BadElf { reason }
}

/// The range `offset..offset + size` as indices into `image`, if it lies in there.
fn range_in(image: &[u8], offset: u64, size: u64) -> Result<Range<usize>, ImageError> {
    let end = offset.checked_add(size).ok_or(bad("an offset overflows"))?;
    if end > image.len() as u64 {
        return Err(truncated(end, image));
    }
    Ok(offset as usize..end as usize)
}

fn program_headers<'a>(
    header: &Header,
    image: &'a [u8],
) -> Result<&'a [elf::ProgramHeader64<LittleEndian>], ImageError> {
    let entries = u64::from(header.e_phnum(LittleEndian));
    let entry_bytes = size_of::<elf::ProgramHeader64<LittleEndian>>() as u64;
    range_in(image, header.e_phoff(LittleEndian), entries * entry_bytes)?;
    header
        .program_headers(LittleEndian, image)
        .map_err(|_| bad("the program headers have an unknown form"))
}

fn segments(
    headers: &[elf::ProgramHeader64<LittleEndian>],
    image: &[u8],
) -> Result<Vec<Segment>, ImageError> {
    let mut segments = Vec::new();
    for header in headers {
        let memory_bytes = header.p_memsz(LittleEndian);
        if header.p_type(LittleEndian) != elf::PT_LOAD || memory_bytes == 0 {
            continue;
        }
        let address = header.p_paddr(LittleEndian);
        if address < HIGH_START {
            return Err(ImageError::SegmentTooLow { address });
        }
        address.checked_add(memory_bytes).ok_or(bad("an address overflows"))?;
        let file_bytes = header.p_filesz(LittleEndian);
        if file_bytes > memory_bytes {
            return Err(bad("a segment is larger in the file than in memory"));
        }
        let file = range_in(image, header.p_offset(LittleEndian), file_bytes)?;
        segments.push(Segment { address, memory_bytes, file });
    }
    segments.sort_by_key(|segment| segment.address);
    // Loading is then bounded by the size of the guest's memory, however many headers there are.
    if segments.windows(2).any(|pair| matches!(pair, [a, b] if a.end() > b.address)) {
        return Err(bad("two segments overlap"));
    }
    Ok(segments)
}

/// Finds the PVH entry point among the notes.
fn pvh_entry(
    headers: &[elf::ProgramHeader64<LittleEndian>],
    image: &[u8],
) -> Result<Option<u64>, ImageError> {
    for header in headers {
        if header.p_type(LittleEndian) != elf::PT_NOTE {
            continue;
        }
        let range = range_in(image, header.p_offset(LittleEndian), header.p_filesz(LittleEndian))?;
        let notes = image.get(range).unwrap_or_default();
        // Linux aligns its notes to four bytes, whatever the segment's own alignment is.
        let Ok(notes) = NoteIterator::<Header>::new(LittleEndian, 4, notes) else {
            continue;
        };
        for note in notes {
            // What follows a broken note cannot be read: as good as absent.
            let Ok(note) = note else { break };
            if note.name() != b"Xen" || note.n_type(LittleEndian) != XEN_ELFNOTE_PHYS32_ENTRY {
                continue;
            }
            let description = note.desc();
            let entry = match description.len() {
                4 | 8 => description
                    .iter()
                    .rev()
                    .fold(0, |value: u64, &byte| (value << 8) | u64::from(byte)),
                _ => return Err(bad("the PVH note has neither 4 nor 8 bytes")),
            };
            return Ok(Some(entry));
        }
    }
    Ok(None)
}

/// The file ranges of all sections that are loaded and executable.
fn code(header: &Header, image: &[u8]) -> Result<Option<Vec<Range<usize>>>, ImageError> {
    let sections = header
        .section_headers(LittleEndian, image)
        .map_err(|_| truncated(header.e_shoff(LittleEndian).saturating_add(1), image))?;
    if sections.is_empty() {
        return Ok(None);
    }
    let mut ranges = Vec::new();
    for section in sections {
        let flags = section.sh_flags(LittleEndian);
        let is_code = flags.contains(elf::SHF_ALLOC) && flags.contains(elf::SHF_EXECINSTR);
        if is_code && section.sh_type(LittleEndian) != elf::SHT_NOBITS {
            let (offset, size) = (section.sh_offset(LittleEndian), section.sh_size(LittleEndian));
            ranges.push(range_in(image, offset, size)?);
        }
    }
    Ok(Some(without_overlap(ranges)))
}

/// Merges ranges that overlap, so that no byte is looked at twice. Ranges that only touch stay
/// apart: each start of a section is a known start of an instruction.
fn without_overlap(mut ranges: Vec<Range<usize>>) -> Vec<Range<usize>> {
    ranges.sort_by_key(|range| range.start);
    let mut merged: Vec<Range<usize>> = Vec::new();
    for range in ranges {
        match merged.last_mut() {
            Some(last) if range.start < last.end => last.end = last.end.max(range.end),
            _ => merged.push(range),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loader::testing::{ElfBuilder, LOAD_ADDRESS, vmlinux};

    #[test]
    fn segments_code_and_entry_of_a_kernel_are_found() {
        let image = vmlinux(&[0xc3; 100]);
        let kernel = Kernel::parse(&image).unwrap();
        assert_eq!(kernel.entry, LOAD_ADDRESS);
        let [segment] = &kernel.segments[..] else { panic!("{:?}", kernel.segments) };
        assert_eq!(segment.address, LOAD_ADDRESS);
        let [code] = &kernel.code.as_deref().unwrap() else { panic!("{:?}", kernel.code) };
        assert_eq!(image[code.clone()], [0xc3; 100]);
        assert_eq!(kernel.address_of(code.start), Some(LOAD_ADDRESS));
        assert_eq!(kernel.address_of(image.len()), None);
    }

    #[test]
    fn a_kernel_without_pvh_is_told_what_it_lacks() {
        let image = ElfBuilder { pvh_note: false, ..ElfBuilder::new(&[0xc3; 8]) }.build();
        let error = Kernel::parse(&image).unwrap_err();
        assert_eq!(error, ImageError::NoPvhEntry);
        assert!(error.to_string().contains("CONFIG_PVH=y"));
    }

    #[test]
    fn a_kernel_cut_anywhere_is_refused() {
        let image = vmlinux(&[0xc3; 100]);
        for length in 0..image.len() {
            let error = Kernel::parse(&image[..length]).unwrap_err();
            assert!(matches!(error, ImageError::Truncated { .. }), "{length}: {error:?}");
        }
    }

    #[test]
    fn another_machine_is_refused() {
        let mut image = vmlinux(&[0xc3; 8]);
        image[18..20].copy_from_slice(&183u16.to_le_bytes());
        assert_eq!(Kernel::parse(&image), Err(ImageError::WrongMachine));
        let mut image = vmlinux(&[0xc3; 8]);
        image[4] = 1;
        assert_eq!(Kernel::parse(&image), Err(ImageError::WrongMachine));
    }

    #[test]
    fn segments_below_a_mebibyte_or_with_the_entry_outside_are_refused() {
        let low = ElfBuilder { address: 0x8000, ..ElfBuilder::new(&[0xc3; 8]) }.build();
        assert_eq!(Kernel::parse(&low), Err(ImageError::SegmentTooLow { address: 0x8000 }));
        let entry = LOAD_ADDRESS - 1;
        let outside = ElfBuilder { entry, ..ElfBuilder::new(&[0xc3; 8]) }.build();
        assert_eq!(Kernel::parse(&outside), Err(ImageError::EntryOutsideSegments { entry }));
        let overflow = ElfBuilder { address: u64::MAX, ..ElfBuilder::new(&[0xc3; 8]) }.build();
        assert!(matches!(Kernel::parse(&overflow), Err(ImageError::BadElf { .. })));
    }

    #[test]
    fn overlapping_code_is_looked_at_once() {
        assert_eq!(without_overlap(vec![5..9, 0..3, 3..4, 2..3, 6..12]), [0..3, 3..4, 5..12]);
    }
}
