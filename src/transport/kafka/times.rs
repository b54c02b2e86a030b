//! Which time a record is sent with.
//!
//! A broker refuses a record whose time lies too far from its clock, and deletes one that is older than the topic's
//! `retention.ms`. A time that the library stamped at acceptance must not decide about the message: where the topic's
//! settings are against it, the record gets the time of delivery, and the time of acceptance goes into a header. A time
//! that the application gave stays; [`ExpiredTimes`] chooses what becomes of one that the topic is against.
//!
//! May assume nothing of the clocks: this machine's may be ahead of the broker's, or behind. The broker says so only by
//! refusing a time of now (see [`BrokerClock`]).

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use super::book::lock;
use super::broker_clock::BrokerClock;
use super::rules::{Rules, Trouble};
use super::share::millis;
use crate::message::Outgoing;
use crate::transport::{Class, Failure, Scope, StartError};

/// The option of this crate's own.
pub(super) const OPTION: &str = "expired-times";

/// For so long after a message was last concerned, health says that messages are sent although their time is bad.
const NOTE_HOLDS: Duration = Duration::from_secs(600);
/// The most topics that health says something of.
const MOST_NOTES: usize = 1_000;
/// A time so near to now matters to no topic that is worth a note while its settings are unknown.
const NEAR: i64 = 10_000;
/// A time of now that was under way for so long, in milliseconds, may be refused for that alone.
const UNDER_WAY: i64 = 2_000;
/// For so long after it held a message back, a topic's settings are read more often: an operator may be changing them.
const HELD_OF_LATE: Duration = Duration::from_secs(60);

/// What becomes of a message whose time the application gave, and the topic's settings are against: the broker would
/// refuse it, or delete it soon because it is older than half of `retention.ms`.
///
/// It concerns no message without a time of the application's: those are sent with the time of delivery where need be.
/// Where the topic's settings cannot be read, every message is sent as it is, and the broker's refusal counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ExpiredTimes {
    /// It is sent as it is. One that the broker refuses for its time becomes a dead letter.
    Send,
    /// It waits in the outbox, and with it the later messages of its key, until the topic's settings take it or this
    /// setting is another. So does one that the broker refuses for its time although the settings, as far as they are
    /// known, allow it. Loses nothing, and holds back-fills, too.
    #[default]
    Hold,
    /// It is sent with the time of delivery; the application's time goes into the header `outlast-accepted`.
    Restamp,
}

impl ExpiredTimes {
    /// Its value in a URL or in [`KafkaConfig::options`](super::KafkaConfig::options).
    pub const fn name(self) -> &'static str {
        match self {
            Self::Send => "send",
            Self::Hold => "hold",
            Self::Restamp => "restamp",
        }
    }

    pub(super) fn parse(value: &str) -> Result<Self, StartError> {
        [Self::Send, Self::Hold, Self::Restamp].into_iter().find(|known| known.name() == value).ok_or_else(|| {
            StartError(format!("option {OPTION}: {value:?} is none of send, hold (the default) and restamp"))
        })
    }
}

/// The time of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamped {
    /// In milliseconds since 1970.
    pub(super) time: i64,
    /// The time that the message has, where the record is sent with another.
    pub(super) accepted: Option<i64>,
    /// Whether the transport may choose the time.
    pub(super) ours: bool,
}

/// What health says of a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Note {
    /// Its settings cannot be read.
    Unread(String),
    /// Messages are sent although the topic is against their times.
    Sent(Trouble),
    /// Messages get the time of delivery in place of the application's.
    Restamped(Trouble),
}

/// What all topics of a transport share.
#[derive(Debug, Default)]
pub(super) struct Times {
    policy: ExpiredTimes,
    /// The clocks of the topics whose brokers refused this machine's time.
    clocks: Mutex<BTreeMap<String, Weak<BrokerClock>>>,
    notes: Mutex<BTreeMap<String, (Note, Instant)>>,
}

impl Times {
    pub(super) fn new(policy: ExpiredTimes) -> Self {
        Self { policy, ..Self::default() }
    }

    /// Whether the transport may choose the time of a message.
    fn is_ours(&self, outgoing: &Outgoing) -> bool {
        outgoing.message.timestamp.is_none() || self.policy == ExpiredTimes::Restamp
    }

    fn note(&self, topic: &str, note: &Note) {
        let (now, mut notes) = (Instant::now(), lock(&self.notes));
        if let Some((_, at)) = notes.get_mut(topic).filter(|(known, _)| known == note) {
            *at = now;
            return;
        }
        if notes.len() < MOST_NOTES || notes.contains_key(topic) {
            tracing::warn!(topic, "{}", note.text());
            notes.insert(topic.to_owned(), (note.clone(), now));
        }
    }

    /// A broker refused this machine's time for a topic.
    fn doubt(&self, topic: &str, clock: &Arc<BrokerClock>) {
        let mut clocks = lock(&self.clocks);
        if clocks.len() < MOST_NOTES || clocks.contains_key(topic) {
            clocks.insert(topic.to_owned(), Arc::downgrade(clock));
        }
    }

    /// A topic's settings could be read.
    fn is_read(&self, topic: &str) {
        let mut notes = lock(&self.notes);
        if notes.get(topic).is_some_and(|(note, _)| matches!(note, Note::Unread(_))) {
            notes.remove(topic);
        }
    }

    /// What an operator should know though nothing waits for it.
    pub(super) fn alerts(&self) -> Vec<String> {
        let mut alerts = Vec::new();
        lock(&self.clocks).retain(|topic, clock| {
            let Some(ahead) = clock.upgrade().and_then(|clock| clock.ahead()) else { return false };
            let (seconds, direction) = (ahead.abs() / 1_000, if ahead > 0 { "ahead of" } else { "behind" });
            alerts.push(format!(
                "{topic}: the brokers refuse times by this machine's clock, which seems to be some {seconds} s \
                 {direction} theirs: set it, or theirs; until then the topic's records get a time by the brokers' clock"
            ));
            true
        });
        let mut notes = lock(&self.notes);
        notes.retain(|_, (_, at)| at.elapsed() < NOTE_HOLDS);
        alerts.extend(notes.iter().map(|(topic, (note, _))| format!("{topic}: {}", note.text())));
        alerts
    }
}

impl Note {
    fn text(&self) -> String {
        match self {
            Self::Unread(reason) => format!(
                "the topic's settings cannot be read ({reason}), so messages keep their times, also where the broker \
                 deletes or refuses them for that: allow DESCRIBE_CONFIGS on the topic"
            ),
            Self::Sent(trouble) => {
                format!("messages are sent ({OPTION}=send) whose own time is {trouble}")
            }
            Self::Restamped(trouble) => format!(
                "messages whose own time is {trouble}, are sent with the time of delivery ({OPTION}=restamp); theirs is \
                 in the header {}",
                crate::message::ACCEPTED_HEADER
            ),
        }
    }
}

/// How long a topic's settings count as read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pauses {
    /// As a rule, and where the broker does not let us read them.
    pub(super) seldom: Duration,
    /// Where a message was held back of late, or the settings could not be read.
    pub(super) often: Duration,
    /// While messages wait for them.
    pub(super) at_first: Duration,
}

/// Why settings could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// The broker does not let us.
    Refused,
    /// It does not know the topic (yet).
    Missing,
    /// The question failed.
    Failed,
    /// Messages have waited for the answer long enough; it may still come.
    Late,
}

#[derive(Debug, Default)]
struct Known {
    rules: Option<Rules>,
    /// Why they could not be read when they were asked for last.
    unread: Option<String>,
    /// Whether the broker does not let us read them.
    is_refused: bool,
    /// Since when messages may wait for them.
    waited_since: Option<Instant>,
    /// The broker refused a time of the library's that the settings do not forbid: every record gets the time of
    /// delivery, until the settings are others.
    refused: bool,
    /// When the settings were asked for last, if they were.
    asked_at: Option<Instant>,
    /// Whether an answer is awaited.
    is_asking: bool,
}

/// What is known of a topic's settings that concern times.
#[derive(Debug, Default)]
pub(super) struct TopicTimes {
    /// Whether messages need not wait for the settings: they are known, or not to be had.
    is_settled: AtomicBool,
    /// When a message was last held back.
    held_at: AtomicU64,
    /// What time it is for its brokers.
    clock: Arc<BrokerClock>,
    known: Mutex<Known>,
}

impl TopicTimes {
    pub(super) fn is_settled(&self) -> bool {
        self.is_settled.load(Ordering::Acquire)
    }

    /// The settings may be others than before, and have to be read before anything is sent: the topic is a new one.
    pub(super) fn forget(&self) {
        let mut known = lock(&self.known);
        *known = Known { is_asking: known.is_asking, ..Known::default() };
        self.is_settled.store(false, Ordering::Release);
    }

    /// Whether messages have waited for the settings for so long. Counts from the first call.
    pub(super) fn has_waited(&self, patience: Duration, now: Instant) -> bool {
        let since = *lock(&self.known).waited_since.get_or_insert(now);
        now.saturating_duration_since(since) >= patience
    }

    /// Whether the settings are to be read now. If so, the caller does: they count as asked for.
    pub(super) fn begin_asking(&self, now: Instant, pauses: &Pauses) -> bool {
        let held = self.held_at.load(Ordering::Relaxed);
        let held_of_late = held > 0 && Duration::from_millis(millis(now).saturating_sub(held)) < HELD_OF_LATE;
        let mut known = lock(&self.known);
        let pause = if !self.is_settled() {
            pauses.at_first
        } else if held_of_late || known.rules.is_none() && !known.is_refused {
            pauses.often
        } else {
            pauses.seldom
        };
        let is_due = known.asked_at.is_none_or(|asked| now.saturating_duration_since(asked) >= pause);
        if known.is_asking || !is_due {
            return false;
        }
        known.is_asking = true;
        known.asked_at = Some(now);
        true
    }

    /// The question went down with its instance.
    pub(super) fn ask_again(&self) {
        let mut known = lock(&self.known);
        known.is_asking = false;
        known.asked_at = None;
    }

    /// The settings were read. Says whether what was held back may be sent now.
    pub(super) fn learn(&self, common: &Times, topic: &str, rules: Rules) -> bool {
        let mut known = lock(&self.known);
        let changed = known.rules.as_ref() != Some(&rules);
        let news = changed && known.rules.is_some();
        let refused = known.refused && !changed;
        *known = Known { rules: Some(rules), refused, asked_at: known.asked_at, ..Known::default() };
        drop(known);
        self.is_settled.store(true, Ordering::Release);
        common.is_read(topic);
        news
    }

    /// The settings cannot be read, or not in time. What was known of them stays.
    pub(super) fn fail(&self, reason: String, why: Why) {
        let mut known = lock(&self.known);
        known.unread = Some(reason);
        known.is_refused = why == Why::Refused;
        known.is_asking &= why == Why::Late;
        drop(known);
        if why != Why::Missing {
            self.is_settled.store(true, Ordering::Release);
        }
    }

    /// Why a message is not sent now: the application gave it a time that the topic is against.
    pub(super) fn hold(&self, common: &Times, outgoing: &Outgoing) -> Option<Failure> {
        if outgoing.message.timestamp.is_none() || common.policy != ExpiredTimes::Hold {
            return None;
        }
        let trouble = lock(&self.known).rules.as_ref()?.trouble(outgoing.timestamp, self.clock.now(false), false)?;
        self.held_at.store(millis(Instant::now()), Ordering::Relaxed);
        let topic = &outgoing.route.destination;
        let text = format!(
            "{topic}: the time that the application gave the message is {trouble}; it waits ({OPTION}=hold): change the \
             topic's setting, or set {OPTION} to send or restamp"
        );
        Some(Failure::new(Class::Hold, Scope::Lane, text))
    }

    /// The time that a record is to be sent with now; `alone`: it is tried by itself.
    pub(super) fn stamp(&self, common: &Times, outgoing: &Outgoing, alone: bool) -> Stamped {
        let (ours, time, now) = (common.is_ours(outgoing), outgoing.timestamp, self.clock.now(alone));
        let (topic, given) = (&outgoing.route.destination, outgoing.message.timestamp.is_some());
        let known = lock(&self.known);
        let trouble = match &known.rules {
            Some(rules) => rules.trouble(time, now, ours),
            None => {
                if given || now.saturating_sub(time).saturating_abs() > NEAR {
                    let reason = known.unread.clone().unwrap_or_else(|| "not asked for yet".to_owned());
                    common.note(topic, &Note::Unread(reason));
                }
                None
            }
        };
        let is_fresh = ours && (trouble.is_some() || known.refused);
        drop(known);
        if let Some(trouble) = trouble.filter(|_| given) {
            common.note(topic, &if ours { Note::Restamped(trouble) } else { Note::Sent(trouble) });
        }
        if is_fresh {
            Stamped { time: now, accepted: Some(time), ours }
        } else {
            Stamped { time, accepted: None, ours }
        }
    }

    /// Whether a record that was handed to librdkafka, and that nothing was reported on, should be sent with another
    /// time by now.
    pub(super) fn is_overdue(&self, stamped: Stamped) -> bool {
        stamped.ours
            && lock(&self.known)
                .rules
                .as_ref()
                .is_some_and(|rules| rules.is_overdue(stamped.time, self.clock.now(false)))
    }

    /// A broker took a record that was tried by itself.
    pub(super) fn passed_alone(&self, stamped: Stamped) {
        if stamped.accepted.is_some() {
            self.clock.prove();
        }
    }

    /// The broker refused the time of a record that was sent by itself. `None`: it is a verdict on the message, since
    /// the time is the application's, and [`ExpiredTimes::Send`] is chosen. Otherwise it is tried with another time, or
    /// waits.
    pub(super) fn refused(&self, common: &Times, topic: &str, stamped: Stamped) -> Option<Failure> {
        if !stamped.ours {
            if common.policy != ExpiredTimes::Hold {
                return None;
            }
            // The settings as they were read last, and this machine's clock, saw no trouble.
            self.held_at.store(millis(Instant::now()), Ordering::Relaxed);
            let text = format!(
                "{topic}: the broker refuses the time that the application gave the message (InvalidTimestamp); it waits \
                 ({OPTION}=hold): change the topic's message.timestamp.before.max.ms or message.timestamp.after.max.ms, \
                 compare this machine's clock with the broker's, or set {OPTION} to send or restamp"
            );
            return Some(Failure::new(Class::Hold, Scope::Lane, text));
        }
        let again = |text: &str| Some(Failure::new(Class::Fatal, Scope::Lane, format!("{topic}: {text}")));
        let mut known = lock(&self.known);
        if stamped.accepted.is_none() {
            known.refused = true;
            return again("the broker refuses the time of acceptance; it is sent again with the time of delivery");
        }
        let is_old = self.clock.now(true).saturating_sub(stamped.time) > UNDER_WAY;
        if is_old || self.clock.step(known.rules.as_ref()) {
            common.doubt(topic, &self.clock);
            // By the guess, the settings say which times are bad.
            known.refused &= is_old || known.rules.is_none();
            return again("the broker refuses the time of delivery; it is sent again with another one");
        }
        let text = format!(
            "{topic}: the broker refuses the time of delivery, and every other time that was tried: compare this \
             machine's clock with the broker's, and see the topic's message.timestamp.before.max.ms and \
             message.timestamp.after.max.ms (InvalidTimestamp)"
        );
        Some(Failure::new(Class::Hold, Scope::Route, text))
    }
}

#[cfg(test)]
#[path = "times_tests.rs"]
mod tests;
