//! How large an outbox and its segments may be.

use std::path::Path;

use super::dead::MAX_REASON;
use super::directory::Paths;
use super::{OutboxError, OutboxOptions};
use crate::config::{MAX_BYTES, SEGMENT_BYTES};
use crate::wal::{BLOCK, LEAST_PREPARED, MAX_SEGMENT, has_segments, most_segments, segment_bytes_of};

/// Segments an outbox on a small disk is divided into: one is kept for first attempts, and three come on top for
/// settlements, so few large ones would leave nothing.
const SEGMENTS: u64 = 16;
/// Fewer than this many segments cannot move on.
const LEAST_SEGMENTS: u32 = 4;
/// Dead letters are few: their segments are as small as the largest message allows, but not smaller than this.
const DEAD_SEGMENT_BYTES: u32 = 8 << 20;
/// Names and headers.
const AROUND_MESSAGE: usize = 64 << 10;
/// What a dead letter takes more than the message: its reason, and when it failed.
const AROUND_DEAD: u32 = MAX_REASON as u32 + BLOCK;
/// Records that fit into a segment, at least.
const RECORDS: u32 = 4;
/// The largest record: among the dead letters, too, a segment has room for so many.
const MOST_RECORD_BYTES: u32 = MAX_SEGMENT / RECORDS - AROUND_DEAD;

/// What an outbox takes beside its logs: ledger, `IDENTITY`, `status`, and the file system's own tables.
const BESIDE_LOGS: u64 = 1 << 20;
/// The smallest segment that a configuration may ask for.
const LEAST_SEGMENT: u64 = 64 << 10;

/// The size of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LogSize {
    pub segment_bytes: u32,
    pub segments: u32,
    /// What the largest message takes on the disk.
    pub record_bytes: u32,
}

impl LogSize {
    fn new(segment_bytes: u32, max_bytes: u64, record_bytes: u32) -> Self {
        let segments = u32::try_from(max_bytes / u64::from(segment_bytes)).unwrap_or(u32::MAX);
        let segments = segments.clamp(LEAST_SEGMENTS, most_segments(segment_bytes));
        Self { segment_bytes, segments, record_bytes }
    }
}

/// The lengths of the newest segments of an outbox, if it has any.
#[derive(Clone, Copy, Debug, Default)]
struct Lengths {
    wal: Option<u32>,
    dead: Option<u32>,
    /// The longest file of the log of dead letters, free ones included: none may have been needed yet.
    longest_dead: Option<u32>,
}

impl Lengths {
    fn of(paths: &Paths) -> Self {
        Self {
            wal: segment_bytes_of(&paths.wal()),
            dead: segment_bytes_of(&paths.dead()),
            longest_dead: longest(&paths.dead()),
        }
    }
}

/// The sizes that follow from the options, from what is there and from the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sizes {
    pub wal: LogSize,
    pub dead: LogSize,
}

impl Sizes {
    /// Looks at the disk if the options leave the outbox's size open.
    pub fn of(options: &OutboxOptions, paths: &Paths) -> Self {
        Self::on(options, Lengths::of(paths), || free_bytes(paths.root()).saturating_add(log_bytes(paths)))
    }

    /// Refuses a disk on which a new outbox could not store one message: `send` would call it full, for ever. An outbox that
    /// has segments is opened however full its disk is, since what it holds is to be delivered.
    pub fn check_disk(&self, options: &OutboxOptions, paths: &Paths) -> Result<(), OutboxError> {
        let is_new = !has_segments(&paths.wal()) && !has_segments(&paths.dead());
        if options.as_found || !is_new {
            return Ok(());
        }
        // Without an answer, or with none that means something, the first message shows it.
        let Some(stat) = rustix::fs::statvfs(paths.root()).ok().filter(|stat| stat.f_blocks > 0) else { return Ok(()) };
        let free = stat.f_bavail.saturating_mul(stat.f_frsize).saturating_add(log_bytes(paths));
        let needed = self.least_bytes();
        if free >= needed {
            return Ok(());
        }
        Err(OutboxError::TooSmall {
            directory: options.directory.clone(),
            free,
            total: stat.f_blocks.saturating_mul(stat.f_frsize),
            needed,
            segment_bytes: self.wal.segment_bytes,
            max_message_bytes: options.max_message_bytes,
            fitting: fitting(free),
        })
    }

    /// What has to be on the disk before the first message is stored.
    fn least_bytes(&self) -> u64 {
        let segments = u64::from(self.wal.segment_bytes) + u64::from(self.dead.segment_bytes);
        u64::from(LEAST_PREPARED) * segments + BESIDE_LOGS
    }

    /// `disk` tells what is free but for the outbox itself.
    fn on(options: &OutboxOptions, found: Lengths, disk: impl FnOnce() -> u64) -> Self {
        let record_bytes = whole_blocks(options.max_message_bytes.saturating_add(AROUND_MESSAGE));
        let max_bytes = options.max_bytes.unwrap_or_else(|| (disk() / 10 * 8).min(MAX_BYTES));
        let segment_bytes = match found.wal {
            Some(found) if options.as_found => found,
            found => segment_bytes(options, found, max_bytes, record_bytes),
        };
        let quarter = segment_bytes / RECORDS;
        let record_bytes = if options.as_found { quarter } else { record_bytes.min(quarter) }.min(MOST_RECORD_BYTES);
        let dead_record = record_bytes + AROUND_DEAD;
        // Dead letters count in the whole: an eighth of it is theirs.
        let for_dead = max_bytes / 8;
        let (dead_segment, dead_record) = match found.dead {
            Some(found) if options.as_found => (found, found / RECORDS),
            _ => {
                let own = DEAD_SEGMENT_BYTES.min(segment_bytes).max(dead_record * RECORDS);
                // What another run has accepted may be larger than what this one does, and must find room all the same.
                let larger = found
                    .longest_dead
                    .filter(|&found| found > own && u64::from(found) * u64::from(LEAST_SEGMENTS) <= for_dead);
                larger.map_or((own, dead_record), |found| (found, found / RECORDS))
            }
        };
        Self {
            wal: LogSize::new(segment_bytes, max_bytes - for_dead, record_bytes),
            dead: LogSize::new(dead_segment, for_dead, dead_record),
        }
    }
}

/// The length of segments for a producer. One that follows from the free space is not changed at each opening by what is
/// free that day: what was once chosen stays.
fn segment_bytes(options: &OutboxOptions, found: Option<u32>, max_bytes: u64, record_bytes: u32) -> u32 {
    if options.max_bytes.is_some() {
        return options.segment_bytes;
    }
    let least = record_bytes.saturating_mul(RECORDS);
    let fitting = u32::try_from(max_bytes / SEGMENTS / 4096 * 4096).unwrap_or(u32::MAX);
    let derived = options.segment_bytes.min(fitting.max(least));
    let given = options.segment_bytes != SEGMENT_BYTES && derived == options.segment_bytes;
    found.filter(|&found| !given && found >= least && found <= options.segment_bytes).unwrap_or(derived)
}

/// The largest message that a configuration may have with such segments.
pub(super) fn most_message(segment_bytes: u32) -> usize {
    (segment_bytes / RECORDS) as usize - crate::config::AROUND_MESSAGE
}

/// The longest segment with which an outbox fits into so many bytes.
fn fitting(bytes: u64) -> Option<u32> {
    // A segment of dead letters is longer by what is around each of the records that fit.
    let around = u64::from(LEAST_PREPARED * RECORDS * AROUND_DEAD);
    let segment = bytes.saturating_sub(BESIDE_LOGS + around) / u64::from(2 * LEAST_PREPARED) / 4096 * 4096;
    u32::try_from(segment).ok().filter(|_| segment >= LEAST_SEGMENT)
}

/// The length of the longest file that may be a segment.
fn longest(log: &Path) -> Option<u32> {
    let entries = std::fs::read_dir(log).ok()?;
    let lengths = entries.filter_map(|entry| u32::try_from(entry.ok()?.metadata().ok()?.len()).ok());
    lengths.filter(|length| *length <= MAX_SEGMENT && length.is_multiple_of(BLOCK)).max()
}

/// Segments that an outbox in use takes from its start: one that is written, one kept ready, three for settlements.
const AT_START: u64 = 5;
/// Of dead letters: one, and three for settlements.
const DEAD_AT_START: u64 = 4;

/// The room that an outbox has and needs, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Free on the disk, for this user.
    pub free: u64,
    /// What its segments take now.
    pub taken: u64,
    /// What they take once it is in use, at least; what they take now is a part of it.
    pub least: u64,
    /// What they may take for messages and dead letters.
    pub most: u64,
    /// The length of a segment.
    pub segment: u64,
}

impl Room {
    /// Looks at the disk that `nearest` lies on: the outbox's directory, or the one it would be made in.
    ///
    /// # Errors
    /// The system does not say.
    pub fn of(options: &OutboxOptions, paths: &Paths, nearest: &Path) -> std::io::Result<Self> {
        let stat = rustix::fs::statvfs(nearest)?;
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        let taken = log_bytes(paths);
        let Sizes { wal, dead } = Sizes::on(options, Lengths::of(paths), || free.saturating_add(taken));
        let of = |log: LogSize, segments: u64| u64::from(log.segment_bytes) * segments;
        Ok(Self {
            free,
            taken,
            least: of(wal, AT_START) + of(dead, DEAD_AT_START),
            most: of(wal, wal.segments.into()) + of(dead, dead.segments.into()),
            segment: wal.segment_bytes.into(),
        })
    }
}

fn free_bytes(root: &Path) -> u64 {
    rustix::fs::statvfs(root).map_or(u64::MAX, |stat| stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// What an outbox that is opened again takes already.
fn log_bytes(paths: &Paths) -> u64 {
    let logs = [paths.wal(), paths.dead()];
    let entries = logs.iter().filter_map(|log| std::fs::read_dir(log).ok()).flatten();
    entries.filter_map(|entry| entry.ok()?.metadata().ok()).map(|metadata| metadata.len()).sum()
}

fn whole_blocks(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX - 4095).next_multiple_of(4096)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outbox_takes_most_of_a_small_disk_and_no_more_of_a_large_one() {
        let options = OutboxOptions::new("nowhere");
        for (disk, max_bytes) in [(100_u64 << 20, 80 << 20), (10 << 30, 8 << 30), (1 << 50, MAX_BYTES)] {
            let wal = Sizes::on(&options, Lengths::default(), || disk).wal;
            let bytes = u64::from(wal.segments) * u64::from(wal.segment_bytes);
            assert!(wal.segments >= 7 && bytes <= max_bytes && bytes >= max_bytes / 4 * 3, "{disk}: {wal:?}");
            assert!(wal.record_bytes <= wal.segment_bytes / 4, "{disk}: {wal:?}");
        }
    }

    #[test]
    fn sizes_that_are_given_stay() {
        let options = OutboxOptions { max_bytes: Some(64 << 20), ..OutboxOptions::new("nowhere") };
        let sizes = Sizes::on(&options, Lengths::default(), || 0);
        let LogSize { segment_bytes, segments, .. } = sizes.wal;
        assert_eq!((segment_bytes, segments), (options.segment_bytes, LEAST_SEGMENTS));
    }

    /// The length of segments followed the free space of the day, so that nearly each start had another one, and tools, which
    /// took the default, had yet another: free segments were thrown away, and others used again though too short.
    #[test]
    fn segments_keep_the_length_that_follows_from_the_free_space() {
        let options = OutboxOptions::new("nowhere");
        let small = Sizes::on(&options, Lengths::default(), || 1 << 30).wal.segment_bytes;
        assert!(small < SEGMENT_BYTES);
        let found = Lengths { wal: Some(small), dead: Some(12 << 20), ..Lengths::default() };
        for disk in [700 << 20, 2 << 30, 1 << 40] {
            assert_eq!(Sizes::on(&options, found, || disk).wal.segment_bytes, small);
            let given = OutboxOptions { segment_bytes: 1 << 20, max_message_bytes: 1_000, ..options.clone() };
            assert_eq!(Sizes::on(&given, found, || disk).wal.segment_bytes, 1 << 20, "what is given counts");
            let tool = OutboxOptions { as_found: true, ..options.clone() };
            let sizes = Sizes::on(&tool, found, || disk);
            assert_eq!((sizes.wal.segment_bytes, sizes.wal.record_bytes), (small, small / 4));
            assert_eq!((sizes.dead.segment_bytes, sizes.dead.record_bytes), (12 << 20, 3 << 20));
        }
    }

    /// Segments of dead letters had four times the message, and so no room for the reason beside the largest: it could not be
    /// buried, and held its lane for ever.
    #[test]
    fn whatever_message_is_taken_can_be_buried() {
        for (segment_bytes, max_message_bytes) in [(64 << 10, 8 << 10), (1 << 20, 200 << 10), (1 << 30, 200 << 20)] {
            let options = OutboxOptions { segment_bytes, max_message_bytes, ..OutboxOptions::new("nowhere") };
            for max_bytes in [Some(u64::from(segment_bytes) * 4), None] {
                let options = OutboxOptions { max_bytes, ..options.clone() };
                let Sizes { wal, dead } = Sizes::on(&options, Lengths::default(), || 1 << 40);
                assert!(wal.record_bytes as usize >= max_message_bytes + 4096, "{wal:?}");
                assert!(dead.record_bytes >= wal.record_bytes + MAX_REASON as u32, "{dead:?}");
                assert!(dead.record_bytes <= dead.segment_bytes / 4 && dead.segment_bytes <= MAX_SEGMENT, "{dead:?}");
            }
        }
    }

    #[test]
    fn the_settings_that_are_named_for_a_small_disk_fit_on_it() {
        for free in [3_u64 << 20, 8 << 20, 16 << 20, 30 << 20, 35_000_000] {
            let defaults = OutboxOptions::new("nowhere");
            assert!(Sizes::on(&defaults, Lengths::default(), || free).least_bytes() > free, "{free}");
            let segment_bytes = fitting(free).expect("there are some");
            let max_message_bytes = most_message(segment_bytes);
            for max_bytes in [None, Some(4 * u64::from(segment_bytes))] {
                let options = OutboxOptions { segment_bytes, max_message_bytes, max_bytes, ..defaults.clone() };
                let least = Sizes::on(&options, Lengths::default(), || free).least_bytes();
                assert!(least <= free, "{free}: {segment_bytes} takes {least}");
            }
        }
        assert_eq!(fitting(1 << 20), None);
    }

    /// A message that a run with a larger limit had stored could not become a dead letter in a run with the default one, and
    /// held its key for ever.
    #[test]
    fn dead_letters_have_room_for_what_another_run_has_accepted() {
        let large = OutboxOptions { max_message_bytes: 8 << 20, ..OutboxOptions::new("nowhere") };
        let made = Sizes::on(&large, Lengths::default(), || 1 << 40);
        let (wal, longest_dead) = (Some(made.wal.segment_bytes), Some(made.dead.segment_bytes));
        let found = Lengths { wal, longest_dead, ..Lengths::default() };
        let plain = Sizes::on(&OutboxOptions::new("nowhere"), found, || 1 << 40);
        assert!(plain.dead.record_bytes >= made.dead.record_bytes, "{plain:?}");
        assert!(plain.wal.record_bytes < made.wal.record_bytes, "what is accepted follows from this run's limit");
        let small = OutboxOptions { max_bytes: Some(256 << 20), ..OutboxOptions::new("nowhere") };
        let small = Sizes::on(&small, found, || 1 << 40);
        assert!(small.dead.segment_bytes < made.dead.segment_bytes, "an outbox that is small now stays so: {small:?}");
    }

    /// A segment has a list of all others: there was no bound to it, and with many small ones no room for anything else.
    #[test]
    fn there_are_no_more_segments_than_one_has_a_list_of() {
        let options = OutboxOptions {
            segment_bytes: 64 << 10,
            max_message_bytes: 8 << 10,
            max_bytes: Some(16 << 30),
            ..OutboxOptions::new("nowhere")
        };
        assert_eq!(Sizes::on(&options, Lengths::default(), || 0).wal.segments, 512);
    }
}
