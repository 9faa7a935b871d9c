//! From a kernel file to the bytes of its ELF: reads the file and looks into a bzImage.
//!
//! Owns the Linux/x86 setup header (Documentation/arch/x86/boot.rst), as far as it tells where the
//! payload lies. Decompression and ELF are elsewhere.

use std::borrow::Cow;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::decompress;
use super::error::{ImageError, LoaderError};

/// Largest kernel file that is read (1 GiB): a `vmlinux` with all its debug information has less.
pub const KERNEL_FILE_BYTES_MAX: u64 = 1 << 30;

const SECTOR_BYTES: u64 = 512;
/// What a `setup_sects` of 0 stands for, by the boot protocol.
const SETUP_SECTORS_DEFAULT: u64 = 4;
/// Boot protocol that brought `payload_offset` and `payload_length`.
const PAYLOAD_PROTOCOL: u16 = 0x0208;

const SETUP_SECTORS_OFFSET: usize = 0x1f1;
const MAGIC_OFFSET: usize = 0x202;
const MAGIC: &[u8] = b"HdrS";
const VERSION_OFFSET: usize = 0x206;
const PAYLOAD_OFFSET_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH_OFFSET: usize = 0x24c;

/// Opens `path`, which must be a regular file that is not empty (a pipe could block for ever).
///
/// Returns the file and its size in bytes.
pub fn open(what: &'static str, path: &Path) -> Result<(File, u64), LoaderError> {
    let read_error = |source| LoaderError::Read { what, path: path.to_owned(), source };
    let metadata = std::fs::metadata(path).map_err(read_error)?;
    if !metadata.is_file() {
        return Err(LoaderError::NotAFile { what, path: path.to_owned() });
    }
    let file = File::open(path).map_err(read_error)?;
    let size_bytes = file.metadata().map_err(read_error)?.len();
    if size_bytes == 0 {
        return Err(LoaderError::Empty { what, path: path.to_owned() });
    }
    Ok((file, size_bytes))
}

/// Reads a kernel file whole.
pub fn read_kernel(path: &Path) -> Result<Vec<u8>, LoaderError> {
    let (file, _) = open("kernel", path)?;
    let mut bytes = Vec::new();
    file.take(KERNEL_FILE_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(|source| LoaderError::Read { what: "kernel", path: path.to_owned(), source })?;
    if bytes.len() as u64 > KERNEL_FILE_BYTES_MAX {
        let limit_bytes = KERNEL_FILE_BYTES_MAX;
        return Err(LoaderError::FileTooLarge { path: path.to_owned(), limit_bytes });
    }
    Ok(bytes)
}

/// The ELF image in a kernel file, which is the file itself or the payload of a bzImage.
///
/// # Errors
///
/// Neither of the two, a payload outside the file, or one that cannot be unpacked.
pub fn elf_of(file: &[u8]) -> Result<Cow<'_, [u8]>, ImageError> {
    if file.starts_with(b"\x7fELF") {
        return Ok(Cow::Borrowed(file));
    }
    if file.get(MAGIC_OFFSET..MAGIC_OFFSET + MAGIC.len()) != Some(MAGIC) {
        return Err(ImageError::NotAKernel);
    }
    let truncated =
        |needed_bytes| ImageError::Truncated { needed_bytes, present_bytes: file.len() as u64 };
    let header_end = || truncated(PAYLOAD_LENGTH_OFFSET as u64 + 4);
    let long = |offset| field(file, offset).map(u32::from_le_bytes).map(u64::from);
    let version = field(file, VERSION_OFFSET).map(u16::from_le_bytes).ok_or_else(header_end)?;
    if version < PAYLOAD_PROTOCOL {
        return Err(ImageError::OldBootProtocol { version });
    }
    let offset = long(PAYLOAD_OFFSET_OFFSET).ok_or_else(header_end)?;
    let length = long(PAYLOAD_LENGTH_OFFSET).ok_or_else(header_end)?;
    let sectors = match file.get(SETUP_SECTORS_OFFSET) {
        None | Some(0) => SETUP_SECTORS_DEFAULT,
        Some(&sectors) => u64::from(sectors),
    };
    // None of the sums can overflow: all terms have at most 32 bits.
    let start = (sectors + 1) * SECTOR_BYTES + offset;
    let end = start + length;
    let payload = file.get(start as usize..end as usize).ok_or_else(|| truncated(end))?;
    decompress::unpack(payload)
}

fn field<const SIZE: usize>(file: &[u8], offset: usize) -> Option<[u8; SIZE]> {
    file.get(offset..)?.first_chunk().copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loader::testing::{Packing, bzimage, vmlinux};

    #[test]
    fn a_bzimage_yields_its_elf_whatever_the_compression() {
        let elf = vmlinux(&[0x90; 64]);
        for packing in Packing::ALL {
            assert!(elf_of(&bzimage(&elf, packing)).unwrap() == elf, "{packing:?}");
        }
    }

    #[test]
    fn what_is_no_kernel_is_told_so() {
        for bytes in [&b"#!/bin/sh\n"[..], &[0; 4096], b"M"] {
            assert_eq!(elf_of(bytes), Err(ImageError::NotAKernel));
        }
    }

    #[test]
    fn a_bzimage_cut_short_is_truncated() {
        let image = bzimage(&vmlinux(&[0x90; 64]), Packing::Gzip);
        for length in [0x206, 0x208, 0x24a, 0x250, 4096, image.len() - 1] {
            let error = elf_of(&image[..length.min(image.len() - 1)]).unwrap_err();
            assert!(matches!(error, ImageError::Truncated { .. }), "{length:#x}: {error:?}");
        }
    }

    #[test]
    fn an_old_boot_protocol_is_refused() {
        let mut image = bzimage(&vmlinux(&[0x90; 64]), Packing::Gzip);
        image[VERSION_OFFSET..VERSION_OFFSET + 2].copy_from_slice(&0x0207u16.to_le_bytes());
        let error = elf_of(&image).unwrap_err();
        assert_eq!(error, ImageError::OldBootProtocol { version: 0x0207 });
        assert!(error.to_string().contains("2.07"));
    }

    #[test]
    fn directories_pipes_missing_and_empty_files_are_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let empty = folder.path().join("empty");
        File::create(&empty).unwrap();
        assert!(matches!(read_kernel(folder.path()), Err(LoaderError::NotAFile { .. })));
        assert!(matches!(read_kernel(Path::new("/dev/null")), Err(LoaderError::NotAFile { .. })));
        assert!(matches!(read_kernel(&empty), Err(LoaderError::Empty { .. })));
        let missing = read_kernel(&folder.path().join("missing")).unwrap_err();
        assert!(matches!(missing, LoaderError::Read { .. }));
        assert!(missing.to_string().starts_with("The kernel '"));
    }
}
