//! Claims about bytes whose checksums match and that no release wrote: an outbox somebody made to do harm. What the
//! fuzz targets found on the way there; each test opens with its story.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::tests::{message, options, read_all};
use super::*;

fn directory() -> PathBuf {
    PathBuf::from("/wal")
}

fn path(number: u64) -> PathBuf {
    super::segment::path(&directory(), number)
}

fn open(storage: &ModelStorage) -> Result<(Wal, Recovered, Stepper), WalError> {
    Wal::open_stepped(Arc::new(storage.clone()), &directory(), options())
}

/// A log of a segment and a bit: the second begins with a checkpoint that names the first.
fn written() -> ModelStorage {
    written_with(18)
}

fn written_with(messages: u64) -> ModelStorage {
    let storage = ModelStorage::new(1);
    let (wal, _, mut stepper) = open(&storage).expect("opens");
    let now = Instant::now();
    for number in 1..=messages {
        wal.append(EntryRef::Message(&message(number, "orders", &[7; 100])), |outcome| assert!(outcome.is_ok()));
        while stepper.commit(now) == Turn::Again {}
    }
    wal.settle(delivered(3));
    while stepper.commit(now + Duration::from_secs(5)) == Turn::Again {}
    storage.kill();
    storage
}

fn delivered(lsn: Lsn) -> Settled {
    let totals = vec![RouteTotal { route: message(1, "orders", &[]).route, count: 1, bytes: 100 }];
    Settled { mark: Mark::Delivered, ranges: vec![(lsn, lsn)], totals }
}

/// Opens it, reads it, settles and writes, and opens it again; returns what was given out and acknowledged, if it opened.
fn used(storage: &ModelStorage) -> Option<Lsn> {
    let (wal, _, mut stepper) = open(storage).ok()?;
    read_all(&wal.reader(), 1);
    wal.settle(delivered(1));
    let mut now = Instant::now();
    let mut run = || {
        now += Duration::from_secs(5);
        while stepper.commit(now) == Turn::Again || stepper.prepare(now) == Turn::Again {}
    };
    run();
    let lsn = wal.append(EntryRef::Message(&message(99, "orders", b"new")), |outcome| assert!(outcome.is_ok()));
    run();
    drop(wal);
    storage.kill();
    let (wal, recovered, _) = open(storage).expect("opens again");
    let (records, _) = read_all(&wal.reader(), lsn);
    assert!(!recovered.state.settled.contains(lsn), "{lsn} is settled, and nobody settled it");
    assert!(records.iter().any(|record| record.lsn == lsn), "{lsn} was acknowledged and is gone");
    Some(lsn)
}

/// A segment could say that it was 4 GiB long, an LSN that it was the last there is, a checkpoint that a segment ends
/// where none can: sums overflowed (a panic in a debug build, a walk in circles in a release build), and lengths were
/// allocated.
#[test]
fn no_number_in_bytes_with_good_checksums_makes_an_open_panic_or_hang() {
    let storage = written();
    let edges = [0, 1 << 30, u64::from(u32::MAX), u64::MAX - 1, u64::MAX];
    let segment = path(2);
    for at in (8..88).chain(4096 + 24..4096 + 280).chain(8192 + 24..8192 + 116).step_by(4) {
        for edge in edges {
            let width = if edge > u64::from(u32::MAX) { 8 } else { 4 };
            let copy = storage.copy();
            copy.edit(&segment, |bytes| {
                bytes[at..at + width].copy_from_slice(&edge.to_le_bytes()[..width]);
                probe::mend(bytes);
            });
            used(&copy);
        }
    }
}

/// A settlement may name LSNs that nobody was given yet. It was believed, and the messages that got them later were
/// taken for settled: acknowledged, and gone after the next start.
#[test]
fn what_is_not_there_yet_is_not_settled_by_what_is() {
    let storage = written();
    let changed = std::cell::Cell::new(false);
    storage.edit(&path(2), |bytes| {
        for frame in (4096..bytes.len()).step_by(4096) {
            // The settlement is the only record of its frame: tag, length, mark, counts, and one range.
            if bytes[frame..].starts_with(b"OLFR\x01\x00") && bytes[frame + 80] == 16 {
                bytes[frame + 108..frame + 116].copy_from_slice(&(1u64 << 40).to_le_bytes());
                changed.set(true);
            }
        }
        probe::mend(bytes);
    });
    assert!(changed.get());
    assert!(used(&storage).is_some());
}

/// A name like `ffffffffffffffff.seg` made the next segment's number overflow, or be one that was there.
#[test]
fn a_segment_of_an_impossible_number_is_no_segment() {
    let storage = written();
    for number in [u64::MAX, u64::MAX - 1] {
        storage.set_bytes(&path(number), vec![0; 64 << 10]);
        storage.set_bytes(&super::segment::free_path(&directory(), number), vec![0; 64 << 10]);
    }
    assert_eq!(used(&storage), used(&written()));
}

/// An LSN could be just below the greatest that is read, and so could the number in a file's name. The log opened and
/// went on from there, beyond it: segments were written, and messages acknowledged, that the next start did not know.
#[test]
fn a_log_whose_numbers_are_nearly_used_up_is_not_opened() {
    let refused = |storage: &ModelStorage, expected: &str| {
        let before = (storage.paths(), storage.bytes(&path(2)));
        match open(storage) {
            Err(WalError::Exhausted { what, found, .. }) => {
                assert!(what.contains(expected) && found > LAST_START, "{what} {found}");
            }
            other => panic!("{expected}: {:?}", other.map(|(_, found, _)| found)),
        }
        assert_eq!((storage.paths(), storage.bytes(&path(2))), before);
    };
    let storage = written();
    storage.edit(&path(2), |bytes| {
        let last =
            (4096..bytes.len()).step_by(4096).rfind(|&at| bytes[at..].starts_with(b"OLFR\x01")).expect("a frame");
        bytes[last + 24..last + 32].copy_from_slice(&(MAX_NUMBER - 1).to_le_bytes());
        probe::mend(bytes);
    });
    refused(&storage, "LSN");
    for number in [MAX_NUMBER, LAST_START] {
        let storage = written();
        storage.set_bytes(&path(number), vec![0; 64 << 10]);
        refused(&storage, "segment");
    }
    // A free file has nothing in it, so one of such a name stops nobody.
    let storage = written();
    storage.set_bytes(&super::segment::free_path(&directory(), MAX_NUMBER), vec![0; 64 << 10]);
    assert_eq!(used(&storage), used(&written()));
    // Nor does what its header says: it was a segment with such a header when the log opened, and was recycled then.
    let storage = written();
    let mut bytes = storage.bytes(&path(2)).expect("it is there");
    bytes[40..48].copy_from_slice(&(LAST_START + 1).to_le_bytes());
    probe::mend(&mut bytes);
    storage.set_bytes(&super::segment::free_path(&directory(), 77), bytes);
    assert_eq!(used(&storage), used(&written()));
}

/// A checkpoint could name segments with the number of its own or a later one. A new segment then got such a number, was
/// taken for an old one with nothing pending in it, and was recycled while it was being written: what was
/// acknowledged in it was gone.
#[test]
fn a_checkpoint_that_names_later_segments_does_not_get_the_current_one_recycled() {
    let storage = written_with(60);
    let last = storage.paths().iter().filter(|path| !path.to_string_lossy().contains("free-")).count() as u64;
    storage.edit(&path(last), |bytes| {
        let record = bytes.windows(4).position(|tag| tag == [19, 0, 0, 0]).expect("the record of segments");
        // Behind the record's header and the number of segments: 32 bytes each, the number first.
        for (at, number) in [(record + 12, 100u64), (record + 44, 101)] {
            bytes[at..at + 8].copy_from_slice(&number.to_le_bytes());
        }
        probe::mend(bytes);
    });
    assert!(used(&storage).is_some());
}

/// A frame of a later release in the last segment (compressed, say) was taken for a torn write: after a downgrade its
/// messages, which had been acknowledged, were dropped without a word.
#[test]
fn a_log_with_a_frame_of_a_later_release_is_refused_not_shortened() {
    let storage = written();
    let last = {
        let bytes = storage.bytes(&path(2)).expect("it is there");
        (4096..bytes.len()).step_by(4096).rfind(|&at| bytes[at..].starts_with(b"OLFR\x01\x00")).expect("a group")
    };
    // Version, kind, and flags of the frame; the tag of its first record.
    for (at, value) in [(4, 2), (5, 9), (6, 1), (80, 40)] {
        let copy = storage.copy();
        copy.edit(&path(2), |bytes| {
            bytes[last + at] = value;
            probe::mend(bytes);
        });
        let opened = open(&copy);
        assert!(
            matches!(opened, Err(WalError::NewerFormat { .. })),
            "byte {at}: {:?}",
            opened.map(|(_, found, _)| found)
        );
    }
}
