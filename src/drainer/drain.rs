//! The drainer's tick: bounded, synchronous, told the time.
//!
//! It may assume that it alone hands stored messages to its transport, and that the dispatcher keeps what happens
//! under a slot's lock in order. It refuses to hand over a message while an earlier one of its lane is stored and
//! owned by nobody: what failed comes first, then what was passed over, then what is new; and what falls under a
//! block, until that is gone, is passed over.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::catchup::{CatchUp, CatchUpError, Skipped, Unindexed, lane_or_own};
use super::dispatcher::{Again, Attempt, Dispatcher};
use super::mailbox::Mail;
use crate::config::OnPoison;
use crate::message::Outgoing;
use crate::outbox::ledger::{EntryRow, ParkedKey, ParkedRow};
use crate::outbox::{Scan, ScanError, Scanned};
use crate::schedule::{Backoff, BlockKey, BlockState, Blocks, Pacer, Rate};
use crate::transport::Failure;
use crate::wal::{Entry, Lsn, Place};

/// Messages looked at in a tick, of each kind.
const BATCH: usize = 512;
/// How long after the log could not be read it is tried again.
const READ_RETRY: Duration = Duration::from_secs(1);
/// How long after it is looked again whether settlements were written.
const RECORD_RETRY: Duration = Duration::from_millis(20);
/// How long after the transport had no room for a probe it is tried again.
const PROBE_RETRY: Duration = Duration::from_millis(50);
/// How long what a blocked transport or partition owns is waited for, before it is looked again.
const OWNED_RETRY: Duration = Duration::from_secs(1);
/// Rows the ledger holds at a time; what is skipped beyond is read back from the log. sled keeps some 50 to 100 bytes
/// of memory a row, whatever its cache is set to.
const INDEXED: u64 = 100_000;
/// A run of the log that the ledger knows the place of.
const RUN_BYTES: u64 = 64 << 10;
/// What reading one message by its place costs, in bytes of reading the log in order.
const PLACE_COST: u64 = 64 << 10;

/// What the drainer is told about its work.
#[derive(Clone)]
pub struct DrainOptions {
    /// Pace of attempts.
    pub backoff: Backoff,
    /// Messages it may have in flight.
    pub window: usize,
    /// In flight, plus delivered and not recorded.
    pub redelivery_window: usize,
    /// Attempts after which a message is dead.
    pub max_attempts: Option<u32>,
    /// Messages a second.
    pub rate: Option<NonZeroU32>,
    /// Single lanes kept blocked apart.
    pub most_lanes: usize,
    /// What happens to poison, by destination.
    pub on_poison: Arc<dyn Fn(&str) -> OnPoison + Send + Sync>,
    /// For the jitter.
    pub seed: u64,
}

/// A stored message that failed and waits to be handed over again.
pub(super) struct Back {
    pub message: Arc<Outgoing>,
}

/// What a tick leaves to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// There is more: call again.
    More,
    /// Nothing before somebody rings, or before then.
    Idle(Option<Instant>),
}

/// The drainer of one transport.
pub struct Drain {
    pub(super) dispatcher: Arc<Dispatcher>,
    pub(super) options: DrainOptions,
    pub(super) blocks: Blocks,
    pub(super) pacer: Pacer,
    pub(super) rng: fastrand::Rng,
    pub(super) down: Option<Arc<Failure>>,
    pub(super) returned: BTreeMap<Lsn, Back>,
    pub(super) probes: HashMap<Lsn, BlockKey>,
    pub(super) earlier: HashMap<(u64, u128), u32>,
    pub(super) cursor: Lsn,
    pub(super) transport_attempts: u32,
    pub(super) view_changed: bool,
    catch_ups: HashMap<BlockKey, CatchUp>,
    unindexed: Unindexed,
    rows: u64,
    ledger_generation: u64,
    rate: Option<Rate>,
    scan: Scan,
    frame: VecDeque<(Lsn, Place, Arc<Outgoing>)>,
    run: u64,
    backlog_end: Lsn,
    backlog: bool,
    read_error: Option<(ScanError, Instant)>,
    mail: Vec<Mail>,
}

/// Why the stages of a tick stop.
pub(super) enum Halt {
    /// There is no room, or nothing may be handed over now; a ring changes that.
    Wait,
    /// Until then.
    Until(Instant),
}

impl Drain {
    /// A drainer that begins with the first pending message.
    pub fn new(dispatcher: Arc<Dispatcher>, options: DrainOptions) -> Self {
        let outbox = Arc::clone(dispatcher.outbox());
        let first = outbox.first_pending();
        let backlog_end = outbox.found().last_lsn;
        Self {
            blocks: Blocks::new(options.backoff, options.most_lanes),
            pacer: Pacer::new(options.window),
            rng: fastrand::Rng::with_seed(options.seed),
            rate: options.rate.map(|rate| Rate::new(rate, Instant::now())),
            down: None,
            returned: BTreeMap::new(),
            probes: HashMap::new(),
            earlier: HashMap::new(),
            cursor: first,
            transport_attempts: 0,
            view_changed: false,
            catch_ups: HashMap::new(),
            unindexed: Unindexed::default(),
            rows: 0,
            ledger_generation: outbox.ledger().generation(),
            scan: outbox.scan(first),
            frame: VecDeque::new(),
            run: RUN_BYTES,
            backlog_end,
            backlog: true,
            read_error: None,
            mail: Vec::new(),
            dispatcher,
            options,
        }
    }

    /// Takes over what the ledger remembers of attempts before the restart.
    pub fn remember(&mut self) {
        let rows = self.dispatcher.outbox().ledger().lanes(self.options.most_lanes);
        let rows = rows.unwrap_or_default();
        self.earlier = rows.into_iter().map(|(key, row)| ((key.route, key.lane), row.attempts)).collect();
        if self.cursor > self.backlog_end {
            // Nothing is pending: there is nothing to walk first, broker or none.
            self.end_backlog();
        }
    }

    /// Why the log cannot be read, if it cannot.
    pub fn read_error(&self) -> Option<&ScanError> {
        self.read_error.as_ref().map(|(error, _)| error)
    }

    /// Reads its mail and hands over what it may. `None`: it was asked to end.
    pub fn tick(&mut self, now: Instant) -> Option<Progress> {
        let mut mail = std::mem::take(&mut self.mail);
        if !self.dispatcher.mailbox().take(&mut mail) {
            return None;
        }
        for item in mail.drain(..) {
            self.read(item, now);
        }
        self.mail = mail;
        self.follow_ledger();
        let progress = match self.hand_over(now) {
            Ok(true) => Progress::More,
            Ok(false) => Progress::Idle(self.next_wake()),
            Err(Halt::Wait) => Progress::Idle(self.next_wake()),
            Err(Halt::Until(at)) => Progress::Idle(Some(self.next_wake().map_or(at, |wake| wake.min(at)))),
        };
        self.dispatcher.outbox().flush_settlements();
        Some(progress)
    }

    /// The stages, in the order that keeps lanes in order. True: there is more.
    fn hand_over(&mut self, now: Instant) -> Result<bool, Halt> {
        if self.down.is_some() || self.is_waiting() && !self.transport_due(now) {
            return Ok(false);
        }
        self.hand_over_returned(now)?;
        self.probe(now)?;
        let caught = self.catch_up(now)?;
        let passed = self.pass(now)?;
        Ok(caught || passed)
    }

    fn is_waiting(&self) -> bool {
        matches!(self.blocks.get(BlockKey::Transport).map(|block| block.state), Some(BlockState::Waiting(_)))
    }

    /// Whether a transport that failed may be tried with one message now.
    fn transport_due(&mut self, now: Instant) -> bool {
        let Some(BlockState::Waiting(at)) = self.blocks.get(BlockKey::Transport).map(|block| block.state) else {
            return true;
        };
        if at > now {
            return false;
        }
        if self.dispatcher.in_flight().0 > 0 {
            // What it owns is the probe.
            self.blocks.set_state(BlockKey::Transport, BlockState::Waiting(now + OWNED_RETRY));
            return false;
        }
        self.pacer.failed();
        self.blocks.set_state(BlockKey::Transport, BlockState::Probing(0));
        true
    }

    fn hand_over_returned(&mut self, now: Instant) -> Result<(), Halt> {
        while let Some((&lsn, back)) = self.returned.first_key_value() {
            let message = Arc::clone(&back.message);
            if self.dispatcher.outbox().is_settled(lsn) {
                self.dispatcher.uncount(&message);
            } else if let Some(key) = self.block_of(&message, lsn) {
                self.park(key, lsn, None, &message);
            } else {
                self.offer(&Again { lsn, message, counted: true, alone: false }, now)?;
            }
            self.returned.remove(&lsn);
        }
        Ok(())
    }

    /// Tries one message of each block whose time has come.
    fn probe(&mut self, now: Instant) -> Result<(), Halt> {
        for _ in 0..BATCH {
            let Some(key) = self.blocks.due(now) else { return Ok(()) };
            if let BlockKey::Partition(route, partition) = key
                && self.dispatcher.owned_of_partition(route, partition) > 0
            {
                self.blocks.set_state(key, BlockState::Waiting(now + OWNED_RETRY));
                continue;
            }
            self.catch_ups.remove(&key);
            let Some(skipped) = self.next_skipped(key, now)? else {
                self.lift(key);
                continue;
            };
            let alone = self.blocks.get(key).is_some_and(|block| block.alone);
            let (lsn, row) = (skipped.lsn, skipped.row);
            let again = Again { lsn, message: Arc::new(skipped.message), counted: true, alone };
            match self.offer(&again, now) {
                Ok(()) => {
                    self.forget_row(row);
                    self.blocks.resumed(key);
                    self.blocks.set_state(key, BlockState::Probing(lsn));
                    self.probes.insert(lsn, key);
                }
                Err(Halt::Wait) => {
                    self.blocks.set_state(key, BlockState::Waiting(now + PROBE_RETRY));
                }
                Err(halt) => return Err(halt),
            }
        }
        Ok(())
    }

    /// Delivers what was passed over because of blocks that are gone. True: there is more.
    fn catch_up(&mut self, now: Instant) -> Result<bool, Halt> {
        let keys: Vec<BlockKey> = self.blocks.catching_up().take(BATCH).collect();
        let each = (BATCH / keys.len().max(1)).max(1);
        let mut more = false;
        for key in keys {
            for turn in 0..=each {
                if turn == each {
                    more = true;
                    break;
                }
                let Some(skipped) = self.next_skipped(key, now)? else {
                    self.end_pass(key);
                    break;
                };
                if let Some(other) = self.other_block(key, &skipped) {
                    // It waits for something narrower, or wider, from now on.
                    self.blocks.resumed(key);
                    if skipped.row.is_none() {
                        self.unindexed.add(other);
                    }
                    self.note_skipped(other, skipped.lsn);
                    continue;
                }
                let Skipped { lsn, message, row } = skipped;
                let again = Again { lsn, message: Arc::new(message), counted: true, alone: false };
                if let Err(halt) = self.offer(&again, now) {
                    let message = Arc::unwrap_or_clone(again.message);
                    if let Some(pass) = self.catch_ups.get_mut(&key) {
                        pass.put_back(Skipped { lsn, message, row });
                    }
                    return Err(halt);
                }
                self.forget_row(row);
                self.blocks.resumed(key);
            }
        }
        Ok(more)
    }

    /// Reads on in the log and hands over what is new. True: there is more.
    fn pass(&mut self, now: Instant) -> Result<bool, Halt> {
        for _ in 0..BATCH {
            if self.frame.is_empty() && !self.read_frame(now)? {
                self.end_backlog();
                return Ok(false);
            }
            let Some((lsn, place, message)) = self.frame.front().cloned() else { continue };
            let mine = message.route.transport == *self.dispatcher.name();
            if mine && !self.dispatcher.is_owned(lsn) && !self.dispatcher.outbox().is_settled(lsn) {
                let counted = lsn > self.backlog_end;
                if let Some(key) = self.block_of(&message, lsn) {
                    if !counted {
                        self.dispatcher.passed_over(&message);
                    }
                    self.park(key, lsn, Some(place), &message);
                } else {
                    self.offer(&Again { lsn, message, counted, alone: false }, now)?;
                }
            }
            self.frame.pop_front();
            self.cursor = lsn + 1;
            if self.backlog && self.cursor > self.backlog_end {
                self.end_backlog();
            }
        }
        Ok(true)
    }

    fn end_backlog(&mut self) {
        if std::mem::take(&mut self.backlog) {
            self.dispatcher.gate().backlog_passed();
            // What the ledger forgot before this start has been walked, and so is known again.
            self.dispatcher.outbox().ledger().rebuilt(self.ledger_generation);
        }
    }

    /// Reads the next frame. False: everything durable was read.
    fn read_frame(&mut self, now: Instant) -> Result<bool, Halt> {
        if let Some((_, at)) = self.read_error
            && at > now
        {
            return Err(Halt::Until(at));
        }
        let outbox = Arc::clone(self.dispatcher.outbox());
        if outbox.too_scattered() {
            return Err(Halt::Until(now + READ_RETRY));
        }
        match self.scan.advance(|lsn| outbox.hint(lsn)) {
            Ok(Scanned::Frame { place, bytes, time, records }) => {
                self.read_error = None;
                if let (true, Some(first)) = (self.run >= RUN_BYTES, records.first()) {
                    self.run = 0;
                    let count = u32::try_from(records.len()).unwrap_or(u32::MAX);
                    let row = EntryRow { segment: place.segment, offset: place.offset, count, bytes, time };
                    outbox.ledger().entry(first.lsn, row);
                }
                self.run += bytes;
                self.frame.extend(records.into_iter().filter_map(|record| match record.body {
                    Entry::Message(message) => Some((record.lsn, record.place, Arc::new(message))),
                    Entry::Dead(_) => None,
                }));
                Ok(true)
            }
            Ok(Scanned::Damaged(damage)) => {
                outbox.set_aside(&damage);
                self.cursor = self.cursor.max(damage.last_lsn + 1);
                self.dispatcher.tell(crate::stats::Event::SetAside {
                    first_lsn: damage.first_lsn,
                    last_lsn: damage.last_lsn,
                    reason: damage.reason,
                });
                Ok(true)
            }
            Ok(Scanned::End) => Ok(false),
            Err(error) => {
                tracing::warn!(%error, "the outbox cannot be read now; it is tried again");
                self.read_error = Some((error, now + READ_RETRY));
                Err(Halt::Until(now + READ_RETRY))
            }
        }
    }

    /// Offers a message to the transport.
    fn offer(&mut self, again: &Again, now: Instant) -> Result<(), Halt> {
        let (owned, drained) = self.dispatcher.in_flight();
        let probing = self.blocks.get(BlockKey::Transport).is_some();
        if self.pacer.room(drained) == 0 || probing && owned > 0 {
            return Err(Halt::Wait);
        }
        if drained + self.dispatcher.outbox().unrecorded() >= self.options.redelivery_window {
            self.dispatcher.outbox().flush_settlements();
            return Err(Halt::Until(now + RECORD_RETRY));
        }
        if let Some(rate) = &mut self.rate
            && rate.take(1, now) == 0
        {
            let wait = rate.wait(now);
            return Err(Halt::Until(now + wait));
        }
        let attempt = self.dispatcher.again(again);
        if !matches!(attempt, Attempt::Owned)
            && let Some(rate) = &mut self.rate
        {
            rate.give_back(1);
        }
        match attempt {
            Attempt::Owned => Ok(()),
            Attempt::NoRoom => Err(Halt::Wait),
            // Something of the lane failed: the mail says what, or will, and rings.
            Attempt::Later => Err(Halt::Wait),
            Attempt::Refused(failure) => {
                self.refused(again, &failure, now);
                Err(Halt::Until(now + PROBE_RETRY))
            }
        }
    }

    /// The block a message falls under.
    pub(super) fn block_of(&self, message: &Outgoing, lsn: Lsn) -> Option<BlockKey> {
        if self.blocks.is_empty() {
            return None;
        }
        let route = self.dispatcher.route_hash(&message.route);
        let partition = message.message.partition.or_else(|| self.dispatcher.transport().partition(message));
        self.blocks.find(route, partition, Some(lane_or_own(message, lsn)))
    }

    /// The block other than `key` that a skipped message falls under.
    fn other_block(&self, key: BlockKey, skipped: &Skipped) -> Option<BlockKey> {
        let route = self.dispatcher.route_hash(&skipped.message.route);
        let message = &skipped.message;
        let partition = message.message.partition.or_else(|| self.dispatcher.transport().partition(message));
        self.blocks.find_other(key, route, partition, Some(lane_or_own(message, skipped.lsn)))
    }

    /// Passes a message over.
    fn park(&mut self, key: BlockKey, lsn: Lsn, place: Option<Place>, message: &Outgoing) {
        let route = self.dispatcher.route_hash(&message.route);
        let row = ParkedKey { route, lane: lane_or_own(message, lsn).hash(), lsn };
        let place = place.unwrap_or(Place { segment: 0, offset: 0, index: 0 });
        let parked = ParkedRow { segment: place.segment, offset: place.offset, index: place.index, partition: -1 };
        let indexed = self.rows < INDEXED && !self.unindexed.contains(key);
        if indexed && self.dispatcher.outbox().ledger().park(row, parked) {
            self.rows += 1;
        } else {
            self.unindexed.add(key);
        }
        self.note_skipped(key, lsn);
    }

    fn note_skipped(&mut self, key: BlockKey, lsn: Lsn) {
        self.blocks.skipped(key, lsn);
        if let Some(pass) = self.catch_ups.get_mut(&key) {
            pass.dirty = true;
        }
        self.view_changed = true;
    }

    fn forget_row(&mut self, row: Option<ParkedKey>) {
        if let Some(row) = row {
            self.dispatcher.outbox().ledger().unpark(row);
            self.rows = self.rows.saturating_sub(1);
        }
    }

    /// The next message that was passed over because of `key` and may still have to be delivered.
    fn next_skipped(&mut self, key: BlockKey, now: Instant) -> Result<Option<Skipped>, Halt> {
        loop {
            let outbox = Arc::clone(self.dispatcher.outbox());
            let by_rows = self.by_rows(key);
            let first = self.blocks.get(key).and_then(|block| block.first_skipped).unwrap_or(self.cursor);
            let pass = self.catch_ups.entry(key).or_insert_with(|| CatchUp::new(&outbox, key, first, by_rows));
            match pass.next(&outbox, self.cursor) {
                Ok(Some(skipped)) if self.concerns(key, &skipped) => return Ok(Some(skipped)),
                Ok(Some(_)) => {}
                Ok(None) => return Ok(None),
                Err(CatchUpError::Ledger) => {
                    self.unindexed.add(key);
                    self.catch_ups.remove(&key);
                }
                Err(CatchUpError::Log(error)) => {
                    tracing::warn!(%error, "the outbox cannot be read now; it is tried again");
                    self.catch_ups.remove(&key);
                    self.read_error = Some((error, now + READ_RETRY));
                    return Err(Halt::Until(now + READ_RETRY));
                }
            }
        }
    }

    /// Whether a message that was read back is one that `key` holds up.
    fn concerns(&self, key: BlockKey, skipped: &Skipped) -> bool {
        let message = &skipped.message;
        let route = self.dispatcher.route_hash(&message.route);
        let in_scope = match key {
            BlockKey::Transport => false,
            BlockKey::Route(blocked) => blocked == route,
            BlockKey::Partition(blocked, partition) => {
                let current = || self.dispatcher.transport().partition(message);
                blocked == route && message.message.partition.or_else(current) == Some(partition)
            }
            BlockKey::Lane(blocked, lane) => blocked == route && lane == lane_or_own(message, skipped.lsn),
        };
        in_scope
            && message.route.transport == *self.dispatcher.name()
            && !self.dispatcher.outbox().is_settled(skipped.lsn)
            && !self.dispatcher.is_owned(skipped.lsn)
            && !self.returned.contains_key(&skipped.lsn)
    }

    /// Rows where the ledger has them all, and where they cost less than reading what lies between.
    fn by_rows(&self, key: BlockKey) -> bool {
        let Some(block) = self.blocks.get(key) else { return false };
        if self.unindexed.contains(key) {
            return false;
        }
        let span = self.cursor.saturating_sub(block.first_skipped.unwrap_or(self.cursor));
        match key {
            BlockKey::Lane(..) => true,
            // A message of the log is at least this many bytes, with its share of a frame.
            _ => block.waiting.saturating_mul(PLACE_COST) < span.saturating_mul(256),
        }
    }

    /// A pass over what was skipped has found nothing more: again, if something was skipped meanwhile.
    fn end_pass(&mut self, key: BlockKey) {
        let dirty = self.catch_ups.remove(&key).is_some_and(|pass| pass.dirty && !pass.reads_log());
        if !dirty {
            self.lift(key);
        }
    }

    /// Nothing waits for a block any more.
    pub(super) fn lift(&mut self, key: BlockKey) {
        self.catch_ups.remove(&key);
        self.unindexed.remove(key);
        if let Some(block) = self.blocks.remove(key) {
            tracing::info!(transport = %self.dispatcher.name(), route = %block.route, "delivery goes on");
        }
        self.dispatcher.gate().unblock(key);
        if let BlockKey::Lane(route, lane) = key {
            self.dispatcher.outbox().ledger().remove_lane(route, lane.hash());
        }
        self.view_changed = true;
    }

    /// Begins a pass anew: what it had read may have changed.
    pub(super) fn restart_pass(&mut self, key: BlockKey) {
        self.catch_ups.remove(&key);
    }

    /// The ledger lost rows: everything that was skipped is read back from the log.
    fn follow_ledger(&mut self) {
        let generation = self.dispatcher.outbox().ledger().generation();
        if generation == self.ledger_generation {
            return;
        }
        self.ledger_generation = generation;
        self.rows = 0;
        let keys: Vec<BlockKey> = self.blocks.iter().map(|(key, _)| key).collect();
        for key in keys {
            self.unindexed.add(key);
            self.catch_ups.remove(&key);
        }
        if !self.backlog {
            // Of what comes from here on it has every row; what came before is read from the log.
            self.dispatcher.outbox().ledger().rebuilt(generation);
        }
    }

    fn next_wake(&self) -> Option<Instant> {
        if self.down.is_some() {
            return None;
        }
        self.blocks.next_due()
    }

    /// Counts a dead letter.
    pub(super) fn count_dead(&self) {
        self.dispatcher.counters.dead.fetch_add(1, Ordering::Relaxed);
    }
}
