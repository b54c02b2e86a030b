//! What changes an outbox: it takes the lock, so no producer is on it.

use std::path::Path;

use super::{AdminError, Selection};
use crate::outbox::{Inspected, Outbox, OutboxOptions};
use crate::wal::Mark;

/// Sends dead letters again: each is appended to the outbox anew, with its message id, behind everything pending, and
/// taken out of the dead letters once the disk has that. The next producer on the outbox delivers them.
///
/// Returns how many. A crash half-way may leave a message in both places: it is delivered twice, under one id.
///
/// # Errors
/// There is no outbox, a producer has it open, or the disk refused: what was requeued until then stays so.
pub fn requeue(directory: impl AsRef<Path>, which: Selection) -> Result<u64, AdminError> {
    change(directory.as_ref(), &which, Mark::Requeued)
}

/// Throws dead letters away, for good. Returns how many.
///
/// # Errors
/// There is no outbox, a producer has it open, or the disk refused.
pub fn purge(directory: impl AsRef<Path>, which: Selection) -> Result<u64, AdminError> {
    change(directory.as_ref(), &which, Mark::Purged)
}

fn change(directory: &Path, which: &Selection, mark: Mark) -> Result<u64, AdminError> {
    // Opening would make an outbox where there is none.
    Inspected::at(directory)?;
    let outbox = Outbox::open(&OutboxOptions::new(directory))?;
    let result = outbox.change_dead(mark, |number, letter| which.takes(number, &letter.outgoing));
    let closed = outbox.close();
    outbox.release();
    let count = result.map_err(|error| AdminError::storage(directory, error))?;
    closed.map_err(|error| AdminError::storage(directory, error))?;
    Ok(count)
}
