//! The Kafka transport under the conformance suite: on a mock cluster that refuses batches, and on a real broker that
//! hangs.

#![cfg(all(feature = "kafka", feature = "testing"))]

mod common;
mod kafka_support;

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use common::{KafkaServer, kafka, kafka_address, seed, unique};
use kafka_support::{end_of, read};
use outlast::testing::conformance::{self, Entry, Fault, Subject};
use outlast::transport::Transport;
use outlast::transport::kafka::{KafkaConfig, KafkaTransport};
use outlast::{Header, ID_HEADER, MessageId};
use rdkafka::message::{Headers, Message as _, OwnedMessage};
use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr as Code};

const PARTITIONS: i32 = 3;

fn transport(brokers: &str) -> Arc<dyn Transport> {
    let config = KafkaConfig::new(brokers.split(',')).option("reconnect.backoff.max.ms", "500");
    Arc::new(KafkaTransport::new(config).unwrap_or_else(|error| panic!("{error}")))
}

fn contents(brokers: &str, topic: &str) -> Result<Vec<Entry>, String> {
    let count = end_of(brokers, topic, PARTITIONS);
    let mut messages = read(brokers, topic, PARTITIONS, count);
    messages.sort_by_key(|message| (message.partition(), message.offset()));
    messages.iter().map(entry).collect()
}

fn entry(message: &OwnedMessage) -> Result<Entry, String> {
    let mut id = None;
    let mut headers = Vec::new();
    for header in message.headers().into_iter().flat_map(|headers| headers.iter()) {
        if header.key == ID_HEADER {
            let bytes = header.value.and_then(|value| value.try_into().ok());
            id = bytes.map(MessageId::from_bytes);
        } else {
            headers.push(Header { name: header.key.into(), value: header.value.map(|value| value.to_vec().into()) });
        }
    }
    Ok(Entry {
        id: id.ok_or("a message without an id")?,
        key: message.key().map(|key| key.to_vec().into()),
        payload: message.payload().map(|payload| payload.to_vec().into()),
        fields: Vec::new(),
        headers,
    })
}

/// Its brokers refuse what they are told to.
struct Mock {
    cluster: Rc<MockCluster<'static, DefaultProducerContext>>,
}

impl Subject for Mock {
    fn transport(&self) -> Arc<dyn Transport> {
        transport(&self.cluster.bootstrap_servers())
    }

    fn destination(&self, purpose: &str) -> String {
        let topic = unique(purpose);
        self.cluster.create_topic(&topic, PARTITIONS, 3).expect("a topic");
        topic
    }

    fn contents(&self, destination: &str) -> Result<Vec<Entry>, String> {
        contents(&self.cluster.bootstrap_servers(), destination)
    }

    fn faults(&self) -> Vec<Fault> {
        // What a broker answers without having appended anything: the mock cluster does not know a batch it gets twice.
        let refusals: [(&str, Code); 4] = [
            ("not leader", Code::RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION),
            ("forbidden", Code::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED),
            ("out of order", Code::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER),
            ("a policy", Code::RD_KAFKA_RESP_ERR_POLICY_VIOLATION),
        ];
        let fault = |(name, code): (&'static str, Code)| {
            let (inflicted, mended) = (Rc::clone(&self.cluster), Rc::clone(&self.cluster));
            Fault {
                name,
                lasts: Duration::from_millis(300),
                inflict: Box::new(move || inflicted.request_errors(RDKafkaApiKey::Produce, &[code; 3])),
                mend: Box::new(move || mended.clear_request_errors(RDKafkaApiKey::Produce)),
            }
        };
        refusals.into_iter().map(fault).collect()
    }
}

#[test]
fn refused_batches_break_no_rule() {
    let subject = Mock { cluster: Rc::new(MockCluster::new(3).expect("a mock cluster")) };
    conformance::run(&subject, seed("refused_batches_break_no_rule")).unwrap_or_else(|violation| panic!("{violation}"));
}

/// A broker of the test's own, or the shared one, which is left in peace.
struct Real {
    address: String,
    server: Option<Rc<KafkaServer>>,
}

impl Subject for Real {
    fn transport(&self) -> Arc<dyn Transport> {
        transport(&self.address)
    }

    fn destination(&self, purpose: &str) -> String {
        let topic = unique(purpose);
        kafka::create_topic(&self.address, &topic, PARTITIONS);
        topic
    }

    fn contents(&self, destination: &str) -> Result<Vec<Entry>, String> {
        contents(&self.address, destination)
    }

    fn faults(&self) -> Vec<Fault> {
        let Some(server) = &self.server else { return Vec::new() };
        let (stopped, continued) = (Rc::clone(server), Rc::clone(server));
        // Not killed: a broker that starts after SIGKILL may have forgotten the producer's sequence numbers, and
        // then takes the batch that was on the wire a second time, as new. That is a duplicate within the in-flight
        // window, which the contract allows and the suite cannot tell from an invented one. What such a broker must
        // hold is in `kafka_real.rs`.
        vec![Fault {
            name: "stopped",
            lasts: Duration::from_secs(2),
            inflict: Box::new(move || stopped.stop()),
            mend: Box::new(move || continued.cont()),
        }]
    }

    fn patience(&self) -> Duration {
        Duration::from_secs(120)
    }
}

#[test]
fn a_real_broker_gets_what_was_handed_over() {
    let subject = Real { address: kafka_address(), server: None };
    let seed = seed("a_real_broker_gets_what_was_handed_over");
    conformance::run(&subject, seed).unwrap_or_else(|violation| panic!("{violation}"));
}

#[test]
fn a_broker_that_hangs_breaks_no_rule() {
    let server = KafkaServer::up();
    let subject = Real { address: server.address().to_owned(), server: Some(Rc::new(server)) };
    let seed = seed("a_broker_that_hangs_breaks_no_rule");
    conformance::run(&subject, seed).unwrap_or_else(|violation| panic!("{violation}"));
}
