//! How a log behaves, and the bounds that keep its promises possible.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::error::WalError;
use super::{BLOCK, MAX_SEGMENT, MIN_SEGMENT};

/// How a log behaves. Build it with [`Options::new`] and change what must differ.
#[derive(Clone)]
pub struct Options {
    /// Bytes of a segment: a multiple of 4,096, from 32 KiB to 1 GiB. Default 64 MiB.
    pub segment_bytes: u32,
    /// Segments there may be, beside three more for settlements alone. At least 3, and at most one for each 128 bytes of a
    /// segment, which has a list of them; default 256.
    pub max_segments: u32,
    /// Bytes of a frame that holds several messages, at most. Default 4 MiB, and no more than a quarter of a segment.
    pub frame_bytes: u32,
    /// The largest [footprint](super::Wal::footprint) a record may have: what is lost at the end of a segment is less than
    /// this. Default and maximum: a quarter of a segment.
    pub record_bytes: u32,
    /// Bytes of recent frames kept in memory for readers. Default 8 MiB.
    pub tail_bytes: usize,
    /// How long after the last frame a seal follows. Default 100 ms.
    pub seal_after: Duration,
    /// How long a settlement waits for a frame to ride in. Default 100 ms.
    pub control_after: Duration,
    /// How long a settlement's frame waits to be synced. Default 1 s.
    pub control_sync: Duration,
    /// Ranges of settled LSNs beyond the prefix, at most: a settlement that would make more waits in memory. Default
    /// 1,048,576, and no more than a quarter of a segment has room for.
    pub max_ranges: usize,
    /// The outbox; a segment of another one is refused.
    pub outbox: [u8; 16],
    /// This opening of it.
    pub incarnation: u64,
    /// Draws the salts of segments.
    pub salt: Arc<dyn Fn() -> u64 + Send + Sync>,
    /// Called on the log's threads when the durable point moved, space changed, or the log broke or was mended. Must
    /// be quick, and must not call back into the log.
    pub on_change: Arc<dyn Fn() + Send + Sync>,
    /// Tells the time. For tests that must be repeatable.
    pub clock: Arc<dyn Fn() -> Instant + Send + Sync>,
    /// Called again and again instead of waiting for the log's threads, by a log that has none: does their work.
    pub while_waiting: Option<Arc<dyn Fn() + Send + Sync>>,
}

impl Options {
    /// The defaults, for an outbox and an incarnation.
    pub fn new(outbox: [u8; 16], incarnation: u64) -> Self {
        Self {
            segment_bytes: 64 << 20,
            max_segments: 256,
            frame_bytes: 4 << 20,
            record_bytes: 16 << 20,
            tail_bytes: 8 << 20,
            seal_after: Duration::from_millis(100),
            control_after: Duration::from_millis(100),
            control_sync: Duration::from_secs(1),
            max_ranges: 1 << 20,
            outbox,
            incarnation,
            salt: Arc::new(|| getrandom::u64().unwrap_or_else(|_| fastrand::u64(..))),
            on_change: Arc::new(|| {}),
            clock: Arc::new(Instant::now),
            while_waiting: None,
        }
    }

    /// The same for segments of another size: every limit that depends on it is brought within its bounds.
    pub fn with_segment_bytes(mut self, bytes: u32) -> Self {
        self.segment_bytes = bytes;
        self.frame_bytes = self.frame_bytes.min(bytes / 4);
        self.record_bytes = self.record_bytes.min(bytes / 4);
        self.max_ranges = self.max_ranges.min(most_ranges(bytes));
        self.max_segments = self.max_segments.min(most_segments(bytes));
        self
    }

    pub(super) fn check(&self) -> Result<(), WalError> {
        let wrong = |option, reason: &str| Err(WalError::Option { option, reason: reason.into() });
        let quarter = self.segment_bytes / 4;
        if !self.segment_bytes.is_multiple_of(BLOCK) || !(MIN_SEGMENT..=MAX_SEGMENT).contains(&self.segment_bytes) {
            return wrong("segment_bytes", "a multiple of 4096 from 32768 to 1073741824");
        }
        if self.max_segments < 3 {
            return wrong("max_segments", "at least 3: the current one, the one before, and one to move on to");
        }
        if self.max_segments > most_segments(self.segment_bytes) {
            return wrong("max_segments", "at most one for each 128 bytes of a segment, which has a list of them all");
        }
        if !(BLOCK..=quarter).contains(&self.frame_bytes) {
            return wrong("frame_bytes", "from 4096 to a quarter of a segment");
        }
        if !(BLOCK..=quarter).contains(&self.record_bytes) {
            return wrong("record_bytes", "from 4096 to a quarter of a segment");
        }
        if self.max_ranges > most_ranges(self.segment_bytes) {
            return wrong("max_ranges", "no more than a quarter of a segment has room for, at 16 bytes each");
        }
        Ok(())
    }
}

/// A range takes 16 bytes of a checkpoint; a quarter of a segment for them leaves room for the rest of the checkpoint
/// and for the largest frame.
fn most_ranges(segment_bytes: u32) -> usize {
    segment_bytes as usize / 4 / 16
}

/// A segment takes 32 bytes of a checkpoint: a quarter of a segment for them.
pub fn most_segments(segment_bytes: u32) -> u32 {
    segment_bytes / 4 / 32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_within_their_bounds_for_every_size_of_segment() {
        assert!(Options::new([0; 16], 1).check().is_ok());
        for bytes in [32 << 10, 64 << 10, 1 << 20, 64 << 20, 1 << 30] {
            let options = Options::new([0; 16], 1).with_segment_bytes(bytes);
            assert!(options.check().is_ok(), "{bytes}");
            for frame_bytes in [BLOCK, options.frame_bytes] {
                let most = Options { frame_bytes, max_segments: most_segments(bytes), ..options.clone() };
                assert!(most.check().is_ok() && most.most_route_bytes(0, 0) > 500, "{bytes}");
            }
        }
    }
}
