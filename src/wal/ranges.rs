//! A set of LSNs: everything up to a prefix, and ranges beyond it. Bounded by how scattered it is, not by how large.

use std::collections::BTreeMap;

use super::Lsn;

/// A set of LSNs, as a prefix (all of `1..=prefix`) and disjoint, non-adjacent ranges beyond it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RangeSet {
    prefix: Lsn,
    /// First → last, both inclusive; never touching each other or the prefix.
    ranges: BTreeMap<Lsn, Lsn>,
}

impl RangeSet {
    /// The empty set.
    pub fn new() -> Self {
        Self::default()
    }

    /// All of `1..=prefix`.
    pub fn up_to(prefix: Lsn) -> Self {
        Self { prefix, ranges: BTreeMap::new() }
    }

    /// Adds `first..=last`, and returns how many of them are new. An empty range (`last < first`) adds nothing.
    pub fn insert(&mut self, first: Lsn, last: Lsn) -> u64 {
        let mut first = first.max(self.prefix.saturating_add(1));
        let mut last = last;
        if last < first {
            return 0;
        }
        let mut added = (last - first).saturating_add(1);
        if let Some((&start, &end)) = self.ranges.range(..=first).next_back()
            && end >= first - 1
        {
            added -= overlap((start, end), (first, last));
            first = start;
            last = last.max(end);
            self.ranges.remove(&start);
        }
        while let Some((&start, &end)) = self.ranges.range(first..=last.saturating_add(1)).next() {
            added -= overlap((start, end), (first, last));
            last = last.max(end);
            self.ranges.remove(&start);
        }
        if first == self.prefix.saturating_add(1) {
            self.prefix = last;
        } else {
            self.ranges.insert(first, last);
        }
        added
    }

    /// Whether an LSN is in the set.
    pub fn contains(&self, lsn: Lsn) -> bool {
        self.contains_range(lsn, lsn)
    }

    /// Whether all of `first..=last` are in the set; true of an empty range.
    pub fn contains_range(&self, first: Lsn, last: Lsn) -> bool {
        let first = first.max(self.prefix.saturating_add(1));
        last < first || self.ranges.range(..=first).next_back().is_some_and(|(_, &end)| end >= last)
    }

    /// The first LSN at or after `from` that is not in the set.
    pub fn next_gap(&self, from: Lsn) -> Lsn {
        let from = from.max(self.prefix.saturating_add(1));
        match self.ranges.range(..=from).next_back() {
            Some((_, &end)) if end >= from => end.saturating_add(1),
            _ => from,
        }
    }

    /// What of `first..=last` is not in the set, ascending, both ends inclusive.
    pub fn gaps_within(&self, first: Lsn, last: Lsn) -> impl Iterator<Item = (Lsn, Lsn)> + '_ {
        let gap = move |from: Lsn| {
            let start = self.next_gap(from);
            // The end of the numbers may be in the set; then there is no gap behind it.
            let open = start <= last && !self.contains(start);
            open.then(|| {
                let next = self.ranges.range(start..).next().map_or(Lsn::MAX, |(&next, _)| next - 1);
                (start, next.min(last))
            })
        };
        std::iter::successors(gap(first), move |&(_, end)| end.checked_add(1).and_then(gap))
    }

    /// Everything up to here is in the set.
    pub fn prefix(&self) -> Lsn {
        self.prefix
    }

    /// The ranges beyond the prefix, ascending, both ends inclusive.
    pub fn ranges(&self) -> impl Iterator<Item = (Lsn, Lsn)> + '_ {
        self.ranges.iter().map(|(&first, &last)| (first, last))
    }

    /// How many ranges there are beyond the prefix.
    pub fn len(&self) -> usize {
        self.ranges.len()
    }

    /// Whether nothing is in the set.
    pub fn is_empty(&self) -> bool {
        self.prefix == 0 && self.ranges.is_empty()
    }

    /// Whether adding a range would make one more of them: it touches none there is.
    pub fn would_grow(&self, first: Lsn, last: Lsn) -> bool {
        if first <= self.prefix.saturating_add(1) {
            return false;
        }
        self.ranges.range(..=last.saturating_add(1)).next_back().is_none_or(|(_, &end)| end < first - 1)
    }
}

/// How many LSNs two ranges share.
fn overlap(a: (Lsn, Lsn), b: (Lsn, Lsn)) -> u64 {
    let (first, last) = (a.0.max(b.0), a.1.min(b.1));
    if last < first { 0 } else { (last - first).saturating_add(1) }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_prefix_swallows_what_it_reaches() {
        let mut set = RangeSet::new();
        assert_eq!(set.insert(3, 4), 2);
        assert_eq!(set.insert(7, 7), 1);
        assert_eq!(set.insert(1, 2), 2);
        assert_eq!((set.prefix(), set.len()), (4, 1));
        assert_eq!(set.insert(2, 6), 2);
        assert_eq!((set.prefix(), set.len()), (7, 0));
    }

    #[test]
    fn the_last_lsn_there_is_does_not_overflow() {
        let mut set = RangeSet::new();
        set.insert(Lsn::MAX - 1, Lsn::MAX);
        set.insert(5, Lsn::MAX);
        assert!(set.contains(Lsn::MAX));
        assert_eq!(set.next_gap(5), Lsn::MAX);
        assert_eq!(set.gaps_within(3, Lsn::MAX).collect::<Vec<_>>(), [(3, 4)]);
        assert_eq!(set.len(), 1);
    }

    fn lsn_in(model: &BTreeSet<Lsn>) -> Lsn {
        model.iter().nth(model.len() / 2).copied().unwrap_or(1)
    }

    proptest! {
        #[test]
        fn it_is_a_set(inserts in prop::collection::vec((1u64..60, 0u64..9), 0..40)) {
            let (mut set, mut model) = (RangeSet::new(), BTreeSet::new());
            for (first, length) in inserts {
                let last = first + length - 1;
                let grows = set.would_grow(first, last);
                let before = set.len();
                let new = (first..=last).filter(|&lsn| model.insert(lsn)).count() as u64;
                prop_assert_eq!(set.insert(first, last), new);
                if length > 0 {
                    prop_assert_eq!(grows, set.len() > before);
                }
                for lsn in 1..75 {
                    prop_assert_eq!(set.contains(lsn), model.contains(&lsn));
                    let gap = (lsn..).find(|l| !model.contains(l));
                    prop_assert_eq!(Some(set.next_gap(lsn)), gap);
                    for end in lsn..lsn + 9 {
                        let missing: Vec<_> = set.gaps_within(lsn, end).flat_map(|(f, l)| f..=l).collect();
                        prop_assert!(missing.into_iter().eq((lsn..=end).filter(|l| !model.contains(l))));
                        prop_assert_eq!(set.contains_range(lsn, end), (lsn..=end).all(|l| model.contains(&l)));
                    }
                }
                for (first, last) in [(1, 74), (lsn_in(&model), 40)] {
                    let gaps: Vec<Lsn> = set.gaps_within(first, last).flat_map(|(a, b)| a..=b).collect();
                    let missing: Vec<Lsn> = (first..=last).filter(|lsn| !model.contains(lsn)).collect();
                    prop_assert_eq!(gaps, missing);
                }
                let ranges: Vec<_> = set.ranges().collect();
                prop_assert!(ranges.windows(2).all(|w| w[0].1 + 1 < w[1].0));
                prop_assert!(ranges.first().is_none_or(|r| r.0 > set.prefix() + 1));
            }
        }
    }
}
