//! What `send` returns, and what becomes of a stored message later.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::sync::oneshot;

use crate::message::{MessageId, Position};

/// An accepted message: it will not be lost.
#[derive(Debug)]
#[non_exhaustive]
pub enum Receipt {
    /// The broker acknowledged it, at the configured strength.
    Delivered {
        /// Its identity at the broker.
        id: MessageId,
        /// Where the broker put it.
        position: Position,
    },
    /// It is in the local outbox and the disk has confirmed it; it is delivered later, after a restart if need be.
    Stored {
        /// Its identity, in the outbox and at the broker.
        id: MessageId,
        /// Its place in the log: 1, 2, 3, …, across restarts; not used again.
        lsn: u64,
        /// Resolves when it is delivered, or dead. Dropping it changes nothing for the message.
        delivery: Delivery,
    },
}

impl Receipt {
    /// The message's identity.
    pub fn id(&self) -> MessageId {
        match self {
            Self::Delivered { id, .. } | Self::Stored { id, .. } => *id,
        }
    }

    /// Whether the broker has it.
    pub fn is_delivered(&self) -> bool {
        matches!(self, Self::Delivered { .. })
    }
}

/// What became of a stored message.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fate {
    /// The broker acknowledged it.
    Delivered(Position),
    /// The broker will never take it: it is a dead letter, with this reason.
    Dead(String),
    /// The producer was closed first: the message is in the outbox and is delivered after the next start. Or what is on the
    /// disk of it cannot be read, and was set aside.
    Unknown,
}

/// Resolves to the [`Fate`] of a stored message.
///
/// # Cancel safety
/// Dropping it only stops watching.
#[must_use = "a future does nothing unless it is awaited; dropping it only stops watching"]
pub struct Delivery {
    fate: oneshot::Receiver<Fate>,
}

impl Delivery {
    pub(crate) fn new(fate: oneshot::Receiver<Fate>) -> Self {
        Self { fate }
    }
}

impl Future for Delivery {
    type Output = Fate;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Fate> {
        Pin::new(&mut self.fate).poll(context).map(|fate| fate.unwrap_or(Fate::Unknown))
    }
}

impl fmt::Debug for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Delivery")
    }
}
