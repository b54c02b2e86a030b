//! Errors of the public surface. Each says what happened *and what became of the message*.

use std::fmt;

use crate::message::Message;

/// Why a message was not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SendErrorKind {
    /// The outbox is full, and stayed so for the whole wait. The broker never saw the message.
    Full,
    /// The broker did not take the message, and the disk would not either.
    Storage,
    /// The producer was closed before the message found a place.
    Closed,
    /// Key, headers and payload have more bytes than `max_message_bytes`. The broker never saw the message.
    TooLarge,
    /// The message cannot be sent as it is: an illegal destination, header or body. The broker never saw it.
    Invalid,
    /// The message names a transport that is not configured. The broker never saw it.
    UnknownTransport,
}

/// A message that was **not** accepted, handed back with its id: sending it again keeps the id, so that a
/// duplicate can be told.
#[derive(Debug)]
pub struct SendError(Box<Inner>);

#[derive(Debug)]
struct Inner {
    kind: SendErrorKind,
    reason: String,
    message: Message,
    possibly_delivered: bool,
}

impl SendError {
    pub(crate) fn new(kind: SendErrorKind, reason: impl Into<String>, message: Message) -> Self {
        Self(Box::new(Inner { kind, reason: reason.into(), message, possibly_delivered: false }))
    }

    pub(crate) fn maybe_delivered(mut self, possibly: bool) -> Self {
        self.0.possibly_delivered = possibly;
        self
    }

    /// What kind of error it is.
    pub fn kind(&self) -> SendErrorKind {
        self.0.kind
    }

    /// The message.
    pub fn message(&self) -> &Message {
        &self.0.message
    }

    /// Hands the message back.
    pub fn into_message(self) -> Message {
        self.0.message
    }

    /// Whether sending the same message again can succeed.
    pub fn is_retryable(&self) -> bool {
        match self.0.kind {
            SendErrorKind::Full | SendErrorKind::Storage => true,
            SendErrorKind::Closed
            | SendErrorKind::TooLarge
            | SendErrorKind::Invalid
            | SendErrorKind::UnknownTransport => false,
        }
    }

    /// Whether the broker may have the message all the same, or the outbox may still deliver it.
    pub fn possibly_delivered(&self) -> bool {
        self.0.possibly_delivered
    }
}

impl fmt::Display for SendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.reason)?;
        if self.0.possibly_delivered {
            f.write_str(" (the broker may have the message all the same)")?;
        }
        Ok(())
    }
}

impl std::error::Error for SendError {}
