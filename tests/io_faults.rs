//! Disks that fail under a whole producer, at every call of its log (RELIABILITY.md, rows 9 and 10).
//!
//! `OUTLAST_TEST_ROUNDS=N` runs N cases, drawn without repetition; `OUTLAST_TEST_SEED=S` draws them in the same order.
//! What is the n-th call depends a little on the threads, so a case that failed is repeated by its name:
//! `OUTLAST_TEST_CASE="Write 45 Eio Disk"`, as often as `OUTLAST_TEST_ROUNDS` says.

#![cfg(feature = "testing")]

#[path = "io_faults/disk.rs"]
mod disk;
#[path = "io_faults/runs.rs"]
mod runs;
#[path = "io_faults/script.rs"]
mod script;
mod shows;
#[path = "io_faults/syncs.rs"]
mod syncs;
#[path = "io_faults/unreadable.rs"]
mod unreadable;

#[cfg(feature = "planted")]
use std::process::Command;
use std::time::Instant;

use disk::{ERRORS, Error, LASTING, Plan};
use script::{Outcome, Script};
use syncs::{Site, Synced};

/// Cases that run at a time: they wait more than they work.
const TOGETHER: usize = 24;

/// A directory in memory, where there is one: what is looked for here is not whether the disk keeps what it took.
fn directory() -> tempfile::TempDir {
    tempfile::TempDir::new_in("/dev/shm").or_else(|_| tempfile::TempDir::new()).expect("a directory")
}

fn seed() -> u64 {
    shows::setting("OUTLAST_TEST_SEED", fastrand::u64(..1 << 32))
}

/// The same again, for people.
fn again(test: &str, case: &Plan) -> String {
    format!(
        "OUTLAST_TEST_CASE=\"{case}\" OUTLAST_TEST_ROUNDS=50 cargo test --features cli,testing,zstd,tls,planted \
         --test io_faults -- --exact {test} --nocapture"
    )
}

/// Every call that the script makes.
fn sites() -> Vec<(disk::Call, usize)> {
    let directory = directory();
    let script = Script::new(directory.path(), None);
    let disk = script.disk().clone();
    let outcome = script.run();
    assert_eq!((outcome.refused, outcome.duplicates), (0, 0), "nothing was wrong: {outcome:?}");
    println!("{outcome:?}: {:?}", disk.counts());
    for (call, count) in disk.counts() {
        assert!(count > 0, "the script makes no call of {call:?}: it does not test it");
    }
    disk.counts().into_iter().flat_map(|(call, count)| (0..count).map(move |number| (call, number))).collect()
}

/// Every site once, with an error and a length that the seed draws; or, for more rounds, as many of all combinations.
fn plans(sites: &[(disk::Call, usize)], rounds: usize, rng: &mut fastrand::Rng) -> Vec<Plan> {
    let mut all = Vec::new();
    for &(call, number) in sites {
        for error in ERRORS.into_iter().filter(|error| *error != Error::Torn || call == disk::Call::Write) {
            all.extend(LASTING.map(|lasting| Plan { call, number, error, lasting }));
        }
    }
    rng.shuffle(&mut all);
    // Stable: within a round over the sites the order stays that of the shuffle.
    let mut nth = std::collections::HashMap::new();
    all.sort_by_cached_key(|plan| {
        let nth: &mut usize = nth.entry((plan.call, plan.number)).or_default();
        *nth += 1;
        *nth
    });
    all.truncate(rounds);
    all
}

#[test]
fn a_disk_that_fails_at_any_call_loses_corrupts_and_hangs_nothing() {
    const TEST: &str = "a_disk_that_fails_at_any_call_loses_corrupts_and_hangs_nothing";
    let (seed, begun) = (seed(), Instant::now());
    println!("OUTLAST_TEST_SEED={seed}");
    let sites = sites();
    let rounds = shows::setting("OUTLAST_TEST_ROUNDS", sites.len() as u64) as usize;
    let only = std::env::var("OUTLAST_TEST_CASE").ok().map(|case| case.parse::<Plan>().expect("a case"));
    let plans = match only {
        Some(only) => vec![only; rounds],
        None => plans(&sites, rounds, &mut fastrand::Rng::with_seed(seed)),
    };
    let outcomes = runs::run_all(
        &plans,
        TOGETHER,
        |plan| again(TEST, plan),
        |plan| {
            let directory = directory();
            Script::new(directory.path(), Some(*plan)).run()
        },
    );
    let sum = |of: fn(&Outcome) -> usize| outcomes.iter().map(of).sum::<usize>();
    let reached = outcomes.iter().filter(|outcome| outcome.failed > 0).count();
    println!(
        "{} sites, {} runs, {reached} of which met their fault; {} accepted, 0 lost, {} refused, {} duplicates, {:.0} s",
        sites.len(),
        plans.len(),
        sum(|outcome| outcome.accepted),
        sum(|outcome| outcome.refused),
        sum(|outcome| outcome.duplicates),
        begun.elapsed().as_secs_f64()
    );
    assert!(only.is_some() || reached * 10 >= plans.len() * 8, "most faults were meant to be met");
}

#[test]
fn nothing_is_acknowledged_on_a_sync_that_failed() {
    let (seed, begun) = (seed(), Instant::now());
    println!("OUTLAST_TEST_SEED={seed}");
    let dry = directory();
    let syncs = syncs::run(dry.path(), None).syncs;
    let rounds = shows::setting("OUTLAST_TEST_ROUNDS", 2 * syncs as u64);
    let site = |round: u64| Site {
        number: (round / 2) as usize % syncs,
        for_good: round % 2 == 1,
        seed: seed.wrapping_add(round),
    };
    let sites: Vec<Site> = (0..rounds).map(site).collect();
    let again = |site: &Site| {
        format!(
            "OUTLAST_TEST_SEED={seed} OUTLAST_TEST_ROUNDS={rounds} cargo test --features cli,testing,zstd,tls,planted \
             --test io_faults -- --exact nothing_is_acknowledged_on_a_sync_that_failed --nocapture # {site}"
        )
    };
    let outcomes = runs::run_all(&sites, TOGETHER, again, |site| syncs::run(directory().path(), Some(*site)));
    let sum = |of: fn(&Synced) -> usize| outcomes.iter().map(of).sum::<usize>();
    println!(
        "{syncs} syncs, {rounds} power cuts after one that failed; {} acknowledged, 0 lost, {} refused, {:.1} s",
        sum(|outcome| outcome.accepted),
        sum(|outcome| outcome.refused),
        begun.elapsed().as_secs_f64()
    );
}

#[cfg(feature = "planted")]
/// This program again, with a fault planted in it: true if a test fails.
fn fails_with(planted: &str, test: &str, rounds: u64) -> (bool, String) {
    let output = Command::new(std::env::current_exe().expect("the test binary's path"))
        .args([test, "--exact", "--nocapture", "--test-threads=1"])
        .env("OUTLAST_PLANTED", planted)
        .env("OUTLAST_TEST_ROUNDS", rounds.to_string())
        .env_remove("OUTLAST_TEST_SEED")
        .env_remove("OUTLAST_TEST_CASE")
        .env("RUST_BACKTRACE", "0")
        .output()
        .expect("it runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (!output.status.success(), text)
}

#[cfg(feature = "planted")]
#[track_caller]
fn is_caught(planted: &str, test: &str, rounds: u64, says: &str) {
    let (failed, text) = fails_with(planted, test, rounds);
    assert!(failed && text.contains(says), "{planted} is not caught, or not for what it does:\n{text}");
    let (failed, text) = fails_with("", test, rounds);
    assert!(!failed, "without a fault it should pass:\n{text}");
}

#[cfg(feature = "planted")]
#[test]
fn planted_retry_failed_sync_is_caught() {
    is_caught("retry-failed-sync", "nothing_is_acknowledged_on_a_sync_that_failed", 60, "acknowledged and lost");
}

#[cfg(feature = "planted")]
#[test]
fn planted_ack_before_sync_is_caught() {
    is_caught("ack-before-sync", "nothing_is_acknowledged_on_a_sync_that_failed", 60, "acknowledged and lost");
}

#[cfg(feature = "planted")]
#[test]
fn planted_skip_directory_sync_is_caught() {
    is_caught("skip-directory-sync", "nothing_is_acknowledged_on_a_sync_that_failed", 60, "acknowledged and lost");
}
