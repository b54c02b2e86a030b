//! What `blocked.rs` shows, on a real broker, with a smaller backlog: an unknown topic and dead letters in front hold up no
//! fresh key, before and after a restart; requeued, and with the topic created, everything is delivered, in order.

#![cfg(all(feature = "kafka", feature = "testing"))]

mod common;
mod kafka_support;

use std::path::Path;
use std::time::{Duration, Instant};

use common::{kafka, kafka_address, unique};
use kafka_support::{assert_ordered, end_of, read};
use outlast::admin::{self, Selection};
use outlast::{Config, Fate, Message, Producer, Receipt};

/// What a fresh key may take.
const FRESH: Duration = Duration::from_secs(1);
/// Fresh keys that are timed; the quickest counts, for what else the machine does is not the drainer's doing.
const TRIES: u64 = 10;
/// What each of them may take at most. The first of a topic that has something in the backlog of a restart takes longer: so
/// long an unknown topic is given to appear (`CREATION` in `metadata.rs`), and meanwhile the drainer does not come past
/// what it handed over for it.
const SLOWEST: Duration = Duration::from_secs(10);
const LONG: Duration = Duration::from_secs(60);

/// Messages for a topic that is not there.
const BACKLOG: u64 = 5_000;
/// Messages that are larger than their topic allows. Each costs librdkafka's producer a rebuild, and these are paced.
const DEAD: u64 = 3;
/// What a topic allows at first, in bytes.
const SMALL: &str = "2000";

/// One slot, so that everything shares it.
fn open(dir: &Path) -> Producer {
    let config = Config { outbox: dir.join("outbox"), slots: 1, ..Config::default() };
    let url = format!("kafka://{}", kafka_address());
    Producer::builder().config(config).url(&url).open_blocking().unwrap()
}

/// A message whose payload is a number, and as many blanks as its size asks for.
fn numbered(topic: &str, key: &str, number: u64, size: usize) -> Message {
    let mut payload = number.to_string().into_bytes();
    payload.resize(size.max(payload.len()), b' ');
    Message::to(topic).key(key.to_owned()).payload(payload)
}

/// Sends to keys nobody has used until one arrives in time; says how many that took.
#[track_caller]
fn fresh_keys_arrive(producer: &Producer, topic: &str, name: &str) -> usize {
    let mut took = (1..=TRIES).map(|number| (number, fresh_key_arrives(producer, topic, &format!("{name}{number}"))));
    let in_time = took.find(|(_, took)| *took <= FRESH);
    let (count, _) = in_time.unwrap_or_else(|| panic!("{name}: none of {TRIES} took less than {FRESH:?}"));
    count as usize
}

/// Sends to a key nobody has used; it is the only message of its topic that goes out meanwhile. Says how long it took.
#[track_caller]
fn fresh_key_arrives(producer: &Producer, topic: &str, key: &str) -> Duration {
    let begun = Instant::now();
    let receipt = producer.blocking_send(numbered(topic, key, 1, 0)).unwrap();
    let direct = receipt.is_delivered();
    if let Receipt::Stored { delivery, .. } = receipt {
        let (sender, told) = std::sync::mpsc::channel();
        std::thread::spawn(move || sender.send(pollster::block_on(delivery)));
        let fate = told.recv_timeout(LONG);
        assert!(matches!(fate, Ok(Fate::Delivered(_))), "{key}: {fate:?} after {LONG:?}: {:?}", producer.stats());
    }
    let took = begun.elapsed();
    println!("{key}: {took:?}, directly: {direct}");
    assert!(took <= SLOWEST, "{key} took {took:?}");
    took
}

/// The drainer tried the unknown topic, was refused at once, took that for no new failure and tried again without end: what
/// lay behind it in the log, the fresh keys, was never looked at.
#[test]
fn an_unknown_topic_and_dead_letters_hold_up_no_fresh_key_and_are_delivered_once_mended() {
    let (dir, broker) = (tempfile::tempdir().unwrap(), kafka_address());
    let (orders, others, nowhere) = (unique("orders"), unique("others"), unique("nowhere"));
    kafka::create_topic_with(&broker, &orders, 1, &[("max.message.bytes", SMALL)]);
    kafka::create_topic(&broker, &others, 1);
    let producer = open(dir.path());
    for number in 0..DEAD {
        producer.blocking_send(numbered(&orders, &format!("large-{number}"), 1, 5_000)).unwrap();
    }
    producer.blocking_drained(LONG).unwrap();
    assert_eq!(producer.stats().dead, DEAD);

    let backlog = (0..BACKLOG).map(|number| numbered(&nowhere, "blocked", number, 0));
    let receipts = pollster::block_on(producer.send_all(backlog)).unwrap();
    assert!(receipts.iter().all(|receipt| !receipt.is_delivered()));
    let mut to_orders = fresh_keys_arrive(&producer, &orders, "a");
    let mut to_others = fresh_keys_arrive(&producer, &others, "b");
    assert_eq!(producer.blocking_close(LONG).unwrap().pending, BACKLOG);
    drop(producer);

    kafka::change_topic(&broker, &orders, &[("max.message.bytes", "100000")]);
    assert_eq!(admin::requeue(dir.path().join("outbox"), Selection::All).unwrap(), DEAD);
    let producer = open(dir.path());
    to_others += fresh_keys_arrive(&producer, &others, "c");
    fresh_key_arrives(&producer, &orders, "d");
    to_orders += 1 + fresh_keys_arrive(&producer, &orders, "e");
    common::wait_until("the requeued are delivered", LONG, || producer.stats().pending == BACKLOG);

    kafka::create_topic(&broker, &nowhere, 1);
    producer.blocking_drained(LONG).unwrap();
    assert_eq!((producer.stats().pending, producer.stats().dead), (0, 0));
    producer.blocking_close(LONG).unwrap();
    let firsts = assert_ordered(&read(&broker, &nowhere, 1, BACKLOG as usize));
    assert_eq!(firsts[&b"blocked"[..]], (0..BACKLOG).collect::<Vec<_>>());
    assert_eq!(end_of(&broker, &nowhere, 1), BACKLOG as usize, "no duplicates");
    to_orders += DEAD as usize;
    assert_eq!(assert_ordered(&read(&broker, &orders, 1, to_orders)).len(), to_orders);
    assert_eq!(end_of(&broker, &others, 1), to_others);
}
