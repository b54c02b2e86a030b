//! Partitions that keep what they own for too long.
//!
//! A partition without a leader keeps what it owns for as long as it takes, and nothing fails. Where nothing of a
//! partition was reported on for as long as a first attempt may take, it is blocked, and holds up itself alone.

use std::time::{Duration, Instant};

use super::Drain;

/// How often a transport is asked to hand everything back, at most: what it owned takes its time to be reported.
const HAND_BACK: Duration = Duration::from_secs(10);
/// How often it is looked, at most.
const LOOK: Duration = Duration::from_millis(100);

impl Drain {
    /// Counts what blocked partitions own. Together they may own half the window; if it is more, the transport hands
    /// everything back, and each of them is tried with one message from then on.
    pub(super) fn free_the_window(&mut self, now: Instant) {
        if !self.blocks.has_wide() {
            (self.stuck, self.stuck_drained) = (0, 0);
            return;
        }
        let is_stuck = |route, partition| self.blocks.is_stuck(route, partition);
        let (messages, drained, too_much) = self.dispatcher.owned_of_partitions(is_stuck);
        (self.stuck, self.stuck_drained) = (messages, drained);
        let lately = self.handed_back.is_some_and(|at| now.duration_since(at) < HAND_BACK);
        if too_much && !lately {
            self.handed_back = Some(now);
            tracing::warn!(
                transport = %self.dispatcher.name(), messages,
                "partitions that do not acknowledge own more than half the window: everything is handed back"
            );
            self.dispatcher.transport().hand_back();
        }
    }

    /// Blocks partitions that are late.
    pub(super) fn notice_late(&mut self, now: Instant) {
        if self.looked.is_some_and(|looked| now.duration_since(looked) < LOOK) {
            return;
        }
        self.looked = Some(now);
        let is_known = |route, partition| self.blocks.is_stuck(route, partition);
        for (partition, message) in self.dispatcher.late_partitions(now, is_known) {
            self.late(&message.route, Some(partition), message.lane, now);
        }
    }

    /// When the next partition will be late.
    pub(super) fn next_late(&self) -> Option<Instant> {
        let late = self.dispatcher.next_late(|route, partition| self.blocks.is_stuck(route, partition))?;
        Some(self.looked.map_or(late, |looked| late.max(looked + LOOK)))
    }
}
