//! A suite that checks any [`Transport`] against the contract: order per lane, one report a message, the prefix
//! rule after a failure, bytes that arrive as they were handed over, a `close` that reports everything.
//!
//! It acts as a producer would: submits under a lock that its recipients take as well, closes a lane at its first
//! failure until everything owned there was reported, and begins again at the oldest message that is not
//! delivered. It believes no report; at the end it reads what the broker has ([`Subject::contents`]) and holds
//! that against each report made. What it cannot see is a rule that the broker happened not to put to the test:
//! name faults that break connections, hang, refuse and lose replies ([`Subject::faults`]).

mod judge;
mod lab;
mod scenarios;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::Transport;
use crate::message::{Header, MessageId};

/// A transport under test, and the way to look into its broker past it.
pub trait Subject {
    /// A new transport, not started.
    fn transport(&self) -> Arc<dyn Transport>;

    /// Makes a topic or stream that was never used, and names it. `purpose` is a short word.
    fn destination(&self, purpose: &str) -> String;

    /// What the broker has there, in the order of appending (within a partition, where there are several).
    ///
    /// # Errors
    /// The broker could not be read; the suite stops with [`Violation::Unreadable`].
    fn contents(&self, destination: &str) -> Result<Vec<Entry>, String>;

    /// Ways to break the broker. Without any, the prefix rule is not put to the test.
    fn faults(&self) -> Vec<Fault> {
        Vec::new()
    }

    /// Whether a header's null value arrives as such; where not, the header is left out.
    fn keeps_null_headers(&self) -> bool {
        true
    }

    /// Whether messages may carry a field map.
    fn takes_fields(&self) -> bool {
        false
    }

    /// How long nothing may happen before a report is called missing. More than the transport's own timeouts.
    fn patience(&self) -> Duration {
        Duration::from_secs(60)
    }
}

/// A fault that the suite brings about in the middle of traffic, and mends again.
pub struct Fault {
    /// For the text of a violation.
    pub name: &'static str,
    /// How long it lasts.
    pub lasts: Duration,
    /// Breaks something.
    pub inflict: Box<dyn Fn()>,
    /// Mends it.
    pub mend: Box<dyn Fn()>,
}

/// One entry of the broker, in the words of [`Message`](crate::Message).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The id it carries.
    pub id: MessageId,
    /// The key; `None` also where the broker's entry had a field map, which does not show it.
    pub key: Option<Bytes>,
    /// The payload; `None` for a tombstone and a field map.
    pub payload: Option<Bytes>,
    /// The fields of a field map, without the id; else empty.
    pub fields: Vec<(Bytes, Bytes)>,
    /// The headers, in order, without the id.
    pub headers: Vec<Header>,
}

/// A breach of the contract.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Violation {
    /// The transport did not start.
    #[error("the transport did not start: {0}")]
    NotStarted(String),
    /// The subject's own probe failed; nothing is said of the transport.
    #[error("the broker's contents could not be read: {0}")]
    Unreadable(String),
    /// A message was owned, and no report came.
    #[error("no report on {id} within {patience:?} of quiet")]
    NoReport {
        /// The message.
        id: MessageId,
        /// How long nothing had happened.
        patience: Duration,
    },
    /// Messages were refused, without anything being broken, until patience ended.
    #[error("{id} was refused to the end, though nothing is broken: {reason}")]
    Refused {
        /// The first message that was left.
        id: MessageId,
        /// The last reason.
        reason: String,
    },
    /// More than one report on one hand-over.
    #[error("{id} was reported on more than once for one hand-over")]
    ReportedTwice {
        /// The message.
        id: MessageId,
    },
    /// A report was made from within `submit`, where the producer holds its locks.
    #[error("{id} was reported on from within submit")]
    ReportedWithinSubmit {
        /// The message.
        id: MessageId,
    },
    /// `submit` blocked.
    #[error("submit of {id} took {took:?}")]
    SubmitBlocked {
        /// The message.
        id: MessageId,
        /// How long.
        took: Duration,
    },
    /// The prefix rule: something behind a failed message was accepted before the failure was told.
    #[error(
        "{id} was delivered, though {failed}, before it on its lane, failed and that was not yet told when it was submitted"
    )]
    Overtaken {
        /// The message that passed.
        id: MessageId,
        /// The one it passed.
        failed: MessageId,
    },
    /// First appends of a lane do not follow the order of hand-over.
    #[error("{later} was appended for the first time before {earlier}, which was handed over before it on its lane")]
    OutOfOrder {
        /// Handed over first.
        earlier: MessageId,
        /// Appended first.
        later: MessageId,
    },
    /// A lane's positions do not rise, or two messages have the same.
    #[error("the positions reported for {earlier} and {later} are not in the order of their lane")]
    Positions {
        /// Handed over first.
        earlier: MessageId,
        /// Handed over later.
        later: MessageId,
    },
    /// Reported as delivered, and not there.
    #[error("{id} was reported as delivered, and the broker does not have it")]
    Missing {
        /// The message.
        id: MessageId,
    },
    /// More copies than reports can account for.
    #[error("the broker has {copies} of {id}; the reports account for {accounted}")]
    Duplicate {
        /// The message.
        id: MessageId,
        /// How many there are.
        copies: usize,
        /// One for each report of delivery or possible delivery.
        accounted: usize,
    },
    /// The broker has an entry that nobody sent.
    #[error("the broker has {id}, which was not sent there")]
    Invented {
        /// The id it carries.
        id: MessageId,
    },
    /// Something did not arrive as it was handed over.
    #[error("{id} arrived changed: {what}")]
    Altered {
        /// The message.
        id: MessageId,
        /// What differs.
        what: String,
    },
    /// `close` returned with messages unreported, or did not return in time.
    #[error("close({grace:?}) took {took:?} and left {unreported} messages without a report")]
    Close {
        /// What it was given.
        grace: Duration,
        /// What it took.
        took: Duration,
        /// How many lacked a report when it returned.
        unreported: usize,
    },
    /// A violation that came about under a fault.
    #[error("under the fault {fault:?}: {violation}")]
    Under {
        /// The fault's name.
        fault: &'static str,
        /// What was violated.
        violation: Box<Violation>,
    },
}

impl Violation {
    /// The violation itself, whatever fault it came about under.
    pub fn cause(&self) -> &Violation {
        match self {
            Self::Under { violation, .. } => violation.cause(),
            other => other,
        }
    }
}

/// Runs the whole suite. `seed` decides on the order of things; it is printed, so that a failure can be replayed.
///
/// # Errors
/// The first violation found.
pub fn run(subject: &dyn Subject, seed: u64) -> Result<(), Violation> {
    println!("conformance seed {seed}");
    scenarios::bytes_arrive_as_they_were_handed_over(subject, seed)?;
    scenarios::each_lane_keeps_its_order(subject, seed)?;
    scenarios::closing_reports_everything(subject, seed)?;
    for fault in subject.faults() {
        scenarios::the_prefix_rule_holds(subject, seed, &fault)
            .map_err(|violation| Violation::Under { fault: fault.name, violation: Box::new(violation) })?;
    }
    Ok(())
}
