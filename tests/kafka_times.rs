//! Times of records against a real broker: what it would refuse, or delete soon, and what becomes of such messages.

#![cfg(all(feature = "cli", feature = "kafka"))]

mod common;
mod kafka_support;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use common::{KafkaServer, kafka, kafka_address, run, unique, wait_until};
use kafka_support::{PATIENCE, Rig, Said, is};
use outlast::transport::kafka::{ExpiredTimes, KafkaConfig};
use outlast::transport::{Class, Outcome, Scope, Transport};
use outlast::{ACCEPTED_HEADER, Message, Producer, Receipt};
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};

const HOUR: i64 = 3_600_000;
const WEEK: &str = "604800000";

fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    i64::try_from(since.as_millis()).expect("before the year 292 million")
}

/// The time in the header, if there is one.
fn accepted(record: &kafka::Record) -> Option<i64> {
    let (_, value) = record.headers.iter().find(|(name, _)| name == ACCEPTED_HEADER)?;
    let text = std::str::from_utf8(value.as_deref().expect("not null")).expect("text");
    Some(text.parse().expect("a number"))
}

/// Whether a record was given a time of about now.
fn is_fresh(record: &kafka::Record) -> bool {
    record.timestamp.is_some_and(|time| (now() - time).abs() < 10 * 60_000)
}

/// Submits a message that the library accepted `ago` milliseconds ago.
fn submit_accepted(rig: &Rig, message: Message, ago: i64, alone: bool) -> u64 {
    let (number, mut handover) = rig.handover(message, alone);
    Arc::get_mut(&mut handover.message).expect("not shared yet").timestamp = now() - ago;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let Err(refused) = rig.transport.submit(handover) else { return number };
        // No room before the first acknowledgement, or a topic that a broker which has just come back does not know.
        assert!(refused.failure.class != Class::Permanent && Instant::now() < deadline, "refused: {}", refused.failure);
        handover = refused.handover;
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn watermarks(broker: &str, topic: &str, partition: i32) -> (i64, i64) {
    let consumer: BaseConsumer = ClientConfig::new().set("bootstrap.servers", broker).create().expect("a consumer");
    consumer.fetch_watermarks(topic, partition, PATIENCE).unwrap_or_else(|error| panic!("{topic}: {error}"))
}

/// Waits until the broker has deleted what is too old: each time a record older than that is gone, which lies in the
/// partition behind the others. Twice, for a sweep may have been half done.
fn wait_for_two_sweeps(broker: &str, topic: &str, partition: i32) {
    let producer: BaseProducer = ClientConfig::new().set("bootstrap.servers", broker).create().expect("a producer");
    for _ in 0..2 {
        let (_, end) = watermarks(broker, topic, partition);
        let record = BaseRecord::<(), [u8]>::to(topic).partition(partition).timestamp(1).payload(&b"old"[..]);
        producer.send(record).unwrap_or_else(|(error, _)| panic!("{error}"));
        producer.flush(PATIENCE).expect("flushed");
        wait_until("the broker deletes what is too old", PATIENCE, || {
            watermarks(broker, topic, partition) == (end + 1, end + 1)
        });
    }
}

/// Stored in an outage longer than `retention.ms`, messages were "delivered" with their times of acceptance, and deleted
/// by the broker's next sweep.
#[test]
fn what_was_accepted_long_ago_outlasts_the_brokers_sweep() {
    let (broker, topic) = (kafka_address(), unique("retention"));
    kafka::create_topic_with(&broker, &topic, 2, &[("retention.ms", WEEK)]);
    let rig = Rig::new(&broker);
    for number in 0..100 {
        submit_accepted(
            &rig,
            Message::to(topic.as_str()).payload(number.to_string()).partition(0),
            200 * 24 * HOUR,
            false,
        );
    }
    rig.delivered(100);
    wait_for_two_sweeps(&broker, &topic, 1);
    assert_eq!(watermarks(&broker, &topic, 0), (0, 100), "the broker deleted what had just been delivered");
    let records = kafka::read_all(&broker, &topic);
    assert!(records.len() == 100 && records.iter().all(is_fresh));
    let long_ago = |time: i64| (now() - 200 * 24 * HOUR - time).abs() < HOUR;
    assert!(records.iter().all(|record| accepted(record).is_some_and(long_ago)), "{:?}", records[0]);
}

/// Nothing is changed about what the topic takes as it is.
#[test]
fn a_time_that_the_topic_takes_is_left_alone() {
    let (broker, topic) = (kafka_address(), unique("left"));
    kafka::create_topic_with(&broker, &topic, 1, &[("retention.ms", WEEK)]);
    let rig = Rig::new(&broker);
    submit_accepted(&rig, Message::to(topic.as_str()), 24 * HOUR, false);
    let given = now() - 24 * HOUR;
    rig.submit(Message::to(topic.as_str()).timestamp(given));
    rig.delivered(2);
    let records = kafka::read_all(&broker, &topic);
    assert!(records.iter().all(|record| accepted(record).is_none()));
    assert!(records.iter().all(|record| record.timestamp.is_some_and(|time| (time - given).abs() < HOUR)));
}

/// Lines stored for longer than `message.timestamp.before.max.ms` became dead letters, and died again when they were
/// requeued. The time of acceptance of a clock that was two hours ahead did so with Kafka's defaults.
#[test]
fn a_time_of_acceptance_that_the_broker_would_refuse_kills_no_message() {
    let (broker, topic, dir) = (kafka_address(), unique("before"), tempfile::tempdir().unwrap());
    kafka::create_topic_with(&broker, &topic, 1, &[("message.timestamp.before.max.ms", "2000")]);
    let nowhere = format!("kafka://127.0.0.1:1/{topic}");
    let words = ["produce", "--to", &nowhere, "--key", "field:1", "--drain-timeout", "0s"];
    let lines: String = (0..100).map(|number| format!("k{} {number}\n", number % 3)).collect();
    let produced = outlast(dir.path(), &words, lines.as_bytes());
    assert_eq!(produced.code, Some(3), "{produced:?}");
    let stored = now();
    wait_until("they are older than the topic allows", PATIENCE, || now() - stored > 2_500);
    let drained = outlast(dir.path(), &["drain", "--to", &format!("kafka://{broker}"), "--timeout", "60s"], b"");
    assert_eq!(drained.code, Some(0), "{drained:?}");
    let records = kafka::read_all(&broker, &topic);
    // Each key's lines in order; keys do not wait for each other.
    for key in 0..3 {
        let start = format!("k{key} ");
        let sent: Vec<&str> = lines.lines().filter(|line| line.starts_with(&start)).collect();
        let payloads = records.iter().filter_map(|record| std::str::from_utf8(record.payload.as_deref()?).ok());
        assert_eq!(payloads.filter(|payload| payload.starts_with(&start)).collect::<Vec<_>>(), sent);
    }
    assert!(records.iter().all(|record| accepted(record).is_some_and(|time| time <= stored)), "{:?}", records[0]);

    let rig = Rig::new(&broker);
    let topic = unique("ahead");
    kafka::create_topic(&broker, &topic, 1);
    submit_accepted(&rig, Message::to(topic.as_str()), -2 * HOUR, false);
    rig.delivered(1);
    let record = &kafka::read_all(&broker, &topic)[0];
    assert!(is_fresh(record) && accepted(record).is_some_and(|time| time > now() + HOUR), "{record:?}");
}

/// The settings were changed a moment ago, or cannot be read: the broker's refusal is the first that is heard of it, and
/// no verdict on the message.
#[test]
fn a_refused_time_of_acceptance_is_replaced_when_the_message_is_tried_by_itself() {
    let (broker, topic) = (kafka_address(), unique("changed"));
    kafka::create_topic(&broker, &topic, 1);
    let rig = Rig::new(&broker);
    submit_accepted(&rig, Message::to(topic.as_str()), 0, false);
    rig.delivered(1);
    kafka::change_topic(&broker, &topic, &[("message.timestamp.before.max.ms", "600000")]);
    let mut classes = Vec::new();
    loop {
        submit_accepted(&rig, Message::to(topic.as_str()), HOUR, true);
        match rig.reports(1).remove(0).1 {
            Outcome::Delivered(_) => break,
            Outcome::Failed { failure, possibly_delivered } => {
                assert!(!possibly_delivered && classes.len() < 5, "{failure}");
                classes.push(failure.class);
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(!classes.contains(&Class::Permanent), "{classes:?}");
    let records = kafka::read_all(&broker, &topic);
    assert!(records.len() == 2 && is_fresh(&records[1]) && accepted(&records[1]).is_some(), "{records:?}");
}

/// A time of the application's was sent whatever the topic said, and deleted, or made a dead letter.
#[test]
fn a_time_of_the_applications_waits_until_the_topic_takes_it() {
    let (broker, topic) = (kafka_address(), unique("given"));
    kafka::create_topic_with(&broker, &topic, 1, &[("retention.ms", WEEK)]);
    let rig = Rig::new(&broker);
    let given = now() - 100 * 24 * HOUR;
    let back_fill = || Message::to(topic.as_str()).key("a").timestamp(given);
    let held = rig.submit(back_fill());
    let (number, failure, possibly) = rig.failure();
    assert!(number == held && !possibly && is(&failure, Class::Hold, Scope::Lane), "{failure:?}");
    assert!(failure.reason.contains("retention.ms") && failure.reason.contains("expired-times"), "{failure}");
    rig.submit(Message::to(topic.as_str()).key("b").timestamp(now()));
    rig.delivered(1);
    kafka::change_topic(&broker, &topic, &[("retention.ms", "-1")]);
    rig.until(|said| matches!(said, Said::RouteUp(name) if *name == topic));
    rig.submit(back_fill());
    rig.delivered(1);
    let records = kafka::read_all(&broker, &topic);
    assert!(records[1].timestamp == Some(given) && accepted(&records[1]).is_none(), "{records:?}");

    let config = KafkaConfig::new([broker.as_str()]).expired_times(ExpiredTimes::Send);
    let (send, topic) = (Rig::with(config), unique("sent"));
    kafka::create_topic_with(&broker, &topic, 1, &[("retention.ms", WEEK)]);
    send.submit(Message::to(topic.as_str()).timestamp(given));
    send.delivered(1);
    let alerts = send.transport.alerts();
    assert!(alerts.iter().any(|alert| alert.contains(&topic) && alert.contains("expired-times=send")), "{alerts:?}");
}

/// Health names what waits before it is sent, each key keeps its order, and another choice sets it going.
#[test]
fn what_is_held_for_its_time_holds_its_key_alone_and_goes_on_with_another_choice() {
    let (broker, topic, dir) = (kafka_address(), unique("held"), tempfile::tempdir().unwrap());
    kafka::create_topic_with(&broker, &topic, 1, &[("retention.ms", WEEK)]);
    let outbox = dir.path().join("outbox");
    let given = now() - 100 * 24 * HOUR;
    let message = |key: &'static str, number: &'static str| Message::to(topic.as_str()).key(key).payload(number);
    let producer = Producer::builder().outbox(&outbox).url(format!("kafka://{broker}")).open_blocking().unwrap();
    let held = producer.blocking_send(message("a", "1").timestamp(given)).unwrap();
    assert!(matches!(held, Receipt::Stored { .. }), "{held:?}");
    producer.blocking_send(message("b", "2")).unwrap();
    producer.blocking_send(message("a", "3")).unwrap();
    wait_until("health says why it waits", PATIENCE, || {
        producer.health().alerts.iter().any(|alert| alert.contains("retention.ms") && alert.contains("expired-times"))
    });
    wait_until("the other key's message is delivered", PATIENCE, || producer.stats().pending == 2);
    producer.blocking_close(Duration::from_secs(5)).unwrap();
    let status = outlast(dir.path(), &["status"], b"");
    assert!(status.stdout.contains("retention.ms"), "{}", status.stdout);

    let url = format!("kafka://{broker}?expired-times=restamp");
    let drained = outlast(dir.path(), &["drain", "--to", &url, "--timeout", "60s"], b"");
    assert_eq!(drained.code, Some(0), "{drained:?}");
    let records = kafka::read_all(&broker, &topic);
    let payloads: Vec<&[u8]> = records.iter().filter_map(|record| record.payload.as_deref()).collect();
    assert_eq!(payloads, [b"2", b"1", b"3"]);
    assert_eq!(records.iter().map(accepted).collect::<Vec<_>>(), [None, Some(given), None]);
    assert!(records.iter().all(is_fresh));
    let bad = outlast(dir.path(), &["drain", "--to", &format!("kafka://{broker}?expired-times=drop")], b"");
    assert!(bad.code == Some(2) && bad.stderr.contains("restamp"), "{bad:?}");
}

#[test]
fn a_dead_letter_whose_time_was_refused_is_delivered_when_it_is_requeued_with_restamp() {
    let (broker, topic, dir) = (kafka_address(), unique("restamp"), tempfile::tempdir().unwrap());
    kafka::create_topic_with(&broker, &topic, 1, &[("message.timestamp.before.max.ms", "600000")]);
    let outbox = dir.path().join("outbox");
    let url = format!("kafka://{broker}?expired-times=send");
    let given = now() - HOUR;
    let producer = Producer::builder().outbox(&outbox).url(&url).open_blocking().unwrap();
    producer.blocking_send(Message::to(topic.as_str()).key("k").payload("1").timestamp(given)).unwrap();
    wait_until("it is a dead letter", PATIENCE, || producer.stats().dead == 1);
    producer.blocking_close(Duration::from_secs(5)).unwrap();

    let drain = ["drain", "--to", &url, "--timeout", "60s"];
    assert_eq!(outlast(dir.path(), &["dead", "requeue", "--all"], b"").code, Some(0));
    let again = outlast(dir.path(), &drain, b"");
    assert!(again.code == Some(3) && again.stderr.contains("dead letter"), "{again:?}");
    assert_eq!(outlast(dir.path(), &["dead", "requeue", "--all", "--restamp"], b"").code, Some(0));
    let drained = outlast(dir.path(), &drain, b"");
    assert_eq!(drained.code, Some(0), "{drained:?}");
    let records = kafka::read_all(&broker, &topic);
    assert!(records.len() == 1 && is_fresh(&records[0]) && accepted(&records[0]) == Some(given), "{records:?}");
}

/// What librdkafka had when the broker went down it sent after the outage, with the times that it had been given.
#[test]
fn what_the_client_owns_in_an_outage_comes_back_before_its_time_is_too_old() {
    let server = KafkaServer::up();
    kafka::create_topic_with(server.address(), "t", 1, &[("message.timestamp.before.max.ms", "6000")]);
    let rig = Rig::new(server.address());
    submit_accepted(&rig, Message::to("t").payload("1"), 0, false);
    rig.delivered(1);
    server.kill();
    submit_accepted(&rig, Message::to("t").payload("2"), 0, false);
    let accepted_at = now();
    let (_, failure, _) = rig.failure();
    assert!(failure.class == Class::Fatal && failure.reason.contains("another time"), "{failure}");
    server.start();
    // A broker that has just come back may not know its topics for a moment.
    let begun = Instant::now();
    loop {
        let ago = now() - accepted_at;
        submit_accepted(&rig, Message::to("t").payload("2"), ago, false);
        match rig.reports(1).remove(0).1 {
            Outcome::Delivered(_) => break,
            other => assert!(begun.elapsed() < PATIENCE, "{other:?}"),
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    let records = kafka::read_all(server.address(), "t");
    let last = records.last().expect("delivered");
    assert_eq!(last.payload.as_deref(), Some(&b"2"[..]));
    assert!(accepted(last).is_some_and(|time| (time - accepted_at).abs() < 1_000), "{last:?}");
}

/// Runs a command on the outbox in `dir`.
fn outlast(dir: &Path, words: &[&str], input: &[u8]) -> common::Output {
    let outbox = dir.join("outbox");
    let outbox = ["--outbox", outbox.to_str().expect("a path in UTF-8")];
    let words: Vec<&str> = words.iter().copied().chain(outbox).collect();
    run(&words, input)
}
