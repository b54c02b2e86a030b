//! Waits for a drain that nobody waits for any more leave nothing behind.
#![cfg(all(feature = "redis", target_os = "linux"))]

mod common;

use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use outlast::{Message, Producer};

const LONG: Duration = Duration::from_secs(3600);
const SOON: Duration = Duration::from_secs(20);

/// Threads that wait in the place of a future.
fn waiting() -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let names = tasks.filter_map(|task| std::fs::read_to_string(task.unwrap().path().join("comm")).ok());
    names.filter(|name| name.trim() == "outlast-wait").count()
}

/// The thread of a future of `drained` stayed until its timeout: when the future was dropped, and when the producer was
/// closed with something pending.
#[test]
fn a_drain_that_cannot_come_or_that_nobody_waits_for_keeps_no_thread() {
    let dir = tempfile::tempdir().unwrap();
    // Port 1 is privileged and unused.
    let producer = Producer::builder().outbox(dir.path().join("outbox")).url("redis://127.0.0.1:1");
    let producer = producer.segment_bytes(8 << 20).open_blocking().unwrap();
    producer.blocking_send(Message::to("orders").payload("one")).unwrap();

    for _ in 0..50 {
        let mut drained = pin!(producer.drained(LONG));
        assert!(drained.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    }
    common::wait_until("the threads of dropped futures end", SOON, || waiting() == 0);

    let mut drained = pin!(producer.drained(LONG));
    let mut look = || drained.as_mut().poll(&mut Context::from_waker(Waker::noop()));
    assert!(look().is_pending());
    assert_eq!(producer.blocking_close(Duration::ZERO).unwrap().pending, 1);
    common::wait_until(
        "a closed producer is waited for by nobody",
        SOON,
        || matches!(look(), Poll::Ready(Err(waiting)) if waiting.pending == 1),
    );
    common::wait_until("its thread ends", SOON, || waiting() == 0);
    assert_eq!(producer.blocking_drained(LONG).unwrap_err().pending, 1);
}
