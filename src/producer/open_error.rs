//! Why a producer could not be opened.

use std::fmt;

use crate::outbox::{DirectoryError, OutboxError};

/// What kind of reason kept a producer from opening.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum OpenErrorKind {
    /// The configuration is wrong. No file was touched.
    Config,
    /// Another process has the outbox open, which was left as it is.
    Held {
        /// Its process id, if it had time to write it down; that of a fork which inherited the lock, where the process
        /// that took it has ended.
        pid: Option<u32>,
    },
    /// The directory is not fit to hold an outbox: a newer format, a foreign owner, a symlink, read-only, a
    /// disk that is too small for one message with these settings.
    Directory,
    /// The log cannot be opened.
    Storage,
    /// A transport or thread cannot start.
    Transport,
}

/// Why a producer could not be opened. Nothing in the outbox was changed.
pub struct OpenError {
    kind: OpenErrorKind,
    text: String,
}

impl OpenError {
    pub(super) fn new(kind: OpenErrorKind, text: impl Into<String>) -> Self {
        Self { kind, text: text.into() }
    }

    /// What kind of reason it is.
    pub fn kind(&self) -> OpenErrorKind {
        self.kind
    }
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// What a `main` that returns it prints.
impl fmt::Debug for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({:?})", self.text, self.kind)
    }
}

impl std::error::Error for OpenError {}

impl From<OutboxError> for OpenError {
    fn from(error: OutboxError) -> Self {
        let kind = match &error {
            OutboxError::Directory(DirectoryError::Held { holder, .. }) => OpenErrorKind::Held { pid: holder.pid },
            OutboxError::Directory(_) | OutboxError::TooSmall { .. } => OpenErrorKind::Directory,
            OutboxError::Log { .. } => OpenErrorKind::Storage,
        };
        Self::new(kind, error.to_string())
    }
}
