//! Hands messages to Kafka or Redis without losing one.
//!
//! A message goes straight to the broker; where that fails or takes too long, it is stored in a local *outbox* and
//! delivered from there, in order per key, after a restart if need be. What it is not (a transactional outbox, a
//! replicated store, exactly once), how it fails and what it costs: see the readme.
//!
//! ```no_run
//! use std::time::Duration;
//!
//! use outlast::{Message, Producer, Receipt};
//!
//! # async fn f(body: Vec<u8>) -> Result<(), Box<dyn std::error::Error>> {
//! let producer = Producer::open("/var/lib/orders/outbox", "kafka://broker:9092").await?;
//! let order = Message::to("orders").key("cust-42").payload(body);
//! match producer.send(order).await? {
//!     Receipt::Delivered { id, position } => println!("{id} is at {position}"),
//!     Receipt::Stored { id, .. } => println!("{id} is on the disk and will be delivered"),
//!     _ => {}
//! }
//! producer.close(Duration::from_secs(10)).await?;
//! # Ok(()) }
//! ```
//!
//! # The contract
//!
//! | [`send`](Producer::send) resolves to | which means |
//! |---|---|
//! | [`Receipt::Delivered`] | the broker acknowledged it, at the configured strength |
//! | [`Receipt::Stored`] | it is in the outbox, and the disk has confirmed it; it is delivered later |
//! | [`SendError`] | it was **not** accepted; the error hands it back, with its id, and says why |
//!
//! 1. After `Ok` a message is never dropped: it leaves the outbox delivered, or lies in the dead letters, with the
//!    reason, until an operator says otherwise ([`admin`]).
//! 2. `Ok` never comes before the broker's acknowledgement or a completed `fdatasync`.
//! 3. Per key, order holds through an outage: no message of a key is appended at the broker, for the first time,
//!    after a later one, within one partition count. [`Order`] says what has an order. A dead letter that is requeued
//!    gives up its place.
//! 4. Duplicates carry the same [`MessageId`] and are bounded: after a kill by [`Config::redelivery_window`], after a
//!    broken connection by what was in flight, after a power cut by what was delivered in the last second besides.
//! 5. What the library keeps in memory is bounded by [`Config`], whatever the backlog; a start reads the end of the
//!    log.
//! 6. A full outbox is back-pressure: `send` waits for space up to [`Config::space_wait`], then returns
//!    [`SendErrorKind::Full`]. With a broken disk and a healthy broker direct sends go on.
//! 7. A message has its place when `send` returns. Dropping the future only stops watching; a message that still
//!    waits for space is withdrawn by it ([`SendFuture`]).
//!
//! # How the types cooperate
//!
//! A [`Message`] names a destination (a topic, a stream) and, where there are several, a transport
//! ([`via`](Message::via)): together its [`Route`]. A [`Producer`] checks it, gives it its id, and hands it to the
//! route's [`Transport`](transport::Transport), to the outbox, or to both, as the route's [`Mode`] says and the
//! broker's state allows. The [`SendFuture`] resolves once the message is safe. What becomes of a stored message later
//! is told by [`Receipt::Stored`]'s [`Delivery`], by [`Producer::events`], and in sum by [`Producer::stats`] and
//! [`Producer::health`].
//!
//! Behind that, one thread a transport drains the outbox. A failure has a [`Class`](transport::Class): what passes by
//! itself is tried again, with backoff, for ever; what somebody has to mend is tried again too, and told in `health`;
//! what the broker will never take goes to the dead letters, or stays at the head of its key ([`OnPoison`]). What is
//! blocked holds up nothing but its own transport, topic, partition or key.
//!
//! The producer's threads are its own. Nothing runs on the caller's, no runtime is needed, and any will do; without
//! one there are [`blocking_send`](Producer::blocking_send) and its like. One process at a time has an outbox open
//! ([`OpenErrorKind::Held`]); [`admin`] looks into it beside a running producer.
//!
//! # Settings
//!
//! [`Producer::open`] takes the defaults, [`Producer::builder`] the rest, or a [`Config`] that serde has read. Each
//! setting's unit, default and bounds stand with its field in [`Config`].
//!
//! ```no_run
//! # fn f() -> Result<(), outlast::OpenError> {
//! use outlast::{Message, Mode, Producer, RouteConfig};
//!
//! let producer = Producer::builder()
//!     .outbox("/var/lib/orders/outbox")
//!     .url("kafka://a:9092,b:9092?compression.type=lz4")
//!     .transport("cache", "rediss://app@cache:6380")
//!     .route(RouteConfig {
//!         destination: "payments".into(),
//!         mode: Some(Mode::WriteAhead),
//!         ..RouteConfig::default()
//!     })
//!     .open_blocking()?;
//! let accepted = producer.blocking_send(Message::to("prices").via("cache").payload("17.20"));
//! # drop(accepted);
//! # Ok(()) }
//! ```
//!
//! # Testing an outage
//!
//! With the feature `testing` there is a broker in memory:
//!
#![cfg_attr(feature = "testing", doc = "```")]
#![cfg_attr(not(feature = "testing"), doc = "```ignore")]
//! use std::time::Duration;
//!
//! use outlast::testing::Broker;
//! use outlast::{Message, Producer};
//!
//! # let dir = tempfile::tempdir()?;
//! # let outbox = dir.path().join("outbox");
//! let broker = Broker::new();
//! let producer =
//!     Producer::builder().outbox(outbox).custom_transport("memory", broker.transport()).open_blocking()?;
//! broker.down();
//! let receipt = producer.blocking_send(Message::to("orders").key("cust-42").payload("17 apples"))?;
//! assert!(!receipt.is_delivered(), "stored");
//! broker.up();
//! producer.blocking_drained(Duration::from_secs(10))?;
//! assert_eq!(broker.delivered().len(), 1);
//! producer.blocking_close(Duration::from_secs(1))?;
//! # Ok::<_, Box<dyn std::error::Error>>(())
//! ```
//!
//! # Features
//!
//! | feature | brings |
//! |---|---|
//! | `kafka`, `redis` (default) | the transports; without them the core, for a [`Transport`](transport::Transport) of one's own |
//! | `tls` | TLS for both: OpenSSL for Kafka, rustls for Redis; `tls-vendored` compiles OpenSSL along |
//! | `zstd` | that codec for Kafka, beside gzip, snappy and lz4 |
//! | `json` | `Message::json` |
//! | `testing` | `testing`: the broker in memory, and the conformance suite for transports |
//! | `cli` | the program `outlast` |
#![deny(missing_docs)]

pub mod admin;
mod clock;
mod config;
mod doctor;
mod drainer;
mod error;
mod failure;
mod file_size;
mod finding;
mod forked;
mod message;
mod outbox;
mod planted;
mod producer;
mod receipt;
mod schedule;
mod stats;
#[cfg(feature = "testing")]
pub mod testing;
pub mod transport;
mod wal;

#[doc = include_str!("wal/FORMAT.md")]
pub mod format {}

#[doc(hidden)]
pub mod internals {
    //! For the project's own tests, benchmarks and fuzz targets; no part of the public interface.
    pub mod wal {
        pub use crate::wal::*;
    }
    pub mod outbox {
        pub use crate::outbox::*;
    }
    #[cfg(feature = "planted")]
    pub mod planted {
        pub use crate::planted::*;
    }
}

pub use config::{Config, ConfigError, Mode, OnPoison, Order, RouteConfig, TransportConfig};
pub use error::{SendError, SendErrorKind};
pub use message::{
    ACCEPTED_HEADER, Body, Header, ID_HEADER, Lane, Message, MessageId, Outgoing, ParseMessageIdError, Position, Route,
};
pub use producer::{
    Builder, CloseError, Closed, Events, NotDrained, OpenError, OpenErrorKind, Producer, SendAllError, SendFuture,
};
pub use receipt::{Delivery, Fate, Receipt};
pub use stats::{BlockedStats, Event, Health, RouteStats, Stats, TransportStats};
pub use transport::url::{BrokerUrl, Scheme, UrlError};
