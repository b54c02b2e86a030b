//! Time for people, and randomness for identities. Deadlines are `Instant`s.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Stands for "for ever" where the clock could not say it.
const FAR: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// So long after `now`; a duration too long for the clock is a century.
pub fn after(now: Instant, duration: Duration) -> Instant {
    now.checked_add(duration).unwrap_or_else(|| now + FAR)
}

/// Milliseconds since 1970, by the wall clock; negative before it.
pub fn unix_millis() -> i64 {
    let millis = |duration: std::time::Duration| i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
    match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(since) => millis(since),
        Err(before) => -millis(before.duration()),
    }
}

/// The time as `SystemTime`; `None` for what no clock of this platform can show.
pub fn system_time(unix_millis: i64) -> Option<SystemTime> {
    let magnitude = std::time::Duration::from_millis(unix_millis.unsigned_abs());
    if unix_millis >= 0 { UNIX_EPOCH.checked_add(magnitude) } else { UNIX_EPOCH.checked_sub(magnitude) }
}

/// 64 random bits from the operating system; where it has none, from the time and the process.
pub fn random_u64() -> u64 {
    getrandom::u64().unwrap_or_else(|_| fastrand::u64(..))
}
