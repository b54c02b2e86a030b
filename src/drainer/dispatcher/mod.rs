//! The way of a message through a transport: gate, first attempt, store, report.
//!
//! One dispatcher a transport. It keeps the rules of lanes under the lock of a slot: what is handed over, stored
//! and reported of one lane happens there in one order. Locks are taken in the order slot, entry, then any one of
//! window, owned set, gate, mailbox or log; nothing is called back with the latter held. It never blocks.

mod again;
mod busy;
mod report;
mod send;
mod store;
mod watchers;
mod within;

use std::collections::{HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

pub use again::{Again, Attempt};
pub use within::take as take_from_within_submit;

use busy::Busy;
use watchers::Watchers;

use super::entry::Entry;
use super::gate::Gate;
use super::mailbox::Mailbox;
use super::slot::Slot;
use super::view::View;
use super::window::{Load, Window, WindowLimits};
use crate::clock;
use crate::message::{Lane, Outgoing, Route};
use crate::outbox::Outbox;
use crate::stats::Event;
use crate::transport::Transport;
use crate::wal::Lsn;

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
    /// Counts what all transports of the producer own.
    pub owned_everywhere: Arc<AtomicUsize>,
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
    /// Slots in which first attempts wait for room; some of them may not wait any more.
    waiting: Mutex<VecDeque<usize>>,
    waiting_messages: AtomicUsize,
    waiting_bytes: AtomicUsize,
    limits: WindowLimits,
    /// First attempts that are neither delivered nor in the log.
    unsettled: AtomicUsize,
    /// The drainer found no room, and is to be told of the next report.
    wants_room: AtomicBool,
    watchers: Mutex<Watchers>,
    gate: Gate,
    mailbox: Mailbox,
    first_attempt: Duration,
    events: Arc<dyn Fn(Event) + Send + Sync>,
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
            window: Mutex::new(Window::new(options.window, options.owned_everywhere)),
            owned: Mutex::default(),
            waiting: Mutex::default(),
            waiting_messages: AtomicUsize::new(0),
            waiting_bytes: AtomicUsize::new(0),
            limits: options.window,
            unsettled: AtomicUsize::new(0),
            wants_room: AtomicBool::new(false),
            watchers: Mutex::default(),
            gate: Gate::new(backlog),
            mailbox: Mailbox::default(),
            first_attempt: options.first_attempt,
            events: options.events,
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

    /// Messages that all transports of the producer own together.
    pub fn owned_everywhere(&self) -> usize {
        lock(&self.window).everywhere()
    }

    /// Messages that the transport owns, or that wait for room in the window.
    pub fn in_hand(&self) -> usize {
        self.waiting_messages.load(Ordering::Acquire) + lock(&self.window).messages()
    }

    /// First attempts that are neither delivered nor stored: with what is pending in the outbox, all there is.
    pub fn unsettled(&self) -> usize {
        self.unsettled.load(Ordering::Acquire)
    }

    /// Messages that the transport owns of one partition.
    pub fn owned_of_partition(&self, route: u64, partition: i32) -> usize {
        lock(&self.window).of_partition(route, partition)
    }

    /// Messages that the transport owns of some partitions, those of them that came from the log, and whether they are
    /// more than half of what it may own.
    pub fn owned_of_partitions(&self, which: impl Fn(u64, i32) -> bool) -> (usize, usize, bool) {
        let (messages, bytes, drained) = lock(&self.window).of_partitions(which);
        (messages, drained, messages > self.limits.messages / 2 || bytes > self.limits.bytes / 2)
    }

    /// Partitions that own something of which nothing was reported on for longer than a first attempt may take, each
    /// with one of its messages; `known` ones apart.
    pub fn late_partitions(&self, now: Instant, known: impl Fn(u64, i32) -> bool) -> Vec<(i32, Arc<Outgoing>)> {
        let window = lock(&self.window);
        let late = window.resting().filter(|resting| {
            clock::after(resting.since, self.first_attempt) <= now && !known(resting.route, resting.partition)
        });
        late.map(|resting| (resting.partition, Arc::clone(resting.message))).collect()
    }

    /// When the next partition will be late, `known` ones apart.
    pub fn next_late(&self, known: impl Fn(u64, i32) -> bool) -> Option<Instant> {
        let window = lock(&self.window);
        let unknown = window.resting().filter(|resting| !known(resting.route, resting.partition));
        Some(clock::after(unknown.map(|resting| resting.since).min()?, self.first_attempt))
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

    /// Slots whose new messages are stored first.
    pub fn gated_slots(&self) -> usize {
        self.slots.iter().filter(|slot| lock(slot).is_gated()).count()
    }

    /// Whether any first attempt is in play.
    pub fn is_busy(&self) -> bool {
        self.busy.any()
    }

    fn load<'a>(&self, entry: &'a Entry, partition: Option<i32>) -> Load<'a> {
        let drained = entry.deadline.is_none();
        Load { message: &entry.message, route: entry.route, partition, bytes: entry.bytes(), drained }
    }

    fn slot(&self, index: usize) -> MutexGuard<'_, Slot> {
        lock(&self.slots[index])
    }
}

/// The hash of a route, as blocks and ledger use it.
pub fn route_hash(route: &Route) -> u64 {
    Lane::of(route, None).hash() as u64
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
