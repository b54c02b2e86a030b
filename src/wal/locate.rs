//! Where a segment lies, and whose it is, for whoever looks at a log from outside.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::BLOCK;
use super::segment::{self, Name, SegmentHeader};

/// The file of a segment in use.
pub fn segment_path(directory: &Path, number: u64) -> PathBuf {
    segment::path(directory, number)
}

/// The number that a segment's header says it has, whatever its name.
pub fn number_in(path: &Path) -> Option<u64> {
    header(path).map(|header| header.number)
}

fn header(path: &Path) -> Option<SegmentHeader> {
    let mut block = Vec::new();
    File::open(path).ok()?.take(u64::from(BLOCK)).read_to_end(&mut block).ok()?;
    SegmentHeader::decode(&block).ok()
}

/// The numbers of the segments in a directory, by their names.
fn numbers(directory: &Path) -> Vec<u64> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let number = |entry: std::fs::DirEntry| match entry.file_name().to_str().and_then(Name::parse) {
        Some(Name::Segment(number)) => Some(number),
        Some(Name::Free(_)) | None => None,
    };
    entries.filter_map(number).collect()
}

/// Whether a directory has segments, by their names, whatever is in them.
pub fn has_segments(directory: &Path) -> bool {
    !numbers(directory).is_empty()
}

/// The length of the newest segment in a directory whose header can be read.
pub fn segment_bytes_of(directory: &Path) -> Option<u32> {
    let mut numbers = numbers(directory);
    numbers.sort_unstable();
    let own = |number: &u64| header(&segment::path(directory, *number)).filter(|header| header.number == *number);
    numbers.iter().rev().find_map(own).map(|header| header.segment_bytes)
}

/// The outbox that the segments in a directory belong to, by the first header that can be read.
pub fn outbox_of(directory: &Path) -> Option<[u8; 16]> {
    let entries = std::fs::read_dir(directory).ok()?;
    let segments = entries.flatten().filter(|entry| {
        let name = entry.file_name();
        name.to_str().and_then(Name::parse).is_some()
    });
    segments.into_iter().find_map(|entry| header(&entry.path())).map(|header| header.outbox)
}
