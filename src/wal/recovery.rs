//! What an open finds. It reads the last segment, and never writes into one it found.
//!
//! The last segment's checkpoint and the frames behind it say everything. If its header or its checkpoint is damaged
//! (there are good frames of its number, but not those), the segment before it is read as well, and so on back.
//!
//! A bad frame is a torn write, and was never acknowledged, unless something written later says that it was durable:
//! the durable LSN or the synced end in a later frame. Then it is damage: reported, with the LSNs that are lost.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use super::error::{DecodeError, WalError};
use super::frame::{FrameHeader, FrameKind};
use super::loaded::{Loaded, newer};
use super::record::RECORD_HEADER;
use super::segment;
use super::state::{SegmentInfo, State};
use super::storage::Storage;
use super::stray::{self, Names};
use super::{BLOCK, Damage, LAST_START, Lsn, Options};
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

/// See the module.
pub(super) fn recover(storage: &dyn Storage, directory: &Path, options: &Options) -> Result<Found, WalError> {
    let names = Names::list(storage, directory)?;
    if !names.segments.is_empty() {
        // The process before may have died between a rename and the sync of the directory.
        storage.sync_directory(directory).map_err(WalError::io("sync directory", directory))?;
    }
    let mut walk = Walk::new(storage, directory, options);
    let mut segments = walk.segments(&names.segments)?;
    let last_acked = walk.state.next_lsn - 1;
    // What may have been acknowledged is not used again.
    walk.state.burn_to(walk.state.next_lsn.saturating_add(walk.uncertain()));
    if planted::is(Planted::ReuseAckedLsn) {
        walk.state.next_lsn = last_acked.max(1);
    }
    let intact = walk.damage.is_empty();
    walk.missing(&segments, &names.segments);
    // Those that were used again since the checkpoint hold nothing; of others there is no file to be used again.
    segments.retain(|number, segment| names.has(*number) || walk.state.needs(segment));
    for (number, segment) in &mut segments {
        segment.failed |= !names.has(*number);
    }
    let strays = names.segments.iter().copied().filter(|number| intact && !segments.contains_key(number));
    let known = |number| names.has(number) || segments.get(&number).is_some_and(|s| walk.state.needs(s));
    let discard = stray::removable(storage, directory, strays, known);
    walk.forget_settled();
    let next_number = stray::next_number(storage, directory, &names.segments, &names.free);
    not_beyond(directory, "the LSN", walk.state.next_lsn)?;
    not_beyond(directory, "a segment of number", next_number)?;
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
        free: names.free,
        discard,
    })
}

/// Refuses a number that may not be reached. No damage makes one: checksums hold, or it is a file's name.
fn not_beyond(directory: &Path, what: &'static str, found: u64) -> Result<(), WalError> {
    if found <= LAST_START {
        return Ok(());
    }
    Err(WalError::Exhausted { path: directory.to_path_buf(), what, found, most: LAST_START })
}

struct Walk<'a> {
    storage: &'a dyn Storage,
    directory: &'a Path,
    options: &'a Options,
    state: State,
    /// Where groups begin in the segment the state is from.
    starts: BTreeMap<u64, u32>,
    damage: Vec<Damage>,
    /// Bad frames that were torn, unless a frame further on knows that they were synced.
    doubtful: Vec<Damage>,
    torn_bytes: u64,
    incarnation: Option<u64>,
    /// The last frame is a seal.
    clean: bool,
    /// The most that a frame of the segment at hand knew to be synced.
    synced_end: u32,
    /// A segment was begun behind the last good one: the last LSN that was acknowledged before it.
    begun: Option<Lsn>,
    /// The end of the log is lost, and how much it held is not known.
    lost_end: bool,
    /// The length of the longest segment that was looked at, or of those of this run.
    longest: u32,
}

impl<'a> Walk<'a> {
    fn new(storage: &'a dyn Storage, directory: &'a Path, options: &'a Options) -> Self {
        Self {
            storage,
            directory,
            options,
            state: State::new(),
            starts: BTreeMap::new(),
            damage: Vec::new(),
            doubtful: Vec::new(),
            torn_bytes: 0,
            incarnation: None,
            clean: true,
            synced_end: 0,
            begun: None,
            lost_end: false,
            longest: options.segment_bytes,
        }
    }

    /// Everything the last segments say: takes it into the state, and returns the segments in use.
    fn segments(&mut self, numbers: &[u64]) -> Result<BTreeMap<u64, SegmentInfo>, WalError> {
        let mut chain = self.load_chain(numbers)?;
        let mut segments = BTreeMap::new();
        if let Some(base) = chain.first_mut() {
            match base.checkpoint.take() {
                Some((state, older, start)) => {
                    segments = older.into_iter().map(|segment| (segment.number, segment)).collect();
                    self.state = state;
                    self.starts.insert(base.file.number, start);
                }
                None => self.lost_checkpoint(base),
            }
        }
        for at in 0..chain.len() {
            let later = chain.get(at + 1).and_then(|next| next.first);
            self.synced_end = 0;
            self.doubtful.clear();
            let info = self.segment(&chain[at], later.as_ref())?;
            let whole = at == 0 && self.starts.contains_key(&info.number);
            // Without a frame that was written after a sync, the opening itself may be what was torn.
            if !whole && self.synced_end > 0 {
                self.bad_beginning(info.number);
            }
            segments.insert(info.number, info);
        }
        self.lost_before_begun(&chain);
        Ok(segments)
    }

    /// The last segment with a whole checkpoint, and the damaged ones behind it, ascending.
    fn load_chain(&mut self, numbers: &[u64]) -> Result<Vec<Loaded>, WalError> {
        let mut chain = Vec::new();
        for &number in numbers.iter().rev() {
            let loaded = Loaded::read(self.storage, self.directory, self.options, number, numbers)?;
            self.longest = self.longest.max(loaded.file.limit);
            if loaded.checkpoint.is_none() && loaded.first.is_none() {
                // Segments have their full length before they get their name.
                let short = "the segment is shorter than it was made, and nothing in it can be read";
                let elsewhere = "the file holds another segment than its name says";
                let reasons = [(loaded.short, short), (loaded.misplaced, elsewhere)];
                if let Some((_, reason)) = reasons.iter().find(|(applies, _)| *applies) {
                    let (segment, reason) = (number, (*reason).to_owned());
                    self.damage.push(Damage { segment, offset: 0, length: 0, first_lsn: 1, last_lsn: 0, reason });
                    self.lost_end = true;
                }
                self.begun = self.begun.max(loaded.header.map(|header| header.last_acked));
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
                Err(DecodeError::Newer { found, .. }) => return Err(newer(path, found)),
                Err(error) => error,
            };
            let next = file.next_good(offset + BLOCK, file.limit).map_err(WalError::io("read", &path))?;
            let Some(next) = next else {
                let behind = self.end(loaded, offset, later, &bad).map_err(WalError::io("read", &path))?;
                end = end.max(behind);
                break;
            };
            // Frames before `next` that it, or one behind it, knows to have been synced are damaged; others were torn.
            let (first_lsn, last_lsn) = (self.state.next_lsn, next.header.durable_lsn.min(next.header.first_lsn - 1));
            let (segment, length, reason) = (file.number, next.header.offset - offset, bad.to_string());
            let damage = Damage { segment, offset, length, first_lsn, last_lsn, reason };
            if last_lsn >= first_lsn {
                self.damage.push(damage);
            } else if start.is_some() || offset > BLOCK {
                // What stands at the beginning is told of by itself.
                self.doubtful.push(damage);
            }
            self.state.next_lsn = first_lsn.max(last_lsn + 1);
            offset = next.header.offset;
            end = offset;
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
        self.damage.extend(self.doubtful.extract_if(.., |damage| damage.offset < header.synced_end));
        self.clean = header.kind == FrameKind::Seal;
        if let Err(error) = self.state.apply(&frame.view()) {
            // The checksum holds, so it was written like this, by a later release.
            let path = segment::path(self.directory, segment);
            tracing::error!(%error, path = %path.display(), "a frame with a good checksum cannot be read");
            return Err(newer(path, 0));
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

    /// Nothing good follows: the end, a torn write, or damage that a later segment tells of. Returns where what is to be
    /// read ends: behind the damage, so that the reader comes across it.
    fn end(&mut self, loaded: &Loaded, offset: u32, later: Option<&FrameHeader>, bad: &DecodeError) -> io::Result<u32> {
        let file = &loaded.file;
        let (segment, first_lsn) = (file.number, self.state.next_lsn);
        let covered = later.map_or(0, |later| later.durable_lsn.min(later.first_lsn - 1));
        if loaded.short || covered >= first_lsn {
            let what = if loaded.short { "the segment is shorter than it was made: " } else { "" };
            let (length, last_lsn) = (file.limit.saturating_sub(offset), covered.max(first_lsn - 1));
            let reason = format!("{what}{bad}");
            self.damage.push(Damage { segment, offset, length, first_lsn, last_lsn, reason });
            self.state.next_lsn = last_lsn + 1;
            self.lost_end |= later.is_none();
            return Ok(if covered >= first_lsn { file.limit } else { offset });
        }
        if later.is_none() {
            if let Ok(header) = file.frame_header(offset)? {
                self.torn_bytes += u64::from(header.length());
                self.clean = false;
            } else if file.resembles_frame(offset)? {
                // A header is written whole or not at all: this one was, and so perhaps was what it stood for.
                self.torn_bytes += u64::from(BLOCK);
                self.clean = false;
            }
        }
        Ok(offset)
    }

    /// The header of a segment that was begun tells what had been acknowledged, be there nothing else in it.
    fn lost_before_begun(&mut self, chain: &[Loaded]) {
        let Some(last_lsn) = self.begun.filter(|&last| last >= self.state.next_lsn) else { return };
        let (segment, first_lsn) = (chain.last().map_or(0, |last| last.file.number), self.state.next_lsn);
        let reason = "records before the newest segment are missing".to_owned();
        self.damage.push(Damage { segment, offset: 0, length: 0, first_lsn, last_lsn, reason });
        self.state.next_lsn = last_lsn + 1;
    }

    /// How many LSNs may have been acknowledged beyond the last that is known to be.
    fn uncertain(&self) -> u64 {
        let bytes = if self.lost_end {
            // Any number of frames may be lost with the end of a segment.
            self.longest
        } else if !self.clean || self.begun.is_some() {
            // Whether the last frame was acknowledged cannot be told. An earlier run may have had other limits: a
            // frame takes a quarter of a segment at most.
            self.options.frame_bytes.max(self.options.record_bytes).max(self.longest / 4)
        } else {
            0
        };
        u64::from(bytes) / RECORD_HEADER as u64
    }

    /// Nobody misses what is settled. But the bytes may have held settlements, so that what these settled is delivered
    /// again: that is still told.
    fn forget_settled(&mut self) {
        let settled = &self.state.settled;
        self.damage.retain_mut(|damage| {
            let none = damage.last_lsn < damage.first_lsn;
            let missed = none || !settled.contains_range(damage.first_lsn, damage.last_lsn);
            if !missed {
                damage.last_lsn = damage.first_lsn - 1;
            }
            missed || damage.length > 0
        });
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
