//! The contract (DESIGN.md 1) on a broker in memory: what `send` returned `Ok` for arrives, per key in order.

#![cfg(feature = "testing")]

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use outlast::testing::{Broker, Delivered};
use outlast::transport::Class;
use outlast::{
    Builder, Event, Fate, Message, MessageId, Mode, OnPoison, Producer, Receipt, RouteConfig, SendErrorKind,
};
use tempfile::TempDir;

const LONG: Duration = Duration::from_secs(20);

fn builder(dir: &TempDir, broker: &Broker) -> Builder {
    Producer::builder()
        .outbox(dir.path().join("outbox"))
        .custom_transport("memory", broker.transport())
        .segment_bytes(1 << 20)
        .max_message_bytes(64 << 10)
        .max_bytes(64 << 20)
}

async fn open(dir: &TempDir, broker: &Broker) -> Producer {
    builder(dir, broker).lock_wait(LONG).open().await.expect("the producer opens")
}

fn message(key: usize, number: usize) -> Message {
    Message::to("orders").key(format!("key-{key}")).payload(format!("{key}:{number}"))
}

/// First occurrences of each key's messages, in the order of arrival.
fn firsts(delivered: &[Delivered]) -> HashMap<Vec<u8>, Vec<usize>> {
    let mut seen = HashSet::new();
    let mut keys: HashMap<Vec<u8>, Vec<usize>> = HashMap::new();
    for one in delivered.iter().filter(|one| seen.insert(one.id)) {
        let payload = String::from_utf8(one.payload.clone().expect("a payload").to_vec()).expect("text");
        let number = payload.split(':').nth(1).expect("a number").parse().expect("a number");
        keys.entry(one.key.clone().expect("a key").to_vec()).or_default().push(number);
    }
    keys
}

fn assert_in_order(delivered: &[Delivered], count: usize) {
    let keys = firsts(delivered);
    assert_eq!(keys.values().map(Vec::len).sum::<usize>(), count, "each message arrives");
    for (key, numbers) in keys {
        assert!(numbers.is_sorted(), "key {}: {numbers:?}", String::from_utf8_lossy(&key));
    }
}

#[tokio::test]
async fn a_healthy_broker_gets_a_message_directly() {
    let (dir, broker) = (TempDir::new().unwrap(), Broker::new());
    let producer = open(&dir, &broker).await;
    let receipt = producer.send(message(1, 1)).await.unwrap();
    assert!(receipt.is_delivered(), "{receipt:?}");
    let delivered = broker.delivered();
    assert_eq!((delivered.len(), delivered[0].id), (1, receipt.id()));
    assert_eq!(producer.stats().stored, 0);
    assert_eq!(producer.close(LONG).await.unwrap().pending, 0);
}

#[tokio::test]
async fn what_is_sent_in_an_outage_is_stored_and_arrives_in_order_when_it_ends() {
    let (dir, broker) = (TempDir::new().unwrap(), Broker::new());
    let producer = open(&dir, &broker).await;
    for number in 0..50 {
        producer.send(message(number % 5, number)).await.unwrap();
    }
    broker.down();
    let mut fates = Vec::new();
    for number in 50..500 {
        match producer.send(message(number % 5, number)).await.unwrap() {
            Receipt::Stored { delivery, .. } => fates.push(delivery),
            other => panic!("{other:?} while the broker is down"),
        }
    }
    assert_eq!(producer.stats().pending, 450);
    broker.up();
    producer.drained(LONG).await.unwrap();
    for fate in fates {
        assert!(matches!(fate.await, Fate::Delivered(_)));
    }
    assert_eq!(broker.delivered().len(), 500, "no duplicate: nothing was in doubt");
    assert_in_order(&broker.delivered(), 500);
    assert!(producer.send(message(1, 500)).await.unwrap().is_delivered(), "the gates are open again");
    producer.close(LONG).await.unwrap();
}

#[tokio::test]
async fn a_restart_delivers_what_was_pending_before_anything_newer_of_its_key() {
    let (dir, broker) = (TempDir::new().unwrap(), Broker::new());
    broker.down();
    let producer = open(&dir, &broker).await;
    for number in 0..300 {
        producer.send(message(number % 7, number)).await.unwrap();
    }
    assert_eq!(producer.close(Duration::ZERO).await.unwrap().pending, 300);
    let producer = open(&dir, &broker).await;
    for number in 300..400 {
        assert!(!producer.send(message(number % 7, number)).await.unwrap().is_delivered());
    }
    broker.up();
    producer.drained(LONG).await.unwrap();
    assert_eq!(broker.delivered().len(), 400);
    assert_in_order(&broker.delivered(), 400);
    producer.close(LONG).await.unwrap();
}

#[tokio::test]
async fn a_lost_reply_makes_a_duplicate_with_the_same_id_and_no_disorder() {
    let (dir, broker) = (TempDir::new().unwrap(), Broker::new());
    let producer = open(&dir, &broker).await;
    broker.lose_replies(3);
    let mut sends = Vec::new();
    for number in 0..100 {
        sends.push(producer.send(message(number % 3, number)));
    }
    for send in sends {
        send.await.unwrap();
    }
    producer.drained(LONG).await.unwrap();
    let delivered = broker.delivered();
    let ids: HashSet<MessageId> = delivered.iter().map(|one| one.id).collect();
    assert_eq!(ids.len(), 100);
    assert!(delivered.len() > 100, "the lost replies are duplicates");
    assert_in_order(&delivered, 100);
    producer.close(LONG).await.unwrap();
}

#[tokio::test]
async fn a_broker_that_hangs_does_not_hold_send_beyond_its_deadline() {
    let (dir, broker) = (TempDir::new().unwrap(), Broker::new());
    let producer = builder(&dir, &broker).first_attempt(Duration::from_millis(200)).open().await.unwrap();
    broker.pause();
    let begun = std::time::Instant::now();
    let receipt = producer.send(message(1, 0)).await.unwrap();
    assert!(!receipt.is_delivered());
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    broker.resume();
    producer.drained(LONG).await.unwrap();
    assert_eq!(broker.delivered().len(), 1, "what the transport still owned is delivered once");
    producer.close(LONG).await.unwrap();
}

#[tokio::test]
async fn poison_goes_to_the_dead_letters_and_its_lane_goes_on() {
    let (dir, broker) = (TempDir::new().unwrap(), Broker::new());
    let producer = open(&dir, &broker).await;
    let mut events = producer.events();
    broker.reject_message("poison");
    let mut sends = Vec::new();
    for number in 0..20 {
        sends.push(producer.send(message(1, number)));
        if number == 10 {
            sends.push(producer.send(Message::to("orders").key("key-1").payload("poison")));
        }
    }
    for send in sends {
        send.await.unwrap();
    }
    producer.drained(LONG).await.unwrap();
    assert_in_order(&broker.delivered(), 20);
    assert_eq!(producer.stats().dead, 1);
    // It may be told of a moment later.
    let told = async { while !matches!(events.next().await.expect("it is told"), Event::DeadLettered { .. }) {} };
    tokio::time::timeout(LONG, told).await.expect("the dead letter is told of");
    producer.close(LONG).await.unwrap();
    while let Some(event) = events.try_next() {
        assert!(!matches!(event, Event::DeadLettered { .. }), "told twice: {event:?}");
    }
    let producer = open(&dir, &broker).await;
    assert_eq!((producer.stats().dead, producer.stats().pending), (1, 0), "a dead letter outlasts the restart");
    producer.close(LONG).await.unwrap();
}

#[tokio::test]
async fn poison_that_is_held_blocks_its_own_key_and_nobody_elses() {
    let (dir, broker) = (TempDir::new().unwrap(), Broker::new());
    let producer = builder(&dir, &broker).on_poison(OnPoison::Hold).open().await.unwrap();
    broker.reject_message("poison");
    let _ = producer.send(Message::to("orders").key("bad").payload("poison")).await.unwrap();
    let _ = producer.send(Message::to("orders").key("bad").payload("bad:1")).await.unwrap();
    for number in 0..100 {
        let _ = producer.send(message(number, 0)).await.unwrap();
    }
    assert!(broker.wait_for(100, LONG));
    assert_eq!(producer.stats().pending, 2);
    broker.accept_message("poison");
    producer.drained(Duration::from_secs(40)).await.unwrap();
    producer.close(LONG).await.unwrap();
}

#[tokio::test]
async fn an_unknown_topic_holds_up_itself_alone_and_is_delivered_once_it_is_there() {
    let (dir, broker) = (TempDir::new().unwrap(), Broker::new());
    let producer = open(&dir, &broker).await;
    broker.reject("nowhere", Class::Hold);
    for number in 0..200 {
        let stored = producer.send(Message::to("nowhere").key("k").payload(format!("k:{number}"))).await.unwrap();
        assert!(!stored.is_delivered());
        let _ = producer.send(message(number % 5, number)).await.unwrap();
    }
    assert!(broker.wait_for(200, LONG));
    // Reasons are told a few times a second.
    let until = std::time::Instant::now() + LONG;
    while !producer.health().alerts.iter().any(|alert| alert.contains("nowhere")) {
        assert!(std::time::Instant::now() < until, "{:?}", producer.health());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    broker.accept("nowhere");
    producer.drained(LONG).await.unwrap();
    assert_in_order(
        &broker.delivered().into_iter().filter(|one| &*one.destination == "nowhere").collect::<Vec<_>>(),
        200,
    );
    producer.close(LONG).await.unwrap();
}

#[tokio::test]
async fn write_ahead_stores_first_and_delivers_at_once() {
    let (dir, broker) = (TempDir::new().unwrap(), Broker::new());
    let producer = builder(&dir, &broker).mode(Mode::WriteAhead).open().await.unwrap();
    let mut fates = Vec::new();
    for number in 0..200 {
        match producer.send(message(number % 3, number)).await.unwrap() {
            Receipt::Stored { delivery, .. } => fates.push(delivery),
            other => panic!("{other:?}"),
        }
    }
    for fate in fates {
        assert!(matches!(fate.await, Fate::Delivered(_)));
    }
    assert_in_order(&broker.delivered(), 200);
    producer.close(LONG).await.unwrap();
}

#[tokio::test]
async fn a_closed_producer_hands_messages_back() {
    let (dir, broker) = (TempDir::new().unwrap(), Broker::new());
    let producer = open(&dir, &broker).await;
    producer.close(LONG).await.unwrap();
    let error = producer.send(message(1, 1)).await.unwrap_err();
    assert_eq!(error.kind(), SendErrorKind::Closed);
    assert!(!error.possibly_delivered());
    assert_eq!(error.into_message().payload_bytes().unwrap(), "1:1");
}

#[tokio::test]
async fn the_first_of_a_lane_that_fails_is_stored_before_those_sent_after_it() {
    // It was not: the later ones, still owned by the broker, got their places in the log before it.
    let (dir, broker) = (TempDir::new().unwrap(), Broker::new());
    let producer = open(&dir, &broker).await;
    broker.pause();
    broker.reject_message("1:0");
    let sends: Vec<_> = (0..20).map(|number| producer.send(message(1, number))).collect();
    assert!(broker.wait_for_owned(20, LONG), "the broker owns {}", broker.owned());
    broker.resume();
    let mut places = Vec::new();
    for send in sends {
        match send.await.unwrap() {
            Receipt::Stored { lsn, .. } => places.push(lsn),
            Receipt::Delivered { .. } => {}
            other => panic!("{other:?}"),
        }
    }
    assert!(!places.is_empty() && places.is_sorted(), "{places:?}");
    producer.drained(LONG).await.unwrap();
    assert_eq!((producer.stats().dead, broker.delivered().len()), (1, 19));
    assert_in_order(&broker.delivered(), 19);
    producer.close(LONG).await.unwrap();
}

/// Settings of a route that names no transport went to the routes of that name on every transport.
#[tokio::test]
async fn a_routes_settings_are_its_own_transports_alone() {
    let (dir, first, second) = (TempDir::new().unwrap(), Broker::new(), Broker::new());
    let orders = RouteConfig { destination: "orders".into(), mode: Some(Mode::WriteAhead), ..RouteConfig::default() };
    let builder = builder(&dir, &first).custom_transport("second", second.transport());
    let producer = builder.route(orders).open().await.unwrap();
    assert!(!producer.send(message(1, 1)).await.unwrap().is_delivered());
    assert!(producer.send(message(1, 1).via("second")).await.unwrap().is_delivered());
    producer.close(LONG).await.unwrap();
}

/// With `max_attempts(1)` a broker lost the reply to the first of twenty messages of a key. The nineteen behind it were
/// handed back unsent, as the prefix rule demands, with a failure of their lane: each had used up its only attempt and
/// went to the dead letters, though the broker had never seen it.
#[tokio::test]
async fn a_message_handed_back_behind_one_that_failed_has_used_up_no_attempt() {
    let (dir, broker) = (TempDir::new().unwrap(), Broker::new());
    let producer = builder(&dir, &broker).mode(Mode::WriteAhead).max_attempts(1).open().await.unwrap();
    producer.send(message(1, 0)).await.unwrap();
    for number in 1..200 {
        // Settled one by one, so that the drainer has gained pace.
        producer.send(message(1, number)).await.unwrap();
    }
    producer.drained(LONG).await.unwrap();
    broker.pause();
    let sends: Vec<_> = (200..220).map(|number| producer.send(message(1, number))).collect();
    for send in sends {
        send.await.unwrap();
    }
    assert!(broker.wait_for_owned(20, LONG));
    broker.lose_reply();
    broker.resume();
    producer.drained(LONG).await.unwrap();
    assert_in_order(&broker.delivered(), 220);
    assert!(
        producer.stats().dead <= 1,
        "only the one whose reply was lost was tried: {} are dead",
        producer.stats().dead
    );
    producer.close(LONG).await.unwrap();
}

/// Ten messages of a key waited behind a full window. The broker went down; the first that was taken from those that
/// wait stood nowhere while it was stored, so all the others counted as sent before it and got lower LSNs.
#[tokio::test]
async fn what_waits_for_the_window_is_stored_in_the_order_of_sending() {
    let (dir, broker) = (TempDir::new().unwrap(), Broker::new());
    let config =
        outlast::Config { outbox: dir.path().join("outbox"), window_messages: 1, ..outlast::Config::default() };
    let producer =
        Producer::builder().config(config).custom_transport("memory", broker.transport()).open().await.unwrap();
    producer.send(message(1, 0)).await.unwrap();
    broker.pause();
    let sends: Vec<_> = (1..11).map(|number| producer.send(message(1, number))).collect();
    broker.down();
    broker.resume();
    let mut lsns = Vec::new();
    for send in sends {
        if let Receipt::Stored { lsn, .. } = send.await.unwrap() {
            lsns.push(lsn);
        }
    }
    assert!(lsns.len() == 10 && lsns.is_sorted(), "{lsns:?}");
    producer.close(Duration::ZERO).await.unwrap();
}
