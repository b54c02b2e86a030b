//! The Kafka transport against librdkafka's mock cluster: error codes, leader changes and outages that a real broker
//! does not produce on demand.

#![cfg(feature = "kafka")]

mod kafka_support;

use std::time::{Duration, Instant};

use kafka_support::{PATIENCE, Rig, Said, assert_ordered, id_of, is, read};
use outlast::transport::{Class, Outcome, Scope, Transport};
use outlast::{Message, MessageId, Outgoing};
use rdkafka::message::{Headers, Message as _, Timestamp};
use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr as Code};

type Mock = MockCluster<'static, DefaultProducerContext>;

fn mock(brokers: i32) -> (Mock, String) {
    let mock = MockCluster::new(brokers).expect("a mock cluster");
    let servers = mock.bootstrap_servers();
    (mock, servers)
}

fn numbered(topic: &str, key: &str, number: u64) -> Message {
    Message::to(topic).key(key.to_owned()).payload(number.to_string())
}

#[test]
fn what_goes_in_comes_out_byte_for_byte() {
    let (_mock, servers) = mock(1);
    let rig = Rig::new(&servers);
    let full =
        Message::to("t").key("k").payload("p").header("a", "1").null_header("n").header("a", "").timestamp(1_234);
    rig.submit(full.partition(0));
    rig.submit(Message::to("t").tombstone().key("k").partition(0));
    rig.submit(Message::to("t").key("").payload("").partition(0));
    rig.submit(Message::to("t").payload("no key").partition(0));
    let positions = rig.delivered(4);
    assert_eq!(positions, [(1, 0, 0), (2, 0, 1), (3, 0, 2), (4, 0, 3)]);
    let messages = read(&servers, "t", 1, 4);
    let first = &messages[0];
    assert_eq!((first.key(), first.payload()), (Some(&b"k"[..]), Some(&b"p"[..])));
    assert_eq!(first.timestamp(), Timestamp::CreateTime(1_234));
    let headers = first.headers().expect("headers");
    let shown: Vec<_> = headers.iter().map(|h| (h.key.to_owned(), h.value.map(<[u8]>::to_vec))).collect();
    let id = MessageId::new(0xbeef, 1).to_bytes().to_vec();
    let name = |text: &str| text.to_owned();
    assert_eq!(
        shown,
        [
            (name("a"), Some(b"1".to_vec())),
            (name("n"), None),
            (name("a"), Some(Vec::new())),
            (name("outlast-id"), Some(id))
        ]
    );
    assert_eq!((messages[1].key(), messages[1].payload()), (Some(&b"k"[..]), None), "a tombstone");
    assert_eq!(messages[3].key(), None);
    assert!(messages.iter().zip(1..).all(|(message, number)| id_of(message) == MessageId::new(0xbeef, number)));
    rig.transport.close(Duration::from_secs(5));
    rig.assert_silent();
}

#[test]
fn keys_keep_their_order_and_their_partition() {
    let (mock, servers) = mock(3);
    mock.create_topic("t", 4, 3).unwrap();
    let rig = Rig::new(&servers);
    for number in 0..2_000 {
        rig.submit(numbered("t", &format!("key-{}", number % 37), number));
    }
    rig.delivered(2_000);
    let firsts = assert_ordered(&read(&servers, "t", 4, 2_000));
    assert_eq!(firsts.values().map(Vec::len).sum::<usize>(), 2_000);
    let (_, handover) = rig.handover(numbered("t", "key-1", 0), false);
    let outgoing: &Outgoing = &handover.message;
    assert_eq!(rig.transport.partition(outgoing), Some((crc32fast::hash(b"key-1") % 4) as i32));
}

#[test]
fn a_broker_that_comes_back_gets_everything_in_order() {
    let (mock, servers) = mock(1);
    mock.create_topic("t", 2, 1).unwrap();
    let rig = Rig::new(&servers);
    rig.submit(numbered("t", "a", 0));
    rig.delivered(1);
    mock.broker_down(-1).unwrap();
    for number in 1..500 {
        rig.submit(numbered("t", "a", number));
    }
    rig.until(|said| matches!(said, Said::Down(failure) if is(failure, Class::Transient, Scope::Transport)));
    mock.broker_up(-1).unwrap();
    rig.until(|said| matches!(said, Said::Up));
    rig.delivered(499);
    let firsts = assert_ordered(&read(&servers, "t", 2, 500));
    assert_eq!(firsts[&b"a"[..]].len(), 500);
}

#[test]
fn a_moved_leader_loses_and_reorders_nothing() {
    let (mock, servers) = mock(3);
    mock.create_topic("t", 1, 3).unwrap();
    let rig = Rig::new(&servers);
    for round in 0..5 {
        mock.partition_leader("t", 0, Some(round % 3 + 1)).unwrap();
        for number in 0..200 {
            rig.submit(numbered("t", "a", round as u64 * 200 + number));
        }
    }
    rig.delivered(1_000);
    assert_eq!(assert_ordered(&read(&servers, "t", 1, 1_000))[&b"a"[..]].len(), 1_000);
}

#[test]
fn errors_that_pass_are_not_reported() {
    let (mock, servers) = mock(1);
    let rig = Rig::new(&servers);
    rig.submit(numbered("t", "a", 0));
    rig.delivered(1);
    let passing = [
        Code::RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION,
        Code::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS,
        Code::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS_AFTER_APPEND,
        Code::RD_KAFKA_RESP_ERR__TRANSPORT,
        Code::RD_KAFKA_RESP_ERR_KAFKA_STORAGE_ERROR,
    ];
    mock.request_errors(RDKafkaApiKey::Produce, &passing);
    for number in 1..100 {
        rig.submit(numbered("t", "a", number));
    }
    rig.delivered(99);
}

/// A permanent error concerns a batch: all of it is reported with the code, everything else is handed back, and the
/// next instance starts afresh. Nothing submitted meanwhile is accepted before the last report.
#[test]
fn an_error_that_does_not_pass_rebuilds_the_instance() {
    let cases = [
        (Code::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE, Class::Permanent, Scope::Lane),
        (Code::RD_KAFKA_RESP_ERR_INVALID_RECORD, Class::Permanent, Scope::Lane),
        (Code::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED, Class::Hold, Scope::Route),
        (Code::RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED, Class::Hold, Scope::Transport),
        (Code::RD_KAFKA_RESP_ERR_INVALID_PRODUCER_EPOCH, Class::Fatal, Scope::Transport),
        (Code::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER, Class::Fatal, Scope::Transport),
        (Code::RD_KAFKA_RESP_ERR_INVALID_TIMESTAMP, Class::Permanent, Scope::Lane),
        (Code::RD_KAFKA_RESP_ERR_POLICY_VIOLATION, Class::Hold, Scope::Route),
        (Code::RD_KAFKA_RESP_ERR_UNKNOWN, Class::Hold, Scope::Route),
    ];
    for (code, class, scope) in cases {
        let tried = (0..10).any(|_| rebuilds_after(code, class, scope));
        assert!(tried, "{code:?}: the machine is too slow to submit anything before the failure is known");
    }
}

/// One such error. False: somebody may have known of it before everything was submitted, and this proves nothing.
fn rebuilds_after(code: Code, class: Class, scope: Scope) -> bool {
    const ROUND_TRIP: Duration = Duration::from_millis(500);
    let (mock, servers) = mock(1);
    mock.create_topic("t", 1, 1).unwrap();
    let rig = Rig::new(&servers);
    rig.submit(numbered("t", "a", 0));
    rig.delivered(1);
    mock.broker_round_trip_time(-1, ROUND_TRIP).unwrap();
    mock.request_errors(RDKafkaApiKey::Produce, &[code]);
    let begun = Instant::now();
    let mut owned = Vec::new();
    for number in 1..50 {
        match rig.try_submit(numbered("t", "a", number)) {
            Ok(number) => owned.push(number),
            Err(failure) => assert_eq!(failure.class, Class::Fatal, "{code:?}"),
        }
    }
    if begun.elapsed() >= ROUND_TRIP {
        return false;
    }
    mock.broker_round_trip_time(-1, Duration::ZERO).unwrap();
    let reports = rig.reports(owned.len());
    let failed = reports.iter().filter_map(|(_, outcome)| match outcome {
        Outcome::Failed { failure, .. } => Some(failure),
        _ => None,
    });
    assert!(failed.clone().any(|failure| is(failure, class, scope)), "{code:?}: {reports:?}");
    assert!(failed.clone().all(|f| is(f, class, scope) || is(f, Class::Fatal, Scope::Transport)), "{reports:?}");
    let delivered: Vec<_> = reports.iter().filter(|(_, o)| matches!(o, Outcome::Delivered(_))).collect();
    assert!(delivered.is_empty(), "{code:?}: delivered behind the failure: {delivered:?}");
    for number in 1..50 {
        rig.submit_until_taken(&numbered("t", "a", number));
    }
    rig.delivered(49);
    assert_eq!(assert_ordered(&read(&servers, "t", 1, 50))[&b"a"[..]].len(), 50);
    rig.assert_silent();
    true
}

/// With its first batch's acknowledgement lost a broker may answer "I have that already" without saying where
/// (KAFKA-14312 and KAFKA-15591 tell how it may be wrong). librdkafka calls it a success.
#[test]
fn a_success_without_an_offset_is_no_acknowledgement() {
    let (mock, servers) = mock(1);
    mock.create_topic("t", 1, 1).unwrap();
    let rig = Rig::new(&servers);
    rig.submit(numbered("t", "a", 0));
    rig.delivered(1);
    mock.request_errors(RDKafkaApiKey::Produce, &[Code::RD_KAFKA_RESP_ERR_DUPLICATE_SEQUENCE_NUMBER]);
    rig.submit(numbered("t", "a", 1));
    let (number, failure, possibly) = rig.failure();
    assert_eq!((number, possibly), (2, true));
    assert!(is(&failure, Class::Fatal, Scope::Transport) && failure.reason.contains("offset"), "{failure:?}");
    rig.submit_until_taken(&numbered("t", "a", 1));
    rig.delivered(1);
    rig.assert_silent();
}

#[test]
fn a_message_tried_alone_gets_its_own_verdict_and_disturbs_nobody() {
    let (mock, servers) = mock(1);
    mock.create_topic("t", 1, 1).unwrap();
    let rig = Rig::new(&servers);
    rig.submit(numbered("t", "a", 0));
    rig.delivered(1);
    mock.request_errors(RDKafkaApiKey::Produce, &[Code::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE]);
    let poison = rig.submit_alone(numbered("t", "poison", 1));
    let (number, failure, possibly) = rig.failure();
    assert_eq!(number, poison);
    assert!(is(&failure, Class::Permanent, Scope::Lane), "{failure:?}");
    assert!(!possibly, "the broker said no");
    rig.submit(numbered("t", "a", 2));
    rig.delivered(1);
    let second = rig.submit_alone(numbered("t", "b", 3));
    assert_eq!(rig.delivered(1)[0].0, second, "a new solo instance");
    rig.assert_silent();
}

#[test]
fn an_unknown_topic_hands_back_quickly_and_says_when_it_is_there() {
    let (mock, servers) = mock(1);
    mock.topic_error("late", Code::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART).unwrap();
    let rig = Rig::new(&servers);
    let start = Instant::now();
    for number in 0..3 {
        rig.submit(numbered("late", "a", number));
    }
    rig.submit(numbered("other", "a", 0));
    let mut handed_back = Vec::new();
    for (number, outcome) in rig.reports(4) {
        match outcome {
            Outcome::Delivered(_) => assert_eq!(number, 4, "the other topic's"),
            Outcome::Failed { failure, possibly_delivered } => {
                assert!(is(&failure, Class::Hold, Scope::Route), "{failure:?}");
                assert!(failure.reason.contains("late") && failure.reason.contains("does not exist"), "{failure}");
                assert!(!possibly_delivered);
                handed_back.push(number);
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(handed_back, [1, 2, 3], "in order");
    assert!(start.elapsed() < Duration::from_secs(30), "took {:?}", start.elapsed());
    let refused = rig.try_submit(numbered("late", "a", 3)).expect_err("taken without waiting again");
    assert!(is(&refused, Class::Hold, Scope::Route), "{refused:?}");
    mock.topic_error("late", Code::RD_KAFKA_RESP_ERR_NO_ERROR).unwrap();
    rig.until(|said| matches!(said, Said::RouteUp(topic) if topic == "late"));
    rig.submit(numbered("late", "a", 4));
    rig.delivered(1);
}

#[test]
fn a_forbidden_topic_holds_its_route_only() {
    let (mock, servers) = mock(1);
    mock.topic_error("secret", Code::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED).unwrap();
    let rig = Rig::new(&servers);
    rig.submit(numbered("secret", "a", 0));
    let (_, failure, _) = rig.failure();
    assert!(is(&failure, Class::Hold, Scope::Route) && failure.reason.contains("not authorized"), "{failure:?}");
    rig.submit(numbered("open", "a", 0));
    rig.delivered(1);
}

/// The verdict was taken for one on the message, which was then refused each time it was tried, and never judged.
#[test]
fn a_topic_that_the_cluster_calls_illegal_holds_its_route() {
    let (mock, servers) = mock(1);
    mock.topic_error("odd", Code::RD_KAFKA_RESP_ERR_TOPIC_EXCEPTION).unwrap();
    let rig = Rig::new(&servers);
    rig.submit(numbered("odd", "a", 0));
    let (_, failure, _) = rig.failure();
    assert!(is(&failure, Class::Hold, Scope::Route) && failure.reason.contains("not legal"), "{failure:?}");
}

#[test]
fn nobody_there_is_told_and_owned_messages_stay_owned() {
    let rig = Rig::new("127.0.0.1:1");
    let number = rig.submit(numbered("t", "a", 0));
    // On a slow machine it is told before librdkafka says why, and then again.
    let said = rig.until(|said| matches!(said, Said::Down(failure) if failure.reason.contains("refused")));
    let Said::Down(failure) = said else { unreachable!() };
    assert!(is(&failure, Class::Transient, Scope::Transport), "{failure:?}");
    rig.transport.close(Duration::from_millis(100));
    let (reported, failure, possibly) = rig.failure();
    assert_eq!((reported, possibly), (number, false), "{failure}");
    assert!(rig.try_submit(numbered("t", "a", 1)).is_err(), "closed");
    rig.assert_silent();
}

#[test]
fn a_leaderless_partition_stops_neither_its_siblings_nor_keyless_messages() {
    let (mock, servers) = mock(1);
    mock.create_topic("t", 2, 1).unwrap();
    mock.partition_leader("t", 0, None).unwrap();
    let rig = Rig::new(&servers);
    let stuck = rig.submit(Message::to("t").key("a").payload("0").partition(0));
    for _ in 0..50 {
        rig.submit(Message::to("t").payload("1"));
    }
    let delivered = rig.delivered(50);
    assert!(delivered.iter().all(|&(number, partition, _)| number != stuck && partition == 1), "{delivered:?}");
    let failure = rig.try_submit(Message::to("t").key("a").partition(0)).expect_err("it owns one message");
    assert!(is(&failure, Class::Transient, Scope::Partition(0)) && failure.reason.contains("no leader"), "{failure:?}");
    rig.submit(Message::to("t").payload("1").partition(1));
    rig.delivered(1);
    mock.partition_leader("t", 0, Some(1)).unwrap();
    assert_eq!(rig.delivered(1)[0].0, stuck);
    let refused = rig.try_submit(Message::to("t").partition(2)).expect_err("there are two partitions");
    assert!(is(&refused, Class::Hold, Scope::Partition(2)), "{refused:?}");
}

#[test]
fn close_waits_for_what_is_under_way() {
    let (mock, servers) = mock(1);
    mock.broker_round_trip_time(-1, Duration::from_millis(300)).unwrap();
    let rig = Rig::new(&servers);
    for number in 0..10 {
        rig.submit(numbered("t", "a", number));
    }
    let start = Instant::now();
    rig.transport.close(PATIENCE);
    assert!(start.elapsed() < PATIENCE);
    rig.delivered(10);
    rig.assert_silent();
}

#[test]
fn close_reports_everything_within_its_grace() {
    let (mock, servers) = mock(1);
    let rig = Rig::new(&servers);
    rig.submit(numbered("t", "a", 0));
    rig.delivered(1);
    mock.broker_round_trip_time(-1, Duration::from_secs(600)).unwrap();
    for number in 1..100 {
        rig.submit(numbered("t", "a", number));
    }
    let start = Instant::now();
    rig.transport.close(Duration::from_millis(500));
    assert!(start.elapsed() < Duration::from_secs(30), "took {:?}", start.elapsed());
    let reports = rig.reports(99);
    assert!(reports.iter().all(|(_, outcome)| matches!(outcome, Outcome::Failed { .. })));
    rig.assert_silent();
}

/// A request that is on the wire when the instance is given up counts as possibly delivered.
#[test]
fn what_was_on_the_wire_is_possibly_delivered() {
    let (mock, servers) = mock(1);
    let rig = Rig::new(&servers);
    rig.submit(numbered("t", "a", 0));
    rig.delivered(1);
    mock.broker_round_trip_time(-1, Duration::from_secs(60)).unwrap();
    rig.submit(numbered("t", "a", 1));
    // Until it is written; nothing tells when.
    std::thread::sleep(Duration::from_secs(3));
    rig.transport.close(Duration::ZERO);
    let (_, failure, possibly) = rig.failure();
    assert!(possibly, "{failure}");
}
