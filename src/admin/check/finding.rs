//! What a check found, as it is shown and serialized.

use std::path::PathBuf;

use serde::{Serialize, Serializer};

/// How bad a [`Finding`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Severity {
    /// Something left over, or none of the outbox's. Nothing needs to be done.
    Harmless,
    /// Something is not as it was written, and no acknowledged message is lost by it: a write that a crash cut short, or
    /// bytes gone bad in which nothing was pending.
    Suspicious,
    /// Acknowledged messages cannot be read, or nobody can say whether all can be, or the outbox does not open.
    Damage,
}

/// What kind of thing a [`Finding`] is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum FindingKind {
    /// The first block of a segment does not hold.
    BadHeader,
    /// The checkpoint at the beginning of a segment does not hold.
    BadCheckpoint,
    /// Frames that were synced cannot be read: changed, zeroed, overwritten, or with records that do not decode.
    BadFrame,
    /// A write that a crash cut short. It was never acknowledged, and is discarded.
    TornWrite,
    /// A segment was begun at the end of the log, and nothing in it can be read.
    BegunSegment,
    /// A segment is missing, or LSNs that no segment has.
    Missing,
    /// A segment lies under another one's name: exchanged, or copied.
    Misplaced,
    /// A segment, or the file `IDENTITY`, is of another outbox.
    ForeignOutbox,
    /// A segment was written by a later release.
    NewerFormat,
    /// The system does not let a file be read.
    Unreadable,
    /// A segment is shorter than it was made.
    Truncated,
    /// A segment is longer than it was made.
    TrailingBytes,
    /// Two messages have one LSN.
    DuplicateLsn,
    /// What the log counts or says is settled is not what its records say.
    Inconsistent,
    /// The file `IDENTITY` is missing or damaged.
    BadIdentity,
    /// Something is in the way of opening the outbox: a link, a directory or a device where a file should be.
    InTheWay,
    /// The ledger's directory is not as it should be; it is rebuilt from the log.
    Ledger,
    /// The owner's report `status` cannot be read; it is written anew.
    Status,
    /// A file that is not needed any more, or was never finished.
    Leftover,
    /// A file that is none of the outbox's.
    ForeignFile,
}

/// Which messages of a log are concerned, by their LSNs (in `dead/`: their numbers).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Concerned {
    /// None.
    Nothing,
    /// Nobody can say.
    Unknown,
    /// These, both ends inclusive.
    Range {
        /// The first LSN.
        first: u64,
        /// The last LSN.
        last: u64,
    },
}

/// `null`, `"unknown"`, or `{"first": 1, "last": 2}`.
impl Serialize for Concerned {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Range {
            first: u64,
            last: u64,
        }
        match *self {
            Self::Nothing => serializer.serialize_none(),
            Self::Unknown => serializer.serialize_str("unknown"),
            Self::Range { first, last } => Range { first, last }.serialize(serializer),
        }
    }
}

/// One thing that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What kind of thing it is.
    pub kind: FindingKind,
    /// The file, relative to the outbox's directory; of a missing one, where it should be.
    pub path: PathBuf,
    /// Where in the file it begins.
    pub offset: u64,
    /// How many bytes of the file are concerned; 0 where none are.
    pub length: u64,
    /// The LSNs concerned.
    pub lsns: Concerned,
    /// Messages (in `dead/`: dead letters) that are still needed and cannot be read. The others concerned are settled:
    /// delivered, dead, set aside before, or never acknowledged.
    pub lost: u64,
    /// The outbox does not open as long as this stays.
    pub stops_start: bool,
    /// What was found.
    pub what: String,
    /// What can be done.
    pub advice: String,
}

impl Finding {
    /// Whether another look found the same thing; counts and wording aside, which a live outbox changes.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        (self.kind, &self.path, self.offset, self.lsns) == (other.kind, &other.path, other.offset, other.lsns)
    }
}

/// What [`check`](super::check) found. Its JSON has these fields under these names; new ones may come.
#[derive(Clone, Debug, Default, Serialize)]
#[non_exhaustive]
pub struct Report {
    /// The process that has the outbox open; 0 if it had no time to write its id.
    pub holder: Option<u32>,
    /// Which outbox it is, 32 hexadecimal digits.
    pub outbox: Option<String>,
    /// Segment files read, of both logs.
    pub segments: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Messages and dead letters that can be read, settled ones that are still there among them.
    pub records: u64,
    /// Messages that are pending and can be read.
    pub pending: u64,
    /// Dead letters that can be read.
    pub dead: u64,
    /// Messages that were set aside earlier because they could not be read.
    pub set_aside: u64,
    /// What is wrong, in the order of the files.
    pub findings: Vec<Finding>,
    /// Findings beyond the first 10,000 a log.
    pub omitted: u64,
    /// Messages and dead letters lost in all findings together, omitted ones too.
    pub lost: u64,
}

impl Report {
    /// The worst finding's severity; `None` if there is no finding.
    pub fn severity(&self) -> Option<Severity> {
        self.findings.iter().map(|finding| finding.severity).max()
    }

    /// Whether acknowledged messages cannot be read, or may be missing, or the outbox does not open.
    pub fn is_damaged(&self) -> bool {
        self.severity() == Some(Severity::Damage)
    }
}
