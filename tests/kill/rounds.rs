//! Rounds: each has a seed and a directory of its own, several run side by side, and a failed one can be repeated.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use tempfile::TempDir;

use crate::oracle::Tally;
use crate::shows::setting;

/// Rounds at a time: most of one is waiting, for the child's time to come and for the disk.
pub const SIDE_BY_SIDE: u64 = 4;

/// How many rounds a test runs, short form or as asked for.
pub fn count(default: u64) -> u64 {
    setting("OUTLAST_TEST_ROUNDS", default)
}

/// Runs `rounds` rounds, each with a fresh directory and the next seed, and prints the totals. `test` is the name that
/// repeats it, `unit` how much of `OUTLAST_TEST_ROUNDS` one round is.
pub fn run(test: &str, rounds: u64, unit: u64, round: impl Fn(&Path, u64) -> Tally + Sync) -> Tally {
    let first = setting("OUTLAST_TEST_SEED", fastrand::u64(..));
    println!("{test}: {rounds} rounds from OUTLAST_TEST_SEED={first}");
    let begun = Instant::now();
    let (next, totals) = (AtomicU64::new(0), Mutex::new(Tally::default()));
    let worker = || {
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            if at >= rounds {
                return;
            }
            let seed = first.wrapping_add(at);
            let tally = guarded(test, seed, unit, fresh(), |dir| round(dir, seed));
            *totals.lock().unwrap() += tally;
        }
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..SIDE_BY_SIDE.min(rounds)).map(|_| scope.spawn(worker)).collect();
        for worker in workers {
            if let Err(panic) = worker.join() {
                // The others need not go on.
                next.store(rounds, Ordering::Relaxed);
                resume_unwind(panic);
            }
        }
    });
    let totals = totals.into_inner().unwrap();
    println!("{test}: {totals}, {} rounds from seed {first} in {:.1?}", rounds, begun.elapsed());
    totals
}

/// A directory on the disk.
pub fn fresh() -> TempDir {
    TempDir::new().unwrap()
}

/// A directory in memory, where there is one: what a kill leaves behind is the same there, and no sync takes time.
pub fn fresh_in_memory() -> TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap_or_else(|_| fresh())
}

/// Runs one round in a directory, which stays if it fails and no fault was planted.
pub fn guarded(test: &str, seed: u64, unit: u64, dir: TempDir, round: impl FnOnce(&Path) -> Tally) -> Tally {
    catch_unwind(AssertUnwindSafe(|| round(dir.path()))).unwrap_or_else(|panic| {
        if std::env::var_os("OUTLAST_PLANTED").is_some() {
            // It was meant to fail.
            resume_unwind(panic);
        }
        println!(
            "seed {seed} failed; its files stay in {}. To repeat it:\n  OUTLAST_TEST_SEED={seed} OUTLAST_TEST_ROUNDS={unit} \
             cargo test --features cli,testing,zstd,tls,planted --test kill -- --exact --nocapture {test}",
            dir.keep().display()
        );
        resume_unwind(panic)
    })
}
