//! Topics and records of a real broker.

use std::time::{Duration, Instant};

use outlast::{ID_HEADER, MessageId};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Headers, Message};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

const LIMIT: Duration = Duration::from_secs(30);

/// A record as a consumer sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub partition: i32,
    pub offset: i64,
    pub key: Option<Vec<u8>>,
    /// `None`: a tombstone.
    pub payload: Option<Vec<u8>>,
    /// In order, without the message id; a value may be null.
    pub headers: Vec<(String, Option<Vec<u8>>)>,
    pub timestamp: Option<i64>,
    pub id: Option<MessageId>,
}

/// Creates a topic, replicated as the brokers do by default, and waits until every partition has a leader.
pub fn create_topic(broker: &str, name: &str, partitions: i32) {
    create_topic_with(broker, name, partitions, &[]);
}

/// The same, with settings of the topic (`max.message.bytes`, say).
pub fn create_topic_with(broker: &str, name: &str, partitions: i32, settings: &[(&str, &str)]) {
    let mut topic = NewTopic::new(name, partitions, TopicReplication::Fixed(-1));
    for (key, value) in settings {
        topic = topic.set(key, value);
    }
    let admin: AdminClient<DefaultClientContext> = client(broker).create().expect("an admin client");
    let options = AdminOptions::new().operation_timeout(Some(LIMIT)).request_timeout(Some(LIMIT));
    for result in wait_for(admin.create_topics([&topic], &options)).expect("the broker answers") {
        result.unwrap_or_else(|(topic, code)| panic!("topic {topic} was not created: {code}"));
    }
    super::wait_until("the topic's partitions have leaders", LIMIT, || {
        admin.inner().fetch_metadata(Some(name), LIMIT).is_ok_and(|metadata| {
            metadata.topics().iter().all(|topic| {
                topic.error().is_none()
                    && topic.partitions().len() == partitions as usize
                    && topic.partitions().iter().all(|p| p.leader() >= 0 && p.error().is_none())
            })
        })
    });
}

/// Changes settings of a topic.
pub fn change_topic(broker: &str, name: &str, settings: &[(&str, &str)]) {
    let change = settings
        .iter()
        .fold(AlterConfig::new(ResourceSpecifier::Topic(name)), |change, (key, value)| change.set(key, value));
    let admin: AdminClient<DefaultClientContext> = client(broker).create().expect("an admin client");
    let options = AdminOptions::new().request_timeout(Some(LIMIT));
    for result in wait_for(admin.alter_configs([&change], &options)).expect("the broker answers") {
        result.unwrap_or_else(|(resource, code)| panic!("{resource:?} was not changed: {code}"));
    }
}

/// Everything in a topic at the moment: partition by partition, by offset.
pub fn read_all(broker: &str, topic: &str) -> Vec<Record> {
    let consumer: BaseConsumer = client(broker)
        .set("group.id", "outlast-tests")
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true")
        // A reader behind the log's end would wait this long for more.
        .set("fetch.wait.max.ms", "10")
        .create()
        .expect("a consumer");
    // A broker that has just started may not know its topics yet, nor who leads their partitions.
    let mut partitions: Vec<i32> = Vec::new();
    super::wait_until(&format!("topic {topic} exists and has leaders"), LIMIT, || {
        let Ok(metadata) = consumer.fetch_metadata(Some(topic), LIMIT) else { return false };
        let found = || metadata.topics().iter().flat_map(|t| t.partitions());
        partitions = found().map(|p| p.id()).collect();
        !partitions.is_empty() && found().all(|p| p.leader() >= 0 && p.error().is_none())
    });
    let mut assignment = TopicPartitionList::new();
    for partition in &partitions {
        assignment.add_partition_offset(topic, *partition, Offset::Beginning).expect("a legal offset");
    }
    consumer.assign(&assignment).expect("the assignment is taken");

    let mut records = Vec::new();
    let mut open = partitions.len();
    let mut progress = Instant::now();
    while open > 0 {
        match consumer.poll(Duration::from_millis(100)) {
            Some(Ok(message)) => {
                records.push(record(&message));
                progress = Instant::now();
            }
            Some(Err(KafkaError::PartitionEOF(_))) => open -= 1,
            Some(Err(KafkaError::MessageConsumption(
                RDKafkaErrorCode::AllBrokersDown | RDKafkaErrorCode::BrokerTransportFailure,
            )))
            | None => {}
            Some(Err(e)) => panic!("reading {topic}: {e}"),
        }
        assert!(progress.elapsed() < LIMIT, "reading {topic}: nothing came for {LIMIT:?}");
    }
    records.sort_by_key(|record| (record.partition, record.offset));
    records
}

fn record(message: &impl Message) -> Record {
    let mut id = None;
    let mut headers = Vec::new();
    for header in message.headers().into_iter().flat_map(|headers| headers.iter()) {
        if header.key == ID_HEADER {
            let bytes = header.value.and_then(|value| value.try_into().ok()).expect("a message id has 16 bytes");
            id = Some(MessageId::from_bytes(bytes));
        } else {
            headers.push((header.key.to_owned(), header.value.map(<[u8]>::to_vec)));
        }
    }
    Record {
        partition: message.partition(),
        offset: message.offset(),
        key: message.key().map(<[u8]>::to_vec),
        payload: message.payload().map(<[u8]>::to_vec),
        headers,
        timestamp: message.timestamp().to_millis(),
        id,
    }
}

fn client(broker: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", broker).set("broker.address.family", "v4");
    config
}

/// Waits for a future on a thread of its own, so that it can be called within a runtime and without one.
fn wait_for<T: Send>(future: impl Future<Output = T> + Send) -> T {
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(future)
        });
        waiter.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
