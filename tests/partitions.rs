//! Partitions that hang, or come back together, and what of their messages nobody may forget.

#![cfg(feature = "testing")]

#[path = "shows/faulty.rs"]
mod faulty;
mod shows;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use faulty::{Faulty, open_on};
use outlast::testing::Broker;
use outlast::transport::{Class, Failure, Handover, Scope, Transport};
use outlast::{BlockedStats, Config, Message, Mode, Producer};
use shows::{LONG, numbered};
use tempfile::TempDir;

/// Attempts follow each other quickly.
fn quick() -> Config {
    let (base, cap) = (Duration::from_millis(1), Duration::from_millis(5));
    Config { backoff_base: base, backoff_cap: cap, first_attempt: Duration::from_millis(100), ..Config::default() }
}

/// Waits until so many blocks hold up so many messages.
fn wait_for_blocks(producer: &Producer, blocks: usize, waiting: u64) {
    let begun = Instant::now();
    let is_there = |blocked: &BlockedStats| blocked.blocks == blocks && blocked.waiting >= waiting;
    while !producer.stats().routes.iter().filter_map(|route| route.blocked.as_ref()).any(is_there) {
        assert!(begun.elapsed() < LONG, "{:?}", producer.stats());
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A message without a key goes wherever the partitioner says at the moment: of two partitions that come back together the
/// pass over what the one held up must not leave it to the other, whose pass may be past it. (Found by reading: whether the
/// two passes meet is up to the threads.)
#[test]
fn messages_that_may_go_anywhere_are_not_left_between_two_partitions() {
    let (dir, broker) = (TempDir::new().unwrap(), Broker::new());
    let faulty = Faulty {
        inner: broker.transport(),
        submit: Box::new(|inner: &dyn Transport, handover: Handover| inner.submit(handover)),
        partition: |_| Some(fastrand::i32(0..2)),
    };
    let producer = open_on(faulty, Config { redelivery_window: 20_000, ..quick() }, dir.path());
    let send = |count: usize| {
        let messages = (0..count).map(|number| Message::to("t").payload(format!("{number}")));
        producer.blocking_send_all(messages).unwrap();
    };
    // The drainer begins with one message at a time, and has to have seen that the broker takes more.
    broker.down();
    send(1_000);
    broker.up();
    producer.blocking_drained(LONG).unwrap();
    broker.pause();
    send(20);
    send(2_000);
    wait_for_blocks(&producer, 2, 2_000);
    broker.resume();
    assert!(producer.blocking_drained(LONG).is_ok(), "{:?} {:?}", producer.health(), producer.stats());
    producer.blocking_close(LONG).unwrap();
}

/// Of each partition one message was watched, the first one handed over. If that was acknowledged just before the
/// partition hung, full, no later one was: nobody noticed, and the drainer waited for room there, for ever.
#[test]
fn a_partition_that_hangs_full_holds_up_itself_alone() {
    const FIT: usize = 8;
    let (dir, broker) = (TempDir::new().unwrap(), Broker::new());
    broker.partitions(2);
    let (held, count) = (Mutex::new(Vec::new()), AtomicUsize::new(0));
    let submit = move |inner: &dyn Transport, handover: Handover| {
        if handover.message.message.chosen_partition() != Some(0) {
            return inner.submit(handover);
        }
        let mut held = held.lock().unwrap();
        held.push(handover);
        // As many as it may own are there: one is acknowledged, which makes room for one more, and that was all.
        if count.fetch_add(1, Ordering::Relaxed) + 1 == FIT {
            return inner.submit(held.remove(0));
        }
        Ok(())
    };
    let partition = |message: &outlast::Outgoing| message.message.chosen_partition();
    let faulty = Faulty { inner: broker.transport(), submit: Box::new(submit), partition };
    let producer = open_on(
        faulty,
        Config { mode: Mode::WriteAhead, first_attempt: Duration::from_secs(5), ..quick() },
        dir.path(),
    );
    let small = |number: u64| numbered("t", "small", number).partition(1);
    producer.blocking_send_all((0..1_000).map(small)).unwrap();
    producer.blocking_drained(LONG).unwrap();
    let large = (0..10).map(|_| Message::to("t").key("large").payload(vec![b'x'; 1_000_000]).partition(0));
    producer.blocking_send_all(large.chain((1_000..1_100).map(small))).unwrap();
    assert!(broker.wait_for(1_101, LONG), "{} delivered: {:?}", broker.delivered().len(), producer.stats());
    producer.blocking_close(Duration::ZERO).ok();
}

/// Each message of a key that failed in one batch counted as a failed try of the key: after two tries a dead letter told of
/// dozens, and the next failure of the key waited as if there had been as many.
#[test]
fn what_fails_together_is_one_failed_try() {
    let (dir, broker) = (TempDir::new().unwrap(), Broker::new());
    let (take, taken) = mpsc::channel::<Handover>();
    std::thread::spawn(move || {
        let refuse = |handover: Handover| {
            let failure = Failure::new(Class::Permanent, Scope::Lane, "refused (the test said so)");
            handover.ticket.failed(Arc::new(failure), false);
        };
        while let Ok(first) = taken.recv() {
            let mut together = vec![first];
            while let Ok(next) = taken.recv_timeout(Duration::from_millis(20)) {
                together.push(next);
            }
            together.into_iter().for_each(refuse);
        }
    });
    let submit = move |inner: &dyn Transport, handover: Handover| {
        if handover.message.message.destination() == "fine" {
            return inner.submit(handover);
        }
        take.send(handover).expect("the other thread takes it");
        Ok(())
    };
    let faulty = Faulty { inner: broker.transport(), submit: Box::new(submit), partition: |_| None };
    let producer = open_on(faulty, Config { mode: Mode::WriteAhead, first_attempt: LONG, ..quick() }, dir.path());
    // The drainer begins with one message at a time, and has to have seen that the broker takes more.
    pollster::block_on(producer.send_all((0..1_000).map(|number| numbered("fine", "a", number)))).unwrap();
    producer.blocking_drained(LONG).unwrap();
    let message = |number: u64| Message::to("t").key("a").payload(format!("{number}"));
    pollster::block_on(producer.send_all((0..20).map(message))).unwrap();
    producer.blocking_drained(LONG).unwrap();
    producer.blocking_close(LONG).unwrap();
    let letters = outlast::admin::dead_letters(dir.path().join("outbox")).unwrap();
    let attempts: Vec<u32> = letters.iter().map(|letter| letter.attempts).collect();
    assert!(attempts.len() == 20 && attempts.iter().all(|attempts| *attempts <= 2), "{attempts:?}");
}
