//! Moving on to a new segment: because the current one is full, or because it failed; and what becomes of a group that
//! finds none.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::active::{self, Active, Origin, Written};
use super::committer::Committer;
use super::error::WalError;
use super::queue::Group;
use super::shared::Trouble;
use super::state::SegmentInfo;
use super::{BLOCK, Lsn, checkpoint};

/// After settlements could not be written, how long until they are tried again without company.
const RETRY: Duration = Duration::from_secs(1);

impl Committer {
    /// What a frame may take in a segment that is opened now.
    pub fn fresh_room(&self, has_messages: bool) -> u64 {
        let options = &self.shared.options;
        let view = self.shared.view();
        let contents = view.state.contents(view.segments.len() + 1);
        let overhead = if has_messages { contents.to_come() } else { contents }.room(options.frame_bytes);
        u64::from(options.segment_bytes).saturating_sub(overhead + u64::from(BLOCK))
    }

    /// Why not even a new segment has room.
    pub fn crowded(&self) -> WalError {
        let options = &self.shared.options;
        let view = self.shared.view();
        let bytes = view.state.contents(view.segments.len() + 1).room(options.frame_bytes);
        WalError::Crowded { bytes, limit: options.checkpoint_room() }
    }

    /// Gives the segment up for good: after a failed write or sync nobody knows what is on the disk, and a second sync
    /// may say yes to bytes the kernel has dropped. Returns what was written in it in vain.
    pub fn give_up(&mut self, error: &WalError) -> Vec<Group> {
        self.unsynced_since = None;
        self.sealed = true;
        let Some(mut active) = self.active.take() else { return Vec::new() };
        tracing::warn!(%error, segment = active.number, "a segment failed; going on in a new one");
        if let Some(segment) = self.shared.view().segments.get_mut(&active.number) {
            segment.failed = true;
        }
        active.give_back()
    }

    /// After a segment failed: its unacknowledged group goes whole into a new one, unsynced settlements to the queue.
    pub fn log_again(&mut self, written: Vec<Group>, unwritten: Option<Group>, error: WalError, now: Instant) {
        let mut controls = Vec::new();
        let mut again = None;
        for mut group in written.into_iter().chain(unwritten) {
            if group.has_messages() {
                // One group is in flight at a time.
                again = Some(group);
            } else {
                controls.append(&mut group.take_controls());
            }
        }
        self.put_back(controls, now);
        if let Some(group) = again {
            self.open(group, 1, Some(error), now);
        }
    }

    /// Makes the current segment complete, so that a new one may be begun.
    pub fn leave(&mut self, now: Instant) {
        let Some(active) = self.active.as_mut().filter(|active| !active.unsynced.is_empty()) else { return };
        match active.sync() {
            Ok(written) => self.acknowledge(written, now),
            Err(error) => {
                let mut groups = self.give_up(&error);
                let controls = groups.iter_mut().flat_map(Group::take_controls).collect();
                self.put_back(controls, now);
            }
        }
    }

    /// Opens a segment that begins with this group; so many attempts, each with a segment of its own. `before` is what went
    /// wrong with it already.
    pub fn open(&mut self, mut group: Group, attempts: u32, mut before: Option<WalError>, now: Instant) {
        let shared = Arc::clone(&self.shared);
        for attempt in 1..=attempts {
            let (checkpoint, previous, first_lsn) = {
                let view = shared.view();
                let segments: Vec<SegmentInfo> = view.segments.values().copied().collect();
                let checkpoint = checkpoint::bodies(&view.state, &segments, shared.options.frame_bytes);
                (checkpoint, segments.last().copied(), view.state.next_lsn)
            };
            let number = self.next_number;
            self.next_number += 1;
            let origin = Origin { number, first_lsn, last_acked: shared.durable(), previous: previous.as_ref() };
            let failed = match active::open(&shared, &origin, checkpoint, group) {
                Ok((active, written)) => return self.opened(active, written, first_lsn, now),
                Err(failed) => failed,
            };
            group = failed.group;
            if !failed.untouched {
                // What the new one's header says may be on the disk: then nothing behind it in the old one exists.
                self.active = None;
            }
            let full = matches!(failed.error, WalError::Full { .. });
            if full || attempt == attempts {
                // Whoever hears that it failed has to hear that it may be there, too.
                let says_less = failed.untouched || !failed.error.possibly_stored();
                let error = before.filter(|_| says_less).unwrap_or(failed.error);
                return self.fail(group, error, now);
            }
            tracing::warn!(error = %failed.error, segment = number, "a segment could not be opened; trying another");
            before.get_or_insert(failed.error);
        }
    }

    fn opened(&mut self, active: Active, written: Vec<Written>, first_lsn: Lsn, now: Instant) {
        let start = written.first().map_or(active.offset, |w| w.header.offset);
        let (number, last_lsn) = (active.number, first_lsn - 1);
        let info = SegmentInfo { number, first_lsn, last_lsn, start, end: start, failed: false };
        self.shared.view().segments.insert(number, info);
        self.active = Some(active);
        self.last_write = Some(now);
        self.sealed = false;
        // What was one of the two newest is so no more.
        self.recycle();
        self.acknowledge(written, now);
    }

    /// Nothing more can be done for a group: its callers get the error, its LSNs are burnt.
    pub fn fail(&mut self, mut group: Group, error: WalError, now: Instant) {
        let controls = group.take_controls();
        self.put_back(controls, now);
        self.retry_controls = Some(now + RETRY);
        let error = Arc::new(error);
        {
            let mut view = self.shared.view();
            if view.broken.is_none() {
                tracing::error!(%error, "the log cannot be written");
            }
            view.broken = Some(Trouble::from(&*error));
            view.state.burn_to(group.next_lsn());
        }
        {
            // Its routes are pending no more.
            let mut queue = self.shared.queue();
            (queue.in_hand, queue.routes.stale) = (0, true);
            queue.on_their_way = Arc::default();
        }
        self.publish_room();
        self.shared.changed();
        group.finish(Err(&error));
        // Told once all that they wait for is dealt with: what comes behind this group may yet go well.
        self.barriers.iter_mut().for_each(|barrier| barrier.failed = Some(Arc::clone(&error)));
    }
}
