//! What the log says is settled and pending.
//!
//! The committer takes each frame in once its sync has returned, by what it made it of; recovery decodes the same frames
//! and takes them in with the same function. So what a checkpoint says is what replaying would say; debug builds compare.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};

use super::checkpoint::{self, Contents};
use super::control::Control;
use super::error::DecodeError;
use super::frame::{FrameView, RecordView};
use super::ranges::RangeSet;
use super::{Lsn, MAX_NUMBER, Settled};
use crate::message::Route;

/// What is pending on a route.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pending {
    /// Messages.
    pub count: u64,
    /// Their [`Message::size`](crate::Message::size) together.
    pub bytes: u64,
    /// The time of the oldest message since last nothing was pending here, in milliseconds since 1970: no pending
    /// message is older by the log's order.
    pub oldest: i64,
}

/// What the log says, up to what is durable.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// LSNs that need no more attention: settled ones, and burnt ones that were never acknowledged.
    pub settled: RangeSet,
    /// Routes with something pending.
    pub routes: BTreeMap<Route, Pending>,
    /// The LSN behind the last durable one.
    pub next_lsn: Lsn,
    /// What `routes` take in a checkpoint, kept as they come and go: there may be many, and each commit asks.
    route_bytes: u64,
}

/// A segment that is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SegmentInfo {
    pub number: u64,
    pub first_lsn: Lsn,
    /// The last durable LSN in it; `first_lsn - 1` if it has none.
    pub last_lsn: Lsn,
    /// Where groups begin, if known; else 0. Not persisted.
    pub start: u32,
    /// Where what is durable ends.
    pub end: u32,
    /// A write or sync of it failed: it is not used again.
    pub failed: bool,
}

impl State {
    pub(super) fn new() -> Self {
        Self { next_lsn: 1, ..Self::default() }
    }

    /// Takes in a frame: messages it does not know yet become pending, settlements take them off.
    ///
    /// Applying a frame twice changes nothing, which matters when a group or a settlement was logged once more in the
    /// next segment.
    pub(super) fn apply(&mut self, frame: &FrameView<'_>) -> Result<(), DecodeError> {
        let change = Change::decode(frame, self.next_lsn)?;
        self.take(change);
        Ok(())
    }

    /// The same, by what the frame says.
    pub(super) fn take(&mut self, change: Change<'_>) {
        self.next_lsn = self.next_lsn.max(change.next_lsn);
        change.arrived.into_iter().for_each(|(route, more)| self.add_route(route, more));
        change.settled.iter().for_each(|settled| self.settle(settled));
    }

    pub(super) fn add_route(&mut self, route: Route, more: Pending) {
        let pending = match self.routes.get_mut(&route) {
            Some(pending) => pending,
            None => {
                self.route_bytes += checkpoint::route_bytes(&route);
                self.routes.entry(route).or_insert(Pending { oldest: more.oldest, ..Pending::default() })
            }
        };
        pending.count += more.count;
        pending.bytes += more.bytes;
    }

    fn settle(&mut self, settled: &Settled) {
        // A settlement is logged once more, whole, if its segment failed; the first of its LSNs tells.
        if settled.ranges.first().is_some_and(|&(first, _)| self.settled.contains(first)) {
            return;
        }
        for &(first, last) in &settled.ranges {
            // What was never given out is not settled by anything: its LSN is yet to come.
            self.settled.insert(first, last.min(self.next_lsn - 1));
        }
        for total in &settled.totals {
            if let Some(pending) = self.routes.get_mut(&total.route) {
                pending.count = pending.count.saturating_sub(total.count);
                pending.bytes = pending.bytes.saturating_sub(total.bytes);
                if pending.count == 0 {
                    self.routes.remove(&total.route);
                    self.route_bytes -= checkpoint::route_bytes(&total.route);
                }
            }
        }
        // Damaged records are counted but nobody can say on which route; once nothing is pending, nothing is.
        if self.settled.prefix() + 1 >= self.next_lsn {
            self.routes.clear();
            self.route_bytes = 0;
        }
    }

    /// LSNs up to `next` that were never acknowledged and never will be.
    pub(super) fn burn_to(&mut self, next: Lsn) {
        if next > self.next_lsn {
            self.settled.insert(self.next_lsn, next - 1);
            self.next_lsn = next;
        }
    }

    /// Whether something in a segment is not settled.
    pub(super) fn needs(&self, segment: &SegmentInfo) -> bool {
        !self.settled.contains_range(segment.first_lsn, segment.last_lsn)
    }

    /// What of the current state a checkpoint holds, beside a list of so many segments.
    pub(super) fn contents(&self, segments: usize) -> Contents {
        Contents { ranges: self.settled.len(), segments, route_bytes: self.route_bytes }
    }
}

impl Pending {
    /// Counts one more message.
    pub(super) fn add(&mut self, timestamp: i64, size: u64) {
        if self.count == 0 {
            self.oldest = timestamp;
        }
        self.count += 1;
        self.bytes += size;
    }
}

/// What a frame adds and takes off.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Change<'a> {
    /// The LSN behind its messages.
    pub next_lsn: Lsn,
    /// Its messages that were not known before, on each route.
    pub arrived: BTreeMap<Route, Pending>,
    pub settled: Cow<'a, [Settled]>,
}

impl Change<'_> {
    /// What the bytes say. Below `known` every message is known.
    pub fn decode(frame: &FrameView<'_>, known: Lsn) -> Result<Self, DecodeError> {
        let mut lsn = frame.header.first_lsn;
        let mut arrived: HashMap<(&str, &str), Pending> = HashMap::new();
        let mut settled = Vec::new();
        frame.each(|record| match record {
            RecordView::Message(message) => {
                if lsn >= known {
                    let pending = arrived.entry((message.transport, message.destination)).or_default();
                    pending.add(message.timestamp, message.size());
                }
                lsn += 1;
            }
            RecordView::Control(Control::Settled(more)) => settled.push(more),
            RecordView::Control(_) => {}
        })?;
        let route = |names: (&str, &str)| Route { transport: names.0.into(), destination: names.1.into() };
        let arrived = arrived.into_iter().map(|(names, more)| (route(names), more)).collect();
        Ok(Self { next_lsn: lsn, arrived, settled: settled.into() })
    }
}

/// Puts a checkpoint together from its records.
#[derive(Default)]
pub(super) struct CheckpointReader {
    prefix: Lsn,
    ranges: Vec<(Lsn, Lsn)>,
    routes: BTreeMap<Route, Pending>,
    segments: Vec<SegmentInfo>,
    end: Option<(u64, u64, u64)>,
}

impl CheckpointReader {
    pub fn take(&mut self, frame: &FrameView<'_>) -> Result<(), DecodeError> {
        frame.each(|record| match record {
            RecordView::Control(Control::Ranges { prefix, ranges }) => {
                self.prefix = prefix;
                self.ranges.extend(ranges);
            }
            RecordView::Control(Control::Route(route, pending)) => {
                self.routes.insert(route, pending);
            }
            RecordView::Control(Control::Segments(segments)) => self.segments.extend(segments),
            RecordView::Control(Control::End { ranges, routes, segments }) => {
                self.end = Some((ranges, routes, segments));
            }
            RecordView::Control(Control::Settled(_) | Control::Seal(_)) | RecordView::Message(_) => {}
        })
    }

    /// The state at the beginning of a segment with this number and first LSN; `None` if a part of the checkpoint is
    /// missing, or if it tells of what comes later.
    pub fn finish(self, number: u64, first_lsn: Lsn) -> Option<(State, Vec<SegmentInfo>)> {
        let have = (self.ranges.len() as u64, self.routes.len() as u64, self.segments.len() as u64);
        let last = first_lsn - 1;
        let later = |segment: &SegmentInfo| segment.number >= number || segment.last_lsn > last;
        let beyond = self.prefix > last || self.ranges.iter().any(|range| range.1 > last);
        let sum = |of: fn(&Pending) -> u64| self.routes.values().map(of).fold(0, u64::saturating_add);
        // More pending than there ever was, or so many bytes that sums overflow, cannot be.
        let too_many = sum(|pending| pending.count) > last || sum(|pending| pending.bytes) > MAX_NUMBER;
        if self.end != Some(have) || beyond || too_many || self.segments.iter().any(later) {
            return None;
        }
        let mut settled = RangeSet::up_to(self.prefix);
        for (first, last) in self.ranges {
            settled.insert(first, last);
        }
        let route_bytes = self.routes.keys().map(checkpoint::route_bytes).sum();
        Some((State { settled, routes: self.routes, next_lsn: first_lsn, route_bytes }, self.segments))
    }
}
