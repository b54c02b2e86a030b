//! What happens to a client that lives for long: connections fall asleep, and certificates, keys, authorities and passwords
//! are renewed under it.

#![cfg(all(feature = "kafka", feature = "tls", target_os = "linux"))]

mod common;
mod guarded;
mod kafka_support;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use common::{Kafka3Server, Proxy, claim_port, kafka, unique, wait_until};
use guarded::{Guarded, SECRET, openssl};
use kafka_support::{assert_ordered, read};
use outlast::{Fate, Message, Producer, Receipt};

const LONG: Duration = Duration::from_secs(60);

fn open(dir: &Path, url: &str) -> Producer {
    Producer::builder().outbox(dir.join("outbox")).url(url).open_blocking().unwrap_or_else(|error| panic!("{error}"))
}

/// Both tests look at the clock, and start several servers.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Sends to each partition; all of it has to be delivered directly, and soon.
#[track_caller]
fn delivered_directly(producer: &Producer, topic: &str, when: &str) {
    for partition in 0..3 {
        let begun = Instant::now();
        let message = Message::to(topic).partition(partition).payload("1");
        let receipt = producer.blocking_send(message).unwrap();
        let took = begun.elapsed();
        let health = producer.health();
        assert!(receipt.is_delivered(), "{when}: partition {partition} took the outbox after {took:?}: {health:?}");
        assert!(took <= Duration::from_secs(1), "{when}: partition {partition} took {took:?}");
    }
}

/// A load balancer drops what is silent and says nothing: the next message waited for librdkafka's timeout, 62 s.
#[test]
fn an_idle_connection_to_any_broker_is_alive_when_a_message_comes() {
    // In seconds; by hand, OUTLAST_TEST_SILENCE=240 OUTLAST_TEST_IDLE=600 is what load balancers do.
    let seconds = |name: &str, default: u64| {
        Duration::from_secs(std::env::var(name).map_or(default, |text| text.parse().expect("seconds")))
    };
    let (silence, idle) = (seconds("OUTLAST_TEST_SILENCE", 3), seconds("OUTLAST_TEST_IDLE", 20));
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let (dir, cluster, topic) = (tempfile::tempdir().unwrap(), Kafka3Server::up(), unique("idle"));
    kafka::create_topic(cluster.address(), &topic, 3);
    let (front, back) = (cluster.front(), cluster.back());
    let proxies: Vec<_> =
        front.iter().zip(&back).map(|(front, back)| Proxy::start(front, back, Some(silence))).collect();
    let producer = open(dir.path(), &format!("kafka://{}", front.join(",")));
    wait_until("the cluster answers", LONG, || producer.stats().transports.iter().all(|transport| transport.up));
    for partition in 0..3 {
        producer.blocking_send(Message::to(&*topic).partition(partition).payload("0")).unwrap();
    }
    assert!(proxies.iter().all(|proxy| proxy.opened() > 0), "each broker leads a partition");
    thread::sleep(idle);
    delivered_directly(&producer, &topic, "kept alive");

    // What dies all the same is found dead, and replaced, before a message meets it.
    let before: Vec<_> = proxies.iter().map(Proxy::opened).collect();
    proxies.iter().for_each(Proxy::swallow);
    wait_until("new connections to all three", LONG, || {
        proxies.iter().zip(&before).all(|(proxy, before)| proxy.opened() > *before)
    });
    wait_until("the cluster answers", LONG, || producer.stats().transports.iter().all(|transport| transport.up));
    delivered_directly(&producer, &topic, "found dead");
    producer.blocking_close(LONG).unwrap();
}

/// What the library says, as text.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Lines {
    fn count(&self, text: &str) -> usize {
        String::from_utf8_lossy(&self.0.lock().unwrap()).matches(text).count()
    }
}

/// Threads that send, each to a key of its own, one message after the other; they say how many that were, and how long the
/// slowest took until the broker had it.
struct Load {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<(u64, Duration)>>,
}

impl Load {
    const KEYS: u64 = 4;

    fn start(producer: &Producer, topic: &str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let send = |key: u64| {
            let (producer, topic, stop) = (producer.clone(), topic.to_owned(), Arc::clone(&stop));
            move || {
                let (mut number, mut slowest) = (0, Duration::ZERO);
                while !stop.load(Ordering::Relaxed) {
                    number += 1;
                    let begun = Instant::now();
                    let message = Message::to(&*topic).key(format!("k{key}")).payload(number.to_string());
                    if let Receipt::Stored { delivery, .. } = producer.blocking_send(message).unwrap() {
                        let fate = pollster::block_on(delivery);
                        assert!(matches!(fate, Fate::Delivered(_)), "{fate:?}");
                    }
                    slowest = slowest.max(begun.elapsed());
                    thread::sleep(Duration::from_millis(5));
                }
                (number, slowest)
            }
        };
        let threads = (0..Self::KEYS).map(|key| thread::spawn(send(key))).collect();
        Self { stop, threads }
    }

    fn end(self) -> Vec<(u64, Duration)> {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    }
}

/// A broker, the files of its client, and the client under load.
struct Renewals {
    broker: Guarded,
    proxy: Proxy,
    /// What is set of the broker while it runs.
    settings: BTreeMap<String, String>,
    producer: Producer,
    lines: Lines,
    replaced: usize,
}

const SCRAM: &str = "org.apache.kafka.common.security.scram.ScramLoginModule";
const KEY: &str = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";

fn authority(dir: &Path, name: &str) {
    let extension = "-addext basicConstraints=critical,CA:TRUE";
    openssl(dir, &format!("req -x509 {KEY} -days 2 -subj /CN={name} {extension} -keyout {name}.key -out {name}.pem"));
}

/// `NAME.key`, and its certificate `NAME.pem`.
fn issue(dir: &Path, authority: &str, subject: &str, name: &str) {
    openssl(dir, &format!("req {KEY} -subj /CN={subject} -keyout {name}.key -out {name}.csr"));
    let signed = format!("-CA {authority}.pem -CAkey {authority}.key -CAcreateserial -extfile san");
    openssl(dir, &format!("x509 -req -in {name}.csr {signed} -days 2 -out {name}.pem"));
}

impl Renewals {
    fn start(dir: &Path, lines: Lines) -> Self {
        let front = claim_port();
        let broker = Guarded::up_with(Some(front), |files| {
            format!(
                "listener.name.sasl_ssl.ssl.client.auth=required
listener.name.sasl_ssl.ssl.truststore.type=PEM
listener.name.sasl_ssl.ssl.truststore.location={}/ca.pem
listener.name.sasl_ssl.sasl.enabled.mechanisms=SCRAM-SHA-256
listener.name.sasl_ssl.scram-sha-256.sasl.jaas.config={SCRAM} required;
",
                files.display()
            )
        });
        let proxy = Proxy::start(&format!("localhost:{front}"), &broker.guarded_address("localhost"), None);
        kafka::create_topic(&broker.open_address(), "t", 3);
        kafka::set_password(&broker.open_address(), "alice", SECRET);
        issue(broker.dir(), "ca", "client", "first");
        let settings = BTreeMap::new();
        let file = |name: &str| broker.file(name);
        let options = [
            ("security.protocol", "sasl_ssl"),
            ("sasl.mechanism", "SCRAM-SHA-256"),
            ("ssl.ca.location", &file("client-ca.pem")),
            ("ssl.certificate.location", &file("client.pem")),
            ("ssl.key.location", &file("client.key")),
        ];
        let options = options.iter().fold(String::new(), |mut text, (name, value)| {
            let _ = write!(text, "&{name}={value}");
            text
        });
        let copy = |from: &str, to: &str| std::fs::copy(broker.file(from), broker.file(to)).unwrap();
        copy("ca.pem", "client-ca.pem");
        copy("first.pem", "client.pem");
        copy("first.key", "client.key");
        std::fs::write(file("password"), SECRET).unwrap();
        let transport = outlast::TransportConfig {
            url: format!("kafka://alice@localhost:{front}?{}", &options[1..]),
            password_file: Some(file("password").into()),
            ..outlast::TransportConfig::default()
        };
        let config =
            outlast::Config { outbox: dir.join("outbox"), transports: vec![transport], ..outlast::Config::default() };
        let producer = Producer::builder().config(config).open_blocking().unwrap_or_else(|error| panic!("{error}"));
        wait_until("the broker answers", LONG, || producer.stats().transports.iter().all(|transport| transport.up));
        Self { broker, proxy, settings, producer, lines, replaced: 0 }
    }

    /// Replaces a file at once.
    fn put(&self, name: &str, contents: &str) {
        std::fs::write(self.broker.file("next"), contents).unwrap();
        std::fs::rename(self.broker.file("next"), self.broker.file(name)).unwrap();
    }

    fn get(&self, name: &str) -> String {
        std::fs::read_to_string(self.broker.file(name)).unwrap()
    }

    /// Sets something of the guarded listener's.
    fn set(&mut self, what: &str, value: &str) {
        self.settings.insert(format!("listener.name.sasl_ssl.{what}"), value.to_owned());
        kafka::change_broker(&self.broker.open_address(), 1, &self.settings);
    }

    /// Waits until another client has taken over.
    #[track_caller]
    fn client_replaced(&mut self) {
        self.replaced += 1;
        let count = self.replaced;
        let health = || self.producer.health();
        wait_until("another client takes over", LONG, || {
            self.lines.count("the Kafka client was replaced") >= count || !health().is_ok()
        });
        assert!(health().is_ok(), "{:?}", health());
    }

    /// Waits for an alert that names all this.
    #[track_caller]
    fn alert(&self, words: &[&str]) {
        let mut seen = Vec::new();
        wait_until(&format!("an alert with {words:?}"), LONG, || {
            seen = self.producer.health().alerts;
            seen.iter().any(|alert| words.iter().all(|word| alert.contains(word)))
        });
    }

    fn all_well(&self) {
        wait_until("no alert", LONG, || self.producer.health().is_ok());
    }

    /// Another authority takes the place of one, with all it has signed, as it should be done.
    fn change_authority(&mut self, old: &str, new: &str) {
        let both = self.get(&format!("{old}.pem")) + &self.get(&format!("{new}.pem"));
        self.put("client-ca.pem", &both);
        self.client_replaced();
        self.put(&format!("{new}-trust.pem"), &both);
        let trusted = self.broker.file(&format!("{new}-trust.pem"));
        self.set("ssl.truststore.location", &trusted);

        let server = format!("{new}-server");
        issue(self.broker.dir(), new, "localhost", &server);
        self.put(
            &format!("{server}.store"),
            &(self.get(&format!("{server}.key")) + &self.get(&format!("{server}.pem"))),
        );
        self.settings.insert("listener.name.sasl_ssl.ssl.keystore.type".to_owned(), "PEM".to_owned());
        let served = self.broker.file(&format!("{server}.store"));
        self.set("ssl.keystore.location", &served);
        self.proxy.cut();

        let client = format!("{new}-client");
        issue(self.broker.dir(), new, "client", &client);
        // Two files, and the library may look in between.
        self.put("client.pem", &self.get(&format!("{client}.pem")));
        thread::sleep(Duration::from_millis(fastrand::u64(0..2_000)));
        self.put("client.key", &self.get(&format!("{client}.key")));
        self.client_replaced();

        self.put("client-ca.pem", &self.get(&format!("{new}.pem")));
        self.client_replaced();
        let trusted = self.broker.file(&format!("{new}.pem"));
        self.set("ssl.truststore.location", &trusted);
        self.proxy.cut();
    }

    /// Files that cannot be used leave the client as it is, and are alerts; they are none any more once they are repaired.
    fn spoil_files(&self) {
        let good = self.get("client-ca.pem");
        self.put("client-ca.pem", "no certificate\n");
        self.alert(&["not in use", "ssl.ca.location", "client-ca.pem"]);
        std::fs::remove_file(self.broker.file("client-ca.pem")).unwrap();
        self.alert(&["not in use", "client-ca.pem", "No such file"]);
        self.put("client-ca.pem", &good);
        self.all_well();
    }

    /// The password changes in the file, and only later at the broker.
    fn change_password(&mut self) {
        const NEXT: &str = "canary-of-tomorrow";
        self.put("password", &format!("{NEXT}\n"));
        self.alert(&["not in use", "no broker accepts them", "uthentication"]);
        kafka::set_password(&self.broker.open_address(), "alice", NEXT);
        self.replaced += 1;
        wait_until("another client takes over", LONG, || {
            self.lines.count("the Kafka client was replaced") >= self.replaced
        });
        self.all_well();
        self.proxy.cut();
        assert_eq!(self.lines.count(NEXT) + self.lines.count(SECRET), 0, "a password in the log");
    }
}

/// A client read its certificates once: renewed in place, they were used by no connection until the next restart, and when
/// the broker no longer accepted the former ones, nothing was delivered any more.
#[test]
fn certificates_keys_authorities_and_passwords_change_under_load() {
    const MOST: Duration = Duration::from_secs(5);
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let lines = Lines::default();
    let writer = lines.clone();
    tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).init();
    let dir = tempfile::tempdir().unwrap();
    let mut renewals = Renewals::start(dir.path(), lines);
    let load = Load::start(&renewals.producer, "t");
    let mut old = "ca".to_owned();
    for round in 1..=3 {
        let new = format!("ca{round}");
        authority(renewals.broker.dir(), &new);
        renewals.change_authority(&old, &new);
        old = new;
    }
    renewals.spoil_files();
    renewals.change_password();
    thread::sleep(Duration::from_secs(1));
    let sent = load.end();
    renewals.producer.blocking_close(LONG).unwrap();

    let slowest = sent.iter().map(|(_, slowest)| *slowest).max().unwrap_or_default();
    println!("{sent:?}");
    assert!(slowest <= MOST, "a message took {slowest:?}");
    let open = renewals.broker.open_address();
    let firsts = assert_ordered(&read(&open, "t", 3, kafka_support::end_of(&open, "t", 3)));
    for (key, (count, _)) in sent.iter().enumerate() {
        let numbers = firsts.get(format!("k{key}").as_bytes()).map_or(&[][..], Vec::as_slice);
        assert!(numbers.iter().copied().eq(1..=*count), "k{key}: {} of {count} are there", numbers.len());
    }
}
