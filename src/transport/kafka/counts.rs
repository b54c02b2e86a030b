//! What librdkafka counts, read from its statistics: what was sent to each partition, how often the connection to each
//! broker broke, for how long a broker makes this client wait.
//!
//! Only what the transport needs; everything else in the document, and a document of another shape, is skipped.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;

/// The counts since an instance was made, as of one moment.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// The brokers it knows by their numbers.
    pub(super) brokers: BTreeMap<i32, BrokerCounts>,
    /// The partitions it sends to.
    pub(super) partitions: Vec<PartitionCounts>,
}

/// One broker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct BrokerCounts {
    /// How often an established connection broke.
    pub(super) disconnects: u64,
    /// Requests that were not answered in time, for which librdkafka itself breaks the connection.
    pub(super) timeouts: u64,
    /// The longest time that it asked this client to wait since the counts before, for a quota; zero: it did not.
    pub(super) throttle: Duration,
}

/// One partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PartitionCounts {
    pub(super) topic: String,
    pub(super) partition: i32,
    /// The broker that its messages go to.
    pub(super) broker: i32,
    /// Messages put into requests, each as often as that happened.
    pub(super) sent: u64,
    /// The number, in librdkafka's counting, of the last message that was acknowledged.
    pub(super) acknowledged: u64,
}

#[derive(Deserialize)]
struct Document {
    #[serde(default)]
    brokers: BTreeMap<String, Broker>,
    #[serde(default)]
    topics: BTreeMap<String, Topic>,
}

#[derive(Deserialize)]
struct Broker {
    nodeid: i32,
    #[serde(default)]
    disconnects: u64,
    #[serde(default)]
    req_timeouts: u64,
    #[serde(default)]
    throttle: Window,
}

/// A window of measured values; they are milliseconds here.
#[derive(Default, Deserialize)]
struct Window {
    #[serde(default)]
    max: i64,
}

#[derive(Deserialize)]
struct Topic {
    #[serde(default)]
    partitions: BTreeMap<String, Partition>,
}

#[derive(Deserialize)]
struct Partition {
    partition: i32,
    broker: i32,
    #[serde(default)]
    txmsgs: u64,
    #[serde(default)]
    acked_msgid: u64,
}

/// Reads librdkafka's statistics. `None`: they have another shape than those of version 2.12.
pub(super) fn read(json: &[u8]) -> Option<Counts> {
    let document: Document = serde_json::from_slice(json).ok()?;
    let mut counts = Counts::default();
    // The ones to ask first have no number until they were reached, and nothing is sent to them.
    for broker in document.brokers.into_values().filter(|broker| broker.nodeid >= 0) {
        let throttle = Duration::from_millis(broker.throttle.max.max(0).unsigned_abs());
        let (disconnects, timeouts) = (broker.disconnects, broker.req_timeouts);
        counts.brokers.insert(broker.nodeid, BrokerCounts { disconnects, timeouts, throttle });
    }
    for (topic, described) in document.topics {
        for partition in described.partitions.into_values().filter(|partition| partition.txmsgs > 0) {
            counts.partitions.push(PartitionCounts {
                topic: topic.clone(),
                partition: partition.partition,
                broker: partition.broker,
                sent: partition.txmsgs,
                acknowledged: partition.acked_msgid,
            });
        }
    }
    Some(counts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_needed_is_read_and_the_rest_is_skipped() {
        let json = br#"{ "name": "outlast#producer-1", "ts": 5, "brokers": {
            "h:1/bootstrap": { "name": "h:1/bootstrap", "nodeid": -1, "disconnects": 9, "toppars": {} },
            "h:1/7": { "name": "h:1/7", "nodeid": 7, "state": "UP", "disconnects": 2, "req_timeouts": 1,
                "throttle": { "min": 0, "max": 1250, "avg": 3, "cnt": 4 }, "req": { "Produce": 3 } } },
          "topics": { "t": { "topic": "t", "age": 1, "partitions": {
            "0": { "partition": 0, "broker": 7, "leader": 7, "txmsgs": 4, "acked_msgid": 3 },
            "1": { "partition": 1, "broker": 7, "leader": 7, "txmsgs": 0, "acked_msgid": 0 },
            "-1": { "partition": -1, "broker": -1, "leader": -1, "txmsgs": 0, "acked_msgid": 0 } } } },
          "tx": 12, "txmsgs": 4 }"#;
        let counts = read(json).expect("it is read");
        let broker = BrokerCounts { disconnects: 2, timeouts: 1, throttle: Duration::from_millis(1_250) };
        assert_eq!(counts.brokers.into_iter().collect::<Vec<_>>(), [(7, broker)]);
        let partition = PartitionCounts { topic: "t".into(), partition: 0, broker: 7, sent: 4, acknowledged: 3 };
        assert_eq!(counts.partitions, [partition]);
    }

    #[test]
    fn a_document_of_another_shape_says_nothing() {
        for json in ["", r#"{"brokers":[]}"#, r#"{"brokers":{"b":{"nodeid":"seven"}}}"#] {
            assert_eq!(read(json.as_bytes()), None, "{json}");
        }
        assert_eq!(read(b"{}"), Some(Counts::default()));
    }
}
