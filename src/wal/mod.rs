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
mod audit;
mod checkpoint;
mod codec;
mod committer;
mod control;
#[cfg(test)]
mod crash_tests;
#[cfg(test)]
mod damage_tests;
mod error;
#[cfg(test)]
mod failing_tests;
mod frame;
#[cfg(test)]
mod hostile_tests;
mod loaded;
mod locate;
mod log;
#[cfg(test)]
mod loss_tests;
#[cfg(any(test, feature = "testing"))]
mod model;
mod options;
mod prepare;
#[cfg(any(test, feature = "testing"))]
pub mod probe;
#[cfg(test)]
mod protocol_tests;
mod queue;
mod quiet;
mod ranges;
mod reader;
#[cfg(test)]
mod reader_tests;
mod record;
mod recovery;
#[cfg(test)]
mod rig;
mod rotation;
#[cfg(test)]
mod rotation_tests;
mod routes;
mod scan;
mod segment;
#[cfg(test)]
mod settlement_tests;
mod settlements;
mod shared;
mod space;
#[cfg(test)]
mod space_tests;
mod state;
mod storage;
mod stray;
#[cfg(test)]
mod tests;
mod unreadable;
mod workers;

pub use audit::{Audit, Flaw, FlawKind, Lsns, MOST_FLAWS, audit, read_only_disk};
pub use error::{DecodeError, ReadError, WalError};
#[cfg(any(test, feature = "testing"))]
pub use frame::wrap;
pub use frame::{FrameKind, FrameView, Identity, decode_frame};
pub use locate::{has_segments, number_in, outbox_of, segment_bytes_of, segment_path};
pub use log::{SpaceInfo, Summary, Wal};
#[cfg(any(test, feature = "testing"))]
pub use model::{Fault, ModelStorage, Operation};
pub use options::{Options, most_segments};
pub use ranges::RangeSet;
pub use reader::{Cursor, Reader, Step};
pub use recovery::Recovered;
pub use shared::Trouble;
pub use space::LEAST_PREPARED;
pub use state::{Pending, State};
pub use storage::{DiskStorage, File, Storage, is_unreadable};
pub use workers::{Stepper, Turn};

use crate::message::{Outgoing, Route};

/// A record's place in the order: 1, 2, 3, …; never reused for anything acknowledged. There may be gaps.
pub type Lsn = u64;

/// No LSN, number of a segment or count gets here: at a million a second it takes 146,000 years. Decoders refuse what is
/// beyond, so that whoever adds to one need not think of its end.
pub(super) const MAX_NUMBER: u64 = 1 << 62;
/// A log that got here is not opened: what it went on to write would some day be refused by the decoders.
pub(super) const LAST_START: u64 = MAX_NUMBER / 2;

/// The longest segment there may be.
pub const MAX_SEGMENT: u32 = 1 << 30;
/// The shortest.
pub(super) const MIN_SEGMENT: u32 = 32 << 10;

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
#[derive(Clone, Debug, PartialEq, Eq)]
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

/// Up to the next block boundary.
pub(super) fn round_up(bytes: u64) -> u64 {
    bytes.next_multiple_of(u64::from(BLOCK))
}
