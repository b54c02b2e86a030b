//! Walking the frames of a segment file. It reads; it decides nothing.

use std::io;
use std::sync::Arc;

use super::error::DecodeError;
use super::frame::{self, FRAME_HEADER, FrameHeader, FrameView, Identity};
use super::segment::SegmentHeader;
use super::storage::File;
use super::{BLOCK, round_up};

/// A segment file that is being read.
#[derive(Clone)]
pub(super) struct SegmentFile {
    pub file: Arc<dyn File>,
    pub number: u64,
    /// Its salt, if its header could be read; else each frame's own is taken.
    pub salt: Option<u64>,
    /// Where it ends.
    pub limit: u32,
}

/// A frame with its bytes.
pub(super) struct Frame {
    pub header: FrameHeader,
    bytes: Vec<u8>,
}

impl Frame {
    pub fn view(&self) -> FrameView<'_> {
        FrameView::trusted(self.header, &self.bytes)
    }
}

impl SegmentFile {
    pub fn identity(&self, offset: u32) -> Identity {
        Identity { segment: self.number, salt: self.salt, offset, limit: self.limit }
    }

    /// The segment's header. The outer error is the system's, the inner the format's.
    pub fn header(&self) -> io::Result<Result<SegmentHeader, DecodeError>> {
        let mut block = vec![0; BLOCK as usize];
        let read = self.file.read_at(&mut block, 0)?;
        Ok(SegmentHeader::decode(&block[..read]))
    }

    /// The header of the frame at an offset; the body is not read.
    pub fn frame_header(&self, offset: u32) -> io::Result<Result<FrameHeader, DecodeError>> {
        let mut raw = [0; FRAME_HEADER];
        let read = self.file.read_at(&mut raw, u64::from(offset))?;
        Ok(FrameHeader::decode(&raw[..read], &self.identity(offset)))
    }

    /// Whether a frame of this segment begins at an offset, be its header ever so little damaged. One of an earlier life
    /// has another number and another salt; one of another place is whole there.
    pub fn resembles_frame(&self, offset: u32) -> io::Result<bool> {
        let mut raw = [0; FRAME_HEADER];
        let read = self.file.read_at(&mut raw, u64::from(offset))?;
        let salt = self.salt.unwrap_or_default();
        let signs = [(0, &frame::MAGIC[..]), (8, &self.number.to_le_bytes()), (16, &salt.to_le_bytes())];
        let resembles = signs.iter().filter(|(at, sign)| raw[*at..].starts_with(sign)).count() >= 2;
        let elsewhere = Identity { offset: frame::stated_offset(&raw), ..self.identity(offset) };
        Ok(read == FRAME_HEADER && resembles && FrameHeader::decode(&raw, &elsewhere).is_err())
    }

    /// The frame at an offset, its checksums and its records checked.
    pub fn frame(&self, offset: u32) -> io::Result<Result<Frame, DecodeError>> {
        let mut bytes = vec![0; BLOCK as usize];
        let read = self.file.read_at(&mut bytes, u64::from(offset))?;
        bytes.truncate(read);
        let identity = self.identity(offset);
        let header = match FrameHeader::decode(&bytes, &identity) {
            Ok(header) => header,
            Err(error) => return Ok(Err(error)),
        };
        let length = header.length() as usize;
        if length > bytes.len() {
            // What a segment says of its own length is no reason to allocate it.
            let left = self.file.length()?.saturating_sub(u64::from(offset));
            if length as u64 > left {
                let (what, offset, needed) = ("frame body", FRAME_HEADER, u64::from(header.body_length));
                return Ok(Err(DecodeError::Short {
                    what,
                    offset,
                    needed,
                    left: left.saturating_sub(FRAME_HEADER as u64),
                }));
            }
            let have = bytes.len();
            bytes.resize(length, 0);
            let read = self.file.read_at(&mut bytes[have..], u64::from(offset) + have as u64)?;
            bytes.truncate(have + read);
        }
        let decoded = frame::decode_frame(&bytes, &identity).and_then(|view| view.each(|_| {}));
        Ok(decoded.map(|()| Frame { header, bytes }))
    }

    /// The first good frame that begins at or after `from` and before `end`.
    ///
    /// A block that the system cannot read now may hold it: whoever takes what lies in front for damaged, or the rest of
    /// the segment for empty, must not do so on an error.
    pub fn next_good(&self, from: u32, end: u32) -> io::Result<Option<Frame>> {
        // A segment may say that it is much longer than its file.
        let end = end.min(u32::try_from(self.file.length()?).unwrap_or(u32::MAX));
        let mut offset = round_up(u64::from(from)) as u32;
        while offset < end {
            if let Some(frame) = self.good(offset)? {
                return Ok(Some(frame));
            }
            offset = offset.saturating_add(BLOCK);
        }
        Ok(None)
    }

    /// The same for an audit of a disk that stays unreadable in places: those are passed over.
    pub fn next_readable(&self, from: u32, end: u32) -> Option<Frame> {
        let length = self.file.length().map_or(u32::MAX, |length| u32::try_from(length).unwrap_or(u32::MAX));
        let mut offsets = (round_up(u64::from(from))..u64::from(end.min(length))).step_by(BLOCK as usize);
        offsets.find_map(|offset| self.good(offset as u32).ok().flatten())
    }

    pub fn good(&self, offset: u32) -> io::Result<Option<Frame>> {
        match self.frame_header(offset)? {
            Ok(_) => Ok(self.frame(offset)?.ok()),
            Err(_) => Ok(None),
        }
    }
}
