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
pub mod transport;
mod wal;

#[doc(hidden)]
pub mod internals {
    pub mod wal {
        pub use crate::wal::*;
    }
}

pub use error::{SendError, SendErrorKind};
pub use message::{Body, Header, ID_HEADER, Lane, Message, MessageId, Outgoing, ParseMessageIdError, Position, Route};
