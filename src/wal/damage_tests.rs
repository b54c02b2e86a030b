//! Claims about bytes that go bad: found, reported with what is lost, and everything else is there.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::tests::{message, options, read_all};
use super::*;

pub(super) fn directory() -> PathBuf {
    PathBuf::from("/wal")
}

/// A log that was written, `groups` frames of two messages each, and closed.
pub(super) fn written(groups: u64, options: &Options) -> ModelStorage {
    let storage = ModelStorage::new(1);
    let (wal, _, mut stepper) = open(&storage, options);
    let now = Instant::now();
    for group in 0..groups {
        append(&wal, 2 * group + 1, 700);
        append(&wal, 2 * group + 2, 700);
        while stepper.commit(now) == Turn::Again {}
    }
    while stepper.commit(now + Duration::from_secs(5)) == Turn::Again {}
    storage.kill();
    storage
}

pub(super) fn open(storage: &ModelStorage, options: &Options) -> (Wal, Recovered, Stepper) {
    Wal::open_stepped(Arc::new(storage.clone()), &directory(), options.clone()).expect("opens")
}

pub(super) fn append(wal: &Wal, number: u64, bytes: usize) -> Lsn {
    let outgoing = message(number, "orders", &vec![number as u8; bytes]);
    wal.append(EntryRef::Message(&outgoing), |outcome| assert!(outcome.is_ok(), "{outcome:?}"))
}

pub(super) fn segment_path(number: u64) -> PathBuf {
    super::segment::path(&directory(), number)
}

/// Each of `1..=last` is either read or reported, by the open or by a reader; returns those that are reported.
pub(super) fn accounted(storage: &ModelStorage, options: &Options, last: Lsn, what: &str) -> BTreeSet<Lsn> {
    let (wal, recovered, _stepper) = open(storage, options);
    let (records, found) = read_all(&wal.reader(), 1);
    let mut lost = BTreeSet::new();
    for damage in recovered.damage.iter().chain(&found) {
        lost.extend(damage.first_lsn..=damage.last_lsn);
    }
    for record in &records {
        assert!((1..=last).contains(&record.lsn), "{what}: {} was never written", record.lsn);
        assert_eq!(record.body.outgoing().id.number(), record.lsn, "{what}: other contents");
    }
    let read: BTreeSet<Lsn> = records.iter().map(|record| record.lsn).collect();
    for lsn in 1..=last {
        let known = read.contains(&lsn) || lost.contains(&lsn);
        assert!(known, "{what}: {lsn} is neither read nor reported: {:?} {found:?}", recovered.damage);
    }
    lost
}

#[test]
fn a_flipped_bit_never_makes_a_sealed_log_silently_shorter() {
    let options = options();
    let storage = written(20, &options);
    let path = segment_path(1);
    let length = storage.bytes(&path).expect("it is there").len();
    let mut rng = fastrand::Rng::with_seed(13);
    let flips = (0..2000).map(|_| (rng.usize(..length), 1 << rng.u8(..8)));
    // Headers are where it hurts: all of their bits as well, of the segment, the checkpoint and a frame.
    let headers =
        [0, 4096, 12288].into_iter().flat_map(|at| (at..at + 104).flat_map(|b| (0..8).map(move |bit| (b, 1u8 << bit))));
    for (at, bit) in flips.chain(headers) {
        let copy = storage.copy();
        copy.edit(&path, |bytes| bytes[at] ^= bit);
        let lost = accounted(&copy, &options, 40, &format!("bit {bit} of byte {at}"));
        assert!(lost.len() <= 2, "bit {bit} of byte {at} took more than its frame: {lost:?}");
    }
}

#[test]
fn a_log_cut_anywhere_is_reported() {
    let options = options();
    let storage = written(20, &options);
    let path = segment_path(1);
    for length in (0..65536).step_by(256).chain([1, 103, 104, 4095, 4097, 8192 + 79, 8192 + 80]) {
        let copy = storage.copy();
        copy.edit(&path, |bytes| bytes.truncate(length));
        let (wal, recovered, _stepper) = open(&copy, &options);
        let (records, found) = read_all(&wal.reader(), 1);
        let complete = records.len() == 40;
        let reported = !recovered.damage.is_empty() || !found.is_empty();
        assert!(complete || reported, "cut to {length}: {} of 40, and nothing reported", records.len());
    }
}

#[test]
fn zeroed_blocks_in_any_segment_are_reported_with_their_lsns() {
    let options = options();
    let storage = written(60, &options);
    let segments =
        storage.paths().iter().filter(|path| path.to_string_lossy().len() == "/wal/0123456789abcdef.seg".len()).count();
    assert!(segments >= 4, "{segments} segments");
    let mut rng = fastrand::Rng::with_seed(5);
    for _ in 0..500 {
        let copy = storage.copy();
        let (number, from, blocks) = (rng.u64(1..=segments as u64), rng.usize(..16) * 4096, rng.usize(1..4));
        copy.edit(&segment_path(number), |bytes| {
            let seal = (0..bytes.len()).step_by(4096).rfind(|&at| bytes[at..at + 6] == *b"OLFR\x01\x02");
            // Without its seal the end of the log cannot be told from a torn write.
            let end = bytes.len().min(from + blocks * 4096).min(seal.unwrap_or(usize::MAX));
            bytes[from.min(end)..end].fill(0);
        });
        accounted(&copy, &options, 120, &format!("{blocks} blocks from {from} of segment {number}"));
    }
}

#[test]
fn a_segment_that_is_gone_or_another_is_reported() {
    let options = options();
    let storage = written(60, &options);
    let copy = storage.copy();
    copy.unlink(&segment_path(2)).expect("it is there");
    let lost = accounted(&copy, &options, 120, "segment 2 removed");
    assert!(lost.len() > 20 && !lost.contains(&1) && !lost.contains(&120), "{lost:?}");
    let copy = storage.copy();
    let (two, three) = (copy.bytes(&segment_path(2)).expect("there"), copy.bytes(&segment_path(3)).expect("there"));
    copy.set_bytes(&segment_path(3), two);
    copy.set_bytes(&segment_path(2), three);
    let lost = accounted(&copy, &options, 120, "segments 2 and 3 swapped");
    assert!(lost.len() > 40, "{lost:?}");
}

#[test]
fn a_frame_that_was_copied_elsewhere_is_not_taken_for_a_live_one() {
    let options = options();
    let storage = written(20, &options);
    let path = segment_path(1);
    let copy = storage.copy();
    // The first group over the second, and once more over the free room behind the seal.
    copy.edit(&path, |bytes| {
        let first = bytes[8192..12288].to_vec();
        bytes[12288..16384].copy_from_slice(&first);
        let end = bytes.len() - 4096;
        bytes[end..].copy_from_slice(&first);
    });
    assert_eq!(accounted(&copy, &options, 40, "a repeated frame"), BTreeSet::from([3, 4]));
}

#[test]
fn frames_of_an_earlier_life_are_not_taken_for_live_ones() {
    let options = Options { max_segments: 4, ..options() };
    let storage = ModelStorage::new(1);
    let (wal, _, mut stepper) = open(&storage, &options);
    let mut now = Instant::now();
    let mut last = 0;
    for number in 1..=200 {
        last = append(&wal, number, 3500);
        while stepper.commit(now) == Turn::Again {}
        let route = Route { transport: "kafka".into(), destination: "orders".into() };
        let totals = vec![RouteTotal { route, count: 1, bytes: 0 }];
        if number < 195 {
            wal.settle(Settled { mark: Mark::Delivered, ranges: vec![(last, last)], totals });
        }
        now += Duration::from_millis(300);
        while stepper.prepare(now) == Turn::Again {}
    }
    while stepper.commit(now + Duration::from_secs(5)) == Turn::Again {}
    drop(wal);
    storage.kill();
    assert!(storage.paths().len() < 8, "{:?}", storage.paths());
    // A segment's bytes must never be found under another segment's name: the free name is durable before it is used.
    let trace = storage.trace();
    let freed = trace.iter().enumerate().filter_map(|(at, call)| match call {
        Operation::Rename(_, to) if to.to_string_lossy().contains("free-") => Some((at, to)),
        _ => None,
    });
    for (at, free) in freed {
        let used = trace[at..].iter().position(|call| matches!(call, Operation::Rename(from, _) if from == free));
        let synced = trace[at..].iter().position(|call| matches!(call, Operation::SyncDirectory(_)));
        assert!(used.is_none() || synced < used, "{free:?} was used before its name was durable");
    }
    let (wal, recovered, _stepper) = open(&storage, &options);
    assert_eq!((recovered.next_lsn, recovered.damage.len()), (last + 1, 0));
    let (records, damage) = read_all(&wal.reader(), 195);
    assert_eq!(damage, []);
    let unsettled: Vec<Lsn> =
        records.iter().map(|r| r.lsn).filter(|&lsn| !recovered.state.settled.contains(lsn)).collect();
    assert_eq!(unsettled, (195..=200).collect::<Vec<_>>());
}

#[test]
fn a_torn_write_is_dropped_quietly_and_its_lsns_are_not_used_again() {
    let options = options();
    let storage = written(3, &options);
    let sealed = open(&storage, &options).1;
    assert_eq!((sealed.next_lsn, sealed.torn_bytes), (7, 0));
    let (wal, _, mut stepper) = open(&storage, &options);
    append(&wal, 7, 6000);
    while stepper.commit(Instant::now()) == Turn::Again {}
    drop((wal, stepper));
    storage.kill();
    storage.edit(&segment_path(2), |bytes| bytes[8192 + 4096 + 100] ^= 1);
    let (wal, recovered, _stepper) = open(&storage, &options);
    assert_eq!(recovered.damage, []);
    assert!(recovered.next_lsn > 7, "{}", recovered.next_lsn);
    let (records, damage) = read_all(&wal.reader(), 1);
    assert_eq!((records.len(), damage.len()), (6, 0));
}

#[test]
fn a_segment_of_another_outbox_or_a_later_release_stops_the_start_and_nothing_is_written() {
    let options = options();
    let storage = written(3, &options);
    storage.clear_trace();
    let other = Options { outbox: [8; 16], ..options.clone() };
    let refused = Wal::open_stepped(Arc::new(storage.clone()), &directory(), other).err().expect("refused");
    assert!(matches!(refused, WalError::Foreign { .. }), "{refused}");
    storage.edit(&segment_path(1), |bytes| {
        bytes[8] = 2;
        let salt = u64::from_le_bytes(bytes[48..56].try_into().expect("8 bytes"));
        let crc = super::codec::checksum(salt, &bytes[..100]);
        bytes[100..104].copy_from_slice(&crc.to_le_bytes());
    });
    let refused = Wal::open_stepped(Arc::new(storage.clone()), &directory(), options).err().expect("refused");
    assert!(matches!(refused, WalError::NewerFormat { found: 2, .. }), "{refused}");
    assert!(
        storage
            .trace()
            .iter()
            .all(|call| !call.changes() || matches!(call, Operation::Sync(_) | Operation::SyncDirectory(_)))
    );
}

#[test]
fn a_newest_segment_with_a_bad_beginning_is_read_with_the_help_of_the_one_before() {
    let options = options();
    let storage = ModelStorage::new(1);
    let (wal, _, mut stepper) = open(&storage, &options);
    let mut now = Instant::now();
    for number in 1..=100 {
        let lsn = append(&wal, number, 3500);
        while stepper.commit(now) == Turn::Again {}
        let totals = Vec::new();
        wal.settle(Settled { mark: Mark::Delivered, ranges: vec![(lsn, lsn)], totals });
        now += Duration::from_millis(300);
        while stepper.prepare(now) == Turn::Again {}
    }
    append(&wal, 101, 10);
    // Written, and then synced and sealed.
    for seconds in [5, 10] {
        while stepper.commit(now + Duration::from_secs(seconds)) == Turn::Again {}
    }
    drop(wal);
    storage.kill();
    let newest =
        storage.paths().into_iter().rfind(|path| !path.to_string_lossy().contains("free-")).expect("a segment");
    for from in [0, 4096] {
        let copy = storage.copy();
        copy.edit(&newest, |bytes| bytes[from..from + 4096].fill(0));
        let (_wal, recovered, _stepper) = open(&copy, &options);
        assert_eq!(recovered.damage.len(), 1, "{:?}", recovered.damage);
        assert!(recovered.damage[0].last_lsn < recovered.damage[0].first_lsn, "no message is lost");
        assert_eq!((recovered.state.settled.prefix(), recovered.next_lsn), (100, 102));
    }
}

#[test]
fn a_settlement_that_was_synced_and_is_damaged_is_reported() {
    let options = options();
    let storage = ModelStorage::new(1);
    let (wal, _, mut stepper) = open(&storage, &options);
    let now = Instant::now();
    append(&wal, 1, 10);
    while stepper.commit(now) == Turn::Again {}
    wal.settle(Settled { mark: Mark::Delivered, ranges: vec![(1, 1)], totals: Vec::new() });
    // Written, and then synced and sealed.
    for seconds in [5, 10] {
        while stepper.commit(now + Duration::from_secs(seconds)) == Turn::Again {}
    }
    drop(wal);
    storage.kill();
    assert_eq!(open(&storage, &options).1.state.settled.prefix(), 1);
    storage.edit(&segment_path(1), |bytes| bytes[12288 + 100] ^= 1);
    let recovered = open(&storage, &options).1;
    assert_eq!((recovered.damage.len(), recovered.state.settled.prefix()), (1, 0), "{:?}", recovered.damage);
}

/// While the disk failed for a moment, an open looked for the first good frame of the last segment, passed over the
/// blocks it could not read, and took the segment for one that had never been used: what was acknowledged in it counted
/// as never written, and its LSNs as burnt. Found by `tests/model.rs`.
#[test]
fn an_open_that_cannot_read_says_so_and_concludes_nothing_from_what_it_did_not_see() {
    let options = options();
    let storage = written(5, &options);
    for (first, many) in (0..24).flat_map(|first| [(first, 1), (first, 2), (first, 99)]) {
        let copy = storage.copy();
        let mut reads = 0;
        copy.on_read(move |_, _| {
            reads += 1;
            (first..first + many).contains(&(reads - 1)).then_some(Fault::Error(5))
        });
        let opened = Wal::open_stepped(Arc::new(copy.clone()), &directory(), options.clone());
        copy.kill();
        if let Ok((wal, recovered, _stepper)) = opened {
            let (records, damage) = read_all(&wal.reader(), 1);
            assert_eq!(
                (records.len(), recovered.damage, damage),
                (10, vec![], vec![]),
                "read {first} failed, {many} of them"
            );
        }
        let lost = accounted(&copy, &options, 10, &format!("after {many} failed reads from {first}"));
        assert!(lost.is_empty(), "{lost:?}");
    }
}

#[test]
fn a_reader_that_cannot_read_stays_where_it_is_and_gives_nothing_up() {
    let options = Options { tail_bytes: 0, ..options() };
    let storage = written(5, &options);
    // The second group is damaged; behind it lie blocks that cannot be read for a moment.
    storage.edit(&segment_path(1), |bytes| bytes[12288 + 100] ^= 1);
    let (wal, _, _stepper) = open(&storage, &options);
    let reader = wal.reader();
    let mut cursor = reader.seek(1, None).expect("readable");
    assert!(matches!(reader.next(&mut cursor), Ok(Step::Frame { first_lsn: 1, .. })));
    storage.on_read(|_, call| matches!(call, Operation::Read { offset: 16384.., .. }).then_some(Fault::Error(5)));
    assert!(reader.next(&mut cursor).is_err());
    storage.kill();
    let Ok(Step::Damaged(lost)) = reader.next(&mut cursor) else { panic!("the damage is there still") };
    assert_eq!((lost.first_lsn, lost.last_lsn), (3, 4), "and no larger for what could not be read");
}
