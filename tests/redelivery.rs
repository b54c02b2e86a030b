//! What a kill may repeat is bounded by the redelivery window, whatever the log does (DESIGN.md 1.4).

#![cfg(feature = "testing")]

mod shows;
mod turnstile;

use std::sync::Arc;
use std::time::Duration;

use outlast::testing::Broker;
use outlast::{Config, Producer};
use shows::{LONG, builder_from, duplicates, in_order, numbered};
use turnstile::{Slow, Turnstile};

/// Messages in flight, plus delivered and not recorded.
const REDELIVERY: usize = 200;

/// The oldest message went even when the redelivery window was full, and once it was delivered the next one was the
/// oldest: while the log recorded nothing, because it was full or its disk slow, the whole backlog went, and a kill
/// repeated all of it. After two kills 842 messages had come twice, where the window was 200.
#[test]
fn while_the_log_records_nothing_no_more_than_a_redelivery_window_is_delivered() {
    let (dir, broker, turnstile) = (tempfile::TempDir::new().unwrap(), Broker::new(), Turnstile::default());
    let config = Config { window_messages: 64, redelivery_window: REDELIVERY, ..Config::default() };
    let producer = builder_from(Producer::builder().config(config), dir.path(), &broker)
        .storage(Arc::new(Slow(turnstile.clone())))
        .open_blocking()
        .unwrap();
    broker.down();
    let messages = (0..250).flat_map(|number| (0..8).map(move |lane| numbered("t", &format!("<{lane}>"), number)));
    pollster::block_on(producer.send_all(messages)).unwrap();

    turnstile.shut(true);
    broker.up();
    assert!(broker.wait_for(REDELIVERY, LONG), "only {} were delivered", broker.delivered().len());
    turnstile.wait_until_held();
    // Nothing tells that no more are on their way; where the oldest always goes, they are there at once.
    std::thread::sleep(Duration::from_millis(300));
    let unrecorded = broker.delivered().len();
    assert!(unrecorded <= REDELIVERY, "{unrecorded} were delivered and not recorded; the window is {REDELIVERY}");

    turnstile.shut(false);
    producer.blocking_drained(LONG).unwrap();
    assert_eq!(duplicates(&broker.delivered()), 0);
    assert!(in_order(&broker.delivered()).values().all(|numbers| numbers.len() == 250));
    producer.blocking_close(LONG).unwrap();
}
