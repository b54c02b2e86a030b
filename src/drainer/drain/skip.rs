//! What falls under a block: passed over, tried now and then, delivered once the block is gone.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::catchup::{CatchUp, CatchUpError, Skipped, lane_or_own};
use super::{BATCH, Drain, Halt, OWNED_RETRY, READ_RETRY};
use crate::drainer::dispatcher::{Again, route_hash};
use crate::message::Outgoing;
use crate::outbox::ledger::{ParkedKey, ParkedRow};
use crate::schedule::{Block, BlockKey, BlockState};
use crate::transport::Class;
use crate::wal::{Lsn, Place};

/// How long after the transport had no room for a probe it is tried again.
pub(super) const PROBE_RETRY: Duration = Duration::from_millis(50);
/// Rows the ledger holds at a time; what is skipped beyond is read back from the log. sled keeps some 50 to 100 bytes
/// of memory a row, whatever its cache is set to.
const INDEXED: u64 = 100_000;
/// Passes that are under way at a time: each keeps a frame of the log in memory.
const PASSES: usize = 16;
/// Messages of others that are read over in search of one, at a time.
const SEARCHED: usize = 4_096;
/// What a message costs when the log is read in order, in bytes: rather less than it takes there.
const MESSAGE_COST: u64 = 256;
/// What reading one message by its place costs, in bytes of reading the log in order.
const PLACE_COST: u64 = 64 << 10;

/// Whether a probe goes alone: where a verdict is to be had that means this message, where such a verdict holds its key
/// (`on_poison`), and where somebody has to mend something first, since such a refusal brings down what is handed over
/// together with it (DESIGN.md 4.2).
fn is_tried_alone(key: BlockKey, block: &Block) -> bool {
    block.alone || matches!(block.class, Class::Hold | Class::Permanent) && key != BlockKey::Transport
}

/// Why what a block skipped is not to be had now.
enum NotNow {
    /// It cannot be read. That block waits, and nothing else: what others skipped may well be read.
    Unreadable,
    /// None was found among many: the search goes on in the next tick, after what else there is to do.
    More,
}

impl Drain {
    /// Tries one message of each block whose time has come.
    pub(super) fn probe(&mut self, now: Instant) -> Result<(), Halt> {
        for _ in 0..BATCH {
            let Some(key) = self.blocks.due(now) else { return Ok(()) };
            if let BlockKey::Partition(route, partition) = key
                && self.dispatcher.owned_of_partition(route, partition) > 0
            {
                self.blocks.set_state(key, BlockState::Waiting(now + OWNED_RETRY));
                continue;
            }
            if !self.catch_ups.get(&key).is_some_and(|pass| pass.searching) {
                self.catch_ups.remove(&key);
            }
            let next = self.next_to_probe(key, now);
            if matches!(next, Err(NotNow::More)) {
                // Still due, and the first again.
                return Ok(());
            }
            // One message was all: a pass keeps a file open and a frame in memory, and there may be many blocks.
            self.catch_ups.remove(&key);
            let Ok(Some(skipped)) = next else { continue };
            let alone = self.blocks.get(key).is_some_and(|block| is_tried_alone(key, block));
            let (lsn, row) = (skipped.lsn, skipped.row);
            let again = Again { lsn, message: Arc::new(skipped.message), counted: true, alone };
            match self.offer(&again, now) {
                Ok(()) => {
                    self.forget_row(row);
                    self.blocks.resumed(key);
                    self.blocks.set_state(key, BlockState::Probing(lsn));
                    self.probes.insert(lsn, key);
                }
                Err(Halt::Wait | Halt::Partition | Halt::Scattered) => {
                    self.blocks.set_state(key, BlockState::Waiting(now + PROBE_RETRY));
                }
                Err(halt) => return Err(halt),
            }
        }
        Ok(())
    }

    /// The message that a block is probed with; `None`: there is none, or not now.
    fn next_to_probe(&mut self, key: BlockKey, now: Instant) -> Result<Option<Skipped>, NotNow> {
        loop {
            let Some(skipped) = self.next_skipped(key, now)? else {
                self.end_pass(key);
                return Ok(None);
            };
            if self.behind.contains(&lane_or_own(&skipped.message, skipped.lsn)) {
                self.blocks.set_state(key, BlockState::Waiting(now + PROBE_RETRY));
                return Ok(None);
            }
            match self.elsewhere(key, &skipped) {
                None if self.goes_elsewhere(key, &skipped.message) => {
                    // It says nothing about this partition.
                    if !self.goes(skipped, now) {
                        self.blocks.set_state(key, BlockState::Waiting(now + PROBE_RETRY));
                        return Ok(None);
                    }
                    self.blocks.resumed(key);
                }
                None => return Ok(Some(skipped)),
                Some(other) if matches!((other, key), (BlockKey::Route(_), _) | (_, BlockKey::Lane(..))) => {
                    // What is wider is blocked itself: a probe would only fail for its reason, again and again.
                    self.blocks.set_state(key, BlockState::Waiting(now + PROBE_RETRY));
                    return Ok(None);
                }
                // Its lane has a block of its own, and perhaps earlier messages there: not with this one.
                Some(other) => self.transfer(key, other, &skipped),
            }
        }
    }

    /// Hands a message over that was passed over, if there is room.
    fn goes(&mut self, skipped: Skipped, now: Instant) -> bool {
        let Skipped { lsn, message, row } = skipped;
        let again = Again { lsn, message: Arc::new(message), counted: true, alone: false };
        let gone = self.offer(&again, now).is_ok();
        if gone {
            self.forget_row(row);
        }
        gone
    }

    /// Delivers what was passed over because of blocks that are gone. True: there is more.
    pub(super) fn catch_up(&mut self, now: Instant) -> Result<bool, Halt> {
        let keys: Vec<BlockKey> = self.blocks.catching_up().take(PASSES).collect();
        if self.catch_ups.len() > PASSES {
            // Those of blocks that failed again, or whose turn is later: each keeps a file open.
            self.catch_ups.retain(|key, pass| pass.searching || keys.contains(key));
        }
        let each = (BATCH / keys.len().max(1)).max(1);
        let mut more = false;
        for key in keys {
            for turn in 0..=each {
                if turn == each {
                    more = true;
                    break;
                }
                let skipped = match self.next_skipped(key, now) {
                    Ok(skipped) => skipped,
                    Err(not_now) => {
                        more |= matches!(not_now, NotNow::More);
                        break;
                    }
                };
                let Some(skipped) = skipped else {
                    self.end_pass(key);
                    break;
                };
                if let Some(other) = self.elsewhere(key, &skipped) {
                    self.transfer(key, other, &skipped);
                    continue;
                }
                if self.behind.contains(&lane_or_own(&skipped.message, skipped.lsn)) {
                    if let Some(pass) = self.catch_ups.get_mut(&key) {
                        pass.put_back(skipped);
                    }
                    break;
                }
                let Skipped { lsn, message, row } = skipped;
                let again = Again { lsn, message: Arc::new(message), counted: true, alone: false };
                if let Err(halt) = self.offer(&again, now) {
                    let message = Arc::unwrap_or_clone(again.message);
                    if let Some(pass) = self.catch_ups.get_mut(&key) {
                        pass.put_back(Skipped { lsn, message, row });
                    }
                    match halt {
                        // It holds up itself alone.
                        Halt::Scattered | Halt::Partition => break,
                        Halt::Wait | Halt::Until(_) => return Err(halt),
                    }
                }
                self.forget_row(self.row_of(&again.message, lsn));
                self.blocks.resumed(key);
            }
        }
        Ok(more)
    }

    /// The row that the ledger may have of a message.
    pub(super) fn row_of(&self, message: &Outgoing, lsn: Lsn) -> Option<ParkedKey> {
        let key = || ParkedKey { route: route_hash(&message.route), lane: lane_or_own(message, lsn).hash(), lsn };
        (self.rows > 0).then(key)
    }

    /// A skipped message waits for something narrower, or wider, from now on.
    fn transfer(&mut self, key: BlockKey, other: BlockKey, skipped: &Skipped) {
        self.blocks.resumed(key);
        if skipped.row.is_none() {
            self.unindexed.add(other);
        }
        self.note_skipped(other, self.key_of_row(&skipped.message, skipped.lsn));
    }

    pub(super) fn key_of_row(&self, message: &Outgoing, lsn: Lsn) -> ParkedKey {
        let route = route_hash(&message.route);
        ParkedKey { route, lane: lane_or_own(message, lsn).hash(), lsn }
    }

    /// Passes a message over.
    pub(super) fn park(&mut self, key: BlockKey, lsn: Lsn, place: Option<Place>, message: &Outgoing) {
        let row = self.key_of_row(message, lsn);
        let place = place.unwrap_or(Place { segment: 0, offset: 0, index: 0 });
        let parked = ParkedRow { segment: place.segment, offset: place.offset, index: place.index, partition: -1 };
        let indexed = self.rows < INDEXED && !self.unindexed.contains(key);
        if indexed && self.dispatcher.outbox().ledger().park(row, parked) {
            self.rows += 1;
        } else {
            self.unindexed.add(key);
        }
        self.note_skipped(key, row);
    }

    fn note_skipped(&mut self, key: BlockKey, row: ParkedKey) {
        self.blocks.skipped(key, row.lsn);
        if self.catch_ups.get(&key).is_some_and(|pass| pass.is_past(row)) {
            // It would go on with later messages of the lane, and end without this one.
            self.restart_pass(key);
        }
        if let Some(pass) = self.catch_ups.get_mut(&key) {
            pass.dirty = true;
        }
        self.view_changed = true;
    }

    pub(super) fn forget_row(&mut self, row: Option<ParkedKey>) {
        if let Some(row) = row {
            self.dispatcher.outbox().ledger().unpark(row);
            self.rows = self.rows.saturating_sub(1);
        }
    }

    /// The next message that was passed over because of `key` and may still have to be delivered.
    fn next_skipped(&mut self, key: BlockKey, now: Instant) -> Result<Option<Skipped>, NotNow> {
        for _ in 0..SEARCHED {
            let outbox = Arc::clone(self.dispatcher.outbox());
            let by_rows = self.by_rows(key);
            let (first, generation) = (self.first_skipped(key), self.ledger_generation);
            let pass =
                self.catch_ups.entry(key).or_insert_with(|| CatchUp::new(&outbox, key, first, by_rows, generation));
            match pass.next(&outbox, self.cursor) {
                Ok(Some(skipped)) if self.concerns(key, &skipped) => {
                    self.set_searching(key, false);
                    return Ok(Some(skipped));
                }
                Ok(Some(skipped)) => self.leave_to_another(key, &skipped),
                Ok(None) => return Ok(None),
                Err(CatchUpError::Ledger) => {
                    self.unindexed.add(key);
                    self.catch_ups.remove(&key);
                }
                Err(CatchUpError::Log(error)) => {
                    if let Some(suppressed) = self.lines.unreadable.admit(now) {
                        tracing::warn!(%error, suppressed, "the outbox cannot be read now; it is tried again");
                    }
                    self.blocks.set_state(key, BlockState::Waiting(now + READ_RETRY));
                    self.catch_ups.remove(&key);
                    self.set_skipped_error(Some((error, now + READ_RETRY)));
                    return Err(NotNow::Unreadable);
                }
            }
        }
        self.set_searching(key, true);
        Err(NotNow::More)
    }

    fn set_searching(&mut self, key: BlockKey, searching: bool) {
        if let Some(pass) = self.catch_ups.get_mut(&key) {
            pass.searching = searching;
        }
    }

    /// Where a pass over the log begins: what wider blocks hold up may belong to this one as well.
    fn first_skipped(&self, key: BlockKey) -> Lsn {
        let own = self.blocks.get(key).and_then(|block| block.first_skipped);
        let wide = key.route().into_iter().flat_map(|route| self.blocks.wide(route));
        wide.filter_map(|(_, block)| block.first_skipped).chain(own).min().unwrap_or(self.cursor)
    }

    /// Rows where the ledger has them all, and where they cost less than reading what lies between.
    pub(super) fn by_rows(&self, key: BlockKey) -> bool {
        let Some(block) = self.blocks.get(key) else { return false };
        // Rows may be missing of a wider block, too, whose messages belong to this one as well.
        let mut wide = key.route().into_iter().flat_map(|route| self.blocks.wide(route));
        if self.unindexed.contains(key) || wide.any(|(wide, _)| self.unindexed.contains(wide)) {
            return false;
        }
        let span = self.cursor.saturating_sub(block.first_skipped.unwrap_or(self.cursor));
        block.waiting.saturating_mul(PLACE_COST) < span.saturating_mul(MESSAGE_COST)
    }

    /// A pass over what was skipped has found nothing more: again, if something was skipped meanwhile.
    pub(super) fn end_pass(&mut self, key: BlockKey) {
        let dirty = self.catch_ups.remove(&key).is_some_and(|pass| pass.dirty && !pass.reads_log());
        if !dirty {
            self.lift(key);
        }
    }

    /// Nothing waits for a block any more.
    pub(super) fn lift(&mut self, key: BlockKey) {
        self.catch_ups.remove(&key);
        self.unindexed.remove(key);
        if let Some(block) = self.blocks.remove(key)
            && let Some(suppressed) = self.lines.lifted.admit(Instant::now())
        {
            let transport = self.dispatcher.name();
            tracing::info!(%transport, route = %block.route, suppressed, "delivery goes on");
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
    pub(super) fn follow_ledger(&mut self) {
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
}
