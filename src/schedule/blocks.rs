//! What is blocked, since when and why, and when it may be tried again.
//!
//! A block stands at the level at which something failed and no wider: the whole transport, a route, one of
//! its partitions, a single lane. Pure: time and randomness are passed in, nothing is locked, nothing is sent.
//! The drainer alone changes it.

use std::collections::{BTreeSet, HashMap};
use std::ops::Bound;
use std::time::{Duration, Instant};

use fastrand::Rng;

use crate::failure::{Class, Failure};
use crate::message::{Lane, Route};
use crate::schedule::Backoff;
use crate::wal::Lsn;

/// What is blocked. Routes by their 64-bit hash, as in the ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum BlockKey {
    /// Everything.
    Transport,
    /// A topic or stream.
    Route(u64),
    /// One partition of a topic.
    Partition(u64, i32),
    /// One lane.
    Lane(u64, Lane),
}

impl BlockKey {
    /// The route it belongs to.
    pub fn route(self) -> Option<u64> {
        match self {
            Self::Transport => None,
            Self::Route(route) | Self::Partition(route, _) | Self::Lane(route, _) => Some(route),
        }
    }
}

/// How far a block is from its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockState {
    /// Until then nothing of it is tried.
    Waiting(Instant),
    /// One message of it is being tried: the one with this LSN.
    Probing(Lsn),
    /// A try went well: what was skipped is being delivered; what is new waits behind it.
    CatchingUp,
}

/// One block.
#[derive(Clone, Debug)]
pub struct Block {
    /// The failed messages' route.
    pub route: Route,
    /// The class of the last failure.
    pub class: Class,
    /// The last failure, for people.
    pub reason: String,
    /// Milliseconds since 1970 at the first failure.
    pub since: i64,
    /// Failed tries so far.
    pub attempts: u32,
    /// Try the next message alone: a permanent verdict fell on its batch.
    pub alone: bool,
    /// The oldest message that was passed over because of it.
    pub first_skipped: Option<Lsn>,
    /// Messages passed over because of it and not handed over since.
    pub waiting: u64,
    /// Where it stands.
    pub state: BlockState,
}

/// All blocks of a transport.
#[derive(Debug)]
pub struct Blocks {
    blocks: HashMap<BlockKey, Block>,
    due: BTreeSet<(Instant, BlockKey)>,
    catching_up: BTreeSet<BlockKey>,
    /// Blocks of routes and partitions: they hold messages of lanes that may have blocks of their own.
    wide: BTreeSet<BlockKey>,
    lanes: usize,
    most_lanes: usize,
    backoff: Backoff,
}

/// A failure, and when it came.
#[derive(Clone, Copy, Debug)]
pub struct Failed<'a> {
    /// What failed.
    pub failure: &'a Failure,
    /// Try the next one alone, and at once.
    pub alone: bool,
    /// The monotonic clock.
    pub now: Instant,
    /// The wall clock, for people: milliseconds since 1970.
    pub unix_millis: i64,
    /// Attempts known from before a restart.
    pub earlier_attempts: u32,
}

impl Blocks {
    /// None yet. At most `most_lanes` single lanes are kept apart; beyond that their route is blocked.
    pub fn new(backoff: Backoff, most_lanes: usize) -> Self {
        Self {
            blocks: HashMap::new(),
            due: BTreeSet::new(),
            catching_up: BTreeSet::new(),
            wide: BTreeSet::new(),
            lanes: 0,
            most_lanes,
            backoff,
        }
    }

    /// Whether nothing is blocked.
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// The widest block that a message falls under, the transport's apart.
    pub fn find(&self, route: u64, partition: Option<i32>, lane: Option<Lane>) -> Option<BlockKey> {
        if self.blocks.is_empty() {
            return None;
        }
        let partition = partition.map(|partition| BlockKey::Partition(route, partition));
        let lane = lane.map(|lane| BlockKey::Lane(route, lane));
        [Some(BlockKey::Route(route)), partition, lane].into_iter().flatten().find(|key| self.blocks.contains_key(key))
    }

    /// The block that a message passed over because of `key` waits for instead, the transport's apart: a narrower one
    /// in any case, since its lane's earlier messages may lie there; a wider one unless that catches up, too.
    ///
    /// So of all blocks that catch up the narrowest delivers, and a message never goes to and fro between two. One that may
    /// go to any partition waits for no other that catches up: neither could tell that the other is past it.
    pub fn elsewhere(
        &self,
        key: BlockKey,
        route: u64,
        partition: Option<i32>,
        lane: Lane,
        goes_anywhere: bool,
    ) -> Option<BlockKey> {
        let partition = partition.map(|partition| BlockKey::Partition(route, partition));
        let all = [Some(BlockKey::Lane(route, lane)), partition, Some(BlockKey::Route(route))];
        all.into_iter().flatten().find(|other| {
            *other != key
                && self.blocks.get(other).is_some_and(|block| {
                    // Keys are ordered from wide to narrow; two partitions differ where the partitioner chose anew.
                    let partitions = matches!((other, key), (BlockKey::Partition(..), BlockKey::Partition(..)));
                    let narrower = *other > key && !(partitions && goes_anywhere);
                    narrower || partitions && !goes_anywhere || block.state != BlockState::CatchingUp
                })
        })
    }

    /// Whether something is blocked and does not catch up yet.
    pub fn is_waiting(&self, key: BlockKey) -> bool {
        self.blocks.get(&key).is_some_and(|block| block.state != BlockState::CatchingUp)
    }

    /// Blocks of a route as a whole, and of its partitions.
    pub fn wide(&self, route: u64) -> impl Iterator<Item = (BlockKey, &Block)> {
        let partitions = BlockKey::Partition(route, i32::MIN)..=BlockKey::Partition(route, i32::MAX);
        let keys = self.wide.get(&BlockKey::Route(route)).into_iter().chain(self.wide.range(partitions));
        keys.filter_map(|key| Some((*key, self.blocks.get(key)?)))
    }

    /// One block.
    pub fn get(&self, key: BlockKey) -> Option<&Block> {
        self.blocks.get(&key)
    }

    /// All of them, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (BlockKey, &Block)> {
        self.blocks.iter().map(|(key, block)| (*key, block))
    }

    /// Blocks `key`, or blocks it anew with one more failed try. Returns what is blocked: the route, where too many
    /// lanes are already.
    pub fn fail(&mut self, key: BlockKey, route: &Route, failed: Failed<'_>, rng: &mut Rng) -> BlockKey {
        let key = match key {
            BlockKey::Lane(route, _) if self.lanes >= self.most_lanes && !self.blocks.contains_key(&key) => {
                BlockKey::Route(route)
            }
            other => other,
        };
        let mut block = self.take(key).unwrap_or_else(|| Block {
            route: route.clone(),
            class: failed.failure.class,
            reason: String::new(),
            since: failed.unix_millis,
            attempts: failed.earlier_attempts,
            alone: false,
            first_skipped: None,
            waiting: 0,
            state: BlockState::CatchingUp,
        });
        // Classes differ in who is told, not in the pace: a hold starts as early, and soon reaches the cap.
        let delay =
            if failed.alone { Duration::ZERO } else { self.backoff.delay(block.attempts.saturating_add(1), rng) };
        block.attempts = block.attempts.saturating_add(1);
        block.class = failed.failure.class;
        block.alone = failed.alone;
        block.reason.clone_from(&failed.failure.reason);
        block.state = BlockState::Waiting(failed.now + delay);
        self.put(key, block);
        key
    }

    /// Counts a message that was passed over.
    pub fn skipped(&mut self, key: BlockKey, lsn: Lsn) {
        if let Some(block) = self.blocks.get_mut(&key) {
            block.waiting += 1;
            block.first_skipped = Some(block.first_skipped.map_or(lsn, |first| first.min(lsn)));
        }
    }

    /// Counts a message that was passed over and is now handed over.
    pub fn resumed(&mut self, key: BlockKey) {
        if let Some(block) = self.blocks.get_mut(&key) {
            block.waiting = block.waiting.saturating_sub(1);
        }
    }

    /// A block that may be tried now.
    pub fn due(&self, now: Instant) -> Option<BlockKey> {
        self.due.first().filter(|(at, _)| *at <= now).map(|(_, key)| *key)
    }

    /// When the next block may be tried that may not yet.
    pub fn next_due_after(&self, now: Instant) -> Option<Instant> {
        let last = BlockKey::Lane(u64::MAX, Lane(u128::MAX));
        self.due.range((Bound::Excluded((now, last)), Bound::Unbounded)).next().map(|(at, _)| *at)
    }

    /// Whether what the transport owns of a partition may be stuck there: it, or its route, is blocked and does not
    /// catch up yet.
    pub fn is_stuck(&self, route: u64, partition: i32) -> bool {
        self.is_waiting(BlockKey::Route(route)) || self.is_waiting(BlockKey::Partition(route, partition))
    }

    /// Whether any route or partition is blocked.
    pub fn has_wide(&self) -> bool {
        !self.wide.is_empty()
    }

    /// A block whose messages may be delivered.
    pub fn catching_up(&self) -> impl Iterator<Item = BlockKey> {
        self.catching_up.iter().copied()
    }

    /// Moves a block on. Once it catches up, its attempts count anew.
    pub fn set_state(&mut self, key: BlockKey, state: BlockState) {
        if let Some(mut block) = self.take(key) {
            block.state = state;
            if state == BlockState::CatchingUp {
                block.attempts = 0;
                block.alone = false;
            }
            self.put(key, block);
        }
    }

    /// Tries a block with another message, at once: failed tries of the one before do not count for it.
    pub fn try_another(&mut self, key: BlockKey, now: Instant) {
        if let Some(mut block) = self.take(key) {
            block.attempts = 0;
            block.state = BlockState::Waiting(now);
            self.put(key, block);
        }
    }

    /// Makes every waiting block of a route due at once.
    pub fn hurry(&mut self, route: u64, now: Instant) {
        let waiting: Vec<BlockKey> = self
            .blocks
            .iter()
            .filter(|(key, block)| key.route() == Some(route) && matches!(block.state, BlockState::Waiting(_)))
            .map(|(key, _)| *key)
            .collect();
        for key in waiting {
            self.set_state(key, BlockState::Waiting(now));
        }
    }

    /// Ends a block: nothing waits for it any more.
    pub fn remove(&mut self, key: BlockKey) -> Option<Block> {
        self.take(key)
    }

    fn take(&mut self, key: BlockKey) -> Option<Block> {
        let block = self.blocks.remove(&key)?;
        match block.state {
            BlockState::Waiting(at) => {
                self.due.remove(&(at, key));
            }
            BlockState::CatchingUp => {
                self.catching_up.remove(&key);
            }
            BlockState::Probing(_) => {}
        }
        self.lanes -= usize::from(matches!(key, BlockKey::Lane(..)));
        self.wide.remove(&key);
        Some(block)
    }

    fn put(&mut self, key: BlockKey, block: Block) {
        match block.state {
            BlockState::Waiting(at) => {
                self.due.insert((at, key));
            }
            BlockState::CatchingUp => {
                self.catching_up.insert(key);
            }
            BlockState::Probing(_) => {}
        }
        self.lanes += usize::from(matches!(key, BlockKey::Lane(..)));
        if matches!(key, BlockKey::Route(_) | BlockKey::Partition(..)) {
            self.wide.insert(key);
        }
        self.blocks.insert(key, block);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::Scope;

    fn route() -> Route {
        Route { transport: "t".into(), destination: "d".into() }
    }

    fn fail(blocks: &mut Blocks, key: BlockKey, class: Class, now: Instant) -> BlockKey {
        let failure = Failure::new(class, Scope::Lane, "why");
        let failed = Failed { failure: &failure, alone: false, now, unix_millis: 1, earlier_attempts: 0 };
        blocks.fail(key, &route(), failed, &mut Rng::with_seed(1))
    }

    fn blocks() -> Blocks {
        Blocks::new(Backoff::default(), 2)
    }

    #[test]
    fn a_block_holds_its_own_and_nobody_elses() {
        let mut blocks = blocks();
        let now = Instant::now();
        fail(&mut blocks, BlockKey::Lane(1, Lane(7)), Class::Transient, now);
        fail(&mut blocks, BlockKey::Partition(2, 3), Class::Transient, now);
        assert_eq!(blocks.find(1, None, Some(Lane(7))), Some(BlockKey::Lane(1, Lane(7))));
        assert_eq!(blocks.find(1, None, Some(Lane(8))), None);
        assert_eq!(blocks.find(2, Some(3), Some(Lane(9))), Some(BlockKey::Partition(2, 3)));
        assert_eq!(blocks.find(2, Some(4), None), None);
    }

    #[test]
    fn beyond_the_limit_of_lanes_their_route_is_blocked() {
        let mut blocks = blocks();
        let now = Instant::now();
        for lane in 0..2 {
            fail(&mut blocks, BlockKey::Lane(1, Lane(lane)), Class::Transient, now);
        }
        assert_eq!(fail(&mut blocks, BlockKey::Lane(1, Lane(5)), Class::Transient, now), BlockKey::Route(1));
        assert_eq!(blocks.find(1, None, Some(Lane(99))), Some(BlockKey::Route(1)));
        blocks.remove(BlockKey::Lane(1, Lane(0)));
        assert_eq!(fail(&mut blocks, BlockKey::Lane(2, Lane(6)), Class::Transient, now), BlockKey::Lane(2, Lane(6)));
    }

    #[test]
    fn a_block_is_due_after_its_backoff_and_at_once_when_hurried() {
        let mut blocks = blocks();
        let now = Instant::now();
        let key = fail(&mut blocks, BlockKey::Route(1), Class::Hold, now);
        for _ in 0..12 {
            fail(&mut blocks, key, Class::Hold, now);
        }
        assert_eq!(blocks.due(now), None);
        assert_eq!(blocks.due(now + Duration::from_secs(31)), Some(key));
        blocks.hurry(1, now);
        assert_eq!(blocks.due(now), Some(key));
        blocks.set_state(key, BlockState::Probing(9));
        assert_eq!((blocks.due(now), blocks.next_due_after(now)), (None, None));
        blocks.set_state(key, BlockState::CatchingUp);
        assert_eq!(blocks.catching_up().collect::<Vec<_>>(), [key]);
        blocks.remove(key);
        assert!(blocks.is_empty() && blocks.catching_up().next().is_none());
    }
}
