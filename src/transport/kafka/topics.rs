//! What is known of each topic, and the messages that wait until something is.
//!
//! A topic's state is behind one lock, held while a message is handed over: messages that waited go first, in
//! order. Tickets are never reported under it (reports take locks of the producer's, under which it submits);
//! while messages of a topic are being reported failed, nothing else of the topic is taken.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use super::book::{Share, lock};
use super::partitioner::Sticky;
use crate::message::Route;
use crate::transport::{Class, Failure, Handover, Refused, Scope};

/// The most messages that wait for one topic's metadata; the producer's window is smaller or equal by default.
const MOST_WAITING: usize = 10_000;
/// A topic nobody has sent to for so long is forgotten.
const FORGET_AFTER: Duration = Duration::from_secs(600);

/// What is known of a topic.
#[derive(Debug)]
pub(super) enum Knowledge {
    /// Nothing yet.
    Asked,
    /// Its partitions.
    Known(Partitions),
    /// It cannot be used, and why.
    Missing(Arc<Failure>),
}

/// A topic's partitions.
#[derive(Debug)]
pub(super) struct Partitions {
    /// Which have a leader.
    pub(super) leaders: Vec<bool>,
    /// What each owns.
    pub(super) shares: Vec<Arc<Share>>,
}

/// The state of a topic.
#[derive(Debug)]
pub(super) struct State {
    pub(super) knowledge: Knowledge,
    pub(super) waiting: VecDeque<Handover>,
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
}

/// A topic.
#[derive(Debug)]
pub(super) struct Topic {
    pub(super) route: Route,
    state: Mutex<State>,
}

impl Topic {
    fn new(route: Route, now: Instant) -> Self {
        let state = State {
            knowledge: Knowledge::Asked,
            waiting: VecDeque::new(),
            sticky: Sticky::default(),
            reporting: false,
            used: now,
            stale: false,
            ask_at: now,
            asked_at: None,
            missing_since: None,
        };
        Self { route, state: Mutex::new(state) }
    }

    /// The state.
    pub(super) fn state(&self) -> std::sync::MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Reports everything that waits as failed, and only then takes messages again. `first` goes before.
    pub(super) fn fail_waiting(&self, first: Option<Handover>, failure: &Arc<Failure>) {
        let mut state = self.state();
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
}

impl State {
    /// Notes that the topic is in use; why nothing can be taken at the moment.
    pub(super) fn refusal(&mut self, now: Instant) -> Option<Arc<Failure>> {
        self.used = now;
        match &self.knowledge {
            _ if self.reporting => {
                let text = "messages of the topic that waited are being handed back";
                Some(Arc::new(Failure::new(Class::Transient, Scope::Route, text)))
            }
            Knowledge::Missing(failure) => Some(Arc::clone(failure)),
            Knowledge::Asked | Knowledge::Known(_) => None,
        }
    }

    /// Whether messages can be handed over, but for those that wait.
    pub(super) fn is_ready(&self) -> bool {
        matches!(self.knowledge, Knowledge::Known(_)) && !self.stale
    }

    /// Takes in how many partitions there are and which have a leader; what they own stays.
    pub(super) fn know(&mut self, leaders: Vec<bool>) {
        let mut shares = match std::mem::replace(&mut self.knowledge, Knowledge::Asked) {
            Knowledge::Known(partitions) => partitions.shares,
            Knowledge::Asked | Knowledge::Missing(_) => Vec::new(),
        };
        shares.resize_with(leaders.len(), Arc::default);
        self.knowledge = Knowledge::Known(Partitions { leaders, shares });
        self.stale = false;
        self.missing_since = None;
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
                || now.saturating_duration_since(state.used) < FORGET_AFTER
        });
        topics.values().cloned().collect()
    }

    /// Has every topic asked about anew, by an instance that knows none.
    pub(super) fn renew(&self, now: Instant) {
        for topic in self.0.read().unwrap_or_else(PoisonError::into_inner).values() {
            let mut state = topic.state();
            state.stale = true;
            state.ask_at = now;
        }
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
