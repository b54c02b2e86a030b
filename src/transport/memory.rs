//! A broker in memory, for tests: [`Broker`], published as `outlast::testing::Broker`.
//!
//! It keeps what it took for as long as a clone of it lives, so a producer can be closed and opened again over
//! it. It assumes nothing about timing: all waiting is on a condition variable, and nothing happens that the
//! test did not ask for. Each [`Broker::transport`] has a worker thread of its own; all state is behind one lock,
//! which is never held while a report is made or a monitor is called.

mod state;
mod worker;

use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;

use super::{Class, Failure, Monitor, Scope, Transport};
use crate::message::{Header, MessageId};
use state::{Instance, State};
use worker::MemoryTransport;

/// A broker in memory whose outages a test makes by itself.
///
/// ```
/// use std::time::Duration;
/// use outlast::testing::Broker;
/// let broker = Broker::new();
/// let transport = broker.transport(); // for `Producer::builder()`
/// broker.down();
/// // … send: `Stored` …
/// broker.up();
/// assert!(broker.wait_for(0, Duration::from_secs(5)));
/// # drop(transport);
/// ```
#[derive(Clone, Default)]
pub struct Broker {
    shared: Arc<Shared>,
}

/// One entry of a [`Broker`]: a message as it arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivered {
    /// The id, the same in each attempt: a duplicate shows by it.
    pub id: MessageId,
    /// The topic or stream.
    pub destination: Arc<str>,
    /// The key.
    pub key: Option<Bytes>,
    /// The payload; `None` for a tombstone and for a field map.
    pub payload: Option<Bytes>,
    /// The field map; empty unless the message carried one.
    pub fields: Vec<(Bytes, Bytes)>,
    /// The headers, in order.
    pub headers: Vec<Header>,
    /// Milliseconds since 1970.
    pub timestamp: i64,
    /// The partition it was put into.
    pub partition: i32,
    /// Its place in the partition, from zero.
    pub offset: i64,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    /// Held while monitors are called, so that they learn of changes in the order in which these happened.
    announcing: Mutex<()>,
}

impl Broker {
    /// A broker that is up, with one partition a destination, and takes everything at once.
    pub fn new() -> Self {
        Self::default()
    }

    /// A new transport to this broker: one a producer.
    pub fn transport(&self) -> Arc<dyn Transport> {
        let mut state = self.shared.lock();
        let number = state.next_instance;
        state.next_instance += 1;
        drop(state);
        Arc::new(MemoryTransport::new(self.shared.clone(), number))
    }

    /// Breaks all connections: what is owned fails, untouched by the broker; what is submitted is refused.
    /// Producers know when this returns.
    pub fn down(&self) {
        let failure = Failure::new(Class::Transient, Scope::Transport, "the broker is down (the test said so)");
        self.announce(|state| state.down = Some(Arc::new(failure)));
    }

    /// Ends what [`down`](Self::down) began. Producers know when this returns.
    pub fn up(&self) {
        self.announce(|state| state.down = None);
    }

    /// From here on messages are taken over but neither appended nor reported on: the broker hangs.
    pub fn pause(&self) {
        self.change(|state| state.paused = true);
    }

    /// Ends what [`pause`](Self::pause) began.
    pub fn resume(&self) {
        self.change(|state| state.paused = false);
    }

    /// The same for one partition of every destination, as if it had lost its leader: the others go on.
    pub fn pause_partition(&self, partition: i32) {
        self.change(|state| state.paused_partitions.insert(partition));
    }

    /// Ends what [`pause_partition`](Self::pause_partition) began.
    pub fn resume_partition(&self, partition: i32) {
        self.change(|state| {
            state.paused_partitions.remove(&partition);
            for instance in state.instances.values_mut() {
                let queue = std::mem::take(&mut instance.queue);
                instance.queue = std::mem::take(&mut instance.hung);
                instance.queue.extend(queue);
            }
        });
    }

    /// The next message is appended, but its acknowledgement is lost: it is reported failed, possibly delivered.
    pub fn lose_reply(&self) {
        self.lose_replies(1);
    }

    /// The same for the next `count` messages that would be appended.
    pub fn lose_replies(&self, count: usize) {
        self.change(|state| state.replies_to_lose = count);
    }

    /// Rejects all messages for a destination: with [`Class::Hold`] as an unknown topic is, say.
    ///
    /// The failures have the scope of the route, with [`Class::Fatal`] of the whole transport.
    pub fn reject(&self, destination: impl Into<Arc<str>>, class: Class) {
        let destination = destination.into();
        self.change(|state| state.rejected_destinations.insert(destination, class));
    }

    /// Ends what [`reject`](Self::reject) began, and tells the producers that were refused there.
    pub fn accept(&self, destination: &str) {
        let _announcing = lock(&self.shared.announcing);
        let mut told = Vec::new();
        let mut state = self.shared.lock();
        state.rejected_destinations.remove(destination);
        for instance in state.instances.values_mut() {
            let (back, kept) = instance.refused_routes.drain().partition(|route| &*route.destination == destination);
            instance.refused_routes = kept;
            told.extend(instance.monitor.clone().map(|monitor| (monitor, back)));
        }
        drop(state);
        self.shared.changed.notify_all();
        for (monitor, routes) in told {
            routes.iter().for_each(|route| monitor.route_up(route));
        }
    }

    /// Rejects for good every message whose payload contains `marker`, which must not be empty.
    pub fn reject_message(&self, marker: impl Into<Bytes>) {
        let marker = marker.into();
        self.change(|state| state.rejected_markers.push(marker));
    }

    /// Ends what [`reject_message`](Self::reject_message) with this marker began.
    pub fn accept_message(&self, marker: impl AsRef<[u8]>) {
        self.change(|state| state.rejected_markers.retain(|known| known != marker.as_ref()));
    }

    /// Gives destinations this many partitions (at least one), from now on.
    pub fn partitions(&self, count: i32) {
        self.change(|state| state.partitions = count.max(1));
    }

    /// How long messages are owned before they are appended. Zero at first.
    pub fn latency(&self, latency: Duration) {
        self.change(|state| state.latency = latency);
    }

    /// How many messages a transport takes over at a time; what is beyond is refused. Without limit at first.
    pub fn capacity(&self, messages: usize) {
        self.change(|state| state.capacity = messages);
    }

    /// Everything appended so far, duplicates included, in the order of appending.
    pub fn delivered(&self) -> Vec<Delivered> {
        self.shared.lock().log.clone()
    }

    /// From here on what is appended goes to `sink` instead of being kept, before it is reported: to a file that
    /// outlives the process, say. It is called with the broker locked, so it must not call the broker.
    pub fn append_to(&self, sink: impl FnMut(Delivered) + Send + 'static) {
        self.change(|state| state.sink = Some(Box::new(sink)));
    }

    /// How many messages the transports own at the moment and have not been decided on.
    pub fn owned(&self) -> usize {
        self.shared.lock().instances.values().map(Instance::owned).sum()
    }

    /// Waits until at least `count` messages were appended; false if that took longer than `timeout`.
    pub fn wait_for(&self, count: usize, timeout: Duration) -> bool {
        self.wait_until(timeout, |state| state.log.len() >= count)
    }

    /// Waits until the transports own at least `count` messages; false if that took longer than `timeout`.
    pub fn wait_for_owned(&self, count: usize, timeout: Duration) -> bool {
        self.wait_until(timeout, |state| state.instances.values().map(Instance::owned).sum::<usize>() >= count)
    }

    fn wait_until(&self, timeout: Duration, mut done: impl FnMut(&State) -> bool) -> bool {
        let state = self.shared.lock();
        let waited = self.shared.changed.wait_timeout_while(state, timeout, |state| !done(state));
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) {
        change(&mut self.shared.lock());
        self.shared.changed.notify_all();
    }

    fn announce(&self, change: impl FnOnce(&mut State)) {
        let _announcing = lock(&self.shared.announcing);
        self.change(change);
        let state = self.shared.lock();
        let down = state.down.clone();
        let monitors: Vec<_> = state.instances.values().filter_map(|instance| instance.monitor.clone()).collect();
        drop(state);
        monitors.iter().for_each(|monitor| tell(monitor, down.clone()));
    }
}

impl fmt::Debug for Broker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.shared.lock();
        f.debug_struct("Broker").field("down", &state.down).field("delivered", &state.log.len()).finish_non_exhaustive()
    }
}

fn tell(monitor: &Monitor, down: Option<Arc<Failure>>) {
    match down {
        None => monitor.up(),
        Some(failure) => monitor.down(failure),
    }
}

/// What a panicking test leaves behind is whole: every change is made by one statement under the lock.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
