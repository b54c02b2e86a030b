//! First attempts: handed over, made to wait for room, or stored at once.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use tokio::sync::oneshot;

use super::{Dispatcher, lock, route_hash, within};
use crate::clock;
use crate::drainer::entry::{Entry, Phase, Verdict};
use crate::drainer::mailbox::Mail;
use crate::drainer::slot::Slot;
use crate::drainer::window::Full;
use crate::drainer::words;
use crate::message::Outgoing;
use crate::outbox::Reservation;
use crate::transport::{Class, Failure, Handover, Recipient, Scope, Ticket};

/// How many slots with waiting messages are tried when room appears.
const PUMP: usize = 16;

impl Dispatcher {
    /// Sends a new message: hands it over, or stores it. The place in its lane is fixed when this returns.
    pub fn send(
        self: &Arc<Self>,
        message: Arc<Outgoing>,
        direct: bool,
        reservation: Option<Reservation>,
    ) -> oneshot::Receiver<Verdict> {
        let (waiter, verdict) = oneshot::channel();
        let deadline = clock::after(Instant::now(), self.first_attempt);
        let entry = Entry::first(self, message, deadline, waiter, reservation);
        let partition = self.transport.partition(&entry.message);
        entry.state().partition = partition;
        self.unsettled.fetch_add(1, Ordering::AcqRel);
        let mut slot = self.slot(entry.slot);
        if !direct || self.must_store(&slot, &entry, partition) {
            self.store(&mut slot, &entry);
            return verdict;
        }
        let has_room = !slot.has_waiting() && lock(&self.window).enter(self.load(&entry, partition)).is_ok();
        if has_room && self.hand_over(&mut slot, &entry) {
            return verdict;
        }
        // A broker that is slower than its callers: what memory does not hold, the disk does.
        if self.is_crowded() {
            self.store(&mut slot, &entry)
        } else {
            self.wait(&mut slot, &entry)
        }
        verdict
    }

    /// Whether a message would be stored at once, as far as can be told without holding its place.
    pub fn is_gated(&self, message: &Outgoing) -> bool {
        let partition = || self.transport.partition(message);
        self.gate.is_shut(|| route_hash(&message.route), partition, message.lane)
            || message.lane.is_some() && !self.slot(self.slot_of(message)).is_open()
    }

    /// Makes a first attempt wait for room in the window, behind all others.
    fn wait(&self, slot: &mut Slot, entry: &Arc<Entry>) {
        entry.state().phase = Phase::Waiting;
        slot.push_waiting(entry);
        self.busy.mark(entry.slot);
        self.waiting_messages.fetch_add(1, Ordering::AcqRel);
        self.waiting_bytes.fetch_add(entry.bytes(), Ordering::AcqRel);
        lock(&self.waiting).push_back(entry.slot);
    }

    /// A message that waited for room does so no more.
    pub(super) fn waited(&self, entry: &Entry) {
        self.waiting_messages.fetch_sub(1, Ordering::AcqRel);
        self.waiting_bytes.fetch_sub(entry.bytes(), Ordering::AcqRel);
    }

    /// Whether as much waits for room as may be in the window.
    fn is_crowded(&self) -> bool {
        let (messages, bytes) = (&self.waiting_messages, &self.waiting_bytes);
        bytes.load(Ordering::Acquire) >= self.limits.bytes || messages.load(Ordering::Acquire) >= self.limits.messages
    }

    /// Hands a first attempt, which the window counts, to the transport.
    ///
    /// False: its partition owns as much as the transport lets it, so it has to wait.
    fn hand_over(self: &Arc<Self>, slot: &mut Slot, entry: &Arc<Entry>) -> bool {
        slot.push(entry);
        self.busy.mark(entry.slot);
        entry.state().phase = Phase::Owned;
        let Err(failure) = self.submit(entry) else { return true };
        let partition = entry.state().partition;
        lock(&self.window).leave(self.load(entry, partition));
        entry.state().phase = Phase::Idle;
        if is_share_full(&failure) {
            slot.remove(entry);
            return false;
        }
        self.post_first_failure(entry, partition, &failure);
        self.store(slot, entry);
        slot.remove(entry);
        true
    }

    /// Hands a message to the transport; the lock of its slot is held. A transport that panics has taken it, unless it let
    /// go of the ticket.
    pub(super) fn submit(&self, entry: &Arc<Entry>) -> Result<(), Arc<Failure>> {
        self.counters.attempts.fetch_add(1, Ordering::Relaxed);
        let ticket = Ticket::new(Arc::clone(entry) as Arc<dyn Recipient>);
        let handover = Handover { message: Arc::clone(&entry.message), alone: entry.alone, ticket };
        let (submitted, lost) =
            within::watch(entry, || catch_unwind(AssertUnwindSafe(|| self.transport.submit(handover))));
        match submitted {
            Ok(Ok(())) => {}
            Ok(Err(refused)) => {
                refused.handover.ticket.withdraw();
                return Err(refused.failure);
            }
            Err(panic) => {
                tracing::error!(transport = %self.name, panic = words(&*panic), "the transport panicked in submit");
            }
        }
        lost.map_or(Ok(()), Err)
    }

    /// Hands over what waits, as far as there is room. Each round takes the first waiting message of a slot, so that
    /// two threads in here cannot turn a lane's messages round. What its partition has no room for goes to the back, so
    /// that one partition's messages keep no others from being tried.
    pub(super) fn pump(self: &Arc<Self>) {
        let mut without_room = Vec::new();
        while without_room.len() < PUMP {
            let Some(index) = lock(&self.waiting).pop_front() else { break };
            let mut slot = self.slot(index);
            let Some(entry) = slot.take_waiting() else { continue };
            let partition = self.transport.partition(&entry.message);
            {
                let mut state = entry.state();
                state.partition = partition;
                state.phase = Phase::Idle;
            }
            if self.must_store(&slot, &entry, partition) {
                self.waited(&entry);
                // In play meanwhile: where it stands says that those of its lane that still wait come after it.
                slot.push(&entry);
                self.store(&mut slot, &entry);
                slot.remove(&entry);
                continue;
            }
            let entered = lock(&self.window).enter(self.load(&entry, partition));
            if entered.is_ok() && self.hand_over(&mut slot, &entry) {
                self.waited(&entry);
                continue;
            }
            entry.state().phase = Phase::Waiting;
            slot.put_back_waiting(entry);
            if entered == Err(Full::Window) {
                lock(&self.waiting).push_front(index);
                break;
            }
            without_room.push(index);
        }
        if !without_room.is_empty() {
            lock(&self.waiting).extend(without_room);
        }
    }

    pub(super) fn must_store(&self, slot: &Slot, entry: &Entry, partition: Option<i32>) -> bool {
        (entry.lane().is_some() && !slot.is_open()) || self.gate.is_shut(|| entry.route, || partition, entry.lane())
    }

    pub(super) fn post_first_failure(&self, entry: &Entry, partition: Option<i32>, failure: &Arc<Failure>) {
        self.mailbox.post(Mail::FirstFailed {
            route: entry.message.route.clone(),
            partition,
            lane: entry.lane(),
            failure: Arc::clone(failure),
        });
    }
}

/// Whether a transport refused a message only because its partition owns as much as it may: a report makes room.
pub(super) fn is_share_full(failure: &Failure) -> bool {
    failure.class == Class::Transient && matches!(failure.scope, Scope::Partition(_))
}
