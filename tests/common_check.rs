//! The tests' own tools, checked before others rely on them.

mod common;

use std::collections::HashMap;

use common::{first_field, log_lines};

#[test]
fn generated_log_lines_are_skewed_like_a_real_log_and_replay_from_their_seed() {
    let lines = log_lines(7, 10_000);
    assert_eq!(lines, log_lines(7, 10_000));
    assert_ne!(lines, log_lines(8, 10_000));
    let mut clients: HashMap<&[u8], usize> = HashMap::new();
    for line in &lines {
        *clients.entry(first_field(line)).or_default() += 1;
    }
    let busiest = clients.values().max().copied().unwrap_or(0);
    assert!((1_500..2_000).contains(&clients.len()), "{} clients", clients.len());
    assert!((300..700).contains(&busiest), "the busiest has {busiest} lines");
}

#[cfg(feature = "kafka")]
#[test]
fn a_killed_broker_comes_back_with_its_address_and_its_records() {
    use rdkafka::ClientConfig;
    use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
    use std::time::{Duration, Instant};

    let begin = Instant::now();
    let server = common::KafkaServer::up();
    println!("up after {:?}", begin.elapsed());
    common::kafka::create_topic(server.address(), "orders", 4);
    let producer: BaseProducer = ClientConfig::new().set("bootstrap.servers", server.address()).create().unwrap();
    for n in 0..100 {
        let (key, payload) = (format!("{}", n % 7), format!("{n}"));
        producer.send(BaseRecord::to("orders").key(&key).payload(&payload)).unwrap();
    }
    producer.flush(Duration::from_secs(30)).unwrap();
    let before = common::kafka::read_all(server.address(), "orders");
    assert_eq!(before.len(), 100);
    server.kill();
    let begin = Instant::now();
    server.start();
    println!("back after {:?}", begin.elapsed());
    common::wait_until("its records are there", Duration::from_secs(30), || {
        common::kafka::read_all(server.address(), "orders") == before
    });
}

#[cfg(feature = "redis")]
#[test]
fn a_killed_redis_comes_back_with_its_address_and_its_entries() {
    let server = common::RedisServer::up();
    for n in 0..100 {
        common::redis::command(server.address(), &["XADD", "orders", "*", "payload", &n.to_string()]);
    }
    let before = common::redis::read_all(server.address(), "orders");
    assert_eq!(before.len(), 100);
    assert_eq!(before[99].field("payload"), Some(&b"99"[..]));
    server.kill();
    server.start();
    assert_eq!(common::redis::read_all(server.address(), "orders"), before);
}

#[cfg(all(feature = "kafka", feature = "redis"))]
#[test]
fn the_shared_servers_answer() {
    let topic = common::unique("shared");
    common::kafka::create_topic(&common::kafka_address(), &topic, 2);
    assert_eq!(common::kafka::read_all(&common::kafka_address(), &topic), []);
    assert_eq!(common::redis::read_all(&common::redis_address(), &topic), []);
}

/// After an export of what `scripts/services env` prints, the script refused to touch the servers of its own set.
#[cfg(feature = "redis")]
#[test]
fn the_script_knows_its_own_servers_whatever_the_environment_names() {
    use std::process::{Command, Stdio};

    const VARIABLE: &str = "OUTLAST_TEST_REDIS";
    let server = common::RedisServer::up();
    let script = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/services");
    let target = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("it lies in the target directory");
    let run = |address: &str, words: &[&str]| {
        let mut command = Command::new(&script);
        command.args(words).env("OUTLAST_SERVICES_DIR", server.dir()).env("CARGO_TARGET_DIR", target);
        command.env(VARIABLE, address);
        let output = command.env_remove("OUTLAST_TEST_KAFKA").stdin(Stdio::null()).output().expect("the script runs");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.success(), text(&output.stdout), text(&output.stderr))
    };
    let pid = || std::fs::read_to_string(server.dir().join("redis.pid")).expect("the pid of a server that was up");

    let own = server.address();
    let first = pid();
    for words in [["stop", "redis"], ["cont", "redis"], ["start", "redis"], ["up", "redis"]] {
        let (well, _, said) = run(own, &words);
        assert!(well, "{words:?}: {said}");
    }
    assert_eq!(pid(), first, "it was running: nothing was started");
    for again in ["start", "up"] {
        let before = pid();
        assert!(run(own, &["kill", "redis"]).0);
        assert!(run(own, &[again, "redis"]).0);
        assert_ne!(pid(), before, "{again} brought it back");
        common::redis::command(own, &["PING"]);
    }
    assert_eq!(run(own, &["env"]).1, format!("{VARIABLE}={own}\n"));

    // Another server is used as it is, and not touched; neither is the set's own in its stead.
    let (other, before) = ("127.0.0.1:1", pid());
    for word in ["kill", "stop", "cont", "start"] {
        let (well, _, said) = run(other, &[word, "redis"]);
        assert!(!well && said.contains(other) && said.contains("not for this script to touch"), "{word}: {said}");
    }
    let (well, _, said) = run(other, &["up", "redis"]);
    assert!(well && said.contains("unset OUTLAST_TEST_REDIS"), "{said}");
    assert_eq!(run(other, &["env"]).1, format!("{VARIABLE}={other}\n"));
    assert_eq!(pid(), before);
    common::redis::command(own, &["PING"]);

    assert!(run(own, &["down", "redis"]).0);
    assert!(!server.dir().join("redis.pid").exists());
}
