//! What is known of the server's limits on what it reads, and which messages are suspected of breaking them.
//!
//! Redis closes the connection on a message that is too large for it, mostly without a word, and what was sent behind it is
//! lost. So a message that may be too large is tried on a connection of its own ([`alone`](super::alone)): nothing here is a
//! verdict on a message. A limit may be raised at any time, so what was found out is forgotten after a while.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::stream::UnitSize;
use crate::message::{Body, Message, MessageId, Outgoing};

/// How long it is remembered that a stream refused a size, or that a batch had to be smaller.
const REFUSAL_HOLDS: Duration = Duration::from_secs(600);
/// How long batches that were made smaller stay so, at least, before they are made larger again step by step. Where that is
/// too early, because the limit is the server's and no outage was to blame, the time doubles, up to `REFUSAL_HOLDS`.
const GROW_AFTER: Duration = Duration::from_secs(5);
/// How often the connection breaks over the same message before that is suspected. Once is what any outage does.
const CUTS: u32 = 2;
/// Messages and streams of which something is noted at a time; with more, all is forgotten and found out again.
const NOTED: usize = 1024;

/// What the server says of itself, where the user may ask.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Facts {
    /// `redis_version`.
    pub version: Option<String>,
    /// `proto-max-bulk-len`: bytes of one argument.
    pub longest: Option<u64>,
    /// `client-query-buffer-limit`: bytes of a client's input, the queue of a transaction included.
    pub buffer: Option<u64>,
}

impl Facts {
    /// The longest value that the server reads, as far as it says.
    fn limit(&self) -> Option<u64> {
        // The end of the line counts, too.
        let buffer = self.buffer.map(|limit| limit.saturating_sub(2));
        [self.longest, buffer].into_iter().flatten().min()
    }

    /// The limit that a message exceeds, where the server says so.
    pub(super) fn exceeded_by(&self, message: &Outgoing) -> Option<u64> {
        // Most messages are smaller as a whole.
        let limit = self.limit().filter(|limit| message.message.size() as u64 > *limit)?;
        (longest(&message.message) as u64 > limit).then_some(limit)
    }
}

/// What was found out, by stream and by message.
pub(super) struct Limits {
    pub facts: Arc<Facts>,
    /// The smallest size that a stream refused, and when.
    refused: HashMap<Arc<str>, (usize, Instant)>,
    /// How often in a row the connection broke while this message, in a unit of its own, was the first without an answer.
    cuts: HashMap<MessageId, u32>,
    /// The same of units of several messages: how often in a row, and what they were made smaller by.
    unit_cuts: u32,
    unit: UnitSize,
    /// When `unit` changed.
    resized: Option<Instant>,
    /// It was made larger then, and after how long that is done.
    grown: bool,
    grow_after: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            facts: Arc::default(),
            refused: HashMap::new(),
            cuts: HashMap::new(),
            unit_cuts: 0,
            unit: UnitSize::default(),
            resized: None,
            grown: false,
            grow_after: GROW_AFTER,
        }
    }
}

impl Limits {
    /// What the server that is now connected to says.
    pub(super) fn know(&mut self, facts: Facts) {
        self.facts = Arc::new(facts);
    }

    /// Why a message is to be tried on a connection of its own, if it is.
    pub(super) fn suspicion(&self, message: &Outgoing, now: Instant) -> Option<String> {
        if let Some(limit) = self.facts.exceeded_by(message) {
            return Some(format!("{} bytes in one value, and the server reads {limit}", longest(&message.message)));
        }
        let size = message.message.size();
        if let Some(refused) = self.refused_size(&message.route.destination, now).filter(|refused| size >= *refused) {
            return Some(format!("{size} bytes, and {refused} were refused before"));
        }
        let cuts = self.cuts.get(&message.id).filter(|cuts| **cuts >= CUTS)?;
        Some(format!("the server closed the connection {cuts} times when this message was sent"))
    }

    /// How large a unit may be.
    pub(super) fn unit(&self, stream: &str, now: Instant) -> UnitSize {
        let usual = UnitSize::default();
        let mut size = if self.resized.is_some_and(|at| is_fresh(at, now)) { self.unit } else { usual };
        if let Some(half) = self.facts.buffer.and_then(|limit| usize::try_from(limit / 2).ok()) {
            size.bytes = size.bytes.min(half.max(1));
        }
        let limit = self.facts.limit().and_then(|limit| usize::try_from(limit + 1).ok());
        size.alone_from = [self.refused_size(stream, now), limit].into_iter().flatten().min();
        size
    }

    /// The connection was closed while these messages of one unit were the first without an answer.
    pub(super) fn cut(&mut self, messages: &[&Outgoing], now: Instant) {
        match messages {
            [] => {}
            [message] => {
                if self.cuts.len() >= NOTED {
                    self.cuts.clear();
                }
                *self.cuts.entry(message.id).or_default() += 1;
            }
            several => {
                self.unit_cuts += 1;
                if self.unit_cuts >= CUTS {
                    let recent = self.resized.is_some_and(|at| is_fresh(at, now));
                    if std::mem::replace(&mut self.grown, false) && recent {
                        self.grow_after = self.grow_after.saturating_mul(2).min(REFUSAL_HOLDS);
                    } else if !recent {
                        self.grow_after = GROW_AFTER;
                    }
                    let bytes = several.iter().map(|message| message.message.size()).sum::<usize>();
                    self.unit.messages = (several.len() / 2).max(1);
                    self.unit.bytes = (bytes / 2).max(1);
                    self.resized = Some(now);
                    tracing::warn!(
                        messages = self.unit.messages,
                        bytes = self.unit.bytes,
                        "Redis closed the connection again over a batch; smaller ones are tried"
                    );
                }
            }
        }
    }

    /// A message was refused for its size, by itself.
    pub(super) fn refuse(&mut self, message: &Outgoing, now: Instant) {
        let (stream, size) = (&message.route.destination, message.message.size());
        let smallest = self.refused_size(stream, now).map_or(size, |before| before.min(size));
        if self.refused.len() >= NOTED {
            self.refused.clear();
        }
        self.refused.insert(stream.clone(), (smallest, now));
        // It may be what the connection broke over all the time, and it will be in no batch again.
        self.grow_after = GROW_AFTER;
    }

    /// A message was delivered. Cheap where nothing is suspected.
    pub(super) fn pass(&mut self, message: &Outgoing, in_unit_of: usize, now: Instant) {
        if in_unit_of > 1 {
            self.unit_cuts = 0;
        }
        if self.resized.is_some() && (in_unit_of > 1 || self.unit.messages == 1) {
            self.grow(now);
        }
        if !self.cuts.is_empty() {
            self.cuts.remove(&message.id);
        }
        let stream = &*message.route.destination;
        if self.refused.get(stream).is_some_and(|(refused, _)| message.message.size() >= *refused) {
            // The limit was raised.
            self.refused.remove(stream);
        }
        if self.facts.exceeded_by(message).is_some() {
            self.facts = Arc::new(Facts { longest: None, buffer: None, ..(*self.facts).clone() });
        }
    }

    /// Makes batches larger again, a step at a time.
    fn grow(&mut self, now: Instant) {
        let usual = UnitSize::default();
        let due = self.resized.is_some_and(|at| now.saturating_duration_since(at) >= self.grow_after);
        if !due || self.unit == usual {
            return;
        }
        self.unit.messages = self.unit.messages.saturating_mul(2).min(usual.messages);
        self.unit.bytes = self.unit.bytes.saturating_mul(2).min(usual.bytes);
        (self.resized, self.grown) = (Some(now), true);
    }

    fn refused_size(&self, stream: &str, now: Instant) -> Option<usize> {
        self.refused.get(stream).filter(|(_, at)| is_fresh(*at, now)).map(|(size, _)| *size)
    }
}

fn is_fresh(at: Instant, now: Instant) -> bool {
    now.saturating_duration_since(at) < REFUSAL_HOLDS
}

/// The bytes of the longest value of the message's entry.
fn longest(message: &Message) -> usize {
    let body = match message.body() {
        Body::Payload(payload) => payload.as_ref().map_or(0, |payload| payload.len()),
        Body::Fields(fields) => fields.iter().flat_map(|(name, value)| [name.len(), value.len()]).max().unwrap_or(0),
    };
    let headers = message.headers().iter().filter_map(|header| header.value.as_ref()).map(|value| value.len());
    let key = message.key_bytes().map_or(0, |key| key.len());
    headers.chain([body, key]).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Route;

    fn message(number: u64, size: usize) -> Outgoing {
        let route = Route { transport: "redis".into(), destination: "s".into() };
        let message = Message::to("s").payload(vec![0; size]);
        Outgoing { id: MessageId::new(1, number), route, lane: None, timestamp: 0, message }
    }

    #[test]
    fn a_size_that_was_refused_is_suspected_until_it_passes_or_time_does() {
        let (mut limits, now) = (Limits::default(), Instant::now());
        limits.refuse(&message(1, 200), now);
        limits.refuse(&message(2, 100), now);
        limits.refuse(&message(3, 150), now);
        assert!(limits.suspicion(&message(4, 99), now).is_none());
        assert!(limits.suspicion(&message(4, 100), now).is_some());
        assert_eq!(limits.unit("s", now).alone_from, Some(100));
        assert_eq!(limits.unit("t", now).alone_from, None);
        assert!(limits.suspicion(&message(4, 100), now + REFUSAL_HOLDS).is_none());
        limits.pass(&message(5, 99), 1, now);
        assert!(limits.suspicion(&message(4, 100), now).is_some());
        limits.pass(&message(5, 100), 1, now);
        assert!(limits.suspicion(&message(4, 200), now).is_none(), "the limit was raised");
    }

    #[test]
    fn a_message_is_suspected_when_the_connection_breaks_over_it_again() {
        let (mut limits, now) = (Limits::default(), Instant::now());
        let (one, two) = (message(1, 5), message(2, 5));
        limits.cut(&[&one], now);
        limits.cut(&[&two], now);
        assert!(limits.suspicion(&one, now).is_none(), "once is what any outage does");
        limits.cut(&[&one], now);
        assert!(limits.suspicion(&one, now).is_some() && limits.suspicion(&two, now).is_none());
        limits.pass(&one, 1, now);
        assert!(limits.suspicion(&one, now).is_none());
    }

    #[test]
    fn batches_shrink_when_the_connection_breaks_over_them_again_and_grow_back() {
        let (mut limits, now) = (Limits::default(), Instant::now());
        let messages: Vec<Outgoing> = (0..100).map(|number| message(number, 10)).collect();
        let batch: Vec<&Outgoing> = messages.iter().collect();
        limits.cut(&batch, now);
        limits.pass(&messages[0], 100, now);
        limits.cut(&batch, now);
        assert_eq!(limits.unit("s", now), UnitSize::default(), "something passed in between");
        limits.cut(&batch, now);
        let size = limits.unit("s", now);
        assert_eq!((size.messages, size.bytes), (50, 500));
        limits.cut(&batch[..50], now);
        assert_eq!(limits.unit("s", now).messages, 25);
        assert_eq!(limits.unit("s", now + REFUSAL_HOLDS), UnitSize::default());
    }

    #[test]
    fn batches_made_smaller_by_outages_grow_back_soon_and_those_of_a_small_server_seldom() {
        let (mut limits, mut now) = (Limits::default(), Instant::now());
        let messages: Vec<Outgoing> = (0..256).map(|number| message(number, 4000)).collect();
        let batch: Vec<&Outgoing> = messages.iter().collect();
        (0..3).for_each(|_| limits.cut(&batch, now));
        assert_eq!(limits.unit("s", now).messages, 128);
        limits.pass(&messages[0], 128, now);
        assert_eq!(limits.unit("s", now).messages, 128, "not at once");
        now += GROW_AFTER;
        // One report for each message of the unit: it grows by one step all the same.
        (0..128).for_each(|_| limits.pass(&messages[0], 128, now));
        assert_eq!(limits.unit("s", now), UnitSize { messages: 256, bytes: 1_024_000, alone_from: None });
        now += GROW_AFTER;
        limits.pass(&messages[0], 256, now);
        assert_eq!(limits.unit("s", now), UnitSize::default());
        // It was too early.
        (0..2).for_each(|_| limits.cut(&batch, now));
        limits.pass(&messages[0], 128, now + GROW_AFTER);
        assert_eq!(limits.unit("s", now).messages, 128);
        limits.pass(&messages[0], 128, now + 2 * GROW_AFTER);
        assert_eq!(limits.unit("s", now).messages, 256);
        // A single message that was allowed at most.
        let pair = &batch[..2];
        (0..2).for_each(|_| limits.cut(pair, now));
        assert_eq!(limits.unit("s", now).messages, 1);
        limits.refuse(&messages[0], now);
        limits.pass(&messages[1], 1, now + GROW_AFTER);
        assert_eq!(limits.unit("s", now).messages, 2);
    }

    #[test]
    fn what_the_server_says_bounds_values_and_batches() {
        let (mut limits, now) = (Limits::default(), Instant::now());
        limits.know(Facts { longest: Some(1000), buffer: Some(600), ..Facts::default() });
        assert!(limits.suspicion(&message(1, 598), now).is_none());
        assert!(limits.suspicion(&message(1, 599), now).is_some());
        assert_eq!(limits.unit("s", now).bytes, 300);
    }
}
