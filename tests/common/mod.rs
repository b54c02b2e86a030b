//! What several test programs need: brokers, records read back, lines to send, the program as a child process.
//!
//! It assumes that `scripts/test` (or somebody by hand, with `scripts/services`) started the servers and set
//! `OUTLAST_TEST_KAFKA` and `OUTLAST_TEST_REDIS`. A test whose server is missing fails, it is never skipped. A test
//! that kills its broker brings up one of its own ([`KafkaServer`], [`RedisServer`]).

// Each test program compiles all of this and uses some of it.
#![allow(dead_code, unused_imports)]

use std::time::{Duration, Instant};

#[cfg(feature = "cli")]
mod child;
#[cfg(target_os = "linux")]
pub mod disk;
#[cfg(feature = "kafka")]
pub mod kafka;
mod lines;
mod ports;
mod proxy;
#[cfg(feature = "redis")]
pub mod redis;
pub mod resp;
mod servers;

#[cfg(feature = "cli")]
pub use child::{Acks, Child, Output, run, run_unread, run_with};
#[cfg(target_os = "linux")]
pub use disk::Disk;
pub use lines::{first_field, input_lines, log_lines};
pub use ports::claim_port;
pub use proxy::Proxy;
pub use resp::RespServer;
pub use servers::{Kafka3Server, KafkaServer, RedisServer, kafka_address, limit_client, redis_address};

/// A name that no other test, and no earlier run against the same servers, has used.
pub fn unique(name: &str) -> String {
    format!("{name}-{:012x}", fastrand::u64(..) >> 16)
}

/// The seed of a randomised test: `OUTLAST_TEST_SEED`, or a fresh one. Printed, so that a failure can be replayed.
pub fn seed(test: &str) -> u64 {
    let seed = match std::env::var("OUTLAST_TEST_SEED") {
        Ok(text) => text.parse().expect("OUTLAST_TEST_SEED is a number"),
        Err(_) => fastrand::u64(..),
    };
    println!("{test}: OUTLAST_TEST_SEED={seed}");
    seed
}

/// Waits until `done` says so, looking every few milliseconds; fails the test, naming `what`, after `limit`.
#[track_caller]
pub fn wait_until(what: &str, limit: Duration, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < limit, "waited {limit:?} in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
