//! What is pending on each route: how many, how much, since when. Counts in memory, bounded by the routes.

use std::collections::{HashMap, VecDeque};

use crate::message::Route;
use crate::wal::{Lsn, Pending};

/// Buckets a route: their first time is the oldest, to the bucket.
const BUCKETS: usize = 1_024;
/// A bucket takes what is stored within this many milliseconds.
const BUCKET_MILLIS: i64 = 1_000;

#[derive(Debug)]
struct Bucket {
    first: Lsn,
    time: i64,
    count: u64,
}

#[derive(Debug, Default)]
struct Total {
    count: u64,
    bytes: u64,
    buckets: VecDeque<Bucket>,
}

/// Pending messages by route.
#[derive(Debug, Default)]
pub struct Totals {
    routes: HashMap<Route, Total>,
    /// The last LSN that was stored.
    last: Lsn,
}

impl Totals {
    /// As the log says at start.
    pub fn recovered<'a>(routes: impl Iterator<Item = (&'a Route, &'a Pending)>) -> Self {
        let routes = routes
            .filter(|(_, pending)| pending.count > 0)
            .map(|(route, pending)| {
                let bucket = Bucket { first: 0, time: pending.oldest, count: pending.count };
                let total = Total { count: pending.count, bytes: pending.bytes, buckets: VecDeque::from([bucket]) };
                (route.clone(), total)
            })
            .collect();
        Self { routes, last: 0 }
    }

    /// A message was stored at `now` (milliseconds since 1970).
    pub fn stored(&mut self, route: &Route, lsn: Lsn, bytes: u64, now: i64) {
        self.last = self.last.max(lsn);
        let total = match self.routes.get_mut(route) {
            Some(total) => total,
            None => self.routes.entry(route.clone()).or_default(),
        };
        total.count += 1;
        total.bytes += bytes;
        let full = total.buckets.len() >= BUCKETS;
        match total.buckets.back_mut() {
            Some(last) if full || now.saturating_sub(last.time) < BUCKET_MILLIS => last.count += 1,
            _ => total.buckets.push_back(Bucket { first: lsn, time: now, count: 1 }),
        }
    }

    /// A message was settled.
    pub fn settled(&mut self, route: &Route, lsn: Lsn, bytes: u64) {
        let Some(total) = self.routes.get_mut(route) else { return };
        total.count = total.count.saturating_sub(1);
        total.bytes = total.bytes.saturating_sub(bytes);
        let behind = total.buckets.partition_point(|bucket| bucket.first <= lsn);
        if let Some(bucket) = total.buckets.get_mut(behind.saturating_sub(1)) {
            bucket.count = bucket.count.saturating_sub(1);
        }
        while total.buckets.front().is_some_and(|bucket| bucket.count == 0) {
            total.buckets.pop_front();
        }
        if total.count == 0 {
            self.routes.remove(route);
        }
    }

    /// The last LSN that was stored since the opening; 0 without one.
    pub fn last(&self) -> Lsn {
        self.last
    }

    /// Nothing is pending any more: forgets what damaged messages, whose route nobody knows, left in the counts.
    pub fn clear(&mut self) {
        self.routes.clear();
    }

    /// Route, count, bytes and oldest time.
    pub fn snapshot(&self) -> Vec<(Route, Pending)> {
        let of = |total: &Total| Pending {
            count: total.count,
            bytes: total.bytes,
            oldest: total.buckets.front().map_or(i64::MAX, |bucket| bucket.time),
        };
        let mut all: Vec<_> = self.routes.iter().map(|(route, total)| (route.clone(), of(total))).collect();
        all.sort_by(|(a, _), (b, _)| a.cmp(b));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_time_follows_what_is_settled() {
        let route = Route { transport: "t".into(), destination: "d".into() };
        let mut totals = Totals::default();
        for lsn in 1..=10 {
            totals.stored(&route, lsn, 5, lsn as i64 * 2_000);
        }
        assert_eq!(totals.snapshot()[0].1, Pending { count: 10, bytes: 50, oldest: 2_000 });
        totals.settled(&route, 2, 5);
        assert_eq!(totals.snapshot()[0].1.oldest, 2_000);
        totals.settled(&route, 1, 5);
        assert_eq!(totals.snapshot()[0].1, Pending { count: 8, bytes: 40, oldest: 6_000 });
        for lsn in 3..=10 {
            totals.settled(&route, lsn, 5);
        }
        assert!(totals.snapshot().is_empty());
    }
}
