//! Claims about damage that was once passed over in silence, or once made worse.

use std::time::{Duration, Instant};

use super::damage_tests::{accounted, append, open, segment_path, written};
use super::rig::Rig;
use super::tests::{options, read_all};
use super::*;

/// The reader looked at the number in a segment's header and not at the outbox: another outbox's segment of that number,
/// put back by mistake, was delivered as if it were ours.
#[test]
fn an_older_segment_of_another_outbox_is_not_read() {
    let options = options();
    let storage = written(60, &options);
    let other = written(60, &Options { outbox: [8; 16], ..options.clone() });
    storage.set_bytes(&segment_path(2), other.bytes(&segment_path(2)).expect("it is there"));
    let lost = accounted(&storage, &options, 120, "segment 2 is another outbox's");
    assert!(lost.len() > 20 && !lost.contains(&1) && !lost.contains(&120), "{lost:?}");
}

/// Recovery found no good frame in either, took both for segments that were begun and never acknowledged, and removed them:
/// acknowledged messages were gone without a word.
#[test]
fn the_two_newest_segments_under_each_others_names_are_reported_and_left_alone() {
    let options = options();
    let storage = written(60, &options);
    let newest = storage.paths().len() as u64;
    let (a, b) = (segment_path(newest - 1), segment_path(newest));
    let (bytes_a, bytes_b) = (storage.bytes(&a).expect("there"), storage.bytes(&b).expect("there"));
    storage.set_bytes(&a, bytes_b.clone());
    storage.set_bytes(&b, bytes_a.clone());
    for life in 0..3 {
        let (wal, recovered, mut stepper) = open(&storage, &options);
        assert!(life > 0 || !recovered.damage.is_empty(), "not reported");
        assert!(recovered.next_lsn > 120, "{} was given out before", recovered.next_lsn);
        append(&wal, 1000 + life, 10);
        let later = Instant::now() + Duration::from_secs(5);
        while stepper.commit(later) == Turn::Again {}
        while stepper.prepare(later) == Turn::Again {}
        drop((wal, stepper));
        storage.kill();
    }
    assert_eq!((storage.bytes(&a), storage.bytes(&b)), (Some(bytes_b), Some(bytes_a)));
}

/// The open reported the lost end of a segment, and the reader stepped to the next one without coming across it: so it was
/// set aside by nobody, stayed pending for ever and kept its segment.
#[test]
fn the_reader_comes_across_what_only_a_later_segment_tells_of() {
    let options = options();
    let storage = written(60, &options);
    let newest = storage.paths().len() as u64;
    // The newest has a bad beginning, so the one before is walked; its last groups are gone.
    storage.edit(&segment_path(newest), |bytes| bytes[..4096].fill(0));
    storage.edit(&segment_path(newest - 1), |bytes| {
        let middle = bytes.len() / 8192 * 4096;
        bytes[middle..].fill(0);
    });
    let (wal, recovered, _stepper) = open(&storage, &options);
    let known = recovered.damage.iter().find(|damage| damage.last_lsn >= damage.first_lsn).expect("reported");
    let (_, met) = read_all(&wal.reader(), 1);
    let covers = |met: &Damage| met.first_lsn <= known.first_lsn && met.last_lsn >= known.last_lsn;
    assert!(met.iter().any(covers), "{known:?} is not among {met:?}");
}

/// Only the next good frame was asked whether a bad one had been synced. A settlement waits to be synced with what follows,
/// so that one does not know; damage to it made the settled messages pending again without a word.
#[test]
fn a_damaged_settlement_is_reported_if_any_later_frame_knows_that_it_was_synced() {
    let options = options();
    let storage = ModelStorage::new(1);
    let (wal, _, mut stepper) = open(&storage, &options);
    let mut now = Instant::now();
    append(&wal, 1, 10);
    while stepper.commit(now) == Turn::Again {}
    wal.settle(Settled { mark: Mark::Delivered, ranges: vec![(1, 1)], totals: Vec::new() });
    now += Duration::from_millis(150);
    while stepper.commit(now) == Turn::Again {}
    for number in 2..=3 {
        append(&wal, number, 10);
        while stepper.commit(now) == Turn::Again {}
    }
    drop((wal, stepper));
    storage.kill();
    assert_eq!(open(&storage, &options).1.state.settled.prefix(), 1);
    storage.edit(&segment_path(1), |bytes| bytes[12288 + 90] ^= 1);
    let recovered = open(&storage, &options).1;
    assert_eq!((recovered.damage.len(), recovered.state.settled.prefix()), (1, 0), "{:?}", recovered.damage);
}

/// Behind a seal, a frame with a damaged header was taken for nothing at all, and its LSN given out once more.
#[test]
fn an_acknowledged_lsn_is_not_used_again_because_its_header_is_damaged() {
    let options = options();
    let storage = ModelStorage::new(1);
    let (wal, _, mut stepper) = open(&storage, &options);
    append(&wal, 1, 10);
    for seconds in [0, 5] {
        while stepper.commit(Instant::now() + Duration::from_secs(seconds)) == Turn::Again {}
    }
    let second = append(&wal, 2, 10);
    while stepper.commit(Instant::now() + Duration::from_secs(5)) == Turn::Again {}
    drop((wal, stepper));
    storage.kill();
    let bytes = storage.bytes(&segment_path(1)).expect("it is there");
    let last = (0..bytes.len()).step_by(4096).rfind(|&at| bytes[at..at + 4] == *b"OLFR").expect("a frame");
    for byte in 0..80 {
        let copy = storage.copy();
        copy.edit(&segment_path(1), |bytes| bytes[last + byte] ^= 1);
        let next = open(&copy, &options).1.next_lsn;
        assert!(next > second, "byte {byte}: {next} was given out before");
    }
}

/// Behind a log that was closed, a segment whose file is empty was reported, and the LSNs that were in it were given out
/// once more.
#[test]
fn as_many_lsns_are_burnt_as_a_lost_segment_may_have_held() {
    let options = options();
    let storage = written(3, &options);
    let (wal, _, mut stepper) = open(&storage, &options);
    let last = append(&wal, 7, 10);
    while stepper.commit(Instant::now()) == Turn::Again {}
    drop((wal, stepper));
    storage.kill();
    storage.edit(&segment_path(2), Vec::clear);
    let recovered = open(&storage, &options).1;
    assert_eq!(recovered.damage.len(), 1, "{:?}", recovered.damage);
    assert!(recovered.next_lsn > last, "{} was given out before", recovered.next_lsn);
}

/// A segment that was needed, under the name of a later one, was taken for a file of an earlier life and removed.
#[test]
fn a_needed_segment_under_a_later_name_is_left_alone() {
    let options = options();
    let storage = written(60, &options);
    let bytes = storage.bytes(&segment_path(2)).expect("it is there");
    storage.unlink(&segment_path(2)).expect("it is there");
    storage.set_bytes(&segment_path(99), bytes.clone());
    for life in 0..2 {
        let (wal, recovered, mut stepper) = open(&storage, &options);
        assert!(recovered.damage.iter().any(|damage| damage.segment == 2), "{:?}", recovered.damage);
        append(&wal, 1000 + life, 10);
        let later = Instant::now() + Duration::from_secs(5);
        while stepper.commit(later) == Turn::Again {}
        while stepper.prepare(later) == Turn::Again {}
        drop((wal, stepper));
        storage.kill();
    }
    assert_eq!(storage.bytes(&segment_path(99)), Some(bytes));
}

/// How many LSNs may be lost with the end of a log was reckoned by the size of segments of this run. With larger ones
/// before, LSNs that had been acknowledged were given out again.
#[test]
fn as_many_lsns_are_burnt_as_the_segments_of_the_run_before_had_room_for() {
    let storage = ModelStorage::new(1);
    let large = Options::new([7; 16], 1).with_segment_bytes(1 << 20);
    let mut rig = Rig::new(&storage, large.clone());
    rig.append(10);
    rig.run();
    drop(rig);
    let mut rig = Rig::new(&storage, large);
    for _ in 0..5_000 {
        rig.append(0);
    }
    rig.run();
    let last = rig.wal.durable();
    assert_eq!(rig.accepted().len(), 5_000);
    drop(rig);
    storage.edit(&super::segment::path(&super::rig::directory(), 2), |bytes| bytes.truncate(BLOCK as usize));
    let mut rig = Rig::new(&storage, Options::new([7; 16], 1).with_segment_bytes(32 << 10));
    assert!(!rig.recovered.damage.is_empty(), "it is told of");
    assert!(rig.append(10) > last, "{last} was acknowledged");
}

/// A settlement that was logged again took up what came later. Where the second writing lay in a segment that was lost but
/// for its frames, what was added looked like a part of the first, and was pending again, in a segment that was gone.
#[test]
fn a_settlement_is_logged_again_as_it_was() {
    let storage = ModelStorage::new(1);
    let mut rig = Rig::new(&storage, Options { seal_after: Duration::from_secs(60), ..options() });
    for _ in 0..4 {
        rig.append(10);
    }
    rig.run();
    let mut failures = 1;
    storage.on_call(move |_, call| {
        let fails = matches!(call, Operation::Sync(path) if *path == segment_path(1)) && failures > 0;
        failures -= u32::from(fails);
        fails.then_some(Fault::Error(5))
    });
    rig.settle(1, 1);
    // Written, not yet synced; then its sync fails, and it waits to be logged again.
    rig.wait(150);
    rig.now += Duration::from_secs(1);
    rig.stepper.commit(rig.now);
    assert_eq!(rig.wal.unlogged_settlements(), 1);
    rig.settle(2, 3);
    rig.wait(2_000);
    assert_eq!((rig.wal.state().settled_prefix, rig.wal.unlogged_settlements()), (3, 0));
    drop(rig);
    let newest = storage.paths().into_iter().filter(|path| path.extension().is_some_and(|ext| ext == "seg"));
    let newest = newest.filter(|path| !path.to_string_lossy().contains("free")).max().expect("a segment");
    assert_eq!(newest, segment_path(2), "that of the second writing");
    storage.edit(&newest, |bytes| bytes[..4096].fill(0));
    let again = Rig::new(&storage, options());
    assert_eq!(again.recovered.state.settled.prefix(), 3);
}
