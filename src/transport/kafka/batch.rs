//! How large the producing instance's batches may be, as far as the brokers let it be known.
//!
//! A broker refuses a whole batch as too large. Only its messages, tried by themselves, tell whether one of them was to
//! blame or their sum; but with the next instance come the next batches. So that instance gets smaller ones at once,
//! which costs little, and when a message was to blame, a later instance gets the former size again.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Smaller batches would help nobody: a topic that refuses this refuses messages.
pub(super) const LEAST: usize = 16 << 10;

/// `batch.size` of the next instance.
#[derive(Debug)]
pub(super) struct BatchSize {
    configured: usize,
    current: AtomicUsize,
}

impl BatchSize {
    pub(super) fn new(configured: usize) -> Self {
        Self { configured, current: AtomicUsize::new(configured) }
    }

    /// An instance was given up, and so many messages of so many bytes had been refused as too large together.
    pub(super) fn refused(&self, (messages, bytes): (usize, usize)) {
        // One by itself was in no batch that could be smaller.
        if messages > 1 {
            let current = self.current.load(Ordering::Relaxed);
            let smaller = (current.min(bytes) / 2).max(LEAST).min(current);
            self.current.store(smaller, Ordering::Relaxed);
            tracing::warn!(batch_size = smaller, "a broker did not take a batch: they become smaller");
        }
    }

    /// A message was refused as too large by itself.
    pub(super) fn restore(&self) {
        self.current.store(self.configured, Ordering::Relaxed);
    }

    /// The size that the producing instance has, or will have.
    pub(super) fn current(&self) -> usize {
        self.current.load(Ordering::Relaxed)
    }

    /// Whether batches cannot become any smaller.
    pub(super) fn is_least(&self) -> bool {
        self.current() <= LEAST
    }

    /// The size, if it is not the configured one.
    pub(super) fn smaller(&self) -> Option<usize> {
        let current = self.current.load(Ordering::Relaxed);
        (current < self.configured).then_some(current)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_are_halved_until_they_pass_and_restored_when_a_message_was_to_blame() {
        let batch = BatchSize::new(1_000_000);
        assert_eq!(batch.smaller(), None);
        batch.refused((1, 900_000));
        assert_eq!(batch.smaller(), None, "it was alone");
        batch.refused((10, 600_000));
        assert_eq!(batch.smaller(), Some(300_000));
        batch.restore();
        assert_eq!(batch.smaller(), None);
        (0..20).for_each(|_| batch.refused((5, 2_000_000)));
        assert_eq!(batch.smaller(), Some(LEAST));
        let small = BatchSize::new(1_000);
        small.refused((3, 900));
        assert_eq!(small.smaller(), None, "never larger than configured");
    }
}
