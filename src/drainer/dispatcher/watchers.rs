//! Who waits for the fate of stored messages.

use std::collections::HashMap;
use std::ops::RangeInclusive;

use tokio::sync::oneshot;

use crate::receipt::Fate;
use crate::wal::Lsn;

/// Fewer watchers than this are not worth a sweep.
const SWEEP_WATCHERS: usize = 1_024;

/// Who waits for the fate of stored messages.
#[derive(Default)]
pub struct Watchers {
    by_lsn: HashMap<Lsn, oneshot::Sender<Fate>>,
    sweep_at: usize,
}

impl Watchers {
    pub fn insert(&mut self, lsn: Lsn, watcher: oneshot::Sender<Fate>) {
        // Most callers drop what they could watch: forget them before they add up.
        if self.by_lsn.len() >= self.sweep_at.max(SWEEP_WATCHERS) {
            self.by_lsn.retain(|_, watcher| !watcher.is_closed());
            self.sweep_at = 2 * self.by_lsn.len();
            self.by_lsn.shrink_to(self.sweep_at);
        }
        self.by_lsn.insert(lsn, watcher);
    }

    /// Nobody will tell what became of these: that, they hear.
    pub fn drop_all(&mut self, lsns: RangeInclusive<Lsn>) {
        self.by_lsn.retain(|lsn, _| !lsns.contains(lsn));
    }

    pub fn take(&mut self, lsn: Lsn) -> Option<oneshot::Sender<Fate>> {
        self.by_lsn.remove(&lsn)
    }
}
