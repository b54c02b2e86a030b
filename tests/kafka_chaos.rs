//! The prefix rule of the Kafka transport under errors, leader changes and outages drawn at random.

#![cfg(feature = "kafka")]

mod kafka_support;

use std::time::Duration;

use fastrand::Rng;
use kafka_support::lanes::Lanes;
use kafka_support::{Rig, assert_ordered, end_of, read};
use outlast::transport::Transport;
use outlast::transport::kafka::KafkaConfig;
use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr as Code};

const TOPIC: &str = "chaos";
const PARTITIONS: i32 = 3;
const BROKERS: i32 = 3;

/// What a broker may say to a producer with one request in flight. Not "duplicate sequence number", which the
/// transport takes for a failure, but librdkafka for a success (see the module's documentation).
const ERRORS: [Code; 14] = [
    Code::RD_KAFKA_RESP_ERR__TRANSPORT,
    Code::RD_KAFKA_RESP_ERR__TRANSPORT,
    Code::RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION,
    Code::RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT,
    Code::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS,
    Code::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS_AFTER_APPEND,
    Code::RD_KAFKA_RESP_ERR_KAFKA_STORAGE_ERROR,
    Code::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART,
    Code::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED,
    Code::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER,
    Code::RD_KAFKA_RESP_ERR_UNKNOWN_PRODUCER_ID,
    Code::RD_KAFKA_RESP_ERR_INVALID_PRODUCER_EPOCH,
    Code::RD_KAFKA_RESP_ERR_POLICY_VIOLATION,
    Code::RD_KAFKA_RESP_ERR_UNKNOWN,
];

fn disturb(mock: &MockCluster<'static, DefaultProducerContext>, rng: &mut Rng, down: &mut Option<i32>) {
    match rng.u32(0..10) {
        0..=5 => {
            let errors: Vec<_> = (0..rng.usize(1..4)).map(|_| ERRORS[rng.usize(0..ERRORS.len())]).collect();
            mock.request_errors(RDKafkaApiKey::Produce, &errors);
        }
        6..=7 => {
            let leader = rng.i32(1..=BROKERS);
            mock.partition_leader(TOPIC, rng.i32(0..PARTITIONS), Some(leader)).unwrap();
        }
        8 => {
            if let Some(broker) = down.take() {
                mock.broker_up(broker).unwrap();
            } else {
                let broker = if rng.bool() { -1 } else { rng.i32(1..=BROKERS) };
                mock.broker_down(broker).unwrap();
                *down = Some(broker);
            }
        }
        _ => mock.broker_round_trip_time(-1, Duration::from_millis(rng.u64(0..20))).unwrap(),
    }
}

fn run(seed: u64) {
    println!("seed {seed}; replay with OUTLAST_TEST_SEED={seed}");
    let mut rng = Rng::with_seed(seed);
    let mock = MockCluster::new(BROKERS).unwrap();
    mock.create_topic(TOPIC, PARTITIONS, BROKERS).unwrap();
    let servers = mock.bootstrap_servers();
    let config = KafkaConfig::new(servers.split(',')).option("reconnect.backoff.max.ms", "500");
    let rig = Rig::with(config);
    let mut lanes = Lanes::new(&rig, TOPIC, 12, |number| number.to_string().into_bytes());
    let mut down = None;
    for step in 0..3_000 {
        lanes.step(&mut rng, true);
        if step % 60 == 59 {
            disturb(&mock, &mut rng, &mut down);
            std::thread::sleep(Duration::from_millis(rng.u64(0..60)));
        }
    }
    mock.clear_request_errors(RDKafkaApiKey::Produce);
    mock.broker_up(-1).unwrap();
    mock.broker_round_trip_time(-1, Duration::ZERO).unwrap();
    lanes.finish(&mut rng);
    rig.transport.close(Duration::from_secs(5));
    rig.assert_silent();
    let expected = lanes.expected();
    assert_eq!(lanes.dead(), 0, "none of these errors concerns a message");
    println!("{} messages handed back and sent again", lanes.handed_back);
    let all = read(&servers, TOPIC, PARTITIONS, end_of(&servers, TOPIC, PARTITIONS));
    assert_eq!(assert_ordered(&all), expected);
}

#[test]
fn whatever_happens_nothing_is_lost_and_no_key_is_overtaken() {
    match std::env::var("OUTLAST_TEST_SEED").ok().and_then(|seed| seed.parse().ok()) {
        Some(seed) => run(seed),
        None => (0..3).for_each(|_| run(fastrand::u64(..))),
    }
}
