//! The ledger's thread, its queue, and the watchdog that gives a database up.
//!
//! A *life* is one thread with one database. A life ends for the ledger when it fails, panics, or is in one call for
//! longer than the watchdog allows; from then on whatever its thread does is ignored, its sled is forgotten, never
//! dropped, and the next life begins in a new directory with what is still in the queue. The rows of the batch in
//! progress and of the old directory are lost: the generation says so.
//!
//! Assumes nothing of sled. Refuses to wait: the lock is never held across a call of sled or of a test's hook.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::health::{LedgerHealth, LedgerState};
use super::keys::{EntryRow, LaneKey, LaneRow, ParkedKey, ParkedRow};
use super::store::{Change, ParkedScope};
use super::{LedgerOptions, numbers};
use crate::file_size;

mod life;

/// Between two log lines about dropped rows.
const DROP_LOG: Duration = Duration::from_secs(10);

/// A question; the answer is sent on the channel, which is dropped if there will be none.
pub(super) enum Query {
    Seek {
        lsn: u64,
        reply: SyncSender<Option<(u64, EntryRow)>>,
    },
    Parked {
        scope: ParkedScope,
        after: Option<ParkedKey>,
        limit: usize,
        reply: SyncSender<Vec<(ParkedKey, ParkedRow)>>,
    },
    Lanes {
        limit: usize,
        reply: SyncSender<Vec<(LaneKey, LaneRow)>>,
    },
}

enum Job {
    Change(Change),
    Query(Query),
}

/// What the callers, the lives and the watchdog share.
pub(super) struct Engine {
    dir: PathBuf,
    options: LedgerOptions,
    inner: Mutex<Inner>,
    generation: AtomicU64,
    /// Databases given up.
    given_up: AtomicU64,
    /// The life waits here for work.
    work: Condvar,
    /// The watchdog waits here for something to watch.
    watch: Condvar,
    /// Closing waits here for the end.
    done: Condvar,
}

#[derive(Default)]
struct Inner {
    queue: VecDeque<Job>,
    /// Changes in the queue.
    rows: usize,
    /// Entries below this LSN are to be removed.
    forget: u64,
    /// Up to here they have been.
    forgotten: u64,
    /// Further LSNs, from one on to below another, whose entries are to be removed.
    holes: VecDeque<(u64, u64)>,
    life: u64,
    number: Option<u64>,
    opened: bool,
    /// When the life's call in progress began.
    busy: Option<Instant>,
    watchdog_waits: bool,
    /// Why the last life ended, and when.
    trouble: Option<(String, i64)>,
    off: bool,
    /// The generation that the caller has walked the log for.
    rebuilt: u64,
    dropped: u64,
    drop_logged: Option<Instant>,
    closing: bool,
    finished: bool,
}

impl Engine {
    /// One that never lives.
    #[cfg(any(test, feature = "testing"))]
    pub(super) fn off(options: LedgerOptions) -> Arc<Self> {
        let engine = Arc::new(Self::new(PathBuf::new(), options));
        engine.turn_off(&mut engine.lock());
        engine
    }

    fn new(dir: PathBuf, options: LedgerOptions) -> Self {
        Self {
            dir,
            options,
            inner: Mutex::default(),
            generation: AtomicU64::new(0),
            given_up: AtomicU64::new(0),
            work: Condvar::new(),
            watch: Condvar::new(),
            done: Condvar::new(),
        }
    }

    /// Starts the first life and its watchdog.
    pub(super) fn start(dir: PathBuf, options: LedgerOptions) -> Arc<Self> {
        let engine = Arc::new(Self::new(dir, options));
        let mut inner = engine.lock();
        if numbers::strikes(&engine.dir) >= numbers::MAX_STRIKES {
            inner.trouble = Some(("this process has given up too many ledgers of this outbox".into(), unix_millis()));
            engine.turn_off(&mut inner);
            drop(inner);
            return engine;
        }
        engine.begin_life(&mut inner, Duration::ZERO);
        let watchdog = engine.clone();
        if let Err(error) = thread::Builder::new().name("outlast-ledger-dog".into()).spawn(move || watchdog.watch()) {
            // Unwatched it could hang unnoticed.
            engine.give_up(&mut inner, format!("its watchdog could not be started: {error}"), true);
            engine.turn_off(&mut inner);
        }
        drop(inner);
        engine
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // No code that can panic runs under the lock; were it to, the state is still whole between statements.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a change; says whether there was room.
    pub(super) fn change(&self, change: Change) -> bool {
        let mut inner = self.lock();
        let reason = if inner.off || inner.closing {
            "the ledger is off"
        } else if inner.rows >= self.options.queue_rows {
            "its queue is full"
        } else {
            inner.rows += 1;
            inner.queue.push_back(Job::Change(change));
            drop(inner);
            self.work.notify_one();
            return true;
        };
        inner.dropped += 1;
        if inner.drop_logged.is_none_or(|at| at.elapsed() >= DROP_LOG) {
            inner.drop_logged = Some(Instant::now());
            tracing::warn!(reason, dropped = inner.dropped, "the ledger drops rows; the log is walked instead");
        }
        false
    }

    /// Queues a question; the reason if there will be no answer.
    pub(super) fn query(&self, query: Query) -> Result<(), String> {
        let mut inner = self.lock();
        if inner.closing {
            return Err("it is closed".into());
        }
        if inner.off {
            return Err(inner.trouble.as_ref().map_or_else(|| "it is off".into(), |(reason, _)| reason.clone()));
        }
        inner.queue.push_back(Job::Query(query));
        drop(inner);
        self.work.notify_one();
        Ok(())
    }

    /// Has entries below an LSN removed.
    pub(super) fn forget(&self, below: u64) {
        let mut inner = self.lock();
        inner.forget = inner.forget.max(below);
        drop(inner);
        self.work.notify_one();
    }

    /// The same of LSNs from one on to below another.
    pub(super) fn forget_holes(&self, holes: impl IntoIterator<Item = (u64, u64)>) {
        let mut inner = self.lock();
        if !inner.off {
            inner.holes.extend(holes);
        }
        drop(inner);
        self.work.notify_one();
    }

    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    pub(super) fn given_up(&self) -> u64 {
        self.given_up.load(Ordering::Acquire)
    }

    /// The caller has walked the log for a generation.
    pub(super) fn rebuilt(&self, generation: u64) {
        let mut inner = self.lock();
        inner.rebuilt = inner.rebuilt.max(generation);
    }

    pub(super) fn health(&self) -> LedgerHealth {
        let inner = self.lock();
        let trouble = || inner.trouble.clone().unwrap_or_default();
        let state = if inner.off {
            let (reason, since) = trouble();
            LedgerState::Off { reason, since }
        } else if !inner.opened && inner.trouble.is_none() {
            LedgerState::Opening
        } else if inner.opened && inner.rebuilt >= self.generation() {
            LedgerState::Ok
        } else {
            let (reason, since) = trouble();
            LedgerState::Rebuilding { reason, since }
        };
        LedgerHealth { state, directory: inner.number.unwrap_or(0), dropped: inner.dropped }
    }

    /// No more work is taken; what is queued is still done.
    pub(super) fn begin_close(&self) {
        let mut inner = self.lock();
        inner.closing = true;
        inner.finished |= inner.off;
        drop(inner);
        self.work.notify_all();
        self.watch.notify_all();
        self.done.notify_all();
    }

    /// Waits for the end of closing; says whether it came, in good order.
    pub(super) fn wait_closed(&self, grace: Duration) -> bool {
        let (inner, _) = self
            .done
            .wait_timeout_while(self.lock(), grace, |inner| !inner.finished)
            .unwrap_or_else(PoisonError::into_inner);
        inner.finished && inner.opened && !inner.off
    }

    fn begin_life(self: &Arc<Self>, inner: &mut Inner, pause: Duration) {
        inner.life += 1;
        inner.number = None;
        inner.opened = false;
        inner.busy = None;
        let (engine, life) = (self.clone(), inner.life);
        let live = move || {
            file_size::block_signal();
            engine.live(life, pause);
        };
        let spawned = thread::Builder::new().name("outlast-ledger".into()).spawn(live);
        if let Err(error) = spawned {
            inner.trouble = Some((format!("its thread could not be started: {error}"), unix_millis()));
            self.turn_off(inner);
        }
    }

    /// Ends the current life, whose sled may still run if `alive`.
    fn give_up(&self, inner: &mut Inner, reason: String, alive: bool) -> u32 {
        let strikes = numbers::give_up(&self.dir, inner.number, alive);
        tracing::error!(reason, directory = inner.number, strikes, "the ledger is given up; the log is walked instead");
        inner.trouble = Some((reason, unix_millis()));
        inner.life += 1;
        inner.busy = None;
        inner.opened = false;
        // A new directory has no entries to remove.
        inner.forgotten = inner.forget;
        inner.holes.clear();
        self.given_up.fetch_add(1, Ordering::AcqRel);
        self.generation.fetch_add(1, Ordering::AcqRel);
        strikes
    }

    fn give_up_and_go_on(self: &Arc<Self>, inner: &mut Inner, reason: String, alive: bool) {
        let strikes = self.give_up(inner, reason, alive);
        if inner.closing || strikes >= numbers::MAX_STRIKES {
            self.turn_off(inner);
        } else {
            let pause = self.options.pause.saturating_mul(4u32.saturating_pow(strikes.saturating_sub(1)));
            self.begin_life(inner, pause);
        }
    }

    fn turn_off(&self, inner: &mut Inner) {
        inner.off = true;
        inner.dropped += inner.rows as u64;
        inner.rows = 0;
        // Dropping a question's channel answers it.
        inner.queue.clear();
        inner.finished |= inner.closing;
        self.done.notify_all();
        self.watch.notify_all();
    }

    /// The watchdog: ends a life that is in one call for too long. Ends with the ledger.
    fn watch(self: Arc<Self>) {
        let mut inner = self.lock();
        while !inner.finished && !inner.off {
            let Some(since) = inner.busy else {
                inner.watchdog_waits = true;
                inner = self.watch.wait(inner).unwrap_or_else(PoisonError::into_inner);
                inner.watchdog_waits = false;
                continue;
            };
            let left = self.options.watchdog.saturating_sub(since.elapsed());
            if left.is_zero() {
                let reason = format!("it did not answer for {:?}", self.options.watchdog);
                self.give_up_and_go_on(&mut inner, reason, true);
            } else {
                inner = self.watch.wait_timeout(inner, left).unwrap_or_else(PoisonError::into_inner).0;
            }
        }
    }
}

fn unix_millis() -> i64 {
    let millis = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    i64::try_from(millis).unwrap_or(i64::MAX)
}
