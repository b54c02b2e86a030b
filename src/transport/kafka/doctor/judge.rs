//! What the description of a topic and its settings mean for the promise.

use std::collections::BTreeMap;
use std::time::Duration;

use rdkafka::error::RDKafkaErrorCode as Code;

use super::super::classify;
use super::super::times::ExpiredTimes;
use super::ffi::{Settings, Topic};
use crate::finding::{Code as Name, Finding, Severity};
use crate::message::Route;
use crate::transport::examine::{Destination, Questions};

/// What a message takes in a batch of its own besides key, headers and payload: the batch's header (61 bytes), the record's
/// lengths and times, the header of the message id.
const FRAMING: u64 = 256;
/// An outage that a topic should bear.
const OUTAGE: i64 = 24 * 3_600 * 1_000;

/// Judges one topic. `now` is this machine's clock.
pub(super) fn topic(
    asked: &Destination,
    topic: &Topic,
    settings: &Settings,
    policy: ExpiredTimes,
    questions: &Questions,
    now: i64,
) -> Vec<Finding> {
    let route = &asked.route;
    if let Some(code) = topic.error {
        return vec![not_there(route, code)];
    }
    let mut findings = Vec::new();
    if topic.may_write == Some(false) {
        let advice =
            format!("allow it: kafka-acls --add --allow-principal User:NAME --producer --topic {}", route.destination);
        findings.push(Finding::problem(Name::NoRightToWrite, route, "this user may not write to the topic", advice));
    }
    if topic.may_write.is_none() {
        let advice = "look at its ACLs by hand; a broker says it since 2.3";
        findings.push(Finding::note(
            Name::NotChecked,
            route,
            "the broker does not say whether this user may write",
            advice,
        ));
    }
    let none = BTreeMap::new();
    let known = Known(settings.as_ref().unwrap_or(&none));
    if let Err(code) = settings {
        let what = format!("its settings could not be read ({code}), so they were not checked");
        let advice = "allow DESCRIBE_CONFIGS on the topic, or look by hand: min.insync.replicas 2 or more, \
                      max.message.bytes, retention.ms, message.timestamp.*";
        findings.push(Finding::note(Name::NotChecked, route, what, advice));
    }
    let min_in_sync = known.number("min.insync.replicas");
    findings.extend(partitions(route, topic, min_in_sync));
    findings.extend(replication(route, topic, &known, min_in_sync));
    findings.extend(size(route, &known, questions.max_message_bytes as u64));
    // Nothing is known of the limits: the default of each would be a guess.
    if settings.is_ok() {
        findings.extend(times(asked, &known, policy, now));
    }
    findings
}

fn not_there(route: &Route, code: Code) -> Finding {
    match code {
        Code::UnknownTopicOrPartition | Code::UnknownTopic | Code::UnknownTopicId => {
            let advice = "create it, with three replicas and min.insync.replicas 2; its messages wait until then";
            Finding::problem(Name::TopicMissing, route, "the topic does not exist", advice)
        }
        Code::TopicAuthorizationFailed => {
            let advice = "allow this user WRITE and DESCRIBE on the topic (kafka-acls --add --producer)";
            Finding::problem(Name::NoRightToWrite, route, "this user may neither write to the topic nor see it", advice)
        }
        Code::LeaderNotAvailable => no_leader(route, "the topic has no leaders"),
        code => {
            let what = classify::judge(code).failure(code, &route.destination, -1).reason;
            Finding::problem(Name::NotChecked, route, what, "see the broker's log")
        }
    }
}

fn no_leader(route: &Route, what: &str) -> Finding {
    let advice = "see which brokers are away: messages for these partitions wait";
    Finding::problem(Name::NoLeader, route, what, advice)
}

/// What is out of order at the moment.
fn partitions(route: &Route, topic: &Topic, min_in_sync: Option<i64>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let all = topic.partitions.len();
    let count = |which: &dyn Fn(&super::ffi::Partition) -> bool| topic.partitions.iter().filter(|it| which(it)).count();
    let leaderless = count(&|it| !it.has_leader);
    if leaderless > 0 {
        findings.push(no_leader(route, &format!("{leaderless} of {all} partitions have no leader")));
    }
    let needed = usize::try_from(min_in_sync.unwrap_or(1)).unwrap_or(1);
    let refusing = count(&|it| it.in_sync < needed && it.replicas >= needed);
    let behind = count(&|it| it.in_sync < it.replicas);
    if refusing > 0 {
        let what = format!("{refusing} of {all} partitions have fewer than min.insync.replicas ({needed}) in sync");
        let advice = "see which brokers are away or behind: messages for these partitions wait";
        findings.push(Finding::problem(Name::TooFewReplicas, route, what, advice));
    } else if behind > 0 {
        let what = format!("{behind} of {all} partitions have replicas that are not in sync");
        findings.push(Finding::note(Name::TooFewReplicas, route, what, "see which brokers are away or behind"));
    }
    findings
}

/// Whether what is acknowledged outlives a broker.
fn replication(route: &Route, topic: &Topic, known: &Known<'_>, min_in_sync: Option<i64>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let replicas = topic.partitions.iter().map(|it| it.replicas).min().unwrap_or(0);
    if replicas < 2 {
        let what = "a partition has one replica: with its broker's disk all of it is lost";
        findings.push(Finding::problem(Name::TooFewReplicas, route, what, "give the topic three replicas"));
    }
    if let Some(min) = min_in_sync {
        if min < 2 {
            let what = format!("min.insync.replicas is {min}: one broker alone may acknowledge, and be lost");
            findings.push(Finding::problem(Name::MinInsyncReplicas, route, what, "set it to 2, with three replicas"));
        } else if usize::try_from(min).is_ok_and(|min| min > replicas) {
            let what =
                format!("min.insync.replicas is {min}, and a partition has {replicas} replicas: nothing is taken");
            findings.push(Finding::problem(Name::MinInsyncReplicas, route, what, "give the topic more replicas"));
        } else if usize::try_from(min).is_ok_and(|min| min == replicas) {
            let what = format!("min.insync.replicas is {min}, as many as there are: no broker may be away");
            findings.push(Finding::note(Name::MinInsyncReplicas, route, what, "give the topic one replica more"));
        }
    }
    if known.text("unclean.leader.election.enable") == Some("true") {
        let what = "unclean.leader.election.enable is on: a broker that lacks acknowledged messages may become leader";
        findings.push(Finding::problem(Name::UncleanLeaderElection, route, what, "set it to false"));
    }
    if known.text("cleanup.policy").is_some_and(|policy| policy.contains("compact")) {
        let what = "the topic is compacted: a message without a key is refused, and becomes a dead letter";
        findings.push(Finding::note(Name::Compacted, route, what, "give each message a key"));
    }
    findings
}

/// Whether the largest message fits.
fn size(route: &Route, known: &Known<'_>, ours: u64) -> Option<Finding> {
    let theirs = u64::try_from(known.number("max.message.bytes")?).ok()?;
    let advice = format!("set the topic's max.message.bytes to {} or more, or max_message_bytes lower", ours + FRAMING);
    if theirs < ours {
        let what = format!(
            "max.message.bytes is {theirs}, and messages up to {ours} bytes are accepted: larger ones become dead letters"
        );
        return Some(Finding::problem(Name::MessageTooLarge, route, what, advice));
    }
    (theirs < ours + FRAMING).then(|| {
        let what = format!("max.message.bytes is {theirs}: of messages up to {ours} bytes the very largest do not fit with their framing");
        Finding::note(Name::MessageTooLarge, route, what, advice)
    })
}

/// What is said of messages whose times a topic is against. Times that the library stamped give way, and of those that the
/// application gave only [`ExpiredTimes::Send`] sends any. What waits may be of both kinds.
fn against(name: Name, route: &Route, policy: ExpiredTimes, (what, end): (String, &str), advice: &str) -> Finding {
    let others = "the others get the time of delivery";
    match policy {
        ExpiredTimes::Hold => {
            let what = format!("{what}: if the application gave its time it waits (expired-times=hold); {others}");
            Finding::note(name, route, what, format!("{advice}, or set expired-times to send or restamp"))
        }
        ExpiredTimes::Send => {
            let what = format!("{what}: if the application gave its time {end} (expired-times=send); {others}");
            Finding::problem(name, route, what, format!("{advice}, or set expired-times to hold or restamp"))
        }
        ExpiredTimes::Restamp => {
            let what = format!("{what}: it is sent with the time of delivery (expired-times=restamp)");
            Finding::note(name, route, what, format!("nothing, or {advice}"))
        }
    }
}

/// Whether messages that waited are taken, and stay.
fn times(asked: &Destination, known: &Known<'_>, policy: ExpiredTimes, now: i64) -> Vec<Finding> {
    let mut findings = Vec::new();
    // The broker stamps them itself.
    if known.text("message.timestamp.type") == Some("LogAppendTime") {
        return findings;
    }
    let (route, age) = (&asked.route, asked.age(now));
    let waiting = |age: i64| format!("of {} messages that wait the oldest is {} old", asked.pending, span(age));
    let deletes = known.text("cleanup.policy").is_none_or(|policy| policy.contains("delete"));
    if let Some(retention) = known.number("retention.ms").filter(|&retention| retention >= 0 && deletes) {
        let what = |text: String| format!("retention.ms is {}, {text}", span(retention));
        let advice = "raise retention.ms, or set message.timestamp.type=LogAppendTime, before they are delivered";
        match age {
            Some(age) if age > retention / 2 => {
                let what = what(format!("and {}", waiting(age)));
                let end = "the broker deletes it soon after it is delivered";
                let mut found = against(Name::Retention, route, policy, (what, end), advice);
                if age <= retention {
                    // There is time left.
                    found.severity = Severity::Note;
                }
                findings.push(found);
            }
            _ if retention < OUTAGE => {
                let what =
                    what("and counts from a time that the application gives: what waits for half of it is held, or deleted soon, or gets the time of delivery (see expired-times)".into());
                findings.push(Finding::note(Name::Retention, route, what, advice));
            }
            _ => {}
        }
    }
    findings.extend(limits(asked, known, policy, now));
    findings
}

/// `message.timestamp.before.max.ms` and `.after.max.ms`; before Kafka 3.6 one setting for both.
fn limits(asked: &Destination, known: &Known<'_>, policy: ExpiredTimes, now: i64) -> Vec<Finding> {
    const OLD: &str = "message.timestamp.difference.max.ms";
    const DEAD: &str = "it is refused, and becomes a dead letter";
    let limit = |name: &'static str| {
        let of = |name: &'static str| Some((name, known.number(name)?));
        // The default is as good as none.
        [of(name), of(OLD)]
            .into_iter()
            .flatten()
            .min_by_key(|(_, limit)| *limit)
            .filter(|(_, limit)| *limit < i64::MAX / 2)
    };
    let (route, mut findings) = (&asked.route, Vec::new());
    if let Some((name, limit)) = limit("message.timestamp.before.max.ms") {
        let what = |text: String| format!("{name} is {}, {text}", span(limit));
        let advice = "raise it, or set message.timestamp.type=LogAppendTime";
        match asked.age(now) {
            Some(age) if age > limit => {
                let text = format!("and of {} messages that wait the oldest is {} old", asked.pending, span(age));
                let what = (what(text), DEAD);
                findings.push(against(Name::TimestampLimits, route, policy, what, advice));
            }
            _ if limit < OUTAGE => {
                let text = "so that messages with a time of the application's which wait longer are held, or refused, or get the time of delivery (see expired-times)".into();
                findings.push(Finding::note(Name::TimestampLimits, route, what(text), advice));
            }
            _ => {}
        }
    }
    if let Some((name, limit)) = limit("message.timestamp.after.max.ms") {
        let what = |text: String| format!("{name} is {}, {text}", span(limit));
        match asked.ahead(now).filter(|&ahead| ahead > limit) {
            Some(ahead) => {
                let text = format!("and a message that waits is stamped {} ahead of this clock", span(ahead));
                let advice = "set this clock right, or raise it";
                findings.push(against(Name::TimestampLimits, route, policy, (what(text), DEAD), advice));
            }
            None => {
                let clock = crate::clock::system_time(now)
                    .map_or("?".into(), |now| humantime::format_rfc3339_seconds(now).to_string());
                let text = format!("and Kafka does not tell its time: this clock says {clock}, and was not compared");
                let advice = "keep both clocks synchronized (NTP)";
                findings.push(Finding::note(Name::TimestampLimits, route, what(text), advice));
            }
        }
    }
    findings
}

/// Settings that could be read.
struct Known<'a>(&'a BTreeMap<String, String>);

impl Known<'_> {
    fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    fn number(&self, name: &str) -> Option<i64> {
        self.text(name)?.parse().ok()
    }
}

/// Milliseconds for people: to the second, but for less than ten.
fn span(millis: i64) -> String {
    let millis = millis.max(0).unsigned_abs();
    let shown = if millis < 10_000 { millis } else { millis / 1_000 * 1_000 };
    humantime::format_duration(Duration::from_millis(shown)).to_string()
}

#[cfg(test)]
mod tests {
    use super::super::ffi::Partition;
    use super::*;

    const NOW: i64 = 1_800_000_000_000;

    fn codes(topic: &Topic, settings: &[(&str, &str)], timestamps: Option<(i64, i64)>) -> Vec<(Name, bool)> {
        codes_with(ExpiredTimes::Send, topic, settings, timestamps)
    }

    fn codes_with(
        policy: ExpiredTimes,
        topic: &Topic,
        settings: &[(&str, &str)],
        timestamps: Option<(i64, i64)>,
    ) -> Vec<(Name, bool)> {
        let route = Route { transport: "kafka".into(), destination: "orders".into() };
        let questions = Questions {
            transport: "kafka".into(),
            destinations: Vec::new(),
            max_message_bytes: 1 << 20,
            window_bytes: 32 << 20,
            timeout: Duration::from_secs(1),
        };
        let asked = Destination { route, pending: timestamps.map_or(0, |_| 1), timestamps };
        let settings = Ok(settings.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect());
        let findings = super::topic(&asked, topic, &settings, policy, &questions, NOW);
        findings.iter().map(|found| (found.code, found.severity == crate::finding::Severity::Problem)).collect()
    }

    fn topic(has_leader: bool, replicas: usize, in_sync: usize) -> Topic {
        let partitions = vec![Partition { has_leader, replicas, in_sync }];
        Topic { name: "orders".into(), error: None, partitions, may_write: Some(true) }
    }

    #[test]
    fn replicas_that_are_away_are_told_by_what_they_stop() {
        let safe = [("min.insync.replicas", "2")];
        assert_eq!(codes(&topic(true, 3, 3), &safe, None), []);
        assert_eq!(codes(&topic(true, 3, 2), &safe, None), [(Name::TooFewReplicas, false)]);
        assert_eq!(codes(&topic(true, 3, 1), &safe, None), [(Name::TooFewReplicas, true)]);
        let leaderless = [(Name::NoLeader, true), (Name::TooFewReplicas, true)];
        assert_eq!(codes(&topic(false, 3, 0), &safe, None), leaderless);
        assert_eq!(codes(&topic(true, 2, 2), &safe, None), [(Name::MinInsyncReplicas, false)]);
        assert_eq!(codes(&topic(true, 2, 2), &[("min.insync.replicas", "3")], None), [(Name::MinInsyncReplicas, true)]);
    }

    #[test]
    fn one_setting_for_both_limits_counts_as_both() {
        let old = [("message.timestamp.difference.max.ms", "60000"), ("cleanup.policy", "compact")];
        let compacted = (Name::Compacted, false);
        let (refused, noted) = ((Name::TimestampLimits, true), (Name::TimestampLimits, false));
        let of = |timestamps| codes(&topic(true, 3, 3), &old, timestamps);
        assert_eq!(of(None), [compacted, noted, noted]);
        assert_eq!(of(Some((NOW - 61_000, NOW))), [compacted, refused, noted]);
        assert_eq!(of(Some((NOW, NOW + 61_000))), [compacted, noted, refused]);
    }

    #[test]
    fn a_compacted_topic_deletes_nothing_for_its_age() {
        let settings = |policy| [("cleanup.policy", policy), ("retention.ms", "60000")];
        let of = |policy| codes(&topic(true, 3, 3), &settings(policy), Some((NOW - 61_000, NOW)));
        assert_eq!(of("compact"), [(Name::Compacted, false)]);
        assert_eq!(of("compact,delete"), [(Name::Compacted, false), (Name::Retention, true)]);
        assert_eq!(of("delete"), [(Name::Retention, true)]);
    }

    /// What waits, or gets the time of delivery, loses nothing.
    #[test]
    fn times_that_a_topic_is_against_are_a_problem_only_if_they_are_sent() {
        let settings = [
            ("retention.ms", "60000"),
            ("message.timestamp.before.max.ms", "60000"),
            ("message.timestamp.after.max.ms", "60000"),
        ];
        for policy in [ExpiredTimes::Hold, ExpiredTimes::Send, ExpiredTimes::Restamp] {
            let found = codes_with(policy, &topic(true, 3, 3), &settings, Some((NOW - 61_000, NOW + 61_000)));
            let is_sent = policy == ExpiredTimes::Send;
            let limits = (Name::TimestampLimits, is_sent);
            assert_eq!(found, [(Name::Retention, is_sent), limits, limits], "{policy:?}");
        }
        let half = codes(&topic(true, 3, 3), &settings[..1], Some((NOW - 31_000, NOW)));
        assert_eq!(half, [(Name::Retention, false)], "there is time left");
    }
}
