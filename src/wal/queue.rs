//! What waits to be written: encoded records in groups, settlements, and who wants to know.
//!
//! One mutex guards it, held for an encoding at a time and never across a call to the disk.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Instant;

use super::error::WalError;
use super::frame::FRAME_HEADER;
use super::record::{self, RECORD_HEADER};
use super::routes::Routes;
use super::{EntryRef, Lsn, Pending, Settled, control, settlements};
use crate::message::{Outgoing, Route};

/// Told what became of an append.
type Callback = Box<dyn FnOnce(Result<Lsn, Arc<WalError>>) + Send>;

/// Answers whoever appended, once, whatever becomes of the log's thread: should it panic, it drops what it has in hand.
pub(super) struct Done(Option<Callback>);

impl Done {
    pub fn new(callback: impl FnOnce(Result<Lsn, Arc<WalError>>) + Send + 'static) -> Self {
        Self(Some(Box::new(callback)))
    }

    /// A callback that panics is its owner's bug; it does not take the log down.
    pub fn call(mut self, outcome: Result<Lsn, Arc<WalError>>) {
        self.answer(outcome);
    }

    fn answer(&mut self, outcome: Result<Lsn, Arc<WalError>>) {
        let Some(callback) = self.0.take() else { return };
        let called = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| callback(outcome)));
        if called.is_err() {
            tracing::error!("a callback of an append panicked");
        }
    }
}

impl Drop for Done {
    fn drop(&mut self) {
        self.answer(Err(Arc::new(WalError::Panicked)));
    }
}

pub(super) struct Item {
    length: u32,
    /// Which of its group's routes.
    route: u32,
    /// The message's [`Message::size`](crate::Message::size).
    size: u64,
    timestamp: i64,
    done: Done,
}

/// Records that go into one frame.
pub(super) struct Group {
    /// Room for the frame's header, then the records: those with an LSN first, then `controls`.
    pub frame: Vec<u8>,
    pub first_lsn: Lsn,
    pub time: i64,
    pub items: Vec<Item>,
    pub controls: Vec<Settled>,
    /// Those of its messages, and perhaps some more, numbered.
    pub routes: Arc<HashMap<Route, u32>>,
}

impl Group {
    pub fn new(first_lsn: Lsn) -> Self {
        let frame = vec![0; FRAME_HEADER];
        Self { frame, first_lsn, time: 0, items: Vec::new(), controls: Vec::new(), routes: Arc::default() }
    }

    /// Records with an LSN.
    pub fn count(&self) -> u32 {
        self.items.len() as u32
    }

    pub fn next_lsn(&self) -> Lsn {
        self.first_lsn + self.items.len() as u64
    }

    pub fn has_messages(&self) -> bool {
        !self.items.is_empty()
    }

    pub fn length(&self) -> u64 {
        self.frame.len() as u64
    }

    /// What a frame with the first record alone would take.
    pub fn least(&self) -> u64 {
        (FRAME_HEADER + self.items.first().map_or(0, |item| item.length as usize)) as u64
    }

    /// The number of a route, which is given one if it has none.
    fn number(&mut self, route: &Route) -> u32 {
        if let Some(number) = self.routes.get(route) {
            return *number;
        }
        let number = self.routes.len() as u32;
        Arc::make_mut(&mut self.routes).insert(route.clone(), number);
        number
    }

    /// Adds a settlement behind the records.
    pub fn add_control(&mut self, settled: Settled) {
        control::encode_settled(&mut self.frame, &settled);
        self.controls.push(settled);
    }

    /// Leaves as many records as fit into a frame of so many bytes, and returns the rest. There are no controls yet.
    pub fn split(&mut self, bytes: u64) -> Option<Self> {
        let mut end = FRAME_HEADER;
        let fitting = self.items.iter().take_while(|item| {
            end += item.length as usize;
            end as u64 <= bytes
        });
        let kept = fitting.count();
        if kept == self.items.len() {
            return None;
        }
        let items = self.items.split_off(kept);
        let cut = FRAME_HEADER + self.items.iter().map(|item| item.length as usize).sum::<usize>();
        let mut rest = Self::new(self.first_lsn + kept as u64);
        rest.routes = Arc::clone(&self.routes);
        rest.frame.extend_from_slice(&self.frame[cut..]);
        rest.time = items.first().map_or(0, |item| item.timestamp);
        rest.items = items;
        self.frame.truncate(cut);
        Some(rest)
    }

    /// What its messages add to each route.
    pub fn arrived(&self) -> BTreeMap<Route, Pending> {
        let mut arrived = vec![Pending::default(); self.routes.len()];
        for item in &self.items {
            arrived[item.route as usize].add(item.timestamp, item.size);
        }
        let of = |(route, number): (&Route, &u32)| (route.clone(), arrived[*number as usize]);
        self.routes.iter().map(of).filter(|(_, more)| more.count > 0).collect()
    }

    /// Tells everybody.
    pub fn finish(self, outcome: Result<(), &Arc<WalError>>) {
        for (lsn, item) in (self.first_lsn..).zip(self.items) {
            item.done.call(outcome.map(|()| lsn).map_err(Arc::clone));
        }
    }

    pub fn take_controls(&mut self) -> Vec<Settled> {
        std::mem::take(&mut self.controls)
    }

    /// The acknowledgements, without the bytes.
    pub fn into_parts(self) -> (Vec<u8>, Self) {
        let mut group = self;
        (std::mem::take(&mut group.frame), group)
    }
}

/// Somebody waits until all that was submitted before is durable.
pub(super) struct Barrier {
    /// Every LSN below it has been dealt with, and …
    pub lsn: Lsn,
    /// … every settlement up to this one.
    pub settlements: u64,
    /// Something could not be written meanwhile: then settlements are not waited for.
    pub failed: Option<Arc<WalError>>,
    pub told: Sender<Result<(), Arc<WalError>>>,
}

impl Barrier {
    /// Whether all of it has been dealt with, if that is so of everything below `next_lsn` and of so many settlements.
    pub fn is_reached(&self, next_lsn: Lsn, settlements: u64) -> bool {
        self.lsn <= next_lsn && (self.failed.is_some() || self.settlements <= settlements)
    }
}

/// See the module.
pub(super) struct Queue {
    pub next_lsn: Lsn,
    pub groups: VecDeque<Group>,
    /// Bytes of the last group that was taken: the next will be about as long, and need not grow to it step by step.
    pub expected: usize,
    /// Settlements that may have been written to a segment that failed, before those in `controls`: one is logged again as
    /// it was, with nothing added, because by its first LSN it is known that it was logged twice.
    pub again: VecDeque<Settled>,
    pub controls: VecDeque<Settled>,
    /// Settlements that would make more ranges than there may be; not merged with others.
    pub deferred: Vec<Settled>,
    pub controls_since: Option<Instant>,
    /// LSNs whose settlements were taken out to be written and are not: a kill would undo them like those still here.
    pub in_hand: usize,
    /// Settlements ever submitted.
    pub submitted: u64,
    pub rejected: Vec<(Done, WalError)>,
    pub routes: Routes,
    /// Routes of the group that was taken last.
    pub on_their_way: Arc<HashMap<Route, u32>>,
    pub barriers: Vec<Barrier>,
    pub closing: bool,
    /// Stop at once, write nothing more.
    pub abandoned: bool,
    pub closed: bool,
    /// Something arrived that the committer has not looked at.
    pub wake: bool,
}

impl Queue {
    pub fn new(next_lsn: Lsn, routes: Routes) -> Self {
        Self {
            next_lsn,
            routes,
            on_their_way: Arc::default(),
            groups: VecDeque::new(),
            expected: 0,
            again: VecDeque::new(),
            controls: VecDeque::new(),
            deferred: Vec::new(),
            controls_since: None,
            in_hand: 0,
            submitted: 0,
            rejected: Vec::new(),
            barriers: Vec::new(),
            closing: false,
            abandoned: false,
            closed: false,
            wake: false,
        }
    }

    pub fn bytes(&self) -> usize {
        self.groups.iter().map(|group| group.frame.len()).sum()
    }

    /// LSNs whose settlements are not written.
    pub fn settlements(&self) -> usize {
        self.writable_settlements() + self.deferred.iter().map(Settled::lsns).sum::<usize>()
    }

    /// Those of them that wait for nothing but the disk.
    pub fn writable_settlements(&self) -> usize {
        self.in_hand + self.again.iter().chain(&self.controls).map(Settled::lsns).sum::<usize>()
    }

    /// Encodes a record into the last group, or into a new one if that would grow beyond `frame_bytes`.
    pub fn push(&mut self, entry: EntryRef<'_>, frame_bytes: u32, done: Done) -> Result<Lsn, (Done, WalError)> {
        let bound = record::encoded_bound(entry);
        let full = |group: &Group| group.has_messages() && group.length() + bound > u64::from(frame_bytes);
        if self.groups.back().is_none_or(full) {
            let mut group = Group::new(self.next_lsn);
            group.frame.reserve(self.expected);
            self.groups.push_back(group);
        }
        let lsn = self.next_lsn;
        let Some(group) = self.groups.back_mut() else { return Err((done, WalError::Closed)) };
        let before = group.frame.len();
        if let Err(error) = record::encode(&mut group.frame, entry) {
            tracing::error!(%error, "a message could not be encoded");
            return Err((done, WalError::TooLarge { bytes: bound, limit: 0 }));
        }
        let length = group.frame.len() - before;
        debug_assert!(length as u64 <= bound && length >= RECORD_HEADER);
        let outgoing = outgoing(entry);
        let (timestamp, size) = (outgoing.timestamp, outgoing.message.size() as u64);
        if !group.has_messages() {
            group.time = timestamp;
        }
        let route = group.number(&outgoing.route);
        group.items.push(Item { length: length as u32, route, size, timestamp, done });
        self.next_lsn += 1;
        Ok(lsn)
    }

    /// Whether a message of this route may be pending beside all that is; `pending` tells the routes of what is in the log.
    pub fn admit(&mut self, entry: EntryRef<'_>, pending: impl FnOnce() -> HashSet<Route>) -> Result<(), WalError> {
        let Self { routes, groups, on_their_way, .. } = self;
        let others = || {
            let mut all = pending();
            all.extend(groups.iter().flat_map(|group| group.routes.keys()).chain(on_their_way.keys()).cloned());
            all
        };
        let limit = routes.most();
        routes.admit(&outgoing(entry).route, others).map_err(|bytes| WalError::Crowded { bytes, limit })
    }

    /// Adds settlements, merged with the last ones if their mark is the same.
    pub fn settle(&mut self, settled: Settled, now: Instant) {
        self.submitted += 1;
        self.controls_since.get_or_insert(now);
        for part in settlements::parts(settled) {
            match self.controls.back_mut() {
                Some(last) if last.mark == part.mark && settlements::mergeable(last, &part) => {
                    settlements::merge(last, part)
                }
                _ => self.controls.push_back(part),
            }
        }
    }

    /// Puts settlements back that were not written after all.
    pub fn put_back(&mut self, controls: Vec<Settled>, now: Instant) {
        if !controls.is_empty() {
            self.controls_since.get_or_insert(now);
        }
        for settled in controls.into_iter().rev() {
            self.again.push_front(settled);
        }
    }
}

fn outgoing(entry: EntryRef<'_>) -> &Outgoing {
    match entry {
        EntryRef::Message(outgoing) => outgoing,
        EntryRef::Dead(dead) => &dead.outgoing,
    }
}
