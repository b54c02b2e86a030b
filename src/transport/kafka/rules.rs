//! A topic's settings that concern the times of its records, and what they say of one time.
//!
//! Pure: times are milliseconds since 1970, and the present one is passed in.

use std::fmt;

/// What the topic's settings say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Rules {
    /// `message.timestamp.type=LogAppendTime`: the broker puts its own time in the place of the record's.
    pub(super) by_broker: bool,
    /// `retention.ms`; `None`: by its age alone no record is deleted.
    pub(super) retention: Option<i64>,
    /// `message.timestamp.before.max.ms`: how far in the past a time may lie; `None`: as far as it likes.
    pub(super) before: Option<i64>,
    /// `message.timestamp.after.max.ms`: the same for the future.
    pub(super) after: Option<i64>,
}

/// What a topic has against a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// It is older than half of `retention.ms`.
    Expires(i64),
    /// It is further in the past than `message.timestamp.before.max.ms`.
    TooOld(i64),
    /// It is further in the future than `message.timestamp.after.max.ms`.
    TooNew(i64),
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Expires(limit) => {
                write!(f, "older than half of the topic's retention.ms={limit}, so that the broker deletes it soon")
            }
            Self::TooOld(limit) => {
                write!(f, "further in the past than the topic's message.timestamp.before.max.ms={limit} allows")
            }
            Self::TooNew(limit) => {
                write!(f, "further in the future than the topic's message.timestamp.after.max.ms={limit} allows")
            }
        }
    }
}

impl Rules {
    /// Takes in a topic's settings by name; what is not among them limits nothing.
    pub(super) fn read<'a>(settings: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let (mut rules, mut deletes) = (Self::default(), true);
        // Before Kafka 3.6 one setting was the limit for both; until 4.0 it still is where the newer ones are not set.
        let mut difference = None;
        let limit = |value: &str| value.parse::<i64>().ok().filter(|limit| (0..i64::MAX).contains(limit));
        for (name, value) in settings {
            match name {
                "message.timestamp.type" => rules.by_broker = value == "LogAppendTime",
                "retention.ms" => rules.retention = limit(value),
                "cleanup.policy" => deletes = value.split(',').any(|policy| policy.trim() == "delete"),
                "message.timestamp.before.max.ms" => rules.before = limit(value),
                "message.timestamp.after.max.ms" => rules.after = limit(value),
                "message.timestamp.difference.max.ms" => difference = limit(value),
                _ => {}
            }
        }
        rules.retention = rules.retention.filter(|_| deletes);
        rules.before = rules.before.or(difference);
        rules.after = rules.after.or(difference);
        rules
    }

    /// What the topic has against a time. One that the transport may choose (`ours`) is replaced early: at half of a
    /// limit, so that it is still good when the record arrives, by the broker's clock.
    pub(super) fn trouble(&self, time: i64, now: i64, ours: bool) -> Option<Trouble> {
        if self.by_broker {
            return None;
        }
        let (age, margin) = (now.saturating_sub(time), if ours { 2 } else { 1 });
        let beyond = |limit: Option<i64>, margin: i64, by: i64| limit.filter(|limit| by > limit / margin);
        beyond(self.before, margin, age)
            .map(Trouble::TooOld)
            .or_else(|| beyond(self.after, margin, age.saturating_neg()).map(Trouble::TooNew))
            .or_else(|| beyond(self.retention, 2, age).map(Trouble::Expires))
    }

    /// Whether a time that was good when the record was handed to librdkafka is so no longer: three quarters of a limit
    /// have passed.
    pub(super) fn is_overdue(&self, time: i64, now: i64) -> bool {
        let age = now.saturating_sub(time);
        !self.by_broker
            && [self.before, self.retention].into_iter().flatten().any(|limit| age > limit.saturating_sub(limit / 4))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_800_000_000_000;
    const DAY: i64 = 24 * 3_600_000;

    #[test]
    fn the_settings_of_kafka_4_and_of_older_ones_are_understood() {
        let rules = Rules::read([
            ("cleanup.policy", "compact, delete"),
            ("message.timestamp.type", "CreateTime"),
            ("retention.ms", "604800000"),
            ("message.timestamp.before.max.ms", "9223372036854775807"),
            ("message.timestamp.after.max.ms", "3600000"),
            ("segment.bytes", "1073741824"),
        ]);
        let expected = Rules { by_broker: false, retention: Some(7 * DAY), before: None, after: Some(3_600_000) };
        assert_eq!(rules, expected);
        let old = Rules::read([("message.timestamp.difference.max.ms", "5000"), ("retention.ms", "-1")]);
        assert_eq!(old, Rules { before: Some(5_000), after: Some(5_000), ..Rules::default() });
        let both = [("message.timestamp.difference.max.ms", "5000"), ("message.timestamp.before.max.ms", "9000")];
        assert_eq!(Rules::read(both).before, Some(9_000));
        for (policy, retention) in [("compact", None), ("", None), ("delete", Some(8)), ("compact,delete", Some(8))] {
            assert_eq!(Rules::read([("cleanup.policy", policy), ("retention.ms", "8")]).retention, retention);
        }
        assert_eq!(Rules::read([("retention.ms", "soon")]), Rules::default());
    }

    #[test]
    fn a_time_older_than_half_of_the_retention_expires_soon() {
        let rules = Rules { retention: Some(8_000), ..Rules::default() };
        assert_eq!(rules.trouble(NOW - 4_000, NOW, true), None);
        assert_eq!(rules.trouble(NOW - 4_001, NOW, true), Some(Trouble::Expires(8_000)));
        assert_eq!(rules.trouble(NOW - 4_001, NOW, false), Some(Trouble::Expires(8_000)));
        assert_eq!(rules.trouble(NOW + DAY, NOW, true), None);
        assert!(!rules.is_overdue(NOW - 6_000, NOW) && rules.is_overdue(NOW - 6_001, NOW));
    }

    #[test]
    fn a_time_that_would_be_refused_is_known_beforehand_unless_the_broker_stamps_itself() {
        let rules = Rules { before: Some(5_000), after: Some(3_600_000), ..Rules::default() };
        assert_eq!(rules.trouble(NOW - 5_001, NOW, false), Some(Trouble::TooOld(5_000)));
        assert_eq!(rules.trouble(NOW - 5_000, NOW, false), None);
        assert_eq!(rules.trouble(NOW - 2_501, NOW, true), Some(Trouble::TooOld(5_000)), "by half, if it is ours");
        assert_eq!(rules.trouble(NOW + 7_200_000, NOW, true), Some(Trouble::TooNew(3_600_000)));
        assert_eq!(rules.trouble(NOW + 3_600_000, NOW, false), None);
        let by_broker = Rules { by_broker: true, retention: Some(1), ..rules };
        assert_eq!(by_broker.trouble(1, NOW, true), None);
        assert!(!by_broker.is_overdue(1, NOW));
    }

    #[test]
    fn no_time_overflows() {
        let rules = Rules { retention: Some(0), before: Some(i64::MAX - 1), after: Some(0), by_broker: false };
        for time in [i64::MIN, -1, 0, 1, NOW, i64::MAX] {
            for now in [i64::MIN, 0, NOW, i64::MAX] {
                let _ = (rules.trouble(time, now, true), rules.is_overdue(time, now));
            }
        }
    }
}
