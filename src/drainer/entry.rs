//! A message in play: what the producer waits for, what the transport owns, what the log is told.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::oneshot;

use crate::drainer::{Dispatcher, dispatcher, route_hash};
use crate::error::SendErrorKind;
use crate::message::{Lane, Outgoing, Position};
use crate::outbox::Reservation;
use crate::receipt::Fate;
use crate::transport::{Outcome, Recipient};
use crate::wal::Lsn;

/// What whoever waits for `send` is told.
#[derive(Debug)]
pub enum Verdict {
    /// The broker has it.
    Delivered(Position),
    /// The disk has it; the fate is told when it is known.
    Stored(Lsn, oneshot::Receiver<Fate>),
    /// Nobody has it for certain.
    Rejected {
        /// The kind of error.
        kind: SendErrorKind,
        /// Why.
        reason: String,
        /// The broker, or a log that failed half-way, may have it all the same.
        possibly_delivered: bool,
    },
}

/// Who holds a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// It waits in its slot for room in the window.
    Waiting,
    /// The transport owns it.
    Owned,
    /// Neither.
    Idle,
}

/// How far a message is on its way to the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storing {
    /// It is not.
    No,
    /// The log took it.
    Queued(Lsn),
    /// The disk has it.
    Durable(Lsn),
}

/// What changes about an entry. Only touched with the lock of its slot held.
#[derive(Debug)]
pub struct EntryState {
    /// Who holds it.
    pub phase: Phase,
    /// How far it is on its way to the disk.
    pub storing: Storing,
    /// It was delivered while the log still wrote it: settled as soon as that is done.
    pub delivered: Option<Position>,
    /// The caller was told that it was not accepted; what the transport still reports changes nothing.
    pub given_up: bool,
    /// The broker may have it.
    pub possibly_delivered: bool,
    /// Who waits for `send`.
    pub waiter: Option<oneshot::Sender<Verdict>>,
    /// What becomes of it once it is stored, for whoever waits.
    pub fate: Option<oneshot::Receiver<Fate>>,
    /// The space that storing it would take.
    pub reservation: Option<Reservation>,
    /// Its partition, as it was known at the hand-over.
    pub partition: Option<i32>,
}

/// A message in play.
pub struct Entry {
    /// The message.
    pub message: Arc<Outgoing>,
    /// The slot of its lane.
    pub slot: usize,
    /// Its route's hash.
    pub route: u64,
    /// When its first attempt is late. Stored messages have no deadline.
    pub deadline: Option<Instant>,
    /// It is being tried alone.
    pub alone: bool,
    dispatcher: Arc<Dispatcher>,
    state: Mutex<EntryState>,
}

impl Entry {
    /// A first attempt.
    pub fn first(
        dispatcher: &Arc<Dispatcher>,
        message: Arc<Outgoing>,
        deadline: Instant,
        waiter: oneshot::Sender<Verdict>,
        reservation: Option<Reservation>,
    ) -> Arc<Self> {
        let state = EntryState { waiter: Some(waiter), reservation, ..EntryState::new(Storing::No) };
        Self::new(dispatcher, message, Some(deadline), false, state)
    }

    /// A message that is read back from the log.
    pub fn stored(dispatcher: &Arc<Dispatcher>, message: Arc<Outgoing>, lsn: Lsn, alone: bool) -> Arc<Self> {
        Self::new(dispatcher, message, None, alone, EntryState::new(Storing::Durable(lsn)))
    }

    fn new(
        dispatcher: &Arc<Dispatcher>,
        message: Arc<Outgoing>,
        deadline: Option<Instant>,
        alone: bool,
        state: EntryState,
    ) -> Arc<Self> {
        let slot = dispatcher.slot_of(&message);
        let route = route_hash(&message.route);
        let dispatcher = Arc::clone(dispatcher);
        Arc::new(Self { message, slot, route, deadline, alone, dispatcher, state: Mutex::new(state) })
    }

    /// Who keeps it in order.
    pub fn dispatcher(&self) -> &Arc<Dispatcher> {
        &self.dispatcher
    }

    /// The lane, if it has an order to keep.
    pub fn lane(&self) -> Option<Lane> {
        self.message.lane
    }

    /// Its bytes, as the window counts them.
    pub fn bytes(&self) -> usize {
        self.message.message.size()
    }

    /// The state; the caller holds the lock of the slot.
    pub fn state(&self) -> MutexGuard<'_, EntryState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl EntryState {
    fn new(storing: Storing) -> Self {
        Self {
            phase: Phase::Idle,
            storing,
            delivered: None,
            given_up: false,
            possibly_delivered: false,
            waiter: None,
            fate: None,
            reservation: None,
            partition: None,
        }
    }

    /// Tells whoever waits, once.
    pub fn tell(&mut self, verdict: Verdict) {
        if let Some(waiter) = self.waiter.take() {
            // Nobody may be watching any more; the message goes its way all the same.
            let _ = waiter.send(verdict);
        }
    }
}

impl Recipient for Entry {
    fn report(self: Arc<Self>, outcome: Outcome) {
        if let Some(outcome) = dispatcher::take_from_within_submit(&self, outcome) {
            self.dispatcher().report(&self, outcome);
        }
    }

    fn placed(&self, partition: i32) {
        self.dispatcher().placed(self, partition);
    }
}
