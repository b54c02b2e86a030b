//! What one producer instance owns: a ticket a message, by slot number, and whether the instance was given up.
//!
//! librdkafka gets only the slot number as its opaque, so that a message it never reports on (it happens after a
//! fatal error) can still be reported failed, and a report that comes after that finds an empty slot.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::cuts::Cut;
use super::share::{STALLED, Share};
use super::times::Stamped;
use crate::transport::{Failure, Ticket};

/// Locks, and goes on after a panic elsewhere: what these locks guard is changed in single steps.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How old an instance is at least when it is given up because one partition of several is stalled for long.
const OVERDUE_AFTER: Duration = Duration::from_secs(30);

/// What an instance is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// Carries the traffic.
    Producing,
    /// Tries single messages by themselves.
    Solo,
}

/// A message handed to librdkafka.
#[derive(Debug)]
struct Owned {
    ticket: Ticket,
    share: Arc<Share>,
    bytes: usize,
    stamped: Stamped,
    /// In the order in which messages were entered.
    number: u64,
}

/// What an instance owns of one partition, and the message that goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    /// The first message's number.
    number: u64,
    /// Its bytes.
    pub(super) bytes: usize,
    /// Messages in all.
    pub(super) messages: usize,
    /// Bytes in all.
    pub(super) total_bytes: usize,
}

#[derive(Debug, Default)]
struct Slots {
    slots: Vec<Option<Owned>>,
    free: Vec<usize>,
    /// Messages not reported on, or in the middle of it.
    taken: usize,
    /// How many messages were entered so far.
    entered: u64,
    /// When the first message was entered, or one was last reported on.
    moved: Option<Instant>,
}

/// The account of one instance.
#[derive(Debug)]
pub(super) struct Book {
    /// Of all instances of the process, from 1.
    id: u64,
    role: Role,
    made: Instant,
    slots: Mutex<Slots>,
    emptied: Condvar,
    is_given_up: AtomicBool,
    given_up: Mutex<Option<Arc<Failure>>>,
    has_delivered: AtomicBool,
    /// Messages that were refused as too large, and their bytes.
    too_large: AtomicUsize,
    too_large_bytes: AtomicUsize,
    /// The time that a broker refused last.
    refused_time: Mutex<Option<Stamped>>,
    /// Messages to be tried by themselves, by their numbers, and why.
    suspects: Mutex<Vec<(u64, Arc<Failure>)>>,
    /// Evidence that the broker closes the connection because of the message that is being tried by itself.
    cut: Mutex<Option<Cut>>,
}

impl Book {
    pub(super) fn new(role: Role) -> Self {
        static LAST: AtomicU64 = AtomicU64::new(0);
        Self {
            id: LAST.fetch_add(1, Ordering::Relaxed) + 1,
            role,
            made: Instant::now(),
            slots: Mutex::default(),
            emptied: Condvar::new(),
            is_given_up: AtomicBool::new(false),
            given_up: Mutex::default(),
            has_delivered: AtomicBool::new(false),
            too_large: AtomicUsize::new(0),
            too_large_bytes: AtomicUsize::new(0),
            refused_time: Mutex::default(),
            suspects: Mutex::default(),
            cut: Mutex::default(),
        }
    }

    /// Tells instances apart.
    pub(super) fn id(&self) -> u64 {
        self.id
    }

    /// What the instance is for.
    pub(super) fn role(&self) -> Role {
        self.role
    }

    fn is_producing(&self) -> bool {
        self.role == Role::Producing
    }

    /// Whether a message for a partition has to wait for the first acknowledgement from there.
    pub(super) fn awaits_proof(&self, share: &Share, now: Instant) -> bool {
        self.is_producing() && share.awaits_proof(self.id, now)
    }

    /// Enters a message; the number goes to librdkafka with it.
    pub(super) fn enter(
        &self,
        ticket: Ticket,
        share: &Arc<Share>,
        bytes: usize,
        stamped: Stamped,
        now: Instant,
    ) -> usize {
        share.enter(bytes, self.is_producing(), now);
        let mut slots = lock(&self.slots);
        slots.entered += 1;
        let owned = Owned { ticket, share: Arc::clone(share), bytes, stamped, number: slots.entered };
        if slots.taken == 0 {
            slots.moved = Some(now);
        }
        slots.taken += 1;
        if let Some(slot) = slots.free.pop() {
            slots.slots[slot] = Some(owned);
            return slot;
        }
        slots.slots.push(Some(owned));
        slots.slots.len() - 1
    }

    /// Gives a message's ticket to `report`; nothing happens if it was reported on before. Its partition has room for
    /// another one within the report already; for who waits the instance is empty only after it.
    pub(super) fn settle(&self, slot: usize, report: impl FnOnce(Ticket)) {
        let now = Instant::now();
        if let Some(owned) = self.take(slot, now) {
            self.report(owned, now, report);
        }
    }

    /// The same for an acknowledgement with an offset. Says whether its partition was unproven until now.
    pub(super) fn acknowledge(&self, slot: usize, now: Instant, report: impl FnOnce(Ticket)) -> bool {
        // Read first: a load is cheaper than a store that other threads see.
        if !self.has_delivered.load(Ordering::Relaxed) {
            self.has_delivered.store(true, Ordering::Relaxed);
        }
        let Some(owned) = self.take(slot, now) else { return false };
        if !self.is_producing() {
            owned.share.times().passed_alone(owned.stamped);
        }
        let news = self.is_producing() && owned.share.prove(self.id, now);
        self.report(owned, now, report);
        news
    }

    /// Takes a message back that librdkafka did not take; `None` if it was reported on in the meantime.
    pub(super) fn withdraw(&self, slot: usize) -> Option<Ticket> {
        let now = Instant::now();
        let owned = self.take(slot, now)?;
        owned.share.leave(owned.bytes, self.is_producing(), now);
        self.gone(1);
        Some(owned.ticket)
    }

    /// Notes that a message was refused as too large, before it is settled.
    pub(super) fn refused_as_too_large(&self, slot: usize) {
        let bytes = lock(&self.slots).slots.get(slot).and_then(Option::as_ref).map_or(0, |owned| owned.bytes);
        self.too_large.fetch_add(1, Ordering::Relaxed);
        self.too_large_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// How many messages were refused as too large, and how many bytes they have together.
    pub(super) fn too_large(&self) -> (usize, usize) {
        (self.too_large.load(Ordering::Relaxed), self.too_large_bytes.load(Ordering::Relaxed))
    }

    /// Notes that a broker refused a message for its time, before it is settled.
    pub(super) fn refused_for_its_time(&self, slot: usize) {
        let stamped = lock(&self.slots).slots.get(slot).and_then(Option::as_ref).map(|owned| owned.stamped);
        *lock(&self.refused_time) = stamped;
    }

    /// The time that a broker refused last.
    pub(super) fn refused_time(&self) -> Option<Stamped> {
        *lock(&self.refused_time)
    }

    /// Whether a message is owned that should be sent with another time by now, and whose partition is stalled. While other
    /// partitions move, only an instance of [`OVERDUE_AFTER`] is given up for it: they all wait for the next one.
    pub(super) fn is_overdue(&self, now: Instant) -> bool {
        let slots = lock(&self.slots);
        let is_old = now.saturating_duration_since(self.made) >= OVERDUE_AFTER;
        let moves = slots.moved.is_some_and(|moved| now.saturating_duration_since(moved) < STALLED);
        if moves && !is_old {
            return false;
        }
        let is_overdue = |owned: &Owned| owned.share.times().is_overdue(owned.stamped) && owned.share.is_stalled(now);
        slots.slots.iter().flatten().any(is_overdue)
    }

    fn take(&self, slot: usize, now: Instant) -> Option<Owned> {
        let mut slots = lock(&self.slots);
        let owned = slots.slots.get_mut(slot)?.take()?;
        slots.free.push(slot);
        slots.moved = Some(now);
        Some(owned)
    }

    fn report(&self, owned: Owned, now: Instant, report: impl FnOnce(Ticket)) {
        owned.share.leave(owned.bytes, self.is_producing(), now);
        report(owned.ticket);
        self.gone(1);
    }

    fn gone(&self, count: usize) {
        let mut slots = lock(&self.slots);
        slots.taken -= count;
        let empty = slots.taken == 0;
        drop(slots);
        if empty {
            self.emptied.notify_all();
        }
    }

    /// What is owned of one partition; `None`: nothing. Looks at everything that is owned.
    pub(super) fn head(&self, share: &Arc<Share>) -> Option<Head> {
        let slots = lock(&self.slots);
        let owned = slots.slots.iter().flatten().filter(|owned| Arc::ptr_eq(&owned.share, share));
        owned.fold(None, |head: Option<Head>, owned| {
            let (number, bytes) = (owned.number, owned.bytes);
            let head = head.unwrap_or(Head { number, bytes, messages: 0, total_bytes: 0 });
            let first = if number < head.number { (number, bytes) } else { (head.number, head.bytes) };
            let (messages, total_bytes) = (head.messages + 1, head.total_bytes + bytes);
            Some(Head { number: first.0, bytes: first.1, messages, total_bytes })
        })
    }

    /// Has a message, if it is handed back, reported with `failure`, so that it is tried by itself.
    pub(super) fn suspect(&self, head: Head, failure: Failure) {
        lock(&self.suspects).push((head.number, Arc::new(failure)));
    }

    /// Why a message is to be tried by itself, if it is.
    pub(super) fn suspicion(&self, slot: usize) -> Option<Arc<Failure>> {
        let number = lock(&self.slots).slots.get(slot).and_then(Option::as_ref).map(|owned| owned.number)?;
        self.suspicion_of(number)
    }

    fn suspicion_of(&self, number: u64) -> Option<Arc<Failure>> {
        lock(&self.suspects).iter().find(|(suspect, _)| *suspect == number).map(|(_, failure)| Arc::clone(failure))
    }

    /// Notes evidence on the message that is being tried by itself.
    pub(super) fn note_cut(&self, cut: Cut) {
        *lock(&self.cut) = Some(cut);
    }

    /// Whether there is enough of it.
    pub(super) fn is_cut(&self) -> bool {
        lock(&self.cut).is_some()
    }

    /// That evidence, which counts for one message only.
    pub(super) fn take_cut(&self) -> Option<Cut> {
        lock(&self.cut).take()
    }

    /// Reports on everything that was never reported on, oldest slot first, with the reason why a message is to be tried
    /// by itself, if it is; says how much that was.
    pub(super) fn settle_rest(&self, mut report: impl FnMut(Ticket, Option<Arc<Failure>>)) -> usize {
        let mut slots = lock(&self.slots);
        let rest: Vec<Owned> = slots.slots.iter_mut().filter_map(Option::take).collect();
        // No slot is used again: a late report must find its slot empty, not somebody else's message.
        slots.free.clear();
        drop(slots);
        let (count, now) = (rest.len(), Instant::now());
        for owned in rest {
            let suspicion = self.suspicion_of(owned.number);
            self.report(owned, now, |ticket| report(ticket, suspicion));
        }
        count
    }

    /// Whether messages are owned and none was reported on for `time`.
    pub(super) fn is_stalled(&self, time: Duration) -> bool {
        let slots = lock(&self.slots);
        slots.taken > 0 && slots.moved.is_some_and(|moved| moved.elapsed() >= time)
    }

    /// Waits until nothing is owned and every report was made, for `timeout` at most; says whether it is so.
    pub(super) fn wait_empty(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let mut slots = lock(&self.slots);
        while slots.taken > 0 {
            let remaining = deadline.saturating_duration_since(Instant::now());
            if remaining.is_zero() {
                return false;
            }
            let waited = self.emptied.wait_timeout(slots, remaining);
            slots = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// Gives the instance up: nothing is handed to it any more. Says whether this was the first reason.
    pub(super) fn give_up(&self, failure: Failure) -> bool {
        let mut reason = lock(&self.given_up);
        let first = reason.is_none();
        if first {
            *reason = Some(Arc::new(failure));
            self.is_given_up.store(true, Ordering::Release);
        }
        first
    }

    /// Why the instance was given up, if it was.
    pub(super) fn given_up(&self) -> Option<Arc<Failure>> {
        if !self.is_given_up.load(Ordering::Acquire) {
            return None;
        }
        lock(&self.given_up).clone()
    }

    /// Whether the instance ever delivered anything.
    pub(super) fn has_delivered(&self) -> bool {
        self.has_delivered.load(Ordering::Relaxed)
    }
}
