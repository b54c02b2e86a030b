//! The first block of a segment, and the names of segment files.

use std::path::{Path, PathBuf};

use super::codec::{Input, checksum};
use super::error::DecodeError;
use super::frame::VERSION;
use super::{BLOCK, Lsn, MAX_NUMBER, MAX_SEGMENT, MIN_SEGMENT};

const MAGIC: [u8; 8] = *b"OUTLSEG\x01";
/// Bytes that mean something; the rest of the block is zero.
const LENGTH: usize = 104;
const RESERVED: usize = 88;
const CRC: usize = LENGTH - 4;

/// The header of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    pub outbox: [u8; 16],
    pub incarnation: u64,
    pub number: u64,
    pub salt: u64,
    /// The first LSN this segment can have; those between `last_acked` and it are burnt.
    pub first_lsn: Lsn,
    /// The last LSN acknowledged before this segment: records of older segments past it do not exist.
    pub last_acked: Lsn,
    /// The segment before, 0 if there is none, and where what was acknowledged ends in it.
    pub previous: u64,
    pub previous_end: u32,
    pub segment_bytes: u32,
    /// Where the checkpoint ends and groups begin.
    pub start: u32,
}

impl SegmentHeader {
    /// The first block.
    pub fn encode(&self) -> Vec<u8> {
        let mut block = Vec::with_capacity(BLOCK as usize);
        block.extend_from_slice(&MAGIC);
        block.extend_from_slice(&[VERSION, 0, 0, 0]);
        block.extend_from_slice(&self.segment_bytes.to_le_bytes());
        block.extend_from_slice(&self.outbox);
        for value in [self.incarnation, self.number, self.salt, self.first_lsn, self.last_acked, self.previous] {
            block.extend_from_slice(&value.to_le_bytes());
        }
        block.extend_from_slice(&self.previous_end.to_le_bytes());
        block.extend_from_slice(&self.start.to_le_bytes());
        block.resize(CRC, 0);
        block.extend_from_slice(&checksum(self.salt, &block).to_le_bytes());
        block.resize(BLOCK as usize, 0);
        block
    }

    /// Reads and checks the first block.
    pub fn decode(block: &[u8]) -> Result<Self, DecodeError> {
        let raw = Input::new(block).take("segment header", LENGTH as u64)?;
        let mut input = Input::new(raw);
        let magic = input.u64("segment magic")?;
        input.exactly("segment magic", magic, u64::from_le_bytes(MAGIC))?;
        let version = input.u8("segment version")?;
        let flags = input.take("segment flags", 3)?;
        let segment_bytes = input.u32("segment length")?;
        let outbox = input.bytes16("outbox id")?;
        let incarnation = input.u64("incarnation")?;
        let number = input.u64("segment number")?;
        let salt = input.u64("salt")?;
        let header = Self {
            outbox,
            incarnation,
            number,
            salt,
            first_lsn: input.u64("first LSN")?,
            last_acked: input.u64("last acknowledged LSN")?,
            previous: input.u64("previous segment")?,
            previous_end: input.u32("end of the previous segment")?,
            segment_bytes,
            start: input.u32("start of groups")?,
        };
        let reserved = input.take("reserved", (CRC - RESERVED) as u64)?;
        let stored = Input::new(&raw[CRC..]).u32("header checksum")?;
        let found = checksum(salt, &raw[..CRC]);
        if stored != found {
            return Err(DecodeError::Checksum { what: "segment header", offset: CRC, expected: stored, found });
        }
        if version != VERSION {
            return Err(DecodeError::Newer { what: "segment version", found: u64::from(version) });
        }
        if let Some(&found) = flags.iter().chain(reserved).find(|&&flag| flag != 0) {
            return Err(DecodeError::Newer { what: "segment flags", found: u64::from(found) });
        }
        header.check(&input)?;
        Ok(header)
    }
}

impl SegmentHeader {
    fn check(&self, input: &Input<'_>) -> Result<(), DecodeError> {
        let blocks = |what, value: u32, least, most| {
            input.exactly(what, u64::from(value % BLOCK), 0)?;
            input.within(what, u64::from(value), u64::from(least), u64::from(most))
        };
        blocks("segment length", self.segment_bytes, MIN_SEGMENT, MAX_SEGMENT)?;
        blocks("start of groups", self.start, BLOCK, self.segment_bytes)?;
        blocks("end of the previous segment", self.previous_end, 0, MAX_SEGMENT)?;
        for (what, number) in [("segment number", self.number), ("previous segment", self.previous)] {
            input.within(what, number, 0, MAX_NUMBER)?;
        }
        input.within("last acknowledged LSN", self.last_acked, 0, MAX_NUMBER - 1)?;
        input.within("first LSN", self.first_lsn, self.last_acked + 1, MAX_NUMBER)
    }
}

/// `%016x.seg`: names sort as numbers do.
pub(super) fn path(directory: &Path, number: u64) -> PathBuf {
    directory.join(format!("{number:016x}.seg"))
}

/// The name of a segment that is prepared and not yet used.
pub(super) fn free_path(directory: &Path, number: u64) -> PathBuf {
    directory.join(format!("free-{number:016x}.seg"))
}

/// What a name in the directory stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Name {
    Segment(u64),
    Free(u64),
}

impl Name {
    pub fn parse(name: &str) -> Option<Self> {
        let hex = |digits: &str| {
            let plain = digits.len() == 16 && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
            plain.then(|| u64::from_str_radix(digits, 16).ok()).flatten().filter(|number| *number <= MAX_NUMBER)
        };
        let stem = name.strip_suffix(".seg")?;
        match stem.strip_prefix("free-") {
            Some(digits) => hex(digits).map(Self::Free),
            None => hex(stem).map(Self::Segment),
        }
    }
}
