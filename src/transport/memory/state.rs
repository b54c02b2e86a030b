//! What the broker in memory knows, and how it decides: told by the tests, asked by the workers.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::Delivered;
use crate::message::{Body, Outgoing, Position, Route};
use crate::transport::fence::{self, Verdict};
use crate::transport::{Class, Failure, Handover, Monitor, Outcome, Scope};

/// Where a test wants what is appended.
type Sink = Box<dyn FnMut(Delivered) + Send>;

/// The broker's state, under its one lock.
pub(super) struct State {
    pub(super) down: Option<Arc<Failure>>,
    pub(super) paused: bool,
    pub(super) paused_partitions: HashSet<i32>,
    pub(super) latency: Duration,
    pub(super) capacity: usize,
    pub(super) partitions: i32,
    pub(super) replies_to_lose: usize,
    pub(super) rejected_destinations: HashMap<Arc<str>, Class>,
    pub(super) rejected_markers: Vec<Bytes>,
    pub(super) log: Vec<Delivered>,
    pub(super) sink: Option<Sink>,
    pub(super) next_offsets: HashMap<(Arc<str>, i32), i64>,
    pub(super) instances: HashMap<u64, Instance>,
    pub(super) next_instance: u64,
}

/// What one transport owns, and whom it tells.
#[derive(Default)]
pub(super) struct Instance {
    pub(super) queue: VecDeque<Handover>,
    /// Of partitions that hang, in order.
    pub(super) hung: VecDeque<Handover>,
    pub(super) monitor: Option<Monitor>,
    pub(super) refused_routes: HashSet<Route>,
    /// Everything is to be handed back.
    pub(super) handing_back: bool,
    /// Set by `close`: when what is still owned is to be reported as failed.
    pub(super) closing: Option<Instant>,
}

impl Default for State {
    fn default() -> Self {
        Self {
            down: None,
            paused: false,
            paused_partitions: HashSet::new(),
            latency: Duration::ZERO,
            capacity: usize::MAX,
            partitions: 1,
            replies_to_lose: 0,
            rejected_destinations: HashMap::new(),
            rejected_markers: Vec::new(),
            log: Vec::new(),
            sink: None,
            next_offsets: HashMap::new(),
            instances: HashMap::new(),
            next_instance: 0,
        }
    }
}

impl State {
    /// Decides on everything an instance owns, in order, and appends what is to be appended.
    pub(super) fn decide(&mut self, number: u64) -> Vec<Verdict> {
        let Some(instance) = self.instances.get_mut(&number) else { return Vec::new() };
        let queue = std::mem::take(&mut instance.queue);
        let mut closed = HashSet::new();
        let mut fatal: Option<Arc<Failure>> = None;
        let mut verdicts = Vec::with_capacity(queue.len());
        let mut hung = VecDeque::new();
        for handover in queue {
            let message = &handover.message;
            if self.paused_partitions.contains(&self.partition_of(message)) {
                hung.push_back(handover);
                continue;
            }
            let failed = |failure| Outcome::Failed { failure, possibly_delivered: false };
            let outcome = if let Some(failure) = &fatal {
                failed(failure.clone())
            } else if message.lane.is_some_and(|lane| closed.contains(&lane)) {
                failed(fence::behind())
            } else if let Some(failure) = self.rejection(message) {
                if failure.scope == Scope::Route {
                    let route = message.route.clone();
                    self.instances.get_mut(&number).map(|instance| instance.refused_routes.insert(route));
                }
                let failure = Arc::new(failure);
                fatal = (failure.class == Class::Fatal).then(|| failure.clone());
                failed(failure)
            } else {
                self.append(message)
            };
            if let (Outcome::Failed { .. }, Some(lane)) = (&outcome, message.lane) {
                closed.insert(lane);
            }
            verdicts.push((handover, outcome));
        }
        self.instances.get_mut(&number).into_iter().for_each(|instance| instance.hung.append(&mut hung));
        verdicts
    }

    fn rejection(&self, outgoing: &Outgoing) -> Option<Failure> {
        let destination = &outgoing.route.destination;
        if let Some(&class) = self.rejected_destinations.get(destination) {
            let scope = if class == Class::Fatal { Scope::Transport } else { Scope::Route };
            return Some(Failure::new(class, scope, format!("the broker refuses {destination:?} (the test said so)")));
        }
        if let Some(chosen) = outgoing.message.chosen_partition().filter(|p| !(0..self.partitions).contains(p)) {
            let reason = format!("{destination:?} has no partition {chosen}");
            return Some(Failure::new(Class::Hold, Scope::Partition(chosen), reason));
        }
        let payload = outgoing.message.payload_bytes()?;
        let marked = |marker: &Bytes| payload.windows(marker.len().max(1)).any(|window| window == marker);
        self.rejected_markers
            .iter()
            .any(marked)
            .then(|| Failure::new(Class::Permanent, Scope::Lane, "the broker refuses this payload (the test said so)"))
    }

    fn append(&mut self, outgoing: &Outgoing) -> Outcome {
        let partition = self.partition_of(outgoing);
        let destination = outgoing.route.destination.clone();
        let next = self.next_offsets.entry((destination.clone(), partition)).or_default();
        let offset = *next;
        *next += 1;
        let message = &outgoing.message;
        let delivered = Delivered {
            id: outgoing.id,
            destination,
            key: message.key_bytes().cloned(),
            payload: message.payload_bytes().cloned(),
            fields: if let Body::Fields(fields) = message.body() { fields.clone() } else { Vec::new() },
            headers: message.headers().to_vec(),
            timestamp: outgoing.timestamp,
            partition,
            offset,
        };
        match &mut self.sink {
            None => self.log.push(delivered),
            Some(sink) => sink(delivered),
        }
        if self.replies_to_lose > 0 {
            self.replies_to_lose -= 1;
            let failure = Failure::new(Class::Transient, Scope::Lane, "the reply was lost (the test said so)");
            return Outcome::Failed { failure: Arc::new(failure), possibly_delivered: true };
        }
        Outcome::Delivered(Position::Offset { partition, offset })
    }

    /// The partition chosen, or by the key's CRC, or by the id's: the same at each attempt.
    pub(super) fn partition_of(&self, outgoing: &Outgoing) -> i32 {
        if let Some(chosen) = outgoing.message.chosen_partition() {
            return chosen;
        }
        let hash = match outgoing.message.key_bytes() {
            Some(key) => crc32fast::hash(key),
            None => crc32fast::hash(&outgoing.id.to_bytes()),
        };
        (i64::from(hash) % i64::from(self.partitions)) as i32
    }
}
