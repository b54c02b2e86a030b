//! The segment that is being written.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use super::control;
use super::error::WalError;
use super::frame::{self, FRAME_HEADER, FrameHeader, FrameKind, FrameView};
use super::prepare;
use super::queue::Group;
use super::segment::{self, SegmentHeader};
use super::shared::Shared;
use super::space::{self, Prepared};
use super::state::{Change, SegmentInfo};
use super::{BLOCK, Lsn, round_up};
use crate::planted::{self, Planted};

/// A group that could not be written, whole, and why.
pub(super) struct Failed {
    pub error: WalError,
    pub group: Group,
    /// No file was renamed or written to.
    pub untouched: bool,
}

/// A frame that was written.
pub(super) struct Written {
    pub header: FrameHeader,
    /// The frame, padded to whole blocks.
    pub bytes: Bytes,
    /// Whom to tell, and what would have to be logged again.
    pub group: Group,
}

impl Written {
    /// What the frame says, by what it was made of: to decode it would keep everybody waiting. Below `known` every
    /// message is known.
    pub fn change(&self, known: Lsn) -> Change<'_> {
        let group = &self.group;
        // A frame is known as a whole.
        let arrived = if group.first_lsn < known { BTreeMap::new() } else { group.arrived() };
        let change = Change { next_lsn: group.next_lsn(), arrived, settled: Cow::Borrowed(&*group.controls) };
        let decode = || Change::decode(&FrameView::trusted(self.header, &self.bytes), known);
        debug_assert_eq!(decode().as_ref(), Ok(&change), "a frame says what it was made of");
        change
    }
}

/// The segment that is being written, by the committer alone.
pub(super) struct Active {
    pub number: u64,
    pub path: PathBuf,
    salt: u64,
    file: Arc<dyn super::File>,
    pub offset: u32,
    synced_end: u32,
    limit: u32,
    /// What was written and not yet synced.
    pub unsynced: Vec<Written>,
}

impl Active {
    /// Bytes a frame may take, its header included. The last block is left for the seal.
    pub fn room(&self) -> u64 {
        u64::from(self.limit - self.offset).saturating_sub(u64::from(BLOCK))
    }

    pub fn has_room_for_seal(&self) -> bool {
        self.limit - self.offset >= BLOCK
    }

    /// Writes a group as a frame; it is not durable yet. After an error the segment must not be used any more.
    pub fn write(&mut self, group: Group, kind: FrameKind, durable: Lsn) -> Result<(), Box<Failed>> {
        let (mut frame, group) = group.into_parts();
        let header =
            self.header(kind, &group, durable, group.controls.len() as u32 + u32::from(kind == FrameKind::Seal));
        let header = finish(&mut frame, header);
        if let Err(error) = self.file.write_at(&frame, u64::from(self.offset)) {
            let group = Group { frame: unpad(frame, &header), ..group };
            return Err(failed(WalError::io("write", &self.path)(error), group));
        }
        self.offset = header.next_offset();
        self.unsynced.push(Written { header, bytes: Bytes::from(frame), group });
        Ok(())
    }

    fn header(&self, kind: FrameKind, group: &Group, durable_lsn: Lsn, controls: u32) -> FrameHeader {
        FrameHeader {
            kind,
            segment: self.number,
            salt: self.salt,
            first_lsn: group.first_lsn,
            durable_lsn,
            time: group.time,
            offset: self.offset,
            synced_end: self.synced_end,
            count: group.count(),
            records: group.count() + controls,
            ..FrameHeader::BLANK
        }
    }

    /// Makes everything written durable, and returns it. After an error the segment must not be used any more.
    pub fn sync(&mut self) -> Result<Vec<Written>, WalError> {
        let mut synced = self.file.sync_data();
        if synced.is_err() && planted::is(Planted::RetryFailedSync) {
            synced = self.file.sync_data();
        }
        synced.map_err(WalError::io("sync", &self.path))?;
        self.synced_end = self.offset;
        Ok(std::mem::take(&mut self.unsynced))
    }

    /// The segment an open found, to be written on: what must never be done.
    #[cfg(feature = "planted")]
    pub fn found(shared: &Shared, info: SegmentInfo) -> Option<Self> {
        let path = segment::path(&shared.directory, info.number);
        let file = shared.storage.open(&path).ok()?;
        let mut block = vec![0; BLOCK as usize];
        file.read_at(&mut block, 0).ok()?;
        let header = SegmentHeader::decode(&block).ok()?;
        let (number, salt, limit) = (info.number, header.salt, header.segment_bytes);
        Some(Self { number, path, salt, file, offset: info.end, synced_end: info.end, limit, unsynced: Vec::new() })
    }

    /// What was written in vain, to be logged again.
    pub fn give_back(&mut self) -> Vec<Group> {
        let written = std::mem::take(&mut self.unsynced);
        written.into_iter().map(|w| Group { frame: unpad(w.bytes.into(), &w.header), ..w.group }).collect()
    }
}

/// Fills in the header, and pads to whole blocks, so that the file system need not read before it writes.
fn finish(frame: &mut Vec<u8>, header: FrameHeader) -> FrameHeader {
    let header = frame::finish(frame, &header);
    frame.resize(round_up(frame.len() as u64) as usize, 0);
    header
}

fn unpad(mut frame: Vec<u8>, header: &FrameHeader) -> Vec<u8> {
    frame.truncate(header.length() as usize);
    frame
}

/// A seal: nothing but the LSN up to which all is durable.
pub(super) fn seal(next_lsn: Lsn, durable: Lsn) -> Group {
    let mut group = Group::new(next_lsn);
    control::encode_seal(&mut group.frame, durable);
    group
}

/// Where a new segment stands in the order.
pub(super) struct Origin<'a> {
    pub number: u64,
    pub first_lsn: Lsn,
    pub last_acked: Lsn,
    /// The segment before, and where what was acknowledged in it ends.
    pub previous: Option<&'a SegmentInfo>,
}

/// Opens a segment with its checkpoint and its first frame, and makes all of it durable, the name last: nothing in it
/// is acknowledged before the directory was synced. On an error the group comes back, whole, and the file is left to
/// be removed.
pub(super) fn open(
    shared: &Shared,
    origin: &Origin<'_>,
    checkpoint: Vec<(Vec<u8>, u32)>,
    group: Group,
) -> Result<(Active, Vec<Written>), Box<Failed>> {
    let Prepared { path: free, file } = match space::take(shared, group.has_messages()) {
        Ok(prepared) => prepared,
        Err(error) => return Err(Box::new(Failed { error, group, untouched: true })),
    };
    let path = segment::path(&shared.directory, origin.number);
    if let Err(error) = shared.storage.rename(&free, &path) {
        let error = WalError::io("rename", &path)(error);
        // For want of space it was certainly not renamed.
        let untouched = error.is_no_space();
        if untouched {
            shared.space().give_back(Prepared { path: free, file });
            prepare::relieve(shared);
        } else {
            shared.space().discard(free);
        }
        return Err(Box::new(Failed { error, group, untouched }));
    }
    let active = Active {
        number: origin.number,
        path: path.clone(),
        salt: (shared.options.salt)(),
        file,
        offset: BLOCK,
        synced_end: 0,
        limit: shared.options.segment_bytes,
        unsynced: Vec::new(),
    };
    begin(shared, active, origin, checkpoint, group).inspect_err(|_| shared.space().discard(path))
}

fn begin(
    shared: &Shared,
    mut active: Active,
    origin: &Origin<'_>,
    checkpoint: Vec<(Vec<u8>, u32)>,
    group: Group,
) -> Result<(Active, Vec<Written>), Box<Failed>> {
    let block = BLOCK as usize;
    let mut head = vec![0; block];
    for (body, records) in checkpoint {
        let mut frame = vec![0; FRAME_HEADER];
        frame.extend_from_slice(&body);
        let part = Group::new(origin.first_lsn);
        let header = active.header(FrameKind::Checkpoint, &part, origin.last_acked, records);
        active.offset = finish(&mut frame, header).next_offset();
        head.extend_from_slice(&frame);
    }
    let header = SegmentHeader {
        outbox: shared.options.outbox,
        incarnation: shared.options.incarnation,
        number: active.number,
        salt: active.salt,
        first_lsn: origin.first_lsn,
        last_acked: origin.last_acked,
        previous: origin.previous.map_or(0, |segment| segment.number),
        previous_end: origin.previous.map_or(0, |segment| segment.end),
        segment_bytes: active.limit,
        start: active.offset,
    };
    head[..block].copy_from_slice(&header.encode());
    let limit = u64::from(active.limit);
    let bytes = head.len() as u64 + round_up(group.length());
    if bytes > limit {
        return Err(failed(WalError::TooLarge { bytes, limit }, group));
    }
    if let Err(error) = active.file.write_at(&head, 0) {
        return Err(failed(WalError::io("write", &active.path)(error), group));
    }
    active.write(group, FrameKind::Group, origin.last_acked)?;
    let synced = active.file.sync_data().map_err(WalError::io("sync", &active.path)).and_then(|()| named(shared));
    if let Err(error) = synced {
        let group = active.give_back().pop();
        return Err(failed(error, group.unwrap_or_else(|| Group::new(origin.first_lsn))));
    }
    active.synced_end = active.offset;
    let written = std::mem::take(&mut active.unsynced);
    Ok((active, written))
}

fn failed(error: WalError, group: Group) -> Box<Failed> {
    Box::new(Failed { error, group, untouched: false })
}

fn named(shared: &Shared) -> Result<(), WalError> {
    if planted::is(Planted::SkipDirectorySync) {
        return Ok(());
    }
    let directory: &Path = &shared.directory;
    shared.storage.sync_directory(directory).map_err(WalError::io("sync directory", directory))
}
