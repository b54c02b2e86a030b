//! ledger
mod health;
pub use health::{LedgerHealth, LedgerState, Unavailable};
