//! Kafka: a transport over librdkafka's idempotent producer.
//!
//! Assumes that messages of a lane are submitted one after the other. Keeps the prefix rule with one request in
//! flight a connection, with librdkafka's gapless guarantee, with one message sent ahead on each partition until the
//! broker is known to know the instance, and by giving a producer instance up at the first error that librdkafka does
//! not try again: what it owned is reported failed, all of it, before a new instance takes anything. Refuses a success without an offset, options that would weaken the promise, and to hand over anything
//! to a topic it knows nothing of.
//!
//! What remains open: librdkafka calls the answer "duplicate" a success, without an offset, and has sent the
//! partition's next batch before this transport hears of it; if the answer was wrong, that batch overtakes. With one
//! request in flight, which is why more are refused, no broker answers so: it remembers the last five batches of a
//! producer together with their offsets, and returns those.
//!
//! Which time a record is sent with is decided in one place (`times`), by the topic's settings (`inquiries`).
//! librdkafka tries again for ever, and says neither that the connection broke while a batch was under way nor that a
//! broker throttles. Both are read from what it counts (`counts`, once a second): `cuts` is the evidence that a broker
//! closes the connection because of a message, `suspect` what is done about it.
//!
//! Threads: librdkafka's own, its event thread (reports), `outlast-kafka-meta` (asks about topics, hands over what
//! waited), `outlast-kafka-keep` (rebuilds), `outlast-kafka-care` (idle connections, files that change), and, when needed, `outlast-kafka-solo` and, while a producer is being
//! destroyed, `outlast-kafka-end`.

mod acks;
mod batch;
mod book;
mod broker_clock;
mod classify;
mod config;
mod counts;
mod credentials;
mod cuts;
mod describe;
mod dispatch;
mod doctor;
mod ffi;
mod fixed;
mod inquiries;
mod instance;
mod keepalive;
mod link;
mod log;
mod metadata;
mod migrate;
mod partitioner;
mod reaper;
mod rebuild;
mod renewal;
mod rules;
mod seat;
mod security;
mod share;
mod signal;
mod solo;
mod suspect;
mod times;
mod topics;
mod upkeep;

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rdkafka::config::ClientConfig;

use self::acks::Acks;
use self::batch::BatchSize;
use self::book::{Role, lock};
use self::config::Settings;
use self::credentials::Credentials;
use self::instance::{Contacts, Event, Instance, closed};
use self::keepalive::Keepalive;
use self::link::Link;
use self::reaper::Reaper;
use self::renewal::Renewal;
use self::seat::Seat;
use self::signal::{Bell, Latch};
use self::solo::Solo;
use self::times::Times;
use self::topics::Topics;
use super::{Class, Failure, Handover, Limits, Monitor, Refused, Scope, StartError, Transport};
use crate::clock;
use crate::message::{Body, Message, Outgoing};

pub use self::config::KafkaConfig;
pub(super) use self::doctor::examine;
pub use self::times::ExpiredTimes;

/// How often librdkafka says what it has counted: some kilobytes, and about one more for each partition of each topic in
/// use, whether anything is sent to it or not. With thousands of partitions that takes some milliseconds of each second.
const COUNT_EVERY: Duration = Duration::from_secs(1);
/// The same while a message is tried by itself, when there are few partitions and others wait for it.
const COUNT_ALONE_EVERY: Duration = Duration::from_millis(250);
/// The longest topic name Kafka allows.
const TOPIC_NAME_MAX: usize = 249;

/// The transport to a Kafka cluster.
pub struct KafkaTransport {
    shared: Arc<Shared>,
    inbox: Mutex<Option<Receiver<Event>>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// What the transport's threads share.
struct Shared {
    settings: Settings,
    client: OnceLock<ClientConfig>,
    events: Sender<Event>,
    seat: Seat,
    topics: Topics,
    times: Arc<Times>,
    link: Arc<Link>,
    acks: Arc<Acks>,
    solo: Solo,
    batch: BatchSize,
    reaper: Arc<Reaper>,
    keepalive: Keepalive,
    renewal: Renewal,
    /// Wakes the metadata thread.
    bell: Arc<Bell>,
    /// Whether somebody should find out if the cluster still answers.
    doubt: AtomicBool,
    /// Nothing is taken any more.
    closing: AtomicBool,
    /// The threads end.
    stopped: Latch,
}

impl KafkaTransport {
    /// Checks the configuration, librdkafka's judgement included. Connects to nothing.
    ///
    /// # Errors
    /// A broker is not `HOST:PORT`; an option is unknown, has a bad value, or would break the promise. The error
    /// names the option and the right form.
    pub fn new(config: KafkaConfig) -> Result<Self, StartError> {
        let settings = Settings::resolve(&config)?;
        let (events, inbox) = channel();
        let shared = Shared {
            batch: BatchSize::new(settings.batch_size),
            times: Arc::new(Times::new(settings.expired_times)),
            settings,
            client: OnceLock::new(),
            events,
            seat: Seat::default(),
            topics: Topics::default(),
            link: Arc::default(),
            acks: Arc::default(),
            solo: Solo::default(),
            reaper: Arc::default(),
            keepalive: Keepalive::default(),
            renewal: Renewal::default(),
            bell: Arc::default(),
            doubt: AtomicBool::new(true),
            closing: AtomicBool::new(false),
            stopped: Latch::default(),
        };
        Ok(Self { shared: Arc::new(shared), inbox: Mutex::new(Some(inbox)), threads: Mutex::new(Vec::new()) })
    }

    /// Checks that the options leave room for the messages of a producer with these limits.
    pub(super) fn check_limits(&self, limits: Limits) -> Result<(), StartError> {
        self.shared.settings.client(limits.max_message_bytes, limits.window_bytes).map(drop)
    }

    fn spawn(&self, name: &str, work: impl FnOnce(&Arc<Shared>) + Send + 'static) -> Result<(), StartError> {
        let shared = Arc::clone(&self.shared);
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || work(&shared));
        let thread = thread.map_err(|error| StartError(format!("no thread {name}: {error}")))?;
        lock(&self.threads).push(thread);
        Ok(())
    }

    /// Waits until nothing is owned, for `grace` at most.
    fn settle(&self, grace: Duration) {
        /// How often the queues that have no bell of their own are looked at.
        const LOOK: Duration = Duration::from_millis(20);
        let shared = &self.shared;
        let deadline = clock::after(Instant::now(), grace);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let outside = shared.topics.waiting() > 0 || shared.solo.is_busy() || shared.renewal.is_switching();
            let owned = shared
                .seat
                .current()
                .is_some_and(|instance| !instance.book().wait_empty(if outside { left.min(LOOK) } else { left }));
            if left.is_zero() || !(outside || owned) {
                return;
            }
            if outside && !owned {
                shared.stopped.wait(left.min(LOOK));
            }
        }
    }
}

impl fmt::Debug for KafkaTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KafkaTransport").finish_non_exhaustive()
    }
}

impl Transport for KafkaTransport {
    fn start(&self, monitor: Monitor) -> Result<(), StartError> {
        let client = self.shared.settings.client(monitor.max_message_bytes, monitor.window_bytes)?;
        let Some(inbox) = lock(&self.inbox).take() else {
            return Err(StartError("the transport was started before".to_owned()));
        };
        // Neither was set before: the inbox is there only once.
        let _ = self.shared.client.set(client);
        self.shared.link.attach(monitor);
        let instance = self.shared.instance().map_err(StartError)?;
        self.shared.seat.occupy(instance);
        self.spawn("outlast-kafka-keep", move |shared| rebuild::run(shared, &inbox))?;
        self.spawn("outlast-kafka-meta", metadata::run)?;
        self.spawn("outlast-kafka-care", |shared| upkeep::run(shared))
    }

    fn check(&self, message: &Message) -> Result<(), String> {
        check(message)
    }

    fn partition(&self, message: &Outgoing) -> Option<i32> {
        let topic = self.shared.topics.find(&message.route.destination)?;
        let mut state = topic.state();
        self.shared.place(&mut state, message, Instant::now())
    }

    fn submit(&self, handover: Handover) -> Result<(), Refused> {
        let shared = &self.shared;
        if shared.closing.load(Ordering::Acquire) {
            return Err(Refused { handover, failure: Arc::new(closed()) });
        }
        let now = Instant::now();
        let topic = shared.topics.of(&handover.message.route, now);
        let mut state = topic.state();
        if let Some(failure) = state.refusal(now) {
            if state.ask_sooner(now, metadata::RECHECK_LEAST) {
                shared.bell.ring();
            }
            return Err(Refused { handover, failure });
        }
        shared.take(&mut state, handover, now)
    }

    fn alerts(&self) -> Vec<String> {
        let mut alerts = self.shared.times.alerts();
        alerts.extend(self.shared.renewal.warning());
        alerts
    }

    fn hand_back(&self) {
        if let Some(instance) = self.shared.seat.current() {
            // The keeper hears of it, and rebuilds.
            let text = "partitions that keep what they own have taken too much of the window";
            instance.give_up(Failure::new(Class::Fatal, Scope::Transport, text));
        }
    }

    fn trouble(&self) -> Option<String> {
        self.shared.link.trouble_with_one(Instant::now())
    }

    fn throttled(&self) -> Option<String> {
        self.shared.link.throttle(Instant::now())
    }

    fn close(&self, grace: Duration) {
        let shared = &self.shared;
        if shared.closing.swap(true, Ordering::AcqRel) {
            return;
        }
        self.settle(grace);
        shared.stopped.set();
        shared.bell.ring();
        // The keeper may have ended with its inbox.
        let _ = shared.events.send(Event::Closing);
        if let Some(instance) = shared.seat.vacate(closed()) {
            instance.give_up(closed());
            instance.retire(Duration::ZERO, || true);
        }
        shared.topics.fail_waiting(&Arc::new(closed()));
        let deadline = Instant::now() + THREADS_END;
        for thread in lock(&self.threads).drain(..).chain(shared.solo.thread()) {
            join(thread, deadline);
        }
        // One that was to take over; no thread makes another one now.
        renewal::discard(shared);
        shared.reaper.wait(deadline.saturating_duration_since(Instant::now()));
    }
}

/// How long `close` waits for its threads, each of which ends soon unless it sits in a call of librdkafka's.
const THREADS_END: Duration = Duration::from_secs(3);

/// Waits for a thread to end, and leaves it to itself if it does not: it holds nothing that anybody waits for.
fn join(thread: JoinHandle<()>, deadline: Instant) {
    /// There is no way to wait for a thread with a limit.
    const LOOK: Duration = Duration::from_millis(1);
    while !thread.is_finished() {
        if Instant::now() >= deadline {
            tracing::debug!(name = thread.thread().name(), "a thread of the Kafka transport takes long to end");
            return;
        }
        std::thread::sleep(LOOK);
    }
    if thread.join().is_err() {
        tracing::error!("a thread of the Kafka transport panicked");
    }
}

impl Drop for KafkaTransport {
    fn drop(&mut self) {
        self.close(Duration::ZERO);
    }
}

impl Shared {
    fn is_stopped(&self) -> bool {
        self.stopped.is_set()
    }

    /// Lets the metadata thread find out whether the cluster still answers.
    fn doubt(&self) {
        self.doubt.store(true, Ordering::Release);
        self.bell.ring();
    }

    fn is_doubtful(&self) -> bool {
        self.doubt.load(Ordering::Acquire)
    }

    fn take_doubt(&self) -> bool {
        self.doubt.swap(false, Ordering::AcqRel)
    }

    /// A new producing instance.
    fn instance(&self) -> Result<Instance, String> {
        self.instance_with(&self.settings.credentials.current())
    }

    /// The same, with other certificates, keys and passwords than those in use.
    fn instance_with(&self, credentials: &Credentials) -> Result<Instance, String> {
        let mut client = self.client.get().ok_or("the transport has not been started")?.clone();
        if let Some(smaller) = self.batch.smaller() {
            client.set("batch.size", smaller.to_string());
        }
        client.set("statistics.interval.ms", COUNT_EVERY.as_millis().to_string());
        Instance::new(&client, &self.settings, credentials, Role::Producing, &self.contacts())
    }

    /// A new instance for messages that are tried by themselves.
    fn solo_instance(&self) -> Result<Instance, String> {
        let mut client = self.client.get().ok_or("the transport has not been started")?.clone();
        client.set("batch.num.messages", "1");
        client.set("queue.buffering.max.ms", "0");
        client.remove("linger.ms");
        let credentials = self.settings.credentials.current();
        client.set("statistics.interval.ms", COUNT_ALONE_EVERY.as_millis().to_string());
        Instance::new(&client, &self.settings, &credentials, Role::Solo, &self.contacts())
    }

    fn contacts(&self) -> Contacts {
        Contacts {
            events: self.events.clone(),
            bell: Arc::clone(&self.bell),
            link: Arc::clone(&self.link),
            times: Arc::clone(&self.times),
            acks: Arc::clone(&self.acks),
            reaper: Arc::clone(&self.reaper),
        }
    }
}

/// Whether Kafka could ever take a message.
fn check(message: &Message) -> Result<(), String> {
    let topic = message.destination();
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    if topic.is_empty() || topic.len() > TOPIC_NAME_MAX || topic == "." || topic == ".." || !topic.bytes().all(legal) {
        return Err(format!(
            "{topic:?} is no legal topic name: 1 to {TOPIC_NAME_MAX} of a-z, A-Z, 0-9, '.', '_' and '-', not '.' or '..'"
        ));
    }
    if matches!(message.body(), Body::Fields(_)) {
        return Err("a field map is for Redis streams; a Kafka message has a payload".to_owned());
    }
    if message.headers().iter().any(|header| header.name.is_empty()) {
        return Err("a header without a name".to_owned());
    }
    if let Some(partition) = message.chosen_partition()
        && partition < 0
    {
        return Err(format!("partition {partition}: partitions count from 0; leave it out to have one chosen"));
    }
    if let Some(timestamp) = message.timestamp_millis()
        && timestamp <= 0
    {
        // librdkafka takes 0 for "now", and the broker refuses what lies before 1970.
        return Err(format!("timestamp {timestamp}: milliseconds since 1970, at least 1; leave it out for now"));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
