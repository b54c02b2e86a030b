//! From rdkafka's `FutureProducer` to `outlast`: the records stay as they are, the error handling goes.
//!
//! ```text
//! cargo run --example from_future_producer [host:port]
//! ```

use std::error::Error;
use std::time::Duration;

use outlast::{Producer, Receipt};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};

/// A record as the application makes it today: key, payload, headers, a partition or a timestamp if it likes.
fn record<'a>(topic: &'a str, customer: &'a str, order: &'a str) -> FutureRecord<'a, str, str> {
    let headers = OwnedHeaders::new().insert(Header { key: "source", value: Some("shop") });
    FutureRecord::to(topic).key(customer).payload(order).headers(headers)
}

/// Before: what happens to the order when this fails is up to the caller, and lost if the process ends first.
pub async fn publish_before(
    producer: &FutureProducer,
    topic: &str,
    customer: &str,
    order: &str,
) -> Result<(), Box<dyn Error>> {
    match producer.send(record(topic, customer, order), Duration::from_secs(5)).await {
        Ok(_) => Ok(()),
        Err((error, _message)) => Err(error.into()),
    }
}

/// After: an outage is no error any more. Keys go to the partitions they went to before.
pub async fn publish(producer: &Producer, topic: &str, customer: &str, order: &str) -> Result<Receipt, Box<dyn Error>> {
    Ok(producer.send(record(topic, customer, order).into()).await?)
}

/// Before: `ClientConfig::new().set("bootstrap.servers", …).set("compression.type", "lz4").create()?`
///
/// After: the same properties, in the URL. `acks`, idempotence and `message.timeout.ms` are settled: values that would
/// let a message get lost are refused.
pub async fn open(outbox: &str, bootstrap_servers: &str) -> Result<Producer, Box<dyn Error>> {
    Ok(Producer::open(outbox, &format!("kafka://{bootstrap_servers}?compression.type=lz4")).await?)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let servers = std::env::args().nth(1).unwrap_or("localhost:9092".into());
    let producer = open("orders.outbox", &servers).await?;
    println!("{:?}", publish(&producer, "orders", "cust-42", "17 apples").await?);
    // Before: `producer.flush(timeout)`, after which what was not delivered is lost. After: it is on the disk.
    let closed = producer.close(Duration::from_secs(10)).await?;
    println!("{} orders wait for the next start", closed.pending);
    Ok(())
}
