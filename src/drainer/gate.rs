//! Which new messages are stored at once, because what they would meet is known to be down or to have a backlog.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::message::Lane;
use crate::schedule::BlockKey;

#[derive(Default)]
struct Inside {
    blocked: HashSet<BlockKey>,
    backlog: HashSet<u64>,
}

/// The gate of a transport. Read at each `send`; changed by the drainer alone.
#[derive(Default)]
pub struct Gate {
    down: AtomicBool,
    any: AtomicBool,
    inside: Mutex<Inside>,
}

impl Gate {
    /// A gate that keeps new messages of these routes behind the backlog that a restart found.
    pub fn new(backlog: HashSet<u64>) -> Self {
        let gate = Self::default();
        gate.any.store(!backlog.is_empty(), Ordering::Release);
        gate.lock().backlog = backlog;
        gate
    }

    /// The transport is known to be down, or not.
    pub fn set_down(&self, down: bool) {
        self.down.store(down, Ordering::Release);
    }

    /// Whether the transport is known to be down.
    pub fn is_down(&self) -> bool {
        self.down.load(Ordering::Acquire)
    }

    /// Something is blocked.
    pub fn block(&self, key: BlockKey) {
        let mut inside = self.lock();
        inside.blocked.insert(key);
        self.any.store(true, Ordering::Release);
    }

    /// It is no longer blocked, and nothing waits for it.
    pub fn unblock(&self, key: BlockKey) {
        let mut inside = self.lock();
        inside.blocked.remove(&key);
        self.settle_flag(&inside);
    }

    /// The drainer has been past the backlog.
    pub fn backlog_passed(&self) {
        let mut inside = self.lock();
        inside.backlog.clear();
        self.settle_flag(&inside);
    }

    /// Whether a message has to be stored at once. Its route and partition are asked for only if anything is blocked.
    pub fn is_shut(
        &self,
        route: impl FnOnce() -> u64,
        partition: impl FnOnce() -> Option<i32>,
        lane: Option<Lane>,
    ) -> bool {
        if self.is_down() {
            return true;
        }
        if !self.any.load(Ordering::Acquire) {
            return false;
        }
        let (route, partition) = (route(), partition());
        let inside = self.lock();
        let partition = partition.map(|partition| BlockKey::Partition(route, partition));
        let single = lane.map(|lane| BlockKey::Lane(route, lane));
        (lane.is_some() && inside.backlog.contains(&route))
            || [Some(BlockKey::Transport), Some(BlockKey::Route(route)), partition, single]
                .iter()
                .flatten()
                .any(|key| inside.blocked.contains(key))
    }

    /// Whether the success of a first attempt is news to the drainer.
    pub fn is_blocked(&self, route: u64, partition: Option<i32>) -> bool {
        if !self.any.load(Ordering::Acquire) {
            return false;
        }
        let inside = self.lock();
        let partition = partition.map(|partition| BlockKey::Partition(route, partition));
        [Some(BlockKey::Transport), Some(BlockKey::Route(route)), partition]
            .iter()
            .flatten()
            .any(|key| inside.blocked.contains(key))
    }

    fn settle_flag(&self, inside: &Inside) {
        self.any.store(!inside.blocked.is_empty() || !inside.backlog.is_empty(), Ordering::Release);
    }

    fn lock(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
