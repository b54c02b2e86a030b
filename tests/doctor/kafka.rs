//! Kafka: three brokers as they should be, and each thing that is not.

use std::ffi::CStr;
use std::net::TcpListener;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use outlast::Message;
use rdkafka::ClientConfig;
use rdkafka::admin::AdminClient;
use rdkafka::bindings::{self as sys, rd_kafka_AclOperation_t as Operation};
use rdkafka::client::DefaultClientContext;
use rdkafka::mocking::MockCluster;

use super::common::kafka::{create_topic, create_topic_with};
use super::common::{Kafka3Server, kafka_address, unique, wait_until};
use super::guarded::{Guarded, SECRET};
use super::{ask, doctor, on_disk, outbox_with, text};

/// The problems of every topic on the shared broker: it is alone.
const ALONE: [&str; 2] = ["min-insync-replicas", "too-few-replicas"];

fn url(topic: &str) -> String {
    format!("kafka://{}/{topic}", kafka_address())
}

fn ahead(seconds: i64) -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_millis();
    i64::try_from(now).expect("a time") + seconds * 1_000
}

/// The doctor's words about an outbox with one message for the topic, stamped so many seconds ahead.
fn with_pending(topic: &str, seconds: i64) -> super::Said {
    with_pending_and(topic, seconds, "hold")
}

/// The same with `expired-times`.
fn with_pending_and(topic: &str, seconds: i64, policy: &str) -> super::Said {
    let dir = on_disk();
    let outbox = outbox_with(dir.path(), vec![Message::to(topic).payload("1").timestamp(ahead(seconds))]);
    let url = format!("kafka://{}?expired-times={policy}", kafka_address());
    doctor(&["--outbox", text(&outbox), "--to", &url, "--timeout", "30s"])
}

/// Asks until these are the problems: of three brokers each hears of a new topic in its own time.
fn ask_until(url: &str, problems: &[&str]) {
    let mut said = ask(url);
    let begun = Instant::now();
    while said.problems() != problems && begun.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(50));
        said = ask(url);
    }
    if problems.is_empty() { said.is_healthy() } else { said.problems_are(problems) }
}

#[test]
fn three_brokers_as_they_should_be_have_no_problem() {
    let cluster = Kafka3Server::up();
    let url = |topic: &str| format!("kafka://{}/{topic}", cluster.address());
    create_topic(cluster.address(), "orders", 3);
    ask_until(&url("orders"), &[]);
    // Without a topic there is less to ask.
    ask_until(&url(""), &[]);

    ask_until(&url("nope"), &["topic-missing"]);
    create_topic_with(cluster.address(), "lonely", 1, &[("min.insync.replicas", "1")]);
    ask_until(&url("lonely"), &["min-insync-replicas"]);
    create_topic_with(cluster.address(), "unclean", 1, &[("unclean.leader.election.enable", "true")]);
    ask_until(&url("unclean"), &["unclean-leader-election"]);
}

#[test]
fn a_topic_that_is_missing_is_found_and_not_made() {
    let topic = unique("missing");
    ask(&url(&topic)).problems_are(&["topic-missing"]);
    // Also where only a message that waits names it.
    with_pending(&topic, 0).problems_are(&["topic-missing"]);
}

#[test]
fn min_insync_replicas_of_one_is_found() {
    let topic = unique("min-isr");
    create_topic_with(&kafka_address(), &topic, 1, &[("min.insync.replicas", "1")]);
    let said = ask(&url(&topic));
    said.problems_are(&ALONE);
    assert_eq!(said.problem("min-insync-replicas")["subject"], format!("kafka/{topic}"));
}

#[test]
fn retention_below_the_age_of_what_waits_is_found() {
    let topic = unique("retention");
    create_topic_with(&kafka_address(), &topic, 1, &[("retention.ms", "3600000")]);
    with_pending_and(&topic, -7_200, "send").problems_are(&["min-insync-replicas", "retention", "too-few-replicas"]);
    // It waits, or gets another time.
    let said = with_pending(&topic, -7_200);
    said.problems_are(&ALONE);
    said.has_note("retention");
    let said = with_pending_and(&topic, -2_400, "send");
    said.problems_are(&ALONE);
    said.has_note("retention");

    let topic = unique("appended");
    let settings = [("retention.ms", "3600000"), ("message.timestamp.type", "LogAppendTime")];
    create_topic_with(&kafka_address(), &topic, 1, &settings);
    with_pending(&topic, -7_200).problems_are(&ALONE);
}

#[test]
fn a_topic_that_takes_only_smaller_messages_is_found() {
    let topic = unique("small");
    create_topic_with(&kafka_address(), &topic, 1, &[("max.message.bytes", "100000")]);
    let said = ask(&url(&topic));
    said.problems_are(&["message-too-large", "min-insync-replicas", "too-few-replicas"]);
    assert!(said.problem("message-too-large")["what"].as_str().unwrap().contains("100000"));
}

#[test]
fn limits_of_timestamps_are_held_against_what_waits() {
    let topic = unique("before");
    create_topic_with(&kafka_address(), &topic, 1, &[("message.timestamp.before.max.ms", "60000")]);
    let problems = ["min-insync-replicas", "timestamp-limits", "too-few-replicas"];
    with_pending_and(&topic, -600, "send").problems_are(&problems);
    let said = with_pending_and(&topic, -600, "restamp");
    said.problems_are(&ALONE);
    said.has_note("timestamp-limits");
    let said = with_pending(&topic, 0);
    said.problems_are(&ALONE);
    said.has_note("timestamp-limits");

    let topic = unique("after");
    create_topic_with(&kafka_address(), &topic, 1, &[("message.timestamp.after.max.ms", "60000")]);
    let said = with_pending_and(&topic, 600, "send");
    said.problems_are(&problems);
    assert!(said.problem("timestamp-limits")["what"].as_str().unwrap().contains("ahead of this clock"));
}

#[test]
fn a_broker_that_is_not_there_or_says_nothing_is_found_within_the_limit() {
    ask(&format!("kafka://{}/orders", super::NOWHERE)).problems_are(&["unreachable"]);
    // No name has a part this long, so that no resolver need be asked.
    ask(&format!("kafka://{}.example:9092/orders", "a".repeat(64))).problems_are(&["unknown-host"]);

    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let dir = on_disk();
    let url = format!("kafka://{}/orders", silent.local_addr().unwrap());
    let begun = Instant::now();
    let outbox = dir.path().join("outbox");
    let said = doctor(&["--outbox", text(&outbox), "--to", &url, "--timeout", "2s"]);
    said.problems_are(&["no-answer"]);
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
}

/// Lets a user do something with a topic.
fn allow(broker: &str, user: &CStr, topic: &CStr, operation: Operation) {
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", broker).create().expect("an admin client");
    let client = admin.inner().native_ptr();
    let mut reason = [0; 256];
    // SAFETY: the client outlives the calls, the strings are static, what is made is freed once, results are read before
    // the event that owns them is freed.
    unsafe {
        let mut binding = sys::rd_kafka_AclBinding_new(
            sys::rd_kafka_ResourceType_t::RD_KAFKA_RESOURCE_TOPIC,
            topic.as_ptr(),
            sys::rd_kafka_ResourcePatternType_t::RD_KAFKA_RESOURCE_PATTERN_LITERAL,
            user.as_ptr(),
            c"*".as_ptr(),
            operation,
            sys::rd_kafka_AclPermissionType_t::RD_KAFKA_ACL_PERMISSION_TYPE_ALLOW,
            reason.as_mut_ptr(),
            reason.len(),
        );
        assert!(!binding.is_null(), "a legal binding");
        let queue = sys::rd_kafka_queue_new(client);
        sys::rd_kafka_CreateAcls(client, &mut binding, 1, std::ptr::null(), queue);
        let event = sys::rd_kafka_queue_poll(queue, 60_000);
        assert!(!event.is_null(), "the broker answers");
        assert_eq!(sys::rd_kafka_event_error(event) as i32, 0, "the answer is none");
        let mut count = 0;
        let results = sys::rd_kafka_CreateAcls_result_acls(sys::rd_kafka_event_CreateAcls_result(event), &mut count);
        assert!(count == 1 && sys::rd_kafka_acl_result_error(*results).is_null(), "it is refused");
        sys::rd_kafka_event_destroy(event);
        sys::rd_kafka_queue_destroy(queue);
        sys::rd_kafka_AclBinding_destroy(binding);
    }
}

#[test]
fn who_may_not_write_and_whom_is_not_trusted_is_found() {
    let broker = Guarded::up();
    create_topic(&broker.open_address(), "orders", 1);
    let url = |user: &str, password: &str, ca: &str| {
        let options = format!("security.protocol=sasl_ssl&sasl.mechanism=PLAIN&ssl.ca.location={}", broker.file(ca));
        format!("kafka://{user}:{password}@{}/orders?{options}", broker.guarded_address("localhost"))
    };
    ask(&url("alice", SECRET, "ca.pem")).problems_are(&ALONE);
    let said = ask(&url("bob", "bobs-own", "ca.pem"));
    said.problems_are(&["no-right-to-write"]);
    assert_eq!(said.problem("no-right-to-write")["subject"], "kafka/orders");
    // Who sees the topic gets another answer from the broker.
    let describe = Operation::RD_KAFKA_ACL_OPERATION_DESCRIBE;
    allow(&broker.open_address(), c"User:bob", c"orders", describe);
    wait_until("bob sees the topic", Duration::from_secs(60), || {
        let said = ask(&url("bob", "bobs-own", "ca.pem"));
        let what = said.problem("no-right-to-write")["what"].as_str().unwrap_or_default().to_owned();
        let sees = !what.contains("nor see it");
        if sees {
            said.problems_are(&["no-right-to-write", "too-few-replicas"]);
            // Its settings are not for him to read.
            said.has_note("not-checked");
        }
        sees
    });
    let said = ask(&url("alice", SECRET, "other.pem"));
    said.problems_are(&["untrusted-certificate"]);
    let said = ask(&url("alice", "canary-guess", "ca.pem"));
    said.problems_are(&["login-refused"]);
    assert!(!said.report.to_string().contains("canary"), "{:#}", said.report);
}

/// As a broker before 0.11: it does not know the request for a producer's id, nor the one for settings.
#[test]
fn a_broker_that_is_too_old_is_found() {
    let cluster = MockCluster::new(1).expect("a mock");
    cluster.create_topic("orders", 1, 1).expect("a topic");
    let current = ask(&format!("kafka://{}/orders", cluster.bootstrap_servers()));
    assert!(!current.problems().contains(&"server-too-old"), "{:#}", current.report);
    current.has_note("not-checked");
    cluster.apiversion(rdkafka::types::RDKafkaApiKey::InitProducerId, None, None).expect("it forgets a request");
    ask(&format!("kafka://{}/orders", cluster.bootstrap_servers())).problem("server-too-old");
}
