//! The oldest messages out of turn, where what is settled has become too scattered to be noted.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use super::catchup::lane_or_own;
use super::{Drain, Halt};
use crate::drainer::dispatcher::{Again, route_hash};
use crate::message::Lane;
use crate::schedule::BlockKey;

/// Oldest messages that are looked at in a tick when the log's memory of what is settled is scattered.
const GAPS: usize = 256;

impl Drain {
    /// Where the log's memory of what is settled is about as scattered as it may get: the oldest messages first, out of
    /// turn, as far as nothing blocks them. Nothing of their lanes is older, and settling them joins what is settled.
    pub(super) fn close_gaps(&mut self, now: Instant) -> Result<(), Halt> {
        let outbox = Arc::clone(self.dispatcher.outbox());
        if !outbox.too_scattered() {
            return Ok(());
        }
        let returned = self.returned.iter().map(|(lsn, back)| lane_or_own(&back.message, *lsn));
        let mut closed: HashSet<Lane> = returned.collect();
        for lsn in outbox.gaps(outbox.first_pending(), GAPS) {
            if lsn >= self.cursor {
                break;
            }
            if self.dispatcher.is_owned(lsn) || self.returned.contains_key(&lsn) {
                continue;
            }
            let message = match outbox.read(lsn, None) {
                Ok(Some(message)) => message,
                Ok(None) => continue,
                // Nobody can say which lane it is of.
                Err(_) => return Ok(()),
            };
            let lane = lane_or_own(&message, lsn);
            let key = self.block_of(&message, lsn);
            let mine = message.route.transport == *self.dispatcher.name();
            let route = route_hash(&message.route);
            let waits = key.is_some_and(|key| self.blocks.is_waiting(key))
                || self.blocks.is_waiting(BlockKey::Lane(route, lane))
                || self.blocks.wide(route).any(|(key, _)| self.blocks.is_waiting(key));
            // One that stays behind keeps the later ones of its lane behind it.
            if !mine || closed.contains(&lane) || waits {
                closed.insert(lane);
                continue;
            }
            let row = self.row_of(&message, lsn);
            match self.offer(&Again { lsn, message: Arc::new(message), counted: true, alone: false }, now) {
                Ok(()) => self.forget_row(row),
                Err(Halt::Scattered | Halt::Partition) => {
                    closed.insert(lane);
                }
                Err(halt) => return Err(halt),
            }
        }
        Ok(())
    }
}
