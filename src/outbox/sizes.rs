//! How large an outbox and its segments may be.

use std::path::Path;

use super::OutboxOptions;
use super::directory::Paths;
use crate::config::MAX_BYTES;

/// Segments an outbox on a small disk is divided into: one is kept for first attempts and one for control records, so
/// few large ones would leave nothing.
const SEGMENTS: u64 = 8;
/// Fewer than this many segments cannot move on.
const LEAST_SEGMENTS: u32 = 4;
/// Dead letters are few: their segments are as small as the largest message allows, but not smaller than this.
const DEAD_SEGMENT_BYTES: u32 = 8 << 20;
/// Names, headers and, of a dead letter, its reason.
const AROUND_MESSAGE: usize = 64 << 10;

/// The sizes that follow from the options and the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sizes {
    pub max_bytes: u64,
    pub segment_bytes: u32,
    pub dead_segment_bytes: u32,
    /// What the largest message takes on the disk.
    pub record_bytes: u32,
}

impl Sizes {
    /// Looks at the disk if the options leave the outbox's size open.
    pub fn of(options: &OutboxOptions, paths: &Paths) -> Self {
        let disk = || free_bytes(paths.root()).saturating_add(log_bytes(paths));
        Self::on(options, disk)
    }

    /// `disk` tells what is free but for the outbox itself.
    fn on(options: &OutboxOptions, disk: impl FnOnce() -> u64) -> Self {
        let message = options.max_message_bytes;
        let record_bytes = whole_blocks(message.saturating_add(AROUND_MESSAGE));
        let dead = whole_blocks(message.saturating_mul(4)).max(DEAD_SEGMENT_BYTES);
        let with_segments = |max_bytes, segment_bytes| Self {
            max_bytes,
            segment_bytes,
            dead_segment_bytes: dead.min(segment_bytes),
            record_bytes,
        };
        match options.max_bytes {
            Some(max_bytes) => with_segments(max_bytes, options.segment_bytes),
            None => {
                let max_bytes = (disk() / 10 * 8).min(MAX_BYTES);
                let least = record_bytes.saturating_mul(4);
                let fitting = u32::try_from(max_bytes / SEGMENTS / 4096 * 4096).unwrap_or(u32::MAX).max(least);
                with_segments(max_bytes, options.segment_bytes.min(fitting))
            }
        }
    }

    /// How many segments of a size there may be.
    pub fn segments(&self, segment_bytes: u32) -> u32 {
        u32::try_from(self.max_bytes / u64::from(segment_bytes)).unwrap_or(u32::MAX).max(LEAST_SEGMENTS)
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
        for (disk, max_bytes) in [(100 << 20, 80 << 20), (10 << 30, 8 << 30), (1 << 50, MAX_BYTES)] {
            let sizes = Sizes::on(&options, || disk);
            assert!(sizes.max_bytes.abs_diff(max_bytes) < 10, "{sizes:?}");
            let segments = sizes.segments(sizes.segment_bytes);
            assert!(segments >= 8 && u64::from(segments) * u64::from(sizes.segment_bytes) <= max_bytes, "{sizes:?}");
            assert!(sizes.record_bytes <= sizes.segment_bytes / 4, "{sizes:?}");
        }
    }

    #[test]
    fn sizes_that_are_given_stay() {
        let options = OutboxOptions { max_bytes: Some(64 << 20), ..OutboxOptions::new("nowhere") };
        let sizes = Sizes::on(&options, || 0);
        assert_eq!((sizes.max_bytes, sizes.segment_bytes), (64 << 20, options.segment_bytes));
        assert_eq!(sizes.segments(sizes.segment_bytes), LEAST_SEGMENTS);
    }
}
