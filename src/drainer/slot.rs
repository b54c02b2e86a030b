//! Slots: where lanes keep their order.
//!
//! A slot knows which of its messages are in play, in the order of sending, and how many are stored and owned by
//! nobody. Keeping the rules of lanes (DESIGN.md 4.1) for the whole slot is enough to decide whether a message may
//! go direct; what has failed is told lane by lane.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::drainer::entry::{Entry, Phase, Storing};
use crate::message::Lane;
use crate::planted::{self, Planted};

/// One slot.
#[derive(Default)]
pub struct Slot {
    /// Owned, in the order of handing over.
    play: VecDeque<Arc<Entry>>,
    /// First attempts that wait for room in the window, in the order of sending; of a lane, behind all it owns.
    waiting: VecDeque<Arc<Entry>>,
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
        planted::is(Planted::LoseGate) || self.stored == 0 && self.returning == 0 && self.closed.is_empty()
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
        take_out(&mut self.play, entry);
    }

    /// Makes a message wait, behind all others.
    pub fn push_waiting(&mut self, entry: &Arc<Entry>) {
        self.waiting.push_back(Arc::clone(entry));
    }

    /// Makes a message wait, before all others: the one that was taken last.
    pub fn put_back_waiting(&mut self, entry: Arc<Entry>) {
        self.waiting.push_front(entry);
    }

    /// Whether any message waits for the window.
    pub fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Takes the first message that waits.
    pub fn take_waiting(&mut self) -> Option<Arc<Entry>> {
        self.waiting.pop_front()
    }

    /// Takes a message out of those that wait.
    pub fn remove_waiting(&mut self, entry: &Arc<Entry>) {
        take_out(&mut self.waiting, entry);
    }

    /// Messages of a lane that were sent before `entry` and are not on their way to the disk, in the order of sending.
    ///
    /// Looked for from the back: the first of a lane that is stored takes all before it along, so behind one that is
    /// there is nothing more to find, however much the transport owns.
    pub fn unstored_before(&self, lane: Lane, entry: &Arc<Entry>) -> Vec<Arc<Entry>> {
        let all = || self.waiting.iter().rev().chain(self.play.iter().rev());
        let behind = all().position(|other| Arc::ptr_eq(other, entry)).map_or(0, |at| at + 1);
        let of_lane = all().skip(behind).filter(|other| other.lane() == Some(lane));
        let mut found: Vec<_> = of_lane.take_while(|other| is_unstored(other)).cloned().collect();
        found.reverse();
        found
    }

    /// All first attempts that are not on their way to the disk; of each lane in the order of sending.
    pub fn all_unstored(&self) -> Vec<Arc<Entry>> {
        self.play.iter().chain(&self.waiting).filter(|entry| is_unstored(entry)).cloned().collect()
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

fn is_unstored(entry: &Entry) -> bool {
    let state = entry.state();
    state.storing == Storing::No && !state.given_up
}

/// Nearly always the first: reports come in order.
fn take_out(queue: &mut VecDeque<Arc<Entry>>, entry: &Arc<Entry>) {
    if let Some(at) = queue.iter().position(|other| Arc::ptr_eq(other, entry)) {
        queue.remove(at);
    }
    if queue.is_empty() && queue.capacity() > 64 {
        *queue = VecDeque::new();
    }
}
