//! Claims about what is called in which order, and what becomes of messages when a call fails.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::rig::{Rig, directory};
use super::tests::{message, options, read_all};
use super::*;

#[test]
fn an_acknowledgement_comes_after_the_sync_and_the_first_of_a_segment_after_the_directory_sync() {
    let storage = ModelStorage::new(1);
    // What the outside sees, in order: calls to the disk, and acknowledgements.
    let mut rig = Rig::new(&storage, options());
    let mut seen = 0;
    for _ in 0..60 {
        let before = storage.trace().len();
        rig.append(3000);
        let at_ack = Arc::new(Mutex::new(None));
        let (told, disk) = (Arc::clone(&at_ack), storage.clone());
        let outgoing = message(99, "orders", &[0; 10]);
        rig.wal.append(EntryRef::Message(&outgoing), move |_| {
            *told.lock().expect("not poisoned") = Some(disk.trace().len());
        });
        rig.run();
        let at_ack = at_ack.lock().expect("not poisoned").expect("it was acknowledged");
        let trace = &storage.trace()[before..at_ack];
        let last_write = trace.iter().rposition(|c| matches!(c, Operation::Write { .. })).expect("a write");
        let Operation::Write { path, .. } = &trace[last_write] else { unreachable!("it is a write") };
        let sync = trace.iter().rposition(|c| *c == Operation::Sync(path.clone())).expect("a sync");
        assert!(last_write < sync, "{trace:?}");
        if let Some(renamed) = trace.iter().rposition(|c| matches!(c, Operation::Rename(..))) {
            let named = trace.iter().rposition(|c| matches!(c, Operation::SyncDirectory(_))).expect("a directory sync");
            assert!(renamed < sync && sync < named, "{trace:?}");
            seen += 1;
        }
    }
    assert!(seen >= 3, "{seen} rotations");
}

#[test]
fn what_gathers_during_a_commit_is_written_as_one_frame() {
    let storage = ModelStorage::new(1);
    let mut rig = Rig::new(&storage, options());
    rig.append(10);
    rig.run();
    rig.run();
    storage.clear_trace();
    for _ in 0..20 {
        rig.append(100);
    }
    rig.run();
    let calls: Vec<_> = storage.trace().into_iter().filter(Operation::changes).collect();
    assert_eq!(calls.len(), 2, "a write and a sync: {calls:?}");
    assert_eq!(rig.accepted(), (1..=21).collect::<Vec<_>>());
}

#[test]
fn a_segment_whose_write_or_sync_failed_is_never_touched_again() {
    for seed in 0..200 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let storage = ModelStorage::new(seed);
        let mut rig = Rig::new(&storage, options());
        let failed = Arc::new(Mutex::new(Vec::<PathBuf>::new()));
        let seen = Arc::clone(&failed);
        storage.on_call(move |_, call| {
            let (Operation::Write { path, .. } | Operation::Sync(path)) = call else { return None };
            let mut failed = seen.lock().expect("not poisoned");
            assert!(!failed.contains(path), "seed {seed}: {call:?} after a failure");
            // A file that is being prepared holds nothing, and is removed.
            let segment = !path.to_string_lossy().contains("free");
            (segment && rng.u8(..6) == 0).then(|| {
                failed.push(path.clone());
                Fault::Error(5)
            })
        });
        for _ in 0..100 {
            let lsn = rig.append(500);
            rig.run();
            if rig.outcomes().iter().all(|(_, outcome)| outcome.is_ok()) {
                rig.settle(lsn, lsn);
            }
            rig.wait(120);
        }
        assert!(!failed.lock().expect("not poisoned").is_empty());
    }
}

#[test]
fn a_group_whose_sync_fails_is_written_whole_into_a_new_segment_with_its_lsns() {
    let storage = ModelStorage::new(1);
    let mut rig = Rig::new(&storage, options());
    rig.append(10);
    rig.run();
    rig.run();
    let mut failures = 1;
    rig.fail(move |call| {
        matches!(call, Operation::Sync(_)) && {
            failures -= 1;
            failures == 0
        }
    });
    let lsns: Vec<Lsn> = (0..5).map(|_| rig.append(10)).collect();
    rig.run();
    assert_eq!(rig.accepted(), [1, 2, 3, 4, 5, 6]);
    assert_eq!(lsns, [2, 3, 4, 5, 6]);
    assert_eq!(rig.wal.space().segments, 2);
    let (records, damage) = read_all(&rig.wal.reader(), 1);
    assert_eq!((records.len(), damage.len()), (6, 0));
    assert_eq!(records[1].place.segment, 2);
}

#[test]
fn when_two_segments_fail_the_group_is_refused_its_lsns_are_burnt_and_the_next_one_goes_on() {
    let storage = ModelStorage::new(1);
    let mut rig = Rig::new(&storage, options());
    rig.append(10);
    rig.run();
    assert_eq!(rig.accepted(), [1]);
    rig.fail(|call| matches!(call, Operation::Sync(_)));
    rig.append(10);
    rig.append(10);
    rig.run();
    let refused = rig.outcomes();
    assert!(refused.len() == 2 && refused.iter().all(|(_, r)| r.as_ref().is_err_and(|e| e.possibly_stored())));
    assert!(rig.wal.health().is_some());
    storage.kill();
    assert_eq!(rig.append(10), 4);
    rig.run();
    assert_eq!(rig.accepted(), [4]);
    assert_eq!(rig.wal.health(), None);
    let (records, damage) = read_all(&rig.wal.reader(), 1);
    assert_eq!(damage, [], "burnt LSNs are no damage");
    assert_eq!(records.iter().map(|r| r.lsn).collect::<Vec<_>>(), [1, 4]);
    drop(rig);
    let rig = Rig::new(&storage.crash(7), options());
    assert_eq!(rig.recovered.damage, []);
    let (records, damage) = read_all(&rig.wal.reader(), 1);
    assert_eq!(damage, []);
    assert_eq!(records.iter().map(|r| r.lsn).collect::<Vec<_>>(), [1, 4]);
}

#[test]
fn a_full_disk_refuses_and_goes_on_when_there_is_room_again() {
    let storage = ModelStorage::new(1);
    let mut rig = Rig::new(&storage, options());
    storage.on_call(|_, call| matches!(call, Operation::Allocate(_)).then_some(Fault::Error(28)));
    rig.append(10);
    rig.wal.request(1);
    rig.run();
    assert!(rig.outcomes()[0].1.is_err());
    assert!(rig.wal.space().last_error.is_some_and(|trouble| trouble.no_space));
    // It was tried again whenever somebody asked for space: thousands of times a second, as long as the disk was full.
    let tries = storage.trace().len();
    for _ in 0..100 {
        rig.wal.request(1);
        rig.run();
    }
    assert_eq!(storage.trace().len(), tries, "a full disk is tried again after a second, not at each request");
    storage.kill();
    rig.append(10);
    rig.wait(1100);
    assert_eq!(rig.accepted(), [2]);
    assert_eq!(rig.wal.space().last_error, None);
    assert!(rig.wal.space().prepared >= 1);
}

#[test]
fn what_is_promised_as_usable_is_there() {
    for seed in 0..100 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let storage = ModelStorage::new(seed);
        let mut rig = Rig::new(&storage, Options { max_segments: 8, ..options() });
        rig.wal.request(rng.u64(..300_000));
        rig.run();
        // From here on the disk is full.
        storage.on_call(|_, call| matches!(call, Operation::Allocate(_)).then_some(Fault::Error(28)));
        let mut reserved = rig.wal.usable();
        loop {
            let bytes = rng.usize(..12_000);
            let footprint = Wal::footprint(EntryRef::Message(&message(1, "orders", &vec![1; bytes])));
            if footprint > reserved {
                break;
            }
            reserved -= footprint;
            let lsn = rig.append(bytes);
            if rng.bool() {
                rig.run();
            }
            if rng.u8(..4) == 0 && rig.wal.durable() >= lsn {
                rig.settle(lsn, lsn);
                rig.wait(150);
            }
        }
        rig.run();
        let refused = rig.outcomes().into_iter().filter(|(_, outcome)| outcome.is_err()).count();
        assert_eq!(refused, 0, "seed {seed}");
    }
}

#[test]
fn an_open_reads_the_last_segment_only() {
    let storage = ModelStorage::new(1);
    let mut rig = Rig::new(&storage, options());
    for _ in 0..60 {
        rig.append(5000);
        rig.run();
    }
    rig.wait(5000);
    let segments = rig.wal.space().segments;
    assert!(segments > 5, "{segments}");
    drop(rig);
    storage.clear_trace();
    let rig = Rig::new(&storage, options());
    let last = super::segment::path(&directory(), segments as u64);
    // Besides, the first block of the few files that are ready to be used: the numbers in them are not used again.
    let free = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("free-"));
    let other = |call: &Operation| match call {
        Operation::Read { path, offset: 0, length } if free(path) => *length > BLOCK as usize,
        Operation::Open(path) if free(path) => false,
        Operation::Read { path, .. } | Operation::Open(path) | Operation::Sync(path) => *path != last,
        Operation::SyncDirectory(_) => false,
        _ => true,
    };
    let trace = storage.trace();
    assert_eq!(trace.iter().find(|call| other(call)), None);
    // Nothing is trusted before it is on the disk: the process before may have died on the way there.
    let at = |wanted: Operation| trace.iter().position(|call| *call == wanted).expect("it was called");
    let read = trace.iter().position(|call| matches!(call, Operation::Read { .. })).expect("a read");
    assert!(at(Operation::SyncDirectory(directory())) < read && at(Operation::Sync(last.clone())) < read);
    assert_eq!(rig.recovered.state.routes.values().map(|p| p.count).sum::<u64>(), 60);
}

#[test]
fn a_record_that_is_too_large_is_refused_and_takes_no_lsn() {
    let storage = ModelStorage::new(1);
    let mut rig = Rig::new(&storage, options());
    assert_eq!(rig.append(20_000), 0);
    assert_eq!(rig.append(10), 1);
    rig.run();
    let outcomes = rig.outcomes();
    assert!(outcomes[0].1.as_ref().is_err_and(|error| matches!(**error, WalError::TooLarge { .. })));
    assert!(matches!(outcomes[1].1, Ok(1)));
}

#[test]
fn a_reader_seeks_to_any_lsn_with_and_without_a_hint_from_memory_and_from_the_disk() {
    for tail_bytes in [0, 8 << 20] {
        let storage = ModelStorage::new(1);
        let mut rig = Rig::new(&storage, Options { tail_bytes, ..options() });
        for number in 0..120 {
            rig.append(2000);
            if number % 3 == 0 {
                rig.run();
            }
        }
        rig.run();
        let reader = rig.wal.reader();
        let (all, _) = read_all(&reader, 1);
        let places: Vec<Place> = all.iter().map(|record| record.place).collect();
        for lsn in 1..=121 {
            for hint in [None, places.get(lsn as usize / 2).copied(), places.last().copied()] {
                let mut cursor = reader.seek(lsn, hint).expect("readable");
                match reader.next(&mut cursor).expect("readable") {
                    Step::Frame { first_lsn, records, .. } => {
                        assert!(first_lsn <= lsn && lsn < first_lsn + records.len() as u64, "{lsn}: {first_lsn}");
                    }
                    Step::End => assert_eq!(lsn, 121),
                    Step::Damaged(damage) => panic!("{damage:?}"),
                }
            }
        }
    }
}

#[test]
fn a_log_that_is_dropped_answers_everybody_and_closed_it_takes_nothing_more() {
    let storage = ModelStorage::new(1);
    let mut rig = Rig::new(&storage, options());
    rig.append(10);
    let Rig { wal, mut stepper, outcomes, now, .. } = rig;
    drop(wal);
    while stepper.commit(now) == Turn::Again {}
    assert!(outcomes.lock().expect("not poisoned")[0].1.is_err());
    let dir = tempfile::tempdir().expect("a directory");
    let (wal, _) = Wal::open(Arc::new(DiskStorage), dir.path(), options()).expect("opens");
    wal.close().expect("closes");
    wal.close().expect("closes again");
    let outgoing = message(1, "orders", b"late");
    wal.append(EntryRef::Message(&outgoing), |outcome| {
        assert!(matches!(*outcome.expect_err("closed"), WalError::Closed))
    });
}

/// Failing each sync of a script in turn found a `close` that never returned: the seal's sync failed while somebody
/// waited for all to be durable, nothing was left to write, and the log went to sleep without an answer.
#[test]
fn who_waits_for_the_log_is_answered_when_the_seal_fails() {
    let storage = ModelStorage::new(1);
    let options = Options { seal_after: Duration::from_secs(3600), ..options() };
    let (wal, _) = Wal::open(Arc::new(storage.clone()), &directory(), options).expect("opens");
    let (told, appended) = std::sync::mpsc::channel();
    wal.append(EntryRef::Message(&message(1, "orders", b"x")), move |outcome| {
        told.send(outcome.is_ok()).expect("the test listens");
    });
    assert_eq!(appended.recv(), Ok(true));
    storage.on_call(|_, call| matches!(call, Operation::Sync(_)).then_some(Fault::Error(5)));
    let (told, synced) = std::sync::mpsc::channel();
    let wal = Arc::new(wal);
    let waiting = Arc::clone(&wal);
    std::thread::spawn(move || told.send(waiting.sync().is_ok()));
    assert_eq!(synced.recv_timeout(Duration::from_secs(20)), Ok(true), "what was appended is durable");
}
