//! One thread gathers what is there, writes it as one frame, syncs, and tells the callers; meanwhile the next group
//! gathers.
//!
//! What becomes of a group when the disk fails: the segment is given up, never synced again, and the *whole* group is
//! written into a new one. If that fails too, its callers get the error and its LSNs are burnt. Settlements that were
//! not synced go back to the queue, and are logged again, whole; applying one twice changes nothing.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::active::{Active, Written};
use super::frame::{FRAME_HEADER, FrameKind, FrameView};
use super::queue::{self, Barrier, Group};
use super::settlements;
use super::shared::{Shared, TailFrame};
use super::workers::Turn;
use super::{BLOCK, Lsn, Settled, round_up};
use crate::planted::{self, Planted};

/// Settlement bytes in a frame, at most, of the room it has.
const CONTROL_SHARE: u64 = 4;

/// See the module.
pub(super) struct Committer {
    pub shared: Arc<Shared>,
    pub active: Option<Active>,
    pub next_number: u64,
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
        queue.on_their_way = group.as_ref().map(|group| Arc::clone(&group.routes)).unwrap_or_default();
        queue.expected = group.as_ref().map_or(queue.expected, |group| group.frame.len() + BLOCK as usize);
        let pressed = group.is_some() || queue.closing || !self.barriers.is_empty();
        let due = queue.controls_since.is_some_and(|since| since + shared.options.control_after <= now);
        let held = group.is_none() && !queue.closing && self.retry_controls.is_some_and(|retry| retry > now);
        let controls = if (pressed || due) && !held { self.take_controls(&mut queue) } else { Vec::new() };
        let (closing, abandoned) = (queue.closing, queue.abandoned);
        drop(queue);
        for (done, error) in rejected {
            done.call(Err(Arc::new(error)));
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
        let segments = view.segments.len() + 1;
        let most = shared.options.most_ranges(segments, queue.routes.bytes());
        let mut ranges = view.state.settled.len() + unsynced.map(|settled| settled.ranges.len()).sum::<usize>();
        let (mut taken, mut deferred, mut bytes) = (Vec::new(), Vec::new(), 0);
        let old = std::mem::take(&mut queue.deferred);
        let again = std::mem::take(&mut queue.again);
        let mut waiting = old.into_iter().chain(again).chain(std::mem::take(&mut queue.controls));
        for settled in waiting.by_ref() {
            let bound = settlements::control_bound(&settled);
            if bytes + bound > share && !taken.is_empty() {
                queue.again.push_back(settled);
                break;
            }
            let room = most.saturating_sub(ranges);
            let (fits, later) = settlements::within(settled, &view.state.settled, room);
            deferred.extend(later);
            if let Some(settled) = fits {
                bytes += bound;
                ranges += settled.ranges.len();
                taken.push(settled);
            }
        }
        queue.again.extend(waiting);
        queue.deferred = deferred;
        queue.routes.set_most(shared.options.most_route_bytes(segments, ranges));
        queue.in_hand = taken.iter().map(Settled::lsns).sum();
        if queue.again.is_empty() {
            self.settlements = queue.submitted;
            queue.controls_since = None;
        }
        taken
    }

    fn commit(&mut self, mut group: Option<Group>, controls: Vec<Settled>, now: Instant) {
        let first_control = || controls.first().map_or(0, settlements::control_bound);
        let least = group.as_ref().map_or_else(|| FRAME_HEADER as u64 + first_control(), Group::least);
        let room = self.active.as_ref().map_or(0, Active::room);
        let fits = round_up(least) <= room;
        if !fits {
            // First: what was not synced yet makes the next checkpoint longer.
            self.leave(now);
        }
        let room = if fits { room } else { self.fresh_room(group.is_some()) };
        if round_up(least) > room {
            // Nor would the next have room: trying again at once would never end.
            self.put_back(controls, now);
            let group = group.unwrap_or_else(|| Group::new(self.next_lsn()));
            return self.fail(group, self.crowded(), now);
        }
        if let Some(rest) = group.as_mut().and_then(|group| group.split(room)) {
            self.shared.queue().groups.push_front(rest);
        }
        let mut group = group.unwrap_or_else(|| Group::new(self.next_lsn()));
        let mut put_back = Vec::new();
        for settled in controls {
            if put_back.is_empty() && group.length() + settlements::control_bound(&settled) <= room {
                group.add_control(settled);
            } else {
                put_back.push(settled);
            }
        }
        self.put_back(put_back, now);
        if group.has_messages() || !group.controls.is_empty() {
            if fits { self.write(group, now) } else { self.open(group, 2, None, now) }
        }
        // Written, or back in the queue.
        self.shared.queue().in_hand = 0;
    }

    pub fn next_lsn(&self) -> Lsn {
        self.shared.view().state.next_lsn
    }

    fn write(&mut self, group: Group, now: Instant) {
        let durable = self.shared.durable();
        let urgent = group.has_messages() || self.unsynced_since.is_some_and(|since| self.is_overdue(since, now));
        let Some(active) = &mut self.active else { return self.open(group, 2, None, now) };
        if let Err(failed) = active.write(group, FrameKind::Group, durable) {
            let groups = self.give_up(&failed.error);
            return self.log_again(groups, Some(failed.group), failed.error, now);
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
                self.log_again(groups, None, error, now);
            }
        }
    }

    /// What was written is durable: takes it into the state, shows it to readers, tells the callers.
    pub fn acknowledge(&mut self, written: Vec<Written>, now: Instant) {
        let options = &self.shared.options;
        self.unsynced_since = None;
        self.retry_controls = None;
        let mut settled = false;
        let contents = {
            let mut view = self.shared.view();
            for frame in &written {
                let header = frame.header;
                let known = view.state.next_lsn;
                view.state.take(frame.change(known));
                if let Some(segment) = view.segments.get_mut(&header.segment) {
                    segment.end = header.next_offset();
                    segment.last_lsn = segment.last_lsn.max(header.next_lsn() - 1);
                }
                settled |= !frame.group.controls.is_empty();
                let (segment, offset, bytes) = (header.segment, header.offset, frame.bytes.clone());
                view.push_tail(TailFrame { segment, offset, bytes }, options.tail_bytes);
            }
            view.broken = None;
            view.state.contents(view.segments.len() + 1)
        };
        let last = written.iter().filter(|frame| frame.header.count > 0).map(|frame| frame.header.next_lsn() - 1).max();
        if let Some(last) = last {
            self.shared.durable.fetch_max(last, Ordering::AcqRel);
        }
        if settled {
            self.recycle();
            // What was deferred may fit now, and so may other routes.
            let mut queue = self.shared.queue();
            queue.routes.stale = true;
            queue.routes.set_most(options.most_route_bytes(contents.segments, contents.ranges));
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
    pub fn recycle(&self) {
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

    pub fn publish_room(&self) {
        let options = &self.shared.options;
        let (overhead, coming_free) = {
            let view = self.shared.view();
            let active = self.active.as_ref().map(|active| active.number);
            let contents = view.state.contents(view.segments.len() + 1).to_come();
            (contents.room(options.frame_bytes), view.coming_free(active))
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
