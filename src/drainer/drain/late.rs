//! Stored messages that the transport owns for too long.
//!
//! A partition without a leader keeps what it owns for as long as it takes, and nothing fails. A first attempt is stored
//! when its deadline passes, and says so; what comes from the log has no deadline. So of each partition one hand-over is
//! watched: when that is late, the partition is blocked, and holds up itself alone.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Drain;
use crate::clock;
use crate::drainer::entry::Entry;
use crate::wal::Lsn;

/// How often a transport is asked to hand everything back, at most: what it owned takes its time to be reported.
const HAND_BACK: Duration = Duration::from_secs(10);
/// How often it is looked, at most.
const LOOK: Duration = Duration::from_millis(100);

struct HandedOver {
    entry: Arc<Entry>,
    lsn: Lsn,
    since: Instant,
}

/// Of each partition that owns something, by its route's hash, a hand-over; and of each route one whose partition the
/// transport had not chosen then.
#[derive(Default)]
pub(super) struct Watch {
    partitions: HashMap<(u64, Option<i32>), HandedOver>,
    looked: Option<Instant>,
}

impl Watch {
    /// A message was handed over. The first of its partition is watched, until that was reported on.
    pub fn handed_over(&mut self, entry: Arc<Entry>, lsn: Lsn, now: Instant) {
        let key = (entry.route, entry.state().partition);
        self.partitions.entry(key).or_insert_with(|| HandedOver { entry, lsn, since: now });
    }

    /// When the first that is watched will be late.
    pub fn next(&self, late_after: Duration) -> Option<Instant> {
        let first = self.partitions.values().map(|watched| watched.since).min()?;
        let late = clock::after(first, late_after);
        Some(self.looked.map_or(late, |looked| late.max(looked + LOOK)))
    }
}

impl Drain {
    /// Counts what blocked partitions own. Together they may own half the window; if it is more, the transport hands
    /// everything back, and each of them is tried with one message from then on.
    pub(super) fn free_the_window(&mut self, now: Instant) {
        if !self.blocks.has_wide() {
            self.stuck = 0;
            return;
        }
        let is_stuck = |route, partition| self.blocks.is_stuck(route, partition);
        let (messages, too_much) = self.dispatcher.owned_of_partitions(is_stuck);
        self.stuck = messages;
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

    /// Blocks partitions of which a hand-over is late.
    pub(super) fn notice_late(&mut self, now: Instant) {
        let watch = &mut self.watch;
        let early = |looked: Instant| now.duration_since(looked) < LOOK;
        if watch.partitions.is_empty() || watch.looked.is_some_and(early) {
            return;
        }
        watch.looked = Some(now);
        let (dispatcher, late_after) = (&self.dispatcher, self.dispatcher.late_after());
        watch.partitions.retain(|_, watched| dispatcher.is_owned(watched.lsn));
        // Watched again with the next hand-over: there is one when the block is lifted.
        let late = watch.partitions.extract_if(|_, watched| clock::after(watched.since, late_after) <= now);
        let late: Vec<_> = late.collect();
        for ((route, _), watched) in late {
            let partition = watched.entry.state().partition;
            if partition.is_some() {
                self.late(&watched.entry.message.route, partition, watched.entry.lane(), now);
            } else {
                // Where there are no partitions, or none was chosen, the transport itself says when it takes too long.
                self.watch.partitions.insert((route, None), HandedOver { since: now, ..watched });
            }
        }
    }
}
