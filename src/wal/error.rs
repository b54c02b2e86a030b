//! What can go wrong in the log, and what becomes of a message when it does.

use std::io;
use std::path::{Path, PathBuf};

use crate::file_size::is_no_room;

/// Bytes that are not what the format says.
///
/// Decoders return it and nothing else: they do not panic, and they allocate no more than the bytes they were given.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The bytes end before the thing does.
    #[error("{what} at byte {offset} needs {needed} bytes, {left} are left")]
    Short {
        /// What was being read.
        what: &'static str,
        /// Where it begins in the bytes given.
        offset: usize,
        /// How many bytes it takes.
        needed: u64,
        /// How many there are.
        left: u64,
    },
    /// A field has a value it cannot have.
    #[error("{what} at byte {offset}: expected {expected}, found {found}")]
    Value {
        /// The field.
        what: &'static str,
        /// Where it is in the bytes given.
        offset: usize,
        /// What it may be.
        expected: u64,
        /// What it is.
        found: u64,
    },
    /// A checksum does not match.
    #[error("{what} at byte {offset}: checksum {expected:08x} stored, {found:08x} computed")]
    Checksum {
        /// What it covers.
        what: &'static str,
        /// Where the stored checksum is.
        offset: usize,
        /// The stored one.
        expected: u32,
        /// The computed one.
        found: u32,
    },
    /// Text that is not UTF-8, or metadata that bincode cannot read.
    #[error("{what} at byte {offset} cannot be read: {reason}")]
    Unreadable {
        /// What was being read.
        what: &'static str,
        /// Where it begins.
        offset: usize,
        /// Why not.
        reason: String,
    },
    /// Bytes follow where the thing should have ended.
    #[error("{left} bytes follow {what}, which ends at byte {offset}")]
    Trailing {
        /// What ended.
        what: &'static str,
        /// Where it ended.
        offset: usize,
        /// How many bytes follow.
        left: u64,
    },
    /// A newer version, or a flag this version does not know: written by a later release.
    #[error("{what} is of version or kind {found}, which a later release wrote")]
    Newer {
        /// What carries it.
        what: &'static str,
        /// The version, tag or flags found.
        found: u64,
    },
}

/// Why the log could not be opened or did not take a message.
///
/// Handed to the `done` of an append, it means: **the message was not accepted**. For [`Io`](WalError::Io) it may
/// still be found after a crash that comes before the next segment is opened (its bytes may have reached the disk
/// though the sync failed); for the others it is certainly not there.
#[derive(Debug, thiserror::Error)]
pub enum WalError {
    /// The disk refused: a write, a sync, an allocation, a rename. The group was tried in two segments.
    #[error("{op} {path}: {source}", path = path.display())]
    Io {
        /// The call that failed.
        op: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Every segment the log may have is in use. Nothing was written.
    #[error("all {max} segments of {path} are in use", path = path.display())]
    Full {
        /// How many there may be.
        max: u32,
        /// The log's directory.
        path: PathBuf,
    },
    /// The record does not fit into a segment. Nothing was written, and it took no LSN.
    #[error("a record of {bytes} bytes; the log takes at most {limit}")]
    TooLarge {
        /// What it would take on disk.
        bytes: u64,
        /// What the log takes.
        limit: u64,
    },
    /// The log was closed before the record was written.
    #[error("the log is closed")]
    Closed,
    /// The log's thread panicked while it had the record in hand. Whether it was written shows at the next start.
    #[error("the log's thread panicked; open the outbox again")]
    Panicked,
    /// Settlements wait in memory, because what is settled is as scattered as the log can note; they are written once
    /// what lies between them is settled, too. Until then a restart forgets them.
    #[error("what is settled is scattered over more than {most} ranges; the rest waits in memory")]
    Scattered {
        /// How many the log notes.
        most: usize,
    },
    /// What is pending on so many routes, and settled so much out of order, that a segment would have no room for the list of
    /// it beside a message. Nothing was written. Passes once what is pending is delivered, or with larger segments.
    #[error("what is pending and settled takes {bytes} bytes at the beginning of a segment; it has room for {limit}")]
    Crowded {
        /// What the list would take.
        bytes: u64,
        /// What it may take.
        limit: u64,
    },
    /// A segment of a later release. Nothing was written; the release that wrote it can read it.
    #[error("{path} has format {found}; this release reads up to {known}", path = path.display())]
    NewerFormat {
        /// The segment.
        path: PathBuf,
        /// Its version.
        found: u64,
        /// The newest this release knows.
        known: u64,
    },
    /// A segment of another outbox lies in the directory. Nothing was written.
    #[error("{path} belongs to another outbox ({found:032x}, not {expected:032x})", path = path.display())]
    Foreign {
        /// The segment.
        path: PathBuf,
        /// This outbox.
        expected: u128,
        /// The one it names.
        found: u128,
    },
    /// Something in the log has a number no log gets to: somebody wrote it there. Nothing was written; what came next
    /// could not be read again.
    #[error("{path} has {what} {found}; no log gets beyond {most}", path = path.display())]
    Exhausted {
        /// The log's directory.
        path: PathBuf,
        /// What the number counts.
        what: &'static str,
        /// The number that would come next.
        found: u64,
        /// The greatest there may be at a start.
        most: u64,
    },
    /// A limit of the options is out of its bounds.
    #[error("option {option}: {reason}")]
    Option {
        /// Which one.
        option: &'static str,
        /// What is wrong with it.
        reason: String,
    },
}

impl WalError {
    pub(super) fn io(op: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { op, path, source }
    }

    /// Whether there is no room: the disk, a quota, the process's limit on the size of a file or the log's own limit is
    /// reached. That passes by itself once there is room; everything else needs an operator.
    pub fn is_no_space(&self) -> bool {
        match self {
            Self::Io { source, .. } => is_no_room(source),
            Self::Full { .. } | Self::Crowded { .. } => true,
            Self::TooLarge { .. }
            | Self::Closed
            | Self::Panicked
            | Self::Scattered { .. }
            | Self::NewerFormat { .. }
            | Self::Foreign { .. }
            | Self::Exhausted { .. }
            | Self::Option { .. } => false,
        }
    }

    /// Whether the record may be found after a restart though its append failed.
    pub fn possibly_stored(&self) -> bool {
        match self {
            // Though it be a new segment that could not be made: the record may have been written to the one before.
            Self::Io { .. } | Self::Panicked => true,
            Self::Full { .. }
            | Self::Crowded { .. }
            | Self::TooLarge { .. }
            | Self::Closed
            | Self::Scattered { .. }
            | Self::NewerFormat { .. }
            | Self::Foreign { .. }
            | Self::Exhausted { .. }
            | Self::Option { .. } => false,
        }
    }
}

/// Why a read did not get an answer.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The system could not read the segment. It says nothing against the bytes: reading again may succeed.
    #[error("{op} {path}: {source}", path = path.display())]
    Io {
        /// The call that failed.
        op: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The one record that was asked for is in bytes that are damaged: whoever reads the log in order comes across it, and
    /// sets it aside.
    #[error("{lsn} is damaged: {reason}")]
    Damaged {
        /// Its LSN.
        lsn: u64,
        /// What was found.
        reason: String,
    },
}

impl ReadError {
    pub(super) fn io(op: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { op, path, source }
    }
}
