//! What is known of each topic, and the messages that wait until something is.
//!
//! A topic's state is behind one lock, held while a message is handed over: messages that waited go first, in
//! order. Tickets are never reported under it (reports take locks of the producer's, under which it submits).

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use super::book::lock;
use super::partitioner::Sticky;
use super::share::Share;
use super::times::{Times, TopicTimes};
use crate::message::{Lane, Outgoing, Route};
use crate::transport::{Class, Failure, Handover, Refused, Scope};

/// The most messages that wait for one topic's metadata; the producer's window is smaller or equal by default.
const MOST_WAITING: usize = 10_000;
/// A topic nobody has sent to for so long, and that owns nothing, is forgotten.
const FORGET_AFTER: Duration = Duration::from_secs(600);
/// How long it is remembered which size a topic refused: its `max.message.bytes` may have been raised.
const REFUSAL_HOLDS: Duration = Duration::from_secs(600);

/// What is known of a topic.
#[derive(Debug)]
pub(super) enum Knowledge {
    /// Nothing yet.
    Asked,
    /// Which of its partitions have a leader.
    Known(Vec<bool>),
    /// It cannot be used, and why.
    Missing(Arc<Failure>),
}

/// What waits although its topic is known, because its partition had no room: everything later of the same
/// partition or lane must not go before it.
#[derive(Debug, Default)]
pub(super) struct Aside {
    pub(super) partitions: HashSet<i32>,
    pub(super) lanes: HashSet<Lane>,
}

/// The state of a topic.
#[derive(Debug)]
pub(super) struct State {
    pub(super) knowledge: Knowledge,
    /// What is known of the topic's settings on times, as `Topic::times` has it.
    times: Arc<TopicTimes>,
    /// What each partition owns: kept whatever the cluster says of the topic, for librdkafka keeps it, too.
    pub(super) shares: Vec<Arc<Share>>,
    pub(super) waiting: VecDeque<Handover>,
    /// What the messages that wait wait for, once all of them were looked at.
    pub(super) aside: Option<Aside>,
    pub(super) sticky: Sticky,
    /// Messages that waited are being reported failed: what comes in between would overtake them.
    reporting: bool,
    used: Instant,
    /// A new instance has not heard of the topic yet: handed over to it, messages would wait for librdkafka's timers.
    stale: bool,
    /// When the cluster is to be asked (again).
    pub(super) ask_at: Instant,
    pub(super) asked_at: Option<Instant>,
    /// Since when the answer has been that there is no such topic.
    pub(super) missing_since: Option<Instant>,
    /// The smallest size of a message that was refused as too large by itself, and when.
    refused_size: Option<(usize, Instant)>,
}

/// A topic.
#[derive(Debug)]
pub(super) struct Topic {
    pub(super) route: Route,
    times: Arc<TopicTimes>,
    state: Mutex<State>,
}

impl Topic {
    pub(super) fn new(route: Route, now: Instant) -> Self {
        let times = Arc::new(TopicTimes::default());
        let state = State {
            knowledge: Knowledge::Asked,
            times: Arc::clone(&times),
            shares: Vec::new(),
            waiting: VecDeque::new(),
            aside: None,
            sticky: Sticky::default(),
            reporting: false,
            used: now,
            stale: false,
            ask_at: now,
            asked_at: None,
            missing_since: None,
            refused_size: None,
        };
        Self { route, times, state: Mutex::new(state) }
    }

    /// What is known of its settings on times.
    pub(super) fn times(&self) -> &TopicTimes {
        &self.times
    }

    /// The state.
    pub(super) fn state(&self) -> std::sync::MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Reports everything that waits as failed, and only then takes messages again. `first` goes before.
    pub(super) fn fail_waiting(&self, first: Option<Handover>, failure: &Arc<Failure>) {
        let mut state = self.state();
        state.aside = None;
        let failed: Vec<Handover> = first.into_iter().chain(state.waiting.drain(..)).collect();
        if failed.is_empty() {
            return;
        }
        state.reporting = true;
        drop(state);
        for handover in failed {
            handover.ticket.failed(Arc::clone(failure), false);
        }
        self.state().reporting = false;
    }

    /// Takes out of what waits, in order, the messages of some lanes.
    pub(super) fn take_lanes(&self, lanes: &HashSet<Lane>) -> Vec<Handover> {
        let mut state = self.state();
        let of_lanes = |handover: &Handover| handover.message.lane.is_some_and(|lane| lanes.contains(&lane));
        let (taken, rest): (Vec<_>, Vec<_>) = state.waiting.drain(..).partition(of_lanes);
        state.waiting.extend(rest);
        taken
    }
}

impl State {
    /// Notes that the topic is in use; why nothing can be taken at the moment.
    pub(super) fn refusal(&mut self, now: Instant) -> Option<Arc<Failure>> {
        self.used = now;
        match &self.knowledge {
            Knowledge::Missing(failure) => Some(Arc::clone(failure)),
            _ if self.reporting => {
                let text = "messages of the topic that waited are being handed back";
                Some(Arc::new(Failure::new(Class::Transient, Scope::Route, text)))
            }
            Knowledge::Asked | Knowledge::Known(_) => None,
        }
    }

    /// Whether messages can be handed over, but for those that wait.
    pub(super) fn is_ready(&self) -> bool {
        matches!(self.knowledge, Knowledge::Known(_)) && !self.stale && self.times.is_settled()
    }

    /// Takes in how many partitions there are and which have a leader; what they own stays.
    pub(super) fn know(&mut self, leaders: Vec<bool>) {
        if self.shares.len() < leaders.len() {
            self.shares.resize_with(leaders.len(), || Arc::new(Share::of(&self.times)));
        }
        self.knowledge = Knowledge::Known(leaders);
        self.stale = false;
        self.missing_since = None;
    }

    /// Has the cluster asked about it anew, by an instance that has not heard of it yet.
    pub(super) fn renew(&mut self, now: Instant) {
        self.stale = true;
        self.ask_at = now;
    }

    /// Whether a partition can be expected to take a message soon.
    pub(super) fn is_usable(&self, partition: i32, now: Instant) -> bool {
        let Knowledge::Known(leaders) = &self.knowledge else { return false };
        usable(leaders, &self.shares, partition, now)
    }

    /// Whether a partition has a leader, as far as is known.
    pub(super) fn is_led(&self, partition: i32) -> bool {
        let Knowledge::Known(leaders) = &self.knowledge else { return false };
        usize::try_from(partition).ok().and_then(|index| leaders.get(index)).copied().unwrap_or(false)
    }

    /// The partition that messages which may go anywhere go to at the moment; `None` if nothing is known of the topic.
    pub(super) fn choose(&mut self, now: Instant, linger: Duration) -> Option<i32> {
        let Knowledge::Known(leaders) = &self.knowledge else { return None };
        let count = i32::try_from(leaders.len()).ok()?;
        Some(self.sticky.choose(now, linger, count, |partition| usable(leaders, &self.shares, partition, now)))
    }

    /// Whether a partition keeps what it owns for long.
    pub(super) fn is_stalled(&self, now: Instant) -> bool {
        self.shares.iter().any(|share| share.is_stalled(now))
    }

    /// Asks the cluster sooner than planned, but no sooner than `least` after the last time. Says whether it does.
    pub(super) fn ask_sooner(&mut self, now: Instant, least: Duration) -> bool {
        let earliest = self.asked_at.map_or(now, |asked| asked + least).max(now);
        let sooner = earliest < self.ask_at;
        if sooner {
            self.ask_at = earliest;
        }
        sooner
    }

    /// Lets a message wait.
    // As in `Instance::send`.
    #[allow(clippy::result_large_err)]
    pub(super) fn wait(&mut self, handover: Handover) -> Result<(), Refused> {
        if self.waiting.len() >= MOST_WAITING {
            let text = format!("{MOST_WAITING} messages wait for the topic's metadata already");
            return Err(Refused { handover, failure: Arc::new(Failure::new(Class::Transient, Scope::Route, text)) });
        }
        self.waiting.push_back(handover);
        Ok(())
    }

    /// A message of `size` was refused as too large, by itself.
    pub(super) fn refused(&mut self, size: usize, now: Instant) {
        let smallest = self.refused_size(now).map_or(size, |before| before.min(size));
        self.refused_size = Some((smallest, now));
    }

    /// A message of `size` was delivered: what was refused so far may have been too large once.
    pub(super) fn passed(&mut self, size: usize, now: Instant) {
        if self.refused_size(now).is_some_and(|refused| size >= refused) {
            self.refused_size = None;
        }
    }

    /// From which size on messages are refused, as far as is known.
    pub(super) fn refused_size(&self, now: Instant) -> Option<usize> {
        let (size, since) = self.refused_size?;
        (now.saturating_duration_since(since) < REFUSAL_HOLDS).then_some(size)
    }

    /// Why a message is held back: its time, which the application gave.
    pub(super) fn hold(&self, common: &Times, message: &Outgoing) -> Option<Failure> {
        self.times.hold(common, message)
    }

    /// Whether a message would be refused for its size: it need not bring the producing instance down first.
    pub(super) fn is_too_large(&self, message: &Outgoing, now: Instant) -> bool {
        self.refused_size(now).is_some_and(|refused| message.message.size() >= refused)
    }
}

fn usable(leaders: &[bool], shares: &[Arc<Share>], partition: i32, now: Instant) -> bool {
    let Ok(index) = usize::try_from(partition) else { return false };
    leaders.get(index).copied().unwrap_or(false) && shares.get(index).is_none_or(|share| !share.is_stalled(now))
}

/// All topics messages were submitted to of late.
#[derive(Debug, Default)]
pub(super) struct Topics(RwLock<HashMap<Arc<str>, Arc<Topic>>>);

impl Topics {
    /// The topic, if it was used before.
    pub(super) fn find(&self, name: &str) -> Option<Arc<Topic>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    /// The topic of a route.
    pub(super) fn of(&self, route: &Route, now: Instant) -> Arc<Topic> {
        if let Some(topic) = self.find(&route.destination) {
            return topic;
        }
        let mut topics = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let entry = topics.entry(Arc::clone(&route.destination));
        Arc::clone(entry.or_insert_with(|| Arc::new(Topic::new(route.clone(), now))))
    }

    /// All of them; those not used for long are forgotten.
    pub(super) fn sweep(&self, now: Instant) -> Vec<Arc<Topic>> {
        let mut topics = self.0.write().unwrap_or_else(PoisonError::into_inner);
        topics.retain(|_, topic| {
            let state = topic.state();
            // Somebody who holds the topic is about to submit to it; under the write lock nobody can get hold of it.
            Arc::strong_count(topic) > 1
                || !state.waiting.is_empty()
                || !state.shares.iter().all(|share| share.is_empty())
                || now.saturating_duration_since(state.used) < FORGET_AFTER
        });
        topics.values().cloned().collect()
    }

    /// Has every topic asked about anew, by an instance that knows none.
    pub(super) fn renew(&self, now: Instant) {
        for topic in self.0.read().unwrap_or_else(PoisonError::into_inner).values() {
            topic.state().renew(now);
        }
    }

    /// Whether some partition keeps what it owns for long.
    pub(super) fn is_stalled(&self, now: Instant) -> bool {
        let topics = self.0.read().unwrap_or_else(PoisonError::into_inner);
        topics.values().any(|topic| topic.state().is_stalled(now))
    }

    /// How many messages wait.
    pub(super) fn waiting(&self) -> usize {
        let topics = self.0.read().unwrap_or_else(PoisonError::into_inner);
        topics.values().map(|topic| topic.state().waiting.len()).sum()
    }

    /// Reports everything that waits as failed.
    pub(super) fn fail_waiting(&self, failure: &Arc<Failure>) {
        let topics: Vec<_> = self.0.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        for topic in topics {
            topic.fail_waiting(None, failure);
        }
    }
}

#[cfg(test)]
#[path = "topics_tests.rs"]
mod tests;
