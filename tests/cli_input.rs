//! The program's input and its log of acknowledgements where both come from other hands: ends of lines and byte order marks
//! of editors, numbers beyond a double, a file that grows, a log that is rotated; and how long the end of the input takes.
#![cfg(all(feature = "cli", feature = "kafka", feature = "redis"))]

mod common;

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::time::{Duration, Instant};

use common::{Acks, Child, Output, redis_address, run, run_with, wait_until};

/// A broker that is not there: port 1 is privileged and unused.
const NOBODY: &str = "redis://127.0.0.1:1?stream=orders";
/// For one thing to happen.
const LIMIT: Duration = Duration::from_secs(60);
/// Less than the five seconds that a line waits for an answer before it is stored.
const SOON: Duration = Duration::from_secs(4);

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

fn produce(url: &str, dir: &Path, more: &[&str], input: &[u8]) -> Output {
    let outbox = dir.join("outbox");
    run(&[&["produce", "--to", url, "--outbox", text(&outbox), "--drain-timeout", "0s"][..], more].concat(), input)
}

#[track_caller]
fn says(output: &Output, code: i32, words: &[&str]) {
    assert_eq!(output.code, Some(code), "{output:?}");
    assert!(words.iter().all(|word| output.stderr.contains(word)), "{words:?}: {}", output.stderr);
}

/// Keys and payloads of what waits in the outbox.
fn stored(dir: &Path) -> Vec<(Option<String>, String)> {
    let peeked = run(&["peek", "--json", "--limit", "1000", "--outbox", text(&dir.join("outbox"))], b"");
    assert_eq!(peeked.code, Some(0), "{peeked:?}");
    let messages = peeked.stdout.lines().map(|line| serde_json::from_str(line).expect("JSON"));
    let word = |message: &serde_json::Value, field: &str| message[field].as_str().map(str::to_owned);
    messages.map(|message: serde_json::Value| (word(&message, "key"), word(&message, "payload").unwrap())).collect()
}

fn payloads(dir: &Path) -> Vec<String> {
    stored(dir).into_iter().map(|(_, payload)| payload).collect()
}

/// Numbers went through a double: two ids became one key, and `1e2` became `100.0`. What a file adds to its lines became a
/// part of a key.
#[test]
fn a_key_is_the_text_of_its_value_and_nothing_of_the_file_around_it() {
    let json = "\u{feff}{\"id\":18446744073709551616}\r\n{\"id\":18446744073709551617}\r\n{\"id\":1e2}\n{\"id\":\"cust\\u002d1\"}\n";
    let fields = "\u{feff}cust-1 a\r\nb cust-1\r\n\r\nc cust-1\r";
    let cases = [
        (
            &["--format", "json", "--key", "json:/id"][..],
            json,
            &[Some("18446744073709551616"), Some("18446744073709551617"), Some("1e2"), Some("cust-1")][..],
        ),
        (&["--key", "field:2"], fields, &[Some("a"), Some("cust-1"), None, Some("cust-1")]),
        (&["--key", "field:1"], fields, &[Some("cust-1"), Some("b"), None, Some("c")]),
    ];
    for (more, input, keys) in cases {
        let dir = tempfile::tempdir().unwrap();
        let output = produce(NOBODY, dir.path(), more, input.as_bytes());
        says(&output, 3, &["begins with a byte order mark"]);
        let stored = stored(dir.path());
        assert_eq!(stored.iter().map(|(key, _)| key.as_deref()).collect::<Vec<_>>(), keys, "{more:?}");
        let payloads: Vec<&str> = stored.iter().map(|(_, payload)| payload.as_str()).collect();
        assert_eq!(payloads.join("\n"), input.strip_suffix('\n').unwrap_or(input), "payloads are the lines, unchanged");
    }
    let dir = tempfile::tempdir().unwrap();
    says(
        &produce(NOBODY, dir.path(), &["--format", "json"], b"\xff\xfe{\0}\0\n\0"),
        1,
        &["convert the input to UTF-8"],
    );
}

/// `b` was sent as line 2, `cd` came to it, and a run from line 3 on left `cd` out.
#[test]
fn the_rest_of_a_last_line_without_newline_is_sent_when_its_newline_has_come() {
    let dir = tempfile::tempdir().unwrap();
    let (file, acks) = (dir.path().join("input"), dir.path().join("acks"));
    let from = |line: &str| {
        let words = ["--json", "--ack-log", text(&acks), "--from-line", line, text(&file)];
        produce(NOBODY, dir.path(), &words, b"")
    };
    fs::write(&file, "a\nb").unwrap();
    let first = from("1");
    says(&first, 3, &["line 2 has no newline", "--from-line 3"]);
    assert!(first.stdout.contains("\"unterminated\":2"), "{}", first.stdout);
    assert_eq!(fs::read_to_string(&acks).unwrap(), "1\tstored\n2\tstored\tunterminated\n");

    // Nothing has come, or not all of it: no run sends a part of it again.
    for now in ["a\nb", "a\nbc"] {
        fs::write(&file, now).unwrap();
        let again = from("3");
        says(&again, 3, &["line 2 has no newline yet", "0 lines accepted"]);
        assert!(
            again.stdout.contains("\"next_line\":3"),
            "from line 2 on it would be sent again as it is: {}",
            again.stdout
        );
    }
    fs::write(&file, "a\nbcd\ne\n").unwrap();
    says(&from("3"), 3, &["2 lines accepted"]);
    assert_eq!(payloads(dir.path()), ["a", "b", "bcd", "e"]);
    let log = "1\tstored\n2\tstored\tunterminated\n2\tstored\n3\tstored\n";
    assert_eq!(fs::read_to_string(&acks).unwrap(), log);
    // Half a document is no document; the reason may be that the other half is still to come.
    says(&produce(NOBODY, dir.path(), &["--format", "json"], b"{\"a\":"), 1, &["not JSON", "it has no newline"]);
    // From here on it is a log as any other.
    says(&from("4"), 3, &["0 lines accepted"]);
    says(&from("5"), 1, &["the input has no line 5: it ends after 3 lines"]);
}

#[test]
fn a_last_line_without_newline_can_be_left_for_the_next_run() {
    let dir = tempfile::tempdir().unwrap();
    let (file, acks) = (dir.path().join("input"), dir.path().join("acks"));
    let from = |line: &str| {
        let words = ["--leave-unterminated", "--json", "--ack-log", text(&acks), "--from-line", line, text(&file)];
        produce(NOBODY, dir.path(), &words, b"")
    };
    fs::write(&file, "a\nb").unwrap();
    let first = from("1");
    says(&first, 3, &["line 2 has no newline, and is left for the next run", "--from-line 2", "1 line accepted"]);
    assert!(first.stdout.contains("\"next_line\":2"), "{}", first.stdout);
    says(&from("2"), 3, &["line 2 has no newline, and is left for the next run", "0 lines accepted"]);
    fs::write(&file, "a\nbcd\ne\n").unwrap();
    let last = from("2");
    says(&last, 3, &["2 lines accepted"]);
    assert!(!last.stderr.contains("no newline") && last.stdout.contains("\"next_line\":null"), "{last:?}");
    assert_eq!(payloads(dir.path()), ["a", "bcd", "e"]);
    assert_eq!(fs::read_to_string(&acks).unwrap(), "1\tstored\n2\tstored\n3\tstored\n");
}

/// The log had a hole where it was cut, and the next run took it for none of ours.
#[test]
fn a_log_that_is_cut_or_moved_away_under_the_program_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let (acks, old) = (Acks(dir.path().join("acks")), dir.path().join("acks.1"));
    let outbox = dir.path().join("outbox");
    let words = ["produce", "--to", NOBODY, "--outbox", text(&outbox), "--ack-log", text(&acks.0)];
    let mut child = Child::spawn(&words, dir.path());
    child.feed(&[b"one".to_vec(), b"two".to_vec()]);
    acks.wait_for(2, &mut child, LIMIT);
    fs::File::create(&acks.0).unwrap();
    child.feed(&[b"three".to_vec()]);
    acks.wait_for(1, &mut child, LIMIT);
    assert_eq!(fs::read_to_string(&acks.0).unwrap(), "3\tstored\n");
    fs::rename(&acks.0, &old).unwrap();
    child.feed(&[b"four".to_vec()]);
    acks.wait_for(1, &mut child, LIMIT);
    child.kill();
    let printed = child.printed();
    assert!(printed.contains("was cut") && printed.contains("lines up to 3 were accepted"), "{printed}");
    assert!(printed.contains("was moved away"), "{printed}");
    assert_eq!(fs::read_to_string(&old).unwrap(), "3\tstored\n");
    assert_eq!(fs::read_to_string(&acks.0).unwrap(), "4\tstored\n");
    let again = produce(NOBODY, dir.path(), &["--ack-log", text(&acks.0), "--from-line", "5"], b"1\n2\n3\n4\nfive\n");
    says(&again, 3, &["1 line accepted"]);
    assert_eq!(acks.last(), 5);
}

/// A broker that answers nothing kept the end of the input waiting for the first attempt, which is 5 s, besides.
#[test]
fn the_end_of_the_input_takes_what_the_drain_timeout_says() {
    // Connections are made, and nothing is ever read from them.
    let hangs = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("redis://{}?stream=p", hangs.local_addr().unwrap());
    for timeout in ["0s", "1s"] {
        let took = || {
            let dir = tempfile::tempdir().unwrap();
            let (outbox, acks) = (dir.path().join("outbox"), Acks(dir.path().join("acks")));
            let words = ["produce", "--to", &url, "--outbox", text(&outbox), "--ack-log", text(&acks.0)];
            let mut child = Child::spawn(&[&words[..], &["--drain-timeout", timeout]].concat(), dir.path());
            wait_until("the outbox is open", LIMIT, || child.printed().contains("if this is killed"));
            let begun = Instant::now();
            child.feed(&[b"x".to_vec()]);
            child.end_input();
            assert_eq!(child.wait(LIMIT).code(), Some(3), "{}", child.printed());
            let took = begun.elapsed();
            assert_eq!(acks.read(), [(1, false)]);
            took
        };
        // A machine that is busy elsewhere may take longer once, and not always.
        assert!((0..3).any(|_| took() < SOON), "--drain-timeout {timeout}: it took more each time");
    }
}

/// What is sent was the password and a newline; the broker's word for that is that it is wrong.
#[test]
fn what_a_file_or_a_variable_adds_to_a_password_is_taken_off_or_named() {
    let (dir, server) = (tempfile::tempdir().unwrap(), common::RedisServer::up());
    common::redis::command(server.address(), &["ACL", "SETUSER", "app", "on", ">hunter2", "~*", "+@all"]);
    let url = format!("redis://app@{}?stream=orders", server.address());
    let (outbox, file) = (dir.path().join("outbox"), dir.path().join("password"));
    let words = ["produce", "--to", &url, "--outbox", text(&outbox), "--drain-timeout"];
    let odd = run_with(&[&words[..], &["0s"]].concat(), b"x\n", &[("OUTLAST_PASSWORD", "hunter2\n")]);
    says(&odd, 3, &["ends in a newline"]);
    assert!(!odd.stderr.contains("hunter2"), "{}", odd.stderr);
    fs::write(&file, "\u{feff}hunter2\r\n").unwrap();
    let right = run(&[&words[..], &["60s", "--password-file", text(&file)]].concat(), b"y\n");
    says(&right, 0, &[]);
    let url = format!("redis://{}?stream=orders\n", redis_address());
    says(&produce(&url, dir.path(), &[], b""), 2, &["character: number", "newline"]);
}
