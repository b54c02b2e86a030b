//! What changes an outbox: it takes the lock, so no producer is on it.

use std::path::Path;
use std::time::Duration;

use super::{AdminError, Selection};
use crate::file_size;
use crate::outbox::{DeadError, Inspected, Outbox, OutboxOptions};
use crate::wal::{DeadLetter, Mark};

/// How [`requeue_with`] goes about it. The default waits for no producer and changes no time.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct RequeueOptions {
    /// How long to wait for a producer that has the outbox open to close it. Default: not at all.
    pub lock_wait: Duration,
    /// For messages whose times the broker refused: a time that the application gave
    /// ([`Message::timestamp`](crate::Message::timestamp)) counts as the library's own from now on. Where the topic's
    /// settings are against it, the record is sent with the time of delivery, and the application's time is in its header
    /// [`ACCEPTED_HEADER`](crate::ACCEPTED_HEADER); elsewhere it is sent with the application's time. Messages without such
    /// a time are requeued as they are. Default: `false`.
    pub restamp: bool,
}

impl RequeueOptions {
    /// Waits up to `wait` for a producer that has the outbox open.
    pub fn lock_wait(mut self, wait: Duration) -> Self {
        self.lock_wait = wait;
        self
    }

    /// Says whether an application's times may give way.
    pub fn restamp(mut self, restamp: bool) -> Self {
        self.restamp = restamp;
        self
    }
}

/// Sends dead letters again: each is appended to the outbox anew, with its message id, behind everything pending, and
/// taken out of the dead letters once the disk has that. They are appended in the order in which they were stored once,
/// whatever the selection names first. The next producer on the outbox delivers them.
///
/// Returns how many. A crash half-way may leave a message in both places: it is delivered twice, under one id.
///
/// # Errors
/// There is no outbox, a producer has it open, or the disk refused: what was requeued until then stays so.
pub fn requeue(directory: impl AsRef<Path>, which: Selection) -> Result<u64, AdminError> {
    requeue_with(directory, which, RequeueOptions::default())
}

/// As [`requeue`], with options.
///
/// # Errors
/// As `requeue`; a producer has the outbox open for longer than is waited for.
pub fn requeue_with(directory: impl AsRef<Path>, which: Selection, options: RequeueOptions) -> Result<u64, AdminError> {
    let takes = |number, letter: &DeadLetter| which.takes(number, &letter.outgoing);
    change(directory.as_ref(), options.lock_wait, |outbox| outbox.requeue_dead(options.restamp, takes))
}

/// Throws dead letters away, for good. Returns how many.
///
/// # Errors
/// There is no outbox, a producer has it open, or the disk refused.
pub fn purge(directory: impl AsRef<Path>, which: Selection) -> Result<u64, AdminError> {
    purge_with(directory, which, Duration::ZERO)
}

/// As [`purge`], and waits up to `lock_wait` for a producer that has the outbox open to close it.
///
/// # Errors
/// As `purge`; a producer has it open for longer than that.
pub fn purge_with(directory: impl AsRef<Path>, which: Selection, lock_wait: Duration) -> Result<u64, AdminError> {
    let takes = |number, letter: &DeadLetter| which.takes(number, &letter.outgoing);
    change(directory.as_ref(), lock_wait, |outbox| outbox.change_dead(Mark::Purged, takes))
}

fn change(
    directory: &Path,
    lock_wait: Duration,
    work: impl FnOnce(&Outbox) -> Result<u64, DeadError> + Send,
) -> Result<u64, AdminError> {
    file_size::shielded(|| change_here(directory, lock_wait, work))
}

fn change_here(
    directory: &Path,
    lock_wait: Duration,
    work: impl FnOnce(&Outbox) -> Result<u64, DeadError>,
) -> Result<u64, AdminError> {
    // Opening would make an outbox where there is none.
    Inspected::at(directory)?;
    let outbox = Outbox::open(&OutboxOptions { as_found: true, lock_wait, ..OutboxOptions::new(directory) })?;
    let result = work(&outbox);
    let closed = outbox.close();
    outbox.release();
    let count = result.map_err(|error| AdminError::storage(directory, error))?;
    closed.map_err(|error| AdminError::storage(directory, error))?;
    Ok(count)
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, mpsc};

    use super::*;
    use crate::message::{Message, MessageId, Outgoing, Route};

    /// Tools opened the outbox with the default limits: a dead letter larger than those allow was refused as too large by
    /// the log that it had come from.
    #[test]
    fn a_dead_letter_beyond_the_default_limits_is_requeued() {
        let place = tempfile::tempdir().expect("a directory");
        let directory = place.path().join("outbox");
        let base = OutboxOptions::new(&directory);
        let options = OutboxOptions { segment_bytes: 16 << 20, max_message_bytes: 3 << 20, ..base };
        let outbox = Arc::new(Outbox::open(&options).expect("opens"));
        let route = Route { transport: "kafka".into(), destination: "orders".into() };
        let message = Message::to("orders").payload(vec![7; 3 << 20]);
        let outgoing = Outgoing { id: MessageId::new(1, 1), route, lane: None, timestamp: 1, message };
        assert!(outbox.fits(&outgoing));
        let (tell, told) = mpsc::channel();
        let tell_stored = tell.clone();
        let lsn = outbox.append(&outgoing, move |result| tell_stored.send(result.is_ok()).expect("awaited"));
        assert_eq!(told.recv(), Ok(true));
        let reason = "no".to_owned();
        let letter = DeadLetter { lsn, outgoing, reason, attempts: 1, first_failure: 1, last_failure: 2 };
        outbox.bury(letter, move |result| tell.send(result.is_ok()).expect("awaited"));
        assert_eq!(told.recv(), Ok(true));
        outbox.close().expect("closes");
        outbox.release();
        drop(outbox);
        assert_eq!(requeue(&directory, Selection::All).expect("it is requeued"), 1);
        let inspection = super::super::inspect(&directory).expect("readable");
        assert_eq!((inspection.pending, inspection.dead), (1, 0));
    }
}
