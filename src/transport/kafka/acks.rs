//! Which brokers acknowledge messages while one of them is suspected to close the connection because of a message.
//!
//! "Others pass" is part of that verdict, and is to be shown by an acknowledgement of the same broker. Nothing is noted
//! while no message is suspected: it would cost each acknowledgement a lock.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use super::book::lock;
use super::share::millis;

/// How long acknowledgements are noted after a trial began: longer than a held message waits for its
/// next one (`backoff_cap`, 30 s by default).
const WATCHED_MILLIS: u64 = 600_000;

/// When each broker acknowledged a message last, as [`millis`].
#[derive(Debug, Default)]
pub(super) struct Acks {
    watched_until: AtomicU64,
    last: Mutex<HashMap<i32, u64>>,
}

impl Acks {
    /// Notes acknowledgements from now on, for a while.
    pub(super) fn watch(&self, now: Instant) {
        self.watched_until.store(millis(now) + WATCHED_MILLIS, Ordering::Relaxed);
    }

    /// A broker acknowledged a message.
    pub(super) fn acknowledged(&self, now: Instant, broker: impl FnOnce() -> i32) {
        let now = millis(now);
        if now < self.watched_until.load(Ordering::Relaxed) {
            lock(&self.last).insert(broker(), now);
        }
    }

    /// Whether a broker acknowledged anything later than `since` (as [`millis`]).
    pub(super) fn any_since(&self, broker: i32, since: u64) -> bool {
        lock(&self.last).get(&broker).is_some_and(|&last| last > since)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn only_what_the_same_broker_acknowledged_later_counts() {
        let (acks, now) = (Acks::default(), Instant::now());
        let at = |seconds| now + Duration::from_secs(seconds);
        acks.acknowledged(at(1), || panic!("nothing is suspected"));
        acks.watch(at(2));
        acks.acknowledged(at(3), || 7);
        assert!(acks.any_since(7, millis(at(2))) && !acks.any_since(7, millis(at(3))));
        assert!(!acks.any_since(8, millis(at(0))), "another broker says nothing about this one");
        acks.acknowledged(at(3) + Duration::from_millis(WATCHED_MILLIS), || {
            panic!("nothing has been suspected for long")
        });
    }
}
