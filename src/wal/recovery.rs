//! What an open finds. It reads the last segment, and never writes into one it found.
//!
//! The last segment's checkpoint and the frames behind it say everything. If its header or its checkpoint is damaged
//! (there are good frames of its number, but not those), the segment before it is read as well, and so on back.
//!
//! A bad frame is a torn write, and was never acknowledged, unless something written later says that it was durable:
//! the durable LSN or the synced end in a later frame. Then it is damage: reported, with the LSNs that are lost.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::error::{DecodeError, WalError};
use super::frame::{FrameHeader, FrameKind};
use super::record::RECORD_HEADER;
use super::scan::SegmentFile;
use super::segment::{self, Name, SegmentHeader};
use super::state::{CheckpointReader, SegmentInfo, State};
use super::storage::Storage;
use super::{BLOCK, Damage, Lsn, Options};
use crate::planted::{self, Planted};

/// What an open found.
#[derive(Clone, Debug)]
pub struct Recovered {
    /// What is settled and what is pending.
    pub state: State,
    /// The next LSN that will be given out.
    pub next_lsn: Lsn,
    /// The incarnation that wrote the last segment; `None` in an empty log.
    pub last_incarnation: Option<u64>,
    /// What cannot be read, as far as it was looked at: older segments are read when they are drained.
    pub damage: Vec<Damage>,
    /// Bytes behind the last good frame that look like a write the crash interrupted.
    pub torn_bytes: u64,
    /// Segments in use.
    pub segments: usize,
}

/// What the log needs of it.
pub(super) struct Found {
    pub recovered: Recovered,
    pub segments: BTreeMap<u64, SegmentInfo>,
    pub last_acked: Lsn,
    pub next_number: u64,
    pub free: Vec<u64>,
    /// Segment files that are of no use.
    pub discard: Vec<PathBuf>,
}

struct Loaded {
    file: SegmentFile,
    header: Option<SegmentHeader>,
    checkpoint: Option<(State, Vec<SegmentInfo>, u32)>,
    /// The first good frame, if the checkpoint is damaged.
    first: Option<FrameHeader>,
    short: bool,
}

/// See the module.
pub(super) fn recover(
    storage: &dyn Storage,
    directory: &std::path::Path,
    options: &Options,
) -> Result<Found, WalError> {
    let names = storage.list(directory).map_err(WalError::io("list", directory))?;
    let (mut numbers, mut free) = (Vec::new(), Vec::new());
    for name in names.iter().filter_map(|name| Name::parse(name)) {
        match name {
            Name::Segment(number) => numbers.push(number),
            Name::Free(number) => free.push(number),
        }
    }
    numbers.sort_unstable();
    if !numbers.is_empty() {
        // The process before may have died between a rename and the sync of the directory.
        storage.sync_directory(directory).map_err(WalError::io("sync directory", directory))?;
    }
    let mut walk = Walk::new(storage, directory, options);
    let mut chain = walk.load_chain(&numbers)?;
    let mut segments = BTreeMap::new();
    if let Some(base) = chain.first_mut() {
        match base.checkpoint.take() {
            Some((state, older, start)) => {
                segments = older.into_iter().map(|segment| (segment.number, segment)).collect();
                walk.state = state;
                walk.starts.insert(base.file.number, start);
            }
            None => walk.lost_checkpoint(base),
        }
    }
    for at in 0..chain.len() {
        let later = chain.get(at + 1).and_then(|next| next.first);
        walk.synced_end = 0;
        let info = walk.segment(&chain[at], later.as_ref())?;
        let whole = at == 0 && walk.starts.contains_key(&info.number);
        // Without a frame that was written after a sync, the opening itself may be what was torn.
        if !whole && walk.synced_end > 0 {
            walk.bad_beginning(info.number);
        }
        segments.insert(info.number, info);
    }
    let last_acked = walk.state.next_lsn - 1;
    if !walk.clean || walk.begun {
        // Whether the last frame was acknowledged cannot be told; its LSNs are not used again.
        let most = u64::from(options.frame_bytes.max(options.record_bytes)) / RECORD_HEADER as u64;
        walk.state.burn_to(walk.state.next_lsn.saturating_add(most));
    }
    if planted::is(Planted::ReuseAckedLsn) {
        walk.state.next_lsn = last_acked.max(1);
    }
    let intact = walk.damage.is_empty();
    walk.missing(&segments, &numbers);
    let stray = |number: &&u64| intact && !segments.contains_key(number);
    let discard = numbers.iter().filter(stray).map(|&number| segment::path(directory, number)).collect();
    let settled = &walk.state.settled;
    walk.damage.retain(|damage| {
        damage.last_lsn < damage.first_lsn || !settled.contains_range(damage.first_lsn, damage.last_lsn)
    });
    let next_number = next_number(storage, directory, &numbers, &free);
    Ok(Found {
        recovered: Recovered {
            next_lsn: walk.state.next_lsn,
            state: walk.state,
            last_incarnation: walk.incarnation,
            damage: walk.damage,
            torn_bytes: walk.torn_bytes,
            segments: segments.len(),
        },
        segments,
        last_acked,
        next_number,
        free,
        discard,
    })
}

/// Past every number there is: also past those in the headers of free files, which may hold a segment whose rename
/// was lost in a power cut. So the number, not only the salt, tells its frames from live ones.
fn next_number(storage: &dyn Storage, directory: &std::path::Path, numbers: &[u64], free: &[u64]) -> u64 {
    let inside = free.iter().filter_map(|&number| {
        let file = storage.open_read(&segment::free_path(directory, number)).ok()?;
        let file = SegmentFile { file, number, salt: None, limit: 0 };
        file.header().ok()?.ok().map(|header| header.number)
    });
    inside.chain(numbers.iter().copied()).max().map_or(1, |last| last.saturating_add(1))
}

struct Walk<'a> {
    storage: &'a dyn Storage,
    directory: &'a std::path::Path,
    options: &'a Options,
    state: State,
    /// Where groups begin in the segment the state is from.
    starts: BTreeMap<u64, u32>,
    damage: Vec<Damage>,
    torn_bytes: u64,
    incarnation: Option<u64>,
    /// The last frame is a seal.
    clean: bool,
    /// The most that a frame of the segment at hand knew to be synced.
    synced_end: u32,
    /// A segment was begun behind the last good one.
    begun: bool,
}

impl<'a> Walk<'a> {
    fn new(storage: &'a dyn Storage, directory: &'a std::path::Path, options: &'a Options) -> Self {
        Self {
            storage,
            directory,
            options,
            state: State::new(),
            starts: BTreeMap::new(),
            damage: Vec::new(),
            torn_bytes: 0,
            incarnation: None,
            clean: true,
            synced_end: 0,
            begun: false,
        }
    }

    /// The last segment with a whole checkpoint, and the damaged ones behind it, ascending.
    fn load_chain(&mut self, numbers: &[u64]) -> Result<Vec<Loaded>, WalError> {
        let mut chain = Vec::new();
        for &number in numbers.iter().rev() {
            let loaded = self.load(number)?;
            if loaded.checkpoint.is_none() && loaded.first.is_none() {
                if loaded.short {
                    // Segments have their full length before they get their name.
                    let reason = "the segment is shorter than it was made, and nothing in it can be read".to_owned();
                    self.damage.push(Damage {
                        segment: number,
                        offset: 0,
                        length: 0,
                        first_lsn: 1,
                        last_lsn: 0,
                        reason,
                    });
                }
                self.begun |= loaded.header.is_some();
                continue;
            }
            let whole = loaded.checkpoint.is_some();
            chain.push(loaded);
            if whole {
                break;
            }
        }
        chain.reverse();
        self.incarnation = chain.iter().rev().find_map(|loaded| loaded.header.map(|header| header.incarnation));
        Ok(chain)
    }

    fn load(&self, number: u64) -> Result<Loaded, WalError> {
        let path = segment::path(self.directory, number);
        let file = self.storage.open_read(&path).map_err(WalError::io("open", &path))?;
        // The process before may have died between a write and its sync; what is trusted now must be on the disk.
        file.sync_data().map_err(WalError::io("sync", &path))?;
        let length = file.length().map_err(WalError::io("length of", &path))?;
        let mut file = SegmentFile { file, number, salt: None, limit: self.options.segment_bytes };
        let header = match file.header().map_err(WalError::io("read", &path))? {
            Ok(header) if header.number == number => Some(header),
            Ok(_) => None,
            Err(DecodeError::Newer { found, .. }) => {
                return Err(WalError::NewerFormat { path, found, known: u64::from(super::frame::VERSION) });
            }
            Err(_) => None,
        };
        if let Some(header) = header {
            if header.outbox != self.options.outbox {
                let (expected, found) = (u128::from_be_bytes(self.options.outbox), u128::from_be_bytes(header.outbox));
                return Err(WalError::Foreign { path, expected, found });
            }
            file.salt = Some(header.salt);
            file.limit = header.segment_bytes;
        } else {
            file.limit = file.limit.max(u32::try_from(length).unwrap_or(u32::MAX));
        }
        let short = length < u64::from(file.limit);
        let checkpoint = match &header {
            Some(header) => checkpoint(&file, header).map_err(WalError::io("read", &path))?,
            None => None,
        };
        let first = match &checkpoint {
            None => file.next_good(BLOCK, file.limit).map(|frame| frame.header),
            Some((_, _, start)) => {
                // A checkpoint without the frame that came with it was never acknowledged.
                let first = file.next_good(*start, file.limit).map(|frame| frame.header);
                if first.is_none() && !short {
                    return Ok(Loaded { file, header, checkpoint: None, first: None, short });
                }
                first
            }
        };
        if file.salt.is_none() {
            file.salt = first.map(|first| first.salt);
        }
        Ok(Loaded { file, header, checkpoint, first, short })
    }

    fn bad_beginning(&mut self, segment: u64) {
        let reason = "the header or the checkpoint is damaged; the segment before was read as well".to_owned();
        let (first_lsn, last_lsn) = (self.state.next_lsn, self.state.next_lsn - 1);
        self.damage.push(Damage { segment, offset: 0, length: BLOCK, first_lsn, last_lsn, reason });
    }

    fn lost_checkpoint(&mut self, base: &Loaded) {
        let Some(first) = base.first else { return };
        let known = base.header.map_or(first.durable_lsn, |header| header.last_acked);
        let reason = "no checkpoint is left: what was settled before is not known";
        self.gap(base.file.number, 0, known, first.first_lsn, reason);
    }

    /// Walks the groups of a segment and applies them. `later` is the first good frame of the next one.
    fn segment(&mut self, loaded: &Loaded, later: Option<&FrameHeader>) -> Result<SegmentInfo, WalError> {
        let file = &loaded.file;
        let path = segment::path(self.directory, file.number);
        let start = self.starts.get(&file.number).copied();
        let mut offset = start.unwrap_or(BLOCK);
        if let Some(header) = &loaded.header {
            self.gap(
                file.number,
                BLOCK,
                header.last_acked,
                header.first_lsn,
                "records before this segment are missing",
            );
        }
        let first_lsn = self.state.next_lsn;
        let mut end = offset;
        loop {
            let bad = match file.frame(offset).map_err(WalError::io("read", &path))? {
                Ok(frame) => {
                    // A later segment says how far this one was acknowledged.
                    if later
                        .is_some_and(|later| frame.header.count > 0 && frame.header.next_lsn() - 1 > later.durable_lsn)
                    {
                        break;
                    }
                    self.frame(file.number, &frame)?;
                    offset = frame.header.next_offset();
                    end = offset;
                    continue;
                }
                Err(error) => error,
            };
            let Some(next) = file.next_good(offset + BLOCK, file.limit) else {
                self.end(loaded, offset, later, &bad);
                break;
            };
            // Frames before `next` that it knows to have been synced are damaged; others were torn.
            let (first_lsn, last_lsn) = (self.state.next_lsn, next.header.durable_lsn.min(next.header.first_lsn - 1));
            if last_lsn >= first_lsn || next.header.synced_end > offset {
                let (segment, length) = (file.number, next.header.offset - offset);
                let reason = bad.to_string();
                self.damage.push(Damage { segment, offset, length, first_lsn, last_lsn, reason });
            }
            self.state.next_lsn = first_lsn.max(last_lsn + 1);
            offset = next.header.offset;
        }
        let (number, last_lsn) = (file.number, self.state.next_lsn - 1);
        Ok(SegmentInfo { number, first_lsn, last_lsn, start: start.unwrap_or(0), end, failed: false })
    }

    fn frame(&mut self, segment: u64, frame: &super::scan::Frame) -> Result<(), WalError> {
        let header = &frame.header;
        if header.kind == FrameKind::Checkpoint {
            return Ok(());
        }
        self.gap(segment, header.offset, header.durable_lsn, header.first_lsn, "records before this frame are missing");
        self.synced_end = self.synced_end.max(header.synced_end);
        self.clean = header.kind == FrameKind::Seal;
        if let Err(error) = self.state.apply(&frame.view()) {
            // The checksum holds, so it was written like this, by a later release.
            let path = segment::path(self.directory, segment);
            tracing::error!(%error, path = %path.display(), "a frame with a good checksum cannot be read");
            return Err(WalError::NewerFormat { path, found: 0, known: u64::from(super::frame::VERSION) });
        }
        Ok(())
    }

    /// LSNs that should have come before `next`: those up to `durable` are lost, the others were never acknowledged.
    fn gap(&mut self, segment: u64, offset: u32, durable: Lsn, next: Lsn, reason: &str) {
        if self.state.next_lsn <= durable && self.state.next_lsn < next {
            let (first_lsn, last_lsn) = (self.state.next_lsn, durable.min(next - 1));
            self.damage.push(Damage { segment, offset, length: 0, first_lsn, last_lsn, reason: reason.to_owned() });
            self.state.next_lsn = last_lsn + 1;
        }
        self.state.burn_to(next);
    }

    /// Nothing good follows: the end, a torn write, or damage that a later segment tells of.
    fn end(&mut self, loaded: &Loaded, offset: u32, later: Option<&FrameHeader>, bad: &DecodeError) {
        let file = &loaded.file;
        if loaded.short {
            let reason = format!("the segment is shorter than it was made: {bad}");
            let (segment, first_lsn) = (file.number, self.state.next_lsn);
            let last_lsn = later.map_or(first_lsn - 1, |later| later.durable_lsn);
            self.damage.push(Damage { segment, offset, length: 0, first_lsn, last_lsn, reason });
            self.clean = false;
            return;
        }
        let covered = later.map_or(0, |later| later.durable_lsn.min(later.first_lsn - 1));
        if covered >= self.state.next_lsn {
            let (first_lsn, length) = (self.state.next_lsn, file.limit.saturating_sub(offset));
            let (segment, reason) = (file.number, bad.to_string());
            self.damage.push(Damage { segment, offset, length, first_lsn, last_lsn: covered, reason });
            self.state.next_lsn = covered + 1;
        } else if later.is_none() {
            // A header with a bad body is certainly a torn write; without one, whether there was one cannot be told.
            if let Ok(Ok(header)) = file.frame_header(offset) {
                self.torn_bytes += u64::from(header.length());
                self.clean = false;
            }
        }
    }

    /// Segments a checkpoint names that are not there.
    fn missing(&mut self, segments: &BTreeMap<u64, SegmentInfo>, numbers: &[u64]) {
        for segment in segments.values().filter(|segment| numbers.binary_search(&segment.number).is_err()) {
            let reason = "the segment is missing".to_owned();
            let SegmentInfo { number, first_lsn, last_lsn, .. } = *segment;
            if last_lsn >= first_lsn {
                self.damage.push(Damage { segment: number, offset: 0, length: 0, first_lsn, last_lsn, reason });
            }
        }
    }
}

/// The checkpoint at the beginning of a segment, and where groups begin; `None` if a part of it is damaged.
fn checkpoint(file: &SegmentFile, header: &SegmentHeader) -> std::io::Result<Option<(State, Vec<SegmentInfo>, u32)>> {
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
    Ok(reader.finish(header.first_lsn).map(|(state, segments)| (state, segments, header.start)))
}
