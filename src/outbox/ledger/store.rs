//! One sled database, synchronously: the only file that calls sled.
//!
//! Assumes one caller at a time, which can do without it: any call may fail, panic or never return. Refuses to be
//! dropped like other things: sled's `Drop` joins a thread and flushes, which hangs on a database that has failed,
//! so it is forgotten, and only [`close`](Store::close) drops it.
//!
//! What is known of sled 0.34.7 and heeded here: a kill during `open` leaves `snap.*.generating`, which the next open
//! takes for a snapshot and fails on, so it is removed first; the lock on its file may outlive a `drop` for a moment,
//! so it is tried again; its cache takes 1 GiB unless told; `flush_async` deadlocks, so it is not called; values over
//! 7,281 bytes lie outside its log, so there are none; one flipped bit makes it come back shorter without a word, so
//! each batch is counted in a row of its own, and a database that was closed leaves the count in a file beside it.
//! (One that was killed does not: its last rows may be missing in any case.)

use std::cell::Cell;
use std::fs;
use std::io;
use std::mem::ManuallyDrop;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use super::keys::{
    EntryRow, FORMAT, LaneKey, LaneRow, META, Meta, ParkedKey, ParkedRow, RowError, decode_entry_key, decode_meta,
    entry_key, meta_value,
};
use crate::outbox::files::{self, Durability};

/// How often a locked database is tried again.
const LOCK_POLL: Duration = Duration::from_millis(20);

/// The file beside sled's that a close leaves: the batches applied, `u64`, and the CRC-32 of that, `u32`, both
/// little-endian. It is there only while the database is closed.
const CLOSED: &str = "outlast-closed";

/// Reads after each batch, which are made to free memory: crossbeam-epoch, to which sled leaves its old pages, collects
/// at most some 500 of them each 128th time that sled enters it, and a batch enters it once. Without these a process
/// that wrote a million rows had 166 MB resident, with them 70 MB, in less time (a cache of 3 MiB, one run each).
const COLLECT_READS: usize = 128;

/// Entries written by one process and not removed, at most: what 64 GiB of log have. Beyond that a seek reads more.
const MAX_ENTRIES: u64 = 1 << 20;

/// Rows removed by one call: few, for the same reason as the batches.
const FORGET_ROWS: usize = 64;

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
    /// Rows that were there when it was closed are not.
    #[error("it was closed with {closed} batches and came back with {found}")]
    Shorter {
        /// Batches when it was closed; 0 if even that cannot be read.
        closed: u64,
        /// Batches now.
        found: u64,
    },
    /// Said by a test.
    #[error("{0}")]
    Planted(String),
}

impl StoreError {
    /// Whether threads of sled may still run on the directory.
    pub fn leaves_sled_running(&self) -> bool {
        match self {
            Self::Open(_) | Self::Directory(_) => false,
            Self::Sled(_)
            | Self::Row(_)
            | Self::Format(_)
            | Self::NoFormat
            | Self::Shorter { .. }
            | Self::Planted(_) => true,
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
    batches: Cell<u64>,
    /// Entries written and not removed.
    entries: Cell<u64>,
    path: PathBuf,
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
        let found = match db.get(META)? {
            Some(value) => match decode_meta(&value)? {
                Meta::Ours { batches } => Some(batches),
                Meta::Other { format } => return Err(StoreError::Format(format)),
            },
            None if db.is_empty() => None,
            None => return Err(StoreError::NoFormat),
        };
        let (fresh, batches) = (found.is_none(), Cell::new(found.unwrap_or(0)));
        let store = Self { db, fresh, batches, entries: Cell::new(0), path: path.into() };
        store.check_closed()?;
        if store.fresh {
            store.write(sled::Batch::default())?;
            store.db.flush()?;
        }
        Ok(store)
    }

    /// Compares with what the last close has left, and takes that away.
    fn check_closed(&self) -> Result<(), StoreError> {
        let path = self.path.join(CLOSED);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let (closed, found) = (decode_closed(&bytes), self.batches.get());
        if closed != Some(found) {
            return Err(StoreError::Shorter { closed: closed.unwrap_or(0), found });
        }
        Ok(fs::remove_file(&path)?)
    }

    fn write(&self, mut batch: sled::Batch) -> Result<(), StoreError> {
        let batches = self.batches.get() + 1;
        batch.insert(&META[..], &meta_value(batches)[..]);
        self.db.apply_batch(batch)?;
        self.batches.set(batches);
        for _ in 0..COLLECT_READS {
            self.db.get(META)?;
        }
        Ok(())
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
                Change::Entry(first_lsn, row) => {
                    let key = entry_key(*first_lsn);
                    if self.has_room_for_entry(&key)? {
                        batch.insert(&key[..], &row.encode()[..]);
                    }
                }
                Change::Park(key, row) => batch.insert(&key.encode()[..], &row.encode()[..]),
                Change::Unpark(key) => batch.remove(&key.encode()[..]),
                Change::SetLane(key, row) => batch.insert(&key.encode()[..], row.encode()),
                Change::RemoveLane(key) => batch.remove(&key.encode()[..]),
            }
        }
        self.write(batch)
    }

    /// Counts an entry, if there may be one more.
    fn has_room_for_entry(&self, key: &[u8]) -> Result<bool, StoreError> {
        let entries = self.entries.get();
        let replaces = self.db.contains_key(key)?;
        if !replaces && entries < MAX_ENTRIES {
            self.entries.set(entries + 1);
        }
        Ok(replaces || entries < MAX_ENTRIES)
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

    /// Removes entries of LSNs from one on to below another; says whether there may be more.
    pub fn forget(&self, from: u64, below: u64) -> Result<bool, StoreError> {
        if from >= below {
            return Ok(false);
        }
        let mut batch = sled::Batch::default();
        let mut rows = 0;
        for row in self.db.range(entry_key(from)..entry_key(below)).take(FORGET_ROWS) {
            batch.remove(row?.0);
            rows += 1;
        }
        self.write(batch)?;
        self.entries.set(self.entries.get().saturating_sub(rows as u64));
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
        let closed = encode_closed(self.batches.get());
        drop(ManuallyDrop::into_inner(self.db));
        let path = self.path.join(CLOSED);
        files::replace(&path, &closed, Durability::Cached)
            .map_err(|error| StoreError::Directory(io::Error::other(error)))
    }
}

fn encode_closed(batches: u64) -> Vec<u8> {
    let batches = batches.to_le_bytes();
    [&batches[..], &crc32fast::hash(&batches).to_le_bytes()].concat()
}

fn decode_closed(bytes: &[u8]) -> Option<u64> {
    let batches = bytes.first_chunk()?;
    let batches = u64::from_le_bytes(*batches);
    (encode_closed(batches) == bytes).then_some(batches)
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
