//! A web service that takes orders and never loses one: 201 when the broker has it, 202 when the disk has it, 503
//! when neither can take it.
//!
//! ```text
//! cargo run --example axum_handler [kafka://host:port]
//! curl -i -d '17 apples' localhost:3000/orders/cust-42
//! ```

use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::http::header::RETRY_AFTER;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use outlast::{Message, Producer, Receipt, SendErrorKind};

/// The service. A client that gets neither 201 nor 202 still has its order, and knows whether to try again.
pub fn router(producer: Producer) -> Router {
    Router::new().route("/orders/{customer}", post(take_order)).with_state(producer)
}

async fn take_order(State(producer): State<Producer>, Path(customer): Path<String>, order: Bytes) -> Response {
    // A client that hangs up drops this future: the order is delivered all the same, unless it was still waiting for
    // space in a full outbox. Then it is withdrawn.
    match producer.send(Message::to("orders").key(customer).payload(order)).await {
        Ok(Receipt::Delivered { id, position }) => {
            (StatusCode::CREATED, format!("order {id} is at {position}\n")).into_response()
        }
        Ok(receipt) => (StatusCode::ACCEPTED, format!("order {} will be delivered\n", receipt.id())).into_response(),
        Err(error) => {
            let status = match error.kind() {
                SendErrorKind::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
                SendErrorKind::Invalid => StatusCode::BAD_REQUEST,
                // Full, Storage, Closed: not this one's fault, and not for ever.
                _ => StatusCode::SERVICE_UNAVAILABLE,
            };
            let retry_after = (status == StatusCode::SERVICE_UNAVAILABLE).then_some([(RETRY_AFTER, "5")]);
            (status, retry_after, format!("not accepted: {error}\n")).into_response()
        }
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let broker = std::env::args().nth(1).unwrap_or("kafka://localhost:9092".into());
    let producer = Producer::builder()
        .outbox("orders.outbox")
        .url(broker)
        // Somebody waits at the other end of the line.
        .first_attempt(Duration::from_secs(1))
        .space_wait(Duration::from_secs(2))
        .open()
        .await?;
    let listener = tokio::net::TcpListener::bind("localhost:3000").await?;
    let result = axum::serve(listener, router(producer.clone())).await;
    producer.close(Duration::from_secs(10)).await?;
    Ok(result?)
}
