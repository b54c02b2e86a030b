//! The ledger: what lies where in the log, what is parked, which lanes fail. A sled database, written behind.
//!
//! It keeps memory bounded and spares reading the log again; it decides nothing. Rows are written in batches by a
//! thread of its own and nobody waits for them; questions go the same way, so they see every row that was recorded
//! before, and wait for no longer than the watchdog. If the database fails, panics, hangs or will not open, it is
//! given up and a new one begun beside it; after three the process goes on without.
//!
//! Assumes that the outbox's lock is held, so that nobody else has the directory. Refuses to be trusted:
//!
//! - A row may be missing: the process was killed before it was written, the power failed, sled lost it and did not
//!   notice. After a start the caller walks the log from its first pending message in any case.
//! - A row may be stale, for the same reasons: what the log says of an LSN counts.
//! - In a running process rows go missing only with a rise of [`Ledger::generation`], or with a `false` where one was
//!   to be recorded: then the caller walks the log from the first message it passed over.
//!
//! No message is lost through it. The price of a lost ledger is time, forgotten attempt counts, and duplicates within
//! the contract's bound.

mod engine;
mod health;
#[cfg(not(feature = "testing"))]
mod keys;
#[cfg(feature = "testing")]
pub mod keys;
mod numbers;
mod store;
#[cfg(test)]
mod tests;

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use engine::{Engine, Query};
pub use health::{LedgerHealth, LedgerState, Unavailable};
pub use keys::{EntryRow, LaneKey, LaneRow, ParkedKey, ParkedRow};
use store::Change;
pub use store::ParkedScope;

use crate::forked::Maker;

/// Called on the ledger's thread before each call of sled, with the call's name. A test makes it wait, panic or fail.
pub type Hook = Arc<dyn Fn(&'static str) -> Result<(), String> + Send + Sync>;

/// How the ledger is run.
#[derive(Clone)]
pub struct LedgerOptions {
    /// sled's page cache, in bytes. Default 4 MiB, because what is resident grows by several times as much: a process
    /// that wrote and removed a million rows ended at 90 MB with 3 MiB and at 145 MB with 8 MiB (one run each). Its own
    /// default is 1 GiB.
    pub cache_bytes: u64,
    /// How long one call of sled may take, and how long a question waits. Default 10 s: longer than any flush of a
    /// busy disk, shorter than an operator's patience.
    pub watchdog: Duration,
    /// Rows that may wait to be written; further ones are dropped. Default 65,536: at most 10 MiB.
    pub queue_rows: usize,
    /// How long to wait after the first database was given up before the next is begun, four times that after the
    /// second. Default 1 s: a disk that is full for a moment should not cost all three.
    pub pause: Duration,
    /// For tests. Default none.
    pub hook: Option<Hook>,
}

impl Default for LedgerOptions {
    fn default() -> Self {
        Self {
            cache_bytes: 4 << 20,
            watchdog: Duration::from_secs(10),
            queue_rows: 65_536,
            pause: Duration::from_secs(1),
            hook: None,
        }
    }
}

impl fmt::Debug for LedgerOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LedgerOptions")
            .field("cache_bytes", &self.cache_bytes)
            .field("watchdog", &self.watchdog)
            .field("queue_rows", &self.queue_rows)
            .field("pause", &self.pause)
            .finish_non_exhaustive()
    }
}

/// The ledger. Clones are one ledger; when the last is dropped it closes in the background. Who gives the outbox's
/// lock away, or opens it again in the same process, calls [`close`](Self::close) first.
#[derive(Clone)]
pub struct Ledger {
    handle: Arc<Handle>,
}

struct Handle {
    engine: Arc<Engine>,
    watchdog: Duration,
    maker: Maker,
}

impl Drop for Handle {
    fn drop(&mut self) {
        if self.maker.is_other() {
            return;
        }
        self.engine.begin_close();
    }
}

impl Ledger {
    /// Opens the ledger in a directory (the outbox's `ledger`) on a thread of its own: returns at once, and cannot
    /// fail. [`health`](Self::health) tells how it went.
    pub fn open(dir: &Path, options: LedgerOptions) -> Self {
        let watchdog = options.watchdog;
        Self {
            handle: Arc::new(Handle {
                engine: Engine::start(dir.to_path_buf(), options),
                watchdog,
                maker: Maker::this(),
            }),
        }
    }

    /// No ledger at all, and no thread: as after the last of them was given up.
    #[cfg(any(test, feature = "testing"))]
    pub fn none() -> Self {
        let options = LedgerOptions::default();
        Self {
            handle: Arc::new(Handle { watchdog: options.watchdog, engine: Engine::off(options), maker: Maker::this() }),
        }
    }

    /// Notes where a run of the log begins; `false` if that was dropped, which makes a later seek read more.
    pub fn entry(&self, first_lsn: u64, row: EntryRow) -> bool {
        self.handle.engine.change(Change::Entry(first_lsn, row))
    }

    /// Removes the entries of LSNs below, because their segments are recycled. They are not found from now on.
    pub fn forget_entries(&self, below_lsn: u64) {
        self.handle.engine.forget(below_lsn);
    }

    /// The same of LSNs from one on to below another, further up: told once, as segments are recycled behind one that is
    /// still needed.
    pub fn forget_holes(&self, holes: impl IntoIterator<Item = (u64, u64)>) {
        self.handle.engine.forget_holes(holes);
    }

    /// The newest entry at or before an LSN; `None` if there is none, or the ledger does not answer within the
    /// watchdog's time: the log can be searched without.
    pub fn seek(&self, lsn: u64) -> Option<(u64, EntryRow)> {
        self.ask(|reply| Query::Seek { lsn, reply }).ok().flatten()
    }

    /// Notes a message that was passed over; `false` if that was dropped: then the caller has to come back for it.
    pub fn park(&self, key: ParkedKey, row: ParkedRow) -> bool {
        self.handle.engine.change(Change::Park(key, row))
    }

    /// A parked message is settled; `false` if that was dropped: the row is then stale.
    pub fn unpark(&self, key: ParkedKey) -> bool {
        self.handle.engine.change(Change::Unpark(key))
    }

    /// The first `limit` parked messages of a scope behind `after`, by lane and LSN. Sees what was recorded before, less
    /// what was lost before: who takes an end of the list for the end compares [`generation`](Self::generation) after
    /// the call with the one it has walked the log for.
    ///
    /// # Errors
    /// It did not answer within the watchdog's time, or rows were lost during the call.
    pub fn parked(
        &self,
        scope: ParkedScope,
        after: Option<ParkedKey>,
        limit: usize,
    ) -> Result<Vec<(ParkedKey, ParkedRow)>, Unavailable> {
        self.ask(|reply| Query::Parked { scope, after, limit, reply })
    }

    /// Notes how a lane fails; `false` if that was dropped.
    pub fn set_lane(&self, route: u64, lane: u128, row: LaneRow) -> bool {
        self.handle.engine.change(Change::SetLane(LaneKey { route, lane }, Box::new(row)))
    }

    /// A lane fails no longer; `false` if that was dropped: the row is then stale.
    pub fn remove_lane(&self, route: u64, lane: u128) -> bool {
        self.handle.engine.change(Change::RemoveLane(LaneKey { route, lane }))
    }

    /// The first `limit` failing lanes, by route and lane.
    ///
    /// # Errors
    /// As [`parked`](Self::parked).
    pub fn lanes(&self, limit: usize) -> Result<Vec<(LaneKey, LaneRow)>, Unavailable> {
        self.ask(|reply| Query::Lanes { limit, reply })
    }

    /// Rises whenever rows that were recorded may have been lost. 0 at first, 1 as soon as it turns out that there are
    /// no rows of an earlier run. Who sees it rise walks the log again, then says so with [`rebuilt`](Self::rebuilt).
    pub fn generation(&self) -> u64 {
        self.handle.engine.generation()
    }

    /// The caller has walked the log since it saw this generation: all rows have been recorded again.
    pub fn rebuilt(&self, generation: u64) {
        self.handle.engine.rebuilt(generation);
    }

    /// How the ledger is.
    pub fn health(&self) -> LedgerHealth {
        self.handle.engine.health()
    }

    /// Writes what is queued and closes, waiting up to `grace`; says whether it closed in good order. From now on
    /// nothing is recorded or answered. What hangs is left behind.
    pub fn close(&self, grace: Duration) -> bool {
        self.handle.engine.begin_close();
        self.handle.engine.wait_closed(grace)
    }

    fn ask<T>(&self, query: impl FnOnce(SyncSender<T>) -> Query) -> Result<T, Unavailable> {
        let (reply, answer) = sync_channel(1);
        let given_up = self.handle.engine.given_up();
        self.handle.engine.query(query(reply)).map_err(Unavailable)?;
        let rows = answer.recv_timeout(self.handle.watchdog).map_err(|error| match error {
            RecvTimeoutError::Timeout => Unavailable(format!("it is busy for {:?}", self.handle.watchdog)),
            RecvTimeoutError::Disconnected => Unavailable("it was given up".into()),
        })?;
        let lost = self.handle.engine.given_up() != given_up;
        if lost { Err(Unavailable("rows were lost meanwhile".into())) } else { Ok(rows) }
    }
}

impl fmt::Debug for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ledger").field("health", &self.health()).finish_non_exhaustive()
    }
}
