#![doc = include_str!("FORMAT.md")]
//!
//! # The module
//!
//! Bytes and files: an ordered log of messages and of what became of them. It knows no async, no broker, no ledger.
//! [`Wal`] takes records ([`append`](Wal::append)) and settlements ([`settle`](Wal::settle)), a [`Reader`] gives
//! back what is durable, [`Recovered`] is what an open found. The log is used twice: for messages, and for dead letters.
//!
//! It assumes that one process at a time has the directory open (the outbox holds the lock) and that a successful sync
//! is true. It refuses to sync the same bytes twice, to write into a segment it found, to recycle a segment on anything
//! but a settlement that is itself synced, and to take a message that it could not give back.

mod active;
mod codec;
mod committer;
mod control;
#[cfg(test)]
mod crash_tests;
#[cfg(test)]
mod damage_tests;
mod error;
mod frame;
mod log;
#[cfg(any(test, feature = "testing"))]
mod model;
#[cfg(test)]
mod protocol_tests;
mod queue;
mod ranges;
mod reader;
mod record;
mod recovery;
mod scan;
mod segment;
mod shared;
mod space;
mod state;
mod storage;
#[cfg(test)]
mod tests;

pub use error::{DecodeError, ReadError, WalError};
#[cfg(any(test, feature = "testing"))]
pub use frame::wrap;
pub use frame::{FrameKind, FrameView, Identity, decode_frame};
pub use log::{SpaceInfo, Stepper, Summary, Turn, Wal};
#[cfg(any(test, feature = "testing"))]
pub use model::{Fault, ModelStorage, Operation};
pub use ranges::RangeSet;
pub use reader::{Cursor, Reader, Step};
pub use recovery::Recovered;
pub use state::{Pending, State};
pub use storage::{DiskStorage, File, Storage};

use std::sync::Arc;
use std::time::Duration;

use crate::message::{Outgoing, Route};

/// A record's place in the order: 1, 2, 3, …; never reused for anything acknowledged. There may be gaps.
pub type Lsn = u64;

/// Frames, and the header of a segment, start at multiples of this: what file systems write at once.
pub const BLOCK: u32 = 4096;

/// Where a record lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The segment's number.
    pub segment: u64,
    /// Where its frame begins in the segment.
    pub offset: u32,
    /// Which of the frame's records that have an LSN it is, from zero.
    pub index: u32,
}

/// A record, read back.
#[derive(Clone, Debug)]
pub struct StoredRecord {
    /// Its LSN.
    pub lsn: Lsn,
    /// Where it lies.
    pub place: Place,
    /// What it holds.
    pub body: Entry,
}

/// What a record holds.
#[derive(Clone, Debug)]
pub enum Entry {
    /// A message on its way.
    Message(Outgoing),
    /// A message the broker will never take.
    Dead(DeadLetter),
}

impl Entry {
    /// The message in it.
    pub fn outgoing(&self) -> &Outgoing {
        match self {
            Self::Message(outgoing) => outgoing,
            Self::Dead(dead) => &dead.outgoing,
        }
    }
}

/// What is to be appended.
#[derive(Clone, Copy, Debug)]
pub enum EntryRef<'a> {
    /// A message on its way.
    Message(&'a Outgoing),
    /// A message the broker will never take.
    Dead(&'a DeadLetter),
}

/// A message that was given up, and why.
#[derive(Clone, Debug)]
pub struct DeadLetter {
    /// The LSN it had in the log of messages.
    pub lsn: Lsn,
    /// The message, with the id it always had.
    pub outgoing: Outgoing,
    /// Why the broker will never take it.
    pub reason: String,
    /// How often it was tried.
    pub attempts: u32,
    /// When it failed first, in milliseconds since 1970.
    pub first_failure: i64,
    /// When it failed last.
    pub last_failure: i64,
}

/// What became of settled messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mark {
    /// The broker has them.
    Delivered,
    /// They lie in the dead letters.
    Dead,
    /// They were copied to a side log. Reserved; nothing writes it yet.
    Held,
    /// Dead letters that were appended anew to the log of messages.
    Requeued,
    /// Dead letters an operator removed.
    Purged,
    /// They cannot be read; what is left of them was set aside.
    Damaged,
}

/// How much of a route a settlement takes off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteTotal {
    /// The route.
    pub route: Route,
    /// Messages.
    pub count: u64,
    /// Their [`Message::size`](crate::Message::size) together.
    pub bytes: u64,
}

/// Messages that are settled. Each LSN is settled once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settled {
    /// What became of them.
    pub mark: Mark,
    /// Their LSNs, both ends inclusive.
    pub ranges: Vec<(Lsn, Lsn)>,
    /// What that takes off each route.
    pub totals: Vec<RouteTotal>,
}

impl Settled {
    pub(super) fn lsns(&self) -> usize {
        self.ranges.iter().map(|(first, last)| (last - first).saturating_add(1) as usize).sum()
    }
}

/// Bytes of the log that cannot be read, and which LSNs were in them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The segment.
    pub segment: u64,
    /// Where the bytes begin.
    pub offset: u32,
    /// How many there are; 0 if the segment is missing.
    pub length: u32,
    /// The first LSN that is lost.
    pub first_lsn: Lsn,
    /// The last; less than `first_lsn` if no message is lost, or if it is not known whether one is.
    pub last_lsn: Lsn,
    /// What was found.
    pub reason: String,
}

/// How a log behaves. Build it with [`Options::new`] and change what must differ.
#[derive(Clone)]
pub struct Options {
    /// Bytes of a segment: a multiple of 4,096, from 32 KiB to 1 GiB. Default 64 MiB.
    pub segment_bytes: u32,
    /// Segments there may be, beside one more kept free for control records. At least 3; default 256.
    pub max_segments: u32,
    /// Bytes of a frame that holds several messages, at most. Default 4 MiB, and no more than a quarter of a segment.
    pub frame_bytes: u32,
    /// The largest [footprint](Wal::footprint) a record may have: what is lost at the end of a segment is less than
    /// this. Default and maximum: a quarter of a segment.
    pub record_bytes: u32,
    /// Bytes of recent frames kept in memory for readers. Default 8 MiB.
    pub tail_bytes: usize,
    /// How long after the last frame a seal follows. Default 100 ms.
    pub seal_after: Duration,
    /// How long a settlement waits for a frame to ride in. Default 100 ms.
    pub control_after: Duration,
    /// How long a settlement's frame waits to be synced. Default 1 s.
    pub control_sync: Duration,
    /// Ranges of settled LSNs beyond the prefix, at most: a settlement that would make more waits in memory. Default
    /// 1,048,576, and no more than an eighth of a segment has room for.
    pub max_ranges: usize,
    /// The outbox; a segment of another one is refused.
    pub outbox: [u8; 16],
    /// This opening of it.
    pub incarnation: u64,
    /// Draws the salts of segments.
    pub salt: Arc<dyn Fn() -> u64 + Send + Sync>,
    /// Called on the log's threads when the durable point moved, space changed, or the log broke or was mended. Must
    /// be quick, and must not call back into the log.
    pub on_change: Arc<dyn Fn() + Send + Sync>,
}

impl Options {
    /// The defaults, for an outbox and an incarnation.
    pub fn new(outbox: [u8; 16], incarnation: u64) -> Self {
        Self {
            segment_bytes: 64 << 20,
            max_segments: 256,
            frame_bytes: 4 << 20,
            record_bytes: 16 << 20,
            tail_bytes: 8 << 20,
            seal_after: Duration::from_millis(100),
            control_after: Duration::from_millis(100),
            control_sync: Duration::from_secs(1),
            max_ranges: 1 << 20,
            outbox,
            incarnation,
            salt: Arc::new(|| getrandom::u64().unwrap_or_else(|_| fastrand::u64(..))),
            on_change: Arc::new(|| {}),
        }
    }

    /// The same for segments of another size: every limit that depends on it is brought within its bounds.
    pub fn with_segment_bytes(mut self, bytes: u32) -> Self {
        self.segment_bytes = bytes;
        self.frame_bytes = self.frame_bytes.min(bytes / 4);
        self.record_bytes = self.record_bytes.min(bytes / 4);
        self.max_ranges = self.max_ranges.min(most_ranges(bytes));
        self
    }

    pub(super) fn check(&self) -> Result<(), WalError> {
        let wrong = |option, reason: &str| Err(WalError::Option { option, reason: reason.into() });
        let quarter = self.segment_bytes / 4;
        if !self.segment_bytes.is_multiple_of(BLOCK) || !((32 << 10)..=(1 << 30)).contains(&self.segment_bytes) {
            return wrong("segment_bytes", "a multiple of 4096 from 32768 to 1073741824");
        }
        if self.max_segments < 3 {
            return wrong("max_segments", "at least 3: the current one, the one before, and one to move on to");
        }
        if !(BLOCK..=quarter).contains(&self.frame_bytes) {
            return wrong("frame_bytes", "from 4096 to a quarter of a segment");
        }
        if !(BLOCK..=quarter).contains(&self.record_bytes) {
            return wrong("record_bytes", "from 4096 to a quarter of a segment");
        }
        if self.max_ranges > most_ranges(self.segment_bytes) {
            return wrong("max_ranges", "no more than an eighth of a segment has room for, at 16 bytes each");
        }
        Ok(())
    }
}

/// A range takes 16 bytes of a checkpoint; an eighth of a segment for them leaves room for the rest of the checkpoint
/// and for the largest frame.
fn most_ranges(segment_bytes: u32) -> usize {
    segment_bytes as usize / 8 / 16
}

/// Up to the next block boundary.
pub(super) fn round_up(bytes: u64) -> u64 {
    bytes.next_multiple_of(u64::from(BLOCK))
}
