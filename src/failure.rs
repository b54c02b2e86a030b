//! What is known of a failure: its class, what it concerns, and a line for people.
//!
//! A transport says it; the schedule makes an action of it.

use std::fmt;

/// Why messages fail: what is known, for whoever decides what happens next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What kind of failure it is.
    pub class: Class,
    /// What it concerns.
    pub scope: Scope,
    /// One line for people: what happened, and where it helps, what to do. Never a secret.
    pub reason: String,
}

impl Failure {
    /// A failure.
    pub fn new(class: Class, scope: Scope, reason: impl Into<String>) -> Self {
        Self { class, scope, reason: reason.into() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

/// The class of a failure (DESIGN.md 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Class {
    /// Passes by itself: tried again with backoff, for ever.
    Transient,
    /// Somebody has to mend something: tried again at the longest interval, with an alert.
    Hold,
    /// The broker will never take this message: judged once more alone, then a dead letter.
    Permanent,
    /// The transport's instance is beyond repair and is rebuilt, or the message was handed back behind one that
    /// failed: no verdict on this message, which is tried again as soon as the transport takes it.
    Fatal,
}

/// What a failure concerns, and so what waits: that, and nothing wider.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Scope {
    /// Every message of the transport.
    Transport,
    /// The messages of the failed one's topic or stream.
    Route,
    /// The messages of this partition of its topic.
    Partition(i32),
    /// The messages of its lane.
    Lane,
}

impl Class {
    /// Its name in DESIGN.md, the status file and the log.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Transient => "transient",
            Self::Hold => "hold",
            Self::Permanent => "permanent",
            Self::Fatal => "fatal",
        }
    }
}
