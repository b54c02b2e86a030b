//! Connections to Redis that fall asleep, die in silence, or are made anew with renewed certificates and passwords.
#![cfg(all(feature = "redis", feature = "testing"))]

mod common;
mod redis_support;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::{Proxy, claim_port, wait_until};
use outlast::transport::redis::RedisConfig;
use outlast::{Message, Producer, Receipt};
use redis::Value;
use redis_support::{Bench, PATIENCE, Server, contents};
use tempfile::TempDir;

/// A proxy in front of a server, and the port that it listens at.
fn proxy(server: &Server, silence: Option<Duration>) -> (Proxy, u16) {
    let front = claim_port();
    (Proxy::start(&format!("127.0.0.1:{front}"), &format!("127.0.0.1:{}", server.port), silence), front)
}

/// With a ping each 5 s the first message after 3 s behind such a proxy hung, and one beside `timeout 1` was stored.
#[test]
fn a_message_after_a_long_silence_is_delivered_directly_within_a_second() {
    // In seconds; by hand, OUTLAST_TEST_SILENCE=240 OUTLAST_TEST_IDLE=600 is what load balancers do.
    let seconds = |name: &str, default: u64| {
        Duration::from_secs(std::env::var(name).map_or(default, |text| text.parse().expect("seconds")))
    };
    let (silence, idle) = (seconds("OUTLAST_TEST_SILENCE", 3), seconds("OUTLAST_TEST_IDLE", 20));
    let server = |timeout| Server::start(&["--appendonly", "no", "--timeout", timeout]);
    let (plain, one, three) = (server("0"), server("1"), server("3"));
    let (proxy, front) = proxy(&plain, Some(silence));
    let producers: Vec<_> = [("proxy", front), ("timeout 1", one.port), ("timeout 3", three.port)]
        .map(|(what, port)| {
            let directory = TempDir::new().unwrap();
            let producer =
                Producer::builder().outbox(directory.path().join("o")).url(format!("redis://127.0.0.1:{port}"));
            let producer = producer.open_blocking().unwrap();
            let receipt = producer.blocking_send(Message::to("s").payload("first")).unwrap();
            assert!(receipt.is_delivered(), "{what}");
            (what, producer, directory)
        })
        .into();
    // What is to be seen is what so much silence does.
    std::thread::sleep(idle);
    for (what, producer, _directory) in &producers {
        let begun = Instant::now();
        let receipt = producer.blocking_send(Message::to("s").payload("second")).unwrap();
        let took = begun.elapsed();
        assert!(matches!(receipt, Receipt::Delivered { .. }), "{what}: {:?}", producer.health());
        assert!(took < Duration::from_secs(1), "{what}: {took:?}");
        assert!(producer.health().is_ok(), "{what}: {:?}", producer.health());
    }
    assert_eq!(proxy.opened(), 1, "it was kept alive");
    for (_, producer, _directory) in producers {
        producer.blocking_close(PATIENCE).unwrap();
    }
}

#[test]
fn a_connection_that_died_in_silence_is_replaced_before_a_message_needs_it() {
    let server = Server::start(&[]);
    let (proxy, port) = proxy(&server, None);
    let bench = Bench::up(RedisConfig { port, ..server.config() });
    for round in 1..=3 {
        proxy.swallow();
        wait_until("there is another connection", PATIENCE, || proxy.opened() > round as usize);
        bench.keyed(round, "s", "k");
        assert_eq!(bench.word(), (round, "delivered"));
    }
    assert!(bench.heard().is_empty(), "the server was there all the time");
    assert_eq!(contents(&server.config(), "s").unwrap().len(), 3);
}

/// Pings that are not answered in time must not make a busy server busier.
#[test]
fn a_server_that_is_busy_for_seconds_is_waited_for_without_a_storm_of_connections() {
    let server = Server::start(&["--enable-debug-command", "yes"]);
    let bench = Bench::up(server.config());
    let received = || match server.run(&["INFO", "stats"]) {
        Value::BulkString(text) => String::from_utf8(text)
            .unwrap()
            .lines()
            .find_map(|line| {
                line.strip_prefix("total_connections_received:").map(|count| count.parse::<u64>().unwrap())
            })
            .unwrap(),
        other => panic!("{other:?}"),
    };
    let before = received();
    let mut admin = server.admin();
    let busy = std::thread::spawn(move || {
        redis::cmd("DEBUG").arg("SLEEP").arg(4).query::<Value>(&mut admin).map(drop).unwrap();
    });
    // In the middle of it.
    std::thread::sleep(Duration::from_secs(2));
    bench.keyed(1, "s", "k");
    assert_eq!(bench.word(), (1, "delivered"));
    busy.join().unwrap();
    assert!(bench.heard().is_empty(), "it was not called down");
    assert_eq!(contents(&server.config(), "s").unwrap().len(), 1);
    let made = received() - before;
    assert!(made <= 5, "{made} connections, of which 3 are this test's own");
}

/// Sends numbered messages until it is stopped, and looks how long any has been stored.
struct Load {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    oldest: Arc<Mutex<Duration>>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Load {
    fn start(producer: &Producer) -> Self {
        let (stop, sent, oldest) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)), Arc::default());
        let sender = {
            let (producer, stop, sent) = (producer.clone(), stop.clone(), sent.clone());
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let number = sent.load(Ordering::Relaxed);
                    producer.blocking_send(Message::to("s").payload(number.to_string())).unwrap();
                    sent.fetch_add(1, Ordering::Relaxed);
                    std::thread::sleep(Duration::from_millis(2));
                }
            })
        };
        let watcher = {
            let (producer, stop, oldest): (_, _, Arc<Mutex<Duration>>) =
                (producer.clone(), stop.clone(), Arc::clone(&oldest));
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let age = producer.stats().oldest_age().unwrap_or_default();
                    let mut most = oldest.lock().unwrap();
                    *most = age.max(*most);
                    drop(most);
                    std::thread::sleep(Duration::from_millis(50));
                }
            })
        };
        Self { stop, sent, oldest, threads: vec![sender, watcher] }
    }

    fn end(self) -> (u64, Duration) {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.into_iter().for_each(|thread| thread.join().unwrap());
        (self.sent.load(Ordering::Relaxed), *self.oldest.lock().unwrap())
    }
}

/// The producer's connections are closed, and it delivers again over another.
fn cut(admin: &mut redis::Connection, producer: &Producer) {
    let total = |admin: &mut redis::Connection| match redis_support::command(admin, &["XLEN", "s"]) {
        Value::Int(count) => count,
        other => panic!("{other:?}"),
    };
    redis_support::command(admin, &["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
    let before = total(admin);
    wait_until("it delivers over a new connection", PATIENCE, || {
        total(admin) > before + 20 || {
            assert!(producer.stats().dead == 0);
            false
        }
    });
}

/// Certificates were read once, when the producer was made: after a renewal it was down until it was restarted.
#[cfg(feature = "tls")]
#[test]
fn renewed_certificates_and_passwords_are_used_by_the_next_connection_under_load() {
    let files = TempDir::new().unwrap();
    let generations: Vec<String> = (0..4).map(|number| format!("{number}-")).collect();
    generations.iter().for_each(|prefix| redis_support::certificates(&files, prefix, "IP:127.0.0.1"));
    let at = |name: &str| redis_support::file(&files, name).to_str().unwrap().to_owned();
    let read = |name: String| std::fs::read(at(&name)).unwrap();
    // The client's own files, written in place.
    let put = |name: &str, contents: Vec<u8>| std::fs::write(at(name), contents).unwrap();
    let both = |one: &str, two: &str| [read(format!("{one}ca.pem")), read(format!("{two}ca.pem"))].concat();
    for name in ["ca.pem", "cert.pem", "key.pem"] {
        put(name, read(format!("0-{name}")));
    }
    put("password", b"password-0\n".to_vec());

    let plain = common::claim_port().to_string();
    let server = Server::start(
        &[
            &["--port", &plain, "--tls-port", "PORT", "--tls-auth-clients", "yes", "--appendonly", "no"][..],
            &[
                "--tls-cert-file",
                &at("0-cert.pem"),
                "--tls-key-file",
                &at("0-key.pem"),
                "--tls-ca-cert-file",
                &at("0-ca.pem"),
            ],
        ]
        .concat(),
    );
    let mut admin = redis_support::connect(&RedisConfig { port: plain.parse().unwrap(), ..server.config() });
    redis_support::command(&mut admin, &["ACL", "SETUSER", "app", "on", ">password-0", "~*", "+@all"]);

    let options =
        ["ca-file", "certificate-file", "private-key-file"].into_iter().zip(["ca.pem", "cert.pem", "key.pem"]);
    let options: Vec<String> = options.map(|(option, name)| format!("{option}={}", at(name))).collect();
    let url = format!("rediss://app@127.0.0.1:{}?{}", server.port, options.join("&"));
    let directory = TempDir::new().unwrap();
    let transport = outlast::TransportConfig {
        url,
        password_file: Some(at("password").into()),
        ..outlast::TransportConfig::default()
    };
    let config = outlast::Config {
        outbox: directory.path().join("o"),
        transports: vec![transport],
        ..outlast::Config::default()
    };
    let producer = Producer::builder().config(config).open_blocking().unwrap();
    let load = Load::start(&producer);
    wait_until("it delivers", PATIENCE, || load.sent.load(Ordering::Relaxed) > 50);

    for round in 1..4 {
        let (old, new) = (format!("{}-", round - 1), format!("{round}-"));
        // Both sides trust both authorities; then come the certificates; then the old authority goes.
        put("bundle.pem", both(&old, &new));
        put("ca.pem", both(&old, &new));
        redis_support::command(&mut admin, &["CONFIG", "SET", "tls-ca-cert-file", &at("bundle.pem")]);
        cut(&mut admin, &producer);
        let (certificate, key) = (at(&format!("{new}cert.pem")), at(&format!("{new}key.pem")));
        redis_support::command(&mut admin, &["CONFIG", "SET", "tls-cert-file", &certificate, "tls-key-file", &key]);
        put("cert.pem", read(format!("{new}cert.pem")));
        // The new certificate with the old key: those that were read before stay in use.
        cut(&mut admin, &producer);
        put("key.pem", read(format!("{new}key.pem")));
        cut(&mut admin, &producer);
        let authority = at(&format!("{new}ca.pem"));
        redis_support::command(&mut admin, &["CONFIG", "SET", "tls-ca-cert-file", &authority]);
        put("ca.pem", read(format!("{new}ca.pem")));
        // Likewise the password: both are right, the file changes, the old one goes.
        let (before, after) = (format!("<password-{}", round - 1), format!(">password-{round}"));
        redis_support::command(&mut admin, &["ACL", "SETUSER", "app", &after]);
        put("password", format!("password-{round}\n").into_bytes());
        redis_support::command(&mut admin, &["ACL", "SETUSER", "app", &before]);
        cut(&mut admin, &producer);
    }

    // What cannot be used is said for as long as that is so, and what was read before does.
    let warned =
        || producer.health().alerts.iter().any(|alert| alert.contains("ca.pem") && alert.contains("stays in use"));
    let right = read("ca.pem".to_owned());
    put("ca.pem", b"half a certifi".to_vec());
    wait_until("health warns of the file", PATIENCE, warned);
    cut(&mut admin, &producer);
    assert!(warned(), "{:?}", producer.health());
    put("ca.pem", right);
    wait_until("the warning goes", PATIENCE, || !warned());

    let (sent, oldest) = load.end();
    producer.blocking_drained(PATIENCE).unwrap_or_else(|_| panic!("{:?}", producer.health()));
    producer.blocking_close(PATIENCE).unwrap();
    assert!(oldest <= Duration::from_secs(5), "a message was stored for {oldest:?}");
    let config = RedisConfig { port: plain.parse().unwrap(), ..server.config() };
    let mut seen = std::collections::HashSet::new();
    let arrived = contents(&config, "s").unwrap().into_iter();
    let mut arrived: Vec<Vec<u8>> = arrived.map(|entry| entry.payload.unwrap().to_vec()).collect();
    // What was on a connection when it was cut may have come twice; the first of each counts.
    arrived.retain(|payload| seen.insert(payload.clone()));
    assert_eq!(arrived, (0..sent).map(|number| number.to_string().into_bytes()).collect::<Vec<_>>());
}
