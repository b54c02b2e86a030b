//! outlast
#![deny(missing_docs)]

pub mod admin;
mod config;
mod drainer;
mod error;
mod message;
mod outbox;
mod producer;
mod schedule;
mod stats;
#[cfg(feature = "testing")]
pub mod testing;
pub mod transport;
mod wal;

pub use error::{SendError, SendErrorKind};
pub use message::{Body, Header, Lane, Message, MessageId, Outgoing, ParseMessageIdError, Position, Route, ID_HEADER};
