//! Claims about a reader on a disk that does not read everything.
//!
//! One sector of an older segment could not be read: the reader tried it again for ever, and everything behind it, of
//! whatever route, was neither delivered nor told of. `repair` read the same sector, and did not get past it, either.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use super::rig::Rig;
use super::segment;
use super::tests::options;
use super::*;

const EIO: i32 = 5;

/// Blocks that cannot be read: file, offset, and how often more.
type Bad = Arc<Mutex<Vec<(PathBuf, u64, u32)>>>;

/// Ten messages, each in a frame of a block, of which none is in memory; and how the disk fails.
fn stored() -> (Rig, Bad, Vec<u64>) {
    let storage = ModelStorage::new(1);
    let mut rig = Rig::new(&storage, Options { tail_bytes: 0, ..options() });
    for _ in 0..10 {
        rig.append(100);
        rig.run();
    }
    let bad = Bad::default();
    let seen = Arc::clone(&bad);
    storage.on_read(move |_, call| {
        let Operation::Read { path, offset, length } = call else { return None };
        let mut bad = seen.lock().expect("not poisoned");
        let hit = bad
            .iter_mut()
            .find(|(file, at, times)| file == path && (*offset..offset + *length as u64).contains(at) && *times > 0)?;
        hit.2 -= 1;
        Some(Fault::Error(EIO))
    });
    let (records, _) = super::tests::read_all(&rig.wal.reader(), 1);
    let offsets = records.iter().map(|record| u64::from(record.place.offset)).collect();
    (rig, bad, offsets)
}

fn file(number: u64) -> PathBuf {
    segment::path(&super::rig::directory(), number)
}

/// What a reader gives out with so many attempts: LSNs, damage, and failures.
fn read(rig: &Rig, attempts: u32) -> (Vec<Lsn>, Vec<Damage>, u32) {
    read_with(rig, attempts, |_| {})
}

/// The same; `failed` is told how many attempts have failed.
fn read_with(rig: &Rig, attempts: u32, mut failed: impl FnMut(u32)) -> (Vec<Lsn>, Vec<Damage>, u32) {
    let reader = rig.wal.reader();
    let mut cursor = reader.seek(1, None).expect("it begins");
    let (mut lsns, mut damage, mut failures) = (Vec::new(), Vec::new(), 0);
    loop {
        match reader.next(&mut cursor) {
            Ok(Step::Frame { records, .. }) => lsns.extend(records.iter().map(|record| record.lsn)),
            Ok(Step::Damaged(lost)) => damage.push(lost),
            Ok(Step::End) => return (lsns, damage, failures),
            Err(_) => {
                failures += 1;
                failed(failures);
            }
        }
        if failures >= attempts {
            return (lsns, damage, failures);
        }
    }
}

#[test]
fn what_stays_unreadable_is_given_out_as_damage_and_the_rest_is_read() {
    let (rig, bad, offsets) = stored();
    bad.lock().expect("not poisoned").push((file(1), offsets[3], u32::MAX));
    let (lsns, damage, failures) = read(&rig, 100);
    assert_eq!(lsns, [1, 2, 3, 5, 6, 7, 8, 9, 10]);
    assert_eq!(damage.len(), 1);
    assert_eq!((damage[0].first_lsn, damage[0].last_lsn, u64::from(damage[0].offset)), (4, 4, offsets[3]));
    assert_eq!(failures, 4, "it is tried again before it is given up");
}

#[test]
fn the_end_of_a_segment_and_its_header_may_be_what_cannot_be_read() {
    let (rig, bad, offsets) = stored();
    bad.lock().expect("not poisoned").push((file(1), offsets[9], u32::MAX));
    bad.lock().expect("not poisoned").push((file(1), 0, u32::MAX));
    let (lsns, damage, _) = read(&rig, 100);
    assert_eq!(lsns, (1..=9).collect::<Vec<_>>());
    assert_eq!(damage.iter().map(|lost| (lost.first_lsn, lost.last_lsn)).collect::<Vec<_>>(), [(10, 10)]);
}

#[test]
fn what_reads_again_after_a_while_is_not_given_up() {
    let (rig, bad, offsets) = stored();
    bad.lock().expect("not poisoned").push((file(1), offsets[3], 3));
    let (lsns, damage, _) = read(&rig, 100);
    assert_eq!((lsns, damage), ((1..=10).collect(), vec![]));
}

#[test]
fn a_neighbour_that_fails_but_once_is_not_given_up_with_what_stays_unreadable() {
    for after in 1..=4 {
        let (rig, bad, offsets) = stored();
        bad.lock().expect("not poisoned").push((file(1), offsets[3], u32::MAX));
        let (lsns, damage, _) = read_with(&rig, 100, |failures| {
            if failures == after {
                bad.lock().expect("not poisoned").push((file(1), offsets[4], 1));
            }
        });
        assert_eq!(lsns, [1, 2, 3, 5, 6, 7, 8, 9, 10], "{after}");
        assert_eq!(damage.iter().map(|lost| (lost.first_lsn, lost.last_lsn)).collect::<Vec<_>>(), [(4, 4)]);
    }
}

#[test]
fn a_disk_that_reads_nothing_is_waited_for() {
    let (rig, _, _) = stored();
    rig.storage.on_read(|_, call| matches!(call, Operation::Read { .. }).then_some(Fault::Error(EIO)));
    let (lsns, damage, failures) = read(&rig, 50);
    assert_eq!((lsns.len(), damage.len(), failures), (0, 0, 50));
    // Nor is a place given up because of something that says nothing of it.
    rig.storage.on_read(|_, call| matches!(call, Operation::Read { .. }).then_some(Fault::Error(13)));
    assert_eq!(read(&rig, 50).1, []);
}
