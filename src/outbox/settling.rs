//! Settlements on their way into the log.
//!
//! What is settled counts at once for whoever asks "is this still to be delivered?"; the log learns of it in
//! batches. What a kill loses here is delivered again, which is why it is counted.

use std::collections::HashMap;

use crate::message::Route;
use crate::wal::{Lsn, Mark, RangeSet, RouteTotal, Settled};

#[derive(Debug, Default)]
struct Batch {
    lsns: Vec<Lsn>,
    totals: HashMap<Route, (u64, u64)>,
}

impl Batch {
    fn into_settled(mut self, mark: Mark) -> Settled {
        self.lsns.sort_unstable();
        let mut ranges: Vec<(Lsn, Lsn)> = Vec::new();
        for lsn in self.lsns {
            match ranges.last_mut() {
                Some((_, last)) if lsn <= last.saturating_add(1) => *last = lsn,
                _ => ranges.push((lsn, lsn)),
            }
        }
        let mut totals: Vec<_> =
            self.totals.into_iter().map(|(route, (count, bytes))| RouteTotal { route, count, bytes }).collect();
        // So that the same history leaves the same bytes.
        totals.sort_unstable_by(|a, b| a.route.cmp(&b.route));
        Settled { mark, ranges, totals }
    }
}

/// What is settled, and what of it the log has not been told yet.
#[derive(Debug, Default)]
pub struct Settling {
    settled: RangeSet,
    delivered: Batch,
    dead: Batch,
}

impl Settling {
    /// As the log says at start.
    pub fn recovered(settled: RangeSet) -> Self {
        Self { settled, ..Self::default() }
    }

    /// What is settled.
    pub fn set(&self) -> &RangeSet {
        &self.settled
    }

    /// Settles one message. False if it was settled before.
    pub fn settle(&mut self, mark: Mark, lsn: Lsn, route: &Route, bytes: u64) -> bool {
        if self.settled.contains(lsn) {
            return false;
        }
        self.settled.insert(lsn, lsn);
        let batch = if mark == Mark::Delivered { &mut self.delivered } else { &mut self.dead };
        batch.lsns.push(lsn);
        let total = match batch.totals.get_mut(route) {
            Some(total) => total,
            None => batch.totals.entry(route.clone()).or_default(),
        };
        total.0 += 1;
        total.1 += bytes;
        true
    }

    /// An LSN that was given out and never will be acknowledged. The log knows that by itself.
    pub fn burn(&mut self, lsn: Lsn) {
        self.settled.insert(lsn, lsn);
    }

    /// Settles what cannot be read, or was never there; `None` if all of it is settled. What is settled already is left
    /// out: the log takes a settlement whose first LSN it knows for one that is told twice.
    pub fn give_up(&mut self, first: Lsn, last: Lsn) -> Option<Settled> {
        let ranges: Vec<_> = self.settled.gaps_within(first, last).collect();
        self.settled.insert(first, last);
        (!ranges.is_empty()).then_some(Settled { mark: Mark::Damaged, ranges, totals: Vec::new() })
    }

    /// Settlements that the log has not been told of.
    pub fn untold(&self) -> usize {
        self.delivered.lsns.len() + self.dead.lsns.len()
    }

    /// Takes them, for the log.
    pub fn take(&mut self) -> Vec<Settled> {
        let delivered = (std::mem::take(&mut self.delivered), Mark::Delivered);
        let dead = (std::mem::take(&mut self.dead), Mark::Dead);
        [delivered, dead]
            .into_iter()
            .filter(|(batch, _)| !batch.lsns.is_empty())
            .map(|(batch, mark)| batch.into_settled(mark))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A damaged frame of which the first message was delivered was set aside with all its LSNs, and the log, which knew the
    /// first, took that for a settlement told twice: the others stayed pending there, were reported at each start, and
    /// kept their segment for ever.
    #[test]
    fn what_is_given_up_names_no_lsn_that_is_settled() {
        let route = Route { transport: "t".into(), destination: "d".into() };
        let mut settling = Settling::default();
        for lsn in [4, 7] {
            settling.settle(Mark::Delivered, lsn, &route, 10);
        }
        let given_up = settling.give_up(4, 9).expect("some of it is pending");
        assert_eq!(given_up.ranges, [(5, 6), (8, 9)]);
        assert_eq!(settling.give_up(4, 9), None);
    }

    /// Damage may name more LSNs than can be walked: they were counted one by one, for ever.
    #[test]
    fn what_is_given_up_is_counted_as_a_range() {
        let mut settling = Settling::recovered(RangeSet::up_to(5));
        let given_up = settling.give_up(4, 1 << 62).expect("some of it is pending");
        assert_eq!(given_up.ranges, [(6, 1 << 62)]);
        assert_eq!(settling.give_up(4, 9), None);
    }

    #[test]
    fn settlements_reach_the_log_once_as_ranges_with_their_totals() {
        let route = Route { transport: "t".into(), destination: "d".into() };
        let mut settling = Settling::default();
        for lsn in [3, 1, 2, 7] {
            assert!(settling.settle(Mark::Delivered, lsn, &route, 10));
        }
        assert!(!settling.settle(Mark::Delivered, 7, &route, 10), "a second settlement counts nothing");
        assert!(settling.settle(Mark::Dead, 5, &route, 1));
        assert_eq!(settling.untold(), 5);
        let told = settling.take();
        assert_eq!(told[0].ranges, [(1, 3), (7, 7)]);
        assert_eq!((told[0].totals[0].count, told[0].totals[0].bytes), (4, 40));
        assert_eq!((told[1].mark, &told[1].ranges[..]), (Mark::Dead, &[(5, 5)][..]));
        assert_eq!(settling.untold(), 0);
        assert_eq!(settling.set().prefix(), 3);
    }
}
