//! Reading what is durable, in order: from memory if it is recent, else from the segment files.
//!
//! A reader holds no lock while it reads a file. A segment that is recycled under it shows by the number in its frames;
//! everything in it was settled, so the reader goes on with the next one.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use super::error::{DecodeError, ReadError};
use super::frame::{FrameHeader, FrameView, Identity, RecordView};
use super::scan::{Frame, SegmentFile};
use super::segment;
use super::shared::Shared;
use super::state::SegmentInfo;
use super::storage::is_unreadable;
use super::unreadable::Stuck;
use super::{BLOCK, Damage, Lsn, Place, StoredRecord};

/// A position between two frames.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cursor {
    pub(super) segment: u64,
    pub(super) offset: u32,
    next_lsn: Lsn,
}

impl Cursor {
    /// All records before this LSN are behind the cursor.
    pub fn next_lsn(&self) -> Lsn {
        self.next_lsn
    }
}

/// What comes next.
#[derive(Clone, Debug)]
pub enum Step {
    /// A frame with records. Frames without are passed over.
    Frame {
        /// The LSN of the first.
        first_lsn: Lsn,
        /// Where the first lies.
        place: Place,
        /// Bytes the frame takes on the disk.
        bytes: u64,
        /// The time of the first message.
        time: i64,
        /// The records, in order.
        records: Vec<StoredRecord>,
    },
    /// Nothing more is durable yet.
    End,
    /// These bytes cannot be read; the cursor is past them. Reported as often as it is read, until the LSNs are settled.
    Damaged(Damage),
}

/// Reads the log. Any number of them may be used at a time.
pub struct Reader {
    pub(super) shared: Arc<Shared>,
    open: Mutex<Option<SegmentFile>>,
    pub(super) stuck: Mutex<Stuck>,
}

/// What stands at a cursor.
enum Look {
    Memory(Bytes, SegmentInfo),
    Segment(SegmentInfo),
    Next(SegmentInfo),
    /// Everything durable is behind the cursor: all that is below this LSN.
    End(Lsn),
}

impl Reader {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, open: Mutex::new(None), stuck: Mutex::default() }
    }

    /// A cursor before the frame that holds an LSN, or, if that is gone, before the first that comes after it.
    ///
    /// `hint` is a place known to lie at or before it; one that does not (any more) is ignored.
    ///
    /// # Errors
    /// The system could not read a segment.
    pub fn seek(&self, lsn: Lsn, hint: Option<Place>) -> Result<Cursor, ReadError> {
        let segment = {
            let view = self.shared.view();
            let mut with_records = view.segments.values().filter(|s| s.last_lsn >= s.first_lsn);
            let found = with_records.find(|segment| segment.last_lsn >= lsn);
            found.or_else(|| view.segments.values().next_back()).copied()
        };
        let Some(segment) = segment else { return Ok(Cursor { segment: 0, offset: 0, next_lsn: lsn }) };
        let begin = Cursor { segment: segment.number, offset: first_offset(&segment), next_lsn: segment.first_lsn };
        if segment.first_lsn >= lsn {
            // What lies between is missing, unless it is settled.
            return Ok(Cursor { next_lsn: lsn, ..begin });
        }
        let file = match self.file(&segment) {
            Ok(Ok(file)) => file,
            // `next` reports it.
            Ok(Err(_)) => return Ok(begin),
            // Or gets past it.
            Err(error) if is_unreadable(&error) => return Ok(begin),
            Err(error) => return Err(self.failed(&segment, error)),
        };
        let start = match hint {
            Some(place) if place.segment == segment.number && place.offset < segment.end => {
                let header = file.frame_header(place.offset).ok().and_then(Result::ok);
                header.filter(|header| header.first_lsn <= lsn && header.count > 0)
            }
            _ => None,
        };
        let mut cursor = match start {
            Some(header) => Cursor { offset: header.offset, next_lsn: header.first_lsn, ..begin },
            None => begin,
        };
        while cursor.offset < segment.end {
            // Likewise.
            let Ok(Ok(header)) = file.frame_header(cursor.offset) else { break };
            if header.next_lsn() > lsn {
                break;
            }
            cursor.offset = header.next_offset();
            cursor.next_lsn = cursor.next_lsn.max(header.next_lsn());
        }
        Ok(cursor)
    }

    /// What comes next, and moves the cursor past it.
    ///
    /// # Errors
    /// The system could not read a segment; the cursor stays. Call again after a pause: what stays unreadable while other
    /// places can be read is given out as damage in the end.
    pub fn next(&self, cursor: &mut Cursor) -> Result<Step, ReadError> {
        loop {
            match self.step(cursor) {
                Err(ReadError::Io { source, op, path }) => match self.pass_over(cursor, &source) {
                    Some(Some(damage)) => return Ok(Step::Damaged(damage)),
                    Some(None) => {}
                    None => return Err(ReadError::Io { source, op, path }),
                },
                other => return other,
            }
        }
    }

    fn step(&self, cursor: &mut Cursor) -> Result<Step, ReadError> {
        loop {
            let segment = match self.look(cursor) {
                Look::End(next_lsn) => {
                    let gap = self.gap(cursor, cursor.segment, next_lsn, "records at the end of the log are missing");
                    cursor.next_lsn = cursor.next_lsn.max(next_lsn);
                    return Ok(gap.map_or(Step::End, Step::Damaged));
                }
                Look::Next(segment) => {
                    let gap =
                        self.gap(cursor, segment.number, segment.first_lsn, "records before this segment are missing");
                    *cursor = Cursor {
                        segment: segment.number,
                        offset: first_offset(&segment),
                        next_lsn: cursor.next_lsn.max(segment.first_lsn),
                    };
                    match gap {
                        Some(damage) => return Ok(Step::Damaged(damage)),
                        None => continue,
                    }
                }
                Look::Memory(bytes, segment) => {
                    let identity =
                        Identity { segment: segment.number, salt: None, offset: cursor.offset, limit: u32::MAX };
                    if let Ok(header) = FrameHeader::decode(&bytes, &identity)
                        && let Some(step) = self.take(cursor, &FrameView::trusted(header, &bytes))
                    {
                        return Ok(step);
                    }
                    continue;
                }
                Look::Segment(segment) => segment,
            };
            if let Some(step) = self.read(cursor, &segment)? {
                return Ok(step);
            }
        }
    }

    fn look(&self, cursor: &Cursor) -> Look {
        let view = self.shared.view();
        if let Some(segment) = view.segments.get(&cursor.segment)
            && cursor.offset < segment.end
        {
            return match view.tail_frame(cursor.segment, cursor.offset) {
                Some(bytes) => Look::Memory(bytes, *segment),
                None => Look::Segment(*segment),
            };
        }
        let later = (std::ops::Bound::Excluded(cursor.segment), std::ops::Bound::Unbounded);
        let next = view.segments.range::<u64, _>(later).next();
        next.map_or(Look::End(view.state.next_lsn), |(_, segment)| Look::Next(*segment))
    }

    /// Reads the frame at the cursor from its file; `None` if it holds no record, or the cursor moved.
    fn read(&self, cursor: &mut Cursor, segment: &SegmentInfo) -> Result<Option<Step>, ReadError> {
        let file = match self.file(segment) {
            Ok(Ok(file)) => file,
            Ok(Err(reason)) if self.is_current(segment) => {
                return Ok(self.damaged(cursor, segment, None, reason).map(Step::Damaged));
            }
            Ok(Err(_)) => return Ok(None),
            Err(error) => return Err(self.failed(segment, error)),
        };
        match file.frame(cursor.offset) {
            Ok(Ok(frame)) => Ok(self.take(cursor, &frame.view())),
            // The segment may have been recycled in between; then nothing in it matters.
            Ok(Err(_)) if !self.is_current(segment) => Ok(None),
            Ok(Err(error)) => {
                let next = file.next_good(cursor.offset + BLOCK, segment.end);
                let next = next.map_err(|error| self.failed(segment, error))?;
                Ok(self.damaged(cursor, segment, next, error.to_string()).map(Step::Damaged))
            }
            Err(error) => Err(self.failed(segment, error)),
        }
    }

    pub(super) fn is_current(&self, segment: &SegmentInfo) -> bool {
        self.shared.view().segments.contains_key(&segment.number)
    }

    /// Moves the cursor past a frame and gives out its records, if it has any; before them what is missing.
    fn take(&self, cursor: &mut Cursor, frame: &FrameView<'_>) -> Option<Step> {
        let header = frame.header;
        if header.count > 0 && header.first_lsn > cursor.next_lsn {
            let gap = self.gap(cursor, header.segment, header.first_lsn, "records before this frame are missing");
            cursor.next_lsn = header.first_lsn;
            if let Some(damage) = gap {
                return Some(Step::Damaged(damage));
            }
        }
        match records(frame) {
            Ok(records) => {
                cursor.offset = header.next_offset();
                // A frame without records names the LSN that comes next; what is missing before it is still to be told.
                if header.count > 0 {
                    cursor.next_lsn = cursor.next_lsn.max(header.next_lsn());
                }
                let place = Place { segment: header.segment, offset: header.offset, index: 0 };
                let (first_lsn, bytes, time) =
                    (header.first_lsn, u64::from(header.next_offset() - header.offset), header.time);
                (!records.is_empty()).then_some(Step::Frame { first_lsn, place, bytes, time, records })
            }
            Err(error) => {
                let (segment, offset, length) = (header.segment, header.offset, header.length());
                let (first_lsn, last_lsn) = (header.first_lsn, header.next_lsn() - 1);
                cursor.offset = header.next_offset();
                cursor.next_lsn = cursor.next_lsn.max(header.next_lsn());
                let damage = Damage { segment, offset, length, first_lsn, last_lsn, reason: error.to_string() };
                self.unsettled(damage).map(Step::Damaged)
            }
        }
    }

    /// Moves the cursor to the next good frame, or to the segment's end if there is none, and says what is lost in between.
    pub(super) fn damaged(
        &self,
        cursor: &mut Cursor,
        segment: &SegmentInfo,
        next: Option<Frame>,
        reason: String,
    ) -> Option<Damage> {
        let (to, next_lsn) = match &next {
            Some(frame) => (frame.header.offset, frame.header.first_lsn),
            None => (segment.end, segment.last_lsn + 1),
        };
        let damage = Damage {
            segment: segment.number,
            offset: cursor.offset,
            length: to - cursor.offset,
            first_lsn: cursor.next_lsn,
            last_lsn: next_lsn.max(cursor.next_lsn) - 1,
            reason,
        };
        cursor.offset = to;
        cursor.next_lsn = cursor.next_lsn.max(next_lsn);
        self.unsettled(damage)
    }

    /// What is missing between the cursor and the LSN that comes next, if anybody misses it.
    fn gap(&self, cursor: &Cursor, segment: u64, next: Lsn, reason: &str) -> Option<Damage> {
        let (first_lsn, last_lsn) = (cursor.next_lsn, next.max(1) - 1);
        let offset = if segment == cursor.segment { cursor.offset } else { 0 };
        let damage = Damage { segment, offset, length: 0, first_lsn, last_lsn, reason: reason.to_owned() };
        if first_lsn <= last_lsn { self.unsettled(damage) } else { None }
    }

    /// Damage in which a message is lost that nobody has settled yet, from the first to the last of those.
    fn unsettled(&self, damage: Damage) -> Option<Damage> {
        let view = self.shared.view();
        let mut open = view.state.settled.gaps_within(damage.first_lsn, damage.last_lsn);
        let (first_lsn, end) = open.next()?;
        let last_lsn = open.last().map_or(end, |(_, last)| last);
        Some(Damage { first_lsn, last_lsn, ..damage })
    }

    pub(super) fn has_open(&self, segment: &SegmentInfo) -> bool {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.as_ref().is_some_and(|file| file.number == segment.number)
    }

    pub(super) fn use_file(&self, file: SegmentFile) {
        *self.open.lock().unwrap_or_else(PoisonError::into_inner) = Some(file);
    }

    /// The open file of a segment; the inner error says what is wrong with it.
    fn file(&self, segment: &SegmentInfo) -> io::Result<Result<SegmentFile, String>> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = open.as_ref().filter(|file| file.number == segment.number) {
            return Ok(Ok(file.clone()));
        }
        let path = segment::path(&self.shared.directory, segment.number);
        let file = match self.shared.storage.open_read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Err("the segment is missing".into())),
            opened => opened?,
        };
        let limit = u32::try_from(file.length()?).unwrap_or(u32::MAX).max(segment.end);
        let mut file = SegmentFile { file, number: segment.number, salt: None, limit };
        // With a damaged header each frame's own salt is taken; its number still has to match.
        let header = file.header()?.ok();
        if header.is_some_and(|header| header.outbox != self.shared.options.outbox) {
            return Ok(Err("the segment belongs to another outbox".into()));
        }
        file.salt = header.filter(|header| header.number == segment.number).map(|header| header.salt);
        *open = Some(file.clone());
        Ok(Ok(file))
    }

    fn failed(&self, segment: &SegmentInfo, error: io::Error) -> ReadError {
        ReadError::io("read", &segment::path(&self.shared.directory, segment.number))(error)
    }
}

/// Where to begin in a segment; past the checkpoint if that is known.
fn first_offset(segment: &SegmentInfo) -> u32 {
    segment.start.max(BLOCK)
}

fn records(frame: &FrameView<'_>) -> Result<Vec<StoredRecord>, DecodeError> {
    let header = &frame.header;
    let mut records = Vec::new();
    let mut route = None;
    frame.each(|record| {
        if let RecordView::Message(message) = record {
            let index = records.len() as u32;
            let place = Place { segment: header.segment, offset: header.offset, index };
            let lsn = header.first_lsn + u64::from(index);
            records.push(StoredRecord { lsn, place, body: message.to_owned(&mut route) });
        }
    })?;
    Ok(records)
}
