//! Which block a message falls under, and which messages a block holds up.

use super::Drain;
use super::catchup::{Skipped, lane_or_own};
use crate::drainer::dispatcher::route_hash;
use crate::message::Outgoing;
use crate::schedule::BlockKey;
use crate::wal::Lsn;

impl Drain {
    /// The block a message falls under.
    pub(super) fn block_of(&self, message: &Outgoing, lsn: Lsn) -> Option<BlockKey> {
        if self.blocks.is_empty() {
            return None;
        }
        let route = route_hash(&message.route);
        let partition = message.message.partition.or_else(|| self.dispatcher.transport().partition(message));
        self.blocks.find(route, partition, Some(lane_or_own(message, lsn)))
    }

    /// The block other than `key` that a skipped message waits for.
    pub(super) fn elsewhere(&self, key: BlockKey, skipped: &Skipped) -> Option<BlockKey> {
        let route = route_hash(&skipped.message.route);
        let message = &skipped.message;
        let partition = message.message.partition.or_else(|| self.dispatcher.transport().partition(message));
        self.blocks.elsewhere(key, route, partition, lane_or_own(message, skipped.lsn), goes_anywhere(message))
    }

    /// Whether a message that may go to any partition would go to another one than is probed.
    pub(super) fn goes_elsewhere(&self, key: BlockKey, message: &Outgoing) -> bool {
        let BlockKey::Partition(_, partition) = key else { return false };
        goes_anywhere(message) && self.dispatcher.transport().partition(message).is_some_and(|now| now != partition)
    }

    /// Whether a message that was read back is one that `key` holds up.
    pub(super) fn concerns(&self, key: BlockKey, skipped: &Skipped) -> bool {
        let message = &skipped.message;
        let route = route_hash(&message.route);
        let in_scope = match key {
            BlockKey::Transport => false,
            BlockKey::Route(blocked) => blocked == route,
            BlockKey::Partition(blocked, partition) => {
                let current = || self.dispatcher.transport().partition(message);
                // The partitioner may have chosen anew since: what was passed over because of this partition then
                // belongs to another one, which may not know it, or is not blocked at all.
                let belongs = |now: i32| {
                    let block = self.blocks.get(BlockKey::Partition(route, now));
                    now == partition
                        || block.is_none_or(|block| block.first_skipped.is_none_or(|first| first > skipped.lsn))
                };
                // What may go anywhere belongs to whichever comes across it: asked again, it may go elsewhere.
                blocked == route
                    && (goes_anywhere(message) || message.message.partition.or_else(current).is_none_or(belongs))
            }
            BlockKey::Lane(blocked, lane) => blocked == route && lane == lane_or_own(message, skipped.lsn),
        };
        in_scope && message.route.transport == *self.dispatcher.name() && !self.is_seen_to(skipped.lsn)
    }

    /// Whether a message is delivered, on its way, or came back and goes before what was passed over.
    fn is_seen_to(&self, lsn: Lsn) -> bool {
        self.dispatcher.outbox().is_settled(lsn) || self.dispatcher.is_owned(lsn) || self.returned.contains_key(&lsn)
    }

    /// A message that was passed over because of one partition belongs to another one now, whose pass may be past it.
    pub(super) fn leave_to_another(&mut self, key: BlockKey, skipped: &Skipped) {
        let (BlockKey::Partition(route, _), message) = (key, &skipped.message) else { return };
        let Some(now) = message.message.partition.or_else(|| self.dispatcher.transport().partition(message)) else {
            return;
        };
        let other = BlockKey::Partition(route, now);
        let row = self.key_of_row(message, skipped.lsn);
        let left = other != key && self.catch_ups.get(&other).is_some_and(|pass| pass.has_left(row));
        if left && !self.is_seen_to(skipped.lsn) && route == route_hash(&message.route) {
            self.unindexed.add(other);
            self.restart_pass(other);
        }
    }
}

/// Whether it is for the transport to say, anew each time, which partition a message goes to.
fn goes_anywhere(message: &Outgoing) -> bool {
    message.lane.is_none() && message.message.partition.is_none()
}
