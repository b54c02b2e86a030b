//! A delivery that is reported while the log still writes the message settles nothing before the disk has the message
//! (DESIGN.md 3.3): a settlement in the log names only LSNs that the log knew to be durable when it was written.

#![cfg(feature = "testing")]

mod by_hand;
mod shows;
mod turnstile;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use by_hand::Record;
use outlast::testing::Broker;
use outlast::{Message, Mode, Producer, RouteConfig};
use shows::{LONG, builder_from};
use turnstile::{Slow, Turnstile};

#[track_caller]
fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + LONG;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::yield_now();
    }
}

/// Fails if a settlement names an LSN past what its frame knew to be durable. Returns how many LSNs were settled.
fn assert_settled_late(outbox: &Path) -> u64 {
    let mut settled = 0;
    for entry in std::fs::read_dir(outbox.join("wal")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "seg") || path.to_string_lossy().contains("free-") {
            continue;
        }
        for frame in by_hand::segment(&std::fs::read(&path).unwrap()).frames {
            let ranges = frame.records.iter().filter_map(|record| match record {
                Record::Settled { ranges, .. } => Some(ranges),
                _ => None,
            });
            for &(first, last) in ranges.flatten() {
                assert!(last <= frame.durable, "LSN {last} is settled in a frame that knows of {}", frame.durable);
                settled += last - first + 1;
            }
        }
    }
    settled
}

#[test]
fn a_delivery_reported_during_the_append_is_settled_after_the_sync() {
    let (dir, broker, turnstile) = (tempfile::TempDir::new().unwrap(), Broker::new(), Turnstile::default());
    let ahead = RouteConfig { destination: "ahead".into(), mode: Some(Mode::WriteAhead), ..RouteConfig::default() };
    let producer = builder_from(Producer::builder(), dir.path(), &broker)
        .segment_bytes(64 << 10)
        .max_message_bytes(8 << 10)
        .first_attempt(Duration::from_millis(50))
        .route(ahead)
        .storage(Arc::new(Slow(turnstile.clone())))
        .open_blocking()
        .unwrap();
    let stored = |payload: Vec<u8>| producer.send(Message::to("ahead").key("w").payload(payload));
    pollster::block_on(stored(vec![b'0'])).unwrap();
    producer.blocking_drained(LONG).unwrap();

    broker.pause();
    turnstile.shut(true);
    let held = stored(vec![b'1']);
    turnstile.wait_until_held();
    // A group of its own, which the settlement could ride in, lies before the late message's.
    let fillers: Vec<_> = (0..4).map(|_| stored(vec![b'x'; 5 << 10])).collect();
    let late = producer.send(Message::to("direct").key("a").payload("late"));
    wait_for("the late message is given to the log", || producer.stats().pending == 6);
    broker.resume();
    assert!(pollster::block_on(late).unwrap().is_delivered());
    // Nothing tells that no settlement is on its way to the log; one that is planted gets there at once.
    std::thread::sleep(Duration::from_millis(100));
    turnstile.shut(false);
    for future in std::iter::once(held).chain(fillers) {
        pollster::block_on(future).unwrap();
    }
    producer.blocking_drained(LONG).unwrap();
    producer.blocking_close(LONG).unwrap();
    drop(producer);
    assert!(assert_settled_late(&dir.path().join("outbox")) >= 6, "all were settled");
}

#[cfg(feature = "planted")]
#[test]
fn planted_settle_before_sync_is_caught() {
    let test = "a_delivery_reported_during_the_append_is_settled_after_the_sync";
    shows::assert_caught(test, "settle-before-sync", 1, &["is settled in a frame that knows of"]);
}
