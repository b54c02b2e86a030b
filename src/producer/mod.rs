//! The [`Producer`]: what an application holds.
//!
//! It owns its threads; nothing runs on the caller's. Every way in fixes a message's place before it returns.

mod admission;
mod builder;
mod close;
mod core;
mod events;
mod housekeeper;
mod open_error;
mod report;
mod send;
mod start;

use std::fmt;
use std::path::Path;
use std::sync::Arc;

pub use builder::Builder;
pub use close::{CloseError, Closed, NotDrained};
pub use events::Events;
pub use open_error::{OpenError, OpenErrorKind};
pub use send::SendFuture;

use self::core::Core;
use crate::error::SendError;
use crate::message::Message;
use crate::receipt::Receipt;
use crate::stats::{Health, Stats};

/// Messages that `send_all` has under way at a time.
const SEND_ALL_WINDOW: usize = 1_000;

/// Hands messages to brokers, and stores those that a broker does not take.
///
/// Clones share everything, and any number of threads and tasks may send. When the last clone is dropped without
/// [`close`](Self::close), what is in flight is given half a second, and then stored as far as it can be, on a thread of
/// its own; only `close` tells how that went, and whether it went before the process ended.
///
/// A child that was forked without `exec` inherits none of the threads, so it cannot use the producer: `close` and `drained`
/// fail there. To drop it in the child is safe, and changes nothing for the parent, which keeps the outbox; the child
/// closes the descriptor of the lock that it inherited, and leaves the rest alone until it ends. A child that keeps it
/// keeps the outbox locked, too, when the parent has died.
#[derive(Clone)]
pub struct Producer {
    core: Arc<Core>,
    _last: Arc<close::Last>,
}

impl Producer {
    fn new(core: Arc<Core>) -> Self {
        let last = Arc::new(close::Last(Arc::clone(&core)));
        Self { core, _last: last }
    }

    /// Everything that can be set.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Opens the outbox in a directory, for one broker, with the defaults (see [`Config`](crate::Config)). The
    /// directory is made if it is not there, for this user alone. What is pending in it is delivered from now on.
    ///
    /// # Errors
    /// See [`OpenErrorKind`]. The broker need not be there.
    ///
    /// # Cancel safety
    /// As [`Builder::open`].
    pub async fn open(directory: impl AsRef<Path>, url: &str) -> Result<Self, OpenError> {
        builder::builder_for(directory.as_ref(), url).open().await
    }

    /// Sends a message. Its place among the messages of its key is fixed when this returns, polled or not.
    ///
    /// The future resolves to the message's [`Receipt`]: the broker has it, or the disk has. A full window does not
    /// refuse it; a full outbox makes it wait for space, up to a deadline.
    ///
    /// # Errors
    /// The future's error hands the message back, and says why, whether trying again can help, and whether the broker
    /// may have it all the same.
    ///
    /// # Cancel safety
    /// See [`SendFuture`].
    pub fn send(&self, message: Message) -> SendFuture {
        match self.core.admit(message).and_then(|admitted| self.core.enter(admitted, true)) {
            Ok(entered) => SendFuture::entered(&self.core, entered),
            Err(error) => SendFuture::refused(error),
        }
    }

    /// As [`send`](Self::send), but never waits for space.
    ///
    /// # Errors
    /// What `send` would say at once, and [`Full`](crate::SendErrorKind::Full) where it would wait. The message was
    /// not accepted, and comes back.
    pub fn try_send(&self, message: Message) -> Result<SendFuture, SendError> {
        let entered = self.core.admit(message).and_then(|admitted| self.core.enter(admitted, false))?;
        Ok(SendFuture::entered(&self.core, entered))
    }

    /// As [`send`](Self::send), and blocks the thread until the message is accepted or is not: for `first_attempt`,
    /// `space_wait` and a sync of the disk at most, as a rule. On a runtime's thread that stalls other tasks, but never
    /// this message.
    ///
    /// # Errors
    /// As the future of `send`.
    pub fn blocking_send(&self, message: Message) -> Result<Receipt, SendError> {
        pollster::block_on(self.send(message))
    }

    /// Sends many messages and returns their receipts in order. At most 1,000 are under way at a time.
    ///
    /// # Errors
    /// Stops at the first message that is not accepted. The error has the receipts of all that were accepted, those
    /// that were not, and the rest, which was not tried.
    ///
    /// # Cancel safety
    /// Dropping the future drops the [`SendFuture`]s of those that are under way, at most 1,000; the rest is never
    /// sent.
    pub async fn send_all(&self, messages: impl IntoIterator<Item = Message>) -> Result<Vec<Receipt>, SendAllError> {
        let mut messages = messages.into_iter();
        let mut under_way = std::collections::VecDeque::new();
        let mut receipts = Vec::new();
        let mut refused = Vec::new();
        loop {
            while refused.is_empty() && under_way.len() < SEND_ALL_WINDOW {
                let Some(message) = messages.next() else { break };
                under_way.push_back(self.send(message));
            }
            match under_way.pop_front() {
                Some(first) => match first.await {
                    Ok(receipt) => receipts.push(receipt),
                    Err(error) => refused.push(error),
                },
                None if refused.is_empty() => return Ok(receipts),
                None => return Err(SendAllError { receipts, refused, rest: messages.collect() }),
            }
        }
    }

    /// As [`send_all`](Self::send_all), and blocks the thread until all are accepted or one is not.
    ///
    /// # Errors
    /// As `send_all`.
    pub fn blocking_send_all(&self, messages: impl IntoIterator<Item = Message>) -> Result<Vec<Receipt>, SendAllError> {
        pollster::block_on(self.send_all(messages))
    }

    /// What happens from now on: what became of stored messages, failures, brokers that come and go.
    pub fn events(&self) -> Events {
        Events(self.core.events.subscribe())
    }

    /// Counts since the producer was opened, and what is pending now. Reads counters; cheap enough to be asked each
    /// second.
    pub fn stats(&self) -> Stats {
        self.core.stats()
    }

    /// What an operator should know: what waits for somebody to mend something, what was set aside, a disk or a
    /// ledger that does not work, dead letters. A broker that is merely down is told, too.
    pub fn health(&self) -> Health {
        self.core.health()
    }
}

impl fmt::Debug for Producer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let root = self.core.outbox.directory().paths().root();
        f.debug_struct("Producer").field("outbox", &root).finish_non_exhaustive()
    }
}

/// Not all of many messages were accepted.
#[derive(Debug, thiserror::Error)]
#[error("{} of many messages were not accepted, {} were not tried: {}", refused.len(), rest.len(), first(refused))]
#[non_exhaustive]
pub struct SendAllError {
    /// The receipts of those that were accepted, in order.
    pub receipts: Vec<Receipt>,
    /// Those that were not, in order. More than one only if they were under way together.
    pub refused: Vec<SendError>,
    /// Those that were not tried, in order.
    pub rest: Vec<Message>,
}

fn first(refused: &[SendError]) -> String {
    refused.first().map(ToString::to_string).unwrap_or_default()
}
