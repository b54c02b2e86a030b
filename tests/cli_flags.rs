//! What flags of the lesser commands do: selections of dead letters, JSON that scripts read, bad lines that are counted,
//! and looking into an outbox that a producer has open.
#![cfg(all(feature = "cli", feature = "kafka", feature = "redis"))]

mod common;

use std::path::Path;
use std::time::Duration;

use common::{Acks, Child, Output, RespServer, redis_address, run, unique};
use serde_json::Value;

/// A broker that is not there: port 1 is privileged and unused.
const NOBODY: &str = "redis://127.0.0.1:1?stream=orders";
const LIMIT: Duration = Duration::from_secs(60);

fn outlast(dir: &Path, words: &[&str], input: &[u8]) -> Output {
    let outbox = dir.join("outbox");
    let args: Vec<&str> = words.iter().copied().chain(["--outbox", outbox.to_str().expect("UTF-8")]).collect();
    run(&args, input)
}

#[track_caller]
fn assert_code(output: &Output, code: i32) {
    assert_eq!(output.code, Some(code), "stdout:\n{}\nstderr:\n{}", output.stdout, output.stderr);
}

fn json(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}"))).collect()
}

/// Dead letters of a stream of that name: a server refuses each message. The URL of one that takes them.
fn bury(dir: &Path, stream: &str, lines: &[u8]) -> String {
    let refusing = format!("redis://{}?stream={stream}", RespServer::refusing().address());
    assert_code(&outlast(dir, &["produce", "--to", &refusing, "--key", "field:1"], lines), 3);
    format!("redis://{}?stream={stream}", redis_address())
}

fn dead(dir: &Path) -> Vec<Value> {
    let listed = outlast(dir, &["dead", "list", "--json"], b"");
    assert_code(&listed, 0);
    json(&listed.stdout)
}

fn payloads(stream: &str) -> Vec<Vec<u8>> {
    let entries = common::redis::read_all(&redis_address(), stream);
    entries.iter().filter_map(|entry| entry.field("payload").map(<[u8]>::to_vec)).collect()
}

#[test]
fn dead_letters_are_requeued_and_purged_by_id_and_by_route_and_no_others() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (unique("one"), unique("two"));
    let url = bury(dir.path(), &one, b"a 1\nb 2\nc 3\n");
    bury(dir.path(), &two, b"a 4\nb 5\n");
    let letters = dead(dir.path());
    assert_eq!(letters.len(), 5);
    let of = |payload: &str| letters.iter().find(|letter| letter["payload"] == payload).expect("it is dead");
    let id = |payload: &str| of(payload)["id"].as_str().unwrap().to_owned();

    for (words, code) in [
        (["dead", "purge", "--id", &id("a 1")], 0),
        (["dead", "purge", "--id", &id("a 1")], 1),
        (["dead", "requeue", "--id", &id("b 2")], 0),
        (["dead", "requeue", "--route", &format!("redis/{two}")], 0),
        (["dead", "requeue", "--route", &format!("redis/{two}")], 1),
        (["dead", "purge", "--route", "kafka/orders"], 1),
    ] {
        assert_code(&outlast(dir.path(), &words, b""), code);
    }
    let left: Vec<Value> = dead(dir.path()).into_iter().map(|letter| letter["payload"].clone()).collect();
    assert_eq!(left, ["c 3"], "what nobody selected stays");
    assert_code(&outlast(dir.path(), &["dead", "purge", "--route", &format!("redis/{one}")], b""), 0);
    assert!(dead(dir.path()).is_empty());

    assert_code(&outlast(dir.path(), &["drain", "--to", &url, "--timeout", "60s"], b""), 0);
    assert_eq!((payloads(&one), payloads(&two)), (vec![b"b 2".to_vec()], vec![b"a 4".to_vec(), b"b 5".to_vec()]));
}

#[test]
fn a_selection_that_is_none_is_a_usage_error_that_says_the_right_form() {
    let dir = tempfile::tempdir().unwrap();
    for (words, form) in [
        (&["dead", "requeue", "--route", "orders"][..], "TRANSPORT/DESTINATION"),
        (&["dead", "purge", "--route", "/orders"], "kafka/orders"),
        (&["dead", "purge", "--route", "kafka/"], "kafka/orders"),
        (&["dead", "purge", "--id", "17"], "32"),
        (&["dead", "purge", "first"], "number"),
        (&["dead", "requeue"], "--all"),
        (&["dead", "requeue", "--all", "--id", "00000000000000000000000000000001"], "--id"),
    ] {
        let output = outlast(dir.path(), words, b"");
        assert_code(&output, 2);
        assert!(output.stderr.to_lowercase().contains(&form.to_lowercase()), "{words:?}: {}", output.stderr);
    }
    assert!(!dir.path().join("outbox").exists());
}

#[test]
fn the_json_of_status_says_what_its_words_say() {
    let dir = tempfile::tempdir().unwrap();
    let stream = unique("status");
    bury(dir.path(), &stream, b"a 1\n");
    let produce = ["produce", "--to", NOBODY, "--drain-timeout", "1s"];
    assert_code(&outlast(dir.path(), &produce, b"one\ntwo\n"), 3);
    let status = outlast(dir.path(), &["status", "--json"], b"");
    assert_code(&status, 0);
    let [status] = &json(&status.stdout)[..] else { panic!("one line: {status:?}") };
    let keys: Vec<&str> = status.as_object().unwrap().keys().map(String::as_str).collect();
    let mut expected =
        ["holder", "pending", "pending_bytes", "oldest", "routes", "dead", "dead_bytes", "set_aside", "reasons"];
    expected.sort();
    let mut sorted = keys.clone();
    sorted.sort();
    assert_eq!(sorted, expected);
    assert_eq!((&status["holder"], &status["set_aside"]), (&Value::Null, &0.into()));
    assert_eq!((&status["pending"], &status["pending_bytes"]), (&2.into(), &6.into()));
    assert_eq!((&status["dead"], status["dead_bytes"].as_u64().is_some_and(|bytes| bytes > 0)), (&1.into(), true));
    let oldest = status["oldest"].as_str().unwrap_or_default();
    assert!(humantime::parse_rfc3339(oldest).is_ok(), "a time as in `dead list --json`: {status}");
    let [route] = &status["routes"].as_array().unwrap()[..] else { panic!("one route: {status}") };
    assert_eq!((&route["route"]["transport"], &route["route"]["destination"]), (&"redis".into(), &"orders".into()));
    assert_eq!((&route["pending"], &route["pending_bytes"]), (&2.into(), &6.into()));
    let reasons: Vec<&str> = status["reasons"].as_array().unwrap().iter().map(|it| it.as_str().unwrap()).collect();
    assert!(reasons.iter().any(|reason| reason.contains("Connection refused")), "{reasons:?}");
}

#[test]
fn of_many_bad_lines_the_first_ten_are_named_and_all_are_counted() {
    let input: String = (1..=30).map(|n| if n % 2 == 0 { "not json\n" } else { "{\"id\":1}\n" }).collect();
    let words = ["produce", "--format", "json", "--key", "json:/id", "--on-bad-line", "skip", "--to"];
    for more in [&[][..], &["--json"]] {
        let (dir, stream) = (tempfile::tempdir().unwrap(), unique("bad"));
        let url = format!("redis://{}?stream={stream}", redis_address());
        let output = outlast(dir.path(), &[&words, &[&*url][..], more].concat(), input.as_bytes());
        assert_code(&output, 1);
        let named: Vec<u64> = output
            .stderr
            .lines()
            .filter_map(|line| line.split_once("line ")?.1.split_once(": not JSON")?.0.parse().ok())
            .collect();
        assert_eq!(named, (1..=10).map(|n| 2 * n).collect::<Vec<_>>(), "{}", output.stderr);
        assert!(output.stderr.contains("15 bad lines skipped"), "{}", output.stderr);
        assert_eq!(payloads(&stream).len(), 15);
        if more.is_empty() {
            assert_eq!(output.stdout, "");
        } else {
            let summary = &json(&output.stdout)[0];
            assert_eq!((&summary["bad_lines"], &summary["delivered"]), (&15.into(), &15.into()), "{summary}");
            assert_eq!((&summary["not_accepted"], &summary["next_line"]), (&0.into(), &Value::Null), "{summary}");
        }
    }
}

#[test]
fn drain_refuses_a_wrong_url_before_it_touches_the_outbox() {
    let dir = tempfile::tempdir().unwrap();
    assert_code(&outlast(dir.path(), &["produce", "--to", NOBODY, "--drain-timeout", "0s"], b"one\n"), 3);
    let files = || {
        let wal = std::fs::read_dir(dir.path().join("outbox/wal")).unwrap();
        let mut names: Vec<_> = wal.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let before = files();
    for (url, part) in [
        ("orders", "scheme"),
        ("ftp://127.0.0.1:21", "ftp"),
        ("kafka://127.0.0.1:99999", "99999"),
        ("kafka://127.0.0.1:9092/orders?no.such.option=1", "no.such.option"),
        ("redis://127.0.0.1:x", "port"),
        ("redis://127.0.0.1:6379?colour=red", "colour"),
    ] {
        let output = outlast(dir.path(), &["drain", "--to", url], b"");
        assert_code(&output, 2);
        assert!(output.stderr.contains(part), "{url} should name {part:?}: {}", output.stderr);
        assert_eq!(files(), before, "{url}: a start would have made a segment");
    }
    assert_code(&outlast(dir.path(), &["drain", "--to", NOBODY, "--timeout", "soon"], b""), 2);
}

#[test]
fn looking_beside_a_running_producer_shows_what_waits_and_what_is_dead_and_disturbs_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let stream = unique("beside");
    bury(dir.path(), &stream, b"a 1\nb 2\n");
    let (outbox, acks) = (dir.path().join("outbox"), Acks(dir.path().join("acks")));
    let words = ["produce", "--drain-timeout", "0s", "--to", NOBODY, "--outbox", outbox.to_str().unwrap()];
    let mut holder = Child::spawn(&[&words[..], &["--ack-log", acks.0.to_str().unwrap()]].concat(), dir.path());
    holder.feed(&[b"one".to_vec(), b"two".to_vec()]);
    acks.wait_for(2, &mut holder, LIMIT);

    let peeked = outlast(dir.path(), &["peek", "--json"], b"");
    assert_code(&peeked, 0);
    let payloads: Vec<Value> = json(&peeked.stdout).into_iter().map(|message| message["payload"].clone()).collect();
    assert_eq!(payloads, ["one", "two"]);
    let letters = dead(dir.path());
    let payloads: Vec<&Value> = letters.iter().map(|letter| &letter["payload"]).collect();
    assert_eq!(payloads, ["a 1", "b 2"]);
    let shown = outlast(dir.path(), &["dead", "show", &letters[1]["number"].to_string()], b"");
    assert_code(&shown, 0);
    assert!(shown.stdout.contains("b 2") && shown.stdout.contains("too large"), "{}", shown.stdout);
    let status = outlast(dir.path(), &["status", "--json"], b"");
    assert_eq!(json(&status.stdout)[0]["holder"], holder.pid(), "{status:?}");

    holder.feed(&[b"three".to_vec()]);
    acks.wait_for(3, &mut holder, LIMIT);
    assert_eq!(json(&outlast(dir.path(), &["peek", "--json"], b"").stdout).len(), 3);
    holder.end_input();
    assert_eq!(holder.wait(LIMIT).code(), Some(3), "{}", holder.printed());
}
