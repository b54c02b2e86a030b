//! The drainer's optional speed limit: a token bucket, one token a message.
//!
//! Assumes monotonic time, passed in. Refuses rounding: the level is counted in whole parts of 10⁻⁹ token, so that
//! after a month the sum is still exact. Time that runs backwards earns nothing and costs nothing.

use std::num::NonZeroU32;
use std::time::{Duration, Instant};

/// One token, in the parts that the level is counted in: a rate of `r` messages a second earns `r` parts each
/// nanosecond.
const TOKEN: u128 = 1_000_000_000;

/// What may gather while nothing is sent, as a share of a second: enough that a drainer that ticks each few
/// milliseconds reaches its rate, too little for a burst that anybody notices.
const BURST_PER_SECOND: u32 = 10;

/// A limit of so many messages a second.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    per_second: NonZeroU32,
    capacity: u128,
    level: u128,
    at: Instant,
}

impl Rate {
    /// A limit that starts with a full bucket: a tenth of a second's messages, at least one.
    pub fn new(per_second: NonZeroU32, now: Instant) -> Self {
        let burst = (per_second.get() / BURST_PER_SECOND).max(1);
        let capacity = u128::from(burst) * TOKEN;
        Self { per_second, capacity, level: capacity, at: now }
    }

    /// Takes tokens for up to `want` messages, and says for how many: that many may go now.
    pub fn take(&mut self, want: usize, now: Instant) -> usize {
        self.earn(now);
        let granted = usize::try_from(self.level / TOKEN).unwrap_or(usize::MAX).min(want);
        self.level -= granted as u128 * TOKEN;
        granted
    }

    /// Gives back tokens of messages that did not go after all.
    pub fn give_back(&mut self, unused: usize) {
        self.level = self.level.saturating_add(unused as u128 * TOKEN).min(self.capacity);
    }

    /// How long until there is a token: zero if there is one.
    pub fn wait(&mut self, now: Instant) -> Duration {
        self.earn(now);
        let missing = TOKEN.saturating_sub(self.level);
        // At most 10⁹ parts at one part a nanosecond: a second.
        let nanos = missing.div_ceil(u128::from(self.per_second.get()));
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    fn earn(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.at).as_nanos();
        let earned = elapsed.saturating_mul(u128::from(self.per_second.get()));
        self.level = self.level.saturating_add(earned).min(self.capacity);
        self.at = self.at.max(now);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rate(per_second: u32, now: Instant) -> Rate {
        Rate::new(NonZeroU32::new(per_second).expect("not zero"), now)
    }

    #[test]
    fn an_idle_hour_earns_a_tenth_of_a_second_and_no_more() {
        let start = Instant::now();
        let mut rate = rate(1_000, start);
        assert_eq!(rate.take(5_000, start), 100);
        assert_eq!(rate.take(5_000, start + Duration::from_secs(3600)), 100);
    }

    #[test]
    fn a_clock_that_runs_backwards_earns_nothing() {
        let start = Instant::now() + Duration::from_secs(10);
        let mut rate = rate(10, start);
        assert_eq!(rate.take(10, start), 1);
        assert_eq!(rate.take(10, start - Duration::from_secs(5)), 0);
        assert_eq!(rate.take(10, start + Duration::from_millis(99)), 0);
        assert_eq!(rate.take(10, start + Duration::from_millis(100)), 1);
    }

    #[test]
    fn what_is_given_back_can_be_taken_again_but_never_exceeds_the_bucket() {
        let start = Instant::now();
        let mut rate = rate(100, start);
        assert_eq!(rate.take(10, start), 10);
        rate.give_back(4);
        assert_eq!(rate.take(10, start), 4);
        rate.give_back(usize::MAX);
        assert_eq!(rate.take(100, start), 10);
    }

    proptest! {
        #[test]
        fn in_any_span_no_more_goes_than_the_rate_and_one_bucket_allow(
            per_second in 1u32.., steps in prop::collection::vec((0u64..3_000_000_000, 0usize..1_000_000), 1..60),
        ) {
            let start = Instant::now();
            let mut rate = rate(per_second, start);
            let (mut nanos, mut sent) = (0u64, 0u128);
            for (step, want) in steps {
                nanos += step;
                sent += rate.take(want, start + Duration::from_nanos(nanos)) as u128;
                let allowed = u128::from((per_second / 10).max(1)) + u128::from(nanos) * u128::from(per_second) / TOKEN;
                prop_assert!(sent <= allowed, "{sent} went, {allowed} were allowed");
            }
        }

        #[test]
        fn after_the_wait_there_is_a_token_and_a_nanosecond_earlier_there_is_none(per_second in 1u32..) {
            let start = Instant::now();
            let mut rate = rate(per_second, start);
            let _ = rate.take(usize::MAX, start);
            let wait = rate.wait(start);
            prop_assert!(wait > Duration::ZERO);
            let mut early = rate;
            if wait > Duration::from_nanos(1) {
                prop_assert_eq!(early.take(1, start + wait - Duration::from_nanos(1)), 0);
            }
            prop_assert_eq!(rate.take(1, start + wait), 1);
        }
    }
}
