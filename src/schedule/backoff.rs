//! How long to wait before the next attempt: exponential, with full jitter, capped, for ever.
//!
//! Assumes a caller that counts failed attempts and brings its random numbers. Refuses to give up: there is no
//! last attempt here, and no attempt number, however large, overflows.
//!
//! The jitter is the "full jitter" of Marc Brooker, "Exponential Backoff And Jitter" (AWS Architecture Blog,
//! 2015): a wait drawn evenly from zero to the exponential ceiling. Of the variants compared there it makes the
//! fewest calls while many clients contend, because it spreads them over the whole interval; a hundred producers
//! that lost the same broker do not come back in step.

use std::time::Duration;

/// The wait's ceiling after the first failure.
const BASE: Duration = Duration::from_millis(100);

/// By how much the ceiling grows with each further failure.
const FACTOR: u32 = 2;

/// The ceiling's limit: a broker that is back is found within half a minute.
const CAP: Duration = Duration::from_secs(30);

/// The parameters of a backoff; it holds no state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// The ceiling after the first failure. Default 100 ms.
    pub base: Duration,
    /// By how much the ceiling grows with each further failure; 0 and 1 keep it at the base. Default 2.
    pub factor: u32,
    /// The ceiling's limit; below the base it wins. Default 30 s.
    pub cap: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { base: BASE, factor: FACTOR, cap: CAP }
    }
}

impl Backoff {
    /// How long to wait after the `attempt`th failed attempt in a row, counted from 1 (0 is taken for 1): evenly
    /// drawn from zero to `base × factor^(attempt − 1)`, at most `cap`.
    pub fn delay(&self, attempt: u32, rng: &mut fastrand::Rng) -> Duration {
        between(Duration::ZERO, self.ceiling(attempt), rng)
    }

    /// The longest wait after the `attempt`th failed attempt in a row.
    pub fn ceiling(&self, attempt: u32) -> Duration {
        let growth = u128::from(self.factor.max(1)).saturating_pow(attempt.saturating_sub(1));
        let nanos = self.base.as_nanos().saturating_mul(growth).min(self.cap.as_nanos());
        from_nanos(nanos)
    }
}

/// A duration drawn evenly from `low..=high`.
fn between(low: Duration, high: Duration, rng: &mut fastrand::Rng) -> Duration {
    from_nanos(rng.u128(low.as_nanos()..=high.as_nanos()))
}

/// Nanoseconds that came out of a `Duration`, so that the seconds always fit.
fn from_nanos(nanos: u128) -> Duration {
    const SECOND: u128 = 1_000_000_000;
    let seconds = u64::try_from(nanos / SECOND).unwrap_or(u64::MAX);
    Duration::new(seconds, (nanos % SECOND) as u32)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_ceiling_doubles_from_100_ms_to_30_s_and_stays_there() {
        let backoff = Backoff::default();
        let millis: Vec<u128> = (1..=11).map(|attempt| backoff.ceiling(attempt).as_millis()).collect();
        assert_eq!(millis, [100, 200, 400, 800, 1600, 3200, 6400, 12800, 25600, 30000, 30000]);
        assert_eq!(backoff.ceiling(0), backoff.ceiling(1));
        assert_eq!(backoff.ceiling(u32::MAX), CAP);
    }

    #[test]
    fn the_jitter_is_full_it_covers_zero_to_the_ceiling_evenly() {
        let seed = 7;
        println!("seed {seed}");
        let mut rng = fastrand::Rng::with_seed(seed);
        let backoff = Backoff::default();
        let mut quarters = [0u32; 4];
        for _ in 0..10_000 {
            let share = backoff.delay(20, &mut rng).as_secs_f64() / CAP.as_secs_f64();
            quarters[((share * 4.0) as usize).min(3)] += 1;
        }
        assert!(quarters.iter().all(|&hits| (2_200..2_800).contains(&hits)), "{quarters:?}");
    }

    #[test]
    fn a_hundred_clients_that_failed_together_do_not_come_back_together() {
        let seed = 11;
        println!("seed {seed}");
        let mut rng = fastrand::Rng::with_seed(seed);
        let backoff = Backoff::default();
        let mut slots = [0u32; 30];
        for _ in 0..100 {
            for attempt in 10..110 {
                slots[(backoff.delay(attempt, &mut rng).as_secs() as usize).min(29)] += 1;
            }
        }
        let mean = slots.iter().sum::<u32>() / 30;
        assert!(slots.iter().all(|&hits| hits < 2 * mean), "{slots:?}");
    }

    proptest! {
        #[test]
        fn no_parameters_overflow_and_no_wait_exceeds_the_cap(
            base in any::<Duration>(), cap in any::<Duration>(), factor: u32, attempt: u32, seed: u64,
        ) {
            let backoff = Backoff { base, factor, cap };
            let mut rng = fastrand::Rng::with_seed(seed);
            let ceiling = backoff.ceiling(attempt);
            prop_assert!(ceiling <= cap && backoff.delay(attempt, &mut rng) <= ceiling);
        }

        #[test]
        fn the_ceiling_never_falls(attempt in 0u32..10_000, factor in 0u32..10) {
            let backoff = Backoff { factor, ..Backoff::default() };
            prop_assert!(backoff.ceiling(attempt) <= backoff.ceiling(attempt + 1));
        }
    }
}
