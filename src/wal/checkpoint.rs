//! The checkpoint a segment begins with: its records, and how much room it takes.
//!
//! It has to fit into the segment beside the largest record and a seal, or nothing could be written any more, not even
//! the settlements that would make it smaller. So each of its parts is bounded by what the others leave: routes where a
//! message is appended, what is settled in ranges where settlements are taken up, and segments, beside
//! [`Options::max_segments`], where a message begins one.

use super::control;
use super::frame::FRAME_HEADER;
use super::record::RECORD_HEADER;
use super::state::{SegmentInfo, State};
use super::{BLOCK, Lsn, Options, round_up};
use crate::message::Route;

/// Ranges, or segments, in one record, at most: 4 KiB.
const RANGES_A_RECORD: usize = 256;
const SEGMENTS_A_RECORD: usize = 128;
/// Bytes of a range, and of a segment.
const RANGE: usize = 16;
const SEGMENT: usize = 32;
/// What records of ranges and of segments have beside those, at most.
const AROUND: usize = RECORD_HEADER + 12;
/// The record at its end.
const END: usize = RECORD_HEADER + 24;
/// A message is taken only if so many segments more can be listed: those in which settlements are written, that make the
/// list shorter.
const SEGMENTS_TO_COME: usize = 8;

/// How much a checkpoint holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Contents {
    pub ranges: usize,
    pub segments: usize,
    /// The sum of [`route_bytes`].
    pub route_bytes: u64,
}

/// Bytes of a body of a frame.
fn body(frame_bytes: u32) -> usize {
    frame_bytes as usize - FRAME_HEADER
}

/// So many of the things of a record that it takes a quarter of a frame at most: little is left empty at its end.
fn a_record(most: usize, each: usize, frame_bytes: u32) -> usize {
    most.min((body(frame_bytes) / 4 - AROUND) / each)
}

/// What a route takes. A long one may leave the end of a frame empty, so it counts twice.
pub(super) fn route_bytes(route: &Route) -> u64 {
    let bytes = (RECORD_HEADER + 32 + route.transport.len() + route.destination.len()) as u64;
    if bytes as usize > body(BLOCK) / 4 { 2 * bytes + u64::from(BLOCK) } else { bytes }
}

impl Contents {
    /// The same with a few segments more: what a segment that begins with a message has to leave room for.
    pub fn to_come(self) -> Self {
        Self { segments: self.segments + SEGMENTS_TO_COME, ..self }
    }

    /// What a segment's header and this checkpoint take, at most.
    pub fn room(self, frame_bytes: u32) -> u64 {
        let in_records = |count: usize, each: usize, most: usize| {
            let a_record = a_record(most, each, frame_bytes);
            count * each + count.div_ceil(a_record) * AROUND
        };
        let lists = AROUND
            + in_records(self.ranges, RANGE, RANGES_A_RECORD)
            + in_records(self.segments, SEGMENT, SEGMENTS_A_RECORD)
            + END;
        let (bytes, body) = (lists as u64 + self.route_bytes, body(frame_bytes) as u64);
        let whole_block = u64::from(BLOCK);
        if bytes <= body {
            return whole_block + round_up(FRAME_HEADER as u64 + bytes);
        }
        // All frames but the last are three quarters full.
        let frames = 1 + bytes * 4 / (3 * body);
        let padded = bytes + frames * (FRAME_HEADER as u64 + whole_block - 1);
        whole_block + round_up(padded.min(frames * round_up(u64::from(frame_bytes))))
    }
}

impl Options {
    /// What header and checkpoint of a segment may take: the largest record, and a seal, find room behind them.
    pub(super) fn checkpoint_room(&self) -> u64 {
        let beside = round_up(u64::from(self.record_bytes)) + u64::from(BLOCK);
        u64::from(self.segment_bytes).saturating_sub(beside)
    }

    /// Whether a checkpoint leaves room for the rest.
    pub(super) fn has_room(&self, contents: Contents) -> bool {
        contents.room(self.frame_bytes) <= self.checkpoint_room()
    }

    /// What routes may take in a checkpoint beside so many segments and ranges; a sixteenth of the segment is for ranges at
    /// all times.
    pub(super) fn most_route_bytes(&self, segments: usize, ranges: usize) -> u64 {
        let ranges = ranges.max(self.max_ranges.min(self.segment_bytes as usize / 16 / RANGE));
        let segments = segments + SEGMENTS_TO_COME;
        self.most(|route_bytes| self.has_room(Contents { ranges, segments, route_bytes }))
    }

    /// How many ranges there may be beside so many segments, and routes that take so much.
    pub(super) fn most_ranges(&self, segments: usize, route_bytes: u64) -> usize {
        let segments = segments + SEGMENTS_TO_COME;
        let fits = |ranges: usize| self.has_room(Contents { ranges, segments, route_bytes });
        if fits(self.max_ranges) {
            return self.max_ranges;
        }
        self.most(|ranges| fits(ranges as usize)) as usize
    }

    /// The greatest number, of those smaller than a segment has bytes, that is within bounds.
    fn most(&self, within: impl Fn(u64) -> bool) -> u64 {
        let (mut low, mut high) = (0, u64::from(self.segment_bytes));
        while low < high {
            let middle = low + (high - low).div_ceil(2);
            if within(middle) { low = middle } else { high = middle - 1 }
        }
        low
    }
}

/// The records of a checkpoint, in bodies of at most about `frame_bytes`; with each the number of records.
pub(super) fn bodies(state: &State, segments: &[SegmentInfo], frame_bytes: u32) -> Vec<(Vec<u8>, u32)> {
    let mut bodies = Bodies { limit: body(frame_bytes), done: Vec::new() };
    let ranges: Vec<(Lsn, Lsn)> = state.settled.ranges().collect();
    let prefix = state.settled.prefix();
    let mut chunks = ranges.chunks(a_record(RANGES_A_RECORD, RANGE, frame_bytes));
    // The prefix is told also where there are none.
    let first = chunks.next().unwrap_or_default();
    bodies.add(|body| control::encode_ranges(body, prefix, first));
    for chunk in chunks {
        bodies.add(|body| control::encode_ranges(body, prefix, chunk));
    }
    for (route, pending) in &state.routes {
        bodies.add(|body| control::encode_route(body, route, pending));
    }
    for chunk in segments.chunks(a_record(SEGMENTS_A_RECORD, SEGMENT, frame_bytes)) {
        bodies.add(|body| control::encode_segments(body, chunk));
    }
    bodies.add(|body| control::encode_end(body, ranges.len(), state.routes.len(), segments.len()));
    bodies.done
}

struct Bodies {
    limit: usize,
    done: Vec<(Vec<u8>, u32)>,
}

impl Bodies {
    fn add(&mut self, write: impl Fn(&mut Vec<u8>)) {
        let mut record = Vec::new();
        write(&mut record);
        match self.done.last_mut() {
            Some((body, count)) if body.len() + record.len() <= self.limit => {
                body.extend_from_slice(&record);
                *count += 1;
            }
            _ => self.done.push((record, 1)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wal::{Pending, RangeSet};

    /// What is written never takes more than what was counted on, for any shape of it.
    #[test]
    fn a_checkpoint_takes_no_more_room_than_is_counted_on() {
        for seed in 0..400 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let frame_bytes = [4096, 6000, 8192, 16 << 10, 4 << 20][rng.usize(..5)];
            let mut state = State::new();
            let mut settled = RangeSet::up_to(7);
            let scattered = [0, 3, 70, 2000][rng.usize(..4)];
            (0..scattered).for_each(|n| _ = settled.insert(10 + 2 * n, 10 + 2 * n));
            state.settled = settled;
            let names = [10, 300, 900, 5000][rng.usize(..4)];
            for number in 0..[0, 1, 40, 700][rng.usize(..4)] {
                let destination = format!("{number}{}", "x".repeat(rng.usize(..names)));
                let route = Route { transport: "kafka".into(), destination: destination.into() };
                state.add_route(route, Pending::default());
            }
            let segments = rng.usize(..600);
            let info = SegmentInfo { number: 1, first_lsn: 1, last_lsn: 0, start: 0, end: 0, failed: false };
            let written = bodies(&state, &vec![info; segments], frame_bytes);
            let bytes: u64 = written.iter().map(|(body, _)| round_up((FRAME_HEADER + body.len()) as u64)).sum();
            let counted = state.contents(segments).room(frame_bytes);
            assert!(u64::from(BLOCK) + bytes <= counted, "seed {seed}: {bytes} bytes, {counted} counted on");
        }
    }
}
