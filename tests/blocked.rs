//! A lane that is blocked, with 100,000 messages in front, holds up nobody: a fresh key is delivered within a second,
//! before and after a restart, also one that shares the blocked lane's slot. Once the block is gone and dead letters are
//! requeued everything is delivered, in order (DESIGN.md 5). `blocked_kafka.rs` tries the same on a real broker.

#![cfg(feature = "testing")]

mod shows;

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use outlast::admin::{self, Selection};
use outlast::testing::{Broker, Delivered};
use outlast::transport::Class;
use outlast::{Config, Message, MessageId, OnPoison, Producer};
use shows::{LONG, assert_rising, builder_from, duplicates, in_order, numbered, setting};

/// What a fresh key may take.
const FRESH: Duration = Duration::from_secs(1);

/// Starts with the backlog that are timed; the quickest counts. The second is close in a build without optimisation, in
/// which passing over 100,000 messages takes most of it, and what else the machine does is not the drainer's doing.
const STARTS: usize = 10;

/// Batches of fresh keys that are timed before a restart; again the quickest counts.
const BATCHES: usize = 10;

/// Messages that become dead letters.
const DEAD: u64 = 50;

/// These tests take times, so one at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How long delivering the whole backlog may take: nothing is claimed of it here but that it ends.
const ALL: Duration = Duration::from_secs(300);

fn backlog() -> u64 {
    setting("OUTLAST_TEST_BLOCKED", 100_000)
}

fn open(dir: &Path, broker: &Broker, slots: usize, on_poison: OnPoison) -> Producer {
    // The poison's end is not announced: it is found by the next probe.
    let config = Config { slots, backoff_cap: Duration::from_secs(2), ..Config::default() };
    let built = builder_from(Producer::builder().config(config), dir, broker).segment_bytes(8 << 20).max_bytes(1 << 30);
    built.on_poison(on_poison).open_blocking().unwrap()
}

/// Stores the backlog, all of one key.
fn fill(producer: &Producer, topic: &str) -> u64 {
    let messages = (0..backlog()).map(|number| numbered(topic, "blocked", number));
    let receipts = pollster::block_on(producer.send_all(messages)).unwrap();
    assert!(receipts.iter().all(|receipt| !receipt.is_delivered()));
    receipts.len() as u64
}

/// Sends to three keys nobody has used; how long the slowest took.
#[track_caller]
fn fresh_keys(producer: &Producer, broker: &Broker) -> Duration {
    let took = (0..3).map(|_| {
        let key = format!("fresh-{}", broker.delivered().len());
        let begun = Instant::now();
        let receipt = pollster::block_on(producer.send(numbered("orders", &key, 1))).unwrap();
        loop {
            let delivered = broker.delivered();
            if delivered.iter().any(|one| one.key.as_deref() == Some(key.as_bytes())) {
                break;
            }
            assert!(broker.wait_for(delivered.len() + 1, LONG), "{key} is never delivered: {:?}", producer.stats());
        }
        println!("{key}: {:?}, directly: {}", begun.elapsed(), receipt.is_delivered());
        begun.elapsed()
    });
    took.max().unwrap()
}

#[track_caller]
fn fresh_keys_arrive(producer: &Producer, broker: &Broker) {
    let mut quickest = Duration::MAX;
    for _ in 0..BATCHES {
        quickest = quickest.min(fresh_keys(producer, broker));
        if quickest <= FRESH {
            return;
        }
    }
    panic!("a fresh key took {quickest:?} at least, in {BATCHES} batches");
}

/// Starts again, with the backlog still blocked; the last producer stays open.
#[track_caller]
fn fresh_keys_arrive_after_a_restart(broker: &Broker, pending: u64, open: impl Fn() -> Producer) -> Producer {
    let mut quickest = Duration::MAX;
    for start in 1.. {
        let producer = open();
        quickest = quickest.min(fresh_keys(&producer, broker));
        pending_falls_to(&producer, pending);
        if quickest <= FRESH || start == STARTS {
            assert!(quickest <= FRESH, "a fresh key took {quickest:?} at least, after {STARTS} starts");
            return producer;
        }
        producer.blocking_close(LONG).unwrap();
    }
    unreachable!()
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
    let _alone = alone();
    let (dir, broker) = (tempfile::TempDir::new().unwrap(), Broker::new());
    broker.reject("nowhere", Class::Hold);
    let open = || open(dir.path(), &broker, slots, OnPoison::Hold);
    let producer = open();
    let begun = Instant::now();
    let stored = fill(&producer, "nowhere");
    println!("{slots} slots: {stored} stored in {:?}", begun.elapsed());
    fresh_keys_arrive(&producer, &broker);
    assert_eq!(producer.blocking_close(LONG).unwrap().pending, stored);

    let producer = fresh_keys_arrive_after_a_restart(&broker, stored, open);
    broker.accept("nowhere");
    let begun = Instant::now();
    producer.blocking_drained(ALL).unwrap();
    println!("{slots} slots: delivered in {:?}", begun.elapsed());
    all_arrived(&broker, "nowhere");
    producer.blocking_close(LONG).unwrap();
}

/// The same with dead letters, of the topic that is then unknown and of another: an operator requeues them, as the program
/// does, and creates the topic.
fn an_unknown_topic_and_dead_letters(slots: usize) {
    let _alone = alone();
    let (dir, broker) = (tempfile::TempDir::new().unwrap(), Broker::new());
    let open = || open(dir.path(), &broker, slots, OnPoison::DeadLetter);
    let producer = open();
    broker.reject_message("poison");
    let dead = bury(&producer);
    broker.reject("nowhere", Class::Hold);
    let stored = fill(&producer, "nowhere");
    fresh_keys_arrive(&producer, &broker);
    let closed = producer.blocking_close(LONG).unwrap();
    assert_eq!((closed.pending, producer.stats().dead), (stored, DEAD));
    drop(producer);

    broker.accept_message("poison");
    let before = broker.delivered().len();
    assert_eq!(admin::requeue(dir.path().join("outbox"), Selection::All).unwrap(), DEAD);
    // What was dead and has a topic goes out at once; the other half waits, behind the backlog.
    let producer = fresh_keys_arrive_after_a_restart(&broker, stored + DEAD / 2, open);
    assert!(broker.delivered().len() >= before + 3 + DEAD as usize / 2);
    broker.accept("nowhere");
    producer.blocking_drained(ALL).unwrap();
    assert_eq!((producer.stats().pending, producer.stats().dead), (0, 0));
    all_arrived(&broker, "nowhere");
    let arrived: Vec<MessageId> = broker.delivered().iter().map(|one| one.id).collect();
    assert!(dead.iter().all(|id| arrived.contains(id)), "a dead letter keeps its id, and arrives");
    producer.blocking_close(LONG).unwrap();
}

/// Sends what the broker will never take, half of it each to two topics; waits until it is dead.
fn bury(producer: &Producer) -> Vec<MessageId> {
    let topics = ["orders", "nowhere"].into_iter().cycle();
    let poison = (0..DEAD).zip(topics).map(|(number, topic)| numbered(topic, &format!("poison-{number}"), 1));
    let receipts = pollster::block_on(producer.send_all(poison)).unwrap();
    producer.blocking_drained(LONG).unwrap();
    assert_eq!(producer.stats().dead, DEAD);
    receipts.iter().map(|receipt| receipt.id()).collect()
}

fn held_poison_in_front(slots: usize) {
    let _alone = alone();
    let (dir, broker) = (tempfile::TempDir::new().unwrap(), Broker::new());
    broker.reject_message("poison");
    let open = || open(dir.path(), &broker, slots, OnPoison::Hold);
    let producer = open();
    let begun = Instant::now();
    let poison = Message::to("orders").key("blocked").payload("blocked:0:poison");
    let stored = pollster::block_on(producer.send(poison)).unwrap();
    assert!(!stored.is_delivered());
    let numbers = (1..backlog()).map(|number| numbered("orders", "blocked", number));
    pollster::block_on(producer.send_all(numbers)).unwrap();
    println!("{slots} slots: stored in {:?}", begun.elapsed());
    fresh_keys_arrive(&producer, &broker);
    assert_eq!(producer.blocking_close(LONG).unwrap().pending, backlog());

    let producer = fresh_keys_arrive_after_a_restart(&broker, backlog(), open);
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
fn an_unknown_topic_and_dead_letters_hold_up_no_fresh_key_and_are_delivered_once_mended() {
    an_unknown_topic_and_dead_letters(65_536);
}

#[test]
fn an_unknown_topic_and_dead_letters_hold_up_no_fresh_key_of_their_slot() {
    an_unknown_topic_and_dead_letters(1);
}

#[test]
fn held_poison_with_a_long_backlog_holds_up_no_fresh_key() {
    held_poison_in_front(65_536);
}

#[test]
fn held_poison_with_a_long_backlog_holds_up_no_fresh_key_of_its_slot() {
    held_poison_in_front(1);
}
