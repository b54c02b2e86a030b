//! Reading little-endian bytes with an eye on where they end, and the checksum all of the format shares.

use super::MAX_NUMBER;
use super::error::DecodeError;

/// A position in bytes that are being decoded. Every read says what it wants and fails if it is not all there.
pub(super) struct Input<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Input<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    pub fn offset(&self) -> usize {
        self.at
    }

    pub fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    pub fn take(&mut self, what: &'static str, length: u64) -> Result<&'a [u8], DecodeError> {
        let left = self.left() as u64;
        if length > left {
            return Err(DecodeError::Short { what, offset: self.at, needed: length, left });
        }
        let end = self.at + length as usize;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], DecodeError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(what, N as u64)?);
        Ok(array)
    }

    pub fn u8(&mut self, what: &'static str) -> Result<u8, DecodeError> {
        self.array(what).map(u8::from_le_bytes)
    }

    pub fn u16(&mut self, what: &'static str) -> Result<u16, DecodeError> {
        self.array(what).map(u16::from_le_bytes)
    }

    pub fn u32(&mut self, what: &'static str) -> Result<u32, DecodeError> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub fn u64(&mut self, what: &'static str) -> Result<u64, DecodeError> {
        self.array(what).map(u64::from_le_bytes)
    }

    pub fn i64(&mut self, what: &'static str) -> Result<i64, DecodeError> {
        self.array(what).map(i64::from_le_bytes)
    }

    pub fn u128(&mut self, what: &'static str) -> Result<u128, DecodeError> {
        self.array(what).map(u128::from_le_bytes)
    }

    pub fn bytes16(&mut self, what: &'static str) -> Result<[u8; 16], DecodeError> {
        self.array(what)
    }

    pub fn text(&mut self, what: &'static str, length: u64) -> Result<&'a str, DecodeError> {
        let offset = self.at;
        let bytes = self.take(what, length)?;
        std::str::from_utf8(bytes).map_err(|e| DecodeError::Unreadable { what, offset, reason: e.to_string() })
    }

    /// A field that has a least and a greatest value, and was just read.
    pub fn within(&self, what: &'static str, found: u64, least: u64, most: u64) -> Result<(), DecodeError> {
        if (least..=most).contains(&found) {
            return Ok(());
        }
        let expected = if found < least { least } else { most };
        Err(DecodeError::Value { what, offset: self.at, expected, found })
    }

    /// An LSN, or the number of a segment.
    pub fn number(&mut self, what: &'static str, least: u64) -> Result<u64, DecodeError> {
        let found = self.u64(what)?;
        self.within(what, found, least, MAX_NUMBER).map(|()| found)
    }

    /// A field that has one possible value.
    pub fn exactly(&self, what: &'static str, found: u64, expected: u64) -> Result<(), DecodeError> {
        if found == expected {
            return Ok(());
        }
        Err(DecodeError::Value { what, offset: self.at, expected, found })
    }

    /// Refuses a count of things that could not all be in the bytes left, before anything is allocated for them.
    pub fn room_for(&self, what: &'static str, count: u64, each: u64) -> Result<usize, DecodeError> {
        let needed = count.saturating_mul(each);
        if needed > self.left() as u64 {
            return Err(DecodeError::Short { what, offset: self.at, needed, left: self.left() as u64 });
        }
        Ok(count as usize)
    }

    pub fn end(&self, what: &'static str) -> Result<(), DecodeError> {
        if self.left() == 0 {
            return Ok(());
        }
        Err(DecodeError::Trailing { what, offset: self.at, left: self.left() as u64 })
    }
}

/// CRC-32 (IEEE) over the salt's eight bytes, little-endian, and then the bytes: bytes of another segment, or of an
/// earlier life of this one, do not match.
pub(super) fn checksum(salt: u64, bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&salt.to_le_bytes());
    hasher.update(bytes);
    hasher.finalize()
}
