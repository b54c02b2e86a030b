//! Into the outbox, in the order of the lane; and what the disk says.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use tokio::sync::oneshot;

use super::{Dispatcher, lock};
use crate::drainer::entry::{Entry, Phase, Storing, Verdict};
use crate::drainer::mailbox::Mail;
use crate::drainer::slot::Slot;
use crate::error::SendErrorKind;
use crate::outbox::AppendResult;
use crate::planted::{self, Planted};

impl Dispatcher {
    /// Stores a message, and before it every message of its lane that is in play and not stored: LSN order within a
    /// lane is send order.
    pub(super) fn store(self: &Arc<Self>, slot: &mut Slot, entry: &Arc<Entry>) {
        if let Some(lane) = entry.lane() {
            for earlier in slot.unstored_before(lane, entry) {
                self.append(slot, &earlier);
            }
        }
        self.append(slot, entry);
    }

    fn append(self: &Arc<Self>, slot: &mut Slot, entry: &Arc<Entry>) {
        let mut state = entry.state();
        let waited = state.phase == Phase::Waiting;
        let owned = state.phase == Phase::Owned;
        if planted::is(Planted::DropWithFuture) && state.waiter.as_ref().is_some_and(oneshot::Sender::is_closed) {
            state.given_up = true;
            self.unsettled.fetch_sub(1, Ordering::AcqRel);
            return;
        }
        let (dispatcher, stored) = (Arc::clone(self), Arc::clone(entry));
        let lsn = self.outbox.append(&entry.message, move |result| dispatcher.appended(&stored, result));
        state.storing = Storing::Queued(lsn);
        // From here on the outbox counts it.
        self.unsettled.fetch_sub(1, Ordering::AcqRel);
        if state.waiter.is_some() {
            // Before the disk has it: from then on it may be delivered, and nobody would be told.
            let (watcher, fate) = oneshot::channel();
            lock(&self.watchers).insert(lsn, watcher);
            state.fate = Some(fate);
        }
        if owned {
            lock(&self.owned).insert(lsn);
            return;
        }
        state.phase = Phase::Idle;
        drop(state);
        if waited {
            slot.remove_waiting(entry);
            self.waited(entry);
        }
        if entry.lane().is_some() {
            slot.stored += 1;
        }
    }

    /// The log has written a message, or cannot. On the log's thread.
    pub(super) fn appended(self: &Arc<Self>, entry: &Arc<Entry>, result: AppendResult) {
        let mut slot = self.slot(entry.slot);
        let mut state = entry.state();
        let Storing::Queued(lsn) = state.storing else { return };
        state.reservation = None;
        match result {
            Ok(_) => {
                state.storing = Storing::Durable(lsn);
                self.counters.stored.fetch_add(1, Ordering::Relaxed);
                if let Some(position) = state.delivered {
                    drop(state);
                    drop(slot);
                    self.settle(entry, lsn, position);
                    return;
                }
                if let Some(fate) = state.fate.take() {
                    state.tell(Verdict::Stored(lsn, fate));
                }
            }
            Err(error) => {
                self.outbox.forget(lsn, &entry.message);
                lock(&self.watchers).take(lsn);
                state.storing = Storing::No;
                state.given_up = true;
                // What the transport owns may yet be delivered, and a log that failed half-way may find the message again
                // after a crash.
                let owned = state.phase == Phase::Owned;
                let possibly_delivered = state.possibly_delivered || owned || error.possibly_stored();
                let full = error.is_no_space() && !possibly_delivered;
                let verdict = Verdict::Rejected {
                    kind: if full { SendErrorKind::Full } else { SendErrorKind::Storage },
                    reason: format!("the broker did not take the message, and the outbox cannot: {error}"),
                    possibly_delivered,
                };
                state.tell(verdict);
                let idle = state.phase == Phase::Idle && state.delivered.is_none();
                drop(state);
                lock(&self.owned).remove(&lsn);
                if idle && entry.lane().is_some() {
                    slot.stored = slot.stored.saturating_sub(1);
                }
            }
        }
    }

    /// Stores first attempts that are late at `now`, or (`None`) all that are not stored.
    pub fn store_late(self: &Arc<Self>, now: Option<Instant>) {
        for index in self.busy.marked() {
            let mut slot = self.slot(index);
            let unstored = slot.all_unstored();
            if unstored.is_empty() {
                self.busy.unmark(index);
                continue;
            }
            for entry in unstored {
                let late = now.is_none_or(|now| entry.deadline.is_some_and(|deadline| deadline <= now));
                let owned = entry.state().phase == Phase::Owned;
                if !late {
                    continue;
                }
                // Most of what was sent before it is late, too, and was stored just now.
                self.store(&mut slot, &entry);
                if owned && now.is_some() {
                    self.mailbox.post(Mail::Late { entry: Arc::clone(&entry) });
                }
            }
        }
        self.pump();
    }
}
