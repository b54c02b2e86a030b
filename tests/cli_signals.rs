//! SIGTERM and Ctrl-C while the broker hangs and lines are on their way: what the ack log says is delivered or stored,
//! without a gap, and the rest follows with `--from-line`.
#![cfg(all(feature = "cli", feature = "kafka", feature = "redis"))]

mod common;

use std::collections::HashSet;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::time::{Duration, Instant};

use common::{Acks, Child, KafkaServer, RedisServer, run, unique, wait_until};

/// For one thing to happen; generous, since the machine is shared with a broker that starts.
const LIMIT: Duration = Duration::from_secs(120);
/// How long an orderly end may take while the broker hangs: `docker stop` kills after 10 s, so it is 8 s, and one more for a
/// busy machine.
const END: Duration = Duration::from_secs(9);

/// Lines that are delivered before the broker hangs.
const BEFORE: usize = 50;
/// All lines. What is fed while the broker hangs is four times what a pipe holds (64 KiB), so most of it has been read.
const LINES: usize = BEFORE + 250;

fn lines() -> Vec<Vec<u8>> {
    (1..=LINES).map(|number| format!("k {number} {}", "x".repeat(1_000)).into_bytes()).collect()
}

fn text(path: &Path) -> String {
    path.to_str().expect("a path in UTF-8").to_owned()
}

fn produce(url: &str, dir: &Path, from: u64, input: &str) -> Vec<String> {
    let (outbox, acks) = (text(&dir.join("outbox")), text(&dir.join("acks")));
    ["produce", "--key", "field:1", "--to", url, "--outbox", &outbox, "--ack-log", &acks, "--from-line"]
        .map(str::to_owned)
        .into_iter()
        .chain([from.to_string(), input.to_owned()])
        .collect()
}

/// A run whose broker hangs while lines are on their way. `stop` makes it hang.
fn hanging(url: &str, dir: &Path, stop: impl Fn()) -> Child {
    let acks = Acks(dir.join("acks"));
    let lines = lines();
    let mut child = Child::spawn(&produce(url, dir, 1, "-"), dir);
    child.feed(&lines[..BEFORE]);
    acks.wait_for(BEFORE, &mut child, LIMIT);
    stop();
    child.feed(&lines[BEFORE..]);
    assert_eq!(acks.last(), BEFORE as u64, "nothing is acknowledged yet: it is on its way");
    child
}

/// The acknowledged lines, which have no gap.
fn acknowledged(dir: &Path) -> Vec<Vec<u8>> {
    let numbers: Vec<u64> = Acks(dir.join("acks")).read().into_iter().map(|(line, _)| line).collect();
    assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>(), "each line once, and none is left out");
    lines()[..numbers.len()].to_vec()
}

/// Every acknowledged line is with the broker or in the outbox.
fn assert_kept(dir: &Path, arrived: &[Vec<u8>]) {
    let outbox = text(&dir.join("outbox"));
    let peeked = run(&["peek", "--json", "--limit", "100000", "--outbox", &outbox], b"");
    assert_eq!(peeked.code, Some(0), "{peeked:?}");
    let pending = peeked.stdout.lines().map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).expect("JSON");
        message["payload"].as_str().expect("a payload of text").as_bytes().to_vec()
    });
    let kept: HashSet<Vec<u8>> = pending.chain(arrived.iter().cloned()).collect();
    let lost = acknowledged(dir).iter().filter(|line| !kept.contains(*line)).count();
    assert_eq!(lost, 0, "acknowledged, and neither delivered nor stored");
}

/// Goes on behind the last acknowledged line; then everything has arrived, first in order.
fn assert_goes_on(url: &str, dir: &Path, arrived: impl Fn() -> Vec<Vec<u8>>) {
    let file = dir.join("lines");
    std::fs::write(&file, lines().join(&b'\n')).unwrap();
    let last = acknowledged(dir).len() as u64;
    let output = run(&produce(url, dir, last + 1, &text(&file)), b"");
    assert_eq!(output.code, Some(0), "{output:?}");
    assert_eq!(acknowledged(dir).len(), LINES);
    let mut seen = HashSet::new();
    let firsts: Vec<Vec<u8>> = arrived().into_iter().filter(|line| seen.insert(line.clone())).collect();
    assert!(firsts == lines(), "{} of {LINES} lines arrived, or in another order", firsts.len());
}

/// An orderly end: it says where to go on.
fn assert_ended_in_order(child: &mut Child, dir: &Path) {
    let begun = Instant::now();
    assert_eq!(child.wait(END).code(), Some(1), "{}", child.printed());
    let last = acknowledged(dir).len();
    println!("ended {:?} after the signal", begun.elapsed());
    assert!(last > BEFORE, "what was on its way is stored");
    let printed = child.printed();
    assert!(printed.contains(&format!("--from-line {}", last + 1)), "{printed}");
}

fn payloads_of_topic(server: &KafkaServer, topic: &str) -> Vec<Vec<u8>> {
    common::kafka::read_all(server.address(), topic).into_iter().filter_map(|record| record.payload).collect()
}

fn payloads_of_stream(server: &RedisServer, stream: &str) -> Vec<Vec<u8>> {
    let entries = common::redis::read_all(server.address(), stream);
    entries.iter().filter_map(|entry| entry.field("payload").map(<[u8]>::to_vec)).collect()
}

#[test]
fn sigterm_while_kafka_hangs_loses_no_acknowledged_line_and_leaves_no_gap() {
    let (dir, server, topic) = (tempfile::tempdir().unwrap(), KafkaServer::up(), unique("signals"));
    common::kafka::create_topic(server.address(), &topic, 1);
    let url = format!("kafka://{}/{topic}", server.address());
    let mut child = hanging(&url, dir.path(), || server.stop());
    child.terminate();
    assert_ended_in_order(&mut child, dir.path());
    server.cont();
    assert_kept(dir.path(), &payloads_of_topic(&server, &topic));
    assert_goes_on(&url, dir.path(), || payloads_of_topic(&server, &topic));
}

#[test]
fn ctrl_c_while_redis_hangs_loses_no_acknowledged_line_and_leaves_no_gap() {
    let (dir, server, stream) = (tempfile::tempdir().unwrap(), RedisServer::up(), unique("signals"));
    let url = format!("redis://{}?stream={stream}", server.address());
    let mut child = hanging(&url, dir.path(), || server.stop());
    child.interrupt();
    assert_ended_in_order(&mut child, dir.path());
    server.cont();
    assert_kept(dir.path(), &payloads_of_stream(&server, &stream));
    assert_goes_on(&url, dir.path(), || payloads_of_stream(&server, &stream));
}

#[test]
fn a_second_signal_ends_at_once_and_loses_no_acknowledged_line_either() {
    let (dir, server, stream) = (tempfile::tempdir().unwrap(), RedisServer::up(), unique("signals"));
    let url = format!("redis://{}?stream={stream}", server.address());
    let mut child = hanging(&url, dir.path(), || server.stop());
    child.terminate();
    wait_until("the first signal is heard", LIMIT, || child.printed().contains("once more"));
    child.terminate();
    // It has nothing to wait for: less than the grace.
    let status = child.wait(Duration::from_secs(5));
    assert_eq!(status.signal(), Some(15), "{}", child.printed());
    server.cont();
    assert_kept(dir.path(), &payloads_of_stream(&server, &stream));
    assert_goes_on(&url, dir.path(), || payloads_of_stream(&server, &stream));
}

#[test]
fn a_signal_ends_a_drain_in_vain_and_everything_is_still_pending() {
    let (dir, server, stream) = (tempfile::tempdir().unwrap(), RedisServer::up(), unique("signals"));
    let outbox = text(&dir.path().join("outbox"));
    let nobody = format!("redis://127.0.0.1:1?stream={stream}");
    let produced =
        run(&["produce", "--to", &nobody, "--outbox", &outbox, "--drain-timeout", "0s"], &lines().join(&b'\n'));
    assert_eq!(produced.code, Some(3), "{produced:?}");
    for interrupt in [false, true] {
        let mut child = Child::spawn(&["drain", "--to", &nobody, "--outbox", &outbox], dir.path());
        wait_until("it drains", LIMIT, || child.printed().contains("pending"));
        if interrupt {
            child.interrupt()
        } else {
            child.terminate()
        }
        assert_eq!(child.wait(END).code(), Some(3), "{}", child.printed());
        assert!(child.printed().contains(&format!("still pending: {LINES} messages")), "{}", child.printed());
    }
    let url = format!("redis://{}", server.address());
    let drained = run(&["drain", "--to", &url, "--outbox", &outbox, "--timeout", "60s"], b"");
    assert_eq!(drained.code, Some(0), "{drained:?}");
    assert!(payloads_of_stream(&server, &stream) == lines(), "once each, and in order");
}
