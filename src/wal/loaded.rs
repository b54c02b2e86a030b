//! The beginning of a segment: whose it is, and what its checkpoint says. It decides nothing about damage.

use std::io;
use std::path::{Path, PathBuf};

use super::error::{DecodeError, WalError};
use super::frame::{FrameHeader, FrameKind, VERSION};
use super::scan::SegmentFile;
use super::segment::{self, SegmentHeader};
use super::state::{CheckpointReader, SegmentInfo, State};
use super::storage::{File, Storage};
use super::stray;
use super::{BLOCK, MIN_SEGMENT, Options};

/// A segment file as recovery finds it.
pub(super) struct Loaded {
    pub file: SegmentFile,
    pub header: Option<SegmentHeader>,
    pub checkpoint: Option<(State, Vec<SegmentInfo>, u32)>,
    /// The first good frame, if the checkpoint is damaged.
    pub first: Option<FrameHeader>,
    pub short: bool,
    /// The file holds another segment.
    pub misplaced: bool,
}

impl Loaded {
    /// Opens and syncs the segment of this number, one of `numbers`, and reads how it begins.
    pub fn read(
        storage: &dyn Storage,
        directory: &Path,
        options: &Options,
        number: u64,
        numbers: &[u64],
    ) -> Result<Self, WalError> {
        let path = segment::path(directory, number);
        let file = storage.open_read(&path).map_err(WalError::io("open", &path))?;
        sync_found(&*file, &path)?;
        let length = file.length().map_err(WalError::io("length of", &path))?;
        let mut file = SegmentFile { file, number, salt: None, limit: options.segment_bytes };
        let mut misplaced = false;
        let header = match file.header().map_err(WalError::io("read", &path))? {
            Ok(header) if header.number == number => Some(header),
            Ok(header) => {
                misplaced = stray::is_misplaced(&header, number, |other| numbers.binary_search(&other).is_ok());
                None
            }
            Err(DecodeError::Newer { found, .. }) => {
                return Err(newer(path, found));
            }
            Err(_) => None,
        };
        if let Some(header) = header {
            if header.outbox != options.outbox {
                let (expected, found) = (u128::from_be_bytes(options.outbox), u128::from_be_bytes(header.outbox));
                return Err(WalError::Foreign { path, expected, found });
            }
            file.salt = Some(header.salt);
            file.limit = header.segment_bytes;
        } else {
            file.limit = file.limit.max(u32::try_from(length).unwrap_or(u32::MAX));
        }
        // Without a header nobody knows how long it was made: it may be of a run with other limits. One that lost its header
        // because it was cut short is shorter than any.
        let short = length < u64::from(if header.is_some() { file.limit } else { MIN_SEGMENT });
        let checkpoint = match &header {
            Some(header) => checkpoint(&file, header).map_err(WalError::io("read", &path))?,
            None => None,
        };
        let next_good = |from| {
            let found = file.next_good(from, file.limit).map_err(WalError::io("read", &path))?;
            Ok::<_, WalError>(found.map(|frame| frame.header))
        };
        let first = match &checkpoint {
            None => next_good(BLOCK)?,
            Some((_, _, start)) => {
                // A checkpoint without the frame that came with it was never acknowledged.
                let first = next_good(*start)?;
                if first.is_none() && !short {
                    return Ok(Self { file, header, checkpoint: None, first: None, short, misplaced });
                }
                first
            }
        };
        if file.salt.is_none() {
            file.salt = first.map(|first| first.salt);
        }
        Ok(Self { file, header, checkpoint, first, short, misplaced })
    }
}

/// What a later release wrote is neither damaged nor torn: it is there, and this release cannot read it.
pub(super) fn newer(path: PathBuf, found: u64) -> WalError {
    WalError::NewerFormat { path, found, known: u64::from(VERSION) }
}

/// Makes durable what a process left, which may have died between a write and its sync, and has all of it read from the
/// disk. After a failed sync the page cache may show what the disk does not have, and the next sync says yes. A write-back
/// that failed since is reported here, once: what it lost was never acknowledged, so that is no reason not to start.
fn sync_found(file: &dyn File, path: &Path) -> Result<(), WalError> {
    let forget = || file.forget_pages().map_err(WalError::io("forget the pages of", path));
    if let Err(error) = file.sync_data() {
        tracing::warn!(path = %path.display(), %error, "the segment could not be synced; what the disk has of it is used");
        forget()?;
        file.sync_data().map_err(WalError::io("sync", path))?;
        return forget();
    }
    if let Err(error) = forget() {
        // Some sandboxes do not allow it. No sync is known to have failed.
        tracing::warn!(%error, "what the system has of the log in memory is taken for what is on the disk");
    }
    Ok(())
}

/// The checkpoint at the beginning of a segment, and where groups begin; `None` if a part of it is damaged.
fn checkpoint(file: &SegmentFile, header: &SegmentHeader) -> io::Result<Option<(State, Vec<SegmentInfo>, u32)>> {
    let mut reader = CheckpointReader::default();
    let mut offset = BLOCK;
    while offset < header.start {
        match file.frame(offset)? {
            Ok(frame) if frame.header.kind == FrameKind::Checkpoint && reader.take(&frame.view()).is_ok() => {
                offset = frame.header.next_offset();
            }
            Ok(_) | Err(_) => return Ok(None),
        }
    }
    Ok(reader.finish(header.number, header.first_lsn).map(|(state, segments)| (state, segments, header.start)))
}
