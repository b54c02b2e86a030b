//! A frame: the unit that is written and synced, and that is either all there or not at all.
//!
//! The header says where the frame belongs: segment, salt, offset. So a frame of an earlier life of the file, or one
//! that was copied to another place, is not taken for a live one.

use super::codec::{Input, checksum};
use super::control::{self, Control};
use super::error::DecodeError;
use super::record::{self, DEAD, MESSAGE, MessageView, RECORD_HEADER};
use super::{Entry, Lsn, MAX_NUMBER, MAX_SEGMENT};
use crate::planted::{self, Planted};

/// Bytes of a frame's header.
pub(super) const FRAME_HEADER: usize = 80;
/// The version of frames and segment headers that is written.
pub(super) const VERSION: u8 = 1;
pub(super) const MAGIC: [u8; 4] = *b"OLFR";
const OFFSET: usize = 48;
const BODY_CRC: usize = 72;
const HEADER_CRC: usize = 76;

/// What a frame is for. The numbers are on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameKind {
    /// Records, settlements, or both.
    Group = 0,
    /// Part of the checkpoint at the beginning of a segment.
    Checkpoint = 1,
    /// Nothing but the LSN up to which all is durable.
    Seal = 2,
}

/// Which frame is expected.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    /// The segment's number.
    pub segment: u64,
    /// Its salt; `None` if its header cannot be read, and then the frame's own is taken.
    pub salt: Option<u64>,
    /// Where the frame begins in the segment.
    pub offset: u32,
    /// Where the segment ends.
    pub limit: u32,
}

/// A frame's header, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FrameHeader {
    pub kind: FrameKind,
    pub segment: u64,
    pub salt: u64,
    pub first_lsn: Lsn,
    /// All up to this LSN was durable before this frame was written.
    pub durable_lsn: Lsn,
    pub time: i64,
    pub offset: u32,
    /// All of the segment before this offset was synced before this frame was written.
    pub synced_end: u32,
    /// Records that have an LSN.
    pub count: u32,
    /// All records.
    pub records: u32,
    pub body_length: u32,
    pub body_crc: u32,
}

impl FrameHeader {
    /// To be filled in.
    pub const BLANK: Self = Self {
        kind: FrameKind::Group,
        segment: 0,
        salt: 0,
        first_lsn: 0,
        durable_lsn: 0,
        time: 0,
        offset: 0,
        synced_end: 0,
        count: 0,
        records: 0,
        body_length: 0,
        body_crc: 0,
    };

    /// Bytes of the frame, without the padding behind it.
    pub fn length(&self) -> u32 {
        FRAME_HEADER as u32 + self.body_length
    }

    /// Where the next frame begins. The decoder has checked that it is within a segment.
    pub fn next_offset(&self) -> u32 {
        (self.offset + self.length()).next_multiple_of(super::BLOCK)
    }

    /// The LSN behind the frame's last.
    pub fn next_lsn(&self) -> Lsn {
        self.first_lsn.saturating_add(u64::from(self.count))
    }

    /// Reads and checks the header alone.
    pub fn decode(bytes: &[u8], expected: &Identity) -> Result<Self, DecodeError> {
        let mut input = Input::new(bytes);
        let raw = input.take("frame header", FRAME_HEADER as u64)?;
        let mut input = Input::new(raw);
        let magic = input.u32("frame magic")?;
        input.exactly("frame magic", u64::from(magic), u64::from(u32::from_le_bytes(MAGIC)))?;
        let version = input.u8("frame version")?;
        let kind = input.u8("frame kind")?;
        let flags = input.u16("frame flags")?;
        let segment = input.u64("segment of the frame")?;
        let salt = input.u64("salt of the frame")?;
        let mut tail = Input::new(&raw[HEADER_CRC..]);
        let (stored, computed) = (tail.u32("header checksum")?, checksum(salt, &raw[..HEADER_CRC]));
        if stored != computed {
            let (what, offset) = ("frame header", HEADER_CRC);
            return Err(DecodeError::Checksum { what, offset, expected: stored, found: computed });
        }
        // Where it belongs comes first: a frame of an earlier life is none, whoever wrote it.
        if !planted::is(Planted::StaleFrameIsLive) {
            input.exactly("segment of the frame", segment, expected.segment)?;
            input.exactly("salt of the frame", salt, expected.salt.unwrap_or(salt))?;
        }
        if version != VERSION {
            return Err(DecodeError::Newer { what: "frame version", found: u64::from(version) });
        }
        if flags != 0 {
            return Err(DecodeError::Newer { what: "frame flags", found: u64::from(flags) });
        }
        let kind = match kind {
            0 => FrameKind::Group,
            1 => FrameKind::Checkpoint,
            2 => FrameKind::Seal,
            found => return Err(DecodeError::Newer { what: "frame kind", found: u64::from(found) }),
        };
        let header = Self {
            kind,
            segment,
            salt,
            first_lsn: input.u64("first LSN")?,
            durable_lsn: input.u64("durable LSN")?,
            time: input.i64("time")?,
            offset: input.u32("offset of the frame")?,
            synced_end: input.u32("synced end")?,
            count: input.u32("number of LSNs")?,
            records: input.u32("number of records")?,
            body_length: input.u32("length of the body")?,
            body_crc: {
                let reserved = input.u32("reserved")?;
                input.exactly("reserved", u64::from(reserved), 0)?;
                input.u32("body checksum")?
            },
        };
        header.check(expected)
    }

    fn check(self, expected: &Identity) -> Result<Self, DecodeError> {
        let most = |what, offset, found: u64, most: u64| {
            if found <= most { Ok(()) } else { Err(DecodeError::Value { what, offset, expected: most, found }) }
        };
        if self.offset != expected.offset {
            let (what, offset) = ("offset of the frame", 48);
            let (expected, found) = (u64::from(expected.offset), u64::from(self.offset));
            return Err(DecodeError::Value { what, offset, expected, found });
        }
        if self.first_lsn == 0 {
            return Err(DecodeError::Value { what: "first LSN", offset: 24, expected: 1, found: 0 });
        }
        most("first LSN", 24, self.first_lsn, MAX_NUMBER)?;
        most("durable LSN", 32, self.durable_lsn, MAX_NUMBER)?;
        let room =
            u64::from(expected.limit.min(MAX_SEGMENT)).saturating_sub(u64::from(self.offset) + FRAME_HEADER as u64);
        most("length of the body", 64, u64::from(self.body_length), room)?;
        most("number of records", 60, u64::from(self.records), u64::from(self.body_length) / RECORD_HEADER as u64)?;
        most("number of LSNs", 56, u64::from(self.count), u64::from(self.records))?;
        most("synced end", 52, u64::from(self.synced_end), u64::from(self.offset))?;
        Ok(self)
    }
}

/// The offset that a header names, be it good or not.
pub(super) fn stated_offset(raw: &[u8; FRAME_HEADER]) -> u32 {
    u32::from_le_bytes([raw[OFFSET], raw[OFFSET + 1], raw[OFFSET + 2], raw[OFFSET + 3]])
}

/// Fills in the header of a frame whose records lie in `frame[FRAME_HEADER..]`. Length and checksums are computed.
pub(super) fn finish(frame: &mut [u8], header: &FrameHeader) -> FrameHeader {
    let body_length = (frame.len() - FRAME_HEADER) as u32;
    let body_crc = checksum(header.salt, &frame[FRAME_HEADER..]);
    let mut raw = Vec::with_capacity(FRAME_HEADER);
    raw.extend_from_slice(&MAGIC);
    raw.extend_from_slice(&[VERSION, header.kind as u8, 0, 0]);
    raw.extend_from_slice(&header.segment.to_le_bytes());
    raw.extend_from_slice(&header.salt.to_le_bytes());
    raw.extend_from_slice(&header.first_lsn.to_le_bytes());
    raw.extend_from_slice(&header.durable_lsn.to_le_bytes());
    raw.extend_from_slice(&header.time.to_le_bytes());
    for value in [header.offset, header.synced_end, header.count, header.records, body_length, 0, body_crc] {
        raw.extend_from_slice(&value.to_le_bytes());
    }
    raw.extend_from_slice(&checksum(header.salt, &raw).to_le_bytes());
    frame[..FRAME_HEADER].copy_from_slice(&raw);
    FrameHeader { body_length, body_crc, ..*header }
}

/// A frame whose checksums match, still in its bytes.
#[derive(Debug)]
pub struct FrameView<'a> {
    pub(super) header: FrameHeader,
    body: &'a [u8],
}

/// A record of a frame.
#[derive(Debug)]
pub(super) enum RecordView<'a> {
    /// A message or a dead letter; it has an LSN.
    Message(MessageView<'a>),
    /// Anything else.
    Control(Control),
}

/// Reads a frame: its header, its checksums. The records are decoded by [`FrameView::entries`].
///
/// `bytes` begin with the frame and hold all of it; what follows is not looked at.
pub fn decode_frame<'a>(bytes: &'a [u8], expected: &Identity) -> Result<FrameView<'a>, DecodeError> {
    let header = FrameHeader::decode(bytes, expected)?;
    let body = Input::new(&bytes[FRAME_HEADER..]).take("frame body", u64::from(header.body_length))?;
    let computed = checksum(header.salt, body);
    if computed != header.body_crc {
        let (what, offset) = ("frame body", BODY_CRC);
        return Err(DecodeError::Checksum { what, offset, expected: header.body_crc, found: computed });
    }
    Ok(FrameView { header, body })
}

/// Makes a frame around a body as it is, with checksums that match: for tests and fuzzing, so that what lies behind the
/// checksums is reached.
#[cfg(any(test, feature = "testing"))]
pub fn wrap(body: &[u8], count: u32, records: u32, identity: &Identity) -> Vec<u8> {
    let mut frame = vec![0; FRAME_HEADER];
    frame.extend_from_slice(body);
    let header = FrameHeader {
        segment: identity.segment,
        salt: identity.salt.unwrap_or_default(),
        first_lsn: 1,
        offset: identity.offset,
        count,
        records,
        ..FrameHeader::BLANK
    };
    finish(&mut frame, &header);
    frame
}

impl<'a> FrameView<'a> {
    /// A frame that this process has written itself, with its padding.
    pub(super) fn trusted(header: FrameHeader, bytes: &'a [u8]) -> Self {
        Self { header, body: &bytes[FRAME_HEADER..header.length() as usize] }
    }

    /// What the frame is for.
    pub fn kind(&self) -> FrameKind {
        self.header.kind
    }

    /// The messages and dead letters in it, copied out, in order; control records are decoded and left out.
    pub fn entries(&self) -> Result<Vec<Entry>, DecodeError> {
        let mut entries = Vec::new();
        let mut route = None;
        self.each(|record| {
            if let RecordView::Message(message) = record {
                entries.push(message.to_owned(&mut route));
            }
        })?;
        Ok(entries)
    }

    /// Decodes every record in order, and checks that there are as many as the header says.
    pub(super) fn each(&self, mut visit: impl FnMut(RecordView<'a>)) -> Result<(), DecodeError> {
        let mut input = Input::new(self.body);
        let mut with_lsn = 0;
        for _ in 0..self.header.records {
            let tag = input.u8("tag of a record")?;
            for _ in 0..3 {
                let reserved = input.u8("flags of a record")?;
                if reserved != 0 {
                    return Err(DecodeError::Newer { what: "flags of a record", found: u64::from(reserved) });
                }
            }
            let length = input.u32("length of a record")?;
            let content = input.take("record", u64::from(length))?;
            match tag {
                MESSAGE | DEAD => {
                    with_lsn += 1;
                    visit(RecordView::Message(record::decode(tag, content)?));
                }
                _ => visit(RecordView::Control(control::decode(tag, content)?)),
            }
        }
        input.end("frame body")?;
        input.exactly("number of LSNs", with_lsn, u64::from(self.header.count))
    }
}
