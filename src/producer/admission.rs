//! The queue of messages that wait for space in the outbox, first come, first served.
//!
//! An unpolled future holds nobody up: what waits is let in by the producer's own thread. A dropped one is
//! withdrawn: its waiter is closed, and it is skipped.

use std::collections::VecDeque;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::Instant;

use tokio::sync::oneshot;

use super::core::{Admitted, lock};
use crate::drainer::Verdict;
use crate::error::SendErrorKind;

/// What became of a message that waited for space.
pub(super) enum Queued {
    /// It was let in.
    Sent(oneshot::Receiver<Verdict>),
    /// It was not.
    Rejected(SendErrorKind, String),
}

/// One that waits.
pub(super) struct Waiter {
    pub admitted: Admitted,
    pub deadline: Instant,
    pub waiter: Option<oneshot::Sender<Queued>>,
    ticket: u64,
}

/// All that wait.
#[derive(Default)]
pub(super) struct Queue {
    waiters: VecDeque<Waiter>,
    tickets: u64,
}

impl Queue {
    pub fn is_empty(&self) -> bool {
        self.waiters.is_empty()
    }

    pub fn push(&mut self, admitted: Admitted, deadline: Instant, waiter: oneshot::Sender<Queued>) -> u64 {
        self.tickets += 1;
        self.waiters.push_back(Waiter { admitted, deadline, waiter: Some(waiter), ticket: self.tickets });
        self.tickets
    }

    pub fn front_mut(&mut self) -> Option<&mut Waiter> {
        self.waiters.front_mut()
    }

    pub fn pop(&mut self) {
        self.waiters.pop_front();
    }

    /// Takes one out that is still there: its memory is the caller's no longer.
    pub fn withdraw(&mut self, ticket: u64) {
        if let Ok(at) = self.waiters.binary_search_by_key(&ticket, |waiter| waiter.ticket) {
            self.waiters.remove(at);
        }
    }
}

/// The queue, locked while messages get in: nobody overtakes.
#[derive(Default)]
pub(super) struct Admission {
    queue: Mutex<Queue>,
    length: AtomicUsize,
}

impl Admission {
    /// How many wait. Zero, seen by whoever sent a message before, means that all of those are in.
    pub fn len(&self) -> usize {
        self.length.load(Ordering::Acquire)
    }

    /// The queue; its length is told when the guard goes.
    pub fn lock(&self) -> Locked<'_> {
        Locked { queue: lock(&self.queue), length: &self.length }
    }
}

/// The locked queue.
pub(super) struct Locked<'a> {
    queue: MutexGuard<'a, Queue>,
    length: &'a AtomicUsize,
}

impl Deref for Locked<'_> {
    type Target = Queue;

    fn deref(&self) -> &Queue {
        &self.queue
    }
}

impl DerefMut for Locked<'_> {
    fn deref_mut(&mut self) -> &mut Queue {
        &mut self.queue
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        self.length.store(self.queue.waiters.len(), Ordering::Release);
    }
}
