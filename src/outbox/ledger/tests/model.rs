//! The ledger beside a sorted map.

use std::collections::BTreeMap;

use super::*;

/// What the ledger should hold.
#[derive(Default)]
struct Model {
    parked: BTreeMap<ParkedKey, ParkedRow>,
    entries: BTreeMap<u64, EntryRow>,
    lanes: BTreeMap<LaneKey, LaneRow>,
}

impl Model {
    fn parked(&self, scope: ParkedScope, after: Option<ParkedKey>, limit: usize) -> Vec<(ParkedKey, ParkedRow)> {
        let wanted = |key: &ParkedKey| match scope {
            ParkedScope::Route(route) => key.route == route,
            ParkedScope::Lane(route, lane) => key.route == route && key.lane == lane,
        };
        let behind = |key: &ParkedKey| after.is_none_or(|after| *key > after);
        let rows = self.parked.iter().filter(|(key, _)| wanted(key) && behind(key));
        rows.map(|(key, row)| (*key, *row)).take(limit).collect()
    }
}

/// Numbers at both ends and a few between, so that neighbours meet.
fn number(rng: &mut fastrand::Rng) -> u64 {
    match rng.u8(..4) {
        0 => u64::MAX - rng.u64(..2),
        1 => rng.u64(..2),
        _ => 1 << rng.u32(..20),
    }
}

fn step(ledger: &Ledger, model: &mut Model, rng: &mut fastrand::Rng) {
    let (route, lane_hash) = (number(rng), u128::from(number(rng)) << (64 * rng.u32(..2)));
    let (lsn, lane_key) = (number(rng), LaneKey { route, lane: lane_hash });
    let parked = key(route, lane_hash, lsn);
    match rng.u8(..11) {
        0..3 => {
            assert!(ledger.park(parked, row(lsn)));
            model.parked.insert(parked, row(lsn));
        }
        3 => {
            let gone = model.parked.keys().nth(rng.usize(..=model.parked.len())).copied().unwrap_or(parked);
            assert!(ledger.unpark(gone));
            model.parked.remove(&gone);
        }
        4 => {
            assert!(ledger.entry(lsn, entry(lsn)));
            model.entries.insert(lsn, entry(lsn));
        }
        5 => {
            assert!(ledger.set_lane(route, lane_hash, lane(lsn as u32)));
            model.lanes.insert(lane_key, lane(lsn as u32));
        }
        6 => {
            assert!(ledger.remove_lane(route, lane_hash));
            model.lanes.remove(&lane_key);
        }
        7 => {
            let expected = model.entries.range(..=lsn).next_back().map(|(lsn, row)| (*lsn, *row));
            assert_eq!(ledger.seek(lsn), expected, "{lsn}");
        }
        8 => {
            let limit = rng.usize(..20);
            let expected: Vec<_> = model.lanes.iter().map(|(key, row)| (*key, row.clone())).take(limit).collect();
            assert_eq!(ledger.lanes(limit), Ok(expected));
        }
        _ => {
            let scope = if rng.bool() { ParkedScope::Route(route) } else { ParkedScope::Lane(route, lane_hash) };
            let after = rng.bool().then(|| key(number(rng), u128::from(number(rng)), number(rng)));
            let limit = rng.usize(..20);
            assert_eq!(
                ledger.parked(scope, after, limit),
                Ok(model.parked(scope, after, limit)),
                "{scope:?} {after:?}"
            );
        }
    }
}

#[test]
fn it_answers_as_a_sorted_map_would_also_across_restarts() {
    for seed in 0..4 {
        println!("seed {seed}");
        let mut rng = fastrand::Rng::with_seed(seed);
        let (place, mut model) = (Place::new(), Model::default());
        let mut ledger = place.open();
        let _ = answered(&ledger);
        for _ in 0..4 {
            for _ in 0..400 {
                step(&ledger, &mut model, &mut rng);
            }
            assert!(ledger.close(PATIENCE));
            ledger = place.open();
        }
        assert_eq!(ledger.generation(), 0, "nothing was lost on the way");
    }
}
