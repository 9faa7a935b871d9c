//! Numbers and byte strings in a log's packed form. It owns no format: that is `codec`.

use alloc::vec::Vec;

use crate::error::DecodeError;

/// Appends a number, seven bits a byte, lowest first.
pub(crate) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends a length and the bytes.
pub(crate) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Reads what the functions above wrote; refuses whatever they could not have written.
#[derive(Clone, Debug)]
pub(crate) struct Reader<'a> {
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    pub(crate) fn remaining(&self) -> usize {
        self.bytes.len()
    }

    pub(crate) fn rest(&self) -> &'a [u8] {
        self.bytes
    }

    pub(crate) fn take(
        &mut self,
        length: usize,
        what: &'static str,
    ) -> Result<&'a [u8], DecodeError> {
        let (taken, rest) =
            self.bytes.split_at_checked(length).ok_or(DecodeError::Truncated { what })?;
        self.bytes = rest;
        Ok(taken)
    }

    pub(crate) fn u8(&mut self, what: &'static str) -> Result<u8, DecodeError> {
        let (first, rest) = self.bytes.split_first().ok_or(DecodeError::Truncated { what })?;
        self.bytes = rest;
        Ok(*first)
    }

    pub(crate) fn u64(&mut self, what: &'static str) -> Result<u64, DecodeError> {
        let (first, rest) =
            self.bytes.split_first_chunk::<8>().ok_or(DecodeError::Truncated { what })?;
        self.bytes = rest;
        Ok(u64::from_le_bytes(*first))
    }

    /// One encoding per number: padded forms are refused, so equal logs are equal bytes.
    pub(crate) fn varint(&mut self, what: &'static str) -> Result<u64, DecodeError> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.u8(what)?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && byte > 1 || shift > 0 && byte == 0 {
                return Err(DecodeError::OutOfRange { what });
            }
            value |= bits << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(DecodeError::OutOfRange { what })
    }

    pub(crate) fn varint_u16(&mut self, what: &'static str) -> Result<u16, DecodeError> {
        u16::try_from(self.varint(what)?).map_err(|_| DecodeError::OutOfRange { what })
    }

    /// Allocates only after the claimed length is known to be there.
    pub(crate) fn bytes(&mut self, what: &'static str) -> Result<Vec<u8>, DecodeError> {
        let length =
            usize::try_from(self.varint(what)?).map_err(|_| DecodeError::OutOfRange { what })?;
        Ok(self.take(length, what)?.to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    #[test]
    fn varints_round_trip_at_their_edges() {
        for value in [0, 1, 127, 128, 16_383, 16_384, u64::from(u32::MAX), u64::MAX - 1, u64::MAX] {
            let mut bytes = vec![];
            put_varint(&mut bytes, value);
            let mut reader = Reader::new(&bytes);
            assert_eq!(reader.varint("number"), Ok(value));
            assert_eq!(reader.remaining(), 0);
        }
    }

    #[test]
    fn varints_that_are_too_long_or_padded_are_refused() {
        let too_long = [0xff; 10];
        assert!(Reader::new(&too_long).varint("number").is_err());
        assert!(Reader::new(&[0x80, 0x00]).varint("number").is_err());
        assert!(Reader::new(&[0x80]).varint("number").is_err());
    }

    #[test]
    fn a_claimed_length_is_not_believed() {
        let mut bytes = vec![];
        put_varint(&mut bytes, u64::MAX);
        assert!(Reader::new(&bytes).bytes("string").is_err());
    }
}
