//! The end: draining, closing, and what happens without either.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::Producer;
use super::core::{Core, lock};
use crate::outbox::Lifecycle;
use crate::{clock, file_size};

/// How often it is looked whether everything is settled. A look and no bell: what is waited for is the sum of counters
/// under several locks, and 20 ms are little beside a drain.
const LOOK: Duration = Duration::from_millis(20);
/// What a producer that was dropped without `close` gives its messages in flight.
const DROP_GRACE: Duration = Duration::from_millis(500);

/// What a fork hears that has inherited a producer.
const FORKED: &str = "this process is a fork of the one that opened the outbox, which alone can close it";

/// How a producer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Closed {
    /// Stored messages that are not delivered; the next producer on this outbox delivers them.
    pub pending: u64,
}

/// The outbox could not be closed in good order. Nothing that was acknowledged is lost; some messages may be
/// delivered twice after the next start.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the outbox could not be brought to the disk: {0}")]
pub struct CloseError(String);

/// Messages are still pending.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NotDrained {
    /// How many.
    pub pending: u64,
    /// What keeps them, if anything is known to: a broker or a route that failed last, and how.
    pub why: Option<String>,
}

impl fmt::Display for NotDrained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (messages, are) = if self.pending == 1 { ("message", "is") } else { ("messages", "are") };
        write!(f, "{} {messages} {are} still pending", self.pending)?;
        self.why.as_ref().map_or(Ok(()), |why| write!(f, " ({why})"))
    }
}

impl std::error::Error for NotDrained {}

impl Producer {
    /// Waits until nothing is pending, in flight or waiting for space. A dead letter is not pending.
    ///
    /// # Errors
    /// Something still is after `timeout`, or when the producer has been closed. It is delivered later all the same.
    ///
    /// # Cancel safety
    /// Dropping the future changes nothing.
    pub async fn drained(&self, timeout: Duration) -> Result<(), NotDrained> {
        let core = Arc::clone(&self.core);
        off_thread(move |unheard| core.wait_drained(timeout, unheard))
            .await
            .unwrap_or(Err(NotDrained { pending: u64::MAX, why: None }))
    }

    /// As [`drained`](Self::drained), and blocks meanwhile.
    ///
    /// # Errors
    /// As `drained`.
    pub fn blocking_drained(&self, timeout: Duration) -> Result<(), NotDrained> {
        self.core.wait_drained(timeout, &|| false)
    }

    /// Takes no more messages, waits up to `grace` for what is in flight, stores the rest, brings everything to the
    /// disk and lets go of the outbox. Every future of `send` has resolved when this returns. Again: tells the same.
    ///
    /// # Errors
    /// The disk failed. See [`CloseError`].
    ///
    /// # Cancel safety
    /// Closing goes on, on a thread of its own.
    pub async fn close(&self, grace: Duration) -> Result<Closed, CloseError> {
        let core = Arc::clone(&self.core);
        let gone = || Err(CloseError("closing was cut short".into()));
        off_thread(move |_| core.close(grace)).await.unwrap_or_else(gone)
    }

    /// As [`close`](Self::close), and blocks meanwhile.
    ///
    /// # Errors
    /// As `close`.
    pub fn blocking_close(&self, grace: Duration) -> Result<Closed, CloseError> {
        self.core.close(grace)
    }
}

/// Does something that blocks on a thread of its own. It is given a way to see that nobody waits for its result any more.
async fn off_thread<T: Send + 'static>(work: impl FnOnce(&dyn Fn() -> bool) -> T + Send + 'static) -> Option<T> {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let spawned = std::thread::Builder::new().name("outlast-wait".into()).spawn(move || {
        file_size::block_signal();
        let result = work(&|| sender.is_closed());
        // Dropped, if nobody waits for it.
        let _ = sender.send(result);
    });
    spawned.ok()?;
    receiver.await.ok()
}

impl Core {
    /// Ends early, with what it has found, when nobody waits for it any more, or when the producer has ended and delivers
    /// nothing more.
    fn wait_drained(&self, timeout: Duration, unheard: &dyn Fn() -> bool) -> Result<(), NotDrained> {
        if self.maker.is_other() {
            return Err(NotDrained { pending: u64::MAX, why: Some(FORKED.into()) });
        }
        let until = clock::after(Instant::now(), timeout);
        loop {
            let pending = self.unsettled();
            if pending == 0 {
                return Ok(());
            }
            if Instant::now() >= until || unheard() || self.has_ended() {
                return Err(NotDrained { pending, why: self.what_holds() });
            }
            std::thread::sleep(LOOK.min(until.saturating_duration_since(Instant::now())));
        }
    }

    fn has_ended(&self) -> bool {
        // Locked while it is being closed: then it has not.
        self.ended.try_lock().is_ok_and(|ended| ended.is_some())
    }

    /// Messages that are pending, in flight or waiting. Asked in the order in which a message goes its way, so that none is
    /// missed on the way from one to the next.
    fn unsettled(&self) -> u64 {
        let waiting = self.waiting_for_space();
        let in_flight: usize = self.lines.iter().map(|line| line.dispatcher.unsettled()).sum();
        waiting as u64 + in_flight as u64 + self.pending()
    }

    fn pending(&self) -> u64 {
        self.outbox.snapshot().pending.iter().map(|(_, pending)| pending.count).sum()
    }

    /// Closes once; whoever comes later waits for that, and is told the same.
    pub fn close(&self, grace: Duration) -> Result<Closed, CloseError> {
        if self.maker.is_other() {
            return Err(CloseError(FORKED.into()));
        }
        let mut ended = lock(&self.ended);
        if let Some(ended) = &*ended {
            return ended.clone();
        }
        self.closed.store(true, Ordering::Release);
        // Whoever waits for space is told.
        self.let_in(Instant::now());
        let until = clock::after(Instant::now(), grace);
        // Nothing is handed over again from here on: only what is owned already is waited for.
        self.stop_drainers();
        self.wait_for_owned(until);
        let down: Vec<bool> = self.lines.iter().map(|line| line.dispatcher.gate().is_down()).collect();
        for line in &self.lines {
            line.dispatcher.gate().set_down(true);
            line.dispatcher.store_late(None);
        }
        self.stop_housekeeper();
        for (line, down) in self.lines.iter().zip(down) {
            let rest = until.saturating_duration_since(Instant::now());
            line.dispatcher.transport().close(if down { Duration::ZERO } else { rest });
            // What failed in closing is stored.
            line.dispatcher.store_late(None);
        }
        let closed = self.outbox.close();
        for line in &self.lines {
            line.dispatcher.forget_watchers(0..=u64::MAX);
        }
        file_size::shielded(|| {
            self.write_status(Lifecycle::Closed);
            self.outbox.release();
        });
        let outcome = match closed {
            Ok(()) => Ok(Closed { pending: self.pending() }),
            Err(error) => Err(CloseError(error.to_string())),
        };
        ended.insert(outcome).clone()
    }

    /// What a broker owns that is known to be down will not be reported on: it is stored at once.
    fn wait_for_owned(&self, until: Instant) {
        let up = || self.lines.iter().filter(|line| !line.dispatcher.gate().is_down());
        let in_hand = || up().map(|line| line.dispatcher.in_hand()).sum::<usize>();
        while in_hand() > 0 && Instant::now() < until {
            std::thread::sleep(LOOK.min(until.saturating_duration_since(Instant::now())));
        }
    }

    fn stop_drainers(&self) {
        self.lines.iter().for_each(|line| line.dispatcher.mailbox().stop());
        for thread in lock(&self.drainers).drain(..) {
            // A panic in there was logged; everything it did is in the log or was not acknowledged.
            let _ = thread.join();
        }
    }

    fn stop_housekeeper(&self) {
        self.stop.store(true, Ordering::Release);
        self.bell.ring();
        if let Some(thread) = lock(&self.housekeeper).take() {
            let _ = thread.join();
        }
    }

    /// After a start that failed half-way: stops what was started, and lets go of the outbox.
    pub fn give_up_start(&self) {
        self.closed.store(true, Ordering::Release);
        self.stop_drainers();
        self.stop_housekeeper();
        self.lines.iter().for_each(|line| line.dispatcher.transport().close(Duration::ZERO));
        // The outbox was opened and not used: there is nothing to bring to the disk that the next start would miss.
        let _ = self.outbox.close();
        self.outbox.release();
    }
}

/// Closes the producer with its last clone.
pub(super) struct Last(pub(super) Arc<Core>);

impl Drop for Last {
    fn drop(&mut self) {
        if self.0.maker.is_other() {
            // Everything else is left as it is, for good: to drop it would wait for the parent's threads.
            std::mem::forget(Arc::clone(&self.0));
            return self.0.outbox.directory().disinherit();
        }
        if self.0.closed.load(Ordering::Acquire) {
            return;
        }
        let core = Arc::clone(&self.0);
        // Not on the caller's thread, which may be a runtime's.
        let spawned = std::thread::Builder::new().name("outlast-close".into()).spawn(move || {
            file_size::block_signal();
            if let Err(error) = core.close(DROP_GRACE) {
                tracing::error!(%error, "a producer was dropped without being closed");
            }
        });
        if let Err(error) = spawned {
            tracing::error!(%error, "a producer was dropped without being closed, and no thread could close it");
        }
    }
}
