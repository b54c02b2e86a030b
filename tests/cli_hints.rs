//! What the program says where something is probably not as its user thinks: another broker than the messages were stored
//! for, a field that no line has, a line that the input does not have, a log that is there already; and how many it
//! delivered.
#![cfg(all(feature = "cli", feature = "kafka", feature = "redis"))]

mod common;

use std::path::Path;

use common::{Output, RespServer, redis_address, run, unique};

/// A broker that is not there: port 1 is privileged and unused.
const NOBODY: &str = "redis://127.0.0.1:1?stream=";

fn outlast(dir: &Path, words: &[&str], input: &[u8]) -> Output {
    let outbox = dir.join("outbox");
    let args: Vec<&str> = words.iter().copied().chain(["--outbox", outbox.to_str().expect("UTF-8")]).collect();
    run(&args, input)
}

#[track_caller]
fn says(output: &Output, code: i32, words: &[&str]) {
    let all = format!("{}{}", output.stdout, output.stderr);
    assert_eq!(output.code, Some(code), "{all}");
    assert!(words.iter().all(|word| all.contains(word)), "{words:?}: {all}");
}

fn store(dir: &Path, stream: &str, lines: usize) {
    let url = format!("{NOBODY}{stream}");
    let output = outlast(dir, &["produce", "--to", &url, "--drain-timeout", "0s"], &b"x\n".repeat(lines));
    says(&output, 3, &[&format!("outbox: {lines} message")]);
}

/// `drain` counted from what was pending when it had opened the outbox; some of that was delivered by then.
#[test]
fn drain_says_how_many_it_delivered() {
    for lines in [1, 700, 700, 700] {
        let (dir, stream) = (tempfile::tempdir().unwrap(), unique("count"));
        store(dir.path(), &stream, lines);
        let output = outlast(dir.path(), &["drain", "--to", &format!("redis://{}", redis_address())], b"");
        let messages = if lines == 1 { "1 message delivered".into() } else { format!("{lines} messages delivered") };
        says(&output, 0, &[&messages]);
        assert_eq!(common::redis::read_all(&redis_address(), &stream).len(), lines);
    }
}

/// It waited for ever, and spoke only of the broker that it could not reach.
#[test]
fn drain_refuses_a_broker_that_nothing_was_stored_for() {
    let (dir, stream) = (tempfile::tempdir().unwrap(), unique("other"));
    store(dir.path(), &stream, 2);
    let output = outlast(dir.path(), &["drain", "--to", "kafka://127.0.0.1:1"], b"");
    let waiting = format!("2 messages for redis/{stream}: no transport `redis` is configured");
    says(&output, 2, &[&waiting, "name the one it was stored for"]);
    says(&outlast(dir.path(), &["status"], b""), 0, &[&format!("{stream}: no transport `redis` is configured")]);
    // Beside others they are told of, and left alone.
    let kafka = ["produce", "--to", "kafka://127.0.0.1:1/orders", "--drain-timeout", "0s"];
    says(&outlast(dir.path(), &kafka, b"x\n"), 3, &[&waiting]);
    let output =
        outlast(dir.path(), &["drain", "--to", &format!("redis://{}", redis_address()), "--timeout", "5s"], b"");
    says(&output, 3, &["1 message for kafka/orders: no transport `kafka` is configured", "2 messages delivered"]);
    assert_eq!(common::redis::read_all(&redis_address(), &stream).len(), 2);
}

#[test]
fn lines_without_the_field_are_counted_and_a_line_beyond_the_end_is_no_success() {
    let (dir, stream) = (tempfile::tempdir().unwrap(), unique("fields"));
    let url = format!("redis://{}?stream={stream}", redis_address());
    let produce =
        |more: &[&str]| outlast(dir.path(), &[&["produce", "--to", &url][..], more].concat(), b"a 1\nb\nc 3\nd\n");
    says(&produce(&["--key", "field:2"]), 0, &["2 lines had no such field for --key", "4 lines accepted"]);
    assert!(!produce(&["--key", "field:1"]).stderr.contains("no such field"));
    says(&produce(&["--from-line", "6"]), 1, &["the input has no line 6: it ends after 4 lines"]);
    says(&produce(&["--from-line", "5"]), 0, &["0 lines accepted"]);
}

#[test]
fn a_log_that_is_there_already_says_where_to_go_on() {
    let (dir, stream) = (tempfile::tempdir().unwrap(), unique("again"));
    let (url, log) = (format!("redis://{}?stream={stream}", redis_address()), dir.path().join("acks"));
    let words = ["produce", "--to", &url, "--ack-log", log.to_str().unwrap()];
    let first = outlast(dir.path(), &words, b"a\nb\n");
    says(&first, 0, &["at most 30,000 duplicates"]);
    assert!(!first.stderr.contains("has line"), "{}", first.stderr);
    says(&outlast(dir.path(), &words, b"a\nb\n"), 0, &["has line 2 already", "--from-line 3"]);
    let on = outlast(dir.path(), &[&words[..], &["--from-line", "3"]].concat(), b"a\nb\nc\n");
    says(&on, 0, &["1 line accepted"]);
    assert!(!on.stderr.contains("has line"), "{}", on.stderr);
    let plain = outlast(dir.path(), &["produce", "--to", &url], b"a\n");
    assert!(
        !plain.stderr.contains("duplicates"),
        "without a log there is no last line to go on behind: {}",
        plain.stderr
    );
}

#[test]
fn a_wait_at_the_end_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let produce = ["produce", "--to", &format!("{NOBODY}orders"), "--drain-timeout", "3s"];
    says(&outlast(dir.path(), &produce, b"x\n"), 3, &["waiting up to 3s for 1 message (--drain-timeout)"]);
}

/// Numbers that no dead letter has were passed over without a word, if another had one.
#[test]
fn a_dead_letter_that_is_not_there_among_others_is_named() {
    let (dir, stream) = (tempfile::tempdir().unwrap(), unique("among"));
    let url = format!("redis://{}?stream={stream}", RespServer::refusing().address());
    says(&outlast(dir.path(), &["produce", "--to", &url], b"x\ny\n"), 3, &["2 dead letters"]);
    let listed = outlast(dir.path(), &["dead", "list"], b"");
    let numbers: Vec<&str> = listed.stdout.lines().filter_map(|line| line.split(' ').next()).collect();
    let there = ["pending again: 1 message", "there is no dead letter 99"];
    says(&outlast(dir.path(), &["dead", "requeue", numbers[0], "99"], b""), 1, &there);
    let there = ["purged: 1 dead letter", "there are no dead letters 98, 99"];
    says(&outlast(dir.path(), &["dead", "purge", "98", numbers[1], "99"], b""), 1, &there);
    assert_eq!(outlast(dir.path(), &["dead", "list"], b"").stdout, "");
}

/// The program's own filter kept back what the README promises.
#[test]
fn what_the_servers_settings_put_at_risk_is_told() {
    let (dir, server) = (tempfile::tempdir().unwrap(), common::RedisServer::up());
    common::redis::command(server.address(), &["CONFIG", "SET", "appendonly", "no"]);
    let url = format!("redis://{}?stream=orders", server.address());
    let mut child = common::Child::spawn(
        &["produce", "--to", &url, "--outbox", dir.path().join("outbox").to_str().unwrap()],
        dir.path(),
    );
    common::wait_until("the warning", std::time::Duration::from_secs(20), || {
        child.printed().contains("keeps no append-only file")
    });
    child.end_input();
    child.wait(std::time::Duration::from_secs(60));
}

#[test]
fn a_dead_letter_that_is_not_there_is_named_and_all_of_none_is_done() {
    let (dir, stream) = (tempfile::tempdir().unwrap(), unique("dead"));
    store(dir.path(), &stream, 1);
    says(&outlast(dir.path(), &["dead", "requeue", "7"], b""), 1, &["no such dead letter", "outlast dead list"]);
    says(&outlast(dir.path(), &["dead", "purge", "--all"], b""), 0, &["purged: 0 dead letters"]);
    for words in [&["status"][..], &["peek"], &["dead", "list"], &["drain", "--to", "redis://127.0.0.1:1"]] {
        let output = run(&[words, &["--outbox", "/nowhere/at/all"]].concat(), b"");
        says(&output, 1, &["there is no outbox at /nowhere/at/all"]);
    }
}
