//! Unpacks the payload of a bzImage: LZ4, zstd, gzip, xz, or not packed at all.
//!
//! Owns the recognition of formats and the bound on what comes out. Knows nothing of setup headers
//! or ELF. No allocation follows a length that the data claims: output grows with what was really
//! unpacked, up to a limit.

use std::borrow::Cow;
use std::io::Read;

use super::error::ImageError;

/// Most bytes that a payload may unpack to (1 GiB; a large distribution kernel has 70 MiB).
pub const UNPACKED_BYTES_MAX: u64 = 1 << 30;

/// A window this large is what `zstd --ultra -22` and the kernel's own decompressor use.
const ZSTD_WINDOW_BYTES_MAX: u64 = 1 << 27;

/// Memory for the xz decoder: its dictionary, of which kernels use up to 128 MiB.
const XZ_MEMORY_BYTES_MAX: u64 = 256 << 20;

/// Magic of the legacy LZ4 frame, which is the one that the kernel's build uses.
const LZ4_LEGACY_MAGIC: [u8; 4] = [0x02, 0x21, 0x4c, 0x18];

/// Every block of a legacy LZ4 frame but the last unpacks to exactly this size.
const LZ4_LEGACY_BLOCK_BYTES: usize = 8 << 20;

/// The kernel's build appends the unpacked size to each payload that it compresses (for gzip, the
/// format itself ends with it): 32 bits, little-endian.
const SIZE_TRAILER_BYTES: usize = 4;

/// How a payload is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    None,
    Lz4,
    Zstd,
    Gzip,
    Xz,
}

impl Format {
    fn name(self) -> &'static str {
        match self {
            Format::None => "uncompressed",
            Format::Lz4 => "LZ4",
            Format::Zstd => "zstd",
            Format::Gzip => "gzip",
            Format::Xz => "xz",
        }
    }
}

/// Tells the format by its magic.
fn recognise(payload: &[u8]) -> Result<Format, ImageError> {
    let unsupported = |name| Err(ImageError::UnsupportedCompression { name });
    match payload {
        [0x7f, b'E', b'L', b'F', ..] => Ok(Format::None),
        [0x02, 0x21, 0x4c, 0x18, ..] => Ok(Format::Lz4),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Ok(Format::Zstd),
        [0x1f, 0x8b, ..] => Ok(Format::Gzip),
        [0xfd, b'7', b'z', b'X', b'Z', 0x00, ..] => Ok(Format::Xz),
        [b'B', b'Z', b'h', ..] => unsupported("bzip2"),
        [0x5d, 0x00, 0x00, ..] => unsupported("lzma"),
        [0x89, b'L', b'Z', b'O', ..] => unsupported("lzo"),
        _ => Err(ImageError::UnknownPayload),
    }
}

/// Unpacks `payload` (with its size trailer) into at most [`UNPACKED_BYTES_MAX`] bytes.
///
/// # Errors
///
/// An unknown or unsupported format, damaged data, more output than allowed, or a length that is
/// not the one which the size trailer states.
pub fn unpack(payload: &[u8]) -> Result<Cow<'_, [u8]>, ImageError> {
    unpack_at_most(payload, UNPACKED_BYTES_MAX)
}

/// As [`unpack`], into at most `limit_bytes` bytes.
///
/// # Errors
///
/// As [`unpack`].
pub fn unpack_at_most(payload: &[u8], limit_bytes: u64) -> Result<Cow<'_, [u8]>, ImageError> {
    let format = recognise(payload)?;
    if format == Format::None {
        return Ok(Cow::Borrowed(payload));
    }
    let damaged = |reason: String| ImageError::Damaged { format: format.name(), reason };
    let Some((packed, trailer)) = payload.split_last_chunk::<SIZE_TRAILER_BYTES>() else {
        return Err(damaged("it is too short".to_owned()));
    };
    let unpacked = match format {
        Format::None => Ok(payload.to_vec()),
        // The size trailer of gzip is a part of the format: its decoder wants to see it.
        Format::Gzip => read_all(flate2::read::GzDecoder::new(payload), limit_bytes),
        Format::Lz4 => unpack_lz4_legacy(packed, limit_bytes),
        Format::Zstd => ruzstd::decoding::StreamingDecoder::new_with_max_window_size(
            packed,
            ZSTD_WINDOW_BYTES_MAX,
        )
        .map_err(|error| error.to_string())
        .and_then(|decoder| read_all(decoder, limit_bytes)),
        Format::Xz => liblzma::stream::Stream::new_stream_decoder(XZ_MEMORY_BYTES_MAX, 0)
            .map_err(|error| error.to_string())
            .and_then(|stream| {
                read_all(liblzma::read::XzDecoder::new_stream(packed, stream), limit_bytes)
            }),
    }
    .map_err(damaged)?;
    if unpacked.len() as u64 > limit_bytes {
        return Err(ImageError::UnpacksTooLarge { format: format.name(), limit_bytes });
    }
    let stated = u32::from_le_bytes(*trailer);
    if unpacked.len() as u64 != u64::from(stated) {
        let found = unpacked.len();
        return Err(damaged(format!("it unpacks to {found} bytes and states {stated}")));
    }
    Ok(Cow::Owned(unpacked))
}

/// Reads to the end, but stops one byte after the limit so that the caller sees the excess.
fn read_all(decoder: impl Read, limit_bytes: u64) -> Result<Vec<u8>, String> {
    let mut unpacked = Vec::new();
    decoder
        .take(limit_bytes.saturating_add(1))
        .read_to_end(&mut unpacked)
        .map_err(|error| error.to_string())?;
    Ok(unpacked)
}

/// Unpacks a legacy LZ4 frame: a magic, then blocks of a 32-bit packed length and the block. It has
/// no end mark. Concatenated frames are allowed, so the magic may come again where a length would.
///
/// The frame decoder of `lz4_flex` is not used since it reserves what a block's length claims.
fn unpack_lz4_legacy(packed: &[u8], limit_bytes: u64) -> Result<Vec<u8>, String> {
    let mut rest = packed;
    let mut unpacked = Vec::new();
    let mut block = vec![0; LZ4_LEGACY_BLOCK_BYTES];
    while let Some((word, after)) = rest.split_first_chunk::<4>() {
        rest = after;
        if *word == LZ4_LEGACY_MAGIC {
            continue;
        }
        let length = u32::from_le_bytes(*word) as usize;
        let Some((source, after)) = rest.split_at_checked(length) else {
            return Err(format!("a block of {length} bytes is cut short"));
        };
        rest = after;
        let size = lz4_flex::block::decompress_into(source, &mut block)
            .map_err(|error| error.to_string())?;
        unpacked.extend_from_slice(block.get(..size).unwrap_or_default());
        if unpacked.len() as u64 > limit_bytes {
            break;
        }
    }
    if rest.is_empty() || unpacked.len() as u64 > limit_bytes {
        Ok(unpacked)
    } else {
        Err("it ends within the length of a block".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loader::testing::{Packing, pack, sample_text};

    #[test]
    fn each_format_unpacks_to_what_was_packed() {
        let content = sample_text(20 << 20);
        for packing in Packing::ALL {
            let payload = pack(&content, packing);
            let unpacked = unpack(&payload).unwrap_or_else(|error| panic!("{packing:?}: {error}"));
            assert!(unpacked == content, "{packing:?} changed the content");
        }
    }

    #[test]
    fn a_payload_cut_anywhere_is_damaged_and_never_accepted() {
        let content = sample_text(3000);
        for packing in Packing::COMPRESSED {
            let payload = pack(&content, packing);
            for length in 8..payload.len() {
                let error = unpack(&payload[..length]).unwrap_err();
                assert!(matches!(error, ImageError::Damaged { .. }), "{packing:?} {error:?}");
            }
        }
    }

    #[test]
    fn output_above_the_limit_is_refused() {
        let content = sample_text(100_000);
        for packing in Packing::COMPRESSED {
            let payload = pack(&content, packing);
            assert!(unpack_at_most(&payload, 100_000).is_ok(), "{packing:?}");
            let error = unpack_at_most(&payload, 99_999).unwrap_err();
            assert!(matches!(error, ImageError::UnpacksTooLarge { .. }), "{packing:?} {error:?}");
        }
    }

    #[test]
    fn compressions_not_supported_are_named() {
        let magics: [(&[u8], &str); 3] =
            [(b"BZh91AY", "bzip2"), (&[0x5d, 0, 0, 0x80], "lzma"), (b"\x89LZO\0\r\n", "lzo")];
        for (magic, name) in magics {
            assert_eq!(unpack(magic), Err(ImageError::UnsupportedCompression { name }));
        }
        assert_eq!(unpack(b"nothing known"), Err(ImageError::UnknownPayload));
        assert_eq!(unpack(b""), Err(ImageError::UnknownPayload));
    }

    #[test]
    fn a_wrong_size_trailer_is_damage() {
        let mut payload = pack(&sample_text(5000), Packing::Xz);
        *payload.last_mut().unwrap() ^= 1;
        assert!(matches!(unpack(&payload), Err(ImageError::Damaged { .. })));
    }
}
