//! Lines of every kind through the program, to real brokers that are up.
#![cfg(all(feature = "cli", feature = "kafka", feature = "redis"))]

mod common;

use std::path::Path;
use std::time::Duration;

use common::{Acks, Child, kafka_address, log_lines, redis_address, run, seed, unique};

fn produce(url: &str, dir: &Path, more: &[&str], input: &[u8]) -> common::Output {
    let outbox = dir.join("outbox");
    let args: Vec<&str> = ["produce", "--to", url, "--outbox", outbox.to_str().expect("a path in UTF-8")]
        .into_iter()
        .chain(more.iter().copied())
        .collect();
    run(&args, input)
}

/// A topic of one partition, so that records are in one order; and its URL.
fn topic(name: &str) -> (String, String) {
    let topic = unique(name);
    common::kafka::create_topic(&kafka_address(), &topic, 1);
    let url = format!("kafka://{}/{topic}", kafka_address());
    (topic, url)
}

fn payloads(topic: &str) -> Vec<Vec<u8>> {
    let records = common::kafka::read_all(&kafka_address(), topic);
    records.into_iter().map(|record| record.payload.expect("a payload")).collect()
}

#[test]
fn bytes_arrive_unchanged_whatever_they_are() {
    let long = vec![b'x'; 1_000_000];
    let inputs: [(&[u8], Vec<&[u8]>); 6] = [
        (b"", vec![]),
        (b"\n", vec![b""]),
        (b"one\n\ntwo", vec![b"one", b"", b"two"]),
        (b"caf\xe9\r\n\0\x01\xff\n", vec![b"caf\xe9\r", b"\0\x01\xff"]),
        (b"  spaces and\ttabs  \n", vec![b"  spaces and\ttabs  "]),
        (&long, vec![&long]),
    ];
    for mode in ["direct", "write-ahead"] {
        for (input, expected) in &inputs {
            let dir = tempfile::tempdir().unwrap();
            let (topic, url) = topic("bytes");
            let output = produce(&url, dir.path(), &["--mode", mode], input);
            assert_eq!(output.code, Some(0), "{output:?}");
            let mut arrived = payloads(&topic);
            let mut expected: Vec<Vec<u8>> = expected.iter().map(|line| line.to_vec()).collect();
            // Without a key there is no order.
            arrived.sort();
            expected.sort();
            assert_eq!(arrived, expected, "{mode}: Kafka");

            let dir = tempfile::tempdir().unwrap();
            let stream = unique("bytes");
            let url = format!("redis://{}?stream={stream}", redis_address());
            let output = produce(&url, dir.path(), &["--mode", mode], input);
            assert_eq!(output.code, Some(0), "{output:?}");
            let entries = common::redis::read_all(&redis_address(), &stream);
            let mut arrived: Vec<Vec<u8>> = entries.iter().map(|e| e.field("payload").unwrap().to_vec()).collect();
            arrived.sort();
            assert_eq!(arrived, expected, "{mode}: Redis");
        }
    }
}

#[test]
fn lines_of_a_stream_keep_the_order_of_the_input() {
    let seed = seed("stream order");
    let lines = log_lines(seed, 3_000);
    let dir = tempfile::tempdir().unwrap();
    let stream = unique("order");
    let url = format!("redis://{}?stream={stream}", redis_address());
    let output = produce(&url, dir.path(), &["--key", "field:1"], &lines.join(&b'\n'));
    assert_eq!(output.code, Some(0), "{output:?}");
    let entries = common::redis::read_all(&redis_address(), &stream);
    let arrived: Vec<Vec<u8>> = entries.iter().map(|entry| entry.field("payload").unwrap().to_vec()).collect();
    assert!(arrived == lines, "seed {seed}: {} of {} lines arrived, or in another order", arrived.len(), lines.len());
}

#[test]
fn the_ack_log_has_each_line_once_and_in_order_and_counts_from_the_first_line_of_the_input() {
    let dir = tempfile::tempdir().unwrap();
    let (topic, url) = topic("acks");
    let acks = Acks(dir.path().join("acks"));
    let more = ["--key", "field:1", "--json", "--ack-log", acks.0.to_str().unwrap(), "--from-line", "4"];
    let output = produce(&url, dir.path(), &more, b"k 1\nk 2\nk 3\nk 4\nk 5\nk 6");
    assert_eq!(output.code, Some(0), "{output:?}");
    assert_eq!(acks.read(), [(4, true), (5, true), (6, true)]);
    assert_eq!(payloads(&topic), [b"k 4", b"k 5", b"k 6"]);
    let summary: serde_json::Value = serde_json::from_str(&output.stdout).unwrap();
    assert_eq!((&summary["delivered"], &summary["pending"]), (&3.into(), &0.into()), "{summary}");
    assert_eq!(summary["next_line"], serde_json::Value::Null);
}

#[test]
fn a_line_over_the_limit_stops_the_run_with_its_number_and_nothing_behind_it_is_sent() {
    let dir = tempfile::tempdir().unwrap();
    let (topic, url) = topic("limit");
    let mut input = b"k 1\nk 2\n".to_vec();
    input.extend(std::iter::repeat_n(b'x', 20 << 20));
    input.extend(b"\nk 4\n");
    let output = produce(&url, dir.path(), &["--key", "field:1"], &input);
    assert_eq!(output.code, Some(1), "{output:?}");
    assert!(output.stderr.contains("line 3:") && output.stderr.contains("--from-line 3"), "{}", output.stderr);
    assert_eq!(payloads(&topic), [b"k 1", b"k 2"]);

    let more = ["--key", "field:1", "--from-line", "3", "--on-bad-line", "skip"];
    let output = produce(&url, dir.path(), &more, &input);
    assert_eq!(output.code, Some(1), "something was not accepted: {output:?}");
    assert!(output.stderr.contains("line 3:"), "{}", output.stderr);
    assert_eq!(payloads(&topic), [b"k 1", b"k 2", b"k 4"]);
}

/// What is too long only together with its key was no bad line, but one that the producer refused: lines behind it were
/// sent, and logged, and whoever went on behind the last of those left it out.
#[test]
fn a_line_too_long_together_with_its_key_is_a_bad_line_and_nothing_behind_it_is_logged() {
    let mut input = b"k a\nk ".to_vec();
    input.extend(std::iter::repeat_n(b'x', (1 << 20) - 2));
    input.push(b'\n');
    input.extend(b"k z\n".repeat(50));
    for (bad, logged) in [("stop", vec![1]), ("skip", [1].into_iter().chain(3..=52).collect::<Vec<u64>>())] {
        let dir = tempfile::tempdir().unwrap();
        let (topic, url) = topic("with-key");
        let acks = Acks(dir.path().join("acks"));
        let more = ["--key", "field:1", "--on-bad-line", bad, "--ack-log", acks.0.to_str().unwrap()];
        let output = produce(&url, dir.path(), &more, &input);
        assert_eq!(output.code, Some(1), "{output:?}");
        assert!(output.stderr.contains("line 2: longer, with its key, than a message may be"), "{}", output.stderr);
        assert_eq!(output.stderr.contains("--from-line 2"), bad == "stop", "{}", output.stderr);
        assert_eq!(acks.read().into_iter().map(|(line, _)| line).collect::<Vec<_>>(), logged, "{bad}");
        assert_eq!(payloads(&topic).len(), logged.len(), "{bad}");
        if bad == "stop" {
            let again = produce(&url, dir.path(), &[&more[..], &["--from-line", "2"]].concat(), &input);
            assert!(!again.stderr.contains("has line"), "{}", again.stderr);
        }
    }
}

#[test]
fn a_line_that_is_no_json_or_lacks_its_key_stops_the_run_or_is_counted() {
    let input = b"{\"id\":1,\"n\":1}\n{\"id\":1,\"n\":2}\nnot json\n{\"n\":4}\n{\"id\":1,\"n\":5}\n";
    for (bad, code, expected) in [("stop", 1, 2), ("skip", 1, 3)] {
        let dir = tempfile::tempdir().unwrap();
        let (topic, url) = topic("json");
        let more = ["--format", "json", "--key", "json:/id", "--on-bad-line", bad];
        let output = produce(&url, dir.path(), &more, input);
        assert_eq!(output.code, Some(code), "{bad}: {output:?}");
        assert!(output.stderr.contains("line 3:"), "{}", output.stderr);
        assert_eq!(output.stderr.contains("line 4:"), bad == "skip", "{}", output.stderr);
        let records = common::kafka::read_all(&kafka_address(), &topic);
        assert_eq!(records.len(), expected, "{bad}");
        assert!(records.iter().all(|record| record.key.as_deref() == Some(b"1")));
    }
}

#[test]
fn sigterm_settles_what_was_read_and_says_how_to_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let (topic, url) = topic("sigterm");
    let acks = Acks(dir.path().join("acks"));
    let outbox = dir.path().join("outbox");
    let (log, outbox) = (acks.0.to_str().unwrap(), outbox.to_str().unwrap());
    let args = ["produce", "--key", "field:1", "--to", &url, "--outbox", outbox, "--ack-log", log];
    let mut child = Child::spawn(&args, dir.path());
    let lines: Vec<Vec<u8>> = (1..=100).map(|n| format!("k {n}").into_bytes()).collect();
    child.feed(&lines);
    acks.wait_for(100, &mut child, Duration::from_secs(60));
    child.terminate();
    assert_eq!(child.wait(Duration::from_secs(60)).code(), Some(1), "{}", child.printed());
    assert!(child.printed().contains("--from-line 101"), "{}", child.printed());
    assert_eq!(payloads(&topic), lines);
}
