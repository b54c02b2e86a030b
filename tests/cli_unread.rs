//! Nobody reads what the program says: it does its work all the same, and its exit code is what it would have been.
#![cfg(all(feature = "cli", feature = "kafka", feature = "redis"))]

mod common;

use std::path::Path;
use std::time::Duration;

use common::{Acks, Child, RedisServer, run, run_unread, unique};

/// For one thing to happen.
const LIMIT: Duration = Duration::from_secs(60);
/// A broker that is not there: port 1 is privileged and unused.
const NOBODY: &str = "redis://127.0.0.1:1?stream=orders";
const PAYLOAD: &[u8] = b"something to find it by";

/// A warning that could not be written was told of by a panic, and the thread that delivers was gone.
#[test]
fn a_broken_standard_error_stops_nothing() {
    let (dir, server, stream) = (tempfile::tempdir().unwrap(), RedisServer::up(), unique("unheard"));
    let (outbox, acks) = (dir.path().join("outbox"), Acks(dir.path().join("acks")));
    let url = format!("redis://{}?stream={stream}", server.address());
    server.kill();
    let words = ["produce", "--to", &url, "--outbox", outbox.to_str().unwrap(), "--ack-log", acks.0.to_str().unwrap()];
    let mut child = Child::spawn_unheard(&words, dir.path());
    child.feed(&[b"one".to_vec(), b"two".to_vec()]);
    acks.wait_for(2, &mut child, LIMIT);
    server.start();
    child.end_input();
    assert_eq!(child.wait(LIMIT).code(), Some(0));
    assert_eq!(common::redis::read_all(server.address(), &stream).len(), 2);
}

#[test]
fn a_signal_is_heeded_though_nobody_hears_that_it_came() {
    let dir = tempfile::tempdir().unwrap();
    let (outbox, acks) = (dir.path().join("outbox"), Acks(dir.path().join("acks")));
    let words =
        ["produce", "--to", NOBODY, "--outbox", outbox.to_str().unwrap(), "--ack-log", acks.0.to_str().unwrap()];
    let mut child = Child::spawn_unheard(&words, dir.path());
    child.feed(&[b"one".to_vec()]);
    acks.wait_for(1, &mut child, LIMIT);
    child.terminate();
    assert_eq!(child.wait(LIMIT).code(), Some(1));
}

/// It passed for success that nobody read what had gone wrong.
#[test]
fn a_broken_standard_output_changes_no_exit_code() {
    let dir = tempfile::tempdir().unwrap();
    let outbox = dir.path().join("outbox");
    let text = outbox.to_str().unwrap();
    let produce = ["produce", "--to", NOBODY, "--outbox", text, "--drain-timeout", "0s", "--json"];
    let (code, said) = run_unread(&produce, &[PAYLOAD, b"\ntwo\n"].concat());
    assert_eq!(code, Some(3), "{said}");
    assert!(said.contains("2 messages"), "{said}");

    let check = ["check", "--outbox", text];
    assert_eq!(run_unread(&check, b"").0, Some(0));
    damage(&outbox);
    assert_eq!(run(&check, b"").code, Some(1));
    assert_eq!(run_unread(&check, b"").0, Some(1));
}

/// A byte of a stored message is another.
fn damage(outbox: &Path) {
    for entry in std::fs::read_dir(outbox.join("wal")).unwrap() {
        let path = entry.unwrap().path();
        let mut bytes = std::fs::read(&path).unwrap();
        if let Some(at) = bytes.windows(PAYLOAD.len()).position(|window| window == PAYLOAD) {
            bytes[at] ^= 1;
            std::fs::write(&path, bytes).unwrap();
        }
    }
}
