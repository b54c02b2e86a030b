//! TLS, passwords and permissions, on a broker of the test's own that asks for all three.

#![cfg(all(feature = "kafka", feature = "tls"))]

mod common;
mod guarded;
mod kafka_support;

use std::time::Duration;

use common::kafka;
use guarded::{Guarded, SECRET};
use kafka_support::{Rig, Said, is};
use outlast::Message;
use outlast::transport::{Class, Failure, Scope, Transport};

/// What is told when a broker that answers does not let us in.
fn told(rig: &Rig) -> Failure {
    let Said::Down(failure) = rig.until(|said| matches!(said, Said::Down(failure) if failure.class == Class::Hold))
    else {
        unreachable!()
    };
    assert!(is(&failure, Class::Hold, Scope::Transport), "{failure:?}");
    assert!(!failure.reason.contains(SECRET), "{failure}");
    (*failure).clone()
}

#[test]
fn who_is_not_let_in_is_told_why_and_loses_nothing() {
    let broker = Guarded::up();
    kafka::create_topic(&broker.open_address(), "orders", 1);
    let order = || Message::to("orders").key("a").payload("1");

    let alice = Rig::with(broker.config("localhost", "ca.pem", "alice", SECRET));
    alice.submit(order());
    alice.delivered(1);

    let mallory = Rig::with(broker.config("localhost", "ca.pem", "alice", "canary-guess"));
    mallory.submit(order());
    let failure = told(&mallory);
    assert!(failure.reason.contains("authentication failed"), "{failure}");
    assert!(!failure.reason.contains("canary"), "{failure}");

    let misled = Rig::with(broker.config("localhost", "other.pem", "alice", SECRET));
    misled.submit(order());
    let failure = told(&misled);
    assert!(failure.reason.contains("certificate"), "{failure}");

    let elsewhere = Rig::with(broker.config("127.0.0.1", "ca.pem", "alice", SECRET));
    elsewhere.submit(order());
    let failure = told(&elsewhere);
    assert!(failure.reason.contains("TLS"), "{failure}");

    for (rig, who) in [(mallory, "wrong password"), (misled, "wrong CA"), (elsewhere, "wrong host")] {
        rig.transport.close(Duration::ZERO);
        let (_, failure, possibly) = rig.failure();
        assert!(!possibly, "{who}: owned until the end, and never sent: {failure}");
        rig.assert_silent();
    }

    // Bob may log in and nothing else.
    let bob = Rig::with(broker.config("localhost", "ca.pem", "bob", "bobs-own"));
    bob.submit(order());
    let (_, failure, possibly) = bob.failure();
    assert!(failure.class == Class::Hold && !possibly, "{failure:?}");
    assert!(failure.reason.contains("not authorized"), "{failure}");
}
