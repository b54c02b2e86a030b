//! Looking into an outbox and mending it, with or without a producer on it.
//!
//! [`check()`] reads everything and says what is damaged, [`repair()`] puts it in order. [`doctor()`](doctor::doctor)
//! looks at the set-up around it: disk, process, brokers.
//!
//! What only reads works beside a live producer: it reads the log and the file `status`, never the live ledger. What
//! changes the outbox takes its lock, and is refused while a producer has it.

mod change;
mod check;
pub mod doctor;
mod look;
mod repair;

use std::path::Path;
use std::time::SystemTime;

use bytes::Bytes;
use serde::Serialize;

pub use change::{RequeueOptions, purge, purge_with, requeue, requeue_with};
pub use check::{Concerned, Finding, FindingKind, Report, Severity, check, check_with};
pub use doctor::{doctor, doctor_with};
pub use look::{dead_letters, each_dead_letter, inspect, peek};
pub use repair::{Action, Repair, Step, plan_repair, plan_repair_with, repair, repair_with};

use crate::message::{Header, Message, MessageId, Outgoing, Route};
use crate::outbox::{DirectoryError, OutboxError};

/// What kind of reason kept an outbox from being looked into or changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AdminErrorKind {
    /// There is no outbox there, or none that this release can read.
    NoOutbox,
    /// A producer has it open, so it was not changed.
    Held {
        /// The producer's process id, if it had time to write it down; that of a fork which inherited the lock, where
        /// the process that took it has ended.
        pid: Option<u32>,
    },
    /// The disk refused.
    Storage,
}

/// Why an outbox could not be looked into or changed.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub struct AdminError {
    kind: AdminErrorKind,
    text: String,
}

impl AdminError {
    fn storage(directory: &Path, error: impl std::fmt::Display) -> Self {
        Self { kind: AdminErrorKind::Storage, text: format!("outbox {}: {error}", directory.display()) }
    }

    /// What kind of reason it is.
    pub fn kind(&self) -> AdminErrorKind {
        self.kind
    }
}

impl From<DirectoryError> for AdminError {
    fn from(error: DirectoryError) -> Self {
        let kind = match &error {
            DirectoryError::Held { holder, .. } => AdminErrorKind::Held { pid: holder.pid },
            DirectoryError::Io { .. } => AdminErrorKind::Storage,
            _ => AdminErrorKind::NoOutbox,
        };
        Self { kind, text: error.to_string() }
    }
}

impl From<OutboxError> for AdminError {
    fn from(error: OutboxError) -> Self {
        match error {
            OutboxError::Directory(error) => error.into(),
            OutboxError::Log { .. } | OutboxError::TooSmall { .. } => {
                Self { kind: AdminErrorKind::Storage, text: error.to_string() }
            }
        }
    }
}

/// One route of an [`Inspection`].
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct RouteInspection {
    /// Which.
    pub route: Route,
    /// Stored messages that are neither delivered nor dead.
    pub pending: u64,
    /// Their bytes of key, headers and payload.
    pub pending_bytes: u64,
    /// When the oldest was stored, roughly.
    #[serde(serialize_with = "humantime_serde::option::serialize")]
    pub oldest: Option<SystemTime>,
}

/// What is in an outbox.
#[derive(Clone, Debug, Default, Serialize)]
#[non_exhaustive]
pub struct Inspection {
    /// The process that has it open.
    pub holder: Option<u32>,
    /// Stored messages that are neither delivered nor dead.
    pub pending: u64,
    /// Their bytes of key, headers and payload.
    pub pending_bytes: u64,
    /// When the oldest was stored, roughly.
    #[serde(serialize_with = "humantime_serde::option::serialize")]
    pub oldest: Option<SystemTime>,
    /// By route.
    pub routes: Vec<RouteInspection>,
    /// Dead letters.
    pub dead: u64,
    /// Their bytes.
    pub dead_bytes: u64,
    /// Messages that could not be read and were set aside, as far as the last owner said.
    pub set_aside: u64,
    /// Why something waits or is wrong, one line each; when nobody has the outbox open, as its last owner saw it.
    pub reasons: Vec<String>,
}

/// A stored message that is neither delivered nor dead.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PendingMessage {
    /// Its place in the log.
    pub lsn: u64,
    /// Its identity.
    pub id: MessageId,
    /// Where it goes.
    pub route: Route,
    /// Its key.
    pub key: Option<Bytes>,
    /// Its payload; `None` for a tombstone and for a field map.
    pub payload: Option<Bytes>,
    /// Its headers.
    pub headers: Vec<Header>,
    /// When it was accepted, or what the application set, in milliseconds since 1970.
    pub timestamp: i64,
    /// The message as it was sent.
    pub message: Message,
}

impl PendingMessage {
    fn new(lsn: u64, outgoing: Outgoing) -> Self {
        let Outgoing { id, route, timestamp, message, .. } = outgoing;
        let payload = message.payload_bytes().cloned();
        Self { lsn, id, route, key: message.key.clone(), payload, headers: message.headers.clone(), timestamp, message }
    }
}

/// A message that the broker will never take.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct DeadMessage {
    /// Its number among the dead letters; never used again.
    pub number: u64,
    /// The place it had in the log.
    pub lsn: u64,
    /// Its identity.
    pub id: MessageId,
    /// Where it should have gone.
    pub route: Route,
    /// Its key.
    pub key: Option<Bytes>,
    /// Its payload; `None` for a tombstone and for a field map.
    pub payload: Option<Bytes>,
    /// Its headers.
    pub headers: Vec<Header>,
    /// Why the broker will never take it.
    pub reason: String,
    /// How often it was tried.
    pub attempts: u32,
    /// When it failed first.
    pub first_failure: SystemTime,
    /// When it failed last.
    pub last_failure: SystemTime,
    /// The message as it was sent.
    pub message: Message,
}

/// Which dead letters.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Selection {
    /// All of them.
    All,
    /// Those with these numbers.
    Numbers(Vec<u64>),
    /// Those of a message.
    Id(MessageId),
    /// Those of a route.
    Route(Route),
}

impl Selection {
    /// Whether none that it takes has a higher number.
    fn ends_at(&self, number: u64) -> bool {
        matches!(self, Self::Numbers(numbers) if numbers.iter().all(|wanted| *wanted <= number))
    }

    fn takes(&self, number: u64, outgoing: &Outgoing) -> bool {
        match self {
            Self::All => true,
            Self::Numbers(numbers) => numbers.contains(&number),
            Self::Id(id) => *id == outgoing.id,
            Self::Route(route) => *route == outgoing.route,
        }
    }
}
