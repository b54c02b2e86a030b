//! One sled database, synchronously: the only file that calls sled.
//!
//! Assumes one caller at a time, which can do without it: any call may fail, panic or never return. Refuses to be
//! dropped like other things: sled's `Drop` joins a thread and flushes, which hangs on a database that has failed,
//! so it is forgotten, and only [`close`](Store::close) drops it.
//!
//! What is known of sled 0.34.7 and heeded here: a kill during `open` leaves `snap.*.generating`, which the next open
//! takes for a snapshot and fails on, so it is removed first; the lock on its file may outlive a `drop` for a moment,
//! so it is tried again; its cache takes 1 GiB unless told; `flush_async` deadlocks, so it is not called; values over
//! 7,281 bytes lie outside its log, so there are none.

use std::fs;
use std::io;
use std::mem::ManuallyDrop;
use std::ops::Bound;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use super::keys::{
    EntryRow, FORMAT, LaneKey, LaneRow, META, ParkedKey, ParkedRow, RowError, decode_entry_key, decode_meta, entry_key,
    meta_value,
};

/// How often a locked database is tried again.
const LOCK_POLL: Duration = Duration::from_millis(20);

/// Rows removed by one call.
const FORGET_ROWS: usize = 1024;

/// Why a call failed. The database is then given up: no message depends on it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// It could not be opened; nothing of it runs.
    #[error("cannot open it: {0}")]
    Open(sled::Error),
    /// Its directory cannot be used.
    #[error("cannot use its directory: {0}")]
    Directory(#[from] io::Error),
    /// sled failed. Its write errors stay for ever.
    #[error(transparent)]
    Sled(#[from] sled::Error),
    /// A row that this version did not write.
    #[error("not a row of the ledger: {0}")]
    Row(#[from] RowError),
    /// A database of another format.
    #[error("it has format {0}, this version writes {FORMAT}")]
    Format(u32),
    /// A database of somebody else.
    #[error("it has rows and does not say in which format")]
    NoFormat,
    /// Said by a test.
    #[error("{0}")]
    Planted(String),
}

impl StoreError {
    /// Whether threads of sled may still run on the directory.
    pub fn leaves_sled_running(&self) -> bool {
        match self {
            Self::Open(_) | Self::Directory(_) => false,
            Self::Sled(_) | Self::Row(_) | Self::Format(_) | Self::NoFormat | Self::Planted(_) => true,
        }
    }
}

/// A change to a row.
#[derive(Clone, Debug)]
pub enum Change {
    /// Notes where a run of the log begins.
    Entry(u64, EntryRow),
    /// Notes a message that was passed over.
    Park(ParkedKey, ParkedRow),
    /// It is settled.
    Unpark(ParkedKey),
    /// Notes how a lane fails.
    SetLane(LaneKey, Box<LaneRow>),
    /// It fails no longer.
    RemoveLane(LaneKey),
}

/// Whose parked messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParkedScope {
    /// All of a route.
    Route(u64),
    /// Those of one lane of a route.
    Lane(u64, u128),
}

impl ParkedScope {
    fn ends(self) -> (ParkedKey, ParkedKey) {
        let (route, low, high) = match self {
            Self::Route(route) => (route, 0, u128::MAX),
            Self::Lane(route, lane) => (route, lane, lane),
        };
        (ParkedKey { route, lane: low, lsn: 0 }, ParkedKey { route, lane: high, lsn: u64::MAX })
    }
}

/// An open database.
pub struct Store {
    db: ManuallyDrop<sled::Db>,
    fresh: bool,
}

impl Store {
    /// Opens the database in a directory, or makes one. Waits up to `lock_wait` for a sled that is just being dropped.
    pub fn open(path: &Path, cache_bytes: u64, lock_wait: Duration) -> Result<Self, StoreError> {
        remove_unfinished_snapshots(path)?;
        let config = sled::Config::new().path(path).cache_capacity(cache_bytes);
        let begun = Instant::now();
        let db = loop {
            match config.open() {
                Ok(db) => break ManuallyDrop::new(db),
                Err(error) if is_locked(&error) && begun.elapsed() < lock_wait => thread::sleep(LOCK_POLL),
                Err(error) => return Err(StoreError::Open(error)),
            }
        };
        let fresh = match db.get(META)? {
            Some(value) => match decode_meta(&value)? {
                FORMAT => false,
                other => return Err(StoreError::Format(other)),
            },
            None if db.is_empty() => {
                db.insert(META, &meta_value())?;
                db.flush()?;
                true
            }
            None => return Err(StoreError::NoFormat),
        };
        Ok(Self { db, fresh })
    }

    /// Whether there were no rows of an earlier run.
    pub fn is_fresh(&self) -> bool {
        self.fresh
    }

    /// Applies changes in order, all or (after a kill) none.
    pub fn apply(&self, changes: &[Change]) -> Result<(), StoreError> {
        let mut batch = sled::Batch::default();
        for change in changes {
            match change {
                Change::Entry(first_lsn, row) => batch.insert(&entry_key(*first_lsn)[..], &row.encode()[..]),
                Change::Park(key, row) => batch.insert(&key.encode()[..], &row.encode()[..]),
                Change::Unpark(key) => batch.remove(&key.encode()[..]),
                Change::SetLane(key, row) => batch.insert(&key.encode()[..], row.encode()),
                Change::RemoveLane(key) => batch.remove(&key.encode()[..]),
            }
        }
        Ok(self.db.apply_batch(batch)?)
    }

    /// The newest entry at or before an LSN, of those from `floor` on.
    pub fn seek(&self, lsn: u64, floor: u64) -> Result<Option<(u64, EntryRow)>, StoreError> {
        if floor > lsn {
            return Ok(None);
        }
        let Some(row) = self.db.range(entry_key(floor)..=entry_key(lsn)).next_back() else { return Ok(None) };
        let (key, value) = row?;
        Ok(Some((decode_entry_key(&key)?, EntryRow::decode(&value)?)))
    }

    /// Removes entries of LSNs below; says whether there may be more.
    pub fn forget(&self, below: u64) -> Result<bool, StoreError> {
        let mut batch = sled::Batch::default();
        let mut rows = 0;
        for row in self.db.range(entry_key(0)..entry_key(below)).take(FORGET_ROWS) {
            batch.remove(row?.0);
            rows += 1;
        }
        self.db.apply_batch(batch)?;
        Ok(rows == FORGET_ROWS)
    }

    /// The first parked messages of a scope behind `after`, in order.
    pub fn parked(
        &self,
        scope: ParkedScope,
        after: Option<ParkedKey>,
        limit: usize,
    ) -> Result<Vec<(ParkedKey, ParkedRow)>, StoreError> {
        let (first, last) = scope.ends();
        let from = match after {
            Some(after) if after >= last => return Ok(Vec::new()),
            Some(after) if after >= first => Bound::Excluded(after.encode()),
            _ => Bound::Included(first.encode()),
        };
        let mut rows = Vec::new();
        for row in self.db.range((from, Bound::Included(last.encode()))).take(limit) {
            let (key, value) = row?;
            rows.push((ParkedKey::decode(&key)?, ParkedRow::decode(&value)?));
        }
        Ok(rows)
    }

    /// The first failing lanes, in the order of their keys.
    pub fn lanes(&self, limit: usize) -> Result<Vec<(LaneKey, LaneRow)>, StoreError> {
        let first = LaneKey { route: 0, lane: 0 };
        let last = LaneKey { route: u64::MAX, lane: u128::MAX };
        let mut rows = Vec::new();
        for row in self.db.range(first.encode()..=last.encode()).take(limit) {
            let (key, value) = row?;
            rows.push((LaneKey::decode(&key)?, LaneRow::decode(&value)?));
        }
        Ok(rows)
    }

    /// Writes what is in memory, and lets go of the files.
    pub fn close(self) -> Result<(), StoreError> {
        self.db.flush()?;
        drop(ManuallyDrop::into_inner(self.db));
        Ok(())
    }
}

/// Removes what a kill during an earlier open has left. The caller holds the outbox's lock.
fn remove_unfinished_snapshots(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let name = entry.file_name();
        if name.to_str().is_some_and(|name| name.starts_with("snap.") && name.ends_with(".generating")) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Whether somebody else has the database open, which sled says in words only.
fn is_locked(error: &sled::Error) -> bool {
    matches!(error, sled::Error::Io(error) if error.to_string().contains("could not acquire lock"))
}
