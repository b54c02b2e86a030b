//! What a Redis that refuses something is taken to mean: the message alone, or the whole stream. Whole producers, against
//! real servers with small limits, and against a scripted one that is older than any that can be had.
#![cfg(all(feature = "redis", feature = "testing"))]

mod common;
mod redis_support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use common::{RespServer, wait_until};
use outlast::transport::redis::RedisConfig;
use outlast::{Builder, Config, Message, Mode, OnPoison, Producer};
use redis_support::{PATIENCE, Server, command, connect, contents, shared_server, unused};
use tempfile::TempDir;

/// A producer whose pauses are short: what a test waits for is what an operator does.
fn builder(directory: &TempDir, url: &str) -> Builder {
    let config = Config { backoff_cap: Duration::from_millis(500), ..Config::default() };
    Producer::builder().config(config).outbox(directory.path().join("outbox")).url(url).max_message_bytes(4 << 20)
}

fn send(producer: &Producer, stream: &str, payload: impl Into<Vec<u8>>) {
    producer.blocking_send(Message::to(stream).payload(payload.into())).expect("it is accepted");
}

/// The payloads of a stream, in order; of large ones the first byte.
fn payloads(config: &RedisConfig, stream: &str) -> Vec<String> {
    let entries = contents(config, stream).unwrap_or_default();
    let text = |payload: &[u8]| String::from_utf8_lossy(&payload[..payload.len().min(8)]).into_owned();
    entries.iter().map(|entry| text(entry.payload.as_deref().unwrap_or_default())).collect()
}

const LARGE: usize = 2 << 20;

/// A message over which the connection is closed is tried for some 11 s, and there may be three of a stream.
const JUDGED: Duration = PATIENCE.saturating_mul(3);

/// A user who may not ask for the server's limits, so that they have to be found out.
fn restricted(server: &Server) -> String {
    server.run(&["ACL", "SETUSER", "app", "on", ">secret", "~*", "+@all", "-config", "-info"]);
    format!("redis://app:secret@127.0.0.1:{}", server.port)
}

/// Redis says "invalid bulk length" and closes the connection. That was taken for a fault of the whole stream, which was held
/// for ever; and when the reply was lost with the connection, of the whole server.
#[test]
fn a_message_larger_than_the_server_reads_is_a_dead_letter_and_its_neighbours_go_on() {
    for permitted in [true, false] {
        let server = Server::start(&["--proto-max-bulk-len", "1mb"]);
        let url = if permitted { format!("redis://127.0.0.1:{}", server.port) } else { restricted(&server) };
        let directory = TempDir::new().unwrap();
        let producer = builder(&directory, &url).open_blocking().unwrap();
        let mut expected = Vec::new();
        for number in 0..10 {
            if number % 4 == 1 {
                send(&producer, "s", vec![b'x'; LARGE]);
            }
            send(&producer, "s", format!("n{number}"));
            send(&producer, "t", format!("n{number}"));
            expected.push(format!("n{number}"));
        }
        producer.blocking_drained(JUDGED).unwrap_or_else(|_| panic!("{:?}", producer.health()));
        assert_eq!(producer.stats().dead, 3, "{:?}", producer.health());
        producer.blocking_close(PATIENCE).unwrap();
        for stream in ["s", "t"] {
            let mut arrived = payloads(&server.config(), stream);
            // What was on the connection when the server closed it may have come twice.
            arrived.dedup();
            assert_eq!(arrived, expected, "{stream}, permitted to ask: {permitted}");
        }
    }
}

/// `client-query-buffer-limit`, `maxmemory-clients` and proxies close the connection without a word.
#[test]
fn a_message_over_which_the_connection_is_closed_without_a_word_is_judged_alone() {
    let server = Server::start(&["--client-query-buffer-limit", "1mb"]);
    let (url, directory) = (restricted(&server), TempDir::new().unwrap());
    let producer = builder(&directory, &url).open_blocking().unwrap();
    send(&producer, "s", "before");
    send(&producer, "s", vec![b'x'; LARGE]);
    send(&producer, "s", "after");
    send(&producer, "t", "beside");
    wait_until("what is beside it is delivered", PATIENCE, || payloads(&server.config(), "t").len() == 1);
    producer.blocking_drained(JUDGED).unwrap_or_else(|_| panic!("{:?}", producer.health()));
    assert_eq!(producer.stats().dead, 1);
    let mut arrived = payloads(&server.config(), "s");
    arrived.dedup();
    assert_eq!(arrived, ["before", "after"]);
    producer.blocking_close(PATIENCE).unwrap();
}

#[test]
fn a_message_too_large_is_held_where_that_is_asked_for_and_delivered_once_the_limit_is_raised() {
    let server = Server::start(&["--proto-max-bulk-len", "1mb"]);
    let (url, directory) = (format!("redis://127.0.0.1:{}", server.port), TempDir::new().unwrap());
    let producer = builder(&directory, &url).on_poison(OnPoison::Hold).open_blocking().unwrap();
    send(&producer, "s", vec![b'x'; LARGE]);
    send(&producer, "s", "behind");
    send(&producer, "t", "beside");
    let held = || producer.health().alerts.iter().any(|alert| alert.contains("proto-max-bulk-len"));
    wait_until("health says what to raise", PATIENCE, held);
    assert!(payloads(&server.config(), "s").is_empty() && producer.stats().dead == 0);
    assert_eq!(payloads(&server.config(), "t"), ["beside"]);
    server.run(&["CONFIG", "SET", "proto-max-bulk-len", "512mb"]);
    producer.blocking_drained(PATIENCE).unwrap_or_else(|_| panic!("{:?}", producer.health()));
    assert_eq!(payloads(&server.config(), "s"), ["xxxxxxxx", "behind"]);
    producer.blocking_close(PATIENCE).unwrap();
}

/// The queue of a transaction counts against the limit, too: no message is at fault for that.
#[test]
fn batches_that_a_small_query_buffer_cannot_hold_get_smaller_and_no_message_is_lost_or_judged() {
    let server = Server::start(&["--client-query-buffer-limit", "1mb"]);
    let (url, directory) = (restricted(&server), TempDir::new().unwrap());
    let producer = builder(&directory, &url).mode(Mode::WriteAhead).open_blocking().unwrap();
    let message = |number: usize| Message::to("s").payload(format!("{number:08}{}", "x".repeat(8000)));
    producer.blocking_send_all((0..1000).map(message)).map_err(|_| "not accepted").unwrap();
    producer.blocking_drained(PATIENCE).unwrap_or_else(|_| panic!("{:?}", producer.health()));
    assert_eq!(producer.stats().dead, 0);
    producer.blocking_close(PATIENCE).unwrap();
    let arrived = payloads(&server.config(), "s");
    let mut first = arrived.clone();
    let mut seen = std::collections::HashSet::new();
    first.retain(|payload| seen.insert(payload.clone()));
    assert_eq!(first, (0..1000).map(|number| format!("{number:08}")).collect::<Vec<_>>());
}

/// `minid=` with a Redis before 6.2: the syntax error was taken for a verdict on each message, and buried it.
#[test]
fn an_option_that_the_server_does_not_know_holds_the_stream_and_is_named() {
    let (upgraded, appended) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let (is_new, counter) = (upgraded.clone(), appended.clone());
    let server = RespServer::start("6.0.16", move |words| {
        if words.iter().any(|word| word == b"MINID") && !is_new.load(Ordering::Relaxed) {
            return b"-ERR syntax error\r\n".to_vec();
        }
        let number = counter.fetch_add(1, Ordering::Relaxed);
        common::resp::bulk(&format!("{number}-1"))
    });
    let directory = TempDir::new().unwrap();
    let url = format!("redis://{}?minid=5-0", server.address());
    let producer = builder(&directory, &url).open_blocking().unwrap();
    for number in 0..20 {
        send(&producer, "s", format!("n{number}"));
    }
    let named = |alert: &String| ["redis/s", "minid", "6.2", "6.0.16"].iter().all(|part| alert.contains(part));
    wait_until("health names the option", PATIENCE, || producer.health().alerts.iter().any(named));
    assert_eq!((producer.stats().dead, producer.stats().pending), (0, 20), "{:?}", producer.health());
    upgraded.store(true, Ordering::Relaxed);
    producer.blocking_drained(PATIENCE).unwrap_or_else(|_| panic!("{:?}", producer.health()));
    assert_eq!((producer.stats().dead, appended.load(Ordering::Relaxed)), (0, 20));
    producer.blocking_close(PATIENCE).unwrap();
}

/// Each message was buried by itself, a whole backlog for a fault that no message has.
#[test]
fn a_key_that_is_no_stream_holds_its_backlog_and_is_named_until_it_is_deleted() {
    let (config, stream, directory) = (shared_server(), unused("held"), TempDir::new().unwrap());
    command(&mut connect(&config), &["HSET", &stream, "a", "b"]);
    let url = format!("redis://{}:{}", config.host, config.port);
    let producer = builder(&directory, &url).open_blocking().unwrap();
    for number in 0..200 {
        send(&producer, &stream, format!("n{number}"));
    }
    let named = |alert: &String| alert.contains(&stream) && alert.contains("it is a hash");
    wait_until("health says what the key is", PATIENCE, || producer.health().alerts.iter().any(named));
    assert_eq!((producer.stats().dead, producer.stats().pending), (0, 200), "{:?}", producer.health());
    command(&mut connect(&config), &["RENAME", &stream, &format!("{stream}-old")]);
    producer.blocking_drained(PATIENCE).unwrap_or_else(|_| panic!("{:?}", producer.health()));
    assert_eq!(payloads(&config, &stream), (0..200).map(|number| format!("n{number}")).collect::<Vec<_>>());
    producer.blocking_close(PATIENCE).unwrap();
}
