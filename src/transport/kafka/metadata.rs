//! The metadata thread: asks the cluster about topics, hands over what waited for the answers, and finds out
//! whether anybody answers at all. The only place that asks, because asking blocks.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::metadata::MetadataTopic;

use super::Shared;
use super::classify;
use super::instance::Instance;
use super::topics::{Knowledge, Topic};
use crate::transport::{Class, Failure};

/// How long an answer may take. While nobody answers, the shorter one keeps `close` from waiting for this thread.
const ANSWER: Duration = Duration::from_secs(3);
const ANSWER_WHILE_DOWN: Duration = Duration::from_secs(1);
/// Between questions while nobody answers.
const ASK_WHILE_DOWN: Duration = Duration::from_millis(500);
/// Between questions about a topic that is there: new partitions are used within a minute.
const REFRESH: Duration = Duration::from_secs(60);
/// How long a topic may be unknown before its messages are handed back: a broker that creates topics by itself
/// says "unknown" first.
const CREATION: Duration = Duration::from_secs(2);
/// Between questions in that time.
const ASK_WHILE_CREATED: Duration = Duration::from_millis(100);
/// Between questions about a topic that is missing, and the least between them when messages keep coming.
const RECHECK: Duration = Duration::from_secs(5);
pub(super) const RECHECK_LEAST: Duration = Duration::from_millis(500);
/// Without an acknowledgement for so long while messages are owned, somebody should ask whether the broker still
/// answers: a stopped one keeps its connections. Looked at each half of it.
const STALLED: Duration = Duration::from_secs(2);
/// Until messages that found librdkafka's queue full are handed over again.
const QUEUE_FULL: Duration = Duration::from_millis(20);

/// Runs until the transport stops.
pub(super) fn run(shared: &Arc<Shared>) {
    while !shared.is_stopped() {
        let wait = tick(shared, Instant::now());
        shared.bell.wait(wait);
    }
}

/// Asks what is due, and says how long there is nothing to do.
fn tick(shared: &Arc<Shared>, now: Instant) -> Duration {
    let Some(instance) = shared.seat.current() else {
        return ASK_WHILE_DOWN;
    };
    let topics = shared.topics.sweep(now);
    let mut wait = STALLED / 2;
    let mut asked = false;
    for topic in topics {
        if shared.is_stopped() {
            return Duration::ZERO;
        }
        let ask_at = topic.state().ask_at;
        if ask_at <= now {
            asked = true;
            if !ask(shared, &instance, &topic) {
                return ASK_WHILE_DOWN;
            }
        }
        if !hand_over(shared, &topic) {
            wait = wait.min(QUEUE_FULL);
        }
        wait = wait.min(topic.state().ask_at.saturating_duration_since(now));
    }
    let doubtful = shared.take_doubt() || !shared.link.is_up() || instance.book().is_stalled(STALLED);
    if doubtful && !asked && !ping(shared, &instance) {
        return ASK_WHILE_DOWN;
    }
    wait
}

/// Asks whether anybody is there.
fn ping(shared: &Arc<Shared>, instance: &Instance) -> bool {
    let result = super::ffi::ping(instance.client(), ANSWER_WHILE_DOWN);
    match result {
        Ok(()) => shared.link.up(),
        Err(code) => shared.link.down(code, Instant::now()),
    }
    result.is_ok()
}

/// Asks about one topic; says whether there was an answer.
fn ask(shared: &Arc<Shared>, instance: &Instance, topic: &Topic) -> bool {
    let name: &str = &topic.route.destination;
    let patience = if shared.link.is_up() && !shared.is_doubtful() { ANSWER } else { ANSWER_WHILE_DOWN };
    let answer = instance.client().fetch_metadata(Some(name), patience);
    let now = Instant::now();
    let metadata = match answer {
        Ok(metadata) => metadata,
        Err(error) => {
            shared.link.down(error.rdkafka_error_code().unwrap_or_else(|| local(&error)), now);
            return false;
        }
    };
    shared.link.up();
    let described = metadata.topics().iter().find(|described| described.name() == name);
    let code = match described {
        Some(described) => described.error().map_or(Code::NoError, Code::from),
        None => Code::UnknownTopicOrPartition,
    };
    match described {
        Some(described) if code == Code::NoError && !described.partitions().is_empty() => {
            found(shared, topic, described, now);
        }
        _ => not_found(shared, topic, code, now),
    }
    true
}

fn local(error: &KafkaError) -> Code {
    tracing::warn!(%error, "asking for metadata failed");
    Code::Fail
}

/// The topic is there.
fn found(shared: &Arc<Shared>, topic: &Topic, described: &MetadataTopic, now: Instant) {
    let mut leaders = vec![false; described.partitions().len()];
    for partition in described.partitions() {
        if let Some(led) = usize::try_from(partition.id()).ok().and_then(|id| leaders.get_mut(id)) {
            *led = partition.leader() >= 0;
        }
    }
    let mut state = topic.state();
    let was_missing = matches!(state.knowledge, Knowledge::Missing(_));
    state.know(leaders);
    state.asked_at = Some(now);
    state.ask_at = now + REFRESH;
    drop(state);
    if was_missing {
        tracing::info!(route = %topic.route, "the topic is usable again");
        shared.link.route_up(&topic.route);
    }
}

/// The topic is not there, or not for us.
fn not_found(shared: &Arc<Shared>, topic: &Topic, code: Code, now: Instant) {
    let code = if code == Code::NoError { Code::LeaderNotAvailable } else { code };
    let verdict = classify::judge(code);
    let mut state = topic.state();
    state.asked_at = Some(now);
    let since = *state.missing_since.get_or_insert(now);
    let may_appear = matches!(code, Code::UnknownTopicOrPartition | Code::UnknownTopic | Code::UnknownTopicId)
        || verdict.class == Class::Transient;
    let was_missing = matches!(state.knowledge, Knowledge::Missing(_));
    if may_appear && !was_missing && now.saturating_duration_since(since) < CREATION {
        state.ask_at = now + ASK_WHILE_CREATED;
        return;
    }
    state.ask_at = now + RECHECK;
    let mut failure: Failure = verdict.failure(code, &topic.route.destination, -1);
    if verdict.class == Class::Transient {
        // Metadata concern the topic as a whole.
        failure.scope = crate::transport::Scope::Route;
    }
    let failure = Arc::new(failure);
    state.knowledge = Knowledge::Missing(Arc::clone(&failure));
    drop(state);
    if !was_missing {
        tracing::warn!(route = %topic.route, reason = %failure.reason, "the topic cannot be used");
    }
    topic.fail_waiting(None, &failure);
    shared.bell.ring();
}

/// Hands over what waits for a topic that is there; says whether nothing is left.
fn hand_over(shared: &Arc<Shared>, topic: &Topic) -> bool {
    let mut state = topic.state();
    if !state.is_ready() {
        return true;
    }
    while let Some(handover) = state.waiting.pop_front() {
        let Err(refused) = shared.dispatch(&mut state, handover, false) else {
            continue;
        };
        if refused.failure.class == Class::Transient {
            state.waiting.push_front(refused.handover);
            return false;
        }
        // What lies behind it may be of its lane.
        drop(state);
        topic.fail_waiting(Some(refused.handover), &refused.failure);
        return true;
    }
    true
}
