//! One life: a thread with one database, which works off the queue.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use super::{Engine, Inner, Job, Query, unix_millis};
use crate::outbox::files;
use crate::outbox::ledger::numbers;
use crate::outbox::ledger::store::{Change, Store, StoreError};

/// Changes in one batch of sled. What a batch replaces stays in memory until it is over and beyond: writing and removing
/// 300,000 rows twice ended at 111 MB of resident memory with batches of 64, at 561 MB with 1,024, which were no faster.
const BATCH: usize = 64;

/// The share of the watchdog that an open may spend waiting for sled's own lock.
const LOCK_SHARE: u32 = 2;

/// What a life does next.
struct Work {
    changes: Vec<Change>,
    query: Option<Query>,
    forget: Option<u64>,
    hole: Option<(u64, u64)>,
    close: bool,
}

/// The life is over: its thread has to forget its sled and end.
struct Over;

impl Engine {
    /// A life: opens a database and works off the queue, until closing or its own end.
    pub(super) fn live(self: Arc<Self>, life: u64, pause: Duration) {
        if !pause.is_zero() {
            let early = |inner: &mut Inner| inner.life == life && !inner.closing;
            let waited = self.work.wait_timeout_while(self.lock(), pause, early);
            drop(waited.unwrap_or_else(PoisonError::into_inner));
        }
        let Ok(store) = self.open(life) else { return };
        while let Some(work) = self.next_work(life) {
            let close = work.close;
            if self.perform(life, &store, work).is_err() {
                return;
            }
            if close {
                if self.call(life, "close", || store.close()).is_ok() {
                    let mut inner = self.lock();
                    inner.finished = true;
                    drop(inner);
                    self.done.notify_all();
                    self.watch.notify_all();
                }
                return;
            }
        }
    }

    fn open(self: &Arc<Self>, life: u64) -> Result<Store, Over> {
        let path = self.call(life, "choose", || {
            files::create_directory(&self.dir).map_err(|error| StoreError::Directory(std::io::Error::other(error)))?;
            let number = numbers::choose(&self.dir, life > 1)?;
            let path = numbers::directory(&self.dir, number);
            let mut inner = self.lock();
            if inner.life == life {
                inner.number = Some(number);
            }
            Ok(path)
        })?;
        let lock_wait = self.options.watchdog / LOCK_SHARE;
        let store = self.call(life, "open", || {
            files::create_directory(&path).map_err(|error| StoreError::Directory(std::io::Error::other(error)))?;
            Store::open(&path, self.options.cache_bytes, lock_wait)
        })?;
        {
            let mut inner = self.lock();
            if inner.life != life {
                return Err(Over);
            }
            inner.opened = true;
            if store.is_fresh() && inner.trouble.is_none() {
                inner.trouble = Some(("there are no rows of an earlier run".into(), unix_millis()));
                self.generation.fetch_add(1, Ordering::AcqRel);
            }
        }
        // Only now: until the new one was open, an old one was better than none.
        let number = path.file_name().and_then(|name| name.to_str()?.parse().ok()).unwrap_or(0);
        self.call(life, "remove", || {
            numbers::remove_old(&self.dir, number);
            Ok(())
        })?;
        Ok(store)
    }

    /// Waits for work; `None` if the life is over.
    fn next_work(&self, life: u64) -> Option<Work> {
        let idle = |inner: &mut Inner| {
            let forgets = inner.forget > inner.forgotten || !inner.holes.is_empty();
            inner.life == life && inner.queue.is_empty() && !forgets && !inner.closing
        };
        let mut inner = self.work.wait_while(self.lock(), idle).unwrap_or_else(PoisonError::into_inner);
        if inner.life != life {
            return None;
        }
        let mut work = Work { changes: Vec::new(), query: None, forget: None, hole: None, close: false };
        while work.changes.len() < BATCH && work.query.is_none() {
            match inner.queue.pop_front() {
                Some(Job::Change(change)) => work.changes.push(change),
                Some(Job::Query(query)) => work.query = Some(query),
                None => break,
            }
        }
        inner.rows -= work.changes.len();
        work.forget = (inner.forget > inner.forgotten).then_some(inner.forget);
        work.hole = inner.holes.front().copied();
        work.close = inner.closing && inner.queue.is_empty();
        Some(work)
    }

    fn perform(self: &Arc<Self>, life: u64, store: &Store, work: Work) -> Result<(), Over> {
        if !work.changes.is_empty() {
            self.call(life, "apply", || store.apply(&work.changes))?;
        }
        match work.query {
            None => {}
            // Who asked may have gone: then nobody wants the answer.
            Some(Query::Seek { lsn, reply }) => {
                let floor = self.lock().forget;
                let _ = reply.try_send(self.call(life, "seek", || store.seek(lsn, floor))?);
            }
            Some(Query::Parked { scope, after, limit, reply }) => {
                let _ = reply.try_send(self.call(life, "parked", || store.parked(scope, after, limit))?);
            }
            Some(Query::Lanes { limit, reply }) => {
                let _ = reply.try_send(self.call(life, "lanes", || store.lanes(limit))?);
            }
        }
        if let Some(below) = work.forget {
            let more = self.call(life, "forget", || store.forget(0, below))?;
            let mut inner = self.lock();
            if !more && inner.life == life {
                inner.forgotten = below;
            }
        }
        if let Some((from, below)) = work.hole {
            let more = self.call(life, "forget", || store.forget(from, below))?;
            let mut inner = self.lock();
            if !more && inner.life == life {
                inner.holes.pop_front();
            }
        }
        Ok(())
    }

    /// One watched call. If it fails or panics, or came back too late, the life is over.
    fn call<T>(
        self: &Arc<Self>,
        life: u64,
        name: &'static str,
        call: impl FnOnce() -> Result<T, StoreError>,
    ) -> Result<T, Over> {
        {
            let mut inner = self.lock();
            if inner.life != life {
                return Err(Over);
            }
            inner.busy = Some(Instant::now());
            if inner.watchdog_waits {
                self.watch.notify_one();
            }
        }
        let hook = || self.options.hook.as_ref().map_or(Ok(()), |hook| hook(name)).map_err(StoreError::Planted);
        let result = catch_unwind(AssertUnwindSafe(|| hook().and_then(|()| call())));
        let mut inner = self.lock();
        if inner.life != life {
            // Forgotten, not dropped: it may hold a sled.
            std::mem::forget(result);
            return Err(Over);
        }
        inner.busy = None;
        let (reason, alive) = match result {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(error)) => (format!("{name}: {error}"), error.leaves_sled_running()),
            Err(panic) => (format!("{name}: it panicked: {}", panic_text(&*panic)), true),
        };
        self.give_up_and_go_on(&mut inner, reason, alive);
        Err(Over)
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no text")
}
