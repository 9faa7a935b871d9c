//! How the body of a large frame is packed for the way to the other side.
//!
//! Owns the ways there are and what is worth it. Does not own where in a frame it is said (that is
//! `frame`) or who wants it: the sender says so, and a receiver unpacks whatever comes. All limits of
//! the log count plain bytes, so packing changes nothing but what the network carries.

use alloc::{vec, vec::Vec};

use lz4_flex::block::{compress_into, decompress_into, get_maximum_output_size};

/// The number of LZ4's block format in a header. Numbers are never used again.
pub(crate) const LZ4: u8 = 1;

/// A body of fewer bytes goes as it is: one packet carries it either way.
pub const PACKED_BYTES_MIN: usize = 512;

/// LZ4 cannot say more with one byte, so whoever claims more lies.
const LZ4_RATIO_MAX: usize = 255;

/// What a sender does with large bodies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compression {
    /// They go as they are.
    #[default]
    Off,
    /// LZ4's block format, where that makes them smaller.
    Lz4,
}

impl Compression {
    /// Every kind there is.
    pub const ALL: [Self; 2] = [Self::Off, Self::Lz4];

    /// Its name in options and JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Lz4 => "lz4",
        }
    }

    /// The packed body, if there is to be one and it is smaller.
    pub(crate) fn pack(self, body: &[u8]) -> Option<Vec<u8>> {
        match self {
            Self::Off => None,
            Self::Lz4 if body.len() < PACKED_BYTES_MIN => None,
            Self::Lz4 => {
                let mut packed = vec![0; get_maximum_output_size(body.len())];
                let length = compress_into(body, &mut packed).ok()?;
                packed.truncate(length);
                (length < body.len()).then_some(packed)
            }
        }
    }
}

/// Whether a body of `plain` bytes can have been packed into `length` bytes, as far as the numbers
/// tell. To be asked before anything is allocated for it.
pub(crate) fn is_possible(length: usize, plain: usize) -> bool {
    length < plain && plain <= length.saturating_mul(LZ4_RATIO_MAX)
}

/// The body of exactly `plain` bytes, or nothing if this is not one.
pub(crate) fn unpack(packed: &[u8], plain: usize) -> Option<Vec<u8>> {
    let mut body = vec![0; plain];
    let length = decompress_into(packed, &mut body).ok()?;
    (length == plain).then_some(body)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_what_is_large_and_shrinks_is_packed() {
        let text = [b'a'; PACKED_BYTES_MIN];
        assert_eq!(Compression::Off.pack(&text), None);
        assert_eq!(Compression::Lz4.pack(&text[1..]), None);
        let packed = Compression::Lz4.pack(&text).unwrap();
        assert!(packed.len() < 32 && is_possible(packed.len(), text.len()));
        assert_eq!(unpack(&packed, text.len()).unwrap(), text);
        // No four bytes of it come twice.
        let noise: Vec<u8> = (0..1024_u32)
            .flat_map(|number| xxhash_rust::xxh3::xxh3_64(&number.to_le_bytes()).to_le_bytes())
            .collect();
        assert_eq!(Compression::Lz4.pack(&noise), None);
    }

    #[test]
    fn a_length_that_is_not_the_right_one_is_refused() {
        let text = [b'a'; 4096];
        let packed = Compression::Lz4.pack(&text).unwrap();
        for wrong in [0, 1, text.len() - 1, text.len() + 1] {
            assert_eq!(unpack(&packed, wrong), None, "{wrong}");
        }
        assert!(!is_possible(0, 1) && !is_possible(10, 10) && !is_possible(10, 2551));
        assert!(is_possible(10, 2550) && is_possible(10, 11));
    }

    /// Bytes of few kinds, in which there is something to find.
    fn body() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            prop::collection::vec(0..3_u8, 0..5000),
            prop::collection::vec(any::<u8>(), 0..3000),
            (prop::collection::vec(any::<u8>(), 1..600), 1..40_usize)
                .prop_map(|(part, times)| part.repeat(times)),
        ]
    }

    proptest! {
        #[test]
        fn whatever_is_packed_comes_out_again_and_is_smaller(body in body()) {
            if let Some(packed) = Compression::Lz4.pack(&body) {
                prop_assert!(packed.len() < body.len() && is_possible(packed.len(), body.len()));
                prop_assert_eq!(unpack(&packed, body.len()), Some(body));
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic(
            packed in prop::collection::vec(any::<u8>(), 0..400),
            plain in 0..20_000_usize,
        ) {
            if let Some(body) = unpack(&packed, plain) {
                prop_assert_eq!(body.len(), plain);
            }
        }

        #[test]
        fn damage_is_an_error_or_harmless_to_memory(
            body in body(),
            at: prop::sample::Index,
            change in 1..=255_u8,
        ) {
            if let Some(mut packed) = Compression::Lz4.pack(&body) {
                *at.get_mut(&mut packed) ^= change;
                let unpacked = unpack(&packed, body.len());
                prop_assert!(unpacked.is_none_or(|unpacked| unpacked.len() == body.len()));
            }
        }
    }
}
