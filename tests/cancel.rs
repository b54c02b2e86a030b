//! A future of `send` dropped at each point at which it can wait: the message is delivered once or was never accepted,
//! its lane goes on, order is kept (DESIGN.md 1.7).

#![cfg(feature = "testing")]

mod shows;

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::path::Path;
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use outlast::testing::Broker;
use outlast::{Message, Mode, Producer, SendFuture};
use shows::{LONG, builder, duplicates, in_order, numbered, setting};

/// Messages that are not stored by then never will be.
const STORED: Duration = Duration::from_secs(5);

/// An outbox that takes nothing for so long, however often it is asked, is full.
const QUIET: Duration = Duration::from_secs(5);
const REFUSALS: usize = 20;

fn open(dir: &Path, broker: &Broker) -> Producer {
    builder(dir, broker).open_blocking().unwrap()
}

/// Polls once, with a waker that wakes nobody.
fn poll(future: &mut SendFuture) -> Poll<Result<outlast::Receipt, outlast::SendError>> {
    pin!(future).poll(&mut Context::from_waker(Waker::noop()))
}

/// Drops a future that does not wait for space: the message was taken.
#[track_caller]
fn drop_sent(future: SendFuture) {
    assert_eq!(format!("{future:?}"), "SendFuture(\"sent\")");
    drop(future);
}

/// Waits until the outbox has made itself room: before that, the first messages wait for space.
fn warm(producer: &Producer) {
    pollster::block_on(producer.send(numbered("t", "first", 0))).unwrap();
}

/// The lane goes on: what is sent behind is delivered, and the whole lane came in order. Returns its numbers.
#[track_caller]
fn lane_goes_on(producer: &Producer, broker: &Broker, key: &str, next: u64) -> Vec<u64> {
    pollster::block_on(producer.send(numbered("t", key, next))).unwrap();
    let drained = producer.blocking_drained(LONG);
    assert!(drained.is_ok(), "{drained:?}: {:?}", producer.stats());
    assert_eq!(duplicates(&broker.delivered()), 0);
    let mut keys = in_order(&broker.delivered());
    keys.remove(key).unwrap()
}

#[test]
fn dropped_unpolled_it_is_delivered() {
    let (dir, broker) = (tempfile::TempDir::new().unwrap(), Broker::new());
    let producer = open(dir.path(), &broker);
    warm(&producer);
    for number in 0..50 {
        drop_sent(producer.send(numbered("t", "k", number)));
    }
    assert_eq!(lane_goes_on(&producer, &broker, "k", 50), (0..=50).collect::<Vec<_>>());
    producer.blocking_close(LONG).unwrap();
}

#[test]
fn dropped_while_the_broker_has_it_it_is_delivered_once() {
    for polls in 0..2 {
        let (dir, broker) = (tempfile::TempDir::new().unwrap(), Broker::new());
        let producer = open(dir.path(), &broker);
        broker.pause();
        let mut future = producer.send(numbered("t", "k", 0));
        assert!(broker.wait_for_owned(1, LONG));
        for _ in 0..polls {
            assert!(poll(&mut future).is_pending());
        }
        drop(future);
        broker.resume();
        assert_eq!(lane_goes_on(&producer, &broker, "k", 1), [0, 1]);
        producer.blocking_close(LONG).unwrap();
    }
}

#[test]
fn dropped_before_the_broker_fails_it_is_stored_and_delivered() {
    let (dir, broker) = (tempfile::TempDir::new().unwrap(), Broker::new());
    let producer = open(dir.path(), &broker);
    warm(&producer);
    broker.pause();
    let owned = broker.owned();
    for number in 0..5 {
        drop_sent(producer.send(numbered("t", "k", number)));
    }
    assert!(broker.wait_for_owned(owned + 5, LONG));
    // What it owns fails, untouched: nobody but the outbox has it then.
    broker.down();
    let begun = Instant::now();
    while producer.stats().stored < 5 && begun.elapsed() < STORED {
        std::thread::sleep(Duration::from_millis(1));
    }
    broker.resume();
    broker.up();
    assert_eq!(lane_goes_on(&producer, &broker, "k", 5), [0, 1, 2, 3, 4, 5]);
    producer.blocking_close(LONG).unwrap();
}

#[cfg(feature = "planted")]
#[test]
fn planted_drop_with_future_is_caught() {
    shows::assert_caught(
        "dropped_before_the_broker_fails_it_is_stored_and_delivered",
        "drop-with-future",
        1,
        &["right: [0, 1, 2, 3, 4, 5]"],
    );
}

#[test]
fn dropped_behind_a_full_window_it_is_delivered_in_its_place() {
    let (dir, broker) = (tempfile::TempDir::new().unwrap(), Broker::new());
    let config = outlast::Config { window_messages: 1, redelivery_window: 2, ..outlast::Config::default() };
    let built = shows::builder_from(Producer::builder().config(config), dir.path(), &broker);
    let producer = built.open_blocking().unwrap();
    broker.pause();
    let first = producer.send(numbered("t", "k", 0));
    assert!(broker.wait_for_owned(1, LONG));
    let mut waits = producer.send(numbered("t", "k", 1));
    let behind = producer.send(numbered("t", "k", 2));
    assert!(poll(&mut waits).is_pending());
    drop(waits);
    broker.resume();
    pollster::block_on(behind).unwrap();
    pollster::block_on(first).unwrap();
    assert_eq!(lane_goes_on(&producer, &broker, "k", 3), [0, 1, 2, 3]);
    producer.blocking_close(LONG).unwrap();
}

#[test]
fn dropped_while_it_is_stored_it_is_delivered_after_a_restart_too() {
    for polls in 0..2 {
        let (dir, broker) = (tempfile::TempDir::new().unwrap(), Broker::new());
        broker.down();
        let producer = open(dir.path(), &broker);
        warm(&producer);
        for number in 0..200 {
            let mut future = producer.send(numbered("t", "k", number));
            if number % 10 == 9 {
                // So that it need not wait for space.
                pollster::block_on(future).unwrap();
            } else if polls == 0 || poll(&mut future).is_pending() {
                drop_sent(future);
            }
        }
        assert_eq!(producer.blocking_close(LONG).unwrap().pending, 201);
        broker.up();
        let producer = open(dir.path(), &broker);
        assert_eq!(lane_goes_on(&producer, &broker, "k", 200), (0..=200).collect::<Vec<_>>());
        producer.blocking_close(LONG).unwrap();
    }
}

#[test]
fn a_dropped_delivery_only_stops_watching() {
    let (dir, broker) = (tempfile::TempDir::new().unwrap(), Broker::new());
    broker.down();
    let producer = open(dir.path(), &broker);
    for number in 0..10 {
        drop(pollster::block_on(producer.send(numbered("t", "k", number))).unwrap());
    }
    broker.up();
    assert_eq!(lane_goes_on(&producer, &broker, "k", 10), (0..=10).collect::<Vec<_>>());
    producer.blocking_close(LONG).unwrap();
}

/// A producer whose outbox is full, and how many messages it took.
fn full(dir: &Path, broker: &Broker) -> (Producer, u64) {
    broker.down();
    let built = builder(dir, broker).segment_bytes(64 << 10).max_message_bytes(8 << 10).max_bytes(4 * (64 << 10));
    let producer = built.mode(Mode::WriteAhead).space_wait(Duration::from_secs(600)).open_blocking().unwrap();
    let (mut number, mut refused) = (0, 0);
    let mut last = Instant::now();
    // Space is prepared in the background: it is full once it stays so.
    while last.elapsed() < QUIET || refused < REFUSALS {
        match producer.try_send(big(number)) {
            Ok(future) => {
                assert!(!pollster::block_on(future).unwrap().is_delivered());
                number += 1;
                (last, refused) = (Instant::now(), 0);
            }
            Err(error) => {
                assert_eq!(error.kind(), outlast::SendErrorKind::Full, "{error}");
                refused += 1;
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }
    (producer, number)
}

fn big(number: u64) -> Message {
    numbered("t", "k", number).header("filler", vec![b'x'; 6_000])
}

#[test]
fn dropped_while_it_waits_for_space_it_was_never_accepted() {
    for polls in 0..2 {
        let (dir, broker) = (tempfile::TempDir::new().unwrap(), Broker::new());
        let (producer, stored) = full(dir.path(), &broker);
        let mut waiting: Vec<_> = (stored..stored + 6).map(|number| producer.send(big(number))).collect();
        assert_eq!(producer.stats().waiting_for_space, 6);
        for _ in 0..polls {
            assert!(waiting.iter_mut().all(|future| poll(future).is_pending()));
        }
        // The first, one in the middle and the last.
        for at in [5, 2, 0] {
            drop(waiting.remove(at));
        }
        assert_eq!(producer.stats().waiting_for_space, 3, "what was dropped waits no longer");
        broker.up();
        // Nobody polls those that are left, and still they go their way.
        let begun = Instant::now();
        while producer.stats().waiting_for_space > 0 {
            assert!(begun.elapsed() < LONG, "unpolled futures hold each other up");
            std::thread::sleep(Duration::from_millis(2));
        }
        let lane = lane_goes_on(&producer, &broker, "k", stored + 6);
        let mut expected: Vec<u64> = (0..stored).collect();
        expected.extend([1, 3, 4, 6].map(|behind| stored + behind));
        assert_eq!(lane, expected);
        for future in waiting {
            pollster::block_on(future).unwrap();
        }
        producer.blocking_close(LONG).unwrap();
    }
}

#[test]
fn an_outbox_that_is_full_of_unpolled_futures_can_be_closed() {
    let (dir, broker) = (tempfile::TempDir::new().unwrap(), Broker::new());
    let (producer, stored) = full(dir.path(), &broker);
    let future = producer.send(big(stored));
    assert_eq!(producer.blocking_close(Duration::ZERO).unwrap().pending, stored);
    let error = pollster::block_on(future).unwrap_err();
    assert_eq!((error.kind(), error.possibly_delivered()), (outlast::SendErrorKind::Closed, false));
    broker.up();
    let producer = open(dir.path(), &broker);
    assert_eq!(lane_goes_on(&producer, &broker, "k", stored + 1), (0..stored).chain([stored + 1]).collect::<Vec<_>>());
    producer.blocking_close(LONG).unwrap();
}

/// Futures are dropped at random while the broker comes, goes, hangs and loses replies, and space runs out.
#[test]
fn dropped_at_random_in_bad_weather_each_message_is_delivered_or_was_never_accepted() {
    let seed = setting("OUTLAST_TEST_SEED", fastrand::u64(..));
    let rounds = setting("OUTLAST_TEST_ROUNDS", 10);
    for round in 0..rounds {
        let seed = seed.wrapping_add(round);
        println!("OUTLAST_TEST_SEED={seed} OUTLAST_TEST_ROUNDS=1");
        bad_weather(seed);
    }
}

fn bad_weather(seed: u64) {
    const KEYS: u64 = 4;
    let mut rng = fastrand::Rng::with_seed(seed);
    let (dir, broker) = (tempfile::TempDir::new().unwrap(), Broker::new());
    let built = builder(dir.path(), &broker).segment_bytes(64 << 10).max_message_bytes(8 << 10);
    let built = built.max_bytes(5 * (64 << 10)).first_attempt(Duration::from_millis(20));
    let built = if rng.bool() { built.mode(Mode::WriteAhead) } else { built };
    let producer = built.space_wait(Duration::from_secs(600)).open_blocking().unwrap();
    let (mut held, mut must, mut may) = (Vec::<(u64, SendFuture)>::new(), HashSet::new(), HashSet::new());
    for number in 0..600 {
        match rng.u8(..40) {
            0..3 => broker.down(),
            3 => broker.pause(),
            4 => broker.lose_replies(rng.usize(1..4)),
            5..14 => {
                broker.up();
                broker.resume();
            }
            _ => {}
        }
        let message =
            numbered("t", &format!("k{}", number % KEYS), number).header("filler", vec![0; rng.usize(..4_000)]);
        let mut future = producer.send(message);
        for _ in 0..rng.usize(..3) {
            if let Poll::Ready(result) = poll(&mut future) {
                result.unwrap();
                must.insert(number);
                break;
            }
        }
        if !must.contains(&number) {
            held.push((number, future));
        }
        while held.len() > rng.usize(..30) {
            let (number, future) = held.swap_remove(rng.usize(..held.len()));
            // What waits for space when it is dropped may have been let in just now.
            let sent = format!("{future:?}").contains("\"sent\"");
            if sent {
                must.insert(number)
            } else {
                may.insert(number)
            };
            drop(future);
        }
    }
    broker.up();
    broker.resume();
    broker.lose_replies(0);
    for (number, future) in held {
        pollster::block_on(future).unwrap();
        must.insert(number);
    }
    for key in 0..KEYS {
        pollster::block_on(producer.send(numbered("t", &format!("k{key}"), 1_000_000))).unwrap();
    }
    producer.blocking_drained(LONG).unwrap();
    let keys: HashMap<String, Vec<u64>> = in_order(&broker.delivered());
    let came: HashSet<u64> = keys.values().flatten().copied().collect();
    let lost: Vec<_> = must.difference(&came).collect();
    assert!(lost.is_empty(), "accepted and lost: {lost:?}");
    let unknown: Vec<_> = came.iter().filter(|&n| *n < 1_000_000 && !must.contains(n) && !may.contains(n)).collect();
    assert!(unknown.is_empty(), "delivered, and nobody sent it: {unknown:?}");
    assert_eq!(came.iter().filter(|&&number| number == 1_000_000).count(), 1);
    assert!(keys.values().all(|numbers| numbers.last() == Some(&1_000_000)), "every lane goes on");
    producer.blocking_close(LONG).unwrap();
}
