//! outbox
mod directory;
mod files;
mod identity;
mod ledger;
mod lock;
mod status;

pub use directory::{Directory, DirectoryError, DirectoryOptions, Inspected, Paths};
pub use identity::{FORMAT_VERSION, OutboxId};
pub use ledger::{
    EntryRow, Hook, LaneKey, LaneRow, Ledger, LedgerHealth, LedgerOptions, LedgerState, ParkedKey, ParkedRow,
    ParkedScope, Unavailable,
};
pub use lock::Holder;
pub use status::{
    Blocked, LedgerStatus, Lifecycle, RouteStatus, Status, StatusError, StatusFile, Tally, TransportStatus,
};
