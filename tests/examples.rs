//! The examples do what they say. Compiled in as they are; the quick start has a test program of its own.

#![cfg(all(feature = "kafka", feature = "testing"))]

mod common;

// Their `main` is not called from here.
#[allow(dead_code)]
#[path = "../examples/axum_handler.rs"]
mod axum_handler;
#[allow(dead_code)]
#[path = "../examples/from_future_producer.rs"]
mod from_future_producer;
#[allow(dead_code)]
#[path = "../examples/test_an_outage.rs"]
mod test_an_outage;

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use outlast::Producer;
use outlast::testing::Broker;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const LONG: Duration = Duration::from_secs(30);

/// The readme is what people paste; the example is what is compiled.
#[test]
fn the_readme_shows_the_quick_start_as_it_is() {
    let program = include_str!("../examples/quick_start.rs");
    let code: Vec<&str> = program.lines().skip_while(|line| line.starts_with("//!") || line.is_empty()).collect();
    assert!(include_str!("../README.md").contains(&code.join("\n")), "README.md and examples/quick_start.rs differ");
}

/// What the readme says happens is shown by tests; a claim must not outlive its test.
#[test]
fn every_test_that_the_readme_names_is_there() {
    let mut code = String::new();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut directories = vec![root.join("src"), root.join("tests")];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                code += &std::fs::read_to_string(path).unwrap();
            }
        }
    }
    let table = include_str!("../README.md").split("\n## ").find(|part| part.starts_with("What happens when")).unwrap();
    let rows: Vec<&str> = table.lines().filter(|line| line.starts_with("| ")).skip(1).collect();
    for row in &rows {
        let shown_by = row.trim_end_matches('|').rsplit('|').next().unwrap();
        let names: Vec<&str> = shown_by.split('`').skip(1).step_by(2).collect();
        assert!(!names.is_empty(), "nothing shows it: {row}");
        for name in names {
            let function = name.rsplit("::").next().unwrap();
            assert!(code.contains(&format!("fn {function}(")), "there is no test {name}");
        }
    }
    assert!(rows.len() > 10, "the table was not found");
}

#[tokio::test]
async fn an_outage_is_tested_without_a_broker() {
    let dir = TempDir::new().unwrap();
    test_an_outage::an_order_taken_in_an_outage_outlasts_the_restart(&dir.path().join("outbox")).await.unwrap();
}

#[tokio::test]
async fn a_web_client_is_told_whether_its_order_is_delivered_stored_or_not_accepted() {
    let (dir, broker) = (TempDir::new().unwrap(), Broker::new());
    // A small outbox, so that it fills: four segments, one of which is kept for first attempts.
    let producer = Producer::builder()
        .outbox(dir.path().join("outbox"))
        .custom_transport("memory", broker.transport())
        .segment_bytes(1 << 20)
        .max_bytes(4 << 20)
        .max_message_bytes(128 << 10)
        .space_wait(Duration::from_millis(100))
        .open()
        .await
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(axum::serve(listener, axum_handler::router(producer.clone())).into_future());

    let answer = post(address, b"17 apples").await;
    assert!(answer.starts_with("HTTP/1.1 201 "), "{answer}");
    let answer = post(address, &vec![b'x'; 200 << 10]).await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");

    broker.down();
    let answer = post(address, b"18 pears").await;
    assert!(answer.starts_with("HTTP/1.1 202 "), "{answer}");
    let large = vec![b'x'; 100 << 10];
    let mut accepted = 2;
    let refused = loop {
        let answer = post(address, &large).await;
        if !answer.starts_with("HTTP/1.1 202 ") {
            break answer;
        }
        accepted += 1;
        assert!(accepted < 100, "the outbox never fills");
    };
    assert!(refused.starts_with("HTTP/1.1 503 "), "{refused}");
    assert!(refused.to_lowercase().contains("retry-after: 5"), "{refused}");

    broker.up();
    producer.drained(LONG).await.unwrap();
    assert_eq!(broker.delivered().len(), accepted, "what was accepted arrives, what was refused does not");
    let answer = post(address, b"19 plums").await;
    assert!(answer.starts_with("HTTP/1.1 201 "), "{answer}");
    server.abort();
    producer.close(LONG).await.unwrap();
}

/// Sends an order over HTTP and returns the whole answer.
async fn post(address: SocketAddr, order: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let head = format!(
        "POST /orders/cust-42 HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        order.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(order).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn a_future_record_arrives_at_kafka_as_it_did_from_a_future_producer() {
    let dir = TempDir::new().unwrap();
    let address = common::kafka_address();
    let topic = common::unique("migrated");
    common::kafka::create_topic(&address, &topic, 4);
    let before: rdkafka::producer::FutureProducer =
        rdkafka::ClientConfig::new().set("bootstrap.servers", &address).create().unwrap();
    let after = from_future_producer::open(dir.path().join("outbox").to_str().unwrap(), &address).await.unwrap();
    for customer in 0..20 {
        let customer = format!("cust-{customer}");
        from_future_producer::publish_before(&before, &topic, &customer, "17 apples").await.unwrap();
        // Stored will do: it may take longer than a first attempt is given.
        let _ = from_future_producer::publish(&after, &topic, &customer, "17 apples").await.unwrap();
    }
    after.drained(LONG).await.unwrap();
    assert_eq!(after.close(LONG).await.unwrap().pending, 0);

    let records = common::kafka::read_all(&address, &topic);
    let (migrated, original): (Vec<_>, Vec<_>) = records.into_iter().partition(|record| record.id.is_some());
    let mut seen = |record: common::kafka::Record| (record.key, record.payload, record.headers, record.partition);
    let mut migrated: Vec<_> = migrated.into_iter().map(&mut seen).collect();
    let mut original: Vec<_> = original.into_iter().map(&mut seen).collect();
    migrated.sort();
    original.sort();
    assert_eq!(migrated.len(), 20);
    assert_eq!(migrated, original, "the same bytes, in the same partitions");
}
