//! Redis streams.
//!
//! One connection, one thread, one writer task on it: [`RedisTransport::submit`](Transport::submit) puts a message
//! into the intake and returns; the writer gathers what is there into units of one stream each, so that many
//! senders share a round trip. Messages are pipelined; where two of a unit are of one lane, it is a transaction. A
//! stream may have two units of messages with a lane outstanding, which have none in common. Nothing is tried again
//! here. When the connection breaks, or a reply takes too long, everything owned is reported as failed, and then a
//! new connection is made; until it stands, messages are refused.
//!
//! Assumes one server, or a name that leads to the primary; refuses replicas, and does not follow a cluster.
//! What Redis acknowledged is as safe as its settings make it (`appendfsync`, replicas); it is told at start.

mod access;
mod alone;
mod classify;
mod config;
mod connect;
mod doctor;
mod entry;
mod limits;
mod session;
mod settings;
mod stream;
mod unit;
mod waiting;
mod writer;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

pub use config::{FieldNames, RedisConfig, Secret, Trim};
pub(super) use doctor::examine;

use super::{Class, Failure, Handover, Monitor, Refused, Scope, StartError, Transport};
use crate::clock;
use crate::message::Message;
use access::Access;
use writer::Writer;

/// The most messages owned at a time: several times the producer's window, and a bound all the same.
const MAX_OWNED_MESSAGES: usize = 65_536;
/// The most bytes owned at a time, but for one message, which always finds room. Likewise.
const MAX_OWNED_BYTES: usize = 128 << 20;

/// Writes messages to the streams of a Redis server.
///
/// An entry holds the message's [field map](crate::Message::fields) as it is, or `payload` and `key`; then
/// `outlast-id`, and headers as `h:NAME` ([`FieldNames`]). A null payload, and a header with a null value, are left
/// out. Timestamp and partition are not written: the entry's id has the server's time.
pub struct RedisTransport {
    config: Arc<RedisConfig>,
    access: Arc<Access>,
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl RedisTransport {
    /// A transport that is not started yet. Reads the certificates and the password file, connects to
    /// nothing. The files are read again when they change, and used at the next connection.
    ///
    /// # Errors
    /// The configuration cannot work, whatever the server does.
    pub fn new(config: RedisConfig) -> Result<Self, StartError> {
        config.validate()?;
        let config = Arc::new(config);
        let access = Arc::new(Access::new(config.clone())?);
        let closed =
            Intake { gate: Gate::Closed, queue: Vec::new(), wake_at: 1, messages: 0, bytes: 0, deadline: None };
        let shared = Shared { intake: Mutex::new(closed), wake: Notify::new() };
        Ok(Self { config, access, shared: Arc::new(shared), thread: Mutex::new(None) })
    }
}

impl Transport for RedisTransport {
    fn start(&self, monitor: Monitor) -> Result<(), StartError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build()
            .map_err(|error| StartError(format!("no runtime for the Redis transport: {error}")))?;
        let writer = Writer::new(self.config.clone(), self.access.clone(), self.shared.clone(), monitor);
        let end = AtEnd(self.shared.clone());
        let thread = thread::Builder::new().name(format!("outlast-redis-{}", self.config.host)).spawn(move || {
            let _end = end;
            runtime.block_on(writer.run());
            // A look-up of a host name that hangs must not keep the thread.
            runtime.shutdown_background();
        });
        let thread = thread.map_err(|error| StartError(format!("no thread for the Redis transport: {error}")))?;
        // What is submitted while the first connection is made waits for it.
        self.shared.lock().gate = Gate::Open;
        *self.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
        Ok(())
    }

    fn check(&self, message: &Message) -> Result<(), String> {
        entry::check(&self.config, message)
    }

    fn submit(&self, handover: Handover) -> Result<(), Refused> {
        let bytes = handover.message.message.size();
        let mut intake = self.shared.lock();
        let failure = match &intake.gate {
            Gate::Open if intake.has_room(bytes) => {
                intake.messages += 1;
                intake.bytes += bytes;
                intake.queue.push(handover);
                // Before there are so many the writer has better things to do, and behind that it has been woken already.
                let wake = intake.queue.len() == intake.wake_at;
                drop(intake);
                if wake {
                    self.shared.wake.notify_one();
                }
                return Ok(());
            }
            Gate::Open => {
                let reason = "the Redis transport owns as much as it may; the server is slow to answer";
                Arc::new(Failure::new(Class::Transient, Scope::Transport, reason))
            }
            Gate::Down(failure) => failure.clone(),
            Gate::Closed => closed(),
        };
        Err(Refused { handover, failure })
    }

    fn alerts(&self) -> Vec<String> {
        self.access.trouble().into_iter().collect()
    }

    fn close(&self, grace: Duration) {
        self.shared.close_by(clock::after(Instant::now(), grace));
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread.filter(|thread| thread.thread().id() != thread::current().id()) {
            // If it panicked, in somebody's recipient, its tickets have reported when they were dropped.
            let _ = thread.join();
        }
    }
}

impl Drop for RedisTransport {
    fn drop(&mut self) {
        self.shared.close_by(Instant::now());
    }
}

impl fmt::Debug for RedisTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisTransport").field("config", &self.config).finish_non_exhaustive()
    }
}

/// What `submit` and the writer share.
struct Shared {
    intake: Mutex<Intake>,
    /// Rung when enough is in the intake, and when it closes.
    wake: Notify,
}

struct Intake {
    gate: Gate,
    queue: Vec<Handover>,
    /// How many in the queue wake the writer: one, if the server has nothing to do.
    wake_at: usize,
    /// Of everything owned, not only of the queue.
    messages: usize,
    bytes: usize,
    /// Set by `close`: when whatever is still owned is reported as failed.
    deadline: Option<Instant>,
}

enum Gate {
    Open,
    Down(Arc<Failure>),
    Closed,
}

impl Intake {
    fn has_room(&self, bytes: usize) -> bool {
        let fits = self.messages < MAX_OWNED_MESSAGES && self.bytes + bytes <= MAX_OWNED_BYTES;
        self.deadline.is_none() && (fits || self.messages == 0)
    }
}

impl Shared {
    /// Every change under the lock is whole when it could panic, so a poisoned lock means nothing.
    fn lock(&self) -> MutexGuard<'_, Intake> {
        self.intake.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn close_by(&self, deadline: Instant) {
        let mut intake = self.lock();
        intake.deadline = Some(intake.deadline.map_or(deadline, |earlier| earlier.min(deadline)));
        drop(intake);
        self.wake.notify_one();
    }
}

/// Shuts the intake when the writer's thread ends, however it does: nothing may be taken over that nobody reports on.
struct AtEnd(Arc<Shared>);

impl Drop for AtEnd {
    fn drop(&mut self) {
        let mut intake = self.0.lock();
        intake.gate = Gate::Closed;
        let left = std::mem::take(&mut intake.queue);
        drop(intake);
        // Dropped tickets report.
        drop(left);
    }
}

fn closed() -> Arc<Failure> {
    Arc::new(Failure::new(Class::Transient, Scope::Transport, "the Redis transport is closed"))
}
