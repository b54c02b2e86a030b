//! What the ledger says of itself.

/// What the ledger is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LedgerState {
    /// The database is being opened; rows wait in the queue.
    Opening,
    /// All is well.
    Ok,
    /// Rows of the past are missing until the log has been walked again.
    Rebuilding {
        /// Why they are missing.
        reason: String,
        /// Since when, in milliseconds since 1970.
        since: i64,
    },
    /// There is no ledger until the process is started again.
    Off {
        /// Why.
        reason: String,
        /// Since when, in milliseconds since 1970.
        since: i64,
    },
}

/// The ledger's health.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LedgerHealth {
    /// What it is about.
    pub state: LedgerState,
    /// The number of its directory, `ledger/N`; 0 before one was tried.
    pub directory: u64,
    /// Rows that found no room in the queue, or no database, since the ledger was opened.
    pub dropped: u64,
}

/// The ledger did not answer: it hangs, is off, or was closed. Nothing is known of its rows.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the ledger did not answer: {0}")]
pub struct Unavailable(pub String);
