//! Getting past what the disk cannot read any more.
//!
//! One bad sector must not stop everything behind it for ever; a disk that is gone for a moment must not have its messages
//! given up. So a place is passed over only if it could not be read several times, at the pace of whoever reads, while
//! others could: each block up to the next good frame likewise, for what lies in it is given up with it.

use std::collections::BTreeMap;
use std::io;
use std::sync::PoisonError;

use super::reader::{Cursor, Reader};
use super::scan::{Frame, SegmentFile};
use super::segment;
use super::state::SegmentInfo;
use super::storage::is_unreadable;
use super::{BLOCK, Damage};

/// Reads of a place that have to fail: with the second that the drainer waits between two, a hiccup of a disk, a
/// controller or a network is over by then.
const TRIES: u32 = 5;

/// Where a reader does not get on.
#[derive(Default)]
pub(super) struct Stuck {
    segment: u64,
    offset: u32,
    /// How often each block could not be read.
    tries: BTreeMap<u32, u32>,
}

impl Stuck {
    fn at(&mut self, cursor: &Cursor) -> &mut Self {
        if (self.segment, self.offset) != (cursor.segment, cursor.offset) {
            *self = Self { segment: cursor.segment, offset: cursor.offset, tries: BTreeMap::new() };
        }
        self
    }

    /// One more failure; whether it is enough.
    fn failed(&mut self, offset: u32) -> bool {
        let tries = self.tries.entry(offset).or_default();
        *tries += 1;
        *tries >= TRIES
    }
}

impl Reader {
    /// Moves the cursor past what cannot be read, and says what is lost with it, if anybody misses it; `None` as long as it
    /// may yet be read.
    pub(super) fn pass_over(&self, cursor: &mut Cursor, error: &io::Error) -> Option<Option<Damage>> {
        if !is_unreadable(error) {
            return None;
        }
        let segment = self.shared.view().segments.get(&cursor.segment).copied()?;
        let file = self.shared.storage.open_read(&segment::path(&self.shared.directory, segment.number)).ok()?;
        let mut file = SegmentFile { file, number: segment.number, salt: None, limit: segment.end };
        let header = file.header();
        let header_reads = header.is_ok();
        let own = |header: &segment::SegmentHeader| header.number == segment.number;
        file.salt = header.ok().and_then(Result::ok).filter(own).map(|header| header.salt);
        let mut stuck = self.stuck.lock().unwrap_or_else(PoisonError::into_inner);
        let stuck = stuck.at(cursor);
        if !header_reads && !self.has_open(&segment) {
            // The frames say all that is needed, if they can be read.
            let given_up = stuck.failed(0) && reads_anywhere(&file, &segment);
            return given_up.then(|| {
                self.use_file(file);
                None
            });
        }
        let next = up_to_next_good(stuck, &file, &segment)?;
        if !header_reads && next.is_none() && !reads_anywhere(&file, &segment) && !self.reads_elsewhere(&segment) {
            return None;
        }
        // It may have been used again meanwhile.
        let reason = format!("the disk cannot read it: {error}");
        Some(self.damaged(cursor, &segment, next, reason).filter(|_| self.is_current(&segment)))
    }

    fn reads_elsewhere(&self, but: &SegmentInfo) -> bool {
        let others: Vec<u64> = self.shared.view().segments.keys().copied().filter(|&n| n != but.number).collect();
        others.into_iter().any(|number| {
            let path = segment::path(&self.shared.directory, number);
            let mut byte = [0];
            self.shared.storage.open_read(&path).is_ok_and(|file| file.read_at(&mut byte, 0).is_ok())
        })
    }
}

fn reads_anywhere(file: &SegmentFile, segment: &SegmentInfo) -> bool {
    (1..segment.end / BLOCK).any(|block| file.good(block * BLOCK).is_ok())
}

/// The next good frame behind a place that cannot be read; the outer `None` if that place, or one in between, may yet be.
fn up_to_next_good(stuck: &mut Stuck, file: &SegmentFile, segment: &SegmentInfo) -> Option<Option<Frame>> {
    let mut given_up = stuck.failed(stuck.offset);
    let mut offset = stuck.offset.saturating_add(BLOCK);
    while offset < segment.end {
        match file.good(offset) {
            Ok(Some(frame)) => return given_up.then_some(Some(frame)),
            Ok(None) => {}
            Err(_) => given_up &= stuck.failed(offset),
        }
        offset = offset.saturating_add(BLOCK);
    }
    given_up.then_some(None)
}
