//! Keeps idle connections alive, and finds the dead ones before a message meets them.
//!
//! A load balancer or a firewall drops what is silent for some minutes, and tells neither side: the next message would wait
//! for librdkafka's timeout (`socket.timeout.ms`, a minute). So each broker that leads a partition of a topic in use, and
//! has had nothing to do for a moment, is asked a small question, for which the right to write to the topic is enough. On a
//! connection where the answer does not come in time, librdkafka lets go and connects anew. Only idle brokers are asked: with
//! one request in flight a question would wait behind messages that a slow broker takes its time with, and cost them their
//! connection.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rdkafka::error::RDKafkaErrorCode as Code;

use super::Shared;
use super::book::lock;
use super::ffi;
use super::instance::Instance;
use super::share::Share;

/// A broker is asked when it has had nothing to do for so long; less than a beat of `upkeep`.
const IDLE: Duration = Duration::from_secs(1);
/// How long an answer may take.
const ANSWER: Duration = Duration::from_millis(1_500);
/// The same when it only has to be found out which broker did not answer.
const ANSWER_OF_ONE: Duration = Duration::from_millis(500);
/// A broker that does not answer is asked again after this time, then after more and more: its connection is closed, and
/// librdkafka makes another one when a message needs it.
const AGAIN_LEAST: Duration = Duration::from_secs(3);
const AGAIN_MOST: Duration = Duration::from_secs(30);

/// A partition.
#[derive(Clone, Debug)]
struct Led {
    broker: i32,
    share: Arc<Share>,
}

/// A broker that did not answer.
#[derive(Clone, Copy, Debug)]
struct Silent {
    since: Instant,
    times: u32,
}

#[derive(Debug, Default)]
struct State {
    topics: HashMap<Arc<str>, Vec<Led>>,
    silent: HashMap<i32, Silent>,
}

/// A question: the broker, and a partition that it leads.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Question {
    broker: i32,
    topic: Arc<str>,
    partition: i32,
}

/// Which brokers there are connections to, and which of them did not answer.
#[derive(Debug, Default)]
pub(super) struct Keepalive(Mutex<State>);

impl Keepalive {
    /// Takes in which brokers lead a topic's partitions; -1: none.
    pub(super) fn learn(&self, topic: &Arc<str>, brokers: &[i32], shares: &[Arc<Share>]) {
        let led = brokers.iter().zip(shares).map(|(&broker, share)| Led { broker, share: Arc::clone(share) });
        lock(&self.0).topics.insert(Arc::clone(topic), led.collect());
    }

    /// The questions to ask now. Topics that are not in use any more are forgotten, unless a connection was opened for them
    /// alone: librdkafka keeps it.
    fn due(&self, now: Instant, in_use: impl Fn(&str) -> bool) -> Vec<Question> {
        let mut state = lock(&self.0);
        let mut brokers: HashMap<i32, Option<Question>> = HashMap::new();
        let State { topics, silent } = &mut *state;
        let (used, mut unused): (Vec<_>, Vec<_>) = topics.keys().cloned().partition(|topic| in_use(topic));
        for topic in &used {
            collect(topic, &topics[topic], &mut brokers, silent, now);
        }
        unused.retain(|topic| {
            let needed = topics[topic].iter().any(|led| led.broker >= 0 && !brokers.contains_key(&led.broker));
            if needed {
                collect(topic, &topics[topic], &mut brokers, silent, now);
            }
            !needed
        });
        for topic in unused {
            topics.remove(&topic);
        }
        silent.retain(|broker, _| brokers.contains_key(broker));
        let waits = |broker: &i32| silent.get(broker).is_some_and(|silent| !silent.is_over(now));
        brokers.into_values().flatten().filter(|question| !waits(&question.broker)).collect()
    }

    fn answered(&self, broker: i32) {
        lock(&self.0).silent.remove(&broker);
    }

    fn not_answered(&self, broker: i32, now: Instant) {
        let mut state = lock(&self.0);
        let times = state.silent.get(&broker).map_or(0, |silent| silent.times.saturating_add(1));
        state.silent.insert(broker, Silent { since: now, times });
        if times == 0 {
            tracing::info!(broker, "no answer on an idle connection to a Kafka broker: it is closed");
        }
    }
}

impl Silent {
    fn is_over(&self, now: Instant) -> bool {
        let wait = AGAIN_LEAST.saturating_mul(1 << self.times.min(8)).min(AGAIN_MOST);
        now.saturating_duration_since(self.since) >= wait
    }
}

/// Adds the brokers of a topic; those that have something to do get no question.
fn collect(
    topic: &Arc<str>,
    partitions: &[Led],
    brokers: &mut HashMap<i32, Option<Question>>,
    silent: &mut HashMap<i32, Silent>,
    now: Instant,
) {
    for (partition, led) in (0..).zip(partitions).filter(|(_, led)| led.broker >= 0) {
        let broker = led.broker;
        let question = Question { broker, topic: Arc::clone(topic), partition };
        let entry = brokers.entry(broker).or_insert(Some(question));
        if !led.share.is_idle(IDLE, now) {
            *entry = None;
        }
        // A report is an answer.
        if silent.get(&broker).is_some_and(|silent| led.share.has_moved_since(silent.since)) {
            silent.remove(&broker);
        }
    }
}

/// Asks the brokers that are idle. Blocks for [`ANSWER`] when one does not answer, and a little longer for each of them.
pub(super) fn tick(shared: &Shared, now: Instant) {
    // Where none answers there is nothing to keep alive.
    if !shared.link.is_up() {
        return;
    }
    let Some(instance) = shared.seat.current() else { return };
    let questions = shared.keepalive.due(now, |topic| shared.topics.find(topic).is_some());
    if questions.is_empty() {
        return;
    }
    if answers(&instance, &questions, ANSWER) {
        questions.iter().for_each(|question| shared.keepalive.answered(question.broker));
    } else if let [question] = &questions[..] {
        shared.keepalive.not_answered(question.broker, now);
    } else {
        for question in &questions {
            if shared.is_stopped() {
                return;
            }
            if answers(&instance, std::slice::from_ref(question), ANSWER_OF_ONE) {
                shared.keepalive.answered(question.broker);
            } else {
                shared.keepalive.not_answered(question.broker, Instant::now());
            }
        }
    }
}

/// Whether all these brokers answer, whatever they say.
fn answers(instance: &Instance, questions: &[Question], timeout: Duration) -> bool {
    let partitions = questions.iter().map(|question| (&*question.topic, question.partition));
    !matches!(
        ffi::probe(instance.client(), partitions, timeout),
        Err(Code::OperationTimedOut | Code::TimedOutQueue | Code::BrokerTransportFailure | Code::AllBrokersDown)
    )
}

#[cfg(test)]
mod tests {
    use super::super::share::millis;
    use super::*;

    fn learn(keepalive: &Keepalive, topic: &str, brokers: &[i32]) -> Vec<Arc<Share>> {
        // Shares count time from the first instant they are asked about, which must not be one of the future.
        millis(Instant::now());
        let shares: Vec<Arc<Share>> = brokers.iter().map(|_| Arc::default()).collect();
        keepalive.learn(&Arc::from(topic), brokers, &shares);
        shares
    }

    fn asked(keepalive: &Keepalive, now: Instant, in_use: &[&str]) -> Vec<i32> {
        let mut brokers: Vec<i32> =
            keepalive.due(now, |topic| in_use.contains(&topic)).iter().map(|question| question.broker).collect();
        brokers.sort_unstable();
        brokers
    }

    #[test]
    fn each_idle_leader_is_asked_once_and_a_busy_one_not_at_all() {
        let (keepalive, now) = (Keepalive::default(), Instant::now());
        let shares = learn(&keepalive, "t", &[1, 2, 1, -1]);
        learn(&keepalive, "u", &[3, 1]);
        let later = now + IDLE * 2;
        assert_eq!(asked(&keepalive, later, &["t", "u"]), [1, 2, 3]);
        shares[2].enter(1, true, later);
        assert_eq!(asked(&keepalive, later + IDLE * 9, &["t", "u"]), [2, 3], "it owes a report");
        shares[2].leave(1, true, later);
        assert_eq!(asked(&keepalive, later, &["t", "u"]), [2, 3], "it has just reported");
        assert_eq!(asked(&keepalive, later + IDLE, &["t", "u"]), [1, 2, 3]);
    }

    #[test]
    fn a_topic_out_of_use_is_forgotten_unless_it_is_all_that_leads_to_a_connection() {
        let (keepalive, later) = (Keepalive::default(), Instant::now() + IDLE * 2);
        learn(&keepalive, "old", &[1, 2]);
        learn(&keepalive, "older", &[1]);
        learn(&keepalive, "new", &[1]);
        assert_eq!(asked(&keepalive, later, &["new"]), [1, 2]);
        let kept: Vec<_> = lock(&keepalive.0).topics.keys().map(|topic| topic.to_string()).collect();
        assert!(kept.len() == 2 && !kept.contains(&"older".to_owned()), "{kept:?}");
    }

    #[test]
    fn a_broker_that_does_not_answer_is_asked_less_and_less_until_it_reports() {
        let (keepalive, start) = (Keepalive::default(), Instant::now() + IDLE * 2);
        let shares = learn(&keepalive, "t", &[1]);
        keepalive.not_answered(1, start);
        assert_eq!(asked(&keepalive, start + AGAIN_LEAST / 2, &["t"]), Vec::<i32>::new());
        let again = start + AGAIN_LEAST;
        assert_eq!(asked(&keepalive, again, &["t"]), [1]);
        (0..20).for_each(|_| keepalive.not_answered(1, again));
        assert_eq!(asked(&keepalive, again + AGAIN_MOST / 2, &["t"]), Vec::<i32>::new());
        let reported = again + AGAIN_MOST / 2;
        shares[0].enter(1, true, again);
        shares[0].leave(1, true, reported);
        assert_eq!(asked(&keepalive, reported + IDLE, &["t"]), [1]);
    }
}
