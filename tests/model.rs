//! The outbox as a state machine, against a simple model of what the outside world knows, on a disk in memory that loses
//! what a disk may lose (menu row 4, and in one process what rows 2, 3 and 9 ask for).
//!
//! A seed decides the limits, a list of operations, and everything that goes wrong; one thread does all of it, at times
//! the test decides, so that every seed replays. A list that fails is made shorter by proptest and printed.
//!
//! `OUTLAST_TEST_ROUNDS=N` runs N seeds, `OUTLAST_TEST_SEED=S` that one (and prints what it does), or N from there;
//! `OUTLAST_TEST_JOBS` says on how many threads; `OUTLAST_TEST_SHRINK=0` leaves a list as long as it was found.
//!
//! The ledger is off in nearly all of it, for it must not matter for what is true; a few seeds have a real one, which
//! remembers what other seeds have put into it.

#![cfg(feature = "testing")]

#[path = "model/case.rs"]
mod case;
#[path = "model/faults.rs"]
mod faults;
#[path = "model/life.rs"]
mod life;
#[path = "model/messages.rs"]
mod messages;
#[path = "model/oracle.rs"]
mod oracle;
#[cfg(feature = "planted")]
#[path = "model/planted.rs"]
mod planted;
#[path = "model/run.rs"]
mod run;
#[path = "model/world.rs"]
mod world;

use std::sync::Arc;

use outlast::internals::outbox::ledger::{Ledger, LedgerOptions};
use outlast::internals::outbox::{Directory, DirectoryOptions};
use run::Plan;

/// Seeds in CI: what two cores do in half a minute in a debug build.
const ROUNDS: u64 = 10_000;
/// Seeds with a real ledger: opening one takes longer than everything else.
const LEDGERS: u64 = 40;

#[test]
fn no_crash_and_no_failing_disk_loses_or_invents_anything() {
    Plan::of("no_crash_and_no_failing_disk_loses_or_invents_anything", ROUNDS).run(&|_| Ledger::none());
}

#[test]
fn a_ledger_that_remembers_another_history_changes_nothing_about_what_is_true() {
    let plan = Plan::of("a_ledger_that_remembers_another_history_changes_nothing_about_what_is_true", LEDGERS);
    plan.run(&|directory| Ledger::open(&directory.paths().ledger(), LedgerOptions::default()));
}

#[test]
fn a_seed_replays_to_the_same_calls_and_the_same_bytes() {
    let place = tempfile::tempdir().expect("a directory");
    let directory = Directory::open(&place.path().join("outbox"), &DirectoryOptions::default()).expect("is made");
    let directory = Arc::new(directory);
    for seed in 0..50 {
        let (once, again) = (run::outcome(seed, &directory), run::outcome(seed, &directory));
        assert_eq!(once.0, again.0, "seed {seed}: other calls");
        assert!(once.1 == again.1, "seed {seed}: other bytes");
    }
}
