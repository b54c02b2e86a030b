//! Claims about the audit, on a disk in memory: it finds what is wrong, names its LSNs, and finds nothing else.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::tests::{message, options, read_all};
use super::super::{
    EntryRef, Mark, ModelStorage, Operation, RouteTotal, Settled, Stepper, Turn, Wal, segment, segment_path,
};
use super::*;

const LOG: &str = "/wal";

fn open(storage: &ModelStorage) -> (Wal, Stepper) {
    let (wal, _, stepper) = Wal::open_stepped(Arc::new(storage.clone()), Path::new(LOG), options()).expect("opens");
    (wal, stepper)
}

fn append(wal: &Wal, number: u64, bytes: usize) -> Lsn {
    let outgoing = message(number, "orders", &vec![number as u8; bytes]);
    wal.append(EntryRef::Message(&outgoing), |_| {})
}

fn settle(wal: &Wal, first: Lsn, last: Lsn, bytes: u64) {
    let route = Route { transport: "kafka".into(), destination: "orders".into() };
    let count = last - first + 1;
    let totals = vec![RouteTotal { route, count, bytes: count * bytes }];
    wal.settle(Settled { mark: Mark::Delivered, ranges: vec![(first, last)], totals });
}

/// `count` messages in frames of two, the first `settled` of them settled, over several segments, and closed.
fn written(count: u64, settled: u64) -> ModelStorage {
    let storage = ModelStorage::new(1);
    let (wal, mut stepper) = open(&storage);
    let size = message(1, "orders", &[0; 700]).message.size() as u64;
    let mut now = Instant::now();
    for number in 1..=count {
        append(&wal, number, 700);
        if number % 2 == 0 {
            while stepper.commit(now) == Turn::Again {}
            if number <= settled {
                settle(&wal, number - 1, number, size);
            }
        }
        now += Duration::from_millis(20);
    }
    for _ in 0..4 {
        now += Duration::from_secs(5);
        while stepper.prepare(now) == Turn::Again {}
        while stepper.commit(now) == Turn::Again {}
    }
    drop((wal, stepper));
    storage.kill();
    storage
}

fn look(storage: &ModelStorage) -> Audit {
    audit(storage, Path::new(LOG), None, &mut |_| {}).expect("the directory can be listed")
}

fn path(number: u64) -> PathBuf {
    segment_path(Path::new(LOG), number)
}

fn segments(storage: &ModelStorage) -> Vec<u64> {
    let names = storage.list(Path::new(LOG)).expect("lists");
    let mut numbers: Vec<u64> = names
        .iter()
        .filter_map(|name| match segment::Name::parse(name) {
            Some(segment::Name::Segment(number)) => Some(number),
            _ => None,
        })
        .collect();
    numbers.sort_unstable();
    numbers
}

fn lsns(audit: &Audit, kind: FlawKind) -> Vec<Lsns> {
    audit.flaws.iter().filter(|flaw| flaw.kind == kind).map(|flaw| flaw.lsns).collect()
}

#[test]
fn an_intact_log_has_no_flaw_and_its_counts_are_those_of_its_records() {
    for (count, settled) in [(0, 0), (2, 0), (2, 2), (120, 0), (120, 60), (400, 399), (400, 400)] {
        let audit = look(&written(count, settled));
        assert_eq!(audit.flaws, [], "{count} written, {settled} settled");
        let pending: u64 = audit.pending.values().map(|pending| pending.count).sum();
        assert_eq!((audit.next_lsn, pending), (count + 1, count - settled / 2 * 2), "{count}, {settled}");
        let totals = |of: &BTreeMap<Route, Pending>| {
            of.values().fold((0, 0), |sum, pending| (sum.0 + pending.count, sum.1 + pending.bytes))
        };
        assert_eq!(totals(&audit.pending), totals(&audit.said));
    }
}

#[test]
fn nothing_is_written_and_nothing_synced() {
    let storage = written(120, 60);
    storage.clear_trace();
    look(&storage);
    let trace = storage.trace();
    assert!(trace.iter().any(|call| matches!(call, Operation::Read { .. })));
    assert!(!trace.iter().any(Operation::changes), "{trace:?}");
}

#[test]
fn a_crash_at_any_call_leaves_no_log_in_which_something_is_missing() {
    for seed in 0..300 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut storage = ModelStorage::new(seed);
        for _ in 0..3 {
            let (wal, mut stepper) = open(&storage);
            let stop = rng.usize(..90);
            storage.on_call(move |number, _| (number >= stop).then_some(super::super::Fault::Stop));
            let mut now = Instant::now();
            let mut durable = wal.durable();
            for number in 0..rng.u64(..60) {
                append(&wal, number, rng.usize(..3000));
                if wal.durable() > durable && rng.bool() {
                    settle(&wal, durable + 1, wal.durable(), 0);
                    durable = wal.durable();
                }
                now += Duration::from_millis(rng.u64(..150));
                stepper.prepare(now);
                stepper.commit(now);
            }
            drop((wal, stepper));
            storage = storage.crash(rng.u64(..));
            let audit = look(&storage);
            let harmless = [FlawKind::Torn, FlawKind::Begun, FlawKind::Leftover];
            let wrong: Vec<&Flaw> = audit.flaws.iter().filter(|flaw| !harmless.contains(&flaw.kind)).collect();
            assert!(wrong.is_empty() && audit.lost() == 0, "seed {seed}: {wrong:?}");
        }
    }
}

/// What recovery and a reader report after a damage, the audit reports, too, and nothing that they can read.
#[test]
fn the_audit_misses_exactly_what_a_reader_misses() {
    let storage = written(120, 30);
    let numbers = segments(&storage);
    let mut rng = fastrand::Rng::with_seed(7);
    for round in 0..600 {
        let copy = storage.copy();
        let number = numbers[rng.usize(..numbers.len())];
        let what = match round % 3 {
            0 => {
                let (at, bit) = (rng.usize(..65536), rng.u8(..8));
                copy.edit(&path(number), |bytes| bytes[at] ^= 1 << bit);
                format!("bit {bit} of byte {at} of {number}")
            }
            1 => {
                let (at, blocks) = (rng.usize(..16) * 4096, rng.usize(1..4));
                let end = 65536.min(at + blocks * 4096);
                copy.edit(&path(number), |bytes| bytes[at..end].fill(0));
                format!("{at}..{end} of {number} zeroed")
            }
            _ => {
                let length = rng.usize(..65536);
                copy.edit(&path(number), |bytes| bytes.truncate(length));
                format!("{number} cut to {length}")
            }
        };
        let audit = look(&copy);
        let mut told = BTreeSet::new();
        for flaw in &audit.flaws {
            if let Lsns::Range(first, last) = flaw.lsns {
                told.extend((first..=last).filter(|&lsn| !audit.settled.contains(lsn)));
            }
        }
        let (wal, _stepper) = open(&copy);
        let (records, _) = read_all(&wal.reader(), 1);
        let read: BTreeSet<Lsn> = records.iter().map(|record| record.lsn).collect();
        let missed: BTreeSet<Lsn> =
            (1..=120).filter(|lsn| !audit.settled.contains(*lsn) && !read.contains(lsn)).collect();
        // Behind a torn end nothing is known any more; there it only must not be silent.
        let known: BTreeSet<Lsn> = missed.iter().copied().filter(|&lsn| lsn < audit.next_lsn).collect();
        assert_eq!(told, known, "{what}: {:?}", audit.flaws);
        assert_eq!(audit.lost(), told.len() as u64, "{what}");
        assert!(missed.is_empty() || !audit.flaws.is_empty(), "{what}: {missed:?} missing, and nothing told");
    }
}

#[test]
fn files_that_are_not_what_their_names_say_are_named() {
    let storage = written(120, 0);
    let numbers = segments(&storage);
    assert!(numbers.len() >= 4, "{numbers:?}");
    let (two, three) = (storage.bytes(&path(2)).expect("there"), storage.bytes(&path(3)).expect("there"));

    let swapped = storage.copy();
    swapped.set_bytes(&path(3), two.clone());
    swapped.set_bytes(&path(2), three);
    let found = look(&swapped);
    assert_eq!(lsns(&found, FlawKind::Misplaced).len(), 2, "{:?}", found.flaws);
    assert_eq!(found.flaws.iter().map(|flaw| flaw.segment).collect::<Vec<_>>(), [Some(2), Some(3)]);

    let repeated = storage.copy();
    repeated.set_bytes(&path(99), two.clone());
    let found = look(&repeated);
    assert_eq!((lsns(&found, FlawKind::Misplaced).len(), found.lost()), (1, 0), "{:?}", found.flaws);

    let gone = storage.copy();
    gone.unlink(&path(2)).expect("it is there");
    let found = look(&gone);
    let Lsns::Range(first, last) = lsns(&found, FlawKind::Missing)[0] else { panic!("{:?}", found.flaws) };
    assert_eq!((found.flaws.len(), found.lost()), (1, last - first + 1), "{:?}", found.flaws);

    let foreign = storage.copy();
    foreign.edit(&path(2), |bytes| {
        bytes[16] ^= 1;
        let salt = u64::from_le_bytes(bytes[48..56].try_into().expect("8 bytes"));
        let crc = super::super::codec::checksum(salt, &bytes[..100]);
        bytes[100..104].copy_from_slice(&crc.to_le_bytes());
    });
    let found = look(&foreign);
    assert_eq!(lsns(&found, FlawKind::Foreign), [Lsns::Range(first, last)], "{:?}", found.flaws);
    let theirs = audit(&foreign, Path::new(LOG), Some([9; 16]), &mut |_| {}).expect("lists");
    assert!(theirs.flaws.iter().any(|flaw| flaw.stops_start), "{:?}", theirs.flaws);

    let longer = storage.copy();
    longer.edit(&path(2), |bytes| bytes.extend([7; 500]));
    let found = look(&longer);
    assert_eq!((found.flaws.len(), found.flaws[0].kind, found.flaws[0].length), (1, FlawKind::Trailing, 500));
}

#[test]
fn a_segment_of_a_later_release_is_named_and_the_rest_is_read() {
    let storage = written(120, 0);
    let newest = *segments(&storage).last().expect("there are some");
    storage.edit(&path(newest), |bytes| {
        bytes[8] = 2;
        let salt = u64::from_le_bytes(bytes[48..56].try_into().expect("8 bytes"));
        let crc = super::super::codec::checksum(salt, &bytes[..100]);
        bytes[100..104].copy_from_slice(&crc.to_le_bytes());
    });
    let found = look(&storage);
    let stops: Vec<_> = found.flaws.iter().filter(|flaw| flaw.stops_start).collect();
    assert_eq!((stops.len(), stops[0].kind, stops[0].segment), (1, FlawKind::Newer, Some(newest)));
    assert!(found.records > 60, "{found:?}");
}
