//! Claims about moving on to a new segment when there is next to no room: what once stopped the log for good.

use std::sync::{Arc, Mutex};

use super::rig::Rig;
use super::tests::{options, read_all};
use super::*;

const EIO: i32 = 5;
const ENOSPC: i32 = 28;

/// The smallest segments, with frames as small as they may be.
fn smallest() -> Options {
    let base = Options::new([7; 16], 0xfeed).with_segment_bytes(32 << 10);
    Options { frame_bytes: BLOCK, ..base }
}

/// Settles messages on a great many routes with long names: what one batch of the outbox may be.
fn sprawling(lsns: impl Iterator<Item = Lsn>, routes: usize) -> Settled {
    let name = |number| format!("{number:04}-{}", "n".repeat(240));
    let total = |number| RouteTotal {
        route: Route { transport: "kafka".into(), destination: name(number).into() },
        count: 1,
        bytes: 1,
    };
    let ranges = lsns.map(|lsn| (lsn, lsn)).collect();
    Settled { mark: Mark::Delivered, ranges, totals: (0..routes).map(total).collect() }
}

/// Settlements alone were taken for small: whether a record of 256 ranges and 64 routes, 22 KB, had room was never asked.
/// Where it had none it was put back and taken again, for ever: nothing was written, a core was busy, and `sync` and
/// `close` did not return.
#[test]
fn settlements_larger_than_what_is_left_of_a_segment_move_on_to_the_next() {
    let storage = ModelStorage::new(1);
    let mut rig = Rig::new(&storage, smallest());
    for _ in 0..600 {
        rig.append(10);
    }
    rig.run();
    let before = rig.wal.space().segments;
    rig.wal.settle(sprawling((1..=600).step_by(2), 64));
    rig.sync().expect("all of it is written");
    assert_eq!((rig.wal.unlogged_settlements(), rig.wal.state().ranges), (0, 299));
    assert!(rig.wal.space().segments > before);
    drop(rig);
    let rig = Rig::new(&storage, smallest());
    assert_eq!((rig.recovered.damage.len(), rig.wal.state().ranges), (0, 299));
}

/// The same with one route, whose name alone is longer than the room that is left.
#[test]
fn a_settlement_of_one_route_with_a_long_name_moves_on_to_the_next_segment() {
    let storage = ModelStorage::new(1);
    let mut rig = Rig::new(&storage, options());
    let name = "n".repeat(7_000);
    let lsn = rig.append_to(&name, 10);
    rig.run();
    assert_eq!(rig.accepted(), [lsn]);
    for _ in 0..40 {
        rig.append(10);
        rig.run();
        rig.settle_on(&name, lsn, lsn);
        rig.sync().expect("it is written");
    }
    assert_eq!((rig.wal.unlogged_settlements(), rig.wal.state().settled_prefix), (0, 1));
}

/// What a settlement takes off the routes is written with LSNs of its own, so that it is not taken off twice where the
/// settlement is logged once more.
#[test]
fn a_large_settlement_is_cut_into_parts_that_have_an_lsn_each() {
    let storage = ModelStorage::new(1);
    let mut rig = Rig::new(&storage, options());
    for _ in 0..100 {
        rig.append(10);
    }
    rig.run();
    let settled = sprawling(1..=100, 64);
    let whole = Settled { ranges: vec![(1, 100)], ..settled };
    // The first segment fails when it is synced: all is logged again in another.
    let mut failures = 1;
    storage.on_call(move |_, call| {
        let fails = matches!(call, Operation::Sync(_)) && failures > 0;
        failures -= u32::from(fails);
        fails.then_some(Fault::Error(EIO))
    });
    rig.wal.settle(whole);
    rig.wait(3_000);
    rig.wait(3_000);
    assert_eq!((rig.wal.state().settled_prefix, rig.wal.unlogged_settlements()), (100, 0));
}

/// The checkpoint was bounded in its ranges only. With many routes there was less and less room behind it; with none left
/// a group was cut to nothing and taken again, for ever, and no settlement could be written that would have helped.
#[test]
fn a_route_too_many_is_refused_and_taken_once_others_are_delivered() {
    let storage = ModelStorage::new(1);
    let mut rig = Rig::new(&storage, smallest());
    let name = |number: u64| format!("{number:04}-{}", "n".repeat(200));
    let mut accepted = Vec::new();
    let refused = (0..).find_map(|number| {
        let lsn = rig.append_to(&name(number), 10);
        rig.run();
        let (_, outcome) = rig.outcomes().pop().expect("an answer");
        match outcome {
            Ok(_) => accepted.push((lsn, name(number))),
            Err(error) => return Some((number, error)),
        }
        assert!(number < 1_000, "the checkpoint would be longer than the segment");
        None
    });
    let (number, error) = refused.expect("it is refused");
    assert!(matches!(*error, WalError::Crowded { .. }) && error.is_no_space() && !error.possibly_stored(), "{error}");
    assert!(accepted.len() >= 5, "{}", accepted.len());
    rig.append_to(&name(0), 10);
    rig.run();
    assert_eq!(rig.accepted().len(), 1, "a route that is there already takes no more room");
    let last = rig.wal.durable();
    for (lsn, name) in &accepted[1..] {
        rig.settle_on(name, *lsn, *lsn);
        rig.wait(150);
    }
    rig.sync().expect("settlements have room at all times");
    assert_eq!(rig.wal.unlogged_settlements(), 0);
    assert_eq!(rig.append_to(&name(number), 10), last + 1);
    rig.run();
    assert_eq!(rig.accepted(), [last + 1]);
}

/// What is settled out of order takes room in the checkpoint, too: beside many routes less of it is written at once.
#[test]
fn many_routes_and_many_ranges_leave_room_for_a_message() {
    let storage = ModelStorage::new(1);
    let mut rig = Rig::new(&storage, Options { max_segments: 200, ..smallest() });
    let name = |number: Lsn| format!("{number:04}-{}", "n".repeat(60));
    for number in 0..1_200 {
        if rig.append_to(&name(number), 10) == 0 {
            assert!(rig.append_to(&name(0), 10) > 0);
        }
        if number % 20 == 0 {
            rig.run();
        }
    }
    rig.run();
    rig.outcomes();
    for lsn in (2..1_200).step_by(2) {
        rig.settle_on(&name(0), lsn, lsn);
        rig.wait(20);
    }
    rig.wait(2_000);
    assert!(rig.wal.state().ranges > 50, "{:?}", rig.wal.state().ranges);
    // Sooner or later the list of segments has no room, either; settlements still have.
    let refused = (0..500).find_map(|_| {
        rig.append_to(&name(0), 7_800);
        rig.run();
        rig.outcomes().pop().expect("an answer").1.err()
    });
    assert!(refused.is_some_and(|error| error.is_no_space()));
    for lsn in (1..rig.wal.state().next_lsn).filter(|lsn| lsn % 2 == 1 || *lsn >= 1_200) {
        rig.settle_on(&name(0), lsn, lsn);
    }
    (0..20).for_each(|_| rig.wait(1_500));
    assert_eq!(rig.wal.unlogged_settlements(), 0, "settlements have room at all times");
    rig.append_to(&name(0), 7_800);
    rig.run();
    assert_eq!(rig.accepted().len(), 1);
}

/// A message that found no segment cost the log the one it was writing: what it still had room for was refused, too.
#[test]
fn a_segment_is_written_on_when_there_is_no_other_for_a_larger_message() {
    let storage = ModelStorage::new(1);
    let mut rig = Rig::new(&storage, Options { max_segments: 3, ..options() });
    let refused = loop {
        let lsn = rig.append(12_000);
        rig.run();
        if rig.outcomes().pop().expect("an answer").1.is_err() {
            break lsn;
        }
    };
    let segments = rig.wal.space().segments;
    assert_eq!(rig.append(100), refused + 1);
    rig.run();
    assert_eq!(rig.accepted(), [refused + 1], "there is room for it");
    assert_eq!(rig.wal.space().segments, segments);
    rig.wait(200);
    drop(rig);
    for life in [Rig::new(&storage, options()), Rig::new(&storage.crash(3), options())] {
        assert_eq!(life.recovered.damage, []);
        let (records, damage) = read_all(&life.wal.reader(), 1);
        assert_eq!(damage, [], "the LSN that was refused is no damage");
        let lsns: Vec<Lsn> = records.iter().map(|record| record.lsn).collect();
        assert_eq!(lsns, (1..refused).chain([refused + 1]).collect::<Vec<_>>());
    }
}

/// The bytes of a group may be on the disk when its segment failed. It was then told that the log is full, which says that
/// it is certainly not there.
#[test]
fn a_group_that_was_written_in_vain_hears_of_it_though_there_is_no_second_segment() {
    let storage = ModelStorage::new(1);
    let mut rig = Rig::new(&storage, options());
    rig.append(10);
    rig.run();
    assert_eq!(rig.accepted(), [1]);
    let written = Arc::new(Mutex::new(false));
    storage.on_call(move |_, call| match call {
        Operation::Write { .. } => {
            *written.lock().expect("not poisoned") = true;
            None
        }
        Operation::Sync(_) if *written.lock().expect("not poisoned") => Some(Fault::Error(EIO)),
        Operation::Create(_) | Operation::Allocate(_) | Operation::Rename(..) => Some(Fault::Error(ENOSPC)),
        _ => None,
    });
    rig.append(10);
    rig.run();
    let error = rig.outcomes().pop().expect("an answer").1.expect_err("the disk fails");
    assert!(error.possibly_stored() && !error.is_no_space(), "{error}");
}

/// Whoever asked between the log's last look at its queue and the end was never answered.
#[test]
fn who_waits_when_the_log_ends_is_answered() {
    let storage = ModelStorage::new(1);
    for closes in [true, false] {
        let mut rig = Rig::new(&storage, options());
        rig.append(10);
        let Rig { wal, stepper, now, .. } = &mut rig;
        let told = std::thread::scope(|scope| {
            let waiting: Vec<_> = (0..3).map(|_| scope.spawn(|| wal.sync())).collect();
            while wal.waiting() < 3 {
                std::thread::yield_now();
            }
            if closes {
                stepper.finish(*now)
            } else {
                stepper.abandon(*now)
            }
            waiting.into_iter().map(|waiting| waiting.join().expect("it returns")).collect::<Vec<_>>()
        });
        assert_eq!(told.len(), 3);
    }
}
