//! A lane that is blocked, with 100,000 messages in front, holds up nobody: a fresh key is delivered within a second,
//! before and after a restart, also one that shares the blocked lane's slot. Once the block is gone everything is
//! delivered, in order (DESIGN.md 5).

#![cfg(feature = "testing")]

mod shows;

use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, Instant};

use outlast::testing::{Broker, Delivered};
use outlast::transport::Class;
use outlast::{Config, Message, OnPoison, Producer};
use shows::{LONG, assert_rising, builder_from, duplicates, in_order, numbered, setting};

/// What a fresh key may take: a second, and five in a build without optimisation, in which the drainer takes longer than
/// that to pass over so many for the first time.
fn fresh() -> Duration {
    Duration::from_millis(setting("OUTLAST_TEST_FRESH_MS", if cfg!(debug_assertions) { 5_000 } else { 1_000 }))
}

/// How long delivering the whole backlog may take: nothing is claimed of it here but that it ends.
const ALL: Duration = Duration::from_secs(300);

fn backlog() -> u64 {
    setting("OUTLAST_TEST_BLOCKED", 100_000)
}

fn open(dir: &Path, broker: &Broker, slots: usize) -> Producer {
    // The poison's end is not announced: it is found by the next probe.
    let config = Config { slots, backoff_cap: Duration::from_secs(2), ..Config::default() };
    let built = builder_from(Producer::builder().config(config), dir, broker).segment_bytes(8 << 20).max_bytes(1 << 30);
    built.on_poison(OnPoison::Hold).open_blocking().unwrap()
}

/// Stores the backlog, all of one key.
fn fill(producer: &Producer, topic: &str) -> u64 {
    let messages = (0..backlog()).map(|number| numbered(topic, "blocked", number));
    let receipts = pollster::block_on(producer.send_all(messages)).unwrap();
    assert!(receipts.iter().all(|receipt| !receipt.is_delivered()));
    receipts.len() as u64
}

/// Sends to keys nobody has used and says how long the slowest took.
#[track_caller]
fn fresh_keys_arrive(producer: &Producer, broker: &Broker, topic: &str, keys: [&str; 3], delivered: &mut usize) {
    for key in keys {
        let begun = Instant::now();
        let receipt = pollster::block_on(producer.send(numbered(topic, key, 1))).unwrap();
        *delivered += 1;
        assert!(broker.wait_for(*delivered, LONG), "{key} is not delivered at all: {:?}", producer.stats());
        let took = begun.elapsed();
        println!("{key}: {took:?}, directly: {}", receipt.is_delivered());
        assert!(took <= fresh(), "{key} took {took:?}");
    }
}

/// The broker has a message a moment before it is settled here.
#[track_caller]
fn pending_falls_to(producer: &Producer, pending: u64) {
    let begun = Instant::now();
    while producer.stats().pending != pending {
        assert!(begun.elapsed() < LONG, "{} are pending, not {pending}", producer.stats().pending);
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn of_topic(broker: &Broker, topic: &str) -> Vec<Delivered> {
    broker.delivered().into_iter().filter(|one| &*one.destination == topic).collect()
}

/// Everything of the blocked lane came, in order, and so did the fresh keys.
fn all_arrived(broker: &Broker, topic: &str) {
    let delivered = of_topic(broker, topic);
    assert_eq!(duplicates(&delivered), 0);
    let keys: HashMap<String, Vec<u64>> = in_order(&delivered);
    assert_eq!(keys["blocked"].len() as u64, backlog());
    assert_rising("blocked", &keys["blocked"]);
}

fn an_unknown_topic_in_front(slots: usize) {
    let (dir, broker) = (tempfile::TempDir::new().unwrap(), Broker::new());
    let mut delivered = 0;
    broker.reject("nowhere", Class::Hold);
    let producer = open(dir.path(), &broker, slots);
    let begun = Instant::now();
    let stored = fill(&producer, "nowhere");
    println!("{slots} slots: {stored} stored in {:?}", begun.elapsed());
    fresh_keys_arrive(&producer, &broker, "orders", ["a", "b", "c"], &mut delivered);
    assert_eq!(producer.blocking_close(LONG).unwrap().pending, stored);

    let producer = open(dir.path(), &broker, slots);
    fresh_keys_arrive(&producer, &broker, "orders", ["d", "e", "f"], &mut delivered);
    pending_falls_to(&producer, stored);
    broker.accept("nowhere");
    let begun = Instant::now();
    producer.blocking_drained(ALL).unwrap();
    println!("{slots} slots: delivered in {:?}", begun.elapsed());
    all_arrived(&broker, "nowhere");
    producer.blocking_close(LONG).unwrap();
}

fn held_poison_in_front(slots: usize) {
    let (dir, broker) = (tempfile::TempDir::new().unwrap(), Broker::new());
    let mut delivered = 0;
    broker.reject_message("poison");
    let producer = open(dir.path(), &broker, slots);
    let begun = Instant::now();
    let poison = Message::to("orders").key("blocked").payload("blocked:0:poison");
    let stored = pollster::block_on(producer.send(poison)).unwrap();
    assert!(!stored.is_delivered());
    let numbers = (1..backlog()).map(|number| numbered("orders", "blocked", number));
    pollster::block_on(producer.send_all(numbers)).unwrap();
    println!("{slots} slots: stored in {:?}", begun.elapsed());
    fresh_keys_arrive(&producer, &broker, "orders", ["a", "b", "c"], &mut delivered);
    assert_eq!(producer.blocking_close(LONG).unwrap().pending, backlog());

    let producer = open(dir.path(), &broker, slots);
    fresh_keys_arrive(&producer, &broker, "orders", ["d", "e", "f"], &mut delivered);
    pending_falls_to(&producer, backlog());
    broker.accept_message("poison");
    let begun = Instant::now();
    producer.blocking_drained(ALL).unwrap();
    println!("{slots} slots: delivered in {:?}", begun.elapsed());
    let mut delivered = broker.delivered();
    for one in &mut delivered {
        if one.payload.as_deref() == Some(b"blocked:0:poison") {
            one.payload = Some("blocked:0".into());
        }
    }
    let keys = in_order(&delivered);
    assert_eq!((duplicates(&delivered), keys["blocked"].len() as u64), (0, backlog()));
    producer.blocking_close(LONG).unwrap();
}

#[test]
fn an_unknown_topic_with_a_long_backlog_holds_up_no_fresh_key() {
    an_unknown_topic_in_front(65_536);
}

#[test]
fn an_unknown_topic_with_a_long_backlog_holds_up_no_fresh_key_of_its_slot() {
    an_unknown_topic_in_front(1);
}

#[test]
fn held_poison_with_a_long_backlog_holds_up_no_fresh_key() {
    held_poison_in_front(65_536);
}

#[test]
fn held_poison_with_a_long_backlog_holds_up_no_fresh_key_of_its_slot() {
    held_poison_in_front(1);
}
