//! What a producer tells about itself while things go wrong: every count of `stats`, reasons, and the events that are
//! rare.

#![cfg(feature = "testing")]

mod shows;

use std::time::{Duration, Instant, SystemTime};

use outlast::testing::Broker;
use outlast::transport::Class;
use outlast::{Event, Events, Message, Mode, Producer, Stats};
use shows::{LONG, builder, numbered};
use tempfile::TempDir;

/// Events that are kept for a slow reader.
const EVENTS: u64 = 1_024;

/// The drainer hears of an outage a moment after the broker's end of it.
#[track_caller]
fn until(producer: &Producer, what: &str, holds: impl Fn(&Stats) -> bool) -> Stats {
    let begun = Instant::now();
    loop {
        let stats = producer.stats();
        if holds(&stats) {
            return stats;
        }
        assert!(begun.elapsed() < LONG, "{what}: {stats:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn send(producer: &Producer, topic: &str, key: &str, numbers: std::ops::Range<u64>) {
    for number in numbers {
        producer.blocking_send(numbered(topic, key, number)).unwrap();
    }
}

/// The next event of a kind.
#[track_caller]
fn next<T>(events: &mut Events, what: &str, wanted: impl Fn(Event) -> Option<T>) -> T {
    let (begun, mut others) = (Instant::now(), Vec::new());
    while begun.elapsed() < LONG {
        let Some(event) = events.try_next() else {
            std::thread::sleep(Duration::from_millis(1));
            continue;
        };
        others.push(format!("{event:?}"));
        if let Some(found) = wanted(event) {
            return found;
        }
    }
    panic!("{what} did not come; instead: {others:?}");
}

#[test]
fn an_outage_shows_in_every_count_and_so_does_its_end() {
    let (dir, broker) = (TempDir::new().unwrap(), Broker::new());
    let producer = builder(dir.path(), &broker).open_blocking().unwrap();
    send(&producer, "orders", "a", 0..3);
    let stats = producer.stats();
    assert_eq!((stats.attempts, stats.delivered, stats.stored, stats.retries_succeeded), (3, 3, 0, 0));
    assert_eq!((stats.pending, stats.pending_bytes, stats.oldest, stats.gated_lanes), (0, 0, None, 0));
    let [transport] = &stats.transports[..] else { panic!("{stats:?}") };
    assert_eq!((&*transport.name, transport.up, transport.in_flight), ("memory", true, 0));
    assert_eq!((&transport.reason, transport.since), (&None, None));

    let before = SystemTime::now() - Duration::from_secs(1);
    broker.down();
    let down = until(&producer, "it is told as down", |stats| !stats.transports[0].up);
    assert!(down.transports[0].reason.as_deref().unwrap().contains("the test said so"), "{down:?}");
    assert!(down.transports[0].since.is_some_and(|since| since >= before), "{down:?}");
    send(&producer, "orders", "a", 3..6);
    send(&producer, "orders", "b", 0..2);
    let stats = producer.stats();
    assert_eq!((stats.stored, stats.pending, stats.delivered, stats.retries_succeeded), (5, 5, 3, 0));
    assert_eq!((stats.gated_lanes, stats.transports[0].gated_slots), (2, 2), "two keys in two slots");
    assert!(stats.oldest.is_some_and(|oldest| before <= oldest && oldest <= SystemTime::now()), "{stats:?}");
    assert!(stats.oldest_age().unwrap() < LONG);
    let [route] = &stats.routes[..] else { panic!("{stats:?}") };
    assert_eq!((&*route.route.destination, route.pending, route.oldest), ("orders", 5, stats.oldest));
    assert!(route.pending_bytes > 0 && route.pending_bytes == stats.pending_bytes, "{stats:?}");

    broker.up();
    producer.blocking_drained(LONG).unwrap();
    let stats = until(&producer, "it is told as up", |stats| stats.transports[0].up && stats.gated_lanes == 0);
    assert_eq!((stats.pending, stats.oldest, stats.delivered, stats.retries_succeeded), (0, None, 3, 5));
    assert!(stats.attempts >= 8, "{stats:?}");
    assert_eq!((&stats.transports[0].reason, stats.transports[0].since), (&None, None));
    producer.blocking_close(LONG).unwrap();
}

#[test]
fn a_lost_reply_is_an_attempt_and_a_retry_that_succeeded() {
    let (dir, broker) = (TempDir::new().unwrap(), Broker::new());
    let producer = builder(dir.path(), &broker).open_blocking().unwrap();
    broker.lose_reply();
    send(&producer, "orders", "a", 0..1);
    producer.blocking_drained(LONG).unwrap();
    let stats = until(&producer, "it is counted", |stats| stats.retries_succeeded == 1);
    assert!(stats.attempts >= 2 && (stats.delivered, stats.stored) == (0, 1), "{stats:?}");
    until(&producer, "the error is told also when it has passed", |stats| {
        let error = stats.routes.iter().find_map(|route| route.last_error.as_deref());
        error.is_some_and(|error| error.contains("the reply was lost"))
    });
    producer.blocking_close(LONG).unwrap();
}

#[test]
fn each_failed_try_of_a_refused_topic_is_an_event_and_its_block_is_in_the_stats() {
    let (dir, broker) = (TempDir::new().unwrap(), Broker::new());
    let producer = builder(dir.path(), &broker).open_blocking().unwrap();
    let mut events = producer.events();
    broker.reject("nowhere", Class::Hold);
    send(&producer, "nowhere", "a", 0..3);
    for expected in 1..=3 {
        let (route, attempts, class, reason) = next(&mut events, "Retrying", |event| match event {
            Event::Retrying { route, attempts, class, reason } => Some((route, attempts, class, reason)),
            _ => None,
        });
        assert_eq!((&*route.transport, &*route.destination), ("memory", "nowhere"));
        assert_eq!((attempts, class), (expected, Class::Hold));
        assert!(reason.contains("refuses \"nowhere\""), "{reason}");
    }
    let stats = until(&producer, "the block has tried", |stats| {
        stats.routes.iter().any(|route| route.blocked.as_ref().is_some_and(|blocked| blocked.attempts >= 3))
    });
    let blocked = stats.routes[0].blocked.as_ref().unwrap();
    assert_eq!((blocked.class, blocked.blocks), (Class::Hold, 1));
    assert!(blocked.reason.contains("refuses \"nowhere\"") && (2..=3).contains(&blocked.waiting), "{blocked:?}");
    assert!(stats.transports[0].up, "a topic says nothing about the broker: {stats:?}");
    assert!(stats.routes[0].last_error.as_deref().is_some_and(|error| error.contains("refuses \"nowhere\"")));

    broker.accept("nowhere");
    producer.blocking_drained(LONG).unwrap();
    let stats = until(&producer, "the block is gone", |stats| stats.routes.iter().all(|route| route.blocked.is_none()));
    assert_eq!(stats.retries_succeeded, 3);
    producer.blocking_close(LONG).unwrap();
}

#[test]
fn who_reads_events_too_slowly_is_told_how_many_are_missing() {
    let (dir, broker) = (TempDir::new().unwrap(), Broker::new());
    let producer = builder(dir.path(), &broker).mode(Mode::WriteAhead).open_blocking().unwrap();
    let mut events = producer.events();
    let sent = EVENTS + 500;
    let messages = (0..sent).map(|number| Message::to("orders").payload(number.to_string()));
    pollster::block_on(producer.send_all(messages)).unwrap();
    producer.blocking_drained(LONG).unwrap();
    until(&producer, "all are settled", |stats| stats.retries_succeeded == sent);
    // Events come in order: what was told before this one has been told.
    let mut others = producer.events();
    send(&producer, "orders", "last", 0..1);
    next(&mut others, "the last", |event| matches!(event, Event::Delivered { .. }).then_some(()));
    let sent = sent + 1;
    let missing = next(&mut events, "Lagged", |event| match event {
        Event::Lagged(missing) => Some(missing),
        other => panic!("first of all: {other:?}"),
    });
    for _ in missing..sent {
        next(&mut events, "the rest", |event| matches!(event, Event::Delivered { .. }).then_some(()));
    }
    assert!(missing >= sent - EVENTS, "{missing} are missing of {sent}");
    assert!(events.try_next().is_none(), "more than was sent");
    producer.blocking_close(LONG).unwrap();
}
