//! What time it is for a topic's brokers, as far as is known: this machine's time, until a broker refuses it.
//!
//! A broker does not say what time it is. It refuses a record whose time is too far from its clock, so the clock is
//! searched for with the records themselves, one at a time. Each topic has a search of its own: one broker whose clock is
//! off, and one topic whose limits are unknown, say nothing about the others. Until a record has been delivered with it, a
//! guess concerns only the records that are tried by themselves.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::book::lock;
use super::rules::Rules;
use crate::clock;

/// Where the topic has no limit, or none is known: Kafka's default of `message.timestamp.after.max.ms` since 4.0.
const HOUR: i64 = 3_600_000;
/// So many guesses are made, and then none for so long: the messages wait, and health says why.
const MOST_STEPS: u32 = 64;
const REST: Duration = Duration::from_secs(600);
/// For so long a guess holds; then this machine's clock, which may have been set, is tried again.
const HOLDS: Duration = Duration::from_secs(3_600);

/// A guess at the brokers' clock.
#[derive(Clone, Copy, Debug)]
struct Guess {
    /// How many there were before.
    step: u32,
    /// How far each direction has been tried, in milliseconds.
    reach: i64,
    /// This machine's clock minus the brokers', in milliseconds.
    ahead: i64,
    /// The brokers' clock at `since`. From there on monotonic: setting this machine's clock changes nothing.
    broker: i64,
    since: Instant,
    /// Whether a broker has taken a record with a time by it.
    is_proven: bool,
}

impl Guess {
    fn new(step: u32, reach: i64, ahead: i64, own: i64, now: Instant) -> Self {
        Self { step, reach, ahead, broker: own.saturating_sub(ahead), since: now, is_proven: false }
    }

    fn holds(&self, now: Instant) -> bool {
        self.step < MOST_STEPS && now.saturating_duration_since(self.since) < HOLDS
    }

    /// The next guess. With a limit in one direction only, the clock is known to be off in that one; with two, both are
    /// tried in turns. Any time within the limits will do: so the first guess is as far away as the limit is wide. Then
    /// the distance doubles, but grows by no more than the limits are wide together, lest it jump over them, and by
    /// about a quarter of what the topic retains, lest it find a time that the topic deletes soon.
    fn next(last: Option<&Self>, rules: Option<&Rules>, own: i64, now: Instant) -> Self {
        let (before, after) = rules.map_or((None, None), |rules| (rules.before, rules.after));
        let (step, reach) = last.map_or((0, 0), |last| (last.step.saturating_add(1), last.reach));
        let width = |limit: Option<i64>| limit.unwrap_or(HOUR).clamp(1, HOUR);
        let quarter = rules.and_then(|rules| rules.retention).map_or(i64::MAX, |retention| retention / 4);
        let (is_behind, farther) = match (before, after) {
            // The second of a pair goes as far as the first.
            (Some(_), Some(_)) if step % 2 == 1 => (true, 0),
            (Some(before), Some(after)) => {
                (false, reach.min(quarter).max(width(Some(before.min(after)))).min(before.saturating_add(after).max(1)))
            }
            (Some(_), None) => (true, reach.min(quarter).max(width(before))),
            (None, _) => (false, reach.min(quarter).max(width(after))),
        };
        let reach = reach.saturating_add(farther);
        Self::new(step, reach, if is_behind { -reach } else { reach }, own, now)
    }
}

/// The clock of a topic's brokers.
#[derive(Debug, Default)]
pub(super) struct BrokerClock {
    has_guess: AtomicBool,
    guess: Mutex<Option<Guess>>,
}

impl BrokerClock {
    /// What time it is, in milliseconds since 1970. A guess that is not proven counts only for a record that is tried by
    /// itself (`alone`).
    pub(super) fn now(&self, alone: bool) -> i64 {
        if !self.has_guess.load(Ordering::Acquire) {
            // librdkafka takes 0 for "now".
            return clock::unix_millis().max(1);
        }
        let (guess, now) = (*lock(&self.guess), Instant::now());
        let time = match guess.filter(|guess| guess.holds(now) && (alone || guess.is_proven)) {
            None => clock::unix_millis(),
            Some(guess) => {
                let since = i64::try_from(now.saturating_duration_since(guess.since).as_millis()).unwrap_or(i64::MAX);
                guess.broker.saturating_add(since)
            }
        };
        time.max(1)
    }

    /// A broker refused a time of now: its clock shows another. Guesses anew; says whether there is another guess.
    pub(super) fn step(&self, rules: Option<&Rules>) -> bool {
        let (own, now) = (clock::unix_millis(), Instant::now());
        let mut guess = lock(&self.guess);
        let next = match *guess {
            Some(last) if last.step >= MOST_STEPS => {
                if now.saturating_duration_since(last.since) < REST {
                    return false;
                }
                Guess::next(None, rules, own, now)
            }
            // It held until now, and the clock was not set in between.
            Some(last) if !last.holds(now) => Guess::new(last.step, last.reach, last.ahead, own, now),
            last => Guess::next(last.as_ref(), rules, own, now),
        };
        *guess = Some(next);
        self.has_guess.store(true, Ordering::Release);
        tracing::warn!(
            seconds = next.ahead / 1_000,
            "the broker refuses the present time: this machine's clock or the broker's is off; a time so far from this \
             machine's is tried"
        );
        next.step < MOST_STEPS
    }

    /// A broker took a record with a time of now, by the guess if there is one.
    pub(super) fn prove(&self) {
        if let Some(guess) = &mut *lock(&self.guess) {
            guess.is_proven |= guess.holds(Instant::now());
        }
    }

    /// How many milliseconds this machine's clock seems to be ahead of the brokers', if they refused it.
    pub(super) fn ahead(&self) -> Option<i64> {
        lock(&self.guess).filter(|guess| guess.holds(Instant::now())).map(|guess| guess.ahead)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: i64 = 1_800_000_000_000;

    /// The number of guesses until a broker whose clock is `ahead` behind ours takes the time, and that time by its clock.
    fn search(rules: &Rules, ahead: i64) -> Option<(u32, i64)> {
        let now = Instant::now();
        let mut guess = Guess::next(None, Some(rules), OWN, now);
        while guess.step < MOST_STEPS {
            let age = (OWN - ahead) - guess.broker;
            if rules.before.is_none_or(|before| age <= before) && rules.after.is_none_or(|after| -age <= after) {
                return Some((guess.step + 1, -age));
            }
            guess = Guess::next(Some(&guess), Some(rules), OWN, now);
        }
        None
    }

    #[test]
    fn a_clock_that_is_ahead_by_hours_is_found_with_kafkas_defaults() {
        let week = 7 * 24 * HOUR;
        let rules = Rules { retention: Some(week), after: Some(HOUR), ..Rules::default() };
        for hours in [2, 3, 10, 100, 1_000] {
            let (steps, time) = search(&rules, hours * HOUR).expect("found");
            assert!(steps < 40 && time > -week / 2 && time <= HOUR, "{hours} h: {steps} guesses, {time}");
        }
        assert_eq!(search(&rules, 2 * HOUR), Some((1, HOUR)));
    }

    #[test]
    fn a_clock_that_is_behind_or_ahead_is_found_between_two_limits() {
        let rules = Rules { before: Some(5_000), after: Some(HOUR), ..Rules::default() };
        for ahead in [-60_000, -3 * HOUR, 2 * HOUR, 5 * HOUR + HOUR / 2] {
            assert!(search(&rules, ahead).is_some(), "{ahead}");
        }
        let behind = Rules { before: Some(5_000), ..Rules::default() };
        assert!(search(&behind, -HOUR).is_some());
    }

    #[test]
    fn a_guess_that_is_not_proven_concerns_only_what_is_tried_by_itself() {
        let clock = BrokerClock::default();
        assert!(clock.step(None));
        let is_guess = |alone| (clock::unix_millis() - clock.now(alone) - HOUR).abs() < 60_000;
        assert!(is_guess(true) && !is_guess(false));
        clock.prove();
        assert!(is_guess(true) && is_guess(false));
        assert!(clock.step(None));
        assert!(!is_guess(false), "another guess is to be proven, too");
    }

    #[test]
    fn a_search_ends_and_rests() {
        let (clock, rules) = (BrokerClock::default(), Rules { after: Some(0), before: Some(0), ..Rules::default() });
        let steps = (0..1_000).take_while(|_| clock.step(Some(&rules))).count();
        assert!(steps as u32 == MOST_STEPS && !clock.step(Some(&rules)));
        assert!(clock.ahead().is_none() && (clock.now(true) - clock::unix_millis()).abs() < 60_000);
    }
}
