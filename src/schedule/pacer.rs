//! How much the drainer may have in flight while a broker comes back.
//!
//! Assumes a caller that tells it each acknowledgement and each failure. Refuses to jump: a broker that has just
//! recovered is easily knocked over again by the backlog that its outage made.
//!
//! The rise is TCP's slow start (RFC 5681, 3.1): one message at first, one more for each that is acknowledged,
//! which doubles the limit each round trip, so a window of 10,000 is open after fourteen of them.

/// The limit on messages in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pacer {
    limit: usize,
    max: usize,
}

impl Pacer {
    /// A pacer that starts carefully, as after an outage: with one message. A `max` of 0 is taken for 1, since
    /// nothing would ever be delivered.
    pub fn new(max: usize) -> Self {
        Self { limit: 1, max: max.max(1) }
    }

    /// How many messages may be in flight now: 1 to `max`.
    #[cfg(test)]
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// How many more may be handed over while `in_flight` are.
    pub fn room(&self, in_flight: usize) -> usize {
        self.limit.saturating_sub(in_flight)
    }

    /// So many messages were acknowledged.
    pub fn acknowledged(&mut self, messages: usize) {
        self.limit = self.limit.saturating_add(messages).min(self.max);
    }

    /// The broker failed: begin again with one.
    pub fn failed(&mut self) {
        self.limit = 1;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_window_of_10_000_is_open_after_fourteen_round_trips() {
        let mut pacer = Pacer::new(10_000);
        let mut rounds = 0;
        while pacer.limit() < 10_000 {
            pacer.acknowledged(pacer.limit());
            rounds += 1;
        }
        assert_eq!(rounds, 14);
    }

    proptest! {
        #[test]
        fn the_limit_is_one_after_a_failure_and_rises_by_at_most_what_was_acknowledged(
            max: usize, steps in prop::collection::vec(prop::option::of(any::<usize>()), 0..50), in_flight: usize,
        ) {
            let mut pacer = Pacer::new(max);
            prop_assert_eq!(pacer.limit(), 1);
            for step in steps {
                let before = pacer.limit();
                match step {
                    Some(messages) => {
                        pacer.acknowledged(messages);
                        prop_assert!(pacer.limit() >= before && pacer.limit() - before <= messages);
                    }
                    None => {
                        pacer.failed();
                        prop_assert_eq!(pacer.limit(), 1);
                    }
                }
                prop_assert!(pacer.limit() <= max.max(1));
                prop_assert!(pacer.room(in_flight) <= pacer.limit());
            }
        }
    }
}
