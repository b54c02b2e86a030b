//! Stored messages: handed over again, passed over, come back.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::send::is_share_full;
use super::{Dispatcher, lock};
use crate::drainer::entry::{Entry, Phase};
use crate::drainer::window::Full;
use crate::message::Outgoing;
use crate::planted::{self, Planted};
use crate::transport::Failure;
use crate::wal::{Lsn, Mark};

/// How an attempt to hand over a stored message went.
pub enum Attempt {
    /// The transport owns it, or nobody need take it any more.
    Owned,
    /// There is no room now, in all or for its partition; a report will make some.
    NoRoom(Full),
    /// Something of its lane failed and the drainer has not read of it yet, or the lane waits for reports.
    Later,
    /// The transport did not take it.
    Refused(Arc<Failure>),
}

/// A stored message that is to be handed over.
#[derive(Clone)]
pub struct Again {
    /// Its place in the log.
    pub lsn: Lsn,
    /// The message.
    pub message: Arc<Outgoing>,
    /// Whether its slot counts it as stored.
    pub counted: bool,
    /// To be tried alone.
    pub alone: bool,
}

impl Dispatcher {
    /// Hands a stored message over again, if its lane allows.
    pub fn again(self: &Arc<Self>, again: &Again) -> Attempt {
        let partition = again.message.message.partition.or_else(|| self.transport.partition(&again.message));
        let entry = Entry::stored(self, Arc::clone(&again.message), again.lsn, again.alone);
        let mut slot = self.slot(entry.slot);
        if let Some(lane) = entry.lane()
            && (slot.returning > 0 || slot.is_closed(lane) || (again.alone && slot.owns(lane)))
        {
            self.wants_room.store(true, Ordering::Release);
            return Attempt::Later;
        }
        // Asked once more where it cannot change: a first attempt is stored, and its number made known, under this lock.
        if self.is_owned(again.lsn) || self.outbox.is_settled(again.lsn) {
            return Attempt::Owned;
        }
        let load = self.load(&entry, partition);
        if lock(&self.window).enter(load).is_err() {
            self.wants_room.store(true, Ordering::Release);
            // What was reported between the two looks rang for nobody.
            if let Err(full) = lock(&self.window).enter(load) {
                return Attempt::NoRoom(full);
            }
        }
        {
            let mut state = entry.state();
            state.phase = Phase::Owned;
            state.partition = partition;
        }
        lock(&self.owned).insert(again.lsn);
        slot.push(&entry);
        if let Err(failure) = self.submit(&entry) {
            // It may have said another partition meanwhile.
            let partition = entry.state().partition;
            lock(&self.window).leave(self.load(&entry, partition));
            lock(&self.owned).remove(&again.lsn);
            slot.remove(&entry);
            if is_share_full(&failure) {
                self.wants_room.store(true, Ordering::Release);
                return Attempt::NoRoom(Full::Partition);
            }
            return Attempt::Refused(failure);
        }
        if planted::is(Planted::SettleBeforeDelivery) {
            self.outbox.settle(Mark::Delivered, again.lsn, &entry.message);
        }
        if let Some(lane) = entry.lane() {
            slot.stored -= u32::from(again.counted).min(slot.stored);
            if again.alone {
                slot.close(lane);
            }
        }
        Attempt::Owned
    }

    /// The transport has chosen a partition.
    pub(in crate::drainer) fn placed(&self, entry: &Entry, partition: i32) {
        let mut state = entry.state();
        if state.phase == Phase::Owned && state.partition != Some(partition) {
            lock(&self.window).relocate(self.load(entry, state.partition), partition);
            state.partition = Some(partition);
        }
    }

    /// Counts a message of the backlog that the drainer passes over: its lane is gated by it from now on.
    pub fn passed_over(&self, message: &Outgoing) {
        if message.lane.is_some() {
            self.slot(self.slot_of(message)).stored += 1;
        }
    }

    /// A message that its slot counted is settled without having been handed over, or is gone.
    pub fn uncount(&self, message: &Outgoing) {
        if message.lane.is_some() {
            let mut slot = self.slot(self.slot_of(message));
            slot.stored = slot.stored.saturating_sub(1);
        }
    }

    /// The drainer has read of a message that failed.
    pub fn returned(&self, entry: &Entry) {
        if entry.lane().is_some() {
            let mut slot = self.slot(entry.slot);
            slot.returning = slot.returning.saturating_sub(1);
        }
    }
}
