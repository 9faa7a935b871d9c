//! Makes small kernels for the loader's tests: ELF images, bzImages, payloads of each format.

use std::io::Write;

use vm_memory::GuestAddress;

use super::{GuestMemory, MemoryKind, MemoryMapEntry};

/// Where a test's kernel is loaded and entered.
pub const LOAD_ADDRESS: u64 = 0x100_0000;

/// What a kernel's build can pack its payload with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    None,
    Lz4,
    Zstd,
    Gzip,
    Xz,
}

impl Packing {
    pub const ALL: [Packing; 5] =
        [Packing::None, Packing::Lz4, Packing::Zstd, Packing::Gzip, Packing::Xz];
    pub const COMPRESSED: [Packing; 4] = [Packing::Lz4, Packing::Zstd, Packing::Gzip, Packing::Xz];
}

/// `size` bytes that begin like an ELF file and compress well, but not to nothing.
pub fn sample_text(size: usize) -> Vec<u8> {
    let mut bytes = b"\x7fELF".to_vec();
    let mut state = 1u32;
    while bytes.len() < size {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let word = [&b"call "[..], b"\xe8", b"mov ", b"the quick"][(state >> 30) as usize];
        bytes.extend_from_slice(word);
        bytes.push((state >> 16) as u8);
    }
    bytes.truncate(size);
    bytes
}

/// At least `size` bytes of plausible code: whole instructions, none of which reads the clock.
pub fn sample_code(size: usize) -> Vec<u8> {
    let instructions: [&[u8]; 8] = [
        &[0x48, 0x89, 0xe5],
        &[0x55],
        &[0x48, 0x8b, 0x05, 0x10, 0x20, 0x30, 0x00],
        &[0xe8, 0x78, 0x56, 0x34, 0x12],
        &[0x66, 0x2e, 0x0f, 0x1f, 0x84, 0x00, 0x00, 0x00, 0x00, 0x00],
        &[0x75, 0x1b],
        &[0x0f, 0xb6, 0xc0],
        &[0xc3],
    ];
    let mut code = Vec::new();
    for index in 0.. {
        if code.len() >= size {
            break;
        }
        code.extend_from_slice(instructions[(index * 5 + index / 7) % instructions.len()]);
    }
    code
}

/// Packs as a kernel's build does: gzip ends with the size by itself, the others get it appended.
pub fn pack(content: &[u8], packing: Packing) -> Vec<u8> {
    let mut packed = match packing {
        Packing::None => return content.to_vec(),
        Packing::Gzip => {
            let mut encoder =
                flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(content).unwrap();
            return encoder.finish().unwrap();
        }
        Packing::Lz4 => {
            let mut frame = vec![0x02, 0x21, 0x4c, 0x18];
            for chunk in content.chunks(8 << 20) {
                let block = lz4_flex::block::compress(chunk);
                frame.extend_from_slice(&(block.len() as u32).to_le_bytes());
                frame.extend_from_slice(&block);
            }
            frame
        }
        Packing::Zstd => {
            ruzstd::encoding::compress_to_vec(content, ruzstd::encoding::CompressionLevel::Fastest)
        }
        Packing::Xz => {
            let mut filters = liblzma::stream::Filters::new();
            let options = liblzma::stream::LzmaOptions::new_preset(1).unwrap();
            filters.x86().lzma2(&options);
            let check = liblzma::stream::Check::Crc32;
            let stream = liblzma::stream::Stream::new_stream_encoder(&filters, check).unwrap();
            let mut encoder = liblzma::write::XzEncoder::new_stream(Vec::new(), stream);
            encoder.write_all(content).unwrap();
            encoder.finish().unwrap()
        }
    };
    packed.extend_from_slice(&(content.len() as u32).to_le_bytes());
    packed
}

/// A bzImage of boot protocol 2.15 around `elf`: four setup sectors, some code, the payload.
pub fn bzimage(elf: &[u8], packing: Packing) -> Vec<u8> {
    let payload = pack(elf, packing);
    let mut image = vec![0; 5 * 512];
    image[0x1f1] = 4;
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&0x020fu16.to_le_bytes());
    image[0x248..0x24c].copy_from_slice(&33u32.to_le_bytes());
    image[0x24c..0x250].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    image.extend([0x90; 33]);
    image.extend_from_slice(&payload);
    image
}

/// A `vmlinux` with `code` as its text, entered at its first byte.
pub fn vmlinux(code: &[u8]) -> Vec<u8> {
    ElfBuilder::new(code).build()
}

/// A `vmlinux` in parts.
pub struct ElfBuilder<'a> {
    pub code: &'a [u8],
    pub address: u64,
    pub entry: u64,
    pub bss_bytes: u64,
    pub pvh_note: bool,
    pub sections: bool,
}

impl<'a> ElfBuilder<'a> {
    pub fn new(code: &'a [u8]) -> Self {
        let (address, entry) = (LOAD_ADDRESS, LOAD_ADDRESS);
        ElfBuilder { code, address, entry, bss_bytes: 0, pvh_note: true, sections: true }
    }

    /// Header, two program headers, the code, the notes, two section headers.
    pub fn build(&self) -> Vec<u8> {
        let code_offset = 64 + 2 * 56;
        let notes_offset = code_offset + self.code.len();
        let notes = self.notes();
        let sections_offset = notes_offset + notes.len();
        let mut image = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
        push_u16(&mut image, &[2, 62]);
        push_u32(&mut image, &[1]);
        let shoff = if self.sections { sections_offset as u64 } else { 0 };
        push_u64(&mut image, &[self.entry, 64, shoff]);
        push_u32(&mut image, &[0]);
        push_u16(&mut image, &[64, 56, 2, 64, if self.sections { 2 } else { 0 }, 0]);
        self.push_program_header(&mut image, 1, code_offset, self.code.len(), self.bss_bytes);
        self.push_program_header(&mut image, 4, notes_offset, notes.len(), 0);
        image.extend_from_slice(self.code);
        image.extend_from_slice(&notes);
        if self.sections {
            image.extend([0; 64]);
            push_u32(&mut image, &[0, 1]);
            push_u64(&mut image, &[6, self.address, code_offset as u64, self.code.len() as u64]);
            push_u32(&mut image, &[0, 0]);
            push_u64(&mut image, &[16, 0]);
        }
        image
    }

    fn push_program_header(
        &self,
        image: &mut Vec<u8>,
        kind: u32,
        offset: usize,
        size: usize,
        more: u64,
    ) {
        push_u32(image, &[kind, 5]);
        let size = size as u64;
        push_u64(image, &[offset as u64, self.address, self.address, size, size + more, 4]);
    }

    /// A note of another kind first, and the PVH entry if wanted.
    fn notes(&self) -> Vec<u8> {
        let mut notes = Vec::new();
        push_u32(&mut notes, &[4, 6, 6]);
        notes.extend_from_slice(b"Xen\0linux\0\0\0");
        if self.pvh_note {
            push_u32(&mut notes, &[4, 8, 18]);
            notes.extend_from_slice(b"Xen\0");
            push_u64(&mut notes, &[self.entry]);
        }
        notes
    }
}

fn push_u16(bytes: &mut Vec<u8>, values: &[u16]) {
    bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
}

fn push_u32(bytes: &mut Vec<u8>, values: &[u32]) {
    bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
}

fn push_u64(bytes: &mut Vec<u8>, values: &[u64]) {
    bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
}

/// Guest memory of one region that begins at 0.
pub fn guest_memory(size: usize) -> GuestMemory {
    GuestMemory::from_ranges(&[(GuestAddress(0), size)]).unwrap()
}

/// The map of [`guest_memory`], with the usual hole below 1 MiB.
pub fn memory_map(size: u64) -> Vec<MemoryMapEntry> {
    vec![
        MemoryMapEntry { start: 0, size: 0x9_fc00, kind: MemoryKind::Ram },
        MemoryMapEntry { start: 0x9_fc00, size: 0x6_0400, kind: MemoryKind::Reserved },
        MemoryMapEntry { start: 0x10_0000, size: size - 0x10_0000, kind: MemoryKind::Ram },
    ]
}
