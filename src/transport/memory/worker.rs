//! One producer's way to the broker in memory: its queue, and the thread that decides and reports.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::{Instance, Shared, State, lock, tell};
use crate::message::{Lane, Outgoing};
use crate::transport::fence::{self, Verdict};
use crate::transport::{Class, Failure, Handover, Monitor, Outcome, Refused, Scope, StartError, Transport};

/// One producer's connection to a [`Broker`].
pub(super) struct MemoryTransport {
    shared: Arc<Shared>,
    number: u64,
    worker: Mutex<Option<JoinHandle<()>>>,
}

impl MemoryTransport {
    pub(super) fn new(shared: Arc<Shared>, number: u64) -> Self {
        Self { shared, number, worker: Mutex::new(None) }
    }
}

impl Transport for MemoryTransport {
    fn start(&self, monitor: Monitor) -> Result<(), StartError> {
        let instance = Instance { monitor: Some(monitor), ..Instance::default() };
        self.shared.lock().instances.insert(self.number, instance);
        let (shared, number) = (self.shared.clone(), self.number);
        let worker = thread::Builder::new()
            .name("outlast-memory".to_owned())
            .spawn(move || shared.work(number))
            .map_err(|error| StartError(format!("no thread for the broker in memory: {error}")))?;
        *lock(&self.worker) = Some(worker);
        Ok(())
    }

    fn partition(&self, message: &Outgoing) -> Option<i32> {
        Some(self.shared.lock().partition_of(message))
    }

    fn submit(&self, handover: Handover) -> Result<(), Refused> {
        let mut state = self.shared.lock();
        if let Some(failure) = state.down.clone() {
            return Err(Refused { handover, failure });
        }
        let capacity = state.capacity;
        match state.instances.get_mut(&self.number) {
            Some(instance) if instance.closing.is_none() && instance.queue.len() < capacity => {
                instance.queue.push_back(handover);
                drop(state);
                self.shared.changed.notify_all();
                Ok(())
            }
            found => {
                let why = if found.is_some_and(|instance| instance.closing.is_none()) { "full" } else { "closed" };
                let failure = Failure::new(Class::Transient, Scope::Transport, format!("the transport is {why}"));
                Err(Refused { handover, failure: Arc::new(failure) })
            }
        }
    }

    fn hand_back(&self) {
        self.shared
            .lock()
            .instances
            .get_mut(&self.number)
            .into_iter()
            .for_each(|instance| instance.handing_back = true);
        self.shared.changed.notify_all();
    }

    fn close(&self, grace: Duration) {
        self.shared.stop(self.number, grace);
        let worker = lock(&self.worker).take();
        if let Some(worker) = worker.filter(|worker| worker.thread().id() != thread::current().id()) {
            // A worker that panicked (in somebody's recipient) has dropped its tickets, which reported.
            let _ = worker.join();
        }
    }
}

impl Drop for MemoryTransport {
    fn drop(&mut self) {
        self.shared.stop(self.number, Duration::ZERO);
    }
}

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn stop(&self, number: u64, grace: Duration) {
        let deadline = Instant::now() + grace;
        if let Some(instance) = self.lock().instances.get_mut(&number) {
            instance.closing = Some(instance.closing.map_or(deadline, |earlier| earlier.min(deadline)));
        }
        self.changed.notify_all();
    }

    /// The life of an instance's worker.
    fn work(&self, number: u64) {
        {
            let _announcing = lock(&self.announcing);
            let state = self.lock();
            let (monitor, down) = (state.instances.get(&number).and_then(|i| i.monitor.clone()), state.down.clone());
            drop(state);
            monitor.inspect(|monitor| tell(monitor, down));
        }
        while let Some(verdicts) = self.next_verdicts(number) {
            self.changed.notify_all();
            fence::report(verdicts, |lanes| self.sweep(number, lanes));
        }
    }

    /// Waits for something to decide and decides it; `None` when the instance has ended.
    fn next_verdicts(&self, number: u64) -> Option<Vec<Verdict>> {
        let mut state = self.lock();
        let mut due = None;
        loop {
            let (down, paused, latency) = (state.down.clone(), state.paused, state.latency);
            let instance = state.instances.get_mut(&number)?;
            let mut wait_until = instance.closing;
            if instance.owned() == 0 {
                if instance.closing.is_some() {
                    state.instances.remove(&number);
                    return None;
                }
            } else if let Some(failure) = down {
                return Some(instance.fail_all(&failure));
            } else if std::mem::take(&mut instance.handing_back) {
                let failure = Failure::new(Class::Fatal, Scope::Transport, "handed back, because too much of it hangs");
                return Some(instance.fail_all(&Arc::new(failure)));
            } else if instance.closing.is_some_and(|deadline| deadline <= Instant::now()) {
                let failure = Failure::new(Class::Transient, Scope::Transport, "the producer was closed");
                return Some(instance.fail_all(&Arc::new(failure)));
            } else if !paused && !instance.queue.is_empty() {
                let due = *due.get_or_insert_with(|| Instant::now() + latency);
                if due <= Instant::now() {
                    return Some(state.decide(number));
                }
                wait_until = Some(wait_until.map_or(due, |closing| closing.min(due)));
            }
            state = match wait_until {
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(until) => {
                    let left = until.saturating_duration_since(Instant::now());
                    self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    fn sweep(&self, number: u64, lanes: &HashSet<Lane>) -> Vec<Handover> {
        let mut state = self.lock();
        let Some(instance) = state.instances.get_mut(&number) else { return Vec::new() };
        let concerned = |handover: &Handover| handover.message.lane.is_some_and(|lane| lanes.contains(&lane));
        let (mut swept, kept): (Vec<_>, _) = instance.hung.drain(..).partition(concerned);
        instance.hung = kept.into();
        let (more, kept): (Vec<_>, Vec<_>) = instance.queue.drain(..).partition(concerned);
        instance.queue = kept.into();
        swept.extend(more);
        swept
    }
}

impl Instance {
    pub(super) fn owned(&self) -> usize {
        self.hung.len() + self.queue.len()
    }

    fn fail_all(&mut self, failure: &Arc<Failure>) -> Vec<Verdict> {
        let failed = || Outcome::Failed { failure: failure.clone(), possibly_delivered: false };
        self.hung.drain(..).chain(self.queue.drain(..)).map(|handover| (handover, failed())).collect()
    }
}
