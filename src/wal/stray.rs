//! Segment files that are no part of the log: left by a crash, to be used again, or under a name that is not theirs.
//!
//! A file that was recycled and renamed, and never written to, holds a segment of an earlier life: its number is lower,
//! no file has that number any more, and the log does not need it. Any other number than that of the name means that somebody, or the file
//! system, has moved the file: what it holds may be missed, so it is never removed.

use std::path::{Path, PathBuf};

use super::LAST_START;
use super::error::WalError;
use super::scan::SegmentFile;
use super::segment::{self, Name, SegmentHeader};
use super::storage::Storage;

/// The names in the directory of a log.
pub(super) struct Names {
    /// Of segments, ascending.
    pub segments: Vec<u64>,
    pub free: Vec<u64>,
}

impl Names {
    pub fn list(storage: &dyn Storage, directory: &Path) -> Result<Self, WalError> {
        let names = storage.list(directory).map_err(WalError::io("list", directory))?;
        let (mut segments, mut free) = (Vec::new(), Vec::new());
        for name in names.iter().filter_map(|name| Name::parse(name)) {
            match name {
                Name::Segment(number) => segments.push(number),
                Name::Free(number) if number <= LAST_START => free.push(number),
                // The names after it would not be known again.
                Name::Free(_) => {}
            }
        }
        segments.sort_unstable();
        Ok(Self { segments, free })
    }

    pub fn has(&self, number: u64) -> bool {
        self.segments.binary_search(&number).is_ok()
    }
}

/// Past every number there is: also past those in the headers of free files, which may hold a segment whose rename
/// was lost in a power cut. So the number, not only the salt, tells its frames from live ones. A number there that no log
/// gets to is no segment's.
pub(super) fn next_number(storage: &dyn Storage, directory: &Path, numbers: &[u64], free: &[u64]) -> u64 {
    let inside = |&number: &u64| Some(header(storage, &segment::free_path(directory, number), number)?.number);
    let inside = free.iter().filter_map(inside).filter(|&number| number < LAST_START);
    inside.chain(numbers.iter().copied()).max().map_or(1, |last| last.saturating_add(1))
}

/// Whether the file of segment `number`, with this header, holds a segment that is, or may be, in use; `known` says which
/// there are, by their names or by the log's word.
pub(super) fn is_misplaced(header: &SegmentHeader, number: u64, known: impl Fn(u64) -> bool) -> bool {
    header.number > number || header.number < number && known(header.number)
}

/// Those of the files that nobody can miss.
pub(super) fn removable(
    storage: &dyn Storage,
    directory: &Path,
    strays: impl Iterator<Item = u64>,
    known: impl Fn(u64) -> bool,
) -> Vec<PathBuf> {
    let removable = strays.filter_map(|number| {
        let path = segment::path(directory, number);
        let misplaced = header(storage, &path, number).is_some_and(|header| is_misplaced(&header, number, &known));
        if misplaced {
            tracing::error!(path = %path.display(), "the file holds another segment than its name says; it is left alone");
        }
        (!misplaced).then_some(path)
    });
    removable.collect()
}

fn header(storage: &dyn Storage, path: &Path, number: u64) -> Option<SegmentHeader> {
    let file = storage.open_read(path).ok()?;
    SegmentFile { file, number, salt: None, limit: 0 }.header().ok()?.ok()
}
