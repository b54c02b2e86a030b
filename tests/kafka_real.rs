//! The Kafka transport against a real broker: what the mock cluster does not check, or does too kindly.

#![cfg(feature = "kafka")]

mod common;
mod kafka_support;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use common::{KafkaServer, kafka, kafka_address, seed, unique};
use fastrand::Rng;
use kafka_support::lanes::Lanes;
use kafka_support::{PATIENCE, Rig, Said, assert_ordered, end_of, id_of, is, read};
use outlast::transport::{Class, Outcome, Scope, Transport};
use outlast::{Message, MessageId, Position};
use rdkafka::message::{Headers, Message as _, Timestamp};

fn numbered(topic: &str, key: &str, number: u64) -> Message {
    Message::to(topic).key(key.to_owned()).payload(number.to_string())
}

#[test]
fn what_goes_in_comes_out_byte_for_byte() {
    let (broker, topic) = (kafka_address(), unique("bytes"));
    kafka::create_topic(&broker, &topic, 1);
    let rig = Rig::new(&broker);
    let to = || Message::to(topic.as_str());
    rig.submit(to().key("k").payload([0xff, 0, 1].to_vec()).header("a", "1").null_header("n").header("a", ""));
    rig.submit(to().tombstone().key("k").timestamp(1_234));
    rig.submit(to().key("").payload(""));
    rig.submit(to().payload("no key"));
    assert_eq!(rig.delivered(4), [(1, 0, 0), (2, 0, 1), (3, 0, 2), (4, 0, 3)]);
    let messages = read(&broker, &topic, 1, 4);
    assert_eq!(messages[0].payload(), Some(&[0xff, 0, 1][..]));
    let headers = messages[0].headers().expect("headers");
    let values: Vec<_> = headers.iter().map(|header| (header.key, header.value)).collect();
    assert_eq!(values[..3], [("a", Some(&b"1"[..])), ("n", None), ("a", Some(&b""[..]))]);
    assert_eq!((messages[1].key(), messages[1].payload()), (Some(&b"k"[..]), None), "a tombstone");
    assert_eq!(messages[1].timestamp(), Timestamp::CreateTime(1_234));
    assert_eq!((messages[2].key(), messages[2].payload()), (Some(&b""[..]), Some(&b""[..])), "empty is not null");
    assert_eq!(messages[3].key(), None);
    assert!(messages.iter().zip(1..).all(|(message, number)| id_of(message) == MessageId::new(0xbeef, number)));
    rig.transport.close(Duration::from_secs(5));
    rig.assert_silent();
}

#[test]
fn keys_keep_their_order_over_partitions() {
    let (broker, topic) = (kafka_address(), unique("order"));
    kafka::create_topic(&broker, &topic, 4);
    let rig = Rig::new(&broker);
    for number in 0..5_000 {
        rig.submit_until_taken(&numbered(&topic, &format!("key-{}", number % 101), number));
    }
    rig.delivered(5_000);
    let firsts = assert_ordered(&read(&broker, &topic, 4, 5_000));
    assert_eq!(firsts.values().map(Vec::len).sum::<usize>(), 5_000);
}

/// Neighbours of an oversized message fail with its batch; alone, only it does.
#[test]
fn an_oversized_message_is_found_by_trying_alone() {
    let (broker, topic) = (kafka_address(), unique("large"));
    kafka::create_topic_with(&broker, &topic, 1, &[("max.message.bytes", "2000")]);
    let rig = Rig::new(&broker);
    let large = || Message::to(topic.as_str()).key("a").payload(vec![b'1'; 5_000]);
    let mut owned = 0;
    for number in 0..5 {
        owned += rig.try_submit(numbered(&topic, "a", number)).is_ok() as usize;
        owned += (number == 2 && rig.try_submit(large()).is_ok()) as usize;
    }
    let reports = rig.reports(owned);
    let refused = |outcome: &Outcome| match outcome {
        Outcome::Failed { failure, possibly_delivered } => {
            is(failure, Class::Permanent, Scope::Lane) && !possibly_delivered
        }
        _ => false,
    };
    assert!(reports.iter().any(|(_, outcome)| refused(outcome)), "{reports:?}");
    let poison = rig.submit_alone(large());
    let (number, failure, possibly) = rig.failure();
    assert_eq!((number, possibly), (poison, false));
    assert!(is(&failure, Class::Permanent, Scope::Lane), "{failure:?}");
    let innocent = rig.submit_alone(numbered(&topic, "a", 7));
    assert_eq!(rig.delivered(1)[0].0, innocent);
    rig.submit_until_taken(&numbered(&topic, "a", 8));
    rig.delivered(1);
}

#[test]
fn a_compacted_topic_refuses_a_message_without_a_key() {
    let (broker, topic) = (kafka_address(), unique("compact"));
    kafka::create_topic_with(&broker, &topic, 1, &[("cleanup.policy", "compact")]);
    let rig = Rig::new(&broker);
    rig.submit_alone(Message::to(topic.as_str()).payload("no key"));
    let (_, failure, possibly) = rig.failure();
    assert!(is(&failure, Class::Permanent, Scope::Lane) && !possibly, "{failure:?}");
}

#[test]
fn a_topic_that_is_created_later_is_noticed() {
    let (broker, topic) = (kafka_address(), unique("later"));
    let rig = Rig::new(&broker);
    let start = Instant::now();
    rig.submit(numbered(&topic, "a", 0));
    let (_, failure, possibly) = rig.failure();
    assert!(is(&failure, Class::Hold, Scope::Route) && !possibly, "{failure:?}");
    assert!(start.elapsed() < Duration::from_secs(30), "took {:?}", start.elapsed());
    kafka::create_topic(&broker, &topic, 2);
    rig.until(|said| matches!(said, Said::RouteUp(name) if *name == topic));
    rig.submit(numbered(&topic, "a", 1));
    rig.delivered(1);
}

/// The broker is killed with messages on the wire; librdkafka keeps them, and nothing is lost or reordered when it
/// returns. What was on the wire may be there twice: a broker that was killed may have forgotten the producer.
#[test]
fn a_killed_broker_costs_neither_a_message_nor_the_order() {
    let server = KafkaServer::up();
    let topic = unique("killed");
    kafka::create_topic(server.address(), &topic, 4);
    let rig = Rig::new(server.address());
    for number in 0..2_000 {
        rig.submit_until_taken(&numbered(&topic, &format!("key-{}", number % 17), number));
        if number == 1_000 {
            // Each partition has acknowledged: until then one message goes ahead, and the others would wait for its report,
            // which a broker that is killed earlier never sends.
            let proven = RefCell::new(BTreeSet::new());
            rig.until(|said| {
                if let Said::Report(_, Outcome::Delivered(Position::Offset { partition, .. })) = said {
                    proven.borrow_mut().insert(*partition);
                }
                proven.borrow().len() == 4
            });
            server.kill();
        }
    }
    rig.until(|said| matches!(said, Said::Down(failure) if is(failure, Class::Transient, Scope::Transport)));
    server.start();
    let logged: Vec<_> = rig.log.lock().unwrap().clone();
    let before = logged.iter().filter(|said| matches!(said, Said::Report(_, Outcome::Delivered(_)))).count();
    rig.delivered(2_000 - before);
    let count = end_of(server.address(), &topic, 4);
    let firsts = assert_ordered(&read(server.address(), &topic, 4, count));
    assert_eq!(firsts.values().map(Vec::len).sum::<usize>(), 2_000);
}

/// A stopped broker keeps its connections and answers nothing: it is told as down, and `close` does not hang.
#[test]
fn a_stopped_broker_is_told_and_close_keeps_its_grace() {
    let server = KafkaServer::up();
    let topic = unique("stopped");
    kafka::create_topic(server.address(), &topic, 1);
    let rig = Rig::new(server.address());
    rig.submit(numbered(&topic, "a", 0));
    rig.delivered(1);
    server.stop();
    rig.submit(numbered(&topic, "a", 1));
    rig.until(|said| matches!(said, Said::Down(failure) if is(failure, Class::Transient, Scope::Transport)));
    let start = Instant::now();
    rig.transport.close(Duration::from_secs(2));
    assert!(start.elapsed() < Duration::from_secs(20), "took {:?}", start.elapsed());
    let (_, failure, possibly) = rig.failure();
    assert!(possibly, "it was on the wire: {failure}");
    server.cont();
    let second = Rig::new(server.address());
    second.submit(numbered(&topic, "a", 2));
    second.delivered(1);
    assert!(start.elapsed() < PATIENCE);
}

/// Every 50th message is larger than the topic allows. All others arrive, in order; those, and no others, are
/// refused when tried alone.
#[test]
fn oversized_messages_are_sorted_out_and_the_rest_keeps_its_order() {
    fn payload(number: u64) -> Vec<u8> {
        let blanks = if number.is_multiple_of(50) { 3_000 } else { 0 };
        let mut payload = number.to_string().into_bytes();
        payload.resize(payload.len() + blanks, b' ');
        payload
    }
    let (broker, topic) = (kafka_address(), unique("sorted"));
    kafka::create_topic_with(&broker, &topic, 2, &[("max.message.bytes", "2500")]);
    let rig = Rig::new(&broker);
    let mut rng = Rng::with_seed(seed("oversized_messages_are_sorted_out"));
    let mut lanes = Lanes::new(&rig, &topic, 5, payload);
    for _ in 0..1_200 {
        lanes.step(&mut rng, true);
    }
    lanes.finish(&mut rng);
    let expected = lanes.expected();
    let count = expected.values().map(Vec::len).sum();
    assert!(lanes.dead() > 0, "no message was large");
    assert!(expected.values().flatten().all(|number| !number.is_multiple_of(50)), "a large one was taken");
    rig.transport.close(Duration::from_secs(5));
    assert_eq!(assert_ordered(&read(&broker, &topic, 2, count)), expected);
}
