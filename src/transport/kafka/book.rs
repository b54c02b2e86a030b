//! What one producer instance owns: a ticket a message, by slot number, and whether the instance was given up.
//!
//! librdkafka gets only the slot number as its opaque, so that a message it never reports on (it happens after a
//! fatal error) can still be reported failed, and a report that comes after that finds an empty slot.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::transport::{Failure, Ticket};

/// Locks, and goes on after a panic elsewhere: what these locks guard is changed in single steps.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What one partition owns at the moment, over all instances.
#[derive(Debug, Default)]
pub(super) struct Share {
    messages: AtomicUsize,
    bytes: AtomicUsize,
}

impl Share {
    /// Whether another message of `bytes` would go beyond the limits. The first one always fits.
    pub(super) fn is_full(&self, bytes: usize, max_messages: usize, max_bytes: usize) -> bool {
        let messages = self.messages.load(Ordering::Relaxed);
        messages > 0 && (messages >= max_messages || self.bytes.load(Ordering::Relaxed) + bytes > max_bytes)
    }

    fn add(&self, bytes: usize) {
        self.messages.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    fn remove(&self, bytes: usize) {
        self.messages.fetch_sub(1, Ordering::Relaxed);
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// A message handed to librdkafka.
#[derive(Debug)]
struct Owned {
    ticket: Ticket,
    share: Arc<Share>,
    bytes: usize,
}

#[derive(Debug, Default)]
struct Slots {
    slots: Vec<Option<Owned>>,
    free: Vec<usize>,
    taken: usize,
    /// When the first message was entered, or one was last reported on.
    moved: Option<Instant>,
}

/// The account of one instance.
#[derive(Debug, Default)]
pub(super) struct Book {
    slots: Mutex<Slots>,
    emptied: Condvar,
    is_given_up: AtomicBool,
    given_up: Mutex<Option<Arc<Failure>>>,
    acknowledged: AtomicU64,
}

impl Book {
    /// Enters a message; the number goes to librdkafka with it.
    pub(super) fn enter(&self, ticket: Ticket, share: &Arc<Share>, bytes: usize) -> usize {
        share.add(bytes);
        let owned = Owned { ticket, share: Arc::clone(share), bytes };
        let mut slots = lock(&self.slots);
        if slots.taken == 0 {
            slots.moved = Some(Instant::now());
        }
        slots.taken += 1;
        if let Some(slot) = slots.free.pop() {
            slots.slots[slot] = Some(owned);
            return slot;
        }
        slots.slots.push(Some(owned));
        slots.slots.len() - 1
    }

    /// Takes a message's ticket out; `None` if it was reported on before.
    pub(super) fn settle(&self, slot: usize) -> Option<Ticket> {
        let mut slots = lock(&self.slots);
        let owned = slots.slots.get_mut(slot)?.take()?;
        slots.free.push(slot);
        slots.taken -= 1;
        slots.moved = Some(Instant::now());
        let empty = slots.taken == 0;
        drop(slots);
        owned.share.remove(owned.bytes);
        if empty {
            self.emptied.notify_all();
        }
        Some(owned.ticket)
    }

    /// Takes out everything that was never reported on, oldest slot first.
    pub(super) fn settle_rest(&self) -> Vec<Ticket> {
        let mut slots = lock(&self.slots);
        let rest: Vec<Owned> = slots.slots.iter_mut().filter_map(Option::take).collect();
        // No slot is used again: a late report must find its slot empty, not somebody else's message.
        slots.free.clear();
        slots.taken = 0;
        drop(slots);
        self.emptied.notify_all();
        for owned in &rest {
            owned.share.remove(owned.bytes);
        }
        rest.into_iter().map(|owned| owned.ticket).collect()
    }

    /// Whether messages are owned and none was reported on for `time`.
    pub(super) fn is_stalled(&self, time: Duration) -> bool {
        let slots = lock(&self.slots);
        slots.taken > 0 && slots.moved.is_some_and(|moved| moved.elapsed() >= time)
    }

    /// Waits until nothing is owned, for `timeout` at most; says whether it is so.
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

    /// Counts an acknowledgement.
    pub(super) fn acknowledge(&self) {
        self.acknowledged.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether the instance ever delivered anything.
    pub(super) fn has_delivered(&self) -> bool {
        self.acknowledged.load(Ordering::Relaxed) > 0
    }
}
