//! `outlast check` and `outlast repair`: every kind of damage on a real outbox is named with its LSNs; after a repair the
//! rest is delivered in order, and what was lost is exactly what was reported.
#![cfg(all(feature = "cli", feature = "testing"))]

mod check_support;
mod common;

use std::collections::BTreeSet;
use std::fs;

use check_support::{Made, SEGMENT, frames, groups, program};
use serde_json::Value;

/// What `check` has to say of a damage.
struct Expected {
    kind: &'static str,
    severity: &'static str,
    /// The LSNs that are lost.
    lost: BTreeSet<u64>,
    /// Messages may be gone that nobody can name.
    unknown: bool,
}

fn expect(kind: &'static str, severity: &'static str, lost: impl IntoIterator<Item = u64>) -> Expected {
    Expected { kind, severity, lost: lost.into_iter().collect(), unknown: false }
}

fn findings(report: &Value) -> &Vec<Value> {
    report["findings"].as_array().expect("an array")
}

/// The LSNs of the findings in `wal/` with something lost.
fn told(report: &Value) -> BTreeSet<u64> {
    let lost =
        findings(report).iter().filter(|one| one["lost"] != 0 && one["path"].as_str().unwrap().starts_with("wal"));
    lost.flat_map(|one| one["lsns"]["first"].as_u64().unwrap()..=one["lsns"]["last"].as_u64().unwrap()).collect()
}

/// Damages a copy of an outbox; checks, plans, repairs, checks again, repairs again, delivers.
#[track_caller]
fn goes_the_whole_way(made: &Made, what: &str, damage: impl FnOnce(&Made) -> Expected) {
    let intact = made.pending();
    let copy = made.copy();
    let expected = damage(&copy);
    let before = copy.files();

    let (code, report) = program(&["check"], &copy.outbox());
    let damaged = expected.severity == "damage";
    assert_eq!(code, i32::from(damaged), "{what}: {report:#}");
    let named =
        findings(&report).iter().any(|one| one["kind"] == expected.kind && one["severity"] == expected.severity);
    assert!(named, "{what}: it should name {} as {}: {report:#}", expected.kind, expected.severity);
    assert_eq!(told(&report), expected.lost, "{what}: {report:#}");
    let worse = findings(&report).iter().filter(|one| one["severity"] == "damage" && !damaged).count();
    assert_eq!(worse, 0, "{what}: {report:#}");

    let (code, plan) = program(&["repair"], &copy.outbox());
    let steps = plan["steps"].as_array().expect("an array").len();
    assert_eq!(code, i32::from(steps > 0 || damaged), "{what}: {plan:#}");
    assert_eq!(plan["done"], false);
    assert!(copy.files() == before, "{what}: looking changed something");

    let (code, done) = program(&["repair", "--yes"], &copy.outbox());
    assert_eq!(code, 0, "{what}: {done:#}");
    let (code, after) = program(&["check"], &copy.outbox());
    assert_eq!(code, 0, "{what}, repaired: {after:#}");
    assert_eq!(after["lost"], 0, "{what}, repaired: {after:#}");
    let (code, again) = program(&["repair", "--yes"], &copy.outbox());
    assert_eq!((code, again["steps"].as_array().unwrap().len()), (0, 0), "{what}, repaired twice: {again:#}");
    if !expected.lost.is_empty() {
        assert_eq!(after["set_aside"], expected.lost.len(), "{what}: {after:#}");
        let manifest = fs::read_to_string(copy.path("damaged/MANIFEST")).expect("a manifest");
        let notes: Vec<Value> = manifest.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        assert!(notes.iter().all(|note| copy.path(note["kept"].as_str().unwrap()).exists()), "{what}: {manifest}");
    }

    let delivered = copy.deliver();
    let kept: Vec<&Vec<u8>> =
        intact.iter().filter(|(lsn, _)| !expected.lost.contains(lsn)).map(|(_, one)| one).collect();
    if expected.unknown {
        let known: BTreeSet<&Vec<u8>> = delivered.iter().collect();
        assert!(known.is_subset(&kept.into_iter().collect()), "{what}: something else was delivered");
    } else {
        in_the_order_of_their_keys(&delivered, &kept, what);
    }
    let (code, empty) = program(&["check"], &copy.outbox());
    assert_eq!((code, &empty["pending"]), (0, &0.into()), "{what}, delivered: {empty:#}");
}

/// Keys are the number modulo five.
#[track_caller]
fn in_the_order_of_their_keys(delivered: &[Vec<u8>], expected: &[&Vec<u8>], what: &str) {
    let number = |payload: &[u8]| {
        let text = std::str::from_utf8(payload).expect("text");
        text.split(' ').next().and_then(|word| word.parse::<u64>().ok()).expect("a number")
    };
    let of_key = |key: u64, all: &mut dyn Iterator<Item = &Vec<u8>>| -> Vec<Vec<u8>> {
        all.filter(|one| number(one) % 5 == key).cloned().collect()
    };
    for key in 0..5 {
        let (got, wanted) = (of_key(key, &mut delivered.iter()), of_key(key, &mut expected.iter().copied()));
        let numbers = |all: &[Vec<u8>]| all.iter().map(|one| number(one)).collect::<Vec<_>>();
        assert_eq!(numbers(&got), numbers(&wanted), "{what}: key {key}");
        assert!(got == wanted, "{what}: other contents");
    }
}

#[test]
fn an_outbox_in_order_has_nothing_to_report_and_its_json_has_the_documented_shape() {
    for (delivered, dead, pending) in [(0, false, 0), (0, false, 3), (150, true, 150), (150, false, 0)] {
        let made = Made::new(delivered, dead, pending);
        let before = made.files();
        let (code, report) = program(&["check"], &made.outbox());
        assert_eq!((code, findings(&report).len()), (0, 0), "{report:#}");
        assert_eq!((&report["pending"], &report["dead"]), (&pending.into(), &(if dead { 3 } else { 0 }).into()));
        for field in ["holder", "outbox", "segments", "bytes", "records", "set_aside", "omitted", "lost"] {
            assert!(report.get(field).is_some(), "{field}: {report:#}");
        }
        let (code, plan) = program(&["repair"], &made.outbox());
        assert_eq!((code, plan["steps"].as_array().unwrap().len()), (0, 0), "{plan:#}");
        assert!(made.files() == before, "something was written");
    }
}

#[test]
fn bytes_that_went_bad_are_named_with_their_lsns_and_set_aside_by_a_repair() {
    let made = Made::new(100, false, 200);
    let segments = made.segments("wal");
    assert!(segments.len() >= 4, "{segments:?}");
    let name = |at: usize| segments[at].strip_prefix(made.outbox()).unwrap().to_path_buf();
    let (middle, newest) = (segments.len() - 3, segments.len() - 1);
    let pending: BTreeSet<u64> = made.pending().into_keys().collect();
    // A frame of the middle segment, and what of it is pending.
    let group = groups(&segments[middle])[2];
    let lsns = (group.first_lsn..group.first_lsn + group.count).filter(|lsn| pending.contains(lsn));
    let lsns: BTreeSet<u64> = lsns.collect();

    goes_the_whole_way(&made, "a bit of a body", |copy| {
        copy.edit(&copy.outbox().join(name(middle)), |bytes| bytes[group.offset + 300] ^= 1);
        expect("bad_frame", "damage", lsns.clone())
    });
    goes_the_whole_way(&made, "a bit of a frame's header", |copy| {
        copy.edit(&copy.outbox().join(name(middle)), |bytes| bytes[group.offset + 30] ^= 4);
        expect("bad_frame", "damage", lsns.clone())
    });
    goes_the_whole_way(&made, "a zeroed block", |copy| {
        copy.edit(&copy.outbox().join(name(middle)), |bytes| bytes[group.offset..group.offset + 4096].fill(0));
        expect("bad_frame", "damage", lsns.clone())
    });
    goes_the_whole_way(&made, "a frame copied over the next", |copy| {
        let other = groups(&segments[middle])[1];
        copy.edit(&copy.outbox().join(name(middle)), |bytes| {
            bytes.copy_within(other.offset..other.offset + 4096, group.offset);
        });
        expect("bad_frame", "damage", lsns.clone())
    });
    for (at, what) in [(middle, "a middle segment's header"), (newest, "the newest segment's header")] {
        goes_the_whole_way(&made, what, |copy| {
            copy.edit(&copy.outbox().join(name(at)), |bytes| bytes[50] ^= 1);
            expect("bad_header", "suspicious", [])
        });
    }
    for (at, what) in [(middle, "a middle segment's checkpoint"), (newest, "the newest segment's checkpoint")] {
        goes_the_whole_way(&made, what, |copy| {
            copy.edit(&copy.outbox().join(name(at)), |bytes| bytes[4096 + 90] ^= 1);
            expect("bad_checkpoint", "suspicious", [])
        });
    }
    goes_the_whole_way(&made, "trailing bytes", |copy| {
        copy.edit(&copy.outbox().join(name(middle)), |bytes| bytes.extend([9; 5000]));
        expect("trailing_bytes", "suspicious", [])
    });
    goes_the_whole_way(&made, "a truncated middle segment", |copy| {
        copy.edit(&copy.outbox().join(name(middle)), |bytes| bytes.truncate(group.offset));
        let after = groups(&segments[middle]);
        let cut = after.iter().filter(|frame| frame.offset >= group.offset);
        let lost = cut.flat_map(|frame| frame.first_lsn..frame.first_lsn + frame.count);
        expect("truncated", "damage", lost.filter(|lsn| pending.contains(lsn)))
    });
    goes_the_whole_way(&made, "a truncated newest segment", |copy| {
        copy.edit(&copy.outbox().join(name(newest)), |bytes| bytes.truncate(SEGMENT - 4096));
        Expected { unknown: true, ..expect("truncated", "damage", []) }
    });
}

#[test]
fn the_end_that_nothing_covers_is_taken_for_a_torn_write() {
    let made = Made::new(0, false, 30);
    let newest = made.segments("wal").pop().unwrap();
    let newest = newest.strip_prefix(made.outbox()).unwrap().to_path_buf();
    goes_the_whole_way(&made, "the seal", |copy| {
        let path = copy.outbox().join(&newest);
        let seal = *frames(&path).last().unwrap();
        assert_eq!(seal.kind, 2, "the last frame of a closed log");
        copy.edit(&path, |bytes| bytes[seal.offset + 85] ^= 1);
        expect("torn_write", "suspicious", [])
    });
    // With the seal gone, the last group is what a crash could have torn: FORMAT.md says so.
    goes_the_whole_way(&made, "the seal and the last group", |copy| {
        let path = copy.outbox().join(&newest);
        let (seal, last) = (*frames(&path).last().unwrap(), *groups(&path).last().unwrap());
        copy.edit(&path, |bytes| {
            bytes[seal.offset..seal.offset + 4096].fill(0);
            bytes[last.offset + 300] ^= 1;
        });
        Expected { unknown: true, ..expect("torn_write", "suspicious", []) }
    });
}

#[test]
fn files_that_are_missing_exchanged_copied_or_foreign_are_named_and_put_in_order() {
    let made = Made::new(0, false, 250);
    let (other, longer) = (Made::new(0, false, 250), Made::new(0, false, 300));
    let segments = made.segments("wal");
    let count = segments.len();
    let name = |at: usize| segments[at].strip_prefix(made.outbox()).unwrap().to_path_buf();
    let in_segment = |at: usize| {
        let all = groups(&segments[at]);
        all.into_iter().flat_map(|frame| frame.first_lsn..frame.first_lsn + frame.count).collect::<BTreeSet<u64>>()
    };
    goes_the_whole_way(&made, "a missing segment", |copy| {
        fs::remove_file(copy.outbox().join(name(1))).unwrap();
        expect("missing", "damage", in_segment(1))
    });
    for (a, b, what) in [(1, 2, "two exchanged segments"), (count - 2, count - 1, "the two newest exchanged")] {
        let copy = made.copy();
        let (first, second) = (copy.outbox().join(name(a)), copy.outbox().join(name(b)));
        let aside = copy.path("x");
        fs::rename(&first, &aside).unwrap();
        fs::rename(&second, &first).unwrap();
        fs::rename(&aside, &second).unwrap();
        let (code, report) = program(&["check"], &copy.outbox());
        let misplaced = findings(&report).iter().filter(|one| one["kind"] == "misplaced").count();
        assert_eq!((code, misplaced), (1, 2), "{what}: {report:#}");
        let (code, done) = program(&["repair", "--yes"], &copy.outbox());
        assert_eq!((code, &done["report"]["lost"]), (0, &0.into()), "{what}: {done:#}");
        assert!(fs::read(&first).unwrap() == fs::read(&segments[a]).unwrap(), "{what}: it is back in its place");
        in_the_order_of_their_keys(&copy.deliver(), &made.pending().values().collect::<Vec<_>>(), what);
    }
    goes_the_whole_way(&made, "a segment copied over another", |copy| {
        fs::copy(&segments[2], copy.outbox().join(name(1))).unwrap();
        expect("misplaced", "damage", in_segment(1))
    });
    goes_the_whole_way(&made, "a copy under a new name", |copy| {
        fs::copy(&segments[2], copy.path("wal/00000000000000ff.seg")).unwrap();
        expect("misplaced", "suspicious", [])
    });
    goes_the_whole_way(&made, "a segment of another outbox", |copy| {
        fs::copy(&other.segments("wal")[1], copy.outbox().join(name(1))).unwrap();
        expect("foreign_outbox", "damage", in_segment(1))
    });
    goes_the_whole_way(&made, "a newest segment of another outbox", |copy| {
        let newest = longer.segments("wal").pop().unwrap();
        assert!(newest.file_name() > segments.last().unwrap().file_name());
        fs::copy(&newest, copy.path("wal").join(newest.file_name().unwrap())).unwrap();
        expect("foreign_outbox", "damage", [])
    });
    goes_the_whole_way(&made, "a directory where a segment should be", |copy| {
        fs::remove_file(copy.outbox().join(name(1))).unwrap();
        fs::create_dir(copy.outbox().join(name(1))).unwrap();
        expect("in_the_way", "damage", in_segment(1))
    });
    goes_the_whole_way(&made, "an empty file behind the newest", |copy| {
        fs::write(copy.path("wal/00000000000000ff.seg"), b"").unwrap();
        expect("truncated", "damage", [])
    });
    goes_the_whole_way(&made, "IDENTITY missing", |copy| {
        fs::remove_file(copy.path("IDENTITY")).unwrap();
        expect("bad_identity", "suspicious", [])
    });
    goes_the_whole_way(&made, "IDENTITY of another outbox", |copy| {
        fs::copy(other.path("IDENTITY"), copy.path("IDENTITY")).unwrap();
        expect("foreign_outbox", "damage", [])
    });
    goes_the_whole_way(&made, "leftovers and strangers", |copy| {
        fs::write(copy.path("status.tmp"), b"{").unwrap();
        fs::write(copy.path("notes.txt"), b"hello").unwrap();
        fs::write(copy.path("wal/notes.txt"), b"hello").unwrap();
        fs::write(copy.path("status"), b"{").unwrap();
        fs::remove_dir_all(copy.path("ledger")).unwrap();
        expect("foreign_file", "harmless", [])
    });
}
