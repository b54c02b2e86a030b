//! The Kafka transport against librdkafka's mock cluster: what one message or one partition must not do to the others.

#![cfg(feature = "kafka")]

mod kafka_support;

use std::time::{Duration, Instant};

use kafka_support::{Rig, assert_ordered, is, read};
use outlast::Message;
use outlast::transport::kafka::KafkaConfig;
use outlast::transport::{Class, Outcome, Scope, Transport};
use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr as Code};

type Mock = MockCluster<'static, DefaultProducerContext>;

fn mock(brokers: i32, partitions: i32) -> (Mock, String) {
    let mock = MockCluster::new(brokers).expect("a mock cluster");
    mock.create_topic("t", partitions, brokers).unwrap();
    let servers = mock.bootstrap_servers();
    (mock, servers)
}

fn config(servers: &str) -> KafkaConfig {
    KafkaConfig::new(servers.split(','))
}

fn numbered(key: &str, number: u64) -> Message {
    Message::to("t").key(key.to_owned()).payload(number.to_string())
}

/// A broker without state for a producer takes any first sequence number. librdkafka had the second batch written while
/// the first was on the wire: the first was refused for good, the second accepted, and a/2 lay in the topic before a/1.
#[test]
fn a_batch_behind_a_refused_first_one_overtakes_nothing() {
    assert!((0..20).any(|_| overtakes_nothing()), "the machine is too slow to submit before the failure is known");
}

/// One try. False: the second was taken when somebody may have known of the first one's failure, which proves nothing.
fn overtakes_nothing() -> bool {
    const ROUND_TRIP: Duration = Duration::from_millis(100);
    let (mock, servers) = mock(1, 2);
    mock.broker_round_trip_time(-1, ROUND_TRIP).unwrap();
    let rig = Rig::with(config(&servers).option("linger.ms", "0"));
    // The instance has its producer id, and nothing was sent to the other partition.
    rig.submit(Message::to("t").payload("p").partition(1));
    rig.delivered(1);
    mock.request_errors(RDKafkaApiKey::Produce, &[Code::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE]);
    let begun = Instant::now();
    let first = rig.submit(numbered("a", 1).partition(0));
    let mut second = None;
    // Into a batch of its own, and only while nobody can know that the first one failed.
    std::thread::sleep(ROUND_TRIP / 8);
    while second.is_none() && begun.elapsed() < ROUND_TRIP / 2 {
        second = rig.try_submit(numbered("a", 2).partition(0)).ok();
        if second.is_some() && begun.elapsed() >= ROUND_TRIP {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    // What was taken before the first one failed comes to nothing; the producer would not submit it after that.
    let reports = rig.reports(1);
    assert!(matches!(&reports[0], (number, Outcome::Failed { .. }) if *number == first), "{reports:?}");
    rig.reports(usize::from(second.is_some()));
    rig.submit_until_taken(&numbered("a", 1).partition(0));
    rig.submit_until_taken(&numbered("a", 2).partition(0));
    rig.reports(2);
    let firsts = assert_ordered(&read(&servers, "t", 1, 2));
    assert_eq!(firsts[&b"a"[..]], [1, 2]);
    true
}

/// A keyless message had no partition for the producer: late on a partition without a leader, it stopped the transport.
#[test]
fn where_a_keyless_message_goes_is_known_before() {
    for linger in ["0", "60000"] {
        let (_mock, servers) = mock(1, 8);
        let rig = Rig::with(config(&servers).option("sticky.partitioning.linger.ms", linger));
        rig.submit(Message::to("t").payload("first"));
        rig.delivered(1);
        for number in 0..50 {
            let message = Message::to("t").payload(number.to_string());
            let (_, handover) = rig.handover(message, false);
            let said = rig.transport.partition(&handover.message).expect("a partition");
            let mut handover = Some(handover);
            while let Some(again) = handover.take() {
                handover = rig.transport.submit(again).err().map(|refused| refused.handover);
            }
            assert_eq!(rig.delivered(1)[0].1, said, "linger {linger}");
        }
    }
}

#[test]
fn keyless_messages_avoid_a_partition_whose_broker_hangs() {
    let (mock, servers) = mock(2, 2);
    mock.partition_leader("t", 0, Some(1)).unwrap();
    mock.partition_leader("t", 1, Some(2)).unwrap();
    let rig = Rig::with(config(&servers));
    for partition in 0..2 {
        rig.submit(Message::to("t").payload("p").partition(partition));
    }
    rig.delivered(2);
    mock.broker_round_trip_time(1, Duration::from_secs(600)).unwrap();
    rig.submit(Message::to("t").payload("stuck").partition(0));
    std::thread::sleep(Duration::from_millis(2_500));
    for _ in 0..50 {
        rig.submit(Message::to("t").payload("free"));
    }
    assert!(rig.delivered(50).iter().all(|&(_, partition, _)| partition == 1));
}

/// Each message as large as one that was refused by itself brought the producing instance down, and with it everything that
/// was under way.
#[test]
fn a_size_that_was_refused_does_not_bring_the_instance_down_again() {
    let (mock, servers) = mock(1, 1);
    let rig = Rig::new(&servers);
    rig.submit(numbered("a", 0));
    rig.delivered(1);
    mock.request_errors(RDKafkaApiKey::Produce, &[Code::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE]);
    let large = |key: &str| Message::to("t").key(key.to_owned()).payload("1".repeat(5_000));
    rig.submit_alone(large("b"));
    assert!(is(&rig.failure().1, Class::Permanent, Scope::Lane));
    // The broker takes everything from here on; the transport does not know it.
    mock.broker_round_trip_time(-1, Duration::from_millis(100)).unwrap();
    let under_way = rig.submit(numbered("a", 1));
    let suspect = rig.submit(large("b"));
    for (number, outcome) in rig.reports(2) {
        match outcome {
            Outcome::Delivered(_) => assert_eq!(number, under_way),
            Outcome::Failed { failure, possibly_delivered } => {
                let known = is(&failure, Class::Permanent, Scope::Lane) && failure.reason.contains("too large");
                assert!(number == suspect && known && !possibly_delivered, "{number}: {failure}");
            }
            other => panic!("{other:?}"),
        }
    }
    // A larger one passes by itself: the topic's limit was raised.
    rig.submit_alone(large("b"));
    rig.delivered(1);
    rig.submit(large("b"));
    rig.delivered(1);
    rig.assert_silent();
}

/// A full queue was an outage: everything was stored until the next answer of a broker.
#[test]
fn a_full_queue_is_no_outage() {
    let (mock, servers) = mock(1, 4);
    let rig = Rig::with(config(&servers).option("queue.buffering.max.messages", "2"));
    for partition in 0..4 {
        rig.submit(Message::to("t").payload("p").partition(partition));
        rig.delivered(1);
    }
    mock.broker_round_trip_time(-1, Duration::from_secs(3)).unwrap();
    rig.submit(Message::to("t").payload("0").partition(0));
    rig.submit(Message::to("t").payload("1").partition(1));
    let refused = rig.try_submit(Message::to("t").payload("2").partition(2)).expect_err("full");
    assert!(is(&refused, Class::Transient, Scope::Partition(2)) && refused.reason.contains("queue"), "{refused}");
    rig.submit(Message::to("t").payload("2").partition(2));
    rig.delivered(3);
}

/// The verdict on one message that waited for its topic's metadata was given to all that waited; and any number of them
/// went to one partition, past its share.
#[test]
fn what_waited_for_metadata_is_judged_and_bounded_message_by_message() {
    let (mock, servers) = mock(1, 2);
    mock.partition_leader("t", 0, None).unwrap();
    // Metadata come once everything waits for them.
    mock.broker_round_trip_time(-1, Duration::from_secs(3)).unwrap();
    let rig = Rig::new(&servers);
    let stuck: Vec<_> = (0..3_000).map(|_| rig.submit(numbered("stuck", 1).partition(0))).collect();
    let nowhere = rig.submit(numbered("nowhere", 1).partition(7));
    let behind = rig.submit(numbered("nowhere", 2).partition(1));
    let free: Vec<_> = (0..100).map(|number| rig.submit(numbered("free", number).partition(1))).collect();
    mock.broker_round_trip_time(-1, Duration::ZERO).unwrap();
    let (mut delivered, mut handed_back) = (Vec::new(), 0);
    for (number, outcome) in rig.reports(3_000 - 1 + 2 + 100) {
        match outcome {
            Outcome::Delivered(_) => delivered.push(number),
            Outcome::Failed { failure, possibly_delivered } => {
                assert!(!possibly_delivered);
                if number == nowhere {
                    assert!(is(&failure, Class::Hold, Scope::Partition(7)), "{failure}");
                } else if number == behind {
                    assert!(is(&failure, Class::Fatal, Scope::Lane), "{failure}");
                } else {
                    assert!(stuck.contains(&number) && number != stuck[0]);
                    let alike = is(&failure, Class::Transient, Scope::Partition(0)) || failure.class == Class::Fatal;
                    assert!(alike, "{failure:?}");
                    handed_back += 1;
                }
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((delivered, handed_back), (free, 2_999));
    mock.partition_leader("t", 0, Some(1)).unwrap();
    assert_eq!(rig.delivered(1)[0].0, stuck[0]);
    rig.assert_silent();
}

/// So much belonged to partitions that hang that little else could be sent: all of it comes back.
#[test]
fn everything_is_handed_back_when_asked_for() {
    let (mock, servers) = mock(1, 2);
    // From the beginning: the mock cluster does not survive a message to a partition that has just lost its leader.
    mock.partition_leader("t", 0, None).unwrap();
    let rig = Rig::new(&servers);
    rig.submit(Message::to("t").payload("p").partition(1));
    rig.delivered(1);
    let stuck = [rig.submit(numbered("stuck", 1).partition(0))];
    rig.transport.hand_back();
    let reports = rig.reports(stuck.len());
    let fatal = |outcome: &Outcome| matches!(outcome, Outcome::Failed { failure, .. } if failure.class == Class::Fatal);
    assert!(reports.iter().all(|(_, outcome)| fatal(outcome)), "{reports:?}");
    rig.submit_until_taken(&Message::to("t").payload("free").partition(1));
    rig.delivered(1);
}
