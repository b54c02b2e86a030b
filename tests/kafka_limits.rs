//! Limits of brokers and of runs, against real Kafka brokers: a broker that closes the connection instead of refusing, a
//! message larger than the run that delivers it would accept, a quota, a broker whose name does not resolve.

#![cfg(all(feature = "kafka", feature = "cli"))]

mod common;
mod kafka_support;

use std::collections::HashSet;
use std::path::Path;
use std::time::Duration;

use common::kafka::{change_topic, create_topic, create_topic_with, read_all};
use common::{KafkaServer, kafka_address, limit_client, run, unique, wait_until};
use kafka_support::{Rig, is};
use outlast::transport::{Class, Scope};
use outlast::{Builder, Event, Message, Mode, OnPoison, Producer, Receipt, RouteConfig};
use rdkafka::mocking::MockCluster;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
use tempfile::TempDir;

/// Longer than anything may take that a test waits for.
const PATIENCE: Duration = Duration::from_secs(120);

fn builder(directory: &Path, broker: &str) -> Builder {
    Producer::builder().outbox(directory).url(format!("kafka://{broker}")).first_attempt(Duration::from_secs(1))
}

fn keyed(topic: &str, key: &str, payload: impl Into<Vec<u8>>) -> Message {
    Message::to(topic).key(key.to_owned()).payload(payload.into())
}

/// What health says of this, if it does.
fn alert(producer: &Producer, part: &str) -> Option<String> {
    producer.health().alerts.into_iter().find(|alert| alert.contains(part))
}

/// The program, with its output on one string.
fn outlast(args: &[&str], input: &[u8]) -> (Option<i32>, String) {
    let output = run(args, input);
    (output.code, output.stdout + &output.stderr)
}

/// A broker whose `socket.request.max.bytes` is exceeded closes the connection. librdkafka sent the same batch again for
/// ever, and everything behind it waited.
#[test]
fn a_broker_that_closes_the_connection_instead_of_refusing_holds_up_one_key_alone() {
    let server = KafkaServer::up_with("socket.request.max.bytes=150000");
    let broker = server.address();
    many_small_messages_go_in_smaller_batches(broker);
    let (topic, held) = (unique("cut"), unique("cut-held"));
    create_topic(broker, &topic, 1);
    create_topic(broker, &held, 1);
    let place = TempDir::new().unwrap();
    let route =
        RouteConfig { destination: held.as_str().into(), on_poison: Some(OnPoison::Hold), ..Default::default() };
    let producer = builder(&place.path().join("outbox"), broker).route(route).open_blocking().unwrap();
    let mut events = producer.events();

    // As long as nothing else was acknowledged, it may be the broker's fault: the message is held, and named.
    let large = producer.blocking_send(keyed(&topic, "large", vec![b'x'; 500_000])).unwrap();
    let id = large.id().to_string();
    assert!(matches!(large, Receipt::Stored { .. }), "{large:?}");
    wait_until("health names the message that is held", PATIENCE, || alert(&producer, &id).is_some());
    let text = alert(&producer, &id).unwrap_or_default();
    assert!(text.contains("socket.request.max.bytes") && text.contains(&topic), "{text}");
    assert_eq!((producer.stats().pending, producer.stats().dead), (1, 0));

    // Others pass: now the verdict is the message's own, and its key goes on without it.
    let behind = producer.blocking_send(keyed(&topic, "large", "behind")).unwrap();
    assert!(matches!(behind, Receipt::Stored { .. }), "its key waits: {behind:?}");
    for number in 0..20 {
        producer.blocking_send(keyed(&topic, &format!("other-{number}"), "passes")).unwrap();
    }
    wait_until("a dead letter", PATIENCE, || producer.stats().dead == 1 && producer.stats().pending == 0);
    let mut reason = String::new();
    wait_until("the event of a dead letter", PATIENCE, || {
        while let Some(event) = events.try_next() {
            if let Event::DeadLettered { id: dead, reason: why, .. } = event {
                assert_eq!(dead.to_string(), id);
                reason = why;
            }
        }
        !reason.is_empty()
    });
    assert!(reason.contains(&id) && reason.contains("500005 bytes") && reason.contains("takes others"), "{reason}");
    let payloads: HashSet<Vec<u8>> = read_all(broker, &topic).into_iter().filter_map(|record| record.payload).collect();
    assert_eq!(payloads, HashSet::from([b"behind".to_vec(), b"passes".to_vec()]));

    // Where poison is to be held, it is; the other topic's messages go on passing meanwhile.
    let large = producer.blocking_send(keyed(&held, "large", vec![b'x'; 500_000])).unwrap();
    let id = large.id().to_string();
    wait_until("the message is held for good", PATIENCE, || {
        producer.blocking_send(keyed(&held, "other", "passes")).unwrap();
        alert(&producer, &id).is_some_and(|text| text.contains("takes others"))
    });
    assert_eq!((producer.stats().pending, producer.stats().dead), (1, 1));
    producer.blocking_close(Duration::from_secs(2)).unwrap();
}

/// Batches of small messages are beyond the limit, and no message is.
fn many_small_messages_go_in_smaller_batches(broker: &str) {
    let topic = unique("cut-batches");
    create_topic(broker, &topic, 1);
    let place = TempDir::new().unwrap();
    let outbox = place.path().join("outbox");
    let lines: Vec<String> = (0..5_000).map(|number| format!("{number:06} {}", "x".repeat(103))).collect();
    let input = lines.join("\n") + "\n";
    let (to, outbox) = (format!("kafka://{broker}/{topic}"), outbox.to_string_lossy().into_owned());
    let (code, said) =
        outlast(&["produce", "--to", &to, "--outbox", &outbox, "--drain-timeout", "120s"], input.as_bytes());
    assert_eq!(code, Some(0), "{said}");
    let found: HashSet<Vec<u8>> = read_all(broker, &topic).into_iter().filter_map(|record| record.payload).collect();
    assert_eq!(found, lines.into_iter().map(String::into_bytes).collect());
}

/// The client was configured for what this run accepts, and refused what an earlier run had accepted. The reason named the
/// broker, and the message could not even become a dead letter.
#[test]
fn what_lies_in_the_outbox_is_delivered_whatever_this_run_would_accept() {
    let broker = kafka_address();
    let (wide, narrow) = (unique("wide"), unique("narrow"));
    create_topic_with(&broker, &wide, 1, &[("max.message.bytes", "10000000")]);
    create_topic(&broker, &narrow, 1);
    let place = TempDir::new().unwrap();
    let directory = place.path().join("outbox");
    let outbox = directory.to_string_lossy().into_owned();
    let producer = builder(&directory, "127.0.0.1:1").mode(Mode::WriteAhead).max_message_bytes(8 << 20).open_blocking();
    let producer = producer.unwrap();
    for topic in [&wide, &narrow] {
        producer.blocking_send(keyed(topic, "k", vec![b'x'; 5 << 20])).unwrap();
    }
    producer.blocking_close(Duration::ZERO).unwrap();

    // A limit that is set by hand is the client's own: it says so, and nothing is lost.
    let own = format!("kafka://{broker}?message.max.bytes=2000000");
    let (code, said) = outlast(&["drain", "--to", &own, "--outbox", &outbox, "--timeout", "3s"], b"");
    assert_eq!(code, Some(3), "{said}");
    let (_, status) = outlast(&["status", "--outbox", &outbox], b"");
    assert!(status.contains("own option message.max.bytes (2000000)") && status.contains("pending: 2"), "{status}");

    // With the defaults one is delivered, and the reason for the other names the topic's limit.
    let to = format!("kafka://{broker}");
    let (code, said) = outlast(&["drain", "--to", &to, "--outbox", &outbox, "--timeout", "120s"], b"");
    assert!(code == Some(3) && said.contains("1 message delivered"), "{said}");
    let sizes = |topic: &str| -> Vec<usize> {
        read_all(&broker, topic).iter().map(|record| record.payload.as_ref().map_or(0, Vec::len)).collect()
    };
    assert_eq!((sizes(&wide), sizes(&narrow)), (vec![5 << 20], vec![]));
    let (_, letters) = outlast(&["dead", "list", "--outbox", &outbox], b"");
    assert!(letters.contains("the topic's max.message.bytes"), "{letters}");

    // Requeued, it is delivered once the topic takes it.
    change_topic(&broker, &narrow, &[("max.message.bytes", "10000000")]);
    let (code, said) = outlast(&["dead", "requeue", "--outbox", &outbox, "--all"], b"");
    assert_eq!(code, Some(0), "{said}");
    let (code, said) = outlast(&["drain", "--to", &to, "--outbox", &outbox, "--timeout", "120s"], b"");
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(sizes(&narrow), vec![5 << 20]);
}

/// A producer beyond its quota reported that the broker cannot be reached.
#[test]
fn a_broker_that_throttles_is_said_to_throttle() {
    let (broker, topic, client) = (kafka_address(), unique("quota"), unique("client"));
    create_topic(&broker, &topic, 1);
    limit_client(&broker, &client, 20_000);
    let place = TempDir::new().unwrap();
    let directory = place.path().join("outbox");
    let url = format!("{broker}?client.id={client}");
    let producer = builder(&directory, &url).open_blocking().unwrap();
    for number in 0..40 {
        producer.blocking_send(keyed(&topic, &format!("key-{number}"), vec![b'x'; 20_000])).unwrap();
        if alert(&producer, "throttles").is_some() {
            break;
        }
    }
    wait_until("health says that the broker throttles", PATIENCE, || alert(&producer, "throttles").is_some());
    let said = || outlast(&["status", "--outbox", &directory.to_string_lossy()], b"").1;
    wait_until("the file status says so, too", PATIENCE, || said().contains("throttles this producer"));
    let _ = producer.blocking_close(Duration::ZERO).unwrap();
}

/// The cluster answers, but the broker that leads the partition has a name that does not resolve: which it is was said
/// once at most, and forgotten with the next answer.
#[test]
fn status_names_the_broker_whose_name_does_not_resolve() {
    let server = KafkaServer::up_with(
        "advertised.listeners=PLAINTEXT://no-such-host.invalid:9092\nauto.create.topics.enable=true",
    );
    let place = TempDir::new().unwrap();
    let directory = place.path().join("outbox");
    let producer = builder(&directory, server.address()).open_blocking().unwrap();
    let topic = unique("unresolved");
    let receipt = producer.blocking_send(keyed(&topic, "k", "p")).unwrap();
    assert!(matches!(receipt, Receipt::Stored { .. }), "{receipt:?}");
    let named = || {
        let stats = producer.stats();
        let blocked = stats.routes.iter().find_map(|route| Some(route.blocked.as_ref()?.reason.clone()));
        let down = stats.transports.iter().find_map(|transport| transport.reason.clone());
        [blocked, down].into_iter().flatten().any(|reason| reason.contains("no-such-host.invalid:9092"))
    };
    wait_until("the host is named", PATIENCE, named);
    // It stays so, whatever else is said meanwhile.
    let lost = std::cell::Cell::new(0);
    for _ in 0..50 {
        std::thread::sleep(Duration::from_millis(100));
        lost.set(lost.get() + u32::from(!named()));
    }
    assert_eq!(lost.get(), 0, "of 50 times");
    producer.blocking_close(Duration::ZERO).unwrap();
}

/// A broker that closes every connection it gets a message on, or something on the way to it, is to blame itself: no message
/// is condemned for it, and two cut connections are no evidence at all.
#[test]
fn a_broker_that_takes_nothing_condemns_no_message() {
    // The mock broker closes the connection for this error.
    const CUT: RDKafkaRespErr = RDKafkaRespErr::RD_KAFKA_RESP_ERR__TRANSPORT;
    let mock = MockCluster::new(1).expect("a mock cluster");
    mock.create_topic("t", 1, 1).unwrap();
    let rig = Rig::new(&mock.bootstrap_servers());
    rig.submit(keyed("t", "a", "0"));
    rig.delivered(1);
    mock.request_errors(RDKafkaApiKey::Produce, &[CUT; 2]);
    rig.submit(keyed("t", "a", "1"));
    rig.delivered(1);

    mock.request_errors(RDKafkaApiKey::Produce, &[CUT; 1_000]);
    let number = rig.submit(keyed("t", "a", "2"));
    let (suspect, failure, _) = rig.failure();
    assert!(suspect == number && is(&failure, Class::Permanent, Scope::Lane), "to be tried by itself: {failure}");
    let alone = || rig.try_submit_alone(keyed("t", "a", "2"));
    wait_until("it is taken to be tried by itself", PATIENCE, || alone().is_ok());
    let (_, failure, _) = rig.failure();
    assert!(is(&failure, Class::Hold, Scope::Lane) && failure.reason.contains("no other since"), "{failure}");

    mock.clear_request_errors(RDKafkaApiKey::Produce);
    wait_until("it is taken again", PATIENCE, || alone().is_ok());
    rig.delivered(1);
    rig.assert_silent();
}
