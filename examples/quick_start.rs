//! Sends each line of standard input as an order of its first word: `README.md`'s quick start, word for word.
//!
//! ```text
//! cargo run --example quick_start [kafka://host:port]
//! ```

use std::time::Duration;

use outlast::{Message, Producer, Receipt};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let broker = std::env::args().nth(1).unwrap_or("kafka://localhost:9092".into());
    // The broker need not be there. What an earlier run left in the outbox is delivered from now on.
    let producer = Producer::open("orders.outbox", &broker).await?;

    for order in std::io::stdin().lines() {
        let order = order?;
        let customer = order.split(' ').next().unwrap_or_default().to_owned();
        // Orders of one customer stay in order, outage or not.
        match producer.send(Message::to("orders").key(customer).payload(order.clone())).await? {
            Receipt::Delivered { position, .. } => println!("delivered at {position}: {order}"),
            Receipt::Stored { .. } => println!("stored on disk, delivered later: {order}"),
            _ => {}
        }
    }

    if let Err(waiting) = producer.drained(Duration::from_secs(30)).await {
        println!("{waiting}: the next run delivers them");
    }
    producer.close(Duration::from_secs(10)).await?;
    Ok(())
}
