//! What the transport says about what it owned.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Dispatcher, lock};
use crate::drainer::entry::{Entry, Phase, Storing, Verdict};
use crate::drainer::mailbox::Mail;
use crate::drainer::slot::Slot;
use crate::message::Position;
use crate::planted::{self, Planted};
use crate::receipt::Fate;
use crate::transport::{Failure, Outcome};
use crate::wal::{Lsn, Mark};

impl Dispatcher {
    /// Takes the transport's report on a message.
    pub(in crate::drainer) fn report(self: &Arc<Self>, entry: &Arc<Entry>, outcome: Outcome) {
        {
            let mut slot = self.slot(entry.slot);
            let (partition, storing) = {
                let mut state = entry.state();
                state.phase = Phase::Idle;
                (state.partition, state.storing)
            };
            // Before it leaves the window: in between it would count neither as owned nor as delivered and not recorded.
            if let (Outcome::Delivered(_), Storing::Durable(lsn)) = (&outcome, storing) {
                self.outbox.settle(Mark::Delivered, lsn, &entry.message);
            }
            lock(&self.window).leave(self.load(entry, partition));
            match outcome {
                Outcome::Delivered(position) => self.delivered(entry, position),
                Outcome::Failed { failure, possibly_delivered } => {
                    self.failed(&mut slot, entry, &failure, possibly_delivered);
                }
            }
            // Only now: where it stood says which messages of its lane are stored before it.
            slot.remove(entry);
            if let Some(lane) = entry.lane() {
                slot.reopen(lane);
            }
        }
        self.pump();
        if self.wants_room.swap(false, Ordering::AcqRel) {
            self.mailbox.kick();
        }
    }

    /// What is durable has been settled already.
    fn delivered(self: &Arc<Self>, entry: &Arc<Entry>, position: Position) {
        let mut state = entry.state();
        let partition = state.partition;
        match state.storing {
            Storing::No => {
                self.counters.delivered.fetch_add(1, Ordering::Relaxed);
                state.reservation = None;
                state.tell(Verdict::Delivered(position));
                if !state.given_up {
                    self.unsettled.fetch_sub(1, Ordering::AcqRel);
                }
            }
            Storing::Queued(lsn) if planted::is(Planted::SettleBeforeSync) => {
                state.delivered = Some(position);
                state.tell(Verdict::Delivered(position));
                drop(state);
                self.settle(entry, lsn, position);
                return;
            }
            Storing::Queued(_) => {
                // Settled as soon as the disk has it: `appended` looks here.
                state.delivered = Some(position);
                state.tell(Verdict::Delivered(position));
            }
            Storing::Durable(lsn) => {
                drop(state);
                self.recorded(entry, lsn, position);
                return;
            }
        }
        drop(state);
        if self.gate.is_blocked(entry.route, partition) {
            self.mailbox.post(Mail::Passed { route: entry.route, partition });
        }
    }

    pub(super) fn failed(
        self: &Arc<Self>,
        slot: &mut Slot,
        entry: &Arc<Entry>,
        failure: &Arc<Failure>,
        possibly: bool,
    ) {
        if let Some(lane) = entry.lane() {
            slot.close(lane);
        }
        let mut state = entry.state();
        state.possibly_delivered |= possibly;
        match state.storing {
            Storing::No if state.given_up => {}
            Storing::No => {
                let partition = state.partition;
                drop(state);
                self.post_first_failure(entry, partition, failure);
                self.store(slot, entry);
            }
            Storing::Queued(lsn) | Storing::Durable(lsn) => {
                drop(state);
                if entry.lane().is_some() {
                    slot.stored += 1;
                    slot.returning += 1;
                }
                lock(&self.owned).remove(&lsn);
                let mail = Mail::Returned { lsn, entry: Arc::clone(entry), failure: Arc::clone(failure) };
                self.mailbox.post(mail);
            }
        }
    }

    /// A durable message is delivered.
    pub(super) fn settle(&self, entry: &Arc<Entry>, lsn: Lsn, position: Position) {
        self.outbox.settle(Mark::Delivered, lsn, &entry.message);
        self.recorded(entry, lsn, position);
    }

    /// Its settlement is on its way to the log.
    fn recorded(&self, entry: &Arc<Entry>, lsn: Lsn, position: Position) {
        lock(&self.owned).remove(&lsn);
        self.counters.redelivered.fetch_add(1, Ordering::Relaxed);
        self.fate(lsn, || Fate::Delivered(position));
        self.mailbox.post(Mail::Settled { lsn, entry: Arc::clone(entry), position });
    }

    /// Whoever watches one of these hears that nobody will say what became of it.
    pub fn forget_watchers(&self, lsns: RangeInclusive<Lsn>) {
        lock(&self.watchers).drop_all(lsns);
    }

    /// Tells whoever watches a stored message.
    pub fn fate(&self, lsn: Lsn, fate: impl FnOnce() -> Fate) {
        if let Some(watcher) = lock(&self.watchers).take(lsn) {
            let _ = watcher.send(fate());
        }
    }
}
