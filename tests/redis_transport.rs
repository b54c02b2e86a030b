//! The Redis transport against real servers: what each refusal is told as, logins, TLS, outages, closing.
#![cfg(all(feature = "redis", feature = "testing"))]

mod common;
mod redis_support;

use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use outlast::transport::redis::{RedisConfig, RedisTransport, Secret, Trim};
use outlast::transport::{Availability, Class, Failure, Monitor, Outcome, Scope, Transport};
use outlast::{Message, Position};
use redis::Value;
use redis_support::{Bench, PATIENCE, Server, command, connect, contents, shared_server, unused};
#[cfg(feature = "tls")]
use redis_support::{certificates, file};

const CANARY: &str = "canary-7f3a";

fn failure(outcome: Outcome) -> Arc<Failure> {
    match outcome {
        Outcome::Failed { failure, .. } => failure,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_message_gets_the_id_of_its_entry_as_its_position() {
    let config = shared_server();
    let stream = unused("position");
    let bench = Bench::up(config.clone());
    bench.keyed(1, &stream, "k");
    let (_, Outcome::Delivered(Position::Entry { millis, sequence })) = bench.next() else { panic!("not delivered") };
    let mut connection = connect(&config);
    let at = format!("{millis}-{sequence}");
    let Value::Array(found) = command(&mut connection, &["XRANGE", &stream, &at, &at]) else { panic!("no array") };
    assert_eq!(found.len(), 1);
    assert_eq!(contents(&config, &stream).unwrap()[0].payload.as_deref(), Some(&b"n1"[..]));
}

#[test]
fn a_stream_is_trimmed_where_that_is_asked_for() {
    let mut config = shared_server();
    let (trimmed, whole) = (unused("trimmed"), unused("whole"));
    config.streams.insert(trimmed.clone(), Trim::MaxLen(100));
    let bench = Bench::up(config.clone());
    for number in 0..1000 {
        bench.keyed(number, &trimmed, "k");
        bench.keyed(number + 1000, &whole, "k");
    }
    assert!(bench.words(2000).iter().all(|(_, word)| *word == "delivered"));
    // Redis trims whole nodes of 100 entries.
    assert!(contents(&config, &trimmed).unwrap().len() <= 300);
    assert_eq!(contents(&config, &whole).unwrap().len(), 1000);
}

/// It was a permanent failure of each message, which buried a whole backlog for what one `DEL` puts right.
#[test]
fn a_key_of_another_type_holds_the_stream_alone_and_in_a_batch_until_it_is_deleted() {
    let config = shared_server();
    let stream = unused("wrongtype");
    command(&mut connect(&config), &["SET", &stream, "x"]);
    let bench = Bench::up(config.clone());
    for number in 0..50 {
        bench.keyed(number, &stream, "k");
    }
    for _ in 0..50 {
        let failure = failure(bench.next().1);
        assert!(failure.class == Class::Hold || failure.reason.contains("earlier message"), "{failure}");
    }
    bench.keyed(50, &stream, "l");
    let failure = failure(bench.next().1);
    assert_eq!((failure.class, failure.scope), (Class::Hold, Scope::Route));
    assert!(failure.reason.contains("it is a string") && failure.reason.contains("delete or rename"), "{failure}");
    command(&mut connect(&config), &["DEL", &stream]);
    bench.keyed(51, &stream, "m");
    assert_eq!(bench.word(), (51, "delivered"));
}

/// Sends messages of the key `k` that fail; returns what the first was told.
///
/// What is sent at once behind the last report may fail behind it, too: whether the sender knew cannot be told
/// (`fence.rs`). So what is to be delivered next has another key.
fn refused(bench: &Bench, stream: &str) -> Arc<Failure> {
    bench.keyed(1, stream, "k");
    let first = failure(bench.next().1);
    for number in 2..10 {
        // A reconnect in between refuses them, which is as good.
        let _ = bench.submit(number, Message::to(stream).key("k")).map(|()| failure(bench.next().1));
    }
    first
}

#[test]
fn what_the_servers_state_forbids_is_transient_and_ends_with_it() {
    let server = Server::start(&["--busy-reply-threshold", "10"]);
    let bench = Bench::up(server.config());
    for (words, mended, code) in [
        (["CONFIG", "SET", "maxmemory", "1"], ["CONFIG", "SET", "maxmemory", "0"], "OOM"),
        (
            ["CONFIG", "SET", "min-replicas-to-write", "1"],
            ["CONFIG", "SET", "min-replicas-to-write", "0"],
            "NOREPLICAS",
        ),
    ] {
        server.run(&words);
        let failure = refused(&bench, "s");
        assert_eq!((failure.class, failure.scope), (Class::Transient, Scope::Transport), "{failure}");
        assert!(failure.reason.contains(code), "{failure}");
        server.run(&mended);
        bench.keyed(20, "s", "l");
        let (number, outcome) = bench.next();
        assert!(number == 20 && matches!(outcome, Outcome::Delivered(_)), "after {code}: {outcome:?}");
    }
    assert!(bench.heard().is_empty(), "the server was there all the time");
}

#[test]
fn a_script_that_runs_too_long_is_waited_for() {
    let server = Server::start(&["--busy-reply-threshold", "10"]);
    let bench = Bench::up(server.config());
    let mut admin = server.admin();
    let busy = std::thread::spawn(move || {
        let _ = redis::cmd("EVAL").arg("while true do end").arg(0).query::<Value>(&mut admin);
    });
    let mut probe =
        redis::Client::open(format!("redis://127.0.0.1:{}", server.port)).unwrap().get_connection().unwrap();
    let begun = Instant::now();
    while redis::cmd("GET").arg("x").query::<Value>(&mut probe).is_ok() {
        assert!(begun.elapsed() < PATIENCE);
    }
    let failure = refused(&bench, "s");
    assert_eq!((failure.class, failure.scope), (Class::Transient, Scope::Transport), "{failure}");
    assert!(failure.reason.contains("BUSY"), "{failure}");
    command(&mut probe, &["SCRIPT", "KILL"]);
    busy.join().unwrap();
    bench.keyed(20, "s", "l");
    assert_eq!(bench.word(), (20, "delivered"));
}

#[test]
fn a_cluster_without_its_slots_is_waited_for() {
    let server = Server::start(&["--cluster-enabled", "yes"]);
    let bench = Bench::up(server.config());
    let failure = refused(&bench, "s");
    assert_eq!((failure.class, failure.scope), (Class::Transient, Scope::Transport), "{failure}");
    assert!(failure.reason.contains("CLUSTERDOWN"), "{failure}");
}

#[test]
fn a_demoted_server_is_left_and_a_replica_is_not_taken() {
    let server = Server::start(&[]);
    let bench = Bench::up(server.config());
    server.run(&["REPLICAOF", "127.0.0.1", "1"]);
    bench.keyed(1, "s", "k");
    let first = failure(bench.next().1);
    assert_eq!((first.class, first.scope), (Class::Transient, Scope::Transport));
    assert!(first.reason.contains("READONLY"), "{first}");
    let down = loop {
        let down = bench.wait_down();
        if !down.reason.contains("READONLY") {
            break down;
        }
    };
    assert!(down.class == Class::Transient && down.reason.contains("is a replica"), "{down}");
    assert!(bench.submit(2, Message::to("s")).unwrap_err().contains("replica"));
    server.run(&["REPLICAOF", "NO", "ONE"]);
    bench.wait_up();
    bench.keyed(3, "s", "k");
    assert_eq!(bench.word(), (3, "delivered"));
}

#[test]
fn a_server_that_is_loading_is_waited_for() {
    let slowly = ["--key-load-delay", "60000", "--loading-process-events-interval-bytes", "1024"];
    let server = Server::start(&[&["--appendonly", "no", "--rdbcompression", "no"][..], &slowly].concat());
    let mut admin = server.admin();
    let value = "x".repeat(2000);
    (0..50).for_each(|number| drop(command(&mut admin, &["SET", &format!("k{number}"), &value])));
    command(&mut admin, &["SAVE"]);
    server.kill();
    server.restart();
    let bench = Bench::start(server.config());
    let down = bench.wait_down();
    assert!(down.class == Class::Transient && down.reason.contains("LOADING"), "{down}");
    bench.wait_up();
    bench.keyed(1, "s", "k");
    assert_eq!(bench.word(), (1, "delivered"));
}

#[test]
fn what_an_acl_forbids_is_held_for_the_stream_and_goes_on_once_allowed() {
    let server = Server::start(&[]);
    server.run(&["ACL", "SETUSER", "app", "on", ">secret", "~allowed", "+xadd", "+multi", "+exec", "+ping"]);
    let mut config = server.config();
    (config.user, config.password) = (Some("app".into()), Some(Secret::new("secret")));
    let bench = Bench::up(config);
    let failure = refused(&bench, "other");
    assert_eq!((failure.class, failure.scope), (Class::Hold, Scope::Route), "{failure}");
    assert!(failure.reason.contains("+xadd"), "{failure}");
    bench.keyed(20, "allowed", "l");
    assert_eq!(bench.word(), (20, "delivered"));
    server.run(&["ACL", "SETUSER", "app", "~other"]);
    bench.keyed(21, "other", "l");
    assert_eq!(bench.word(), (21, "delivered"));
}

#[test]
fn a_user_who_may_not_use_transactions_is_told_so_before_a_message_is_taken_apart() {
    let server = Server::start(&[]);
    server.run(&["ACL", "SETUSER", "app", "on", ">secret", "~*", "+xadd", "+ping"]);
    let mut config = server.config();
    (config.user, config.password) = (Some("app".into()), Some(Secret::new("secret")));
    let bench = Bench::start(config);
    let down = bench.wait_down();
    assert!(down.class == Class::Hold && down.reason.contains("+multi +exec"), "{down}");
}

/// Collects what is logged at the finest level.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_wrong_password_is_held_without_spinning_or_showing_it_and_mended() {
    let log = Log::default();
    let into = log.clone();
    let subscriber =
        tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_writer(move || into.clone()).finish();
    // For the whole process: the transport logs from its own thread.
    let _ = tracing::subscriber::set_global_default(subscriber);
    let server = Server::start(&[]);
    server.run(&["ACL", "SETUSER", "app", "on", ">right", "~*", "+@all"]);
    let mut config = server.config();
    (config.user, config.password) = (Some("app".into()), Some(Secret::new(CANARY)));
    config.reconnect_cap = Duration::from_secs(2);
    let bench = Bench::start(config.clone());
    // Accepted, as long as the first connection is being made.
    let accepted = bench.submit(1, Message::to("s").key("k")).is_ok();
    let down = bench.wait_down();
    assert_eq!((down.class, down.scope), (Class::Hold, Scope::Transport));
    assert!(down.reason.contains("WRONGPASS") && down.reason.contains("password is wrong"), "{down}");
    if accepted {
        assert_eq!(bench.word(), (1, "hold"));
    }
    assert!(bench.submit(2, Message::to("s")).unwrap_err().contains("WRONGPASS"));
    let attempts = || match server.run(&["INFO", "stats"]) {
        Value::BulkString(text) => String::from_utf8(text)
            .unwrap()
            .lines()
            .find_map(|line| line.strip_prefix("acl_access_denied_auth:").map(|count| count.parse::<u64>().unwrap())),
        other => panic!("{other:?}"),
    };
    // At the cap of 2 s there can be one attempt a second, at most.
    let (before, begun) = (attempts(), Instant::now());
    server.run(&["ACL", "SETUSER", "app", &format!(">{CANARY}")]);
    bench.wait_up();
    let most = 1 + begun.elapsed().as_secs();
    assert!(attempts().zip(before).is_none_or(|(after, before)| after - before <= most));
    bench.keyed(3, "s", "k");
    assert_eq!(bench.word(), (3, "delivered"));
    let logged = String::from_utf8_lossy(&log.0.lock().unwrap()).into_owned();
    assert!(logged.contains("Redis cannot be used"), "the log was looked at");
    let shown = format!("{logged}{down:?}{:?}{config:?}", bench.transport);
    assert!(!shown.contains(CANARY), "the password was shown");
}

#[test]
fn a_password_alone_and_another_database_work() {
    let server = Server::start(&[]);
    server.run(&["CONFIG", "SET", "requirepass", CANARY]);
    let mut config = server.config();
    (config.password, config.database) = (Some(Secret::new(CANARY)), 3);
    let bench = Bench::up(config.clone());
    bench.keyed(1, "s", "k");
    assert_eq!(bench.word(), (1, "delivered"));
    let open = format!("redis://:{CANARY}@127.0.0.1:{}/3", server.port);
    let mut connection = redis::Client::open(open).unwrap().get_connection().unwrap();
    assert_eq!(command(&mut connection, &["XLEN", "s"]), Value::Int(1));

    let bench = Bench::start(RedisConfig { password: None, ..config.clone() });
    let down = bench.wait_down();
    assert!(down.class == Class::Hold && down.reason.contains("NOAUTH"), "{down}");
    let bench = Bench::start(RedisConfig { database: 99, ..config });
    let down = bench.wait_down();
    assert!(down.class == Class::Hold && down.reason.contains("DB index"), "{down}");
}

#[test]
fn nobody_there_is_transient_and_what_waited_for_the_first_connection_fails_unsent() {
    let server = Server::start(&[]);
    server.kill();
    let bench = Bench::start(server.config());
    let accepted = bench.submit(1, Message::to("s").key("k")).is_ok();
    let down = bench.wait_down();
    assert_eq!((down.class, down.scope), (Class::Transient, Scope::Transport), "{down}");
    if accepted {
        assert_eq!(bench.word(), (1, "transient"));
    }
    assert!(bench.submit(2, Message::to("s")).is_err());
    server.restart();
    bench.wait_up();
    bench.keyed(3, "s", "k");
    assert_eq!(bench.word(), (3, "delivered"));
}

#[test]
fn a_server_that_hangs_is_given_up_and_only_what_was_sent_counts_as_possibly_delivered() {
    let server = Server::start(&[]);
    let mut config = server.config();
    (config.response_timeout, config.connect_timeout) = (Duration::from_secs(5), Duration::from_secs(5));
    let bench = Bench::up(config.clone());
    bench.keyed(0, "s", "k");
    assert_eq!(bench.word(), (0, "delivered"));
    server.stop();
    bench.keyed(1, "s", "k");
    // The first is on its way when the others come, so these wait for its reply.
    std::thread::sleep(Duration::from_secs(1));
    bench.keyed(2, "s", "k");
    bench.keyed(3, "s", "k");
    let words = bench.words(3);
    assert_eq!(words[1..], [(2, "transient"), (3, "transient")]);
    // On a machine that was slow to stop the server, a ping was not answered before, and held the message back.
    assert!([(1, "perhaps"), (1, "transient")].contains(&words[0]), "{words:?}");
    let down = bench.wait_down();
    assert!(down.class == Class::Transient && down.reason.contains("too long"), "{down}");
    server.cont();
    bench.wait_up();
    (1..=3).for_each(|number| bench.keyed(number, "s", "k"));
    assert!(bench.words(3).iter().all(|(_, word)| *word == "delivered"));
    let ids: Vec<u64> = contents(&config, "s").unwrap().iter().map(|entry| entry.id.number()).collect();
    assert!(ids == [0, 1, 1, 2, 3] || ids == [0, 1, 2, 3], "{ids:?}");
}

#[test]
fn an_outage_shows_while_nothing_is_sent() {
    let server = Server::start(&[]);
    let bench = Bench::up(server.config());
    server.kill();
    assert_eq!(bench.wait_down().class, Class::Transient);
    server.restart();
    bench.wait_up();
}

#[test]
fn closing_waits_for_replies_within_its_grace_and_no_longer() {
    let server = Server::start(&[]);
    let bench = Bench::up(server.config());
    (0..2000).for_each(|number| bench.keyed(number, "s", "k"));
    bench.transport.close(PATIENCE);
    assert!(bench.words(2000).iter().all(|(_, word)| *word == "delivered"));
    assert!(bench.submit(1, Message::to("s")).unwrap_err().contains("closed"));

    let bench = Bench::up(server.config());
    server.stop();
    bench.keyed(1, "s", "k");
    let begun = Instant::now();
    bench.transport.close(Duration::from_millis(200));
    assert!(begun.elapsed() < Duration::from_secs(20));
    assert_eq!(bench.next().0, 1);
    server.cont();
}

#[test]
fn a_transport_that_is_dropped_unclosed_reports_what_it_owned() {
    let server = Server::start(&[]);
    let Bench { transport, .. } = Bench::up(server.config());
    drop(transport);
    let bench = Bench::up(server.config());
    server.stop();
    bench.keyed(1, "s", "k");
    let reports = bench;
    reports.transport.close(Duration::ZERO);
    assert_eq!(reports.next().0, 1);
}

#[test]
fn many_streams_share_the_connection_and_a_bad_one_holds_nobody_up() {
    let config = shared_server();
    let streams: Vec<String> = (0..200).map(|_| unused("many")).collect();
    command(&mut connect(&config), &["SET", &streams[7], "no stream"]);
    let bench = Bench::up(config.clone());
    for number in 0..10_000 {
        bench.keyed(number, &streams[number as usize % 200], "k");
    }
    let words = bench.words(10_000);
    assert!(words.iter().all(|(number, word)| (*word == "delivered") == (number % 200 != 7)));
    for stream in streams.iter().filter(|stream| **stream != streams[7]) {
        let numbers: Vec<u64> = contents(&config, stream).unwrap().iter().map(|entry| entry.id.number()).collect();
        assert!(numbers.len() == 50 && numbers.is_sorted(), "{numbers:?}");
    }
}

#[test]
fn faults_of_the_configuration_show_before_anything_is_tried() {
    let fault = |config: RedisConfig| match RedisTransport::new(config) {
        Err(error) => error.to_string(),
        Ok(transport) => transport.start(Monitor::new(1, |_: Availability| {}, |_| {})).unwrap_err().to_string(),
    };
    let tls = RedisConfig { tls: true, ..RedisConfig::default() };
    assert!(fault(RedisConfig { host: String::new(), ..RedisConfig::default() }).contains("host"));
    let missing = RedisConfig { ca_file: Some("/nowhere/ca.pem".into()), ..tls.clone() };
    let text = fault(missing);
    assert!(text.contains(if cfg!(feature = "tls") { "/nowhere/ca.pem" } else { "feature" }), "{text}");
    let mut junk = tempfile::NamedTempFile::new().unwrap();
    junk.write_all(b"no certificate").unwrap();
    let text = fault(RedisConfig { ca_file: Some(junk.path().into()), ..tls });
    assert!(text.contains(if cfg!(feature = "tls") { "PEM" } else { "feature" }), "{text}");
}

#[cfg(feature = "tls")]
#[test]
fn tls_works_with_the_right_authority_and_is_refused_with_another_or_for_another_host() {
    let directory = tempfile::tempdir().unwrap();
    certificates(&directory, "", "IP:127.0.0.1");
    certificates(&directory, "other-", "IP:127.0.0.1");
    certificates(&directory, "elsewhere-", "DNS:elsewhere.example");
    let path = |name: &str| file(&directory, name).to_str().unwrap().to_owned();
    let tls = |prefix: &str, clients: &str| {
        let names =
            [path(&format!("{prefix}cert.pem")), path(&format!("{prefix}key.pem")), path(&format!("{prefix}ca.pem"))];
        let arguments = ["--port", "0", "--tls-port", "PORT", "--tls-auth-clients", clients];
        let files = ["--tls-cert-file", &names[0], "--tls-key-file", &names[1], "--tls-ca-cert-file", &names[2]];
        Server::start(&[&arguments[..], &files].concat())
    };
    let server = tls("", "no");
    let good = RedisConfig { tls: true, ca_file: Some(path("ca.pem").into()), ..server.config() };
    let bench = Bench::up(good.clone());
    for number in 0..500 {
        bench.keyed(number, "s", "k");
    }
    assert!(bench.words(500).iter().all(|(_, word)| *word == "delivered"));

    let down = |config| {
        let down = Bench::start(config).wait_down();
        assert_eq!(down.scope, Scope::Transport);
        down
    };
    for (what, config) in [
        ("another authority", RedisConfig { ca_file: Some(path("other-ca.pem").into()), ..good.clone() }),
        ("the system's authorities", RedisConfig { ca_file: None, ..good.clone() }),
    ] {
        let failure = down(config);
        assert!(failure.class == Class::Hold && failure.reason.contains("ca_file"), "{what}: {failure}");
    }
    let elsewhere = tls("elsewhere-", "no");
    let config = RedisConfig { port: elsewhere.port, ca_file: Some(path("elsewhere-ca.pem").into()), ..good.clone() };
    let failure = down(config);
    assert!(failure.class == Class::Hold && failure.reason.contains("TLS"), "another host: {failure}");
    let plain = Server::start(&[]);
    // Redis waits for the end of what it takes for a command.
    let connect_timeout = Duration::from_millis(500);
    let failure = down(RedisConfig { port: plain.port, connect_timeout, ..good.clone() });
    assert!(failure.reason.contains("does the port speak TLS"), "plaintext port: {failure}");

    let mutual = tls("", "yes");
    let config = RedisConfig { port: mutual.port, ..good };
    let failure = down(config.clone());
    assert!(
        failure.reason.contains("no TLS connection") || failure.class == Class::Transient,
        "no certificate: {failure}"
    );
    let certificate_file = Some(path("cert.pem").into());
    let private_key_file = Some(path("key.pem").into());
    let bench = Bench::up(RedisConfig { certificate_file, private_key_file, ..config });
    bench.keyed(1, "s", "k");
    assert_eq!(bench.word(), (1, "delivered"));
}
