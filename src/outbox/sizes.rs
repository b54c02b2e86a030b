//! How large an outbox and its segments may be.

use std::path::Path;

use super::OutboxOptions;
use super::directory::Paths;
use crate::config::MAX_BYTES;

/// Segments an outbox on a small disk is divided into: one is kept for first attempts, and three come on top for
/// settlements, so few large ones would leave nothing.
const SEGMENTS: u64 = 16;
/// Fewer than this many segments cannot move on.
const LEAST_SEGMENTS: u32 = 4;
/// Dead letters are few: their segments are as small as the largest message allows, but not smaller than this.
const DEAD_SEGMENT_BYTES: u32 = 8 << 20;
/// Names, headers and, of a dead letter, its reason.
const AROUND_MESSAGE: usize = 64 << 10;

/// The size of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LogSize {
    pub segment_bytes: u32,
    pub segments: u32,
}

impl LogSize {
    fn new(segment_bytes: u32, max_bytes: u64) -> Self {
        let segments = u32::try_from(max_bytes / u64::from(segment_bytes)).unwrap_or(u32::MAX);
        Self { segment_bytes, segments: segments.max(LEAST_SEGMENTS) }
    }
}

/// The sizes that follow from the options and the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sizes {
    pub wal: LogSize,
    pub dead: LogSize,
    /// What the largest message takes on the disk.
    pub record_bytes: u32,
}

impl Sizes {
    /// Looks at the disk if the options leave the outbox's size open.
    pub fn of(options: &OutboxOptions, paths: &Paths) -> Self {
        Self::on(options, || free_bytes(paths.root()).saturating_add(log_bytes(paths)))
    }

    /// `disk` tells what is free but for the outbox itself.
    fn on(options: &OutboxOptions, disk: impl FnOnce() -> u64) -> Self {
        let record_bytes = whole_blocks(options.max_message_bytes.saturating_add(AROUND_MESSAGE));
        let (max_bytes, segment_bytes) = match options.max_bytes {
            Some(max_bytes) => (max_bytes, options.segment_bytes),
            None => {
                let max_bytes = (disk() / 10 * 8).min(MAX_BYTES);
                let fitting = u32::try_from(max_bytes / SEGMENTS / 4096 * 4096).unwrap_or(u32::MAX);
                (max_bytes, options.segment_bytes.min(fitting.max(record_bytes.saturating_mul(4))))
            }
        };
        // Dead letters count in the whole: an eighth of it is theirs.
        let for_dead = max_bytes / 8;
        let dead_segment = whole_blocks(options.max_message_bytes.saturating_mul(4)).max(DEAD_SEGMENT_BYTES);
        Self {
            wal: LogSize::new(segment_bytes, max_bytes - for_dead),
            dead: LogSize::new(dead_segment.min(segment_bytes), for_dead),
            record_bytes,
        }
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
            let Sizes { wal, record_bytes, .. } = Sizes::on(&options, || disk);
            let bytes = u64::from(wal.segments) * u64::from(wal.segment_bytes);
            assert!(wal.segments >= 7 && bytes <= max_bytes && bytes >= max_bytes / 4 * 3, "{disk}: {wal:?}");
            assert!(record_bytes <= wal.segment_bytes / 4, "{disk}: {wal:?}");
        }
    }

    #[test]
    fn sizes_that_are_given_stay() {
        let options = OutboxOptions { max_bytes: Some(64 << 20), ..OutboxOptions::new("nowhere") };
        let sizes = Sizes::on(&options, || 0);
        assert_eq!(sizes.wal, LogSize { segment_bytes: options.segment_bytes, segments: LEAST_SEGMENTS });
    }
}
