//! The drainer's tick: bounded, synchronous, told the time.
//!
//! It may assume that it alone hands stored messages to its transport, and that the dispatcher keeps what happens
//! under a slot's lock in order. It refuses to hand over a message while an earlier one of its lane is stored and
//! owned by nobody: what failed comes first, then what was passed over, then what is new; and what falls under a
//! block, until that is gone, is passed over.

mod catchup;
mod gaps;
mod late;
mod news;
mod pass;
mod scope;
mod skip;

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, Instant};

use catchup::{CatchUp, Unindexed, lane_or_own};
use skip::PROBE_RETRY;

use super::dispatcher::{Again, Attempt, Dispatcher};
use super::mailbox::Mail;
use super::window::Full;
use crate::config::OnPoison;
use crate::message::{Lane, Outgoing, Route};
use crate::outbox::{Scan, ScanError};
use crate::schedule::{Backoff, BlockKey, BlockState, Blocks, Lines, Pacer, Rate};
use crate::transport::Failure;
use crate::wal::{Lsn, Place};

/// Messages looked at in a tick, of each kind.
const BATCH: usize = 512;
/// How long after the log could not be read it is tried again.
const READ_RETRY: Duration = Duration::from_secs(1);
/// How long after it is looked again whether settlements were written.
const RECORD_RETRY: Duration = Duration::from_millis(20);
/// How long what a blocked transport or partition owns is waited for, before it is looked again.
const OWNED_RETRY: Duration = Duration::from_secs(1);

/// A run of the log that the ledger knows the place of.
const RUN_BYTES: u64 = 64 << 10;

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
    /// The last error of each route since the view was published: a block may be gone before that.
    pub(super) said: HashMap<Route, Arc<str>>,
    /// What was written to the log about a block, until something of its scope is delivered: it may have been lifted
    /// meanwhile, because nothing waited for it yet.
    logged: HashMap<BlockKey, String>,
    lines: KindsOfLines,
    /// When it was last looked for partitions that are late.
    looked: Option<Instant>,
    /// Messages that blocked partitions own, and those of them that came from the log: they hold up nobody else.
    stuck: usize,
    stuck_drained: usize,
    /// Lanes of which a message came back and cannot be handed over yet: what comes later of them waits behind it.
    behind: HashSet<Lane>,
    handed_back: Option<Instant>,
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
    /// Why the log cannot be read on, and until when it is left alone.
    read_error: Option<(ScanError, Instant)>,
    /// Why what was passed over cannot be read, and until when its block waits.
    skipped_error: Option<(ScanError, Instant)>,
    mail: Vec<Mail>,
}

/// What is written to the log now and then, however often it happens.
#[derive(Default)]
struct KindsOfLines {
    failed: Lines,
    lifted: Lines,
    dead: Lines,
    unreadable: Lines,
}

/// Why the stages of a tick stop.
pub(super) enum Halt {
    /// There is no room, or nothing may be handed over now; a ring changes that.
    Wait,
    /// The partition of this message has no room; others may have.
    Partition,
    /// Settling this message would scatter the log's memory of what is settled beyond its bound; others may go.
    Scattered,
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
            said: HashMap::new(),
            logged: HashMap::new(),
            lines: KindsOfLines::default(),
            looked: None,
            stuck: 0,
            stuck_drained: 0,
            behind: HashSet::new(),
            handed_back: None,
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
            skipped_error: None,
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
        self.notice_late(now);
        self.read_again(now);
        let progress = match self.hand_over(now) {
            Ok(true) => Progress::More,
            Ok(false) | Err(Halt::Wait | Halt::Partition) => Progress::Idle(self.next_wake(now)),
            Err(Halt::Scattered) => self.idle_until(now + RECORD_RETRY, now),
            Err(Halt::Until(at)) => self.idle_until(at, now),
        };
        self.dispatcher.outbox().flush_settlements();
        Some(progress)
    }

    /// The stages, in the order that keeps lanes in order. True: there is more.
    fn hand_over(&mut self, now: Instant) -> Result<bool, Halt> {
        if self.down.is_some() {
            return Ok(false);
        }
        // Also while the transport waits: what hung partitions own may be all that it waits for.
        self.free_the_window(now);
        if self.is_waiting() && !self.transport_due(now) {
            return Ok(false);
        }
        let returned = self.hand_over_returned(now);
        self.close_gaps(now)?;
        let scattered = returned?;
        match self.hand_over_stored(now) {
            // No report may be to come: what would scatter the log's memory is offered again in its time.
            Ok(false) | Err(Halt::Wait | Halt::Partition) if scattered => Err(Halt::Scattered),
            other => other,
        }
    }

    /// What was passed over, and what is new. True: there is more.
    fn hand_over_stored(&mut self, now: Instant) -> Result<bool, Halt> {
        self.probe(now)?;
        let caught = self.catch_up(now)?;
        let passed = self.pass(now)?;
        self.end_vain_probe();
        // Of a great many blocks only some are tried at a time.
        let due = self.blocks.due(now).is_some() && !self.is_waiting();
        Ok(caught || passed || due)
    }

    /// A transport that may be tried, and nothing to try it with: the next first attempt does. Otherwise a disk that
    /// takes no message would keep all of them from a broker that is well again.
    fn end_vain_probe(&mut self) {
        let state = self.blocks.get(BlockKey::Transport).map(|block| block.state);
        if matches!(state, Some(BlockState::Probing(_))) && self.dispatcher.in_flight().0 == 0 {
            self.lift(BlockKey::Transport);
        }
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
        if self.dispatcher.in_flight().0 > self.stuck {
            // What it owns is the probe.
            self.blocks.set_state(BlockKey::Transport, BlockState::Waiting(now + OWNED_RETRY));
            return false;
        }
        self.pacer.failed();
        self.blocks.set_state(BlockKey::Transport, BlockState::Probing(0));
        true
    }

    /// What came back goes first. What cannot go keeps the later messages of its lane behind it, and nothing else. True:
    /// some of it would scatter the log's memory.
    fn hand_over_returned(&mut self, now: Instant) -> Result<bool, Halt> {
        self.behind.clear();
        let (mut from, mut scattered) = (0, false);
        while let Some((&lsn, back)) = self.returned.range(from..).next() {
            let message = Arc::clone(&back.message);
            from = lsn + 1;
            // One that stays keeps the later ones of its lane behind it.
            let lane = lane_or_own(&message, lsn);
            if self.behind.contains(&lane) {
                continue;
            }
            if self.dispatcher.outbox().is_settled(lsn) {
                self.dispatcher.uncount(&message);
            } else if let Some(key) = self.block_of(&message, lsn) {
                self.park(key, lsn, None, &message);
            } else {
                match self.offer(&Again { lsn, message, counted: true, alone: false }, now) {
                    Ok(()) => {}
                    Err(halt @ (Halt::Scattered | Halt::Partition)) => {
                        scattered |= matches!(halt, Halt::Scattered);
                        self.behind.insert(lane);
                        continue;
                    }
                    Err(halt) => return Err(halt),
                }
            }
            self.returned.remove(&lsn);
        }
        Ok(scattered)
    }

    /// Offers a message to the transport.
    fn offer(&mut self, again: &Again, now: Instant) -> Result<(), Halt> {
        let (owned, drained) = self.dispatcher.in_flight();
        let probing = self.blocks.get(BlockKey::Transport).is_some();
        if self.pacer.room(drained.saturating_sub(self.stuck_drained)) == 0 || probing && owned > self.stuck {
            return Err(Halt::Wait);
        }
        let outbox = self.dispatcher.outbox();
        if outbox.would_scatter(again.lsn) {
            return Err(Halt::Scattered);
        }
        // First attempts in flight count: they may be late, be stored, and be delivered all the same.
        let unrecorded = self.dispatcher.owned_everywhere() + outbox.unrecorded();
        if unrecorded >= self.options.redelivery_window && !self.makes_room(again.lsn) {
            outbox.flush_settlements();
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
            // With nothing in flight there is no report to come.
            Attempt::NoRoom(_) if self.dispatcher.in_flight().0 == 0 => Err(Halt::Until(now + PROBE_RETRY)),
            Attempt::NoRoom(Full::Partition) => Err(Halt::Partition),
            Attempt::NoRoom(Full::Window) => Err(Halt::Wait),
            // Something of the lane failed: the mail says what, or will, and rings.
            Attempt::Later => Err(Halt::Wait),
            Attempt::Refused(failure) => {
                self.refused(again, &failure, now);
                Err(Halt::Until(now + PROBE_RETRY))
            }
        }
    }

    /// Whether a message goes even though the redelivery window is full: settling the oldest makes the room that
    /// settlements of others may be waiting for. One at a time: each that is delivered makes the next one the oldest, and
    /// while the log writes nothing, all of them would go.
    fn makes_room(&self, lsn: Lsn) -> bool {
        let outbox = self.dispatcher.outbox();
        lsn == outbox.first_pending() && !outbox.is_recording()
    }

    fn idle_until(&self, at: Instant, now: Instant) -> Progress {
        Progress::Idle(Some(self.next_wake(now).map_or(at, |wake| wake.min(at))))
    }

    /// When there is something to do by itself. What is due already could not be done in this tick: that waits for a
    /// bell, or for the time the tick names, and is no reason to come back at once.
    fn next_wake(&self, now: Instant) -> Option<Instant> {
        let unread = self.unreadable_until();
        if self.down.is_some() {
            return unread;
        }
        let due = match self.blocks.get(BlockKey::Transport).map(|block| block.state) {
            // Nothing narrower is tried before.
            Some(BlockState::Waiting(at)) => Some(at),
            _ => self.blocks.next_due_after(now),
        };
        [due, self.next_late(), unread].into_iter().flatten().min()
    }
}
