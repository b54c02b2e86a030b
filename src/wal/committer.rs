//! One thread gathers what is there, writes it as one frame, syncs, and tells the callers; meanwhile the next group
//! gathers.
//!
//! What becomes of a group when the disk fails: the segment is given up, never synced again, and the *whole* group is
//! written into a new one. If that fails too, its callers get the error and its LSNs are burnt. Settlements that were
//! not synced go back to the queue, and are logged again, whole; applying one twice changes nothing.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::active::{self, Active, Origin, Written};
use super::error::WalError;
use super::frame::{FRAME_HEADER, FrameKind, FrameView};
use super::log::Turn;
use super::queue::{self, Barrier, Group};
use super::shared::{Shared, TailFrame, Trouble};
use super::state::SegmentInfo;
use super::{BLOCK, Lsn, Settled, round_up};
use crate::planted::{self, Planted};

/// After settlements could not be written, how long until they are tried again without company.
const RETRY: Duration = Duration::from_secs(1);
/// Settlement bytes in a frame, at most, of the room it has.
const CONTROL_SHARE: u64 = 4;

/// See the module.
pub(super) struct Committer {
    pub shared: Arc<Shared>,
    pub active: Option<Active>,
    next_number: u64,
    pub last_write: Option<Instant>,
    /// The oldest settlement frame that was written and not synced.
    pub unsynced_since: Option<Instant>,
    /// Nothing but a seal follows the last frame, or nothing was written yet.
    pub sealed: bool,
    pub retry_controls: Option<Instant>,
    /// Settlements up to this one were taken out of the queue.
    pub settlements: u64,
    pub barriers: Vec<Barrier>,
}

/// What a turn found in the queue.
struct Intake {
    group: Option<Group>,
    controls: Vec<Settled>,
    closing: bool,
    abandoned: bool,
}

impl Committer {
    pub fn new(shared: Arc<Shared>, next_number: u64) -> Self {
        #[cfg_attr(not(feature = "planted"), allow(unused_mut, reason = "the planted fault changes it"))]
        let mut committer = Self {
            shared,
            active: None,
            next_number,
            last_write: None,
            unsynced_since: None,
            sealed: true,
            retry_controls: None,
            settlements: 0,
            barriers: Vec::new(),
        };
        #[cfg(feature = "planted")]
        if planted::is(Planted::WriteIntoFound) {
            let last = committer.shared.view().segments.values().next_back().copied();
            committer.active = last.and_then(|last| Active::found(&committer.shared, last));
        }
        // What was settled before, too: a full log takes nothing, so that no settlement would ever come to do it.
        committer.recycle();
        committer
    }

    /// Does what is due: at most one frame, and one seal.
    pub fn tick(&mut self, now: Instant) -> Turn {
        let intake = self.take(now);
        if intake.abandoned {
            self.abandon(intake.group);
            return Turn::Done;
        }
        let worked = intake.group.is_some() || !intake.controls.is_empty();
        if worked {
            self.commit(intake.group, intake.controls, now);
        }
        self.settle_barriers(now, intake.closing);
        if intake.closing && self.is_drained() {
            // Its sync may make room for settlements that were deferred: then they are written before the end.
            if !self.sealed {
                self.seal(now);
            }
            if !self.is_drained() {
                return Turn::Again;
            }
            self.finish(now);
            return Turn::Done;
        }
        // A seal that failed leaves whoever waits for it; without a segment there is nothing to seal.
        if worked || !intake.closing && self.is_ready() {
            return Turn::Again;
        }
        self.idle(now)
    }

    fn take(&mut self, now: Instant) -> Intake {
        let shared = Arc::clone(&self.shared);
        let mut queue = shared.queue();
        queue.wake = false;
        let rejected = std::mem::take(&mut queue.rejected);
        self.barriers.append(&mut queue.barriers);
        let group = queue.groups.pop_front();
        queue.expected = group.as_ref().map_or(queue.expected, |group| group.frame.len() + BLOCK as usize);
        let pressed = group.is_some() || queue.closing || !self.barriers.is_empty();
        let due = queue.controls_since.is_some_and(|since| since + shared.options.control_after <= now);
        let held = group.is_none() && !queue.closing && self.retry_controls.is_some_and(|retry| retry > now);
        let controls = if (pressed || due) && !held { self.take_controls(&mut queue) } else { Vec::new() };
        let (closing, abandoned) = (queue.closing, queue.abandoned);
        drop(queue);
        for (done, error) in rejected {
            queue::call(done, Err(Arc::new(error)));
        }
        Intake { group, controls, closing, abandoned }
    }

    /// Takes settlements for one frame, deferring those that would make more ranges than there may be.
    fn take_controls(&mut self, queue: &mut queue::Queue) -> Vec<Settled> {
        let shared = Arc::clone(&self.shared);
        let share = u64::from(shared.options.frame_bytes) / CONTROL_SHARE;
        let view = shared.view();
        let unsynced =
            self.active.iter().flat_map(|active| &active.unsynced).flat_map(|written| &written.group.controls);
        let mut ranges = view.state.settled.len() + unsynced.map(|settled| settled.ranges.len()).sum::<usize>();
        let (mut taken, mut deferred, mut bytes) = (Vec::new(), Vec::new(), 0);
        let old = std::mem::take(&mut queue.deferred);
        let mut waiting = old.into_iter().chain(std::mem::take(&mut queue.controls));
        for settled in waiting.by_ref() {
            let bound = queue::control_bound(&settled);
            if bytes + bound > share && !taken.is_empty() {
                queue.controls.push_back(settled);
                break;
            }
            let room = shared.options.max_ranges.saturating_sub(ranges);
            let (fits, later) = queue::within(settled, &view.state.settled, room);
            deferred.extend(later);
            if let Some(settled) = fits {
                bytes += bound;
                ranges += settled.ranges.len();
                taken.push(settled);
            }
        }
        queue.controls.extend(waiting);
        queue.deferred = deferred;
        queue.in_hand = taken.iter().map(Settled::lsns).sum();
        if queue.controls.is_empty() {
            self.settlements = queue.submitted;
            queue.controls_since = None;
        }
        taken
    }

    fn commit(&mut self, mut group: Option<Group>, controls: Vec<Settled>, now: Instant) {
        let least = group.as_ref().map_or(FRAME_HEADER as u64 + u64::from(BLOCK), Group::least);
        let room = self.active.as_ref().map_or(0, Active::room);
        let fits = round_up(least) <= room;
        let room = if fits { room } else { self.fresh_room() };
        if let Some(rest) = group.as_mut().and_then(|group| group.split(room)) {
            self.shared.queue().groups.push_front(rest);
        }
        let mut group = group.unwrap_or_else(|| Group::new(self.next_lsn()));
        let mut put_back = Vec::new();
        for settled in controls {
            if put_back.is_empty() && group.length() + queue::control_bound(&settled) <= room {
                group.add_control(settled);
            } else {
                put_back.push(settled);
            }
        }
        self.put_back(put_back, now);
        if group.has_messages() || !group.controls.is_empty() {
            if fits { self.write(group, now) } else { self.rotate(group, now) }
        }
        // Written, or back in the queue.
        self.shared.queue().in_hand = 0;
    }

    /// What a frame may take in a segment that is opened now.
    fn fresh_room(&self) -> u64 {
        let options = &self.shared.options;
        let view = self.shared.view();
        let overhead = view.state.overhead(view.segments.len() + 1, options.frame_bytes);
        u64::from(options.segment_bytes).saturating_sub(overhead + u64::from(BLOCK))
    }

    pub fn next_lsn(&self) -> Lsn {
        self.shared.view().state.next_lsn
    }

    fn write(&mut self, group: Group, now: Instant) {
        let durable = self.shared.durable();
        let urgent = group.has_messages() || self.unsynced_since.is_some_and(|since| self.is_overdue(since, now));
        let Some(active) = &mut self.active else { return self.rotate(group, now) };
        if let Err(failed) = active.write(group, FrameKind::Group, durable) {
            let groups = self.give_up(&failed.error);
            return self.log_again(groups, Some(failed.group), now);
        }
        // What is written outlives a kill; nobody need wait for the sync.
        self.shared.queue().in_hand = 0;
        self.last_write = Some(now);
        self.sealed = false;
        self.unsynced_since.get_or_insert(now);
        if urgent {
            self.sync(now);
        } else if planted::is(Planted::RecycleOnLedgersWord) {
            self.recycle_unsynced();
        }
    }

    pub fn is_overdue(&self, since: Instant, now: Instant) -> bool {
        since + self.shared.options.control_sync <= now
    }

    /// Makes durable what was written; if that fails, logs it again in a new segment.
    pub fn sync(&mut self, now: Instant) {
        let Some(active) = &mut self.active else { return };
        if planted::is(Planted::AckBeforeSync) {
            let written = std::mem::take(&mut active.unsynced);
            self.acknowledge(written, now);
        }
        let Some(active) = &mut self.active else { return };
        match active.sync() {
            Ok(written) => self.acknowledge(written, now),
            Err(error) => {
                let groups = self.give_up(&error);
                self.log_again(groups, None, now);
            }
        }
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
    pub fn log_again(&mut self, written: Vec<Group>, unwritten: Option<Group>, now: Instant) {
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
            self.open(group, 1, now);
        }
    }

    /// Moves on to a new segment, once the current one is completely synced.
    fn rotate(&mut self, group: Group, now: Instant) {
        if let Some(active) = &mut self.active {
            match active.sync() {
                Ok(written) => self.acknowledge(written, now),
                Err(error) => {
                    let mut groups = self.give_up(&error);
                    let controls = groups.iter_mut().flat_map(Group::take_controls).collect();
                    self.put_back(controls, now);
                }
            }
        }
        self.open(group, 2, now);
    }

    /// Opens a segment that begins with this group; so many attempts, each with a segment of its own.
    fn open(&mut self, mut group: Group, attempts: u32, now: Instant) {
        let shared = Arc::clone(&self.shared);
        for attempt in 1..=attempts {
            let (checkpoint, previous, first_lsn) = {
                let view = shared.view();
                let segments: Vec<SegmentInfo> = view.segments.values().copied().collect();
                let checkpoint = view.state.checkpoint(&segments, shared.options.frame_bytes);
                (checkpoint, segments.last().copied(), view.state.next_lsn)
            };
            let number = self.next_number;
            self.next_number += 1;
            let origin = Origin { number, first_lsn, last_acked: shared.durable(), previous: previous.as_ref() };
            match active::open(&shared, &origin, checkpoint, group) {
                Ok((active, written)) => {
                    let start = written.first().map_or(active.offset, |w| w.header.offset);
                    let last_lsn = first_lsn - 1;
                    let info = SegmentInfo { number, first_lsn, last_lsn, start, end: start, failed: false };
                    shared.view().segments.insert(number, info);
                    self.active = Some(active);
                    self.last_write = Some(now);
                    self.sealed = false;
                    // What was one of the two newest is so no more.
                    self.recycle();
                    return self.acknowledge(written, now);
                }
                Err(failed) => {
                    let error = failed.error;
                    group = failed.group;
                    let full = matches!(error, WalError::Full { .. });
                    if full || attempt == attempts {
                        self.active = None;
                        return self.fail(group, error, now);
                    }
                    tracing::warn!(%error, segment = number, "a segment could not be opened; trying another");
                }
            }
        }
    }

    /// Nothing more can be done for a group: its callers get the error, its LSNs are burnt.
    fn fail(&mut self, mut group: Group, error: WalError, now: Instant) {
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
        self.publish_room();
        self.shared.changed();
        group.finish(Err(&error));
        // Told once all that they wait for is dealt with: what comes behind this group may yet go well.
        self.barriers.iter_mut().for_each(|barrier| barrier.failed = Some(Arc::clone(&error)));
    }

    /// What was written is durable: takes it into the state, shows it to readers, tells the callers.
    fn acknowledge(&mut self, written: Vec<Written>, now: Instant) {
        let options = &self.shared.options;
        self.unsynced_since = None;
        self.retry_controls = None;
        let mut settled = false;
        {
            let mut view = self.shared.view();
            for frame in &written {
                let header = frame.header;
                if let Err(error) = view.state.apply(&FrameView::trusted(header, &frame.bytes)) {
                    tracing::error!(%error, segment = header.segment, "a frame of our own cannot be read back");
                }
                if let Some(segment) = view.segments.get_mut(&header.segment) {
                    segment.end = header.next_offset();
                    segment.last_lsn = segment.last_lsn.max(header.next_lsn() - 1);
                }
                settled |= !frame.group.controls.is_empty();
                let (segment, offset, bytes) = (header.segment, header.offset, frame.bytes.clone());
                view.push_tail(TailFrame { segment, offset, bytes }, options.tail_bytes);
            }
            view.broken = None;
        }
        let last = written.iter().filter(|frame| frame.header.count > 0).map(|frame| frame.header.next_lsn() - 1).max();
        if let Some(last) = last {
            self.shared.durable.fetch_max(last, Ordering::AcqRel);
        }
        if settled {
            self.recycle();
            // What was deferred may fit now.
            let mut queue = self.shared.queue();
            if !queue.deferred.is_empty() {
                queue.controls_since.get_or_insert(now);
            }
        }
        self.publish_room();
        self.shared.changed();
        for frame in written {
            frame.group.finish(Ok(()));
        }
    }

    /// Gives segments back in which nothing is pending, by what is durable in the log.
    ///
    /// The two newest stay. If the header or the checkpoint of the newest is damaged, recovery reads its predecessor
    /// and what is left of the newest; every settlement a segment was recycled on lies in one of the two, in a frame
    /// or in the predecessor's checkpoint, and what a checkpoint that is lost said is said by the frames before it.
    fn recycle(&self) {
        let mut gone = Vec::new();
        {
            let mut view = self.shared.view();
            let newest: Vec<u64> = view.segments.keys().rev().take(2).copied().collect();
            let view = &mut *view;
            view.segments.retain(|number, segment| {
                let needed =
                    newest.contains(number) || !view.state.settled.contains_range(segment.first_lsn, segment.last_lsn);
                if !needed {
                    gone.push((*number, segment.failed));
                }
                needed
            });
        }
        if !gone.is_empty() {
            let mut space = self.shared.space();
            gone.into_iter().for_each(|(number, failed)| space.recycle(number, failed));
        }
    }

    /// Recycles by what is written and not yet synced: what must never be done.
    fn recycle_unsynced(&self) {
        for frame in self.active.iter().flat_map(|active| &active.unsynced) {
            // A frame of our own, and a planted fault: what it cannot apply it leaves.
            let _ = self.shared.view().state.apply(&FrameView::trusted(frame.header, &frame.bytes));
        }
        self.recycle();
    }

    fn publish_room(&self) {
        let options = &self.shared.options;
        let (overhead, coming_free) = {
            let view = self.shared.view();
            let active = self.active.as_ref().map(|active| active.number);
            (view.state.overhead(view.segments.len() + 1, options.frame_bytes), view.coming_free(active))
        };
        let room = self.active.as_ref().map_or(0, Active::room);
        self.shared.space().set_room(room, overhead, coming_free);
        self.shared.prepare.notify_one();
    }

    pub fn put_back(&mut self, controls: Vec<Settled>, now: Instant) {
        if !controls.is_empty() {
            self.settlements = 0;
            self.shared.queue().put_back(controls, now);
        }
    }
}
