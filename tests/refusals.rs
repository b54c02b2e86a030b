//! What `send` does not accept comes back whole, with its id and a reason; and the other ways in.

#![cfg(feature = "testing")]

use std::time::{Duration, Instant};

use outlast::testing::Broker;
use outlast::{
    Builder, Event, Message, Mode, OpenErrorKind, Order, Producer, Receipt, RouteConfig, SendError, SendErrorKind,
};
use tempfile::TempDir;

const LONG: Duration = Duration::from_secs(20);

fn builder(dir: &TempDir, broker: &Broker) -> Builder {
    Producer::builder()
        .outbox(dir.path().join("outbox"))
        .custom_transport("memory", broker.transport())
        .segment_bytes(1 << 20)
        .max_message_bytes(64 << 10)
        .max_bytes(16 << 20)
        .lock_wait(LONG)
}

fn refused(producer: &Producer, message: Message) -> SendError {
    let error = producer.blocking_send(message.clone()).expect_err("it is refused");
    let back = error.message();
    assert_eq!(
        (back.destination(), back.body(), back.headers()),
        (message.destination(), message.body(), message.headers())
    );
    assert_eq!(
        (back.key_bytes(), back.chosen_partition(), back.timestamp_millis()),
        (message.key_bytes(), message.chosen_partition(), message.timestamp_millis())
    );
    assert!(back.id().is_some(), "sending it again keeps the id");
    assert!(!error.possibly_delivered());
    error
}

#[test]
fn a_message_that_cannot_be_sent_comes_back_with_its_id_and_a_reason() {
    let (dir, broker) = (TempDir::new().unwrap(), Broker::new());
    let producer = builder(&dir, &broker).open_blocking().unwrap();
    let large = Message::to("orders").payload(vec![0; 64 << 10]).key("k").partition(0).timestamp(1_234);
    let large = refused(&producer, large);
    assert_eq!((large.kind(), large.is_retryable()), (SendErrorKind::TooLarge, false));
    assert!(large.to_string().contains("65537") && large.to_string().contains("65536"), "{large}");
    let invalid = [
        (Message::to("").key("k").partition(3), "topic"),
        (Message::to("orders").header("outlast-id", "x"), "outlast-id"),
        (Message::to("orders").header("a", "1").null_header("outlast-id"), "outlast-id"),
        (Message::to("orders").header("", "x"), "name"),
        (Message::to("orders").header("a", "1").null_header(""), "name"),
        (Message::to("orders").fields([("outlast-id", "x")]), "outlast-id"),
        (Message::to("orders").header("outlast-accepted", "1"), "outlast-accepted"),
        (Message::to("orders").fields([("outlast-accepted", "1")]), "outlast-accepted"),
        (Message::to("orders").partition(-1), "partition"),
    ];
    for (message, part) in invalid {
        let error = refused(&producer, message);
        assert_eq!(error.kind(), SendErrorKind::Invalid, "{error}");
        assert!(error.to_string().contains(part), "{error}");
    }
    let mut many = Message::to("orders");
    for number in 0..1_001 {
        many = many.header(format!("h{number}"), "x");
    }
    assert!(refused(&producer, many).to_string().contains("1000"));
    let unknown = refused(&producer, Message::to("orders").via("elsewhere"));
    assert_eq!(unknown.kind(), SendErrorKind::UnknownTransport);
    assert!(unknown.to_string().contains("memory"), "it says what there is: {unknown}");
    assert_eq!(broker.delivered().len(), 0);
    producer.blocking_close(LONG).unwrap();
}

/// Only a name that is empty, or ours, is illegal.
#[test]
fn every_other_header_name_arrives_as_it_is() {
    let (dir, broker) = (TempDir::new().unwrap(), Broker::new());
    let producer = builder(&dir, &broker).open_blocking().unwrap();
    let names =
        [" ", "two words", "Outlast-Id", "outlast-id ", "umläut", "a\0b", "line\nfeed", "h:a", &"n".repeat(1_000)];
    let message = names.iter().fold(Message::to("orders"), |message, name| message.header(*name, "x"));
    assert!(producer.blocking_send(message).unwrap().is_delivered());
    let arrived: Vec<String> = broker.delivered()[0].headers.iter().map(|header| header.name.to_string()).collect();
    assert_eq!(arrived, names);
    producer.blocking_close(LONG).unwrap();
}

#[cfg(feature = "kafka")]
#[test]
fn a_topic_that_kafka_does_not_allow_is_refused_at_send() {
    let dir = TempDir::new().unwrap();
    let producer = Producer::builder().outbox(dir.path().join("outbox")).url("kafka://127.0.0.1:1");
    let producer = producer.segment_bytes(1 << 20).max_message_bytes(64 << 10).open_blocking().unwrap();
    for topic in ["no spaces", ".", "..", "umläut", &"x".repeat(250)] {
        assert_eq!(refused(&producer, Message::to(topic)).kind(), SendErrorKind::Invalid, "{topic}");
    }
    assert_eq!(refused(&producer, Message::to("t").fields([("a", "b")])).kind(), SendErrorKind::Invalid);
    producer.blocking_close(Duration::ZERO).unwrap();
}

/// Fills an outbox whose broker is down until nothing more goes in.
fn fill(producer: &Producer) -> usize {
    let (mut stored, mut accepted) = (0, Instant::now());
    loop {
        let message = || Message::to("orders").key("k").payload(vec![1; 32 << 10]);
        let answer = match producer.try_send(message()).map(pollster_lite) {
            Ok(receipt) => Ok(receipt.unwrap()),
            Err(error) => {
                assert_eq!(error.kind(), SendErrorKind::Full);
                producer.blocking_send(message())
            }
        };
        match answer {
            Ok(receipt) => {
                assert!(matches!(receipt, Receipt::Stored { .. }), "{receipt:?}");
                (stored, accepted) = (stored + 1, Instant::now());
            }
            Err(error) => {
                assert_eq!((error.kind(), error.is_retryable()), (SendErrorKind::Full, true));
                assert!(!error.possibly_delivered(), "the broker never saw it");
                // Space may still be prepared: only what stays full is full.
                if accepted.elapsed() > Duration::from_secs(3) {
                    return stored;
                }
            }
        }
    }
}

fn pollster_lite<F: std::future::Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().build().expect("a runtime").block_on(future)
}

#[test]
fn a_full_outbox_is_waited_for_then_refused_and_goes_on_when_space_returns() {
    let (dir, broker) = (TempDir::new().unwrap(), Broker::new());
    let producer = builder(&dir, &broker).space_wait(Duration::from_millis(300)).open_blocking().unwrap();
    broker.down();
    let stored = fill(&producer);
    assert!(stored > 100, "{stored} messages of 32 KiB in 16 MiB");
    let begun = Instant::now();
    let late = producer.blocking_send(Message::to("orders").key("k").payload(vec![1; 32 << 10])).unwrap_err();
    assert_eq!(late.kind(), SendErrorKind::Full);
    assert!(begun.elapsed() >= Duration::from_millis(300), "it waits for space");
    // A waiting one whose future is dropped was never accepted.
    drop(producer.send(Message::to("orders").key("dropped").payload(vec![2; 32 << 10])));
    broker.up();
    producer.blocking_drained(LONG).unwrap();
    assert!(broker.delivered().iter().all(|one| one.key.as_deref() != Some(&b"dropped"[..])));
    assert!(producer.blocking_send(Message::to("orders").key("k").payload("again")).is_ok());
    producer.blocking_close(LONG).unwrap();
}

/// It writes nothing, and so came across nothing that told it: senders heard that it was full, for ever.
#[test]
fn a_full_outbox_that_is_not_ours_any_more_is_told_as_broken() {
    let (dir, broker) = (TempDir::new().unwrap(), Broker::new());
    let producer = builder(&dir, &broker).space_wait(Duration::from_millis(1)).open_blocking().unwrap();
    broker.down();
    fill(&producer);
    let message = || Message::to("orders").key("k").payload(vec![1; 32 << 10]);
    assert_eq!(producer.blocking_send(message()).unwrap_err().kind(), SendErrorKind::Full);
    std::fs::remove_file(dir.path().join("outbox/LOCK")).unwrap();
    let error = producer.blocking_send(message()).unwrap_err();
    assert!(error.kind() == SendErrorKind::Storage && error.to_string().contains("LOCK"), "{error}");
    drop(producer);
}

#[test]
fn a_send_that_waits_for_space_goes_through_when_space_returns() {
    let (dir, broker) = (TempDir::new().unwrap(), Broker::new());
    broker.down();
    let producer = builder(&dir, &broker).space_wait(Duration::from_millis(100)).open_blocking().unwrap();
    let stored = fill(&producer);
    producer.blocking_close(Duration::ZERO).unwrap();
    drop(producer);

    // From here on nobody waits in vain.
    let producer = builder(&dir, &broker).space_wait(LONG).open_blocking().unwrap();
    let mut sends = Vec::new();
    while producer.stats().waiting_for_space < 3 {
        assert!(sends.len() < stored, "the outbox was full: {:?}", producer.stats());
        sends.push(producer.send(Message::to("orders").key("k").payload(vec![3; 32 << 10])));
    }
    let waiting = sends.len();
    broker.up();
    for send in sends {
        assert!(pollster_lite(send).is_ok(), "space returned before its deadline");
    }
    producer.blocking_drained(LONG).unwrap();
    assert_eq!(producer.stats().waiting_for_space, 0);
    assert_eq!(broker.delivered().len(), stored + waiting);
    producer.blocking_close(LONG).unwrap();
}

#[tokio::test]
async fn many_are_sent_in_order_and_the_rest_comes_back_at_the_first_that_is_refused() {
    let (dir, broker) = (TempDir::new().unwrap(), Broker::new());
    let producer = builder(&dir, &broker).open().await.unwrap();
    let message = |number: usize| Message::to("orders").key("k").payload(number.to_string());
    let receipts = producer.send_all((0..3_000).map(message)).await.unwrap();
    assert_eq!(receipts.len(), 3_000);
    let numbers: Vec<String> = broker
        .delivered()
        .into_iter()
        .map(|one| String::from_utf8(one.payload.expect("a payload").to_vec()).expect("text"))
        .collect();
    assert!(numbers.iter().enumerate().all(|(at, number)| *number == at.to_string()), "in order");
    let bad = |number| if number == 10 { Message::to("") } else { message(number) };
    let error = producer.send_all((0..5_000).map(bad)).await.unwrap_err();
    assert_eq!(error.refused[0].kind(), SendErrorKind::Invalid);
    assert_eq!(error.receipts.len() + error.refused.len() + error.rest.len(), 5_000);
    assert!(error.rest.len() >= 3_900, "{} were not tried", error.rest.len());
    producer.close(LONG).await.unwrap();
}

#[tokio::test]
async fn events_tell_what_happened_after_send_returned() {
    let (dir, broker) = (TempDir::new().unwrap(), Broker::new());
    let producer = builder(&dir, &broker).open().await.unwrap();
    let mut events = producer.events();
    broker.down();
    let id = producer.send(Message::to("orders").key("k")).await.unwrap().id();
    broker.up();
    let (mut down, mut up) = (false, false);
    loop {
        match events.next().await.expect("the producer is open") {
            Event::Down { .. } => down = true,
            Event::Up { .. } => up = true,
            Event::Delivered { id: delivered, .. } => {
                assert_eq!(delivered, id);
                break;
            }
            _ => {}
        }
    }
    assert!(down && up);
    producer.close(LONG).await.unwrap();
}

#[test]
fn a_route_has_a_mode_and_an_order_of_its_own() {
    let (dir, broker) = (TempDir::new().unwrap(), Broker::new());
    let route = RouteConfig {
        destination: "audit".into(),
        mode: Some(Mode::WriteAhead),
        order: Some(Order::Route),
        ..RouteConfig::default()
    };
    let producer = builder(&dir, &broker).route(route).open_blocking().unwrap();
    assert!(producer.blocking_send(Message::to("orders").key("k")).unwrap().is_delivered());
    assert!(!producer.blocking_send(Message::to("audit").key("k")).unwrap().is_delivered());
    producer.blocking_drained(LONG).unwrap();
    producer.blocking_close(LONG).unwrap();
}

#[test]
fn a_wrong_configuration_is_told_before_any_file_is_touched() {
    let dir = TempDir::new().unwrap();
    let open = |url: &str| Producer::builder().outbox(dir.path().join("outbox")).url(url).open_blocking();
    for url in ["amqp://h/t", "kafka://h:99999/t", "kafka://h/t?acks=0", "kafka://h/t?no.such.option=1", "redis://h/x"]
    {
        let error = open(url).expect_err(url);
        assert_eq!(error.kind(), OpenErrorKind::Config, "{url}: {error}");
    }
    let none = Producer::builder().outbox(dir.path().join("outbox")).open_blocking().expect_err("no broker");
    assert_eq!(none.kind(), OpenErrorKind::Config);
    assert!(!dir.path().join("outbox").exists());
}

#[test]
fn a_second_producer_is_told_who_has_the_outbox() {
    let (dir, broker) = (TempDir::new().unwrap(), Broker::new());
    let first = builder(&dir, &broker).open_blocking().unwrap();
    let error = builder(&dir, &broker).lock_wait(Duration::ZERO).open_blocking().expect_err("it is held");
    assert_eq!(error.kind(), OpenErrorKind::Held { pid: Some(std::process::id()) });
    assert!(first.blocking_send(Message::to("orders")).unwrap().is_delivered(), "the holder is undisturbed");
    first.blocking_close(LONG).unwrap();
}
