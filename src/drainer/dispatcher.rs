//! The way of a message through a transport: gate, first attempt, store, report.
//!
//! One dispatcher a transport. It keeps the rules of lanes under the lock of a slot: what is handed over, stored
//! and reported of one lane happens there in one order. Locks are taken in the order slot, entry, then any one of
//! window, owned set, gate, mailbox or log; nothing is called back with the latter held. It never blocks.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::entry::{Entry, Phase, Storing, Verdict};
use super::gate::Gate;
use super::mailbox::{Mail, Mailbox};
use super::slot::Slot;
use super::view::View;
use super::window::{Full, Load, Window, WindowLimits};
use crate::error::SendErrorKind;
use crate::message::{Lane, Outgoing, Position, Route};
use crate::outbox::{AppendResult, Outbox, Reservation};
use crate::receipt::Fate;
use crate::stats::Event;
use crate::transport::{Class, Failure, Handover, Outcome, Scope, Ticket, Transport};
use crate::wal::{Lsn, Mark};

/// Fewer watchers than this are not worth a sweep.
const SWEEP_WATCHERS: usize = 1_024;
/// How many slots with waiting messages are tried when room appears.
const PUMP: usize = 16;

/// What a dispatcher is made of.
pub struct DispatcherOptions {
    /// The transport's name.
    pub name: Arc<str>,
    /// The transport.
    pub transport: Arc<dyn Transport>,
    /// Where messages are stored.
    pub outbox: Arc<Outbox>,
    /// A power of two.
    pub slots: usize,
    /// The bounds of what is owned.
    pub window: WindowLimits,
    /// How long a first attempt may take.
    pub first_attempt: Duration,
    /// Who hears of what happens.
    pub events: Arc<dyn Fn(Event) + Send + Sync>,
}

/// Counters since the start.
#[derive(Debug, Default)]
pub struct Counters {
    /// Hand-overs to the transport.
    pub attempts: AtomicU64,
    /// Delivered at the first attempt.
    pub delivered: AtomicU64,
    /// Stored.
    pub stored: AtomicU64,
    /// Delivered from the outbox.
    pub redelivered: AtomicU64,
    /// Went to the dead letters.
    pub dead: AtomicU64,
}

/// How an attempt to hand over a stored message went.
#[derive(Debug)]
pub enum Attempt {
    /// The transport owns it.
    Owned,
    /// There is no room now; a report will make some.
    NoRoom,
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

/// Keeps order between first attempts, the log and the drainer.
pub struct Dispatcher {
    name: Arc<str>,
    transport: Arc<dyn Transport>,
    outbox: Arc<Outbox>,
    slots: Box<[Mutex<Slot>]>,
    busy: Busy,
    window: Mutex<Window>,
    owned: Mutex<HashSet<Lsn>>,
    waiting: Mutex<VecDeque<usize>>,
    watchers: Mutex<Watchers>,
    gate: Gate,
    mailbox: Mailbox,
    first_attempt: Duration,
    events: Arc<dyn Fn(Event) + Send + Sync>,
    routes: Mutex<HashMap<Route, u64>>,
    view: Mutex<View>,
    /// Counters since the start.
    pub counters: Counters,
}

impl Dispatcher {
    /// A dispatcher that keeps new messages of the `backlog` routes behind what a restart found.
    pub fn new(options: DispatcherOptions, backlog: HashSet<u64>) -> Arc<Self> {
        Arc::new(Self {
            name: options.name,
            transport: options.transport,
            outbox: options.outbox,
            slots: (0..options.slots).map(|_| Mutex::default()).collect(),
            busy: Busy::new(options.slots),
            window: Mutex::new(Window::new(options.window)),
            owned: Mutex::default(),
            waiting: Mutex::default(),
            watchers: Mutex::default(),
            gate: Gate::new(backlog),
            mailbox: Mailbox::default(),
            first_attempt: options.first_attempt,
            events: options.events,
            routes: Mutex::default(),
            view: Mutex::default(),
            counters: Counters::default(),
        })
    }

    /// The transport's name.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// The transport.
    pub fn transport(&self) -> &Arc<dyn Transport> {
        &self.transport
    }

    /// Where messages are stored.
    pub fn outbox(&self) -> &Arc<Outbox> {
        &self.outbox
    }

    /// What the drainer is told.
    pub fn mailbox(&self) -> &Mailbox {
        &self.mailbox
    }

    /// What is stored at once.
    pub fn gate(&self) -> &Gate {
        &self.gate
    }

    /// What the transport owns: messages in all, and of those the ones that came from the log.
    pub fn in_flight(&self) -> (usize, usize) {
        let window = lock(&self.window);
        (window.messages(), window.drained())
    }

    /// Messages that the transport owns, or that wait for room in the window.
    pub fn unsettled(&self) -> usize {
        lock(&self.window).messages() + lock(&self.waiting).len()
    }

    /// Messages that the transport owns of one partition.
    pub fn owned_of_partition(&self, route: u64, partition: i32) -> usize {
        lock(&self.window).of_partition(route, partition)
    }

    /// Whether the transport owns a stored message, or its settlement is still on its way.
    pub fn is_owned(&self, lsn: Lsn) -> bool {
        lock(&self.owned).contains(&lsn)
    }

    /// Why routes wait, as the drainer last told it.
    pub fn view(&self) -> View {
        lock(&self.view).clone()
    }

    pub(super) fn set_view(&self, view: View) {
        *lock(&self.view) = view;
    }

    /// Tells whoever listens.
    pub fn tell(&self, event: Event) {
        (self.events)(event);
    }

    /// The slot of a message's lane; messages without order are spread.
    pub fn slot_of(&self, message: &Outgoing) -> usize {
        let hash = message.lane.map_or(message.id.number(), |lane| lane.hash() as u64);
        (hash as usize) & (self.slots.len() - 1)
    }

    /// The hash of a route, as the blocks and the ledger use it.
    pub fn route_hash(&self, route: &Route) -> u64 {
        let mut routes = lock(&self.routes);
        match routes.get(route) {
            Some(hash) => *hash,
            None => *routes.entry(route.clone()).or_insert_with(|| route_hash(route)),
        }
    }

    /// Slots whose new messages are stored first.
    pub fn gated_slots(&self) -> usize {
        self.slots.iter().filter(|slot| lock(slot).is_gated()).count()
    }

    /// Sends a new message: hands it over, or stores it. The place in its lane is fixed when this returns.
    pub fn send(
        self: &Arc<Self>,
        message: Arc<Outgoing>,
        direct: bool,
        reservation: Option<Reservation>,
    ) -> oneshot::Receiver<Verdict> {
        let (waiter, verdict) = oneshot::channel();
        let deadline = Instant::now() + self.first_attempt;
        let entry = Entry::first(self, message, deadline, waiter, reservation);
        let partition = self.transport.partition(&entry.message);
        entry.state().partition = partition;
        let mut slot = self.slot(entry.slot);
        if !direct || self.must_store(&slot, &entry, partition) {
            self.store(&mut slot, &entry);
        } else if slot.first_waiting().is_some() || lock(&self.window).enter(self.load(&entry, partition)).is_err() {
            entry.state().phase = Phase::Waiting;
            slot.push(&entry);
            self.busy.mark(entry.slot);
            lock(&self.waiting).push_back(entry.slot);
        } else {
            slot.push(&entry);
            self.busy.mark(entry.slot);
            if !self.hand_over(&mut slot, &entry) {
                lock(&self.waiting).push_back(entry.slot);
            }
        }
        verdict
    }

    /// Takes the transport's report on a message.
    pub(super) fn report(self: &Arc<Self>, entry: &Arc<Entry>, outcome: Outcome) {
        {
            let mut slot = self.slot(entry.slot);
            let partition = {
                let mut state = entry.state();
                state.phase = Phase::Idle;
                state.partition
            };
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
    }

    fn delivered(self: &Arc<Self>, entry: &Arc<Entry>, position: Position) {
        let mut state = entry.state();
        let partition = state.partition;
        match state.storing {
            Storing::No => {
                self.counters.delivered.fetch_add(1, Ordering::Relaxed);
                state.reservation = None;
                state.tell(Verdict::Delivered(position));
            }
            Storing::Queued(_) => {
                // Settled as soon as the disk has it: `appended` looks here.
                state.delivered = Some(position);
                state.tell(Verdict::Delivered(position));
            }
            Storing::Durable(lsn) => {
                drop(state);
                self.settle(entry, lsn, position);
                return;
            }
        }
        drop(state);
        if self.gate.is_blocked(entry.route, partition) {
            self.mailbox.post(Mail::Passed { route: entry.route, partition });
        }
    }

    fn failed(self: &Arc<Self>, slot: &mut Slot, entry: &Arc<Entry>, failure: &Arc<Failure>, possibly: bool) {
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

    fn post_first_failure(&self, entry: &Entry, partition: Option<i32>, failure: &Arc<Failure>) {
        self.mailbox.post(Mail::FirstFailed {
            route: entry.message.route.clone(),
            partition,
            lane: entry.lane(),
            failure: Arc::clone(failure),
        });
    }

    /// Hands a first attempt to the transport. The slot has it in play, the window counts it.
    ///
    /// False: its partition owns as much as the transport lets it, so it goes on waiting.
    fn hand_over(self: &Arc<Self>, slot: &mut Slot, entry: &Arc<Entry>) -> bool {
        entry.state().phase = Phase::Owned;
        let partition = entry.state().partition;
        let Err(failure) = self.submit(entry) else { return true };
        lock(&self.window).leave(self.load(entry, partition));
        if is_share_full(&failure) {
            entry.state().phase = Phase::Waiting;
            return false;
        }
        entry.state().phase = Phase::Idle;
        self.post_first_failure(entry, partition, &failure);
        self.store(slot, entry);
        slot.remove(entry);
        true
    }

    fn submit(&self, entry: &Arc<Entry>) -> Result<(), Arc<Failure>> {
        self.counters.attempts.fetch_add(1, Ordering::Relaxed);
        let ticket = Ticket::new(Arc::clone(entry) as Arc<dyn crate::transport::Recipient>);
        let handover = Handover { message: Arc::clone(&entry.message), alone: entry.alone, ticket };
        self.transport.submit(handover).map_err(|refused| {
            refused.handover.ticket.withdraw();
            refused.failure
        })
    }

    /// Stores a message, and before it every message of its lane that is in play and not stored: LSN order within a
    /// lane is send order.
    fn store(self: &Arc<Self>, slot: &mut Slot, entry: &Arc<Entry>) {
        if let Some(lane) = entry.lane() {
            for earlier in slot.unstored(lane) {
                if Arc::ptr_eq(&earlier, entry) {
                    break;
                }
                self.append(slot, &earlier);
            }
        }
        self.append(slot, entry);
    }

    fn append(self: &Arc<Self>, slot: &mut Slot, entry: &Arc<Entry>) {
        let mut state = entry.state();
        let waited = state.phase == Phase::Waiting;
        let owned = state.phase == Phase::Owned;
        let (dispatcher, stored) = (Arc::clone(self), Arc::clone(entry));
        let lsn = self.outbox.append(&entry.message, move |result| dispatcher.appended(&stored, result));
        state.storing = Storing::Queued(lsn);
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
            slot.remove(entry);
        }
        if entry.lane().is_some() {
            slot.stored += 1;
        }
    }

    /// The log has written a message, or cannot. On the log's thread.
    fn appended(self: &Arc<Self>, entry: &Arc<Entry>, result: AppendResult) {
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
                // A log that failed half-way may find the message again after a crash.
                let verdict = Verdict::Rejected {
                    kind: SendErrorKind::Storage,
                    reason: format!("the broker did not take the message, and the outbox cannot: {error}"),
                    possibly_delivered: true,
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

    /// A durable message is delivered.
    fn settle(&self, entry: &Arc<Entry>, lsn: Lsn, position: Position) {
        self.outbox.settle(Mark::Delivered, lsn, &entry.message);
        lock(&self.owned).remove(&lsn);
        self.counters.redelivered.fetch_add(1, Ordering::Relaxed);
        self.fate(lsn, || Fate::Delivered(position));
        self.mailbox.post(Mail::Settled { lsn, entry: Arc::clone(entry), position });
    }

    /// Tells whoever watches a stored message.
    pub fn fate(&self, lsn: Lsn, fate: impl FnOnce() -> Fate) {
        if let Some(watcher) = lock(&self.watchers).take(lsn) {
            let _ = watcher.send(fate());
        }
    }

    /// Hands a stored message over again, if its lane allows.
    pub fn again(self: &Arc<Self>, again: &Again) -> Attempt {
        let partition = again.message.message.partition.or_else(|| self.transport.partition(&again.message));
        let entry = Entry::stored(self, Arc::clone(&again.message), again.lsn, again.alone);
        let mut slot = self.slot(entry.slot);
        if let Some(lane) = entry.lane()
            && (slot.returning > 0 || slot.is_closed(lane) || (again.alone && slot.owns(lane)))
        {
            return Attempt::Later;
        }
        let load = self.load(&entry, partition);
        if lock(&self.window).enter(load).is_err() {
            return Attempt::NoRoom;
        }
        {
            let mut state = entry.state();
            state.phase = Phase::Owned;
            state.partition = partition;
        }
        lock(&self.owned).insert(again.lsn);
        slot.push(&entry);
        if let Err(failure) = self.submit(&entry) {
            lock(&self.window).leave(load);
            lock(&self.owned).remove(&again.lsn);
            slot.remove(&entry);
            if is_share_full(&failure) && partition.is_some_and(|it| self.owned_of_partition(entry.route, it) > 0) {
                return Attempt::NoRoom;
            }
            return Attempt::Refused(failure);
        }
        if let Some(lane) = entry.lane() {
            slot.stored -= u32::from(again.counted).min(slot.stored);
            if again.alone {
                slot.close(lane);
            }
        }
        Attempt::Owned
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
                let (owned, partition, storing) = {
                    let state = entry.state();
                    (state.phase == Phase::Owned, state.partition, state.storing)
                };
                // An earlier one of the same lane may have taken it along.
                if !late || storing != Storing::No {
                    continue;
                }
                self.store(&mut slot, &entry);
                if owned && now.is_some() {
                    let route = entry.message.route.clone();
                    self.mailbox.post(Mail::Late { route, partition });
                }
            }
        }
        self.pump();
    }

    /// Whether any first attempt is in play.
    pub fn is_busy(&self) -> bool {
        self.busy.any()
    }

    /// Hands over what waits, as far as there is room. Each round takes the first waiting message of a slot, so that
    /// two threads in here cannot turn a lane's messages round.
    fn pump(self: &Arc<Self>) {
        let mut without_room = Vec::new();
        while without_room.len() < PUMP {
            let Some(index) = lock(&self.waiting).pop_front() else { break };
            let mut slot = self.slot(index);
            let Some(entry) = slot.first_waiting() else { continue };
            let partition = self.transport.partition(&entry.message);
            entry.state().partition = partition;
            if self.must_store(&slot, &entry, partition) {
                self.store(&mut slot, &entry);
                continue;
            }
            match lock(&self.window).enter(self.load(&entry, partition)) {
                Ok(()) => {}
                Err(full) => {
                    without_room.push(index);
                    if full == Full::Window {
                        break;
                    }
                    continue;
                }
            }
            if !self.hand_over(&mut slot, &entry) {
                without_room.push(index);
            }
        }
        if !without_room.is_empty() {
            let mut waiting = lock(&self.waiting);
            without_room.into_iter().rev().for_each(|index| waiting.push_front(index));
        }
    }

    fn must_store(&self, slot: &Slot, entry: &Entry, partition: Option<i32>) -> bool {
        (entry.lane().is_some() && !slot.is_open()) || self.gate.is_shut(entry.route, partition, entry.lane())
    }

    fn load(&self, entry: &Entry, partition: Option<i32>) -> Load {
        Load { route: entry.route, partition, bytes: entry.bytes(), drained: entry.deadline.is_none() }
    }

    fn slot(&self, index: usize) -> MutexGuard<'_, Slot> {
        lock(&self.slots[index])
    }
}

/// The hash of a route, as blocks and ledger use it.
pub fn route_hash(route: &Route) -> u64 {
    Lane::of(route, None).hash() as u64
}

/// Whether a transport refused a message only because its partition owns as much as it may: a report makes room.
fn is_share_full(failure: &Failure) -> bool {
    failure.class == Class::Transient && matches!(failure.scope, Scope::Partition(_))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Who waits for the fate of stored messages.
#[derive(Default)]
struct Watchers {
    by_lsn: HashMap<Lsn, oneshot::Sender<Fate>>,
    sweep_at: usize,
}

impl Watchers {
    fn insert(&mut self, lsn: Lsn, watcher: oneshot::Sender<Fate>) {
        // Most callers drop what they could watch: forget them before they add up.
        if self.by_lsn.len() >= self.sweep_at.max(SWEEP_WATCHERS) {
            self.by_lsn.retain(|_, watcher| !watcher.is_closed());
            self.sweep_at = 2 * self.by_lsn.len();
            self.by_lsn.shrink_to(self.sweep_at);
        }
        self.by_lsn.insert(lsn, watcher);
    }

    fn take(&mut self, lsn: Lsn) -> Option<oneshot::Sender<Fate>> {
        self.by_lsn.remove(&lsn)
    }
}

/// Slots with first attempts in play, so that looking for late ones costs what is in flight and not what there is.
struct Busy(Box<[AtomicU64]>);

impl Busy {
    fn new(slots: usize) -> Self {
        Self((0..slots.div_ceil(64)).map(|_| AtomicU64::new(0)).collect())
    }

    fn mark(&self, slot: usize) {
        let (word, bit) = (&self.0[slot / 64], 1 << (slot % 64));
        if word.load(Ordering::Relaxed) & bit == 0 {
            word.fetch_or(bit, Ordering::AcqRel);
        }
    }

    /// Called with the slot's lock held, as `mark` is.
    fn unmark(&self, slot: usize) {
        self.0[slot / 64].fetch_and(!(1 << (slot % 64)), Ordering::AcqRel);
    }

    fn any(&self) -> bool {
        self.0.iter().any(|word| word.load(Ordering::Acquire) != 0)
    }

    fn marked(&self) -> Vec<usize> {
        let bits = |(at, word): (usize, &AtomicU64)| {
            let word = word.load(Ordering::Acquire);
            (0..64).filter(move |bit| word >> bit & 1 == 1).map(move |bit| at * 64 + bit)
        };
        self.0.iter().enumerate().flat_map(bits).collect()
    }
}
