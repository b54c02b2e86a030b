//! Ours beside the bare clients, on real brokers, in alternating rounds, as ratios.
//!
//! - Kafka: direct sends from 256 tasks beside `FutureProducer` with the same settings.
//! - Redis: direct sends from 256 tasks beside redis-rs' multiplexed connection.
//! - Draining what an outage left behind, beside direct sends.
//!
//! `scripts/services up; eval "$(scripts/services env | sed 's/^/export /')"; cargo bench --bench brokers`. A part whose
//! server is not named is left out, and says so. `OUTLAST_BENCH_MESSAGES` (default 100,000) is the size of a round,
//! `OUTLAST_BENCH_ROUNDS` (default 5) their number.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use outlast::{Message, Mode, Order, Producer, RouteConfig};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::producer::{FutureProducer, FutureRecord};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

const TASKS: usize = 256;
const PAYLOAD: usize = 200;
const PARTITIONS: i32 = 4;
const LONG: Duration = Duration::from_secs(300);

fn number(name: &str, default: usize) -> usize {
    std::env::var(name).ok().map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name}: not a number")))
}

/// Runs `TASKS` tasks that share `count` turns; returns turns a second.
fn rate<F: Future<Output = ()> + Send + 'static>(
    runtime: &Runtime,
    count: usize,
    turn: impl Fn(usize) -> F + Clone + Send + 'static,
) -> f64 {
    runtime.block_on(async {
        let begun = Instant::now();
        let mut tasks = JoinSet::new();
        for task in 0..TASKS {
            let turn = turn.clone();
            tasks.spawn(async move {
                for at in (task..count).step_by(TASKS) {
                    turn(at).await;
                }
            });
        }
        while let Some(done) = tasks.join_next().await {
            done.expect("a task ends well");
        }
        count as f64 / begun.elapsed().as_secs_f64()
    })
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn report(what: &str, ours: &[f64], theirs: &[f64]) {
    let ratios: Vec<f64> = ours.iter().zip(theirs).map(|(ours, theirs)| ours / theirs).collect();
    let (low, high) = ratios.iter().fold((f64::MAX, 0.0_f64), |(low, high), r| (low.min(*r), high.max(*r)));
    println!(
        "{what}: ratio {:.2} ({low:.2} to {high:.2}); {:.0}k/s beside {:.0}k/s, medians of {} rounds",
        median(ratios.clone()),
        median(ours.to_vec()) / 1e3,
        median(theirs.to_vec()) / 1e3,
        ours.len()
    );
}

fn open(directory: &std::path::Path, url: &str, destination: &str, mode: Mode, order: Option<Order>) -> Producer {
    let route = RouteConfig { destination: destination.into(), order, ..RouteConfig::default() };
    let builder = Producer::builder().outbox(directory).url(url).mode(mode).route(route).lock_wait(LONG);
    builder.open_blocking().expect("the producer opens")
}

fn ours(runtime: &Runtime, producer: &Producer, destination: &str, count: usize) -> f64 {
    let (producer, destination): (Producer, Arc<str>) = (producer.clone(), destination.into());
    rate(runtime, count, move |at| {
        let message =
            Message::to(Arc::clone(&destination)).key(format!("key-{}", at % 1_000)).payload(vec![b'x'; PAYLOAD]);
        let send = producer.send(message);
        async move {
            assert!(send.await.expect("accepted").is_delivered(), "a healthy broker gets it directly");
        }
    })
}

/// Stores `count` messages while the transport is told to write ahead with a rate of one a second, then drains them.
fn drain(runtime: &Runtime, url: &str, destination: &str, count: usize) -> f64 {
    let directory = tempfile::tempdir().expect("a directory");
    // Stored where nobody delivers: the port of a closed listener.
    let nowhere = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("its address");
    let scheme = url.split("://").next().expect("a scheme");
    let producer = open(directory.path(), &format!("{scheme}://{nowhere}"), destination, Mode::WriteAhead, None);
    let (sender, to): (Producer, Arc<str>) = (producer.clone(), destination.into());
    rate(runtime, count, move |at| {
        let message = Message::to(Arc::clone(&to)).key(format!("key-{}", at % 1_000)).payload(vec![b'x'; PAYLOAD]);
        let send = sender.send(message);
        async move { drop(send.await.expect("stored")) }
    });
    producer.blocking_close(Duration::ZERO).expect("closed");
    drop(producer);
    let producer = open(directory.path(), url, destination, Mode::Direct, None);
    let begun = Instant::now();
    producer.blocking_drained(LONG).expect("drained");
    let rate = count as f64 / begun.elapsed().as_secs_f64();
    producer.blocking_close(LONG).expect("closed");
    rate
}

fn create_topic(runtime: &Runtime, brokers: &str, name: &str) {
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", brokers).create().expect("an admin client");
    let topic = NewTopic::new(name, PARTITIONS, TopicReplication::Fixed(1));
    let made = runtime.block_on(admin.create_topics([&topic], &AdminOptions::new())).expect("an answer");
    made.into_iter().for_each(|topic| drop(topic.expect("the topic is made")));
}

fn kafka(runtime: &Runtime, brokers: &str, count: usize, rounds: usize) {
    let topic = format!("bench-{}", std::process::id());
    create_topic(runtime, brokers, &topic);
    let bare: FutureProducer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("acks", "all")
        .set("enable.idempotence", "true")
        .set("max.in.flight.requests.per.connection", "1")
        .create()
        .expect("a producer");
    let directory = tempfile::tempdir().expect("a directory");
    let url = format!("kafka://{brokers}");
    let producer = open(directory.path(), &url, &topic, Mode::Direct, None);
    let theirs = |count| {
        let (bare, topic): (FutureProducer, Arc<str>) = (bare.clone(), topic.as_str().into());
        rate(runtime, count, move |at| {
            let (bare, topic) = (bare.clone(), Arc::clone(&topic));
            async move {
                let (key, payload) = (format!("key-{}", at % 1_000), vec![b'x'; PAYLOAD]);
                let record = FutureRecord::to(&topic).key(&key).payload(&payload);
                bare.send(record, LONG).await.expect("delivered");
            }
        })
    };
    theirs(count / 10);
    ours(runtime, &producer, &topic, count / 10);
    let (mut direct, mut future, mut drained) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        future.push(theirs(count));
        direct.push(ours(runtime, &producer, &topic, count));
        drained.push(drain(runtime, &url, &topic, count));
    }
    report("Kafka, direct beside FutureProducer", &direct, &future);
    report("Kafka, drain beside direct", &drained, &direct);
    producer.blocking_close(LONG).expect("closed");
}

fn redis(runtime: &Runtime, address: &str, count: usize, rounds: usize) {
    let stream = format!("bench-{}", std::process::id());
    let client = redis::Client::open(format!("redis://{address}")).expect("a client");
    let bare = runtime.block_on(client.get_multiplexed_async_connection()).expect("a connection");
    let empty = || {
        let mut bare = bare.clone();
        let _: () = runtime.block_on(redis::cmd("DEL").arg(&stream).query_async(&mut bare)).expect("emptied");
    };
    let directory = tempfile::tempdir().expect("a directory");
    let url = format!("redis://{address}");
    let producer = open(directory.path(), &url, &stream, Mode::Direct, Some(Order::Key));
    let theirs = |count| {
        let (bare, stream): (_, Arc<str>) = (bare.clone(), stream.as_str().into());
        rate(runtime, count, move |at| {
            let (mut bare, stream) = (bare.clone(), Arc::clone(&stream));
            async move {
                let (key, payload) = (format!("key-{}", at % 1_000), vec![b'x'; PAYLOAD]);
                let mut add = redis::cmd("XADD");
                add.arg(&*stream).arg("*").arg("payload").arg(payload).arg("key").arg(key).arg("outlast-id");
                let _: String = add.arg(format!("{at:032x}")).query_async(&mut bare).await.expect("added");
            }
        })
    };
    theirs(count / 10);
    ours(runtime, &producer, &stream, count / 10);
    let (mut direct, mut naive, mut drained) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        empty();
        naive.push(theirs(count));
        empty();
        direct.push(ours(runtime, &producer, &stream, count));
        empty();
        drained.push(drain(runtime, &url, &stream, count));
    }
    empty();
    report("Redis, direct beside redis-rs", &direct, &naive);
    report("Redis, drain beside direct", &drained, &direct);
    producer.blocking_close(LONG).expect("closed");
}

fn main() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let (count, rounds) = (number("OUTLAST_BENCH_MESSAGES", 100_000), number("OUTLAST_BENCH_ROUNDS", 5));
    match std::env::var("OUTLAST_TEST_KAFKA") {
        Ok(brokers) => kafka(&runtime, &brokers, count, rounds),
        Err(_) => println!("Kafka left out: OUTLAST_TEST_KAFKA is not set"),
    }
    match std::env::var("OUTLAST_TEST_REDIS") {
        Ok(address) => redis(&runtime, &address, count, rounds),
        Err(_) => println!("Redis left out: OUTLAST_TEST_REDIS is not set"),
    }
}
