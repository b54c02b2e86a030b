//! Reads the topics' settings that concern times, for the metadata thread: many topics in one question, and no waiting
//! for the answer but for a moment. Messages of a topic that is new wait for its settings, for [`SETTLE`] at most.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::error::RDKafkaErrorCode as Code;

use super::Shared;
use super::classify;
use super::describe::{Described, Question};
use super::instance::Instance;
use super::rules::Rules;
use super::times::{Pauses, Why};
use super::topics::{Knowledge, Topic};

/// Between two readings of a topic's settings.
const PAUSES: Pauses =
    Pauses { seldom: Duration::from_secs(60), often: Duration::from_secs(5), at_first: Duration::from_millis(200) };
/// The most topics in one question.
const TOPICS: usize = 100;
/// The most questions that are under way.
const QUESTIONS: usize = 4;
/// How long messages of a topic wait for its settings once it is known: a broker that does not say what it retains must not
/// keep them for as long as a first attempt takes.
const SETTLE: Duration = Duration::from_secs(2);
/// Between two looks for an answer that messages wait for, and for another.
const LOOK: Duration = Duration::from_millis(5);
const LOOK_SELDOM: Duration = Duration::from_millis(200);
/// How long a new question is waited for at once: on a short link the answer is there by then.
const AT_ONCE: Duration = Duration::from_millis(20);

/// The questions under way.
#[derive(Default)]
pub(super) struct Inquiries {
    open: Vec<(Question, Vec<Arc<Topic>>)>,
}

impl Inquiries {
    /// Drops the questions: there is no instance that could answer them. Their topics are asked about anew.
    pub(super) fn abandon(&mut self) {
        for (_, topics) in self.open.drain(..) {
            topics.iter().for_each(|topic| topic.times().ask_again());
        }
    }

    /// Takes in the answers that came.
    pub(super) fn collect(&mut self, shared: &Shared, instance: &Arc<Instance>) {
        self.open.retain(|(question, topics)| {
            if !question.is_of(instance) {
                topics.iter().for_each(|topic| topic.times().ask_again());
                return false;
            }
            let Some(answer) = question.answer(Duration::ZERO) else { return true };
            take_in(shared, topics, answer);
            false
        });
    }

    /// Asks for what is due. Says how long the thread may rest; not at all if messages can be sent that waited.
    pub(super) fn ask(
        &mut self,
        shared: &Shared,
        instance: &Arc<Instance>,
        topics: &[Arc<Topic>],
        now: Instant,
    ) -> Duration {
        let is_known = |topic: &&Arc<Topic>| matches!(topic.state().knowledge, Knowledge::Known(_));
        let mut due: Vec<Arc<Topic>> = Vec::new();
        if self.open.len() < QUESTIONS {
            let topics = topics.iter().filter(is_known);
            due.extend(topics.filter(|topic| topic.times().begin_asking(now, &PAUSES)).take(TOPICS).cloned());
        }
        let mut settled = false;
        if !due.is_empty() {
            let names: Vec<&str> = due.iter().map(|topic| &*topic.route.destination).collect();
            match Question::ask(instance, &names) {
                None => {
                    due.iter().for_each(|topic| topic.times().fail("librdkafka cannot ask".to_owned(), Why::Failed))
                }
                Some(question) => {
                    let waits = due.iter().any(|topic| !topic.times().is_settled());
                    match question.answer(if waits { AT_ONCE } else { Duration::ZERO }) {
                        Some(answer) => take_in(shared, &due, answer),
                        None => self.open.push((question, due)),
                    }
                    settled = waits;
                }
            }
        }
        let mut rest = if self.open.is_empty() { Duration::MAX } else { LOOK_SELDOM };
        for topic in topics.iter().filter(is_known).filter(|topic| !topic.times().is_settled()) {
            if topic.times().has_waited(SETTLE, Instant::now()) {
                topic.times().fail(format!("no answer within {} s", SETTLE.as_secs()), Why::Late);
                settled = true;
            }
            rest = rest.min(LOOK);
        }
        if settled && rest > LOOK { Duration::ZERO } else { rest }
    }
}

fn take_in(shared: &Shared, topics: &[Arc<Topic>], answer: Result<Vec<Described>, Code>) {
    let reason = |code| format!("{} ({code:?})", classify::judge(code).hint);
    let described = match answer {
        Ok(described) => described,
        Err(code) => {
            tracing::debug!(?code, "topics' settings cannot be read");
            let why = if matches!(code, Code::UnsupportedFeature) { Why::Refused } else { Why::Failed };
            return topics.iter().for_each(|topic| topic.times().fail(reason(code), why));
        }
    };
    for topic in topics {
        let name = &*topic.route.destination;
        match described.iter().find(|(described, _)| described == name) {
            Some((_, Ok(settings))) => {
                let settings = settings.iter().map(|(name, value)| (name.as_str(), value.as_str()));
                let rules = Rules::read(settings);
                tracing::debug!(topic = name, ?rules, "a topic's settings on times");
                if topic.times().learn(&shared.times, name, rules) {
                    // What the former settings held back need not wait for its backoff.
                    shared.link.route_up(&topic.route);
                }
            }
            // A new topic: not every broker knows it at once.
            Some((_, Err(code @ (Code::UnknownTopicOrPartition | Code::UnknownTopic)))) => {
                topic.times().fail(reason(*code), Why::Missing);
            }
            Some((_, Err(code))) => topic.times().fail(reason(*code), Why::Refused),
            None => topic.times().fail("the broker's answer lacks the topic".to_owned(), Why::Refused),
        }
    }
}
