//! More ranges of settled messages than the log may remember: what is blocked and what is not lie mixed (DESIGN.md 3.3).

#![cfg(feature = "testing")]

mod shows;

use std::time::{Duration, Instant};

use outlast::testing::Broker;
use outlast::{Config, OnPoison, Producer};
use shows::{LONG, builder_from, in_order, numbered};

/// Settlements that found no room in the log filled the redelivery window, and from then on nothing was handed over,
/// not even what would have closed the gaps: the drainer stood still for ever, with the broker up and everything
/// accepted.
#[test]
fn a_log_as_scattered_as_it_may_be_drains_once_nothing_is_blocked() {
    let (dir, broker) = (tempfile::TempDir::new().unwrap(), Broker::new());
    let config = Config {
        window_messages: 100,
        redelivery_window: 300,
        backoff_cap: Duration::from_secs(1),
        ..Config::default()
    };
    // 512 ranges at most.
    let built = builder_from(Producer::builder().config(config), dir.path(), &broker).on_poison(OnPoison::Hold);
    let producer = built.segment_bytes(64 << 10).max_message_bytes(8 << 10).open_blocking().unwrap();
    let lanes = || (0..20).map(|lane| format!("<{lane}>"));
    lanes().for_each(|lane| broker.reject_message(lane));
    let messages = (0..120).flat_map(|number| lanes().map(move |lane| numbered("t", &lane, number)));
    pollster::block_on(producer.send_all(messages)).unwrap();
    // Every second lane: nothing they leave behind is adjacent.
    lanes().step_by(2).for_each(|lane| broker.accept_message(lane));
    let begun = Instant::now();
    while broker.delivered().len() < 10 * 120 && begun.elapsed() < Duration::from_secs(5) {
        std::thread::sleep(Duration::from_millis(10));
    }
    println!("{} of 1200 delivered while the other lanes are blocked", broker.delivered().len());
    lanes().for_each(|lane| broker.accept_message(lane));
    let drained = producer.blocking_drained(LONG);
    assert!(drained.is_ok(), "{drained:?}: {:?}", producer.health());
    assert!(in_order(&broker.delivered()).values().all(|numbers| numbers.len() == 120));
    producer.blocking_close(LONG).unwrap();
}
