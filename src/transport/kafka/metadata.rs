//! The metadata thread: asks the cluster about topics, has handed over what waited for the answers, and finds out
//! whether anybody answers at all. The only place that asks, because asking blocks.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::metadata::MetadataTopic;

use super::Shared;
use super::classify;
use super::inquiries::Inquiries;
use super::instance::Instance;
use super::share::STALLED;
use super::topics::{Knowledge, Topic};
use crate::transport::{Class, Failure, Scope};

/// How long an answer may take. While nobody answers at first less, so that other topics get their turn; then more and
/// more, for the question may stand in line behind messages that a slow broker takes its time with.
const ANSWER: Duration = Duration::from_secs(3);
const ANSWER_WHILE_DOWN: Duration = Duration::from_secs(1);
const ANSWER_AT_MOST: Duration = Duration::from_secs(8);
/// Between questions while nobody answers.
const ASK_WHILE_DOWN: Duration = Duration::from_millis(500);
/// The client is reminded of its first brokers after so many questions without an answer, and each so many later ones:
/// every half minute or so, for it keeps each reminder.
const REMIND_FIRST: u32 = 2;
const REMIND_EACH: u32 = 4;
/// Between questions about a topic that is there: new partitions are used within a minute.
const REFRESH: Duration = Duration::from_secs(60);
/// How long a topic may be unknown before its messages are handed back: a broker that creates topics by itself
/// says "unknown" first. Not longer: after a restart the drainer begins with one message, and if that is one of an unknown
/// topic, everything else waits for so long.
const CREATION: Duration = Duration::from_millis(500);
/// While it may still be about to be created it is asked about more often.
const CREATION_IS_LIKELY: Duration = Duration::from_secs(5);
/// Between questions in that time.
const ASK_WHILE_CREATED: Duration = Duration::from_millis(100);
/// Between questions about a topic that is missing, and the least between them when messages keep coming.
const RECHECK: Duration = Duration::from_secs(5);
pub(super) const RECHECK_LEAST: Duration = Duration::from_millis(500);
/// Until messages that found no room are handed over again.
const NO_ROOM: Duration = Duration::from_millis(20);

/// Runs until the transport stops.
pub(super) fn run(shared: &Arc<Shared>) {
    let (mut unanswered, mut inquiries) = (0, Inquiries::default());
    while !shared.is_stopped() {
        let wait = tick(shared, Instant::now(), &mut unanswered, &mut inquiries);
        shared.bell.wait(wait);
    }
}

/// Asks what is due, and says how long there is nothing to do. Counts the questions in a row that got no answer.
///
/// Somebody should ask whether the broker still answers when nothing is acknowledged for [`STALLED`]: a stopped one
/// keeps its connections. So it is looked at each half of it.
pub(super) fn tick(shared: &Arc<Shared>, now: Instant, unanswered: &mut u32, inquiries: &mut Inquiries) -> Duration {
    let Some(instance) = shared.seat.current() else {
        // The questions keep the former instance from being destroyed.
        inquiries.abandon();
        return ASK_WHILE_DOWN;
    };
    let is_stalled = instance.book().is_stalled(STALLED);
    if shared.topics.is_stalled(now) && instance.book().is_overdue(now) {
        // In an outage librdkafka keeps what it has, with the times that it has.
        let text = "messages it owns have got so old that they need another time";
        instance.give_up(Failure::new(Class::Fatal, Scope::Transport, text));
        return ASK_WHILE_DOWN;
    }
    inquiries.collect(shared, &instance);
    let topics = shared.topics.sweep(now);
    let mut wait = STALLED / 2;
    let mut asked = false;
    for topic in &topics {
        if shared.is_stopped() {
            return Duration::ZERO;
        }
        let ask_at = {
            let mut state = topic.state();
            if state.is_stalled(now) {
                // Perhaps a partition lost its leader.
                state.ask_sooner(now, RECHECK);
            }
            state.ask_at
        };
        if ask_at <= now {
            asked = true;
            if !ask(shared, &instance, topic, unanswered) {
                return ASK_WHILE_DOWN;
            }
        }
        if !shared.hand_over(topic, Instant::now()) {
            wait = wait.min(NO_ROOM);
        }
        wait = wait.min(topic.state().ask_at.saturating_duration_since(now));
    }
    wait = wait.min(inquiries.ask(shared, &instance, &topics, now));
    let doubtful = shared.take_doubt() || !shared.link.is_up() || is_stalled;
    if doubtful && !asked && !ping(shared, &instance, unanswered) {
        return ASK_WHILE_DOWN;
    }
    wait
}

fn patience(unanswered: u32) -> Duration {
    ANSWER_WHILE_DOWN.saturating_mul(1 << unanswered.min(8)).min(ANSWER_AT_MOST)
}

/// A question got no answer.
///
/// librdkafka (2.12.1) drops every broker that the cluster's last answer does not name. One that names none, because the
/// only broker was away for longer than its session, leaves it with nobody to ask, and it asks nobody ever again: it goes
/// back to its first brokers when those it has fail, and it has none. So it is told of them again.
fn not_answered(shared: &Shared, instance: &Instance, unanswered: &mut u32, code: Code, now: Instant) {
    *unanswered = unanswered.saturating_add(1);
    if *unanswered % REMIND_EACH == REMIND_FIRST {
        super::ffi::add_brokers(instance.client(), &shared.settings.brokers);
    }
    shared.link.down(code, now);
}

/// Asks whether anybody is there.
fn ping(shared: &Arc<Shared>, instance: &Instance, unanswered: &mut u32) -> bool {
    let result = super::ffi::ping(instance.client(), patience(*unanswered));
    match result {
        Ok(()) => {
            *unanswered = 0;
            shared.link.up();
        }
        Err(code) => not_answered(shared, instance, unanswered, code, Instant::now()),
    }
    result.is_ok()
}

/// Asks about one topic; says whether there was an answer.
fn ask(shared: &Arc<Shared>, instance: &Arc<Instance>, topic: &Topic, unanswered: &mut u32) -> bool {
    let name: &str = &topic.route.destination;
    let undoubted = shared.link.is_up() && !shared.is_doubtful();
    let patience = if undoubted { ANSWER.max(patience(*unanswered)) } else { patience(*unanswered) };
    let answer = instance.client().fetch_metadata(Some(name), patience);
    let now = Instant::now();
    let metadata = match answer {
        Ok(metadata) => metadata,
        Err(error) => {
            let code = error.rdkafka_error_code().unwrap_or_else(|| local(&error));
            not_answered(shared, instance, unanswered, code, now);
            return false;
        }
    };
    *unanswered = 0;
    shared.link.up();
    let described = metadata.topics().iter().find(|described| described.name() == name);
    let code = match described {
        Some(described) => described.error().map_or(Code::NoError, Code::from),
        None => Code::UnknownTopicOrPartition,
    };
    match described {
        Some(described) if code == Code::NoError && !described.partitions().is_empty() => {
            found(shared, instance, topic, described, now);
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
fn found(shared: &Arc<Shared>, instance: &Arc<Instance>, topic: &Topic, described: &MetadataTopic, now: Instant) {
    let mut brokers = vec![-1; described.partitions().len()];
    for partition in described.partitions() {
        if let Some(broker) = usize::try_from(partition.id()).ok().and_then(|id| brokers.get_mut(id)) {
            *broker = partition.leader();
        }
    }
    let leaders: Vec<bool> = brokers.iter().map(|&broker| broker >= 0).collect();
    let mut state = topic.state();
    let was_missing = matches!(state.knowledge, Knowledge::Missing(_));
    // A partition without a leader gets one soon, as a rule.
    let all_led = leaders.iter().all(|&led| led);
    state.know(leaders);
    if was_missing {
        topic.times().forget();
    }
    state.asked_at = Some(now);
    state.ask_at = now + if all_led { REFRESH } else { RECHECK };
    let shares = state.shares.clone();
    if !shared.seat.holds(instance) {
        // Another one has taken its place, or is about to.
        state.renew(now);
    }
    drop(state);
    shared.keepalive.learn(&topic.route.destination, &brokers, &shares);
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
    let is_new = now.saturating_duration_since(since) < CREATION_IS_LIKELY;
    state.ask_at = now + if is_new { RECHECK_LEAST } else { RECHECK };
    let mut failure: Failure = verdict.failure(code, &topic.route.destination, -1);
    // Metadata concern the topic as a whole, and judge no message.
    if matches!(failure.class, Class::Transient | Class::Permanent) {
        failure.scope = Scope::Route;
    }
    failure.class = if failure.class == Class::Permanent { Class::Hold } else { failure.class };
    let failure = Arc::new(failure);
    state.knowledge = Knowledge::Missing(Arc::clone(&failure));
    drop(state);
    if !was_missing {
        tracing::warn!(route = %topic.route, reason = %failure.reason, "the topic cannot be used");
    }
    topic.fail_waiting(None, &failure);
    shared.bell.ring();
}
