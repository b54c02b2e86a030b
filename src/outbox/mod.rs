//! The outbox: the log, which holds the bytes and every change of state, and the ledger over it.
//!
//! The log is the truth. Whatever the ledger forgets costs time or duplicates, never a message: everything it
//! says can be read from the log again. This folder alone names sled.
//!
//! An [`Outbox`] gives each message an LSN, says when the disk has it, knows what is still pending, and takes
//! settlements. It decides nothing about delivery, and knows no broker.

mod damaged;
#[cfg(test)]
mod damaged_tests;
mod dead;
mod directory;
mod files;
mod guard;
mod holder;
mod identity;
pub mod ledger;
mod lock;
mod mend;
mod open;
#[cfg(feature = "testing")]
pub mod probe;
mod requeue;
mod scan;
mod settling;
mod sizes;
mod space;
mod status;
#[cfg(test)]
mod tests;
mod totals;

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

pub use damaged::count as set_aside_in;
pub use dead::DeadError;
pub use directory::{Directory, DirectoryError, DirectoryOptions, Fitness, Inspected, OWN_NAMES, Paths};
pub use files::{Owner, check_file};
pub use holder::Holder;
pub use identity::{Identity, OutboxId, hex};
pub use ledger::{LedgerHealth, LedgerState};
pub use lock::holder;
pub use mend::{MISPLACED, Mender};
pub use open::{OutboxError, OutboxOptions};
pub use scan::{Scan, ScanError, Scanned};
pub use sizes::Room;
pub use space::{NoRoom, Reservation, Share};
pub use status::{Blocked, LedgerStatus, Lifecycle, RouteStatus, Status, StatusFile, Tally, TransportStatus};

use ledger::Ledger;
use settling::Settling;
use space::Space;
use totals::Totals;

use crate::clock;
use crate::message::{MessageId, Outgoing, Route};
use crate::wal::{Damage, EntryRef, Lsn, Mark, Pending, Place, RangeSet, Settled, Storage, Wal, WalError};

thread_local! {
    /// Whether this thread is inside [`Outbox::append`].
    static APPENDING: Cell<bool> = const { Cell::new(false) };
}

/// What became of an append.
pub type AppendResult = Result<Lsn, Arc<WalError>>;

/// What was found at opening.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// Pending messages by route.
    pub pending: Vec<(Route, Pending)>,
    /// The last LSN of an earlier incarnation.
    pub last_lsn: Lsn,
    /// Damage that recovery came across.
    pub damage: Vec<Damage>,
}

/// Counts and reasons, for stats and `status`.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Pending messages by route.
    pub pending: Vec<(Route, Pending)>,
    /// Dead letters, and their bytes.
    pub dead: (u64, u64),
    /// LSNs that could not be read and were set aside.
    pub set_aside: u64,
    /// Why the log does not take messages, if it does not.
    pub storage: Option<String>,
    /// The ledger's health.
    pub ledger: LedgerHealth,
}

/// Messages that are not lost.
pub struct Outbox {
    directory: Arc<Directory>,
    storage: Arc<dyn Storage>,
    incarnation: u64,
    numbers: AtomicU64,
    wal: Wal,
    dead: Wal,
    dead_settled: RangeSet,
    ledger: Ledger,
    /// Of the log's holes those the ledger was told of.
    forgotten: Mutex<Vec<(Lsn, Lsn)>>,
    space: Space,
    settling: Mutex<Settling>,
    totals: Mutex<Totals>,
    set_aside: AtomicU64,
    found: Found,
    changed: Arc<OnceLock<Box<dyn Fn() + Send + Sync>>>,
    max_ranges: usize,
    record_bytes: u64,
    dead_record_bytes: u64,
}

impl Outbox {
    /// Calls `changed` whenever more is durable, more space is usable, or the disk failed or was mended: on the log's
    /// threads, so it must be cheap. Once.
    pub fn on_change(&self, changed: impl Fn() + Send + Sync + 'static) {
        let _ = self.changed.set(Box::new(changed));
    }

    /// What was found at opening.
    pub fn found(&self) -> &Found {
        &self.found
    }

    /// The outbox's id, for its whole life.
    pub fn id(&self) -> [u8; 16] {
        *self.directory.id()
    }

    /// Drawn at this open.
    pub fn incarnation(&self) -> u64 {
        self.incarnation
    }

    /// The directory.
    pub fn directory(&self) -> &Directory {
        &self.directory
    }

    /// The ledger.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// An id no message has had.
    pub fn next_id(&self) -> MessageId {
        MessageId::new(self.incarnation, self.numbers.fetch_add(1, Ordering::Relaxed))
    }

    /// Asks for what first attempts may take to be made ready. True: it is not yet, and nothing stands in its way.
    pub fn prepare(&self) -> bool {
        self.space.prepare(&self.wal)
    }

    /// Reserves the space that storing the message would take, at worst.
    pub fn reserve(&self, message: &Outgoing, share: Share) -> Result<Reservation, NoRoom> {
        let reserved = self.space.reserve(&self.wal, Wal::footprint(EntryRef::Message(message)), share);
        if matches!(reserved, Err(NoRoom::Full))
            && let Err(error) = self.directory.guard().check()
        {
            // A full outbox is waited for; one that is not ours any more will never have room.
            return Err(NoRoom::Broken(error.to_string()));
        }
        reserved
    }

    /// Stores a message: its place in the order is fixed when this returns; `done` is called on the log's thread once
    /// the disk has it, or never will.
    pub fn append(&self, message: &Outgoing, done: impl FnOnce(AppendResult) + Send + 'static) -> Lsn {
        APPENDING.set(true);
        let lsn = self.wal.append(EntryRef::Message(message), move |result: AppendResult| {
            if APPENDING.get() {
                // The log is closed and answers within the call; `done` may need a lock that the caller holds.
                std::thread::spawn(move || done(result));
            } else {
                done(result);
            }
        });
        APPENDING.set(false);
        self.lock_totals().stored(&message.route, lsn, message.message.size() as u64, clock::unix_millis());
        lsn
    }

    /// A stored message failed to reach the disk: it is not pending, nor is anything else under its LSN.
    pub fn forget(&self, lsn: Lsn, message: &Outgoing) {
        self.lock_totals().settled(&message.route, lsn, message.message.size() as u64);
        self.lock_settling().burn(lsn);
    }

    /// Bytes taken by `append` and not yet written.
    pub fn queued_bytes(&self) -> usize {
        self.wal.queued_bytes()
    }

    /// A durable message is delivered or dead. Settling it again changes nothing.
    pub fn settle(&self, mark: Mark, lsn: Lsn, message: &Outgoing) {
        let bytes = message.message.size() as u64;
        if self.lock_settling().settle(mark, lsn, &message.route, bytes) {
            self.lock_totals().settled(&message.route, lsn, bytes);
        }
    }

    /// Whether a message is settled.
    pub fn is_settled(&self, lsn: Lsn) -> bool {
        self.lock_settling().set().contains(lsn)
    }

    /// The first LSN that is not settled.
    pub fn first_pending(&self) -> Lsn {
        self.lock_settling().set().prefix() + 1
    }

    /// Settlements that the log has not written yet: a kill would undo them.
    pub fn unrecorded(&self) -> usize {
        self.lock_settling().untold() + self.wal.unlogged_settlements()
    }

    /// Whether some of those wait for nothing but the log's next write; the others wait for what lies between to be
    /// settled.
    pub fn is_recording(&self) -> bool {
        self.lock_settling().untold() > 0 || self.wal.has_settlements_to_write()
    }

    /// Whether the log's memory of what is settled is about as scattered as it may get: what a window full of messages
    /// in flight can still scatter has room beyond.
    pub fn too_scattered(&self) -> bool {
        self.lock_settling().set().len() >= self.max_ranges / 8 * 7
    }

    /// Whether settling this message now would scatter it further than it may get.
    pub fn would_scatter(&self, lsn: Lsn) -> bool {
        let settling = self.lock_settling();
        settling.set().len() >= self.max_ranges / 8 * 7 && settling.set().would_grow(lsn, lsn)
    }

    /// The first LSNs that are not settled, `limit` at most, from `from` on.
    pub fn gaps(&self, from: Lsn, limit: usize) -> Vec<Lsn> {
        let settling = self.lock_settling();
        let next = |lsn: &Lsn| Some(settling.set().next_gap(lsn + 1));
        std::iter::successors(Some(settling.set().next_gap(from)), next).take(limit).collect()
    }

    /// Whether a message would fit into a segment, with all that goes with it; among the dead letters, too.
    pub fn fits(&self, message: &Outgoing) -> bool {
        let dead = || Wal::dead_footprint(message, dead::MAX_REASON);
        Wal::footprint(EntryRef::Message(message)) <= self.record_bytes && dead() <= self.dead_record_bytes
    }

    /// What the ledger knows of the place of an LSN.
    pub fn hint(&self, lsn: Lsn) -> Option<Place> {
        let (_, row) = self.ledger.seek(lsn)?;
        Some(Place { segment: row.segment, offset: row.offset, index: 0 })
    }

    /// Forgets where runs of the log began whose segments are settled and may be gone. Now and then.
    pub fn forget_settled_entries(&self) {
        self.ledger.forget_entries(self.first_pending());
        // One message that is held up must not keep the rows of all that came after it.
        let holes = self.wal.holes();
        let mut told = self.forgotten.lock().unwrap_or_else(PoisonError::into_inner);
        self.ledger.forget_holes(holes.iter().filter(|hole| !told.contains(hole)).copied());
        *told = holes;
    }

    /// Tells the log what was settled since the last time.
    pub fn flush_settlements(&self) {
        // Told under the lock, so that the log hears of a settlement once and in order.
        let mut settling = self.lock_settling();
        for settled in settling.take() {
            self.wal.settle(settled);
        }
    }

    /// Reads pending messages in order, from the first one at or behind `lsn`.
    pub fn scan(&self, lsn: Lsn) -> Scan {
        Scan::new(self.wal.reader(), lsn)
    }

    /// Reads one message back; `None` if it was settled meanwhile and its segment is gone.
    ///
    /// # Errors
    /// The log cannot be read there, or the message is damaged.
    pub fn read(&self, lsn: Lsn, place: Option<Place>) -> Result<Option<Outgoing>, ScanError> {
        scan::read_one(&self.wal.reader(), lsn, place.or_else(|| self.hint(lsn)))
    }

    /// Sets aside LSNs that cannot be read: their bytes, as far as there are any, go to `damaged/`; they are settled,
    /// counted and reported, and everything else goes on. Says whether they are settled now.
    pub fn set_aside(&self, damage: &Damage) -> bool {
        tracing::error!(
            first_lsn = damage.first_lsn, last_lsn = damage.last_lsn, segment = damage.segment, offset = damage.offset,
            reason = %damage.reason, "damage in the outbox: these LSNs are set aside"
        );
        let lost = {
            let settling = self.lock_settling();
            let open = settling.set().gaps_within(damage.first_lsn, damage.last_lsn);
            open.map(|(first, last)| last - first + 1).sum()
        };
        if let Err(error) = damaged::keep(&*self.storage, self.directory.paths(), damaged::From::Wal, damage, lost) {
            // Not settled, so its segment stays as it is, and the next start comes across it again.
            tracing::error!(%error, "what was damaged could not be copied to damaged/; it stays where it is");
            return false;
        }
        // By the names, as a start counts: what was kept before a kill, and is met again, counts once.
        if let Ok(count) = damaged::count(&*self.storage, self.directory.paths()) {
            self.set_aside.store(count, Ordering::Relaxed);
        }
        let mut settling = self.lock_settling();
        if let Some(settled) = settling.give_up(damage.first_lsn, damage.last_lsn) {
            self.wal.settle(settled);
        }
        true
    }

    /// Has the log move on to a new segment, whose checkpoint says all that is known, so that nothing depends on a
    /// damaged one any more.
    pub fn move_on(&self) {
        self.wal.settle(Settled { mark: Mark::Damaged, ranges: Vec::new(), totals: Vec::new() });
    }

    /// Counts and reasons.
    pub fn snapshot(&self) -> Snapshot {
        let mut totals = self.lock_totals();
        // What the log has in hand is neither durable nor queued: it was stored, and is not settled.
        if self.first_pending() > self.wal.durable().max(totals.last()) && self.wal.queued_bytes() == 0 {
            totals.clear();
        }
        let dead = self.dead.state().routes;
        Snapshot {
            pending: totals.snapshot(),
            dead: dead.iter().fold((0, 0), |sum, (_, dead)| (sum.0 + dead.count, sum.1 + dead.bytes)),
            set_aside: self.set_aside.load(Ordering::Relaxed),
            storage: self.broken(),
            ledger: self.ledger.health(),
        }
    }

    /// Whether the outbox is still this process's, looked up now.
    ///
    /// # Errors
    /// Its `LOCK` was removed or replaced, so another process may own it: nothing in it may be changed.
    pub fn check_owner(&self) -> Result<(), DirectoryError> {
        let root = self.directory.paths().root();
        self.directory.guard().check().map_err(|error| DirectoryError::io(root, "write", error))
    }

    /// Why the disk takes nothing, if it does not.
    pub fn broken(&self) -> Option<String> {
        if let Err(error) = self.directory.guard().check() {
            return Some(error.to_string());
        }
        let space = || self.wal.space().last_error;
        let dead = || self.dead.health().or_else(|| self.dead.space().last_error);
        self.wal.health().or_else(space).or_else(dead).map(|fault| fault.reason)
    }

    /// Brings everything to the disk, seals the logs and ends their threads.
    ///
    /// # Errors
    /// What was not synced may be delivered twice after a restart; nothing that was acknowledged is lost.
    pub fn close(&self) -> Result<(), Arc<WalError>> {
        // What was delivered while the log still wrote it is settled by the log's own thread once that is done, and a dead
        // letter likewise: all of them first, then what they settled. A sync that fails, `close` reports.
        let dead = self.dead.close();
        let _ = self.wal.sync();
        self.flush_settlements();
        let wal = self.wal.close();
        self.ledger.close(Duration::from_secs(2));
        wal.and(dead)
    }

    /// Lets the next process in, after [`close`](Self::close).
    pub fn release(&self) {
        self.directory.release();
    }

    fn lock_settling(&self) -> MutexGuard<'_, Settling> {
        self.settling.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_totals(&self) -> MutexGuard<'_, Totals> {
        self.totals.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
