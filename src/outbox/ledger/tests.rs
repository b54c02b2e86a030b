mod faults;
mod model;

use std::fs;
use std::sync::{Condvar, Mutex};
use std::time::Instant;

use tempfile::TempDir;

use super::*;

/// What a call is given where one is made to hang: long enough for a busy machine's sled.
const WATCHDOG: Duration = Duration::from_secs(5);

/// Anything that takes longer is a hang of the test.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// Waits, then goes on as if nothing had been.
    Stall,
    /// Waits, then fails.
    Hang,
    Panic,
    Fail,
}

/// Makes calls of sled go wrong, one for each time it was set; hung ones until it is opened.
#[derive(Default)]
struct Trap {
    set: Mutex<Vec<(&'static str, Mode)>>,
    open: Mutex<bool>,
    opened: Condvar,
}

impl Trap {
    fn set(self: &Arc<Self>, name: &'static str, mode: Mode) {
        self.set.lock().expect("lock").push((name, mode));
    }

    fn hook(self: &Arc<Self>) -> Hook {
        let trap = self.clone();
        Arc::new(move |name| {
            let mode = {
                let mut set = trap.set.lock().expect("lock");
                let place = set.iter().position(|(trapped, _)| *trapped == name);
                place.map(|place| set.remove(place).1)
            };
            match mode {
                None => Ok(()),
                Some(Mode::Fail) => Err("planted".into()),
                Some(Mode::Panic) => panic!("planted"),
                Some(mode) => {
                    let open = trap.open.lock().expect("lock");
                    drop(trap.opened.wait_while(open, |open| !*open).expect("lock"));
                    if mode == Mode::Stall { Ok(()) } else { Err("planted".into()) }
                }
            }
        })
    }

    fn open(&self) {
        *self.open.lock().expect("lock") = true;
        self.opened.notify_all();
    }
}

struct Place {
    temp: TempDir,
}

impl Place {
    fn new() -> Self {
        Self { temp: tempfile::tempdir().expect("tempdir") }
    }

    fn dir(&self) -> std::path::PathBuf {
        self.temp.path().join("ledger")
    }

    fn open(&self) -> Ledger {
        Ledger::open(&self.dir(), options())
    }

    fn open_trapped(&self, trap: &Arc<Trap>) -> Ledger {
        Ledger::open(&self.dir(), LedgerOptions { hook: Some(trap.hook()), watchdog: WATCHDOG, ..options() })
    }

    /// A ledger with some rows, closed.
    fn filled() -> Self {
        let place = Self::new();
        let ledger = place.open();
        for lsn in 1..=500 {
            assert!(ledger.park(key(1, 2, lsn), row(lsn)) && ledger.entry(lsn, entry(lsn)));
        }
        assert!(ledger.set_lane(1, 2, lane(3)) && ledger.close(PATIENCE));
        place
    }

    fn numbers(&self) -> Vec<String> {
        let entries = fs::read_dir(self.dir()).expect("list");
        let mut names: Vec<String> =
            entries.map(|entry| entry.expect("entry").file_name().into_string().expect("text")).collect();
        names.sort();
        names
    }
}

fn options() -> LedgerOptions {
    LedgerOptions { cache_bytes: 8 << 20, watchdog: PATIENCE, pause: Duration::ZERO, ..LedgerOptions::default() }
}

fn key(route: u64, lane: u128, lsn: u64) -> ParkedKey {
    ParkedKey { route, lane, lsn }
}

fn row(lsn: u64) -> ParkedRow {
    ParkedRow { segment: lsn / 100, offset: 4096, index: lsn as u32, partition: -1 }
}

fn entry(lsn: u64) -> EntryRow {
    EntryRow { segment: lsn / 100, offset: 4096, count: 10, bytes: 65_536, time: 1_700_000_000_000 }
}

fn lane(attempts: u32) -> LaneRow {
    LaneRow { attempts, class: 1, first_failure: 10, last_failure: 20, error: "topic unknown".into() }
}

fn all(ledger: &Ledger) -> Result<Vec<(ParkedKey, ParkedRow)>, Unavailable> {
    ledger.parked(ParkedScope::Route(1), None, usize::MAX)
}

/// Asks until there is an answer.
fn answered(ledger: &Ledger) -> Vec<(ParkedKey, ParkedRow)> {
    let begun = Instant::now();
    loop {
        match all(ledger) {
            Ok(rows) => return rows,
            Err(error) => assert!(begun.elapsed() < PATIENCE, "{error}; {:?}", ledger.health()),
        }
        std::thread::yield_now();
    }
}

fn assert_works(ledger: &Ledger) {
    let before = answered(ledger);
    assert!(ledger.park(key(1, 9, 999), row(999)));
    let mut expected = before;
    expected.push((key(1, 9, 999), row(999)));
    assert_eq!(answered(ledger), expected);
}

#[test]
fn rows_outlast_a_restart() {
    let place = Place::filled();
    let ledger = place.open();
    let rows = answered(&ledger);
    assert_eq!(rows.len(), 500);
    assert_eq!(rows[41], (key(1, 2, 42), row(42)));
    assert_eq!(ledger.seek(77), Some((77, entry(77))));
    assert_eq!(ledger.lanes(10), Ok(vec![(LaneKey { route: 1, lane: 2 }, lane(3))]));
    let health = ledger.health();
    assert_eq!((ledger.generation(), health.state, health.directory), (0, LedgerState::Ok, 1));
}

#[test]
fn rows_outlast_a_ledger_that_was_dropped_and_not_closed() {
    let place = Place::filled();
    let ledger = place.open();
    assert_eq!(answered(&ledger).len(), 500);
    assert!(ledger.park(key(1, 3, 501), row(501)));
    drop(ledger);
    // sled's own lock is still held for a moment.
    let ledger = place.open();
    assert_eq!(answered(&ledger).len(), 501);
    assert_eq!(ledger.generation(), 0);
}

#[test]
fn a_new_ledger_says_that_it_has_no_past_until_the_log_was_walked() {
    let place = Place::new();
    let ledger = place.open();
    assert_eq!(answered(&ledger), []);
    assert_eq!(ledger.generation(), 1);
    assert!(matches!(ledger.health().state, LedgerState::Rebuilding { since, .. } if since > 0));
    ledger.rebuilt(0);
    assert!(matches!(ledger.health().state, LedgerState::Rebuilding { .. }), "walked for an older generation");
    ledger.rebuilt(1);
    assert_eq!(ledger.health().state, LedgerState::Ok);
}

#[test]
fn a_removed_ledger_is_begun_anew_and_says_so() {
    let place = Place::filled();
    fs::remove_dir_all(place.dir()).expect("removed");
    let ledger = place.open();
    assert_works(&ledger);
    assert_eq!(ledger.generation(), 1);
    assert!(matches!(ledger.health().state, LedgerState::Rebuilding { .. }));
}

#[test]
fn a_ledger_of_garbage_is_given_up_and_a_new_one_takes_its_place() {
    let seed = 5;
    println!("seed {seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    let place = Place::filled();
    for file in fs::read_dir(place.dir().join("1")).expect("list") {
        let path = file.expect("entry").path();
        if path.is_file() {
            let garbage: Vec<u8> = (0..8192).map(|_| rng.u8(..)).collect();
            fs::write(path, garbage).expect("written");
        }
    }
    let ledger = place.open();
    assert_works(&ledger);
    assert!(ledger.generation() > 0);
    let health = ledger.health();
    assert!(matches!(&health.state, LedgerState::Rebuilding { reason, .. } if reason.contains("open")), "{health:?}");
    assert_eq!(health.directory, 2);
}

#[test]
fn a_ledger_that_was_closed_never_comes_back_shorter_without_saying_so() {
    let seed = 6;
    println!("seed {seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    for round in 0..40 {
        let place = Place::filled();
        let dir = place.dir().join("1");
        let names: Vec<_> = fs::read_dir(&dir).expect("list").map(|entry| entry.expect("entry").path()).collect();
        let files: Vec<_> = names.into_iter().filter(|path| path.is_file()).collect();
        let path = &files[rng.usize(..files.len())];
        let mut bytes = fs::read(path).expect("read");
        let what = match round % 4 {
            0 => {
                bytes.truncate(rng.usize(..bytes.len()));
                "truncated"
            }
            1 => {
                bytes.clear();
                "emptied"
            }
            2 => {
                let bit = rng.usize(..bytes.len() * 8);
                bytes[bit / 8] ^= 1 << (bit % 8);
                "one bit flipped"
            }
            _ => {
                let from = rng.usize(..bytes.len());
                bytes[from..].fill(0);
                "zeroed from somewhere on"
            }
        };
        fs::write(path, &bytes).expect("written");
        let ledger = place.open();
        let rows = answered(&ledger).len();
        println!("{} {what}: {rows} rows, {:?}", path.display(), ledger.health());
        assert!(rows == 500 || ledger.generation() > 0);
        assert_works(&ledger);
    }
}

#[test]
fn an_empty_database_in_place_of_a_full_one_is_noticed() {
    let place = Place::filled();
    let dir = place.dir().join("1");
    fs::remove_dir_all(&dir).expect("removed");
    fs::create_dir(&dir).expect("mkdir");
    let ledger = place.open();
    assert_eq!(answered(&ledger), []);
    assert_eq!(ledger.generation(), 1);
}

#[test]
fn a_kill_during_an_open_costs_nothing() {
    // sled takes a half-written `snap.*.generating` for its newest snapshot and fails.
    let place = Place::filled();
    let half = place.dir().join("1/snap.FFFFFFFFFFFFFFFF.generating");
    fs::write(&half, b"half").expect("written");
    let ledger = place.open();
    assert_eq!(answered(&ledger).len(), 500);
    assert_eq!(ledger.generation(), 0);
    assert!(!half.exists());
}

#[test]
fn a_database_of_another_format_is_left_alone_and_a_new_one_begun() {
    for named in [Some(99u32), None] {
        let place = Place::filled();
        let config = sled::Config::new().path(place.dir().join("1")).cache_capacity(8 << 20);
        let begun = Instant::now();
        // Its lock outlives the ledger's close for a moment.
        let db = loop {
            match config.open() {
                Ok(db) => break db,
                Err(error) => assert!(begun.elapsed() < PATIENCE, "{error}"),
            }
        };
        match named {
            Some(format) => db.insert(keys::META, &format.to_le_bytes()).expect("written"),
            None => db.remove(keys::META).expect("removed"),
        };
        drop(db);
        let ledger = place.open();
        assert_works(&ledger);
        assert_eq!(ledger.health().directory, 2);
        assert!(ledger.generation() > 0);
    }
}

#[test]
fn the_queue_is_bounded_and_what_finds_no_room_is_told_so() {
    let (place, trap) = (Place::new(), Arc::new(Trap::default()));
    let options = LedgerOptions { queue_rows: 100, hook: Some(trap.hook()), ..options() };
    let ledger = Ledger::open(&place.dir(), options);
    assert_eq!(answered(&ledger), []);
    trap.set("apply", Mode::Stall);
    let recorded = (1..=1000).filter(|&lsn| ledger.park(key(1, 1, lsn), row(lsn))).count();
    // Up to one batch was taken out before the hung call began.
    assert!((100..=200).contains(&recorded), "{recorded}");
    assert_eq!(ledger.health().dropped, 1000 - recorded as u64);
    trap.open();
    assert_eq!(answered(&ledger).len(), recorded, "what was recorded is there, and nothing else");
}

#[test]
fn old_directories_are_removed_once_the_new_one_is_open() {
    let place = Place::new();
    for name in ["3", "7"] {
        fs::create_dir_all(place.dir().join(name).join("blobs")).expect("mkdir");
    }
    let ledger = place.open();
    assert_works(&ledger);
    assert_eq!(place.numbers(), ["7"]);
}

#[test]
fn forgotten_entries_are_not_found_from_then_on() {
    let place = Place::new();
    let ledger = place.open();
    for lsn in (10..=50_000).step_by(10) {
        while !ledger.entry(lsn, entry(lsn)) {}
    }
    assert_eq!(answered(&ledger), []);
    assert_eq!(ledger.seek(9), None);
    assert_eq!(ledger.seek(1_234).map(|(lsn, _)| lsn), Some(1_230));
    assert_eq!(ledger.seek(u64::MAX).map(|(lsn, _)| lsn), Some(50_000));
    ledger.forget_entries(40_000);
    assert_eq!(ledger.seek(39_999), None);
    assert_eq!(ledger.seek(40_005).map(|(lsn, _)| lsn), Some(40_000));
    assert!(ledger.close(PATIENCE));
    let ledger = place.open();
    assert_eq!(answered(&ledger), []);
    assert_eq!(ledger.seek(40_005).map(|(lsn, _)| lsn), Some(40_000));
}

#[test]
fn entries_of_recycled_segments_are_not_found_even_before_they_are_removed() {
    let temp = tempfile::tempdir().expect("tempdir");
    let store = store::Store::open(temp.path(), 8 << 20, PATIENCE).expect("opened");
    let entries: Vec<Change> = (10..=100).step_by(10).map(|lsn| Change::Entry(lsn, entry(lsn))).collect();
    store.apply(&entries).expect("applied");
    let seek = |lsn, floor| store.seek(lsn, floor).expect("read").map(|(lsn, _)| lsn);
    assert_eq!((seek(45, 0), seek(45, 40), seek(45, 41), seek(45, 46)), (Some(40), Some(40), None, None));
    assert!(!store.forget(0, 40).expect("removed"));
    assert_eq!((seek(39, 0), seek(45, 0)), (None, Some(40)));
    store.close().expect("closed");
}

#[test]
fn no_value_becomes_a_file_of_its_own() {
    let place = Place::new();
    let ledger = place.open();
    for number in 0..200 {
        assert!(ledger.set_lane(1, number, LaneRow { error: "x".repeat(100_000), ..lane(1) }));
    }
    assert_eq!(ledger.lanes(1_000).expect("answered").len(), 200);
    assert!(ledger.close(PATIENCE));
    assert_eq!(fs::read_dir(place.dir().join("1/blobs")).expect("list").count(), 0);
}
