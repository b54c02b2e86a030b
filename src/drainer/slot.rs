//! Slots: where lanes keep their order.
//!
//! A slot knows which of its messages are in play, in the order of sending, and how many are stored and owned by
//! nobody. Keeping the rules of lanes (DESIGN.md 4.1) for the whole slot is enough to decide whether a message may
//! go direct; what has failed is told lane by lane.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::drainer::entry::{Entry, Phase, Storing};
use crate::message::Lane;

/// One slot.
#[derive(Default)]
pub struct Slot {
    /// Waiting or owned, in the order of sending.
    play: VecDeque<Arc<Entry>>,
    /// Stored, not settled, and not owned.
    pub stored: u32,
    /// Failed, and on the way back to the drainer, which has not seen that yet.
    pub returning: u32,
    /// Lanes in which something failed, or is tried alone, while the transport owns more of them.
    closed: Vec<Lane>,
}

impl Slot {
    /// Whether a message may go direct: everything before it is owned, and nothing has failed.
    pub fn is_open(&self) -> bool {
        self.stored == 0 && self.returning == 0 && self.closed.is_empty()
    }

    /// Whether it has anything to remember.
    pub fn is_gated(&self) -> bool {
        !self.is_open()
    }

    /// Puts a message in play, behind all others.
    pub fn push(&mut self, entry: &Arc<Entry>) {
        self.play.push_back(Arc::clone(entry));
    }

    /// Takes a message out of play.
    pub fn remove(&mut self, entry: &Arc<Entry>) {
        if let Some(at) = self.play.iter().position(|other| Arc::ptr_eq(other, entry)) {
            self.play.remove(at);
        }
        if self.play.is_empty() && self.play.capacity() > 64 {
            self.play = VecDeque::new();
        }
    }

    /// The first message that waits for the window.
    pub fn first_waiting(&self) -> Option<Arc<Entry>> {
        self.play.iter().find(|entry| entry.state().phase == Phase::Waiting).cloned()
    }

    /// Messages of a lane that are in play and not on their way to the disk, in the order of sending.
    pub fn unstored(&self, lane: Lane) -> Vec<Arc<Entry>> {
        let unstored = |entry: &&Arc<Entry>| {
            let state = entry.state();
            state.storing == Storing::No && !state.given_up
        };
        self.play.iter().filter(|entry| entry.lane() == Some(lane)).filter(unstored).cloned().collect()
    }

    /// All messages in play that are not on their way to the disk.
    pub fn all_unstored(&self) -> Vec<Arc<Entry>> {
        let unstored = |entry: &&Arc<Entry>| {
            let state = entry.state();
            state.storing == Storing::No && !state.given_up
        };
        self.play.iter().filter(unstored).cloned().collect()
    }

    /// Whether the transport owns anything of a lane.
    pub fn owns(&self, lane: Lane) -> bool {
        self.play.iter().any(|entry| entry.lane() == Some(lane) && entry.state().phase == Phase::Owned)
    }

    /// Closes a lane until the transport has reported on all it owns there.
    pub fn close(&mut self, lane: Lane) {
        if !self.closed.contains(&lane) && self.owns(lane) {
            self.closed.push(lane);
        }
    }

    /// Opens a lane again, if nothing of it is owned any more. Called after each report.
    pub fn reopen(&mut self, lane: Lane) {
        if !self.closed.is_empty() && self.closed.contains(&lane) && !self.owns(lane) {
            self.closed.retain(|other| *other != lane);
        }
    }

    /// Whether a lane waits for reports.
    pub fn is_closed(&self, lane: Lane) -> bool {
        self.closed.contains(&lane)
    }
}
