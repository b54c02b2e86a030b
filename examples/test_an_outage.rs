//! How an application tests its own outage: with a broker in memory, which goes down when it is told to.
//!
//! ```text
//! cargo run --example test_an_outage --features testing
//! ```

use std::error::Error;
use std::path::Path;
use std::time::Duration;

use outlast::testing::Broker;
use outlast::{Message, Producer, SendError};

/// The application: what is to be tested.
pub struct Shop {
    producer: Producer,
}

impl Shop {
    /// Takes an order. Returns whether the warehouse has it already.
    pub async fn order(&self, customer: &str, what: &str) -> Result<bool, SendError> {
        let message = Message::to("orders").key(customer.to_owned()).payload(what.to_owned());
        Ok(self.producer.send(message).await?.is_delivered())
    }
}

/// A producer on the broker in memory: in production, `.url("kafka://…")` in place of `.custom_transport(…)`.
async fn open(outbox: &Path, broker: &Broker) -> Result<Producer, outlast::OpenError> {
    Producer::builder().outbox(outbox).custom_transport("memory", broker.transport()).open().await
}

/// The test. An application has it as a `#[tokio::test]`.
pub async fn an_order_taken_in_an_outage_outlasts_the_restart(outbox: &Path) -> Result<(), Box<dyn Error>> {
    let broker = Broker::new();
    let shop = Shop { producer: open(outbox, &broker).await? };
    assert!(shop.order("cust-42", "17 apples").await?);

    broker.down();
    assert!(!shop.order("cust-42", "18 pears").await?, "on the disk");
    shop.producer.close(Duration::from_secs(1)).await?;

    let shop = Shop { producer: open(outbox, &broker).await? };
    assert!(!shop.order("cust-42", "19 plums").await?, "behind the pears");
    broker.up();
    shop.producer.drained(Duration::from_secs(10)).await?;
    let orders: Vec<_> = broker.delivered().into_iter().filter_map(|delivered| delivered.payload).collect();
    assert_eq!(orders, ["17 apples", "18 pears", "19 plums"], "each once, in order");

    // The broker takes the order and its answer is lost: it is sent again, under the same id.
    broker.lose_reply();
    shop.order("cust-7", "1 melon").await?;
    shop.producer.drained(Duration::from_secs(10)).await?;
    let delivered = broker.delivered();
    assert_eq!(delivered[3].id, delivered[4].id, "consumers can tell");
    shop.producer.close(Duration::from_secs(1)).await?;
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let outbox = std::env::temp_dir().join(format!("outlast-example-{}", std::process::id()));
    let result = an_order_taken_in_an_outage_outlasts_the_restart(&outbox).await;
    std::fs::remove_dir_all(&outbox)?;
    result?;
    println!("nothing was lost");
    Ok(())
}
