//! outlast
#![deny(missing_docs)]

pub mod admin;
mod clock;
mod config;
mod drainer;
mod error;
mod failure;
mod message;
mod outbox;
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
}

pub use config::{Config, ConfigError, Mode, OnPoison, Order, RouteConfig, TransportConfig};
pub use error::{SendError, SendErrorKind};
pub use message::{Body, Header, ID_HEADER, Lane, Message, MessageId, Outgoing, ParseMessageIdError, Position, Route};
pub use producer::{
    Builder, CloseError, Closed, Events, NotDrained, OpenError, OpenErrorKind, Producer, SendAllError, SendFuture,
};
pub use receipt::{Delivery, Fate, Receipt};
pub use stats::{BlockedStats, Event, Health, RouteStats, Stats, TransportStats};
pub use transport::url::{BrokerUrl, Scheme, UrlError};
