use std::collections::BTreeMap;
use std::fs;
use std::sync::{Condvar, Mutex};
use std::time::Instant;

use tempfile::TempDir;

use super::*;

/// What a call is given where one is made to hang: long enough for a busy machine's sled.
const WATCHDOG: Duration = Duration::from_secs(2);

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
fn a_hung_call_holds_nobody_up_and_the_next_database_takes_over() {
    std::thread::scope(|scope| {
        for name in ["choose", "open", "apply", "seek", "parked", "lanes", "forget"] {
            scope.spawn(move || hang(name));
        }
    });
}

fn hang(name: &'static str) {
    let (place, trap) = (Place::filled(), Arc::new(Trap::default()));
    trap.set(name, Mode::Hang);
    let ledger = place.open_trapped(&trap);
    let begun = Instant::now();
    assert!(ledger.park(key(1, 2, 501), row(501)));
    ledger.forget_entries(10);
    assert!(begun.elapsed() < WATCHDOG / 2, "{name}: recording waited");
    // Of these at least one meets the trap; only forgetting is nothing that anybody asks for.
    let mut failed = false;
    for _ in 0..2 {
        let asked = Instant::now();
        let (seek, parked, lanes) = (ledger.seek(400), all(&ledger), ledger.lanes(10));
        failed |= seek.is_none() || parked.is_err() || lanes.is_err();
        assert!(asked.elapsed() < WATCHDOG * 4, "{name}: {:?}", asked.elapsed());
    }
    assert!(failed || name == "forget", "{name}: nobody noticed");
    let begun = Instant::now();
    while ledger.generation() == 0 {
        assert!(begun.elapsed() < PATIENCE, "{name}: never given up");
        let _ = answered(&ledger);
    }
    assert_works(&ledger);
    let health = ledger.health();
    let LedgerState::Rebuilding { reason, .. } = &health.state else { panic!("{name}: {health:?}") };
    assert!(reason.contains("did not answer"), "{name}: {reason}");
    // Hung before it had chosen a directory, it has none.
    if name != "choose" {
        assert_eq!(health.directory, 2, "{name}");
        assert_eq!(place.numbers(), ["1", "2"], "{name}: the hung one may still write there");
    }
    // The hung call comes back: nobody listens to it.
    trap.open();
    assert_works_after_waking(&ledger);
    assert!(ledger.close(PATIENCE), "{name}");
}

fn assert_works_after_waking(ledger: &Ledger) {
    let (rows, health) = (answered(ledger), ledger.health());
    assert!(ledger.unpark(key(1, 9, 999)));
    assert_works(ledger);
    assert_eq!(answered(ledger).len(), rows.len());
    assert_eq!(ledger.health(), health);
}

#[test]
fn rows_that_wait_behind_a_hung_call_are_written_to_the_next_database() {
    let (place, trap) = (Place::filled(), Arc::new(Trap::default()));
    let ledger = place.open_trapped(&trap);
    assert_eq!(answered(&ledger).len(), 500);
    trap.set("parked", Mode::Hang);
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| all(&ledger));
        for lsn in 600..700 {
            assert!(ledger.park(key(1, 5, lsn), row(lsn)));
        }
        assert!(asked.join().expect("joined").is_err());
    });
    let rows = answered(&ledger);
    assert!(rows.iter().all(|(key, _)| key.lane == 5) && rows.len() <= 100, "{} rows", rows.len());
    assert!(ledger.generation() == 1, "the old ones are lost, and it says so");
    trap.open();
}

#[test]
fn a_panic_or_an_error_costs_the_database_and_nothing_else() {
    for mode in [Mode::Panic, Mode::Fail] {
        for name in ["choose", "open", "apply", "seek", "parked", "lanes", "forget"] {
            let (place, trap) = (Place::filled(), Arc::new(Trap::default()));
            trap.set(name, mode);
            let ledger = place.open_trapped(&trap);
            ledger.forget_entries(10);
            assert!(ledger.park(key(1, 2, 501), row(501)));
            let _ = (ledger.seek(400), ledger.lanes(10), all(&ledger));
            assert_works(&ledger);
            let health = ledger.health();
            let LedgerState::Rebuilding { reason, .. } = &health.state else { panic!("{name} {mode:?}: {health:?}") };
            assert!(reason.contains(name) && reason.contains("planted"), "{reason}");
            assert_eq!(ledger.generation(), 1, "{name} {mode:?}");
            if !["choose", "open"].contains(&name) {
                assert_eq!(place.numbers(), ["1", "2"], "{name} {mode:?}: its sled still writes there");
            }
        }
    }
}

#[test]
fn after_three_databases_there_is_none_until_the_process_starts_again() {
    let (place, trap) = (Place::filled(), Arc::new(Trap::default()));
    for mode in [Mode::Panic, Mode::Hang, Mode::Fail] {
        trap.set("apply", mode);
    }
    let ledger = place.open_trapped(&trap);
    let begun = Instant::now();
    let mut lsn = 1000;
    while !matches!(ledger.health().state, LedgerState::Off { .. }) {
        assert!(begun.elapsed() < PATIENCE, "{:?}", ledger.health());
        lsn += 1;
        let _ = (ledger.park(key(1, 1, lsn), row(lsn)), all(&ledger));
    }
    assert_eq!(ledger.generation(), 3);
    let begun = Instant::now();
    assert!(!ledger.park(key(1, 1, 1), row(1)));
    assert!(all(&ledger).is_err() && ledger.seek(5).is_none() && ledger.lanes(1).is_err());
    assert!(!ledger.close(PATIENCE), "not in good order");
    assert!(begun.elapsed() < WATCHDOG / 2, "off means at once");
    let again = place.open();
    assert!(matches!(again.health().state, LedgerState::Off { .. }));
    assert!(!again.park(key(1, 1, 1), row(1)) && all(&again).is_err() && !again.close(PATIENCE));
    trap.open();
}

#[test]
fn without_a_usable_directory_it_is_off_and_everything_answers() {
    let place = Place::new();
    fs::write(place.dir(), "a file").expect("written");
    let ledger = place.open();
    assert!(all(&ledger).is_err());
    let begun = Instant::now();
    while !matches!(ledger.health().state, LedgerState::Off { .. }) {
        assert!(begun.elapsed() < PATIENCE, "{:?}", ledger.health());
        let _ = all(&ledger);
    }
    assert_eq!(fs::read(place.dir()).expect("read"), b"a file");
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
fn a_hung_close_ends_with_the_grace() {
    let (place, trap) = (Place::filled(), Arc::new(Trap::default()));
    let ledger = place.open_trapped(&trap);
    assert_eq!(answered(&ledger).len(), 500);
    trap.set("close", Mode::Hang);
    let (begun, grace) = (Instant::now(), Duration::from_millis(50));
    assert!(!ledger.close(grace));
    assert!(begun.elapsed() < WATCHDOG, "{:?}", begun.elapsed());
    assert!(!ledger.park(key(1, 1, 1), row(1)) && all(&ledger).is_err(), "closed is closed");
    trap.open();
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
