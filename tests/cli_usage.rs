//! Command lines and outboxes the program refuses: what it says, its exit code, and that it leaves everything alone.
#![cfg(all(feature = "cli", feature = "kafka", feature = "redis"))]

mod common;

use std::path::Path;
use std::time::Duration;

use common::{Acks, Child, run, run_with, unique};

/// A broker that is not there: port 1 is privileged and unused.
const NOBODY: &str = "kafka://127.0.0.1:1/orders";

fn produce(url: &str, outbox: &Path, more: &[&str], input: &[u8]) -> common::Output {
    let outbox = outbox.to_str().expect("a path in UTF-8");
    let args: Vec<&str> = ["produce", "--drain-timeout", "1s", "--to", url, "--outbox", outbox]
        .into_iter()
        .chain(more.iter().copied())
        .collect();
    run(&args, input)
}

#[test]
fn a_wrong_url_is_a_usage_error_that_names_the_part_and_touches_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let outbox = dir.path().join("outbox");
    for (url, part, form) in [
        ("orders", "scheme", "kafka://host:port/TOPIC"),
        ("ftp://127.0.0.1:21/orders", "scheme: `ftp`", "redis://host:port?stream=NAME"),
        ("kafka://127.0.0.1:9092", "topic", "kafka://host:port/TOPIC"),
        ("kafka://127.0.0.1:9092/", "topic", "kafka://host:port/TOPIC"),
        ("kafka://127.0.0.1:99999/orders", "port: `99999`", "from 1 to 65535"),
        ("kafka://127.0.0.1:x/orders", "port: `x`", "kafka://host:port"),
        ("kafka:///orders", "host", "kafka://host:port"),
        ("kafka://127.0.0.1:9092/orders?no.such.option=1", "no.such.option", "librdkafka's configuration properties"),
        // librdkafka's own words, which say no more.
        ("kafka://127.0.0.1:9092/orders?linger.ms=soon", "linger.ms", "Invalid value"),
        ("kafka://127.0.0.1:9092/orders?acks=0", "acks", "acks=all"),
        ("kafka://127.0.0.1:9092/bad%20topic", "bad topic", "no legal topic name"),
        ("rediss://127.0.0.1:6379?stream=orders&ca-file=/missing", "/missing", "No such file"),
        ("redis://127.0.0.1:6379", "stream", "redis://host:port?stream=NAME"),
        ("redis://127.0.0.1:6379?stream=", "stream", "redis://host:port?stream=NAME"),
        ("redis://127.0.0.1:99999?stream=orders", "port: `99999`", "redis://host:port"),
        ("redis://127.0.0.1:6379/x?stream=orders", "database: `x`", "?stream="),
        ("redis://127.0.0.1:6379?stream=orders&colour=red", "colour", "no option of a Redis URL"),
    ] {
        let output = produce(url, &outbox, &[], b"a line\n");
        assert_eq!(output.code, Some(2), "{url}: {output:?}");
        for words in [part, form] {
            assert!(output.stderr.contains(words), "{url} should say {words:?}: {}", output.stderr);
        }
        assert!(!outbox.exists(), "{url}: the outbox was touched");
    }
}

#[test]
fn wrong_flags_are_usage_errors() {
    let dir = tempfile::tempdir().unwrap();
    let outbox = dir.path().join("outbox");
    for (more, form) in [
        (&["--key", "first"][..], "none, field:N or json:/POINTER"),
        (&["--key", "field:0"], "field:1"),
        (&["--key", "json:/a"], "--format json"),
        (&["--format", "xml"], "lines, json"),
        (&["--mode", "exactly-once"], "direct, write-ahead"),
        (&["--from-line", "0"], "1.."),
        (&["--window", "0"], "1..=1000000"),
        (&["--drain-timeout", "soon"], "expected number"),
        (&["--password-file", "/nonexistent/password"], "No such file"),
        (&["/nonexistent/input"], "No such file"),
        (&["--resume"], "Usage: outlast produce --to <URL>"),
    ] {
        let words = ["produce", "--to", NOBODY, "--outbox", outbox.to_str().unwrap()];
        let output = run(&[&words[..], more].concat(), b"a line\n");
        assert_eq!(output.code, Some(2), "{more:?}: {output:?}");
        for words in [more[0], form] {
            assert!(output.stderr.contains(words), "{more:?} should say {words:?}: {}", output.stderr);
        }
        assert!(!outbox.exists(), "{more:?}: the outbox was touched");
    }
}

#[test]
fn a_password_never_shows() {
    const CANARY: &str = "hunter2canary";
    let dir = tempfile::tempdir().unwrap();
    let outbox = dir.path().join("outbox");
    let urls = [
        (format!("redis://user:{CANARY}@127.0.0.1:1?stream=orders"), 3),
        (format!("redis://user:{CANARY}@127.0.0.1:1?strem=orders"), 2),
        (format!("redis://user:{CANARY}@127.0.0.1:port?stream=orders"), 2),
        (format!("rdis://user:{CANARY}@127.0.0.1:1?stream=orders"), 2),
        (
            format!(
                "kafka://127.0.0.1:1/orders?security.protocol=sasl_plaintext&sasl.mechanism=PLAIN&sasl.username=u&sasl.password={CANARY}"
            ),
            3,
        ),
    ];
    for (url, code) in urls {
        let args = ["produce", "--drain-timeout", "1s", "--to", &url, "--outbox", outbox.to_str().unwrap()];
        let output = run_with(&args, b"a line\n", &[("RUST_LOG", "trace")]);
        assert_eq!(output.code, Some(code), "{output:?}");
        assert!(!output.stderr.contains(CANARY) && !output.stdout.contains(CANARY), "the password shows: {output:?}");
        let status = run(&["status", "--json", "--outbox", outbox.to_str().unwrap()], b"");
        assert!(!status.stdout.contains(CANARY) && !status.stderr.contains(CANARY));
    }
    for entry in files(&outbox) {
        let bytes = std::fs::read(&entry).unwrap();
        let found = bytes.windows(CANARY.len()).any(|window| window == CANARY.as_bytes());
        assert!(!found, "the password lies in {}", entry.display());
    }
}

/// One in the environment made wrong usage of URLs that are right without it.
#[test]
fn a_password_in_the_environment_is_for_who_wants_one() {
    let dir = tempfile::tempdir().unwrap();
    let sasl = "?security.protocol=sasl_plaintext&sasl.mechanism=PLAIN&sasl.username=u";
    for url in [NOBODY.into(), format!("{NOBODY}{sasl}&sasl.password=x"), format!("{NOBODY}{sasl}")] {
        let outbox = dir.path().join("outbox");
        let args = ["produce", "--drain-timeout", "0s", "--to", &url, "--outbox", outbox.to_str().unwrap()];
        let output = run_with(&args, b"a line\n", &[("OUTLAST_PASSWORD", "hunter2canary")]);
        assert_eq!(output.code, Some(3), "{url}: {output:?}");
    }
}

#[test]
fn an_outbox_that_is_held_is_refused_with_the_holders_pid_and_the_holder_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let outbox = dir.path().join("outbox");
    let (outbox_text, acks) = (outbox.to_str().unwrap(), Acks(dir.path().join("acks")));
    let topic = unique("held");
    common::kafka::create_topic(&common::kafka_address(), &topic, 1);
    let url = format!("kafka://{}/{topic}", common::kafka_address());
    let args = ["produce", "--to", &url, "--outbox", outbox_text, "--ack-log", acks.0.to_str().unwrap()];
    let mut holder = Child::spawn(&args, dir.path());
    holder.feed(&[b"one".to_vec()]);
    acks.wait_for(1, &mut holder, Duration::from_secs(60));

    let pid = holder.pid().to_string();
    let second = produce(&url, &outbox, &[], b"a line\n");
    assert_eq!(second.code, Some(1), "{second:?}");
    assert!(second.stderr.contains(&pid), "the holder {pid} is not named: {}", second.stderr);
    let drain = run(&["drain", "--to", &url, "--outbox", outbox_text], b"");
    assert!(drain.code == Some(1) && drain.stderr.contains(&pid), "{drain:?}");
    for command in ["requeue", "purge"] {
        let change = run(&["dead", command, "--outbox", outbox_text, "--all"], b"");
        assert!(change.code == Some(1) && change.stderr.contains(&pid), "{command}: {change:?}");
    }
    let status = run(&["status", "--outbox", outbox_text], b"");
    assert!(status.code == Some(0) && status.stdout.contains(&pid), "{status:?}");

    holder.feed(&[b"two".to_vec()]);
    acks.wait_for(2, &mut holder, Duration::from_secs(60));
    holder.end_input();
    assert_eq!(holder.wait(Duration::from_secs(60)).code(), Some(0), "{}", holder.printed());
    assert_eq!(common::kafka::read_all(&common::kafka_address(), &topic).len(), 2);
}

#[test]
fn an_outbox_that_is_no_directory_of_ours_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (file, real, link) = (dir.path().join("file"), dir.path().join("real"), dir.path().join("link"));
    std::fs::write(&file, b"not an outbox").unwrap();
    std::fs::create_dir(&real).unwrap();
    std::os::unix::fs::symlink(&real, &link).unwrap();
    let mut refused = vec![(file.clone(), "directory"), (link, "symbolic link")];
    let foreign = dir.path().join("foreign");
    std::fs::create_dir(&foreign).unwrap();
    // Only root can give a directory away; anybody else finds one of root's.
    let foreign = match std::os::unix::fs::chown(&foreign, Some(12_345), None) {
        Ok(()) => foreign,
        Err(_) => "/etc".into(),
    };
    refused.push((foreign.clone(), "belongs to user"));
    for (outbox, reason) in refused {
        let output = produce(NOBODY, &outbox, &[], b"a line\n");
        assert_eq!(output.code, Some(1), "{}: {output:?}", outbox.display());
        assert!(output.stderr.contains(reason), "{} should say {reason:?}: {}", outbox.display(), output.stderr);
    }
    assert_eq!(std::fs::read(&file).unwrap(), b"not an outbox");
    assert_eq!(std::fs::read_dir(&real).unwrap().count(), 0);
}

#[test]
fn looking_at_an_outbox_that_is_not_there_makes_none() {
    let dir = tempfile::tempdir().unwrap();
    let outbox = dir.path().join("outbox");
    let text = outbox.to_str().unwrap();
    for args in [
        &["status", "--outbox", text][..],
        &["peek", "--outbox", text],
        &["dead", "list", "--outbox", text],
        &["drain", "--to", NOBODY, "--outbox", text],
    ] {
        let output = run(args, b"");
        assert_eq!(output.code, Some(1), "{args:?}: {output:?}");
        assert!(!output.stderr.is_empty(), "{args:?} says nothing");
        assert!(!outbox.exists(), "{args:?} made an outbox");
    }
}

/// All files below a directory.
fn files(dir: &Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() { found.extend(files(&entry.path())) } else { found.push(entry.path()) }
    }
    found
}
