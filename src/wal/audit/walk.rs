//! Reading one segment after the other, up to where the log says each ends.

use super::super::frame::{FRAME_HEADER, FrameHeader, FrameKind, RecordView};
use super::super::scan::{Frame, SegmentFile};
use super::super::segment::{self, SegmentHeader};
use super::super::state::{CheckpointReader, SegmentInfo};
use super::super::{BLOCK, Lsn, MIN_SEGMENT};
use super::survey::{BLANK, Head};
use super::{Auditor, Flaw, FlawKind, Lsns};
use crate::message::Route;

/// A segment that is being read.
struct Walk {
    file: SegmentFile,
    info: SegmentInfo,
    header: Option<SegmentHeader>,
    length: u64,
    /// The next LSN, if nothing is missing.
    expected: Lsn,
    checkpoint: Option<CheckpointReader>,
    /// A frame was written when all before it had been synced.
    synced: bool,
}

impl Auditor<'_> {
    /// Reads everything.
    pub(super) fn walk(&mut self, read: &mut dyn FnMut(u64)) {
        let segments: Vec<SegmentInfo> = self.segments.values().copied().collect();
        let newest = segments.last().map(|info| info.number);
        for info in segments {
            match self.heads.remove(&info.number) {
                None => self.absent(&info, FlawKind::Missing, "the segment is missing".into(), 0),
                Some(Head { other: true, told: Some((kind, reason)), length, .. }) => {
                    self.absent(&info, kind, reason, length);
                }
                // Told of already, as what stops an open.
                Some(Head { other: true, told: None, .. }) => {}
                Some(head) => {
                    self.audit.bytes += head.length;
                    self.segment(&info, &head, newest == Some(info.number));
                    read(head.length);
                }
            }
        }
        for (number, head) in std::mem::take(&mut self.heads) {
            self.audit.bytes += head.length;
            self.unused(number, &head, newest);
            read(head.length);
        }
    }

    /// A segment that the log still needs and that is not there, or another one in its place.
    fn absent(&mut self, info: &SegmentInfo, kind: FlawKind, reason: String, length: u64) {
        let lsns = Lsns::range(info.first_lsn, info.last_lsn);
        // A checkpoint names what was needed when it was written; what was settled since may be gone.
        let needed = !self.state.settled.contains_range(info.first_lsn, info.last_lsn);
        if needed || kind != FlawKind::Missing {
            self.tell(Flaw { kind, length, lsns, reason, ..flaw(info.number) });
        }
    }

    /// A segment file that the log does not count among those in use.
    fn unused(&mut self, number: u64, head: &Head, newest: Option<u64>) {
        if let Some((kind, reason)) = &head.told {
            let lsns = self.contents(number, head);
            // A crash between the new name and the new header leaves what was there before, all of it settled.
            if *kind == FlawKind::Misplaced && self.is_earlier_life(number, lsns, newest) {
                let reason = "it was begun, and has the bytes of an earlier segment still".to_owned();
                return self.tell(Flaw { kind: FlawKind::Leftover, length: head.length, reason, ..flaw(number) });
            }
            return self.tell(Flaw { kind: *kind, length: head.length, lsns, reason: reason.clone(), ..flaw(number) });
        }
        if head.other {
            return;
        }
        // Without a header nobody knows how long it was made.
        let made = head.header.as_ref().map_or(MIN_SEGMENT, |header| header.segment_bytes);
        let short = head.length < u64::from(made);
        let (kind, lsns, reason) = match &head.header {
            _ if newest.is_some_and(|newest| number < newest) => {
                (FlawKind::Leftover, Lsns::None, "everything in it is settled".to_owned())
            }
            _ if short => (FlawKind::Truncated, Lsns::Unknown, "nothing in it can be read".to_owned()),
            Ok(_) => (FlawKind::Leftover, Lsns::None, "it was begun, and nothing in it was acknowledged".to_owned()),
            Err(error) => (FlawKind::Begun, Lsns::None, format!("nothing in it can be read; {error}")),
        };
        self.tell(Flaw { kind, length: head.length, lsns, reason, ..flaw(number) });
    }

    fn is_earlier_life(&self, number: u64, lsns: Lsns, newest: Option<u64>) -> bool {
        let settled = match lsns {
            Lsns::None => true,
            Lsns::Unknown => false,
            Lsns::Range(first, last) => last <= self.last_known && self.state.settled.contains_range(first, last),
        };
        settled && newest < Some(number)
    }

    /// The LSNs in a segment that lies under another one's name.
    fn contents(&self, number: u64, head: &Head) -> Lsns {
        let Ok(header) = &head.header else { return Lsns::Unknown };
        if self.audit.outbox != Some(header.outbox) {
            return Lsns::None;
        }
        let Ok(file) = self.still.open_segment(self.directory, number) else { return Lsns::Unknown };
        let limit = limit(head.length, Some(header));
        let file = SegmentFile { file, number: header.number, salt: Some(header.salt), limit };
        let (mut offset, mut first, mut last) = (header.start, Lsn::MAX, 0);
        while let Some(frame) = file.next_readable(offset, limit) {
            offset = frame.header.next_offset();
            if frame.header.count > 0 {
                first = first.min(frame.header.first_lsn);
                last = last.max(frame.header.next_lsn() - 1);
            }
        }
        Lsns::range(first, last)
    }

    fn segment(&mut self, info: &SegmentInfo, head: &Head, newest: bool) {
        let opened = self.still.open_segment(self.directory, info.number);
        let file = match opened {
            Ok(file) => file,
            Err(error) => return self.absent(info, FlawKind::Unreadable, error.to_string(), 0),
        };
        let header = head.header.as_ref().ok().copied();
        let limit = limit(head.length, header.as_ref()).max(info.end);
        let salt = header.map(|header| header.salt);
        let file = SegmentFile { file, number: info.number, salt, limit };
        if let Err(error) = &head.header {
            let (length, reason) = (u64::from(BLOCK), error.clone());
            self.tell(Flaw { kind: FlawKind::Header, length, reason, ..flaw(info.number) });
        }
        let (length, checkpoint) = (head.length, Some(CheckpointReader::default()));
        let mut walk = Walk { file, info: *info, header, length, expected: info.first_lsn, checkpoint, synced: false };
        self.frames(&mut walk);
        self.whole(&walk, newest);
        if newest {
            self.tail(&walk);
        }
        self.beginning(&walk);
    }

    fn frames(&mut self, walk: &mut Walk) {
        let mut offset = BLOCK;
        while offset < walk.info.end {
            let reason = match walk.file.frame(offset) {
                Ok(Ok(frame)) => {
                    offset = frame.header.next_offset();
                    self.frame(walk, &frame);
                    continue;
                }
                Ok(Err(error)) if is_zero(&walk.file, offset) => format!("zeros where a frame was; {error}"),
                Ok(Err(error)) => error.to_string(),
                Err(error) => error.to_string(),
            };
            let next = walk.file.next_readable(offset + BLOCK, walk.info.end).map(|frame| frame.header);
            self.bad(walk, offset, next.as_ref(), reason);
            offset = next.map_or(walk.info.end, |next| next.offset);
        }
        if walk.expected <= walk.info.last_lsn {
            self.bad(walk, offset, None, "the last records of the segment are missing".into());
        }
    }

    fn frame(&mut self, walk: &mut Walk, frame: &Frame) {
        let header = &frame.header;
        self.audit.frames += 1;
        walk.synced |= header.synced_end > 0;
        if header.kind == FrameKind::Checkpoint {
            if let Some(checkpoint) = &mut walk.checkpoint {
                // `frame` has decoded all of it once.
                let _ = checkpoint.take(&frame.view());
            }
            return;
        }
        if let Some(checkpoint) = walk.checkpoint.take() {
            self.checkpoint(walk, header, checkpoint);
        }
        if header.count == 0 {
            return;
        }
        let (first, last) = (header.first_lsn, header.next_lsn() - 1);
        let (offset, length) = (u64::from(header.offset), u64::from(header.length()));
        if first > walk.expected && self.unknown(walk.expected, first - 1).next().is_some() {
            let lsns = Lsns::Range(walk.expected, first - 1);
            let reason = "records before this frame are missing".to_owned();
            self.tell(Flaw { kind: FlawKind::Missing, offset, lsns, reason, ..flaw(header.segment) });
        }
        let new = self.seen.insert(first, last);
        if new < u64::from(header.count) || first < walk.expected {
            let lsns = Lsns::Range(first, last);
            let reason = format!("{} of these LSNs were given to other records before", u64::from(header.count) - new);
            self.tell(Flaw { kind: FlawKind::Duplicate, offset, length, lsns, reason, ..flaw(header.segment) });
        }
        walk.expected = walk.expected.max(header.next_lsn());
        self.audit.records += u64::from(header.count);
        if !self.state.settled.contains_range(first, last) {
            self.count(frame);
        }
    }

    /// Counts what is pending in a frame.
    fn count(&mut self, frame: &Frame) {
        let (settled, pending) = (&self.state.settled, &mut self.audit.pending);
        let mut lsn = frame.header.first_lsn;
        // `frame` has decoded all of it once.
        let _ = frame.view().each(|record| {
            let RecordView::Message(message) = record else { return };
            if !settled.contains(lsn) {
                let route = Route { transport: message.transport.into(), destination: message.destination.into() };
                let sum = pending.entry(route).or_default();
                sum.count += 1;
                sum.bytes += message.size();
            }
            lsn += 1;
        });
    }

    /// What a checkpoint says was settled is settled still.
    fn checkpoint(&mut self, walk: &Walk, first: &FrameHeader, checkpoint: CheckpointReader) {
        // A part that cannot be read was told of; a whole one has an end.
        let Some((then, _)) = checkpoint.finish(walk.info.number, walk.info.first_lsn) else { return };
        let now = &self.state.settled;
        let undone = |&(first, last): &(Lsn, Lsn)| !now.contains_range(first, last);
        let prefix = (1, then.settled.prefix());
        let lost = std::iter::once(prefix).chain(then.settled.ranges()).find(undone);
        if let Some((first_lsn, last_lsn)) = lost {
            let (offset, length) = (u64::from(BLOCK), u64::from(first.offset.saturating_sub(BLOCK)));
            let reason = format!("its checkpoint says that {first_lsn} to {last_lsn} are settled, later ones do not");
            let kind = FlawKind::Inconsistent;
            self.tell(Flaw { kind, offset, length, reason, ..flaw(walk.info.number) });
        }
    }

    /// Bytes from `offset` up to the next good frame, or the end, that are no frame.
    fn bad(&mut self, walk: &mut Walk, offset: u32, next: Option<&FrameHeader>, reason: String) {
        let to = next.map_or(walk.info.end, |next| next.offset);
        let next_lsn = next.map_or(walk.info.last_lsn + 1, |next| next.first_lsn).max(walk.expected);
        let start = walk.header.map_or(BLOCK, |header| header.start.min(to));
        let mut from = offset;
        if from < start {
            let length = u64::from(start - from);
            let (kind, offset, reason) = (FlawKind::Checkpoint, u64::from(from), reason.clone());
            self.tell(Flaw { kind, offset, length, reason, ..flaw(walk.info.number) });
            from = start;
        }
        let lsns = Lsns::range(walk.expected, next_lsn - 1);
        walk.expected = next_lsn;
        if from >= to && lsns == Lsns::None {
            return;
        }
        let synced = next.is_none_or(|next| next.synced_end > from);
        let kind = match lsns {
            _ if walk.length < u64::from(walk.info.end) && next.is_none() => FlawKind::Truncated,
            Lsns::Range(first, last) if self.unknown(first, last).next().is_some() => FlawKind::Frame,
            // Without a header where the checkpoint ends is not known, and no message is in it.
            Lsns::None if walk.header.is_none() && walk.checkpoint.is_some() => FlawKind::Checkpoint,
            _ if synced => FlawKind::Frame,
            _ => FlawKind::Torn,
        };
        let (offset, length) = (u64::from(from), u64::from(to.saturating_sub(from)));
        self.tell(Flaw { kind, offset, length, lsns, reason, ..flaw(walk.info.number) });
    }

    /// Whether the file is as long as it was made. Of the last segment nobody else says where it ended.
    fn whole(&mut self, walk: &Walk, newest: bool) {
        let made = walk.header.map(|header| header.segment_bytes).or(self.audit.segment_bytes);
        let Some(made) = made.map(u64::from) else { return };
        let (offset, length) = (walk.length.min(made), walk.length.saturating_sub(made));
        if walk.length > made {
            let reason = format!("{length} bytes behind the end, which the log never looks at");
            self.tell(Flaw { kind: FlawKind::Trailing, offset, length, reason, ..flaw(walk.info.number) });
        } else if walk.length < made && (newest || walk.length >= u64::from(walk.info.end)) {
            let lsns = if newest { Lsns::Unknown } else { Lsns::None };
            let reason = format!("it has {} of {made} bytes", walk.length);
            self.tell(Flaw { kind: FlawKind::Truncated, offset, lsns, reason, ..flaw(walk.info.number) });
        }
    }

    /// Without a frame that was written after a sync, the opening of the segment may be what a crash cut short; what was
    /// left of it then was recovered, and taken on from there.
    fn beginning(&mut self, walk: &Walk) {
        if walk.synced {
            return;
        }
        let of_beginning =
            |flaw: &&mut Flaw| matches!(flaw.kind, FlawKind::Header | FlawKind::Checkpoint) && !flaw.stops_start;
        let own = self.audit.flaws.iter_mut().filter(|flaw| flaw.segment == Some(walk.info.number));
        own.filter(of_beginning).for_each(|flaw| flaw.kind = FlawKind::Torn);
    }

    /// What looks like a frame behind the last good one of the newest segment: a write that a crash cut short.
    fn tail(&mut self, walk: &Walk) {
        let offset = walk.info.end;
        if u64::from(offset) >= walk.length {
            return;
        }
        let length = match walk.file.frame_header(offset) {
            Ok(Ok(header)) => u64::from(header.length()),
            Ok(Err(_)) if walk.file.resembles_frame(offset).unwrap_or(false) => FRAME_HEADER as u64,
            Ok(Err(_)) | Err(_) => return,
        };
        let reason = "the last write was cut short, or damaged before anything followed it".to_owned();
        let offset = u64::from(offset);
        self.tell(Flaw { kind: FlawKind::Torn, offset, length, reason, ..flaw(walk.info.number) });
    }
}

/// A flaw of a segment, to be filled in.
fn flaw(number: u64) -> Flaw {
    let path = segment::path(std::path::Path::new(""), number);
    Flaw { name: path.to_string_lossy().into_owned(), segment: Some(number), ..BLANK }
}

/// Where a segment ends: no further than the file, whatever the header says, since that much may be allocated.
fn limit(length: u64, header: Option<&SegmentHeader>) -> u32 {
    let length = u32::try_from(length).unwrap_or(u32::MAX);
    header.map_or(length, |header| header.segment_bytes.min(length))
}

fn is_zero(file: &SegmentFile, offset: u32) -> bool {
    let mut raw = [1; FRAME_HEADER];
    let read = file.file.read_at(&mut raw, u64::from(offset));
    read.is_ok_and(|read| read == FRAME_HEADER) && raw.iter().all(|&byte| byte == 0)
}
