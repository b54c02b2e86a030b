//! Decoders and encoders as fuzz targets and tests reach them: what decodes is encoded again, and checksums are made
//! to match, so that what lies behind them is reached. Nothing of the log uses it.

use super::codec::checksum;
use super::control::{self, Control};
use super::error::DecodeError;
use super::frame::{self, FRAME_HEADER, FrameView, Identity, RecordView};
use super::record::{self, DEAD, MESSAGE, RECORD_HEADER};
use super::segment::SegmentHeader;
use super::{BLOCK, Entry, EntryRef};

/// Where the frame's header says how long its body is.
const BODY_LENGTH: usize = 64;
const BODY_CRC: usize = 72;
const FRAME_CRC: usize = 76;
const SEGMENT_CRC: usize = 100;
const SEGMENT_SALT: usize = 48;

/// Reads the content of a record and writes it again: the record as this release would have written it, without its
/// own header.
///
/// # Errors
/// It cannot be read.
pub fn recode_record(tag: u8, content: &[u8]) -> Result<Vec<u8>, DecodeError> {
    let mut again = Vec::new();
    match tag {
        MESSAGE | DEAD => encode(&mut again, &record::decode(tag, content)?.to_owned(&mut None))?,
        _ => recode_control(&mut again, control::decode(tag, content)?),
    }
    Ok(again.split_off(RECORD_HEADER))
}

/// The record of a message or a dead letter, with its header.
///
/// # Errors
/// It cannot be written.
pub fn encode_record(entry: EntryRef<'_>) -> Result<Vec<u8>, DecodeError> {
    let mut record = Vec::new();
    record::encode(&mut record, entry).map(|()| record)
}

/// Reads the content of a record with the tag of a message or of a dead letter.
///
/// # Errors
/// It cannot be read.
pub fn decode_record(tag: u8, content: &[u8]) -> Result<Entry, DecodeError> {
    Ok(record::decode(tag, content)?.to_owned(&mut None))
}

/// Reads a frame, its records too, and writes it again.
///
/// # Errors
/// It cannot be read.
pub fn recode_frame(bytes: &[u8], expected: &Identity) -> Result<Vec<u8>, DecodeError> {
    let view = frame::decode_frame(bytes, expected)?;
    recode_view(&view)
}

fn recode_view(view: &FrameView<'_>) -> Result<Vec<u8>, DecodeError> {
    let mut again = vec![0; FRAME_HEADER];
    let mut failed = Ok(());
    view.each(|record| match record {
        RecordView::Message(message) => {
            let encoded = encode(&mut again, &message.to_owned(&mut None));
            failed = std::mem::replace(&mut failed, Ok(())).and(encoded);
        }
        RecordView::Control(control) => recode_control(&mut again, control),
    })?;
    failed?;
    frame::finish(&mut again, &view.header);
    Ok(again)
}

/// Reads a segment's header and writes it again.
///
/// # Errors
/// It cannot be read.
pub fn recode_header(block: &[u8]) -> Result<Vec<u8>, DecodeError> {
    SegmentHeader::decode(block).map(|header| header.encode())
}

/// Makes the checksums of a segment match: of its header, and of whatever looks like a frame at a block's beginning.
pub fn mend(segment: &mut [u8]) {
    if segment.len() >= SEGMENT_CRC + 4 {
        let crc = checksum(number(segment, SEGMENT_SALT), &segment[..SEGMENT_CRC]);
        segment[SEGMENT_CRC..SEGMENT_CRC + 4].copy_from_slice(&crc.to_le_bytes());
    }
    let mut at = BLOCK as usize;
    while at + FRAME_HEADER <= segment.len() {
        if segment[at..].starts_with(b"OLFR") {
            mend_frame(&mut segment[at..]);
        }
        at += BLOCK as usize;
    }
}

/// Makes the checksums of a frame match; its body ends where the header says, or with the bytes.
pub fn mend_frame(frame: &mut [u8]) {
    if frame.len() < FRAME_HEADER {
        return;
    }
    let salt = number(frame, 16);
    let length = number(frame, BODY_LENGTH) as u32 as usize;
    if let Some(body) = frame.get(FRAME_HEADER..FRAME_HEADER.saturating_add(length)) {
        let crc = checksum(salt, body);
        frame[BODY_CRC..BODY_CRC + 4].copy_from_slice(&crc.to_le_bytes());
    }
    let crc = checksum(salt, &frame[..FRAME_CRC]);
    frame[FRAME_CRC..FRAME_CRC + 4].copy_from_slice(&crc.to_le_bytes());
}

/// The length of the good frame at the beginning of the bytes, whatever segment and place it is from.
pub fn frame_length(bytes: &[u8]) -> Option<usize> {
    let offset = u32::from_le_bytes(*bytes.get(48..)?.first_chunk()?);
    let segment = u64::from_le_bytes(*bytes.get(8..)?.first_chunk()?);
    let identity = Identity { segment, salt: None, offset, limit: 1 << 30 };
    frame::decode_frame(bytes, &identity).ok().map(|view| view.header.length() as usize)
}

fn number(bytes: &[u8], at: usize) -> u64 {
    bytes[at..].first_chunk().map_or(0, |chunk| u64::from_le_bytes(*chunk))
}

fn encode(buffer: &mut Vec<u8>, entry: &Entry) -> Result<(), DecodeError> {
    match entry {
        Entry::Message(outgoing) => record::encode(buffer, EntryRef::Message(outgoing)),
        Entry::Dead(dead) => record::encode(buffer, EntryRef::Dead(dead)),
    }
}

fn recode_control(buffer: &mut Vec<u8>, control: Control) {
    let count = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
    match control {
        Control::Settled(settled) => control::encode_settled(buffer, &settled),
        Control::Ranges { prefix, ranges } => control::encode_ranges(buffer, prefix, &ranges),
        Control::Route(route, pending) => control::encode_route(buffer, &route, &pending),
        Control::Segments(segments) => control::encode_segments(buffer, &segments),
        Control::End { ranges, routes, segments } => {
            control::encode_end(buffer, count(ranges), count(routes), count(segments));
        }
        Control::Seal(lsn) => control::encode_seal(buffer, lsn),
    }
}
