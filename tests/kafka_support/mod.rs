//! What the tests of the Kafka transport share: a transport with somebody who writes down what it says, and a reader.

// Each test file uses its part.
#![allow(dead_code)]

pub mod lanes;

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use outlast::transport::kafka::{KafkaConfig, KafkaTransport};
use outlast::transport::{
    Availability, Class, Failure, Handover, Monitor, Outcome, Recipient, Refused, Scope, Ticket, Transport,
};
use outlast::{Lane, Message, MessageId, Outgoing, Position, Route};
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Headers, Message as _, OwnedMessage};
use rdkafka::{Offset, TopicPartitionList};

/// Longer than anything may take that a test waits for.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// What the transport said, in order.
#[derive(Debug, Clone)]
pub enum Said {
    Report(u64, Outcome),
    Up,
    Down(Arc<Failure>),
    RouteUp(String),
}

struct Reporter(u64, Sender<Said>);

impl Recipient for Reporter {
    fn report(self: Arc<Self>, outcome: Outcome) {
        let _ = self.1.send(Said::Report(self.0, outcome));
    }
}

/// A transport, and what it says.
pub struct Rig {
    pub transport: KafkaTransport,
    pub said: Receiver<Said>,
    sender: Sender<Said>,
    next: Mutex<u64>,
    pub log: Mutex<Vec<Said>>,
}

impl Rig {
    pub fn new(brokers: &str) -> Self {
        Self::with(KafkaConfig::new(brokers.split(',')))
    }

    pub fn with(config: KafkaConfig) -> Self {
        let transport = KafkaTransport::new(config).unwrap_or_else(|error| panic!("{error}"));
        let (sender, said) = channel();
        let (one, two) = (Mutex::new(sender.clone()), Mutex::new(sender.clone()));
        let monitor = Monitor::new(
            1 << 20,
            move |availability| {
                let said = match availability {
                    Availability::Up => Said::Up,
                    Availability::Down(failure) => Said::Down(failure),
                    other => panic!("{other:?}"),
                };
                let _ = one.lock().map(|sender| sender.send(said));
            },
            move |route| {
                let _ = two.lock().map(|sender| sender.send(Said::RouteUp(route.destination.to_string())));
            },
        );
        transport.start(monitor).unwrap_or_else(|error| panic!("{error}"));
        Self { transport, said, sender, next: Mutex::new(0), log: Mutex::new(Vec::new()) }
    }

    /// A handover with the next number, which is also its message id's.
    pub fn handover(&self, message: Message, alone: bool) -> (u64, Handover) {
        let mut next = self.next.lock().unwrap();
        *next += 1;
        let route = Route { transport: "kafka".into(), destination: message.destination().into() };
        let lane = message.key_bytes().map(|key| Lane::of(&route, Some(&key[..])));
        let timestamp = message.timestamp_millis().unwrap_or(1_700_000_000_000);
        let outgoing = Outgoing { id: MessageId::new(0xbeef, *next), route, lane, timestamp, message };
        let ticket = Ticket::new(Arc::new(Reporter(*next, self.sender.clone())));
        (*next, Handover { message: Arc::new(outgoing), alone, ticket })
    }

    pub fn try_submit(&self, message: Message) -> Result<u64, Arc<Failure>> {
        self.try_hand_over(message, false)
    }

    pub fn try_submit_alone(&self, message: Message) -> Result<u64, Arc<Failure>> {
        self.try_hand_over(message, true)
    }

    fn try_hand_over(&self, message: Message, alone: bool) -> Result<u64, Arc<Failure>> {
        let (number, handover) = self.handover(message, alone);
        self.transport.submit(handover).map(|()| number).map_err(|refused| {
            let Refused { handover, failure } = refused;
            // Dropped, it would report; the producer takes a ticket that came back by other means.
            std::mem::forget(handover.ticket);
            *self.next.lock().unwrap() -= 1;
            failure
        })
    }

    /// Submits, as soon as its partition has room, as the producer does; any other refusal fails the test.
    pub fn submit(&self, message: Message) -> u64 {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let failure = match self.try_submit(message.clone()) {
                Ok(number) => return number,
                Err(failure) => failure,
            };
            let no_room = failure.class == Class::Transient && matches!(failure.scope, Scope::Partition(_));
            assert!(no_room && Instant::now() < deadline, "refused: {failure}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    pub fn submit_alone(&self, message: Message) -> u64 {
        self.try_submit_alone(message).unwrap_or_else(|failure| panic!("refused: {failure}"))
    }

    /// Submits again and again until it is taken, as the drainer does.
    pub fn submit_until_taken(&self, message: &Message) -> u64 {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.try_submit(message.clone()) {
                Ok(number) => return number,
                Err(failure) => assert!(Instant::now() < deadline, "refused for too long: {failure}"),
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// The next thing it says.
    pub fn next(&self) -> Said {
        let said = self.said.recv_timeout(PATIENCE).unwrap_or_else(|_| {
            panic!("the transport said nothing for {PATIENCE:?}; before: {:?}", self.log.lock().unwrap())
        });
        self.log.lock().unwrap().push(said.clone());
        said
    }

    /// Waits for something it says.
    pub fn until(&self, wanted: impl Fn(&Said) -> bool) -> Said {
        loop {
            let said = self.next();
            if wanted(&said) {
                return said;
            }
        }
    }

    /// Waits for the reports on `count` messages, in the order they come.
    pub fn reports(&self, count: usize) -> Vec<(u64, Outcome)> {
        let mut reports = Vec::new();
        while reports.len() < count {
            if let Said::Report(number, outcome) = self.next() {
                reports.push((number, outcome));
            }
        }
        reports
    }

    /// Waits until `count` messages are delivered; anything else fails the test.
    pub fn delivered(&self, count: usize) -> Vec<(u64, i32, i64)> {
        let reports = self.reports(count);
        let positions = reports.into_iter().map(|(number, outcome)| match outcome {
            Outcome::Delivered(Position::Offset { partition, offset }) => (number, partition, offset),
            other => panic!("message {number}: {other:?}"),
        });
        positions.collect()
    }

    /// Waits for a failure of one message.
    pub fn failure(&self) -> (u64, Arc<Failure>, bool) {
        match self.reports(1).remove(0) {
            (number, Outcome::Failed { failure, possibly_delivered }) => (number, failure, possibly_delivered),
            other => panic!("{other:?}"),
        }
    }

    /// Nothing must be reported twice, and nothing after this.
    pub fn assert_silent(&self) {
        let more: Vec<_> = self.said.try_iter().filter(|said| matches!(said, Said::Report(..))).collect();
        assert!(more.is_empty(), "reported in excess: {more:?}");
    }
}

pub fn is(failure: &Failure, class: Class, scope: Scope) -> bool {
    (failure.class, failure.scope) == (class, scope)
}

/// Reads a topic until `count` messages are there.
pub fn read(brokers: &str, topic: &str, partitions: i32, count: usize) -> Vec<OwnedMessage> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", "reader")
        .set("enable.auto.commit", "false")
        .create()
        .unwrap_or_else(|error| panic!("{error}"));
    let mut list = TopicPartitionList::new();
    for partition in 0..partitions {
        list.add_partition_offset(topic, partition, Offset::Beginning).unwrap();
    }
    consumer.assign(&list).unwrap();
    let deadline = Instant::now() + PATIENCE;
    let mut messages = Vec::new();
    while messages.len() < count {
        assert!(Instant::now() < deadline, "{} of {count} messages in {topic}", messages.len());
        if let Some(Ok(message)) = consumer.poll(Duration::from_millis(100)) {
            messages.push(message.detach());
        }
    }
    messages
}

/// How many messages a topic has, duplicates and all. A broker that has just come back may not know its partitions for a
/// moment ("Unknown partition"): it is asked again until it does.
pub fn end_of(brokers: &str, topic: &str, partitions: i32) -> usize {
    let consumer: BaseConsumer =
        ClientConfig::new().set("bootstrap.servers", brokers).create().unwrap_or_else(|error| panic!("{error}"));
    let deadline = Instant::now() + PATIENCE;
    let end = |partition| loop {
        match consumer.fetch_watermarks(topic, partition, PATIENCE) {
            Ok((low, high)) => return high - low,
            Err(error) => assert!(Instant::now() < deadline, "{topic}: {error}"),
        }
        // There is no event to wait for: the answer comes with the next metadata.
        std::thread::sleep(Duration::from_millis(50));
    };
    let count: i64 = (0..partitions).map(end).sum();
    usize::try_from(count).unwrap_or(0)
}

/// The message id in a message's header.
pub fn id_of(message: &OwnedMessage) -> MessageId {
    let headers = message.headers().expect("no headers");
    let header = headers.iter().find(|header| header.key == outlast::ID_HEADER).expect("no id header");
    let bytes = header.value.expect("null id").try_into().expect("an id of 16 bytes");
    MessageId::from_bytes(bytes)
}

/// Each key's first occurrences are in the order of their numbers, per partition; returns them.
pub fn assert_ordered(messages: &[OwnedMessage]) -> BTreeMap<Vec<u8>, Vec<u64>> {
    let mut sorted: Vec<_> = messages.iter().collect();
    sorted.sort_by_key(|message| (message.partition(), message.offset()));
    let mut firsts: BTreeMap<Vec<u8>, Vec<u64>> = BTreeMap::new();
    for message in sorted {
        let text = String::from_utf8_lossy(message.payload().unwrap_or_default()).trim_end().to_owned();
        let number: u64 = text.parse().unwrap_or_else(|_| panic!("no number: {text:?}"));
        let seen = firsts.entry(message.key().unwrap_or_default().to_vec()).or_default();
        if !seen.contains(&number) {
            assert!(seen.last().is_none_or(|&last| last < number), "key {:?}: {number} after {seen:?}", message.key());
            seen.push(number);
        }
    }
    firsts
}
