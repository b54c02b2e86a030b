//! Kafka: a transport over librdkafka's idempotent producer.
//!
//! Assumes that messages of a lane are submitted one after the other. Keeps the prefix rule with one request in
//! flight a connection, with librdkafka's gapless guarantee, and by giving a producer instance up at the first error
//! that librdkafka does not try again: what it owned is reported failed, all of it, before a new instance takes
//! anything. Refuses a success without an offset, options that would weaken the promise, and to hand over anything
//! to a topic it knows nothing of.
//!
//! What remains open: librdkafka calls the answer "duplicate" a success, without an offset, and has sent the
//! partition's next batch before this transport hears of it; if the answer was wrong, that batch overtakes. With one
//! request in flight, which is why more are refused, no broker answers so: it remembers the last five batches of a
//! producer together with their offsets, and returns those.
//!
//! Threads: librdkafka's own, its event thread (reports), `outlast-kafka-meta` (asks about topics, hands over what
//! waited), `outlast-kafka-keep` (rebuilds), and, when needed, `outlast-kafka-solo`.

mod book;
mod classify;
mod config;
mod ffi;
mod instance;
mod link;
mod log;
mod metadata;
mod migrate;
mod partitioner;
mod rebuild;
mod seat;
mod signal;
mod solo;
mod topics;

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rdkafka::config::ClientConfig;

use self::book::lock;
use self::config::Settings;
use self::instance::{Event, Instance, closed};
use self::link::Link;
use self::seat::Seat;
use self::signal::{Bell, Latch};
use self::solo::Solo;
use self::topics::{Knowledge, State, Topics};
use super::{Class, Failure, Handover, Monitor, Refused, Scope, StartError, Transport};
use crate::message::{Body, Message, Outgoing};

pub use self::config::KafkaConfig;

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
    link: Link,
    solo: Solo,
    /// Wakes the metadata thread.
    bell: Bell,
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
            settings,
            client: OnceLock::new(),
            events,
            seat: Seat::default(),
            topics: Topics::default(),
            link: Link::default(),
            solo: Solo::default(),
            bell: Bell::default(),
            doubt: AtomicBool::new(true),
            closing: AtomicBool::new(false),
            stopped: Latch::default(),
        };
        Ok(Self { shared: Arc::new(shared), inbox: Mutex::new(Some(inbox)), threads: Mutex::new(Vec::new()) })
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
        let deadline = Instant::now() + grace;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let outside = shared.topics.waiting() > 0 || shared.solo.is_busy();
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
        let client = self.shared.settings.client(monitor.max_message_bytes)?;
        let Some(inbox) = lock(&self.inbox).take() else {
            return Err(StartError("the transport was started before".to_owned()));
        };
        // Neither was set before: the inbox is there only once.
        let _ = self.shared.client.set(client);
        self.shared.link.attach(monitor);
        let instance = self.shared.instance().map_err(StartError)?;
        self.shared.seat.occupy(instance);
        self.spawn("outlast-kafka-keep", move |shared| rebuild::run(shared, &inbox))?;
        self.spawn("outlast-kafka-meta", metadata::run)
    }

    fn check(&self, message: &Message) -> Result<(), String> {
        check(message)
    }

    fn partition(&self, message: &Outgoing) -> Option<i32> {
        let topic = self.shared.topics.find(&message.route.destination)?;
        let state = topic.state();
        let Knowledge::Known(partitions) = &state.knowledge else { return None };
        let message = &message.message;
        let count = i32::try_from(partitions.leaders.len()).ok()?;
        message.partition.or_else(|| self.shared.settings.partitioner.keyed(message.key.as_deref(), count))
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
            if state.ask_sooner(now) {
                shared.bell.ring();
            }
            return Err(Refused { handover, failure });
        }
        if state.is_ready() && state.waiting.is_empty() {
            return shared.dispatch(&mut state, handover, true);
        }
        let first = state.waiting.is_empty();
        state.wait(handover)?;
        if first {
            shared.bell.ring();
        }
        Ok(())
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
        shared.solo.join();
        for thread in lock(&self.threads).drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of the Kafka transport panicked");
            }
        }
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
        let client = self.client.get().ok_or("the transport has not been started")?;
        Instance::new(client, &self.settings, self.events.clone())
    }

    /// A new instance for messages that are tried by themselves.
    fn solo_instance(&self) -> Result<Instance, String> {
        let mut client = self.client.get().ok_or("the transport has not been started")?.clone();
        client.set("batch.num.messages", "1");
        client.set("queue.buffering.max.ms", "0");
        client.remove("linger.ms");
        Instance::new(&client, &self.settings, self.events.clone())
    }

    /// Chooses the partition of a message and hands it over. `capped`: what the partition may own is limited.
    // The message comes back on the rare way, and a box on the frequent one would cost more.
    #[allow(clippy::result_large_err)]
    fn dispatch(self: &Arc<Self>, state: &mut State, handover: Handover, capped: bool) -> Result<(), Refused> {
        let Knowledge::Known(partitions) = &state.knowledge else {
            return state.wait(handover);
        };
        let topic = &handover.message.route.destination;
        let count = partitions.leaders.len() as i32;
        let message = &handover.message.message;
        let key = message.key.as_deref();
        let partition =
            message.partition.or_else(|| self.settings.partitioner.keyed(key, count)).unwrap_or_else(|| {
                // The partitioner `random` draws anew for each message that has a key.
                let linger =
                    if key.is_none_or(<[u8]>::is_empty) { self.settings.sticky_linger } else { Duration::ZERO };
                state.sticky.choose(Instant::now(), linger, &partitions.leaders)
            });
        let index = usize::try_from(partition).ok();
        let Some(share) = index.and_then(|index| partitions.shares.get(index)) else {
            let text = format!("{topic}[{partition}]: the topic has {count} partitions, counted from 0");
            let failure = Arc::new(Failure::new(Class::Hold, Scope::Partition(partition), text));
            return Err(Refused { handover, failure });
        };
        if capped && share.is_full(message.size(), config::PARTITION_MESSAGES, config::PARTITION_BYTES) {
            let led = index.and_then(|index| partitions.leaders.get(index)).copied().unwrap_or(false);
            let why = if led { "" } else { ", and it has no leader" };
            let text = format!("{topic}[{partition}]: as much as a partition may own is not acknowledged yet{why}");
            let failure = Arc::new(Failure::new(Class::Transient, Scope::Partition(partition), text));
            return Err(Refused { handover, failure });
        }
        if handover.alone {
            self.solo.submit(self, handover, partition, share)
        } else {
            self.seat.send(handover, partition, share)
        }
    }
}

impl State {
    /// Somebody asks for a topic that is missing: asks the cluster, but not each time.
    fn ask_sooner(&mut self, now: Instant) -> bool {
        let earliest = self.asked_at.map_or(now, |asked| asked + metadata::RECHECK_LEAST);
        let sooner = earliest.max(now) < self.ask_at;
        if sooner {
            self.ask_at = earliest.max(now);
        }
        sooner
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
