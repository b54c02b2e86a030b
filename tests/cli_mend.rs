//! What an operator sees and does: messages wait for a reason, the reason is told, mended, and they are delivered.
#![cfg(all(feature = "cli", feature = "kafka", feature = "redis"))]

mod common;

use std::path::Path;
use std::time::{Duration, Instant};

use common::{KafkaServer, RedisServer, RespServer, kafka_address, redis_address, run, run_with, unique};

/// What a run may take while the broker hangs: 1 s of `--drain-timeout`, 1 s of grace and 3 s for the client's threads, and
/// more than as much again for a busy machine.
const BOUND: Duration = Duration::from_secs(14);

/// Runs a command on the outbox in `dir`.
fn outlast(dir: &Path, words: &[&str], input: &[u8]) -> common::Output {
    outlast_with(dir, words, input, &[])
}

fn outlast_with(dir: &Path, words: &[&str], input: &[u8], environment: &[(&str, &str)]) -> common::Output {
    let outbox = dir.join("outbox");
    let args: Vec<&str> =
        words.iter().copied().chain(["--outbox", outbox.to_str().expect("a path in UTF-8")]).collect();
    run_with(&args, input, environment)
}

#[track_caller]
fn assert_code(output: &common::Output, code: i32) {
    assert_eq!(output.code, Some(code), "stdout:\n{}\nstderr:\n{}", output.stdout, output.stderr);
}

/// `status` in words, which must name `reason`.
#[track_caller]
fn assert_status(dir: &Path, reason: &str) {
    let status = outlast(dir, &["status"], b"");
    assert_code(&status, 0);
    assert!(status.stdout.to_lowercase().contains(reason), "status does not say {reason:?}:\n{}", status.stdout);
}

#[test]
fn messages_for_a_broker_that_is_not_there_wait_and_are_delivered_by_drain() {
    let dir = tempfile::tempdir().unwrap();
    let topic = unique("later");
    common::kafka::create_topic(&kafka_address(), &topic, 1);
    let nobody = format!("kafka://127.0.0.1:1/{topic}");
    let produced =
        outlast(dir.path(), &["produce", "--to", &nobody, "--key", "field:1", "--drain-timeout", "1s"], b"k 1\nk 2\n");
    assert_code(&produced, 3);
    assert!(produced.stderr.contains("outlast drain"), "it does not say how to go on: {}", produced.stderr);
    assert_status(dir.path(), "pending: 2 messages");

    let peek = outlast(dir.path(), &["peek", "--json"], b"");
    assert_code(&peek, 0);
    let messages: Vec<serde_json::Value> =
        peek.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(messages.len(), 2);
    assert_eq!((&messages[0]["key"], &messages[0]["payload"]), (&"k".into(), &"k 1".into()));
    assert_eq!(outlast(dir.path(), &["peek", "--limit", "1"], b"").stdout.lines().count(), 1);

    let unable = outlast(dir.path(), &["drain", "--to", &nobody, "--timeout", "1s"], b"");
    assert_code(&unable, 3);
    let drained = outlast(dir.path(), &["drain", "--to", &format!("kafka://{}", kafka_address())], b"");
    assert_code(&drained, 0);
    assert!(drained.stderr.contains("2 messages"), "it does not say what was pending: {}", drained.stderr);
    let records = common::kafka::read_all(&kafka_address(), &topic);
    let payloads: Vec<&[u8]> = records.iter().filter_map(|record| record.payload.as_deref()).collect();
    assert_eq!(payloads, [b"k 1", b"k 2"]);
    let ids: Vec<String> = records.iter().map(|record| record.id.unwrap().to_string()).collect();
    assert_eq!(ids, messages.iter().map(|message| message["id"].as_str().unwrap()).collect::<Vec<_>>());
    assert_eq!(outlast(dir.path(), &["peek"], b"").stdout, "");
}

#[test]
fn messages_for_an_unknown_topic_wait_until_it_is_created() {
    let dir = tempfile::tempdir().unwrap();
    let topic = unique("unknown");
    let url = format!("kafka://{}/{topic}", kafka_address());
    let produced = outlast(dir.path(), &["produce", "--to", &url, "--drain-timeout", "5s"], b"one\n");
    assert_code(&produced, 3);
    assert_status(dir.path(), "unknown");
    common::kafka::create_topic(&kafka_address(), &topic, 1);
    assert_code(&outlast(dir.path(), &["drain", "--to", &url, "--timeout", "60s"], b""), 0);
    assert_eq!(common::kafka::read_all(&kafka_address(), &topic).len(), 1);
}

#[test]
fn messages_behind_a_wrong_password_wait_until_the_right_one_is_given() {
    const WRONG: &str = "wrongcanary";
    const RIGHT: &str = "rightcanary";
    let dir = tempfile::tempdir().unwrap();
    let server = RedisServer::up();
    common::redis::command(server.address(), &["ACL", "SETUSER", "app", "on", &format!(">{RIGHT}"), "~*", "+@all"]);
    let url = format!("redis://app@{}?stream=orders", server.address());
    let wrong = [("OUTLAST_PASSWORD", WRONG), ("RUST_LOG", "trace")];
    let produced = outlast_with(dir.path(), &["produce", "--to", &url, "--drain-timeout", "2s"], b"one\n", &wrong);
    assert_code(&produced, 3);
    assert!(!produced.stderr.contains(WRONG), "the password shows: {}", produced.stderr);
    assert_status(dir.path(), "password");

    let file = dir.path().join("password");
    std::fs::write(&file, format!("{RIGHT}\n")).unwrap();
    let words = ["drain", "--to", &url, "--timeout", "60s", "--password-file", file.to_str().unwrap()];
    let drained = outlast_with(dir.path(), &words, b"", &wrong);
    assert_code(&drained, 0);
    assert!(!drained.stderr.contains(RIGHT), "the password shows: {}", drained.stderr);
    assert_eq!(common::redis::read_all(server.address(), "orders").len(), 1);
}

#[test]
fn a_message_the_broker_will_never_take_is_a_dead_letter_until_it_is_requeued() {
    let dir = tempfile::tempdir().unwrap();
    let stream = unique("dead");
    // A server that refuses what the next one takes.
    let url = format!("redis://{}?stream={stream}", RespServer::refusing().address());
    let produced = outlast(dir.path(), &["produce", "--to", &url, "--key", "field:1"], b"k 1\nk 2\nk 3\n");
    assert_code(&produced, 3);
    assert!(produced.stderr.contains("outlast dead list"), "{}", produced.stderr);

    let listed = outlast(dir.path(), &["dead", "list", "--json"], b"");
    assert_code(&listed, 0);
    let dead: Vec<serde_json::Value> = listed.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(dead.len(), 3, "{}", listed.stdout);
    assert!(dead.iter().all(|letter| letter["reason"].as_str().unwrap().contains("too large")), "{}", listed.stdout);
    let number = dead[0]["number"].to_string();
    let shown = outlast(dir.path(), &["dead", "show", &number], b"");
    assert!(shown.code == Some(0) && shown.stdout.contains("k 1"), "{shown:?}");
    assert_code(&outlast(dir.path(), &["dead", "show", "999999"], b""), 1);
    assert_status(dir.path(), "dead letters: 3");

    let last = dead[2]["number"].to_string();
    assert_code(&outlast(dir.path(), &["dead", "purge", &last], b""), 0);
    assert_code(&outlast(dir.path(), &["dead", "purge", &last], b""), 1);
    assert_code(&outlast(dir.path(), &["dead", "requeue", "--all"], b""), 0);
    let url = format!("redis://{}?stream={stream}", redis_address());
    assert_code(&outlast(dir.path(), &["drain", "--to", &url, "--timeout", "60s"], b""), 0);
    let entries = common::redis::read_all(&redis_address(), &stream);
    let arrived: Vec<&[u8]> = entries.iter().filter_map(|entry| entry.field("payload")).collect();
    assert_eq!(arrived, [b"k 1", b"k 2"]);
    let ids: Vec<String> = entries.iter().map(|entry| entry.message_id().unwrap().to_string()).collect();
    assert_eq!(ids, [dead[0]["id"].as_str().unwrap(), dead[1]["id"].as_str().unwrap()], "the id stays the same");
}

#[test]
fn a_broker_that_stops_answering_holds_nobody_up_for_long() {
    let dir = tempfile::tempdir().unwrap();
    let server = KafkaServer::up();
    common::kafka::create_topic(server.address(), "orders", 1);
    let url = format!("kafka://{}/orders", server.address());
    server.stop();
    let begun = Instant::now();
    let produced =
        outlast(dir.path(), &["produce", "--to", &url, "--key", "field:1", "--drain-timeout", "1s"], b"k 1\nk 2\n");
    let took = begun.elapsed();
    assert_code(&produced, 3);
    assert!(took < BOUND, "the program took {took:?} beside a broker that hangs");
    server.cont();
    assert_code(&outlast(dir.path(), &["drain", "--to", &url, "--timeout", "60s"], b""), 0);
    let records = common::kafka::read_all(server.address(), "orders");
    let mut payloads: Vec<&[u8]> = records.iter().filter_map(|record| record.payload.as_deref()).collect();
    // A request the broker had received before it stopped may land as well.
    payloads.dedup();
    assert_eq!(payloads, [b"k 1", b"k 2"]);
}

#[test]
fn help_and_version_are_no_errors() {
    for words in [&["--help"][..], &["--version"], &["produce", "--help"], &["dead", "requeue", "--help"]] {
        let output = run(words, b"");
        assert!(output.code == Some(0) && !output.stdout.is_empty(), "{words:?}: {output:?}");
    }
}
