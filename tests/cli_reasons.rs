//! Whatever keeps the program from its broker when it starts: messages are stored, the reason is said once and shown by
//! `status`, and they are delivered when it is mended. One row a reason.
#![cfg(all(feature = "cli", feature = "kafka", feature = "redis", feature = "testing"))]

mod common;
mod guarded;
mod redis_support;

use std::path::Path;

use common::{Output, kafka_address, redis_address, run_with, unique};
use guarded::{Guarded, SECRET};
use redis_support::Server;

const WRONG: &str = "canary-guess";
const INPUT: &[u8] = b"k 1\nk 2\nj 3\n";

/// What is said on the command line: the URL, and the password for it.
struct Way {
    url: String,
    password: &'static str,
}

/// Where a test looks for what arrived, past all guards.
enum At {
    Topic(String, String),
    Stream(String, String),
}

/// One reason.
struct Row {
    name: &'static str,
    /// As it is at first.
    wrong: Way,
    /// Words of the reason, in lower case.
    reason: &'static str,
    /// What an operator mends beside the command line.
    mend: Box<dyn Fn() + Send + Sync>,
    /// As it is then.
    right: Way,
    at: At,
}

fn way(url: String) -> Way {
    Way { url, password: "" }
}

fn row(name: &'static str, wrong: Way, reason: &'static str, right: Way, at: At) -> Row {
    Row { name, wrong, reason, mend: Box::new(|| {}), right, at }
}

fn outlast(dir: &Path, words: &[&str], way: Option<&Way>, input: &[u8]) -> Output {
    let outbox = dir.join("outbox");
    let mut args = words.to_vec();
    args.extend(["--outbox", outbox.to_str().expect("a path in UTF-8")]);
    args.extend(way.iter().flat_map(|way| ["--to", way.url.as_str()]));
    let password = way.map_or("", |way| way.password);
    let environment = [("OUTLAST_PASSWORD", password)];
    run_with(&args, input, if password.is_empty() { &[] } else { &environment })
}

impl At {
    fn payloads(&self) -> Vec<Vec<u8>> {
        let mut payloads: Vec<Vec<u8>> = match self {
            Self::Topic(server, topic) => {
                common::kafka::read_all(server, topic).into_iter().filter_map(|record| record.payload).collect()
            }
            Self::Stream(server, stream) => {
                let entries = common::redis::read_all(server, stream);
                entries.iter().filter_map(|entry| entry.field("payload").map(<[u8]>::to_vec)).collect()
            }
        };
        payloads.sort();
        payloads
    }
}

impl Row {
    fn holds(&self) {
        let dir = tempfile::tempdir().unwrap();
        // Kafka's client takes some three seconds to find out why nothing answers.
        let timeout = if self.wrong.url.starts_with("kafka") { "6s" } else { "2s" };
        let produce = ["produce", "--key", "field:1", "--drain-timeout", timeout];
        let produced = outlast(dir.path(), &produce, Some(&self.wrong), INPUT);
        assert_eq!(produced.code, Some(3), "{}: {produced:?}", self.name);
        let said = produced.stderr.to_lowercase().lines().filter(|line| line.contains(self.reason)).count();
        assert_eq!(said, 1, "{}: {:?} is to be said once: {}", self.name, self.reason, produced.stderr);
        let status = outlast(dir.path(), &["status"], None, b"");
        assert_eq!(status.code, Some(0), "{}: {status:?}", self.name);
        let shown = status.stdout.to_lowercase();
        assert!(shown.contains("pending: 3 messages"), "{}: {shown}", self.name);
        assert!(shown.contains(self.reason), "{}: status does not say {:?}: {shown}", self.name, self.reason);
        for secret in [SECRET, WRONG] {
            let told = [&produced.stderr, &produced.stdout, &status.stdout];
            assert!(told.iter().all(|text| !text.contains(secret)), "{}: a password shows", self.name);
        }

        (self.mend)();
        let drained = outlast(dir.path(), &["drain", "--timeout", "60s"], Some(&self.right), b"");
        assert_eq!(drained.code, Some(0), "{}: {drained:?}", self.name);
        assert_eq!(self.at.payloads(), [&b"j 3"[..], b"k 1", b"k 2"], "{}", self.name);
        let status = outlast(dir.path(), &["status"], None, b"");
        assert!(!status.stdout.to_lowercase().contains(self.reason), "{}: still told: {status:?}", self.name);
    }
}

/// Nobody listens there, and topics that are not there. Port 1 is privileged and unused.
fn of_nobody() -> Vec<Row> {
    let (kafka, redis) = (kafka_address(), redis_address());
    let (topic, stream, unknown) = (unique("unreachable"), unique("unreachable"), unique("unknown"));
    common::kafka::create_topic(&kafka, &topic, 1);
    let unknown_url = || way(format!("kafka://{kafka}/{unknown}"));
    let created = (kafka.clone(), unknown.clone());
    vec![
        row(
            "unreachable Kafka",
            way(format!("kafka://127.0.0.1:1/{topic}")),
            "connection refused",
            way(format!("kafka://{kafka}")),
            At::Topic(kafka.clone(), topic),
        ),
        row(
            "unreachable Redis",
            way(format!("redis://127.0.0.1:1?stream={stream}")),
            "connection refused",
            way(format!("redis://{redis}")),
            At::Stream(redis, stream),
        ),
        Row {
            name: "unknown topic",
            wrong: unknown_url(),
            reason: "the topic or partition does not exist",
            mend: Box::new(move || common::kafka::create_topic(&created.0, &created.1, 1)),
            right: unknown_url(),
            at: At::Topic(kafka.clone(), unknown.clone()),
        },
    ]
}

fn of_guarded_kafka(broker: &Guarded) -> Vec<Row> {
    let way = |topic: &str, ca: &str, password| {
        let (address, ca) = (broker.guarded_address("localhost"), broker.file(ca));
        let options = "security.protocol=sasl_ssl&sasl.mechanism=PLAIN&sasl.username=alice";
        Way { url: format!("kafka://{address}/{topic}?{options}&ssl.ca.location={ca}"), password }
    };
    let rows = [
        ("wrong password for Kafka", "logins", "ca.pem", WRONG, "authentication failed"),
        ("untrusted certificate of Kafka", "trust", "other.pem", SECRET, "certificate"),
    ];
    let made = rows.map(|(name, topic, ca, password, reason)| {
        common::kafka::create_topic(&broker.open_address(), topic, 1);
        let at = At::Topic(broker.open_address(), topic.into());
        row(name, way(topic, ca, password), reason, way(topic, "ca.pem", SECRET), at)
    });
    made.into()
}

/// A server with an open port and one for TLS, with a certificate for `localhost`.
fn guarded_redis(tls: u16) -> Server {
    let dir = tempfile::tempdir().unwrap();
    guarded::certificates(dir.path());
    let file = |name: &str| dir.path().join(name).display().to_string();
    let (key, certificate, ca) = (file("server.key"), file("server.pem"), file("ca.pem"));
    let words = ["--tls-port", &tls.to_string(), "--tls-auth-clients", "no", "--tls-cert-file", &certificate];
    let files = ["--tls-key-file", &key, "--tls-ca-cert-file", &ca];
    let server = Server::start_in(dir, &[&words[..], &files].concat());
    server.run(&["ACL", "SETUSER", "app", "on", &format!(">{SECRET}"), "~*", "+@all"]);
    server
}

fn of_guarded_redis(server: &Server, tls: u16) -> Vec<Row> {
    let open = format!("127.0.0.1:{}", server.port);
    let plain = |password| Way { url: format!("redis://app@{open}?stream=logins"), password };
    let secure = |ca: &str| {
        let ca = server.directory.path().join(ca);
        way(format!("rediss://localhost:{tls}?stream=trust&ca-file={}", ca.display()))
    };
    vec![
        row(
            "wrong password for Redis",
            plain(WRONG),
            "user or password is wrong",
            plain(SECRET),
            At::Stream(open.clone(), "logins".into()),
        ),
        row(
            "untrusted certificate of Redis",
            secure("other.pem"),
            "certificate",
            secure("ca.pem"),
            At::Stream(open.clone(), "trust".into()),
        ),
    ]
}

#[test]
fn what_keeps_messages_from_their_broker_is_said_once_and_shown_and_they_are_delivered_once_it_is_mended() {
    let tls = guarded::ports()[0];
    let (redis, kafka) = (guarded_redis(tls), Guarded::up());
    let rows: Vec<Row> =
        [of_nobody(), of_guarded_kafka(&kafka), of_guarded_redis(&redis, tls)].into_iter().flatten().collect();
    assert_eq!(rows.len(), 7);
    std::thread::scope(|scope| {
        let running: Vec<_> = rows.iter().map(|row| (row.name, scope.spawn(|| row.holds()))).collect();
        let failed: Vec<_> =
            running.into_iter().filter_map(|(name, row)| row.join().is_err().then_some(name)).collect();
        assert!(failed.is_empty(), "{failed:?} failed: see above");
    });
}
