//! The demonstration's last word: what the broker has, compared with what was acknowledged.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::Message;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::{PARTITIONS, TOPIC};
use crate::exit::Problem;

/// How long reading may take without anything coming.
const PATIENCE: Duration = Duration::from_secs(20);

/// What was found.
#[derive(Debug, PartialEq, Eq)]
pub struct Verdict {
    pub records: usize,
    /// Acknowledged lines that are not there.
    pub lost: usize,
    /// Records beyond one a line.
    pub duplicates: usize,
    pub keys: usize,
    /// Keys whose lines are, at their first occurrence, not in the order they were sent in.
    pub disordered: usize,
}

/// Reads everything from the broker and compares it with the lines, all of which were acknowledged.
pub fn check(broker: &str, lines: &[&[u8]]) -> Result<Verdict, Problem> {
    let records = read(broker)?;
    let records: Vec<&[u8]> = records.iter().map(Vec::as_slice).collect();
    Ok(compare(lines, &records))
}

/// Records are ordered within their partition, and so within their key.
fn compare(lines: &[&[u8]], records: &[&[u8]]) -> Verdict {
    let (sent, arrived) = (count(lines), count(records));
    let there = |line: &&[u8]| arrived.get(line).copied().unwrap_or(0);
    let lost = sent.iter().map(|(line, times)| times.saturating_sub(there(line))).sum();
    let duplicates =
        arrived.iter().map(|(line, times)| times.saturating_sub(sent.get(line).copied().unwrap_or(0))).sum();
    let (expected, found) = (first_occurrences(lines), first_occurrences(records));
    let disordered =
        expected.iter().filter(|(key, lines)| found.get(*key).is_some_and(|found| found != *lines)).count();
    Verdict { records: records.len(), lost, duplicates, keys: expected.len(), disordered }
}

fn count<'a>(lines: &[&'a [u8]]) -> HashMap<&'a [u8], usize> {
    let mut counts = HashMap::new();
    for line in lines {
        *counts.entry(*line).or_default() += 1;
    }
    counts
}

/// The different lines of each key, in their order.
fn first_occurrences<'a>(lines: &[&'a [u8]]) -> HashMap<&'a [u8], Vec<&'a [u8]>> {
    let mut seen = HashSet::new();
    let mut keys: HashMap<&[u8], Vec<&[u8]>> = HashMap::new();
    for line in lines {
        // As `--key field:1` has it; what has no key has no order.
        let text = line.strip_suffix(b"\r").unwrap_or(line);
        let key = text.split(|byte| *byte == b' ' || *byte == b'\t').find(|field| !field.is_empty());
        if let (Some(key), true) = (key, seen.insert(*line)) {
            keys.entry(key).or_default().push(*line);
        }
    }
    keys
}

/// The payloads of all records, partition by partition.
fn read(broker: &str) -> Result<Vec<Vec<u8>>, Problem> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", broker)
        .set("group.id", "outlast-demo")
        .set("enable.partition.eof", "true")
        .create()
        .map_err(Problem::failed)?;
    let mut assignment = TopicPartitionList::new();
    for partition in 0..PARTITIONS {
        assignment.add_partition_offset(TOPIC, partition, Offset::Beginning).map_err(Problem::failed)?;
    }
    consumer.assign(&assignment).map_err(Problem::failed)?;
    let mut records: Vec<Vec<Vec<u8>>> = vec![Vec::new(); PARTITIONS as usize];
    let mut open = PARTITIONS;
    let mut progress = Instant::now();
    while open > 0 {
        match consumer.poll(Duration::from_millis(100)) {
            Some(Ok(record)) => {
                records[record.partition() as usize].push(record.payload().unwrap_or_default().to_vec());
                progress = Instant::now();
            }
            Some(Err(KafkaError::PartitionEOF(_))) => open -= 1,
            // The client tries again by itself.
            Some(Err(_)) | None if progress.elapsed() < PATIENCE => {}
            Some(Err(e)) => return Err(Problem::failed(format!("reading from the broker: {e}"))),
            None => return Err(Problem::failed("the broker does not answer the reader")),
        }
    }
    Ok(records.concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(lines: &[&str], records: &[&str]) -> (usize, usize, usize) {
        let bytes = |texts: &[&'static str]| texts.iter().map(|text| text.as_bytes()).collect::<Vec<_>>();
        let leak = |texts: &[&str]| texts.iter().map(|text| &*text.to_string().leak()).collect::<Vec<&'static str>>();
        let verdict = compare(&bytes(&leak(lines)), &bytes(&leak(records)));
        (verdict.lost, verdict.duplicates, verdict.disordered)
    }

    #[test]
    fn loss_repetition_and_disorder_are_told_apart() {
        let sent = ["a 1", "b 1", "a 2", "a 3"];
        assert_eq!(verdict(&sent, &["b 1", "a 1", "a 2", "a 3"]), (0, 0, 0));
        assert_eq!(verdict(&sent, &["b 1", "a 1", "a 2", "a 1", "a 2", "a 3"]), (0, 2, 0));
        assert_eq!(verdict(&sent, &["b 1", "a 2", "a 1", "a 3"]), (0, 0, 1));
        assert_eq!(verdict(&sent, &["a 1", "a 2", "a 3"]), (1, 0, 0));
        assert_eq!(verdict(&["x", "x", ""], &["x", ""]), (1, 0, 0));
    }
}
