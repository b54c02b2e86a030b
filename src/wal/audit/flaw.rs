//! What is not as the log wrote it.

use crate::wal::Lsn;

/// What kind of thing is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FlawKind {
    /// The first block of a segment does not hold; its frames may be good.
    Header,
    /// A part of the checkpoint at the beginning of a segment does not hold.
    Checkpoint,
    /// Frames that were synced cannot be read.
    Frame,
    /// A write that a crash cut short: nothing says that it was ever synced.
    Torn,
    /// A segment behind the last good one in which nothing can be read: a crash at its opening leaves one, and so does
    /// damage to all of it.
    Begun,
    /// A segment that is still needed is not there, or no segment has LSNs that the log gave out.
    Missing,
    /// A segment lies under another one's name.
    Misplaced,
    /// A segment of another outbox.
    Foreign,
    /// A segment of a later release.
    Newer,
    /// The system does not let it be read.
    Unreadable,
    /// A segment is shorter than it was made.
    Truncated,
    /// A segment is longer than it was made.
    Trailing,
    /// Two records have one LSN.
    Duplicate,
    /// What was settled once is not any more, or the log's counts are not those of its records.
    Inconsistent,
    /// A segment that is not needed any more, or never was; the next open removes it.
    Leftover,
    /// A file that is none of the log's.
    Stranger,
}

/// Which LSNs are concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lsns {
    /// None: no message is in it.
    None,
    /// Nobody can say.
    Unknown,
    /// From the first to the last, both inclusive.
    Range(Lsn, Lsn),
}

impl Lsns {
    /// `first..=last`, or none.
    pub(super) fn range(first: Lsn, last: Lsn) -> Self {
        if last < first { Self::None } else { Self::Range(first, last) }
    }
}

/// A thing that is wrong with a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flaw {
    /// What kind of thing.
    pub kind: FlawKind,
    /// The file's name in the log's directory, there or not.
    pub name: String,
    /// Its number, if the name is that of a segment.
    pub segment: Option<u64>,
    /// Where in the file it begins.
    pub offset: u64,
    /// How many bytes it takes; 0 if no bytes are concerned, or none are there.
    pub length: u64,
    /// The LSNs concerned.
    pub lsns: Lsns,
    /// How many of them are not settled and cannot be read.
    pub lost: u64,
    /// An outbox with it does not open.
    pub stops_start: bool,
    /// What was found.
    pub reason: String,
}
