//! The program on real brokers: the broker is killed, in its absence the producer is killed, both come back.
#![cfg(all(feature = "cli", feature = "kafka", feature = "redis"))]

mod common;

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::time::Duration;

use common::{Acks, Child, KafkaServer, RedisServer, first_field, input_lines, seed, unique};

const LINES: usize = 10_000;
/// For one thing to happen; generous, since the machine is shared with a broker that starts.
const LIMIT: Duration = Duration::from_secs(120);

#[test]
fn no_acknowledged_line_is_lost_when_kafka_and_the_producer_are_killed() {
    let seed = seed("kafka outage");
    for round in 0..2 {
        let server = KafkaServer::up();
        let topic = unique("lines");
        common::kafka::create_topic(server.address(), &topic, 4);
        let url = format!("kafka://{}/{topic}", server.address());
        let sent = outage(seed + round, &url, || server.kill(), || server.start());
        // Partition by partition: a key's records are in the order in which they were appended.
        let records = common::kafka::read_all(server.address(), &topic);
        assert!(records.iter().all(|record| record.id.is_some()), "every record carries a message id");
        assert!(records.iter().all(|record| record.key.as_deref() == record.payload.as_deref().map(first_field)));
        let payloads = records.into_iter().map(|record| record.payload.expect("a payload")).collect();
        sent.compare(payloads);
    }
}

#[test]
fn no_acknowledged_line_is_lost_when_redis_and_the_producer_are_killed() {
    let seed = seed("redis outage");
    for round in 0..3 {
        let server = RedisServer::up();
        let stream = unique("lines");
        let url = format!("redis://{}?stream={stream}", server.address());
        let sent = outage(seed + round, &url, || server.kill(), || server.start());
        let entries = common::redis::read_all(server.address(), &stream);
        assert!(entries.iter().all(|entry| entry.message_id().is_some()), "every entry carries a message id");
        sent.compare(entries.iter().map(|entry| entry.field("payload").expect("a payload").to_vec()).collect());
    }
}

/// What was sent, and how often it may be there at most.
struct Sent {
    lines: Vec<Vec<u8>>,
    bound: usize,
}

/// Sends lines through the outage; returns when all are acknowledged and the program says all are delivered.
fn outage(seed: u64, url: &str, kill: impl Fn(), start: impl Fn()) -> Sent {
    println!("round with seed {seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    let dir = tempfile::tempdir().unwrap();
    let lines = input_lines(seed, LINES);
    let acks = Acks(dir.path().join("acks"));
    let (third, two_thirds) = (lines.len() / 3, lines.len() * 2 / 3);

    // The broker dies while some of the first third are on their way.
    let mut child = Child::spawn(&arguments(url, dir.path(), 1, Path::new("-")), dir.path());
    child.feed(&lines[..third]);
    acks.wait_for(third - rng.usize(..third / 4), &mut child, LIMIT);
    kill();
    child.feed(&lines[third..two_thirds]);
    acks.wait_for(third + rng.usize(..third), &mut child, LIMIT);
    // The producer dies with more on their way.
    child.feed_until_killed(&lines[two_thirds..]);
    acks.wait_for(third + rng.usize(..third) + 1, &mut child, LIMIT);
    child.kill();
    let bound = printed_bound(&child.printed());
    let last = acks.last();
    assert!(acks.read().iter().any(|(_, delivered)| !delivered), "nothing was stored: there was no outage");

    let file = dir.path().join("lines");
    std::fs::write(&file, lines.join(&b'\n')).unwrap();
    let mut child = Child::spawn(&arguments(url, dir.path(), last + 1, &file), dir.path());
    acks.wait_for(two_thirds + rng.usize(..third), &mut child, LIMIT);
    start();
    let status = child.wait(LIMIT);
    assert_eq!(status.code(), Some(0), "{}", child.printed());
    let acknowledged: Vec<u64> = acks.read().into_iter().map(|(line, _)| line).collect();
    assert_eq!(acknowledged, (1..=lines.len() as u64).collect::<Vec<_>>(), "each line once, in the order of the input");
    println!("killed behind line {last}");
    Sent { lines, bound }
}

fn arguments(url: &str, dir: &Path, from: u64, input: &Path) -> Vec<String> {
    let text = |path: &Path| path.to_str().expect("a path in UTF-8").to_owned();
    ["produce", "--key", "field:1", "--window", "500", "--drain-timeout", "100s", "--to", url, "--from-line"]
        .map(str::to_owned)
        .into_iter()
        .chain([from.to_string(), "--outbox".into(), text(&dir.join("outbox"))])
        .chain(["--ack-log".into(), text(&dir.join("acks")), text(input)])
        .collect()
}

/// The bound on duplicates that the program printed at its start.
fn printed_bound(printed: &str) -> usize {
    let number = printed.split("at most ").nth(1).and_then(|rest| rest.split(" duplicates").next());
    number.and_then(|number| number.replace(',', "").parse().ok()).unwrap_or_else(|| panic!("no bound in:\n{printed}"))
}

impl Sent {
    /// Compares with what arrived, in the order of arrival within each key.
    fn compare(&self, arrived: Vec<Vec<u8>>) {
        let mut counts: HashMap<&[u8], usize> = HashMap::new();
        for line in &arrived {
            *counts.entry(line).or_default() += 1;
        }
        let mut lost = 0;
        for line in &self.lines {
            // A line may be in the input more than once: then it has to be there as often.
            match counts.get_mut(line.as_slice()) {
                Some(count) if *count > 0 => *count -= 1,
                _ => lost += 1,
            }
        }
        assert_eq!(lost, 0, "acknowledged lines are missing");
        let duplicates = arrived.len() - self.lines.len();
        println!("{} arrived, {duplicates} duplicates; the bound is {}", arrived.len(), self.bound);
        assert!(duplicates <= self.bound, "{duplicates} duplicates, more than the {} that were announced", self.bound);
        assert_eq!(first_occurrences(&arrived), first_occurrences(&self.lines), "a key's order is broken");
    }
}

/// The different lines of each key, in their order.
fn first_occurrences(lines: &[Vec<u8>]) -> HashMap<&[u8], Vec<&[u8]>> {
    let mut seen = HashSet::new();
    let mut keys: HashMap<&[u8], Vec<&[u8]>> = HashMap::new();
    for line in lines {
        if seen.insert(line) {
            keys.entry(first_field(line)).or_default().push(line);
        }
    }
    keys
}
