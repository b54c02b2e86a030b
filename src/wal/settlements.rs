//! Settlements on their way into the log: joined where one record does, cut where it does not, or where only a part may be
//! written now.

use std::collections::VecDeque;

use super::frame::FRAME_HEADER;
use super::record::RECORD_HEADER;
use super::{BLOCK, Lsn, RangeSet, RouteTotal, Settled};

/// Bytes of a settlement record, at most: with its frame it takes a block, which every segment that is begun has left.
const SETTLEMENT_BYTES: u64 = BLOCK as u64 - FRAME_HEADER as u64;

pub(super) fn mergeable(into: &Settled, more: &Settled) -> bool {
    control_bound(into) + control_bound(more) <= SETTLEMENT_BYTES
}

pub(super) fn merge(into: &mut Settled, more: Settled) {
    join(&mut into.ranges, more.ranges);
    for total in more.totals {
        match into.totals.iter_mut().find(|t| t.route == total.route) {
            Some(sum) => {
                sum.count += total.count;
                sum.bytes += total.bytes;
            }
            None => into.totals.push(total),
        }
    }
}

fn join(into: &mut Vec<(Lsn, Lsn)>, more: Vec<(Lsn, Lsn)>) {
    for range in more {
        match into.last_mut() {
            Some(last) if last.1 + 1 == range.0 => last.1 = range.1,
            _ => into.push(range),
        }
    }
}

/// Cuts a settlement too large for one record. What it takes off the routes goes with the first parts, each of which has an
/// LSN of its own: by its first LSN a settlement is known that was logged twice.
pub(super) fn parts(settled: Settled) -> Vec<Settled> {
    if control_bound(&settled) <= SETTLEMENT_BYTES {
        return vec![settled];
    }
    let mut ranges: VecDeque<(Lsn, Lsn)> = settled.ranges.into();
    let mut totals = settled.totals.into_iter().peekable();
    let mut parts = Vec::new();
    while totals.peek().is_some() || !ranges.is_empty() {
        let mut part = Settled { mark: settled.mark, ranges: Vec::new(), totals: Vec::new() };
        part.ranges.extend(first_lsn(&mut ranges));
        // One that is longer than a record goes alone.
        while let Some(total) = totals.peek()
            && (part.totals.is_empty() || control_bound(&part) + total_bound(total) <= SETTLEMENT_BYTES)
        {
            part.totals.extend(totals.next());
        }
        if totals.peek().is_none() {
            let room = SETTLEMENT_BYTES.saturating_sub(control_bound(&part)) / RANGE_BYTES;
            let more = ranges.drain(..ranges.len().min(room as usize)).collect::<Vec<_>>();
            join(&mut part.ranges, more);
        }
        parts.push(part);
    }
    parts
}

/// Takes the first LSN out.
fn first_lsn(ranges: &mut VecDeque<(Lsn, Lsn)>) -> Option<(Lsn, Lsn)> {
    let (first, last) = ranges.pop_front()?;
    if first < last {
        ranges.push_front((first + 1, last));
    }
    Some((first, first))
}

/// Bytes of a range in a settlement.
const RANGE_BYTES: u64 = 16;

fn total_bound(total: &RouteTotal) -> u64 {
    (24 + total.route.transport.len() + total.route.destination.len()) as u64
}

/// Bytes a settlement takes in a frame, at most.
pub(super) fn control_bound(settled: &Settled) -> u64 {
    let totals: u64 = settled.totals.iter().map(total_bound).sum();
    RECORD_HEADER as u64 + 12 + settled.ranges.len() as u64 * RANGE_BYTES + totals
}

/// Cuts a settlement into what may be written now and what has to wait, if `room` more ranges may be made.
///
/// Ranges that touch what is settled already make none, so they need not wait for company that does. What a cut
/// settlement takes off the routes waits with the rest: a crash in between leaves a count too high until nothing is
/// pending.
pub(super) fn within(settled: Settled, set: &RangeSet, room: usize) -> (Option<Settled>, Option<Settled>) {
    let grows = |range: &(Lsn, Lsn)| set.would_grow(range.0, range.1);
    let new = settled.ranges.iter().filter(|range| grows(range)).count();
    if new <= room {
        return (Some(settled), None);
    }
    let (later, now): (Vec<_>, Vec<_>) = settled.ranges.into_iter().partition(grows);
    let now = (!now.is_empty()).then(|| Settled { mark: settled.mark, ranges: now, totals: Vec::new() });
    (now, Some(Settled { mark: settled.mark, ranges: later, totals: settled.totals }))
}
