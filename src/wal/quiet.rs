//! What the committer does when nothing more arrives: it syncs what waits, seals, answers those who wait for all of it,
//! and stops.

use std::sync::Arc;
use std::time::Instant;

use super::active;
use super::committer::Committer;
use super::error::WalError;
use super::frame::FrameKind;
use super::queue::Group;
use super::workers::Turn;

impl Committer {
    /// Seals what nothing follows, so that damage to it can be told from a torn write.
    /// False if the segment failed: then what was not synced waits to be logged again.
    pub(super) fn seal(&mut self, now: Instant) -> bool {
        let (next_lsn, durable) = (self.next_lsn(), self.shared.durable());
        let Some(active) = &mut self.active else { return true };
        if active.has_room_for_seal()
            && let Err(failed) = active.write(active::seal(next_lsn, durable), FrameKind::Seal, durable)
        {
            let groups = self.give_up(&failed.error);
            self.log_again(groups, None, failed.error, now);
            return false;
        }
        self.sync(now);
        self.sealed = self.active.is_some();
        self.sealed
    }

    /// Nothing was there to write: syncs and seals what is due, and says when the next thing is.
    pub(super) fn idle(&mut self, now: Instant) -> Turn {
        let options = &self.shared.options;
        let (control_after, control_sync, seal_after) =
            (options.control_after, options.control_sync, options.seal_after);
        let controls = {
            let queue = self.shared.queue();
            let retry = self.retry_controls;
            queue.controls_since.map(|since| retry.map_or(since + control_after, |r| r.max(since + control_after)))
        };
        if self.unsynced_since.is_some_and(|since| self.is_overdue(since, now)) {
            self.sync(now);
            return Turn::Again;
        }
        if self.is_ready() {
            // Somebody waits, and the seal failed: what was submitted is dealt with all the same.
            return Turn::Again;
        }
        // While settlements wait the log is not idle.
        let seal = match (self.sealed, self.last_write, controls) {
            (false, Some(last), None) if self.active.is_some() => Some(last + seal_after),
            _ => None,
        };
        if seal.is_some_and(|due| due <= now) {
            self.seal(now);
            return Turn::Again;
        }
        let overdue = self.unsynced_since.map(|since| since + control_sync);
        match [controls, overdue, seal].into_iter().flatten().min() {
            Some(next) => Turn::Until(next),
            None => Turn::Idle,
        }
    }

    /// Answers those whose submissions have all been dealt with.
    pub(super) fn settle_barriers(&mut self, now: Instant, closing: bool) {
        if closing || !self.is_ready() || !self.sealed && !self.seal(now) {
            return;
        }
        let (next_lsn, settlements) = (self.next_lsn(), self.settlements);
        let deferred = !self.shared.queue().deferred.is_empty();
        let barriers = std::mem::take(&mut self.barriers);
        for barrier in barriers {
            if !barrier.is_reached(next_lsn, settlements) {
                self.barriers.push(barrier);
                continue;
            }
            let most = self.shared.options.max_ranges;
            let outcome = match barrier.failed {
                Some(error) => Err(error),
                None if deferred => Err(Arc::new(WalError::Scattered { most })),
                None => Ok(()),
            };
            // Whoever waited may have gone.
            let _ = barrier.told.send(outcome);
        }
    }

    pub(super) fn is_ready(&self) -> bool {
        let next_lsn = self.next_lsn();
        self.barriers.iter().any(|barrier| barrier.is_reached(next_lsn, self.settlements))
    }

    pub(super) fn is_drained(&self) -> bool {
        let queue = self.shared.queue();
        queue.groups.is_empty() && (queue.controls_since.is_none() || self.retry_controls.is_some())
    }

    /// Closing: seals, and answers everybody.
    pub(super) fn finish(&mut self, now: Instant) {
        if !self.sealed {
            self.seal(now);
        }
        let unwritten = {
            let mut queue = self.shared.queue();
            queue.closed = true;
            // Of those who asked meanwhile, too: nobody else will answer them.
            self.barriers.append(&mut queue.barriers);
            !queue.again.is_empty() || !queue.controls.is_empty() || !queue.deferred.is_empty()
        };
        let broken = self.shared.view().broken.is_some() || unwritten;
        for barrier in self.barriers.drain(..) {
            let outcome = match barrier.failed {
                Some(error) => Err(error),
                None if broken => Err(Arc::new(WalError::Closed)),
                None => Ok(()),
            };
            // Whoever waited may have gone.
            let _ = barrier.told.send(outcome);
        }
    }

    /// Dropped without a close: nothing more is written, nobody is left waiting.
    pub(super) fn abandon(&mut self, group: Option<Group>) {
        let groups = {
            let mut queue = self.shared.queue();
            queue.closed = true;
            self.barriers.append(&mut queue.barriers);
            std::mem::take(&mut queue.groups)
        };
        let error = Arc::new(WalError::Closed);
        for group in group.into_iter().chain(groups) {
            group.finish(Err(&error));
        }
        for barrier in self.barriers.drain(..) {
            // Whoever waited may have gone.
            let _ = barrier.told.send(Err(Arc::clone(&error)));
        }
    }
}
