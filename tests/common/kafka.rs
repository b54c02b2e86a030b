//! Topics and records of a real broker.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::ptr;
use std::time::{Duration, Instant};

use outlast::{ID_HEADER, MessageId};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::bindings;
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Headers, Message};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::types::RDKafkaRespErr;

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

/// Sets what can be set of a running broker; what an earlier call set, and this one does not, is unset.
pub fn change_broker(broker: &str, id: i32, settings: &BTreeMap<String, String>) {
    let change = settings
        .iter()
        .fold(AlterConfig::new(ResourceSpecifier::Broker(id)), |change, (key, value)| change.set(key, value));
    let admin: AdminClient<DefaultClientContext> = client(broker).create().expect("an admin client");
    let options = AdminOptions::new().request_timeout(Some(LIMIT));
    for result in wait_for(admin.alter_configs([&change], &options)).expect("the broker answers") {
        result.unwrap_or_else(|(resource, code)| panic!("{resource:?} was not changed: {code}"));
    }
}

/// Sets what a user's password is for SCRAM-SHA-256.
pub fn set_password(broker: &str, user: &str, password: &str) {
    let admin: AdminClient<DefaultClientContext> = client(broker).create().expect("an admin client");
    let (client, name) = (admin.inner().native_ptr(), CString::new(user).expect("no NUL"));
    let mechanism = bindings::rd_kafka_ScramMechanism_t::RD_KAFKA_SCRAM_MECHANISM_SHA_256;
    let password = password.as_bytes();
    // SAFETY: everything passed outlives the call that gets it, which copies it, and is destroyed once; the event is only
    // asked for its error while it lives.
    let (error, answered) = unsafe {
        let mut change = bindings::rd_kafka_UserScramCredentialUpsertion_new(
            name.as_ptr(),
            mechanism,
            4_096,
            password.as_ptr(),
            password.len(),
            ptr::null(),
            0,
        );
        let queue = bindings::rd_kafka_queue_new(client);
        bindings::rd_kafka_AlterUserScramCredentials(client, &mut change, 1, ptr::null(), queue);
        let event = bindings::rd_kafka_queue_poll(queue, LIMIT.as_millis() as i32);
        let error = if event.is_null() { None } else { Some(bindings::rd_kafka_event_error(event)) };
        bindings::rd_kafka_event_destroy(event);
        bindings::rd_kafka_queue_destroy(queue);
        bindings::rd_kafka_UserScramCredentialAlteration_destroy(change);
        (error, !event.is_null())
    };
    assert!(answered && error == Some(RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR), "{user}: {error:?}");
}

/// Everything in a topic at the moment: partition by partition, by offset.
pub fn read_all(broker: &str, topic: &str) -> Vec<Record> {
    let consumer: BaseConsumer = client(broker)
        .set("group.id", "outlast-tests")
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true")
        // A reader behind the log's end would wait this long for more.
        .set("fetch.wait.max.ms", "10")
        // A request that a stopped broker has swallowed is sent again long before the patience below is over.
        .set("socket.timeout.ms", "10000")
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
        assert!(progress.elapsed() < 3 * LIMIT, "reading {topic}: nothing came for {:?}", 3 * LIMIT);
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
