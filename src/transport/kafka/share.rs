//! What one partition owns, and what is known of its broker: how far it may be trusted with more.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use super::times::TopicTimes;
use crate::config::{PARTITION_BYTES as BYTES, PARTITION_MESSAGES as MESSAGES};

/// Without a report for so long while something is owned, messages without a key go elsewhere, and the cluster is
/// asked who leads the partition.
pub(super) const STALLED: Duration = Duration::from_secs(2);
/// After so long what waits for room on the partition is handed back. Longer than the first message of an instance takes on
/// a long link, connections included, and longer than first attempts wait.
const STUCK: Duration = Duration::from_secs(10);
/// For how long an acknowledgement proves that the broker knows the producer: it forgets one that is silent for
/// `producer.id.expiration.ms` (a day), or whose last batch its retention deleted.
const PROOF_HOLDS: Duration = Duration::from_secs(3_600);

/// The account of a partition.
///
/// Counters are read and written one by one: only a topic's lock, held while handing over, lets them grow.
#[derive(Debug, Default)]
pub(super) struct Share {
    /// Over all instances.
    messages: AtomicUsize,
    bytes: AtomicUsize,
    /// Of these, what the producing instance owns.
    producing: AtomicUsize,
    /// The producing instance that got an acknowledgement with an offset from here last; 0: none.
    proven_to: AtomicU64,
    /// When that was.
    proven_at: AtomicU64,
    /// When something was last reported on, or entered while nothing was owned.
    moved_at: AtomicU64,
    /// What is known of its topic's settings on times.
    times: Arc<TopicTimes>,
    /// Whether the broker is suspected to close the connection because of the partition's first message, and that message
    /// has not been tried by itself yet.
    is_suspected: AtomicBool,
}

impl Share {
    /// The account of a partition of a topic, from nothing.
    pub(super) fn of(times: &Arc<TopicTimes>) -> Self {
        Self { times: Arc::clone(times), ..Self::default() }
    }

    /// What is known of its topic's settings on times.
    pub(super) fn times(&self) -> &TopicTimes {
        &self.times
    }

    /// Whether another message of `bytes` would go beyond the limits. The first one always fits.
    pub(super) fn is_full(&self, bytes: usize) -> bool {
        let messages = self.messages.load(Ordering::Relaxed);
        messages > 0 && (messages >= MESSAGES || self.bytes.load(Ordering::Relaxed) + bytes > BYTES)
    }

    /// Whether a message has to wait for the one that a producing instance sends ahead.
    ///
    /// A broker without state for a producer takes any first sequence number. If the first batch were refused for good,
    /// the second, which librdkafka may have written already, would be accepted: the first one's messages overtaken.
    pub(super) fn awaits_proof(&self, instance: u64, now: Instant) -> bool {
        self.producing.load(Ordering::Acquire) > 0 && !self.is_proven(instance, now)
    }

    fn is_proven(&self, instance: u64, now: Instant) -> bool {
        self.proven_to.load(Ordering::Acquire) == instance
            && millis(now).saturating_sub(self.proven_at.load(Ordering::Acquire)) < as_millis(PROOF_HOLDS)
    }

    /// The broker acknowledged a message to a producing instance, with an offset. Says whether that was news.
    pub(super) fn prove(&self, instance: u64, now: Instant) -> bool {
        let news = !self.is_proven(instance, now);
        self.proven_at.store(millis(now), Ordering::Release);
        if news {
            self.proven_to.store(instance, Ordering::Release);
        }
        news
    }

    /// Whether something is owned and nothing was reported on for long.
    pub(super) fn is_stalled(&self, now: Instant) -> bool {
        self.has_rested(STALLED, now)
    }

    /// The same, for so long that nobody should wait.
    pub(super) fn is_stuck(&self, now: Instant) -> bool {
        self.has_rested(STUCK, now)
    }

    fn has_rested(&self, time: Duration, now: Instant) -> bool {
        self.messages.load(Ordering::Relaxed) > 0
            && millis(now).saturating_sub(self.moved_at.load(Ordering::Relaxed)) >= as_millis(time)
    }

    /// Whether nothing is owned, and nothing was reported on for `time`.
    pub(super) fn is_idle(&self, time: Duration, now: Instant) -> bool {
        self.is_empty() && millis(now).saturating_sub(self.moved_at.load(Ordering::Relaxed)) >= as_millis(time)
    }

    /// Whether something was reported on after `then`.
    pub(super) fn has_moved_since(&self, then: Instant) -> bool {
        self.moved_at.load(Ordering::Relaxed) > millis(then)
    }

    /// The broker is suspected to close the connection because of the partition's first message.
    pub(super) fn suspect(&self) {
        self.is_suspected.store(true, Ordering::Relaxed);
    }

    /// Whether that is so; it is not any more after this.
    pub(super) fn take_suspicion(&self) -> bool {
        self.is_suspected.swap(false, Ordering::Relaxed)
    }

    /// Whether nothing is owned.
    pub(super) fn is_empty(&self) -> bool {
        self.messages.load(Ordering::Relaxed) == 0
    }

    pub(super) fn enter(&self, bytes: usize, producing: bool, now: Instant) {
        if self.messages.fetch_add(1, Ordering::Relaxed) == 0 {
            self.moved_at.store(millis(now), Ordering::Relaxed);
        }
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.producing.fetch_add(usize::from(producing), Ordering::AcqRel);
    }

    pub(super) fn leave(&self, bytes: usize, producing: bool, now: Instant) {
        self.moved_at.store(millis(now), Ordering::Relaxed);
        self.messages.fetch_sub(1, Ordering::Relaxed);
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.producing.fetch_sub(usize::from(producing), Ordering::AcqRel);
    }
}

/// An instant as a number that atomics can hold.
pub(super) fn millis(instant: Instant) -> u64 {
    /// What is counted from lies so long before the first instant that is named: a later call may name an earlier one.
    const BEFORE: Duration = Duration::from_secs(86_400);
    static BASE: OnceLock<Instant> = OnceLock::new();
    let base = *BASE.get_or_init(|| instant.checked_sub(BEFORE).unwrap_or(instant));
    // Never 0, which means "not yet".
    as_millis(instant.saturating_duration_since(base)) + 1
}

fn as_millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn until_a_partition_has_acknowledged_to_an_instance_one_message_goes_ahead() {
        let (share, now) = (Share::default(), Instant::now());
        assert!(!share.awaits_proof(1, now));
        share.enter(10, true, now);
        assert!(share.awaits_proof(1, now));
        assert!(share.prove(1, now));
        assert!(!share.awaits_proof(1, now) && !share.prove(1, now));
        share.leave(10, true, now);
        share.enter(10, true, now);
        assert!(share.awaits_proof(2, now), "another instance has another producer id");
        let later = now + PROOF_HOLDS;
        assert!(share.awaits_proof(1, later), "and after an hour the broker may have forgotten it");
        assert!(share.prove(1, later));
    }

    #[test]
    fn what_is_tried_alone_holds_up_no_producing_instance() {
        let (share, now) = (Share::default(), Instant::now());
        share.enter(10, false, now);
        assert!(!share.awaits_proof(1, now) && !share.is_empty());
        assert!(share.is_stalled(now + STALLED) && !share.is_stalled(now));
        assert!(share.is_stuck(now + STUCK) && !share.is_stuck(now + STALLED));
    }

    #[test]
    fn a_share_is_bounded_and_takes_at_least_one_message() {
        let (share, now) = (Share::default(), Instant::now());
        assert!(!share.is_full(BYTES * 2));
        share.enter(BYTES * 2, true, now);
        assert!(share.is_full(1));
        share.leave(BYTES * 2, true, now);
        (0..MESSAGES).for_each(|_| share.enter(1, true, now));
        assert!(share.is_full(1));
    }
}
