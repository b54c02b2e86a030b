//! Calls of sled that hang, panic or fail, and a disk without a usable directory.

use super::*;

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
