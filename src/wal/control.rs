//! Records that take no LSN: what was settled, the checkpoint a segment begins with, the seal.

use std::sync::Arc;

use super::codec::Input;
use super::error::DecodeError;
use super::record::{begin_record, end_record};
use super::state::{Pending, SegmentInfo};
use super::{Lsn, MAX_NUMBER, MAX_SEGMENT, Mark, RouteTotal, Settled};
use crate::message::Route;

/// Tags of control records. Explicit, never reused.
const SETTLED: u8 = 16;
const RANGES: u8 = 17;
const ROUTE: u8 = 18;
const SEGMENTS: u8 = 19;
const END: u8 = 20;
const SEAL: u8 = 21;

/// A control record, decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Control {
    Settled(Settled),
    /// Part of a checkpoint: the settled prefix, and ranges beyond it.
    Ranges {
        prefix: Lsn,
        ranges: Vec<(Lsn, Lsn)>,
    },
    /// Part of a checkpoint: what is pending on a route.
    Route(Route, Pending),
    /// Part of a checkpoint: the segments before this one that are still needed.
    Segments(Vec<SegmentInfo>),
    /// The end of a checkpoint: how many ranges, routes and segments it has.
    End {
        ranges: u64,
        routes: u64,
        segments: u64,
    },
    /// All up to this LSN was durable.
    Seal(Lsn),
}

impl Mark {
    const fn tag(self) -> u8 {
        match self {
            Self::Delivered => 1,
            Self::Dead => 2,
            Self::Held => 3,
            Self::Requeued => 4,
            Self::Purged => 5,
            Self::Damaged => 6,
        }
    }

    fn from_tag(tag: u8) -> Result<Self, DecodeError> {
        Ok(match tag {
            1 => Self::Delivered,
            2 => Self::Dead,
            3 => Self::Held,
            4 => Self::Requeued,
            5 => Self::Purged,
            6 => Self::Damaged,
            found => return Err(DecodeError::Newer { what: "mark of a settlement", found: u64::from(found) }),
        })
    }
}

/// Appends a record that says what was settled.
pub(super) fn encode_settled(buffer: &mut Vec<u8>, settled: &Settled) {
    let start = buffer.len();
    begin_record(buffer, SETTLED);
    buffer.extend_from_slice(&[settled.mark.tag(), 0, 0, 0]);
    put_u32(buffer, settled.ranges.len());
    put_u32(buffer, settled.totals.len());
    put_ranges(buffer, &settled.ranges);
    for total in &settled.totals {
        buffer.extend_from_slice(&total.count.to_le_bytes());
        buffer.extend_from_slice(&total.bytes.to_le_bytes());
        put_route(buffer, &total.route);
    }
    end_record(buffer, start);
}

pub(super) fn encode_ranges(buffer: &mut Vec<u8>, prefix: Lsn, ranges: &[(Lsn, Lsn)]) {
    let start = buffer.len();
    begin_record(buffer, RANGES);
    buffer.extend_from_slice(&prefix.to_le_bytes());
    put_u32(buffer, ranges.len());
    put_ranges(buffer, ranges);
    end_record(buffer, start);
}

pub(super) fn encode_route(buffer: &mut Vec<u8>, route: &Route, pending: &Pending) {
    let start = buffer.len();
    begin_record(buffer, ROUTE);
    buffer.extend_from_slice(&pending.count.to_le_bytes());
    buffer.extend_from_slice(&pending.bytes.to_le_bytes());
    buffer.extend_from_slice(&pending.oldest.to_le_bytes());
    put_route(buffer, route);
    end_record(buffer, start);
}

pub(super) fn encode_segments(buffer: &mut Vec<u8>, segments: &[SegmentInfo]) {
    let start = buffer.len();
    begin_record(buffer, SEGMENTS);
    put_u32(buffer, segments.len());
    for segment in segments {
        buffer.extend_from_slice(&segment.number.to_le_bytes());
        buffer.extend_from_slice(&segment.first_lsn.to_le_bytes());
        buffer.extend_from_slice(&segment.last_lsn.to_le_bytes());
        buffer.extend_from_slice(&segment.end.to_le_bytes());
        buffer.extend_from_slice(&u32::from(segment.failed).to_le_bytes());
    }
    end_record(buffer, start);
}

pub(super) fn encode_end(buffer: &mut Vec<u8>, ranges: usize, routes: usize, segments: usize) {
    let start = buffer.len();
    begin_record(buffer, END);
    for count in [ranges, routes, segments] {
        buffer.extend_from_slice(&(count as u64).to_le_bytes());
    }
    end_record(buffer, start);
}

pub(super) fn encode_seal(buffer: &mut Vec<u8>, durable: Lsn) {
    let start = buffer.len();
    begin_record(buffer, SEAL);
    buffer.extend_from_slice(&durable.to_le_bytes());
    end_record(buffer, start);
}

fn put_u32(buffer: &mut Vec<u8>, count: usize) {
    buffer.extend_from_slice(&(count as u32).to_le_bytes());
}

fn put_ranges(buffer: &mut Vec<u8>, ranges: &[(Lsn, Lsn)]) {
    for (first, last) in ranges {
        buffer.extend_from_slice(&first.to_le_bytes());
        buffer.extend_from_slice(&last.to_le_bytes());
    }
}

fn put_route(buffer: &mut Vec<u8>, route: &Route) {
    put_u32(buffer, route.transport.len());
    put_u32(buffer, route.destination.len());
    buffer.extend_from_slice(route.transport.as_bytes());
    buffer.extend_from_slice(route.destination.as_bytes());
}

/// Reads the content of a record that is neither a message nor a dead letter.
pub(super) fn decode(tag: u8, content: &[u8]) -> Result<Control, DecodeError> {
    let mut input = Input::new(content);
    let control = match tag {
        SETTLED => Control::Settled(settled(&mut input)?),
        RANGES => {
            let prefix = input.number("settled prefix", 0)?;
            let count = input.u32("number of ranges")?;
            Control::Ranges { prefix, ranges: ranges(&mut input, count)? }
        }
        ROUTE => {
            let pending = Pending {
                count: input.u64("pending messages")?,
                bytes: input.u64("pending bytes")?,
                oldest: input.i64("oldest pending")?,
            };
            Control::Route(route(&mut input)?, pending)
        }
        SEGMENTS => Control::Segments(segments(&mut input)?),
        END => Control::End {
            ranges: input.u64("ranges of the checkpoint")?,
            routes: input.u64("routes of the checkpoint")?,
            segments: input.u64("segments of the checkpoint")?,
        },
        SEAL => Control::Seal(input.number("sealed LSN", 0)?),
        found => return Err(DecodeError::Newer { what: "tag of a record", found: u64::from(found) }),
    };
    input.end("control record")?;
    Ok(control)
}

fn settled(input: &mut Input<'_>) -> Result<Settled, DecodeError> {
    let mark = Mark::from_tag(input.u8("mark")?)?;
    for byte in input.take("reserved", 3)? {
        input.exactly("reserved", u64::from(*byte), 0)?;
    }
    let range_count = input.u32("number of ranges")?;
    let total_count = input.u32("number of totals")?;
    let ranges = ranges(input, range_count)?;
    let mut totals = Vec::with_capacity(input.room_for("totals", u64::from(total_count), 24)?);
    for _ in 0..total_count {
        let (count, bytes) = (input.u64("settled messages")?, input.u64("settled bytes")?);
        totals.push(RouteTotal { route: route(input)?, count, bytes });
    }
    Ok(Settled { mark, ranges, totals })
}

fn ranges(input: &mut Input<'_>, count: u32) -> Result<Vec<(Lsn, Lsn)>, DecodeError> {
    let mut ranges = Vec::with_capacity(input.room_for("ranges", u64::from(count), 16)?);
    for _ in 0..count {
        let offset = input.offset();
        let (first, last) = (input.u64("first LSN of a range")?, input.u64("last LSN of a range")?);
        if first == 0 || last < first || last > MAX_NUMBER {
            let what = "last LSN of a range";
            return Err(DecodeError::Value { what, offset, expected: first.clamp(1, MAX_NUMBER), found: last });
        }
        ranges.push((first, last));
    }
    Ok(ranges)
}

fn route(input: &mut Input<'_>) -> Result<Route, DecodeError> {
    let (transport, destination) = (input.u32("length of a transport")?, input.u32("length of a destination")?);
    Ok(Route {
        transport: Arc::from(input.text("transport", u64::from(transport))?),
        destination: Arc::from(input.text("destination", u64::from(destination))?),
    })
}

fn segments(input: &mut Input<'_>) -> Result<Vec<SegmentInfo>, DecodeError> {
    let count = input.u32("number of segments")?;
    let mut segments = Vec::with_capacity(input.room_for("segments", u64::from(count), 32)?);
    for _ in 0..count {
        let number = input.number("segment number", 0)?;
        let first_lsn = input.number("first LSN of a segment", 1)?;
        let last_lsn = input.number("last LSN of a segment", first_lsn - 1)?;
        let end = input.u32("end of a segment")?;
        input.within("end of a segment", u64::from(end), 0, u64::from(MAX_SEGMENT))?;
        let flags = input.u32("flags of a segment")?;
        if flags > 1 {
            return Err(DecodeError::Newer { what: "flags of a segment", found: u64::from(flags) });
        }
        segments.push(SegmentInfo { number, first_lsn, last_lsn, start: 0, end, failed: flags == 1 });
    }
    Ok(segments)
}
