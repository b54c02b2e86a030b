//! The solo instance: takes messages that are to be tried by themselves, one at a time, so that a verdict means
//! that message and no other.
//!
//! Its own producer with batches of one. Made when first needed, closed when idle. A message that gets no verdict
//! within the patience is handed back: others wait behind it.

use std::cell::Cell;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::Shared;
use super::book::lock;
use super::cuts::Cut;
use super::instance::{Instance, closed};
use super::share::{Share, millis};
use super::times::Stamped;
use super::{rebuild, suspect};
use crate::message::MessageId;
use crate::transport::{Class, Failure, Handover, Outcome, Recipient, Refused, Scope, Ticket};

/// An instance that had nothing to do for so long is closed.
const IDLE: Duration = Duration::from_secs(30);
/// How long one message may keep the others waiting.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long the instance may take to hear of the message's topic.
const INTRODUCTION: Duration = Duration::from_secs(1);
/// How long after a fatal error the report may take to come.
const REPORT: Duration = Duration::from_secs(1);
/// The most messages that wait; the producer sends single probes.
const MOST_WAITING: usize = 1_000;
/// The most messages of which it is remembered when the broker closed the connection for them.
const MOST_CUT: usize = 1_000;

/// A message and where it goes.
struct Job {
    handover: Handover,
    partition: i32,
    share: Arc<Share>,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    busy: bool,
    thread: Option<JoinHandle<()>>,
    running: bool,
}

/// The queue of the solo instance.
#[derive(Default)]
pub(super) struct Solo {
    state: Mutex<State>,
    arrived: Condvar,
    /// When (as [`millis`]) the last trial of these began, in which the broker closed the connection.
    cut: Mutex<HashMap<MessageId, u64>>,
}

impl Solo {
    /// Takes a message; starts the thread if there is none.
    // As in `Instance::send`.
    #[allow(clippy::result_large_err)]
    pub(super) fn submit(
        &self,
        shared: &Arc<Shared>,
        handover: Handover,
        partition: i32,
        share: &Arc<Share>,
    ) -> Result<(), Refused> {
        let refuse = |handover, text: String| {
            let failure = Arc::new(Failure::new(Class::Transient, Scope::Lane, text));
            Err(Refused { handover, failure })
        };
        let mut state = lock(&self.state);
        if state.jobs.len() >= MOST_WAITING {
            return refuse(handover, format!("{MOST_WAITING} messages wait to be tried by themselves already"));
        }
        if !state.running {
            let own = Arc::clone(shared);
            let thread = std::thread::Builder::new().name("outlast-kafka-solo".to_owned()).spawn(move || run(&own));
            match thread {
                Ok(thread) => state.thread = Some(thread),
                Err(error) => return refuse(handover, format!("no thread to try the message by itself: {error}")),
            }
            state.running = true;
        }
        state.jobs.push_back(Job { handover, partition, share: Arc::clone(share) });
        drop(state);
        self.arrived.notify_all();
        Ok(())
    }

    /// Whether anything is owned.
    pub(super) fn is_busy(&self) -> bool {
        let state = lock(&self.state);
        state.busy || !state.jobs.is_empty()
    }

    /// The thread, which ends soon once the transport has stopped.
    pub(super) fn thread(&self) -> Option<JoinHandle<()>> {
        self.arrived.notify_all();
        lock(&self.state).thread.take()
    }

    /// The next message; `None` when there was none for long, or the transport has stopped.
    fn next(&self, shared: &Shared) -> Option<Job> {
        let deadline = Instant::now() + IDLE;
        let mut state = lock(&self.state);
        state.busy = false;
        loop {
            let remaining = deadline.saturating_duration_since(Instant::now());
            if shared.is_stopped() || (state.jobs.is_empty() && remaining.is_zero()) {
                state.running = false;
                return None;
            }
            if let Some(job) = state.jobs.pop_front() {
                state.busy = true;
                return Some(job);
            }
            state = self.arrived.wait_timeout(state, remaining).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// When the trial of a message before the one that `began` began, if the broker closed the connection in it, too;
    /// otherwise when this one did.
    fn cut_before(&self, id: MessageId, began: Instant) -> u64 {
        let (mut cut, began) = (lock(&self.cut), millis(began));
        if cut.len() >= MOST_CUT && !cut.contains_key(&id) {
            // The one that was forgotten begins anew: it is judged later, and no worse.
            let oldest = cut.iter().min_by_key(|(_, since)| **since).map(|(id, _)| *id);
            oldest.and_then(|oldest| cut.remove(&oldest));
        }
        cut.insert(id, began).unwrap_or(began)
    }

    fn take_rest(&self) -> VecDeque<Job> {
        std::mem::take(&mut lock(&self.state).jobs)
    }
}

/// Waits for the outcome of the one message.
#[derive(Default)]
struct Watch {
    outcome: Mutex<Option<Outcome>>,
    came: Condvar,
}

impl Recipient for Watch {
    fn report(self: Arc<Self>, outcome: Outcome) {
        *lock(&self.outcome) = Some(outcome);
        self.came.notify_all();
    }
}

impl Watch {
    /// How often it is looked whether there is still something to wait for.
    const LOOK: Duration = Duration::from_millis(100);

    fn wait(&self, patience: Duration, in_vain: impl Fn() -> bool) -> Option<Outcome> {
        let deadline = Instant::now() + patience;
        let mut outcome = lock(&self.outcome);
        while outcome.is_none() && Instant::now() < deadline && !in_vain() {
            outcome = self.came.wait_timeout(outcome, Self::LOOK).unwrap_or_else(PoisonError::into_inner).0;
        }
        outcome.take()
    }
}

fn run(shared: &Arc<Shared>) {
    let mut instance = None;
    let mut failures = 0;
    while let Some(job) = shared.solo.next(shared) {
        if failures > 0 {
            shared.stopped.wait(rebuild::backoff(failures, fastrand::f64()));
        }
        let began = Instant::now();
        shared.acks.watch(began);
        let was_suspected = job.share.take_suspicion();
        let mut tried = try_alone(shared, &mut instance, &job);
        judge_cut(shared, &job, &mut tried, was_suspected, began);
        judge_time(shared, &job, &mut tried);
        remember(shared, &job, &tried);
        let outcome = tried.outcome;
        // A verdict is an answer, whatever it says; only an instance that fails by itself must not spin.
        let answered = match &outcome {
            Outcome::Delivered(_) => true,
            Outcome::Failed { failure, .. } => matches!(failure.class, Class::Permanent | Class::Hold),
        };
        failures = if answered { 0 } else { failures.saturating_add(1) };
        match outcome {
            Outcome::Delivered(position) => job.handover.ticket.delivered(position),
            Outcome::Failed { failure, possibly_delivered } => job.handover.ticket.failed(failure, possibly_delivered),
        }
    }
    if shared.is_stopped() {
        let failure = Arc::new(closed());
        for job in shared.solo.take_rest() {
            job.handover.ticket.failed(Arc::clone(&failure), false);
        }
    }
}

/// If the broker closes the connection for the message, says whose fault that is. The message is to blame only if the same
/// broker took another one since its trial before, or in this one: what it took earlier says nothing about how it is now.
fn judge_cut(shared: &Shared, job: &Job, tried: &mut Tried, was_suspected: bool, began: Instant) {
    if let (Some(cut), Outcome::Failed { failure, .. }) = (&tried.cut, &mut tried.outcome) {
        let since = shared.solo.cut_before(job.handover.message.id, began);
        let others_pass = shared.acks.any_since(cut.broker, since);
        *failure = Arc::new(suspect::verdict(&job.handover.message, cut, others_pass));
        if others_pass {
            // Not the size of the batches was to blame.
            shared.batch.restore();
        }
    } else if matches!(tried.outcome, Outcome::Delivered(_)) {
        lock(&shared.solo.cut).remove(&job.handover.message.id);
        if was_suspected {
            // Likewise: nothing was.
            shared.batch.restore();
        }
    }
}

/// A time that the library chose says nothing about the message: it is tried with another.
fn judge_time(shared: &Shared, job: &Job, tried: &mut Tried) {
    if let (Outcome::Failed { failure, .. }, Some(stamped)) = (&mut tried.outcome, tried.refused_time) {
        let topic = &job.handover.message.route.destination;
        if let Some(other) = job.share.times().refused(&shared.times, topic, stamped) {
            *failure = Arc::new(other);
        }
    }
}

/// Notes which sizes the topic takes, before the message is reported on: what comes next is judged by it.
fn remember(shared: &Shared, job: &Job, tried: &Tried) {
    let (message, now) = (&job.handover.message, Instant::now());
    let Some(topic) = shared.topics.find(&message.route.destination) else { return };
    if matches!(tried.outcome, Outcome::Delivered(_)) {
        topic.state().passed(message.message.size(), now);
    } else if tried.too_large {
        topic.state().refused(message.message.size(), now);
        shared.batch.restore();
    }
}

/// What came of a message that was tried by itself.
struct Tried {
    outcome: Outcome,
    /// The broker refused it as too large.
    too_large: bool,
    /// The evidence that the broker closes the connection for it.
    cut: Option<Cut>,
    /// The time that the broker refused.
    refused_time: Option<Stamped>,
}

impl Tried {
    fn new(outcome: Outcome) -> Self {
        Self { outcome, too_large: false, cut: None, refused_time: None }
    }

    fn failed(text: String, possibly_delivered: bool) -> Self {
        let failure = Arc::new(Failure::new(Class::Transient, Scope::Lane, text));
        Self::new(Outcome::Failed { failure, possibly_delivered })
    }
}

/// Sends one message and waits for its outcome; an instance that failed has been retired when this returns.
fn try_alone(shared: &Shared, place: &mut Option<Instance>, job: &Job) -> Tried {
    let current = shared.settings.credentials.current().number;
    let instance = match place.take().filter(|instance| instance.credentials() == current) {
        Some(instance) => instance,
        None => match shared.solo_instance() {
            Ok(instance) => instance,
            Err(reason) => return Tried::failed(format!("no instance to try the message by itself: {reason}"), false),
        },
    };
    // An instance that knows the topic sends at once; if nobody answers now, the message waits in it.
    let _ = instance.client().fetch_metadata(Some(&job.handover.message.route.destination), INTRODUCTION);
    instance.book().take_cut();
    let watch = Arc::new(Watch::default());
    let message = Arc::clone(&job.handover.message);
    let handover = Handover { message, alone: true, ticket: Ticket::new(Arc::clone(&watch) as Arc<dyn Recipient>) };
    if let Err(refused) = instance.send(handover, job.partition, &job.share) {
        refused.handover.ticket.withdraw();
        rebuild::retire(shared, &instance);
        return Tried::new(Outcome::Failed { failure: refused.failure, possibly_delivered: false });
    }
    // A fatal error without a report is as good as one; but librdkafka raises the error first and reports with the
    // broker's verdict a moment later.
    let fatal_since = Cell::new(None);
    let verdict = watch.wait(PATIENCE, || {
        let fatal = || instance.check_fatal().then(|| fatal_since.get().unwrap_or_else(Instant::now));
        fatal_since.set(fatal());
        let is_fatal = fatal_since.get().is_some_and(|since| since.elapsed() >= REPORT);
        shared.is_stopped() || is_fatal || instance.book().is_cut()
    });
    if let Some(delivered @ Outcome::Delivered(_)) = verdict {
        *place = Some(instance);
        return Tried::new(delivered);
    }
    let cut = instance.book().take_cut().filter(|_| verdict.is_none());
    if verdict.is_none() {
        // Unless it failed already, in which case the first reason stays.
        instance.give_up(no_verdict(job));
    }
    let given_up_for = instance.book().given_up();
    rebuild::retire(shared, &instance);
    let too_large = instance.book().too_large().0 > 0;
    let refused_time = instance.book().refused_time();
    match (verdict, lock(&watch.outcome).take()) {
        (Some(outcome), _) => Tried { outcome, too_large, cut, refused_time },
        // Retiring the instance made librdkafka hand the message back; that is not why it failed.
        (None, Some(Outcome::Failed { possibly_delivered, .. })) => {
            let failure = given_up_for.unwrap_or_else(|| Arc::new(no_verdict(job)));
            Tried { outcome: Outcome::Failed { failure, possibly_delivered }, too_large, cut, refused_time }
        }
        (None, Some(delivered @ Outcome::Delivered(_))) => Tried::new(delivered),
        // Whatever became of it, librdkafka had it.
        (None, None) => Tried::failed("the message tried by itself was not reported on".to_owned(), true),
    }
}

fn no_verdict(job: &Job) -> Failure {
    let place = format!("{}[{}]", job.handover.message.route.destination, job.partition);
    let text = format!("{place}: tried by itself, the message got no verdict in {}s", PATIENCE.as_secs());
    Failure::new(Class::Transient, Scope::Partition(job.partition), text)
}

#[cfg(test)]
mod tests {
    use super::super::{KafkaConfig, KafkaTransport};
    use super::*;
    use crate::message::{Message, MessageId, Outgoing, Position, Route};

    fn transport() -> KafkaTransport {
        KafkaTransport::new(KafkaConfig::new(["127.0.0.1:1"])).unwrap_or_else(|error| panic!("{error}"))
    }

    fn job() -> Job {
        let route = Route { transport: "kafka".into(), destination: "t".into() };
        let outgoing =
            Outgoing { id: MessageId::new(1, 1), route, lane: None, timestamp: 1, message: Message::to("t") };
        let ticket = Ticket::new(Arc::new(Watch::default()));
        let handover = Handover { message: Arc::new(outgoing), alone: true, ticket };
        Job { handover, partition: 0, share: Arc::default() }
    }

    /// Of a message that the broker closes the connection for.
    fn class(shared: &Shared, began: Instant) -> Class {
        let cut = Some(Cut { topic: "t".into(), partition: 0, broker: 7, cuts: 3 });
        let mut tried = Tried { cut, ..Tried::failed("no verdict".to_owned(), true) };
        judge_cut(shared, &job(), &mut tried, true, began);
        match tried.outcome {
            Outcome::Failed { failure, .. } => failure.class,
            Outcome::Delivered(_) => panic!("delivered"),
        }
    }

    /// A broker that took messages once, and nothing any more, had the message judged.
    #[test]
    fn only_what_the_broker_takes_since_the_trial_before_puts_the_blame_on_the_message() {
        let (transport, now) = (transport(), Instant::now());
        let (shared, at) = (&transport.shared, |seconds| now + Duration::from_secs(seconds));
        shared.acks.watch(at(0));
        shared.acks.acknowledged(at(5), || 7);
        assert_eq!(class(shared, at(10)), Class::Hold);
        shared.acks.acknowledged(at(15), || 7);
        assert_eq!(class(shared, at(20)), Class::Permanent);
        assert_eq!(class(shared, at(30)), Class::Hold, "it has taken nothing since");
    }

    /// Batches stayed small for good once a connection had been cut off a few times.
    #[test]
    fn batches_have_their_size_again_when_they_were_not_to_blame() {
        let (transport, now) = (transport(), Instant::now());
        let shared = &transport.shared;
        let shrink = || {
            shared.batch.refused((10, 100_000));
            assert!(shared.batch.smaller().is_some());
        };
        let deliver = |was_suspected| {
            let position = Position::Offset { partition: 0, offset: 1 };
            judge_cut(shared, &job(), &mut Tried::new(Outcome::Delivered(position)), was_suspected, now);
        };
        shrink();
        deliver(false);
        assert_eq!(class(shared, now), Class::Hold);
        assert!(shared.batch.smaller().is_some(), "nothing is known yet");
        deliver(true);
        assert_eq!(shared.batch.smaller(), None);
        shrink();
        shared.acks.watch(now);
        shared.acks.acknowledged(now + Duration::from_secs(1), || 7);
        assert_eq!(class(shared, now), Class::Permanent);
        assert_eq!(shared.batch.smaller(), None);
    }
}
