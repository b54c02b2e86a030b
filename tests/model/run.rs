//! Runs seeds, as many as asked for, on as many threads, and says what came of it.

use std::cell::Cell;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use outlast::internals::outbox::ledger::Ledger;
use outlast::internals::outbox::{Directory, DirectoryOptions};
use outlast::internals::wal::Operation;
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};

use super::case::{Case, case};
use super::world::{Seen, World};

/// How a run is asked for.
pub struct Plan {
    pub name: &'static str,
    pub first: u64,
    pub rounds: u64,
    pub jobs: u64,
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

impl Plan {
    /// As the file's head says: `OUTLAST_TEST_ROUNDS` seeds from 0, or from `OUTLAST_TEST_SEED`; that one alone if nothing says how many.
    pub fn of(name: &'static str, rounds: u64) -> Self {
        let (seed, asked) = (number("OUTLAST_TEST_SEED"), number("OUTLAST_TEST_ROUNDS"));
        let rounds = asked.unwrap_or(if seed.is_some() { 1 } else { rounds });
        Self { name, first: seed.unwrap_or(0), rounds, jobs: number("OUTLAST_TEST_JOBS").unwrap_or(2).max(1) }
    }

    /// Panics with the smallest list of operations that fails, if any does.
    pub fn run(&self, ledger: &(dyn Fn(&Directory) -> Ledger + Sync)) {
        let begun = Instant::now();
        let (next, totals) = (AtomicU64::new(self.first), Mutex::default());
        let end = self.first.saturating_add(self.rounds);
        let failed = Mutex::new(None);
        std::thread::scope(|scope| {
            for _ in 0..self.jobs.min(self.rounds) {
                scope.spawn(|| {
                    let place = tempfile::tempdir().expect("a directory");
                    let directory = Directory::open(&place.path().join("outbox"), &DirectoryOptions::default());
                    let directory = Arc::new(directory.expect("an outbox's directory"));
                    loop {
                        let seed = next.fetch_add(1, Ordering::Relaxed);
                        if seed >= end {
                            return;
                        }
                        let new = || ledger(&directory);
                        if let Err(said) = self.seed(seed, &directory, &new, &totals) {
                            next.store(end, Ordering::Relaxed);
                            failed.lock().expect("not poisoned").get_or_insert(said);
                        }
                    }
                });
            }
        });
        if let Some(said) = failed.into_inner().expect("not poisoned") {
            panic!("{said}");
        }
        let Seen { lives, acknowledged, segments, full } = totals.into_inner().expect("not poisoned");
        println!(
            "{}: seeds {}..{end}: {} seeds, {lives} lives, {segments} segments, {acknowledged} acknowledged, \
             {full} without room, 0 lost, {:.1} s",
            self.name,
            self.first,
            self.rounds,
            begun.elapsed().as_secs_f64()
        );
    }

    fn seed(
        &self,
        seed: u64,
        directory: &Arc<Directory>,
        ledger: &dyn Fn() -> Ledger,
        totals: &Mutex<Seen>,
    ) -> Result<(), String> {
        let mut runner = runner(seed);
        let shown = Cell::new(self.rounds > 1);
        let outcome = runner.run(&case(), |case| {
            if !shown.replace(true) {
                println!("{}", listed(&case));
            }
            let mut world = World::new(directory, ledger, &case);
            world.run(&case.ops).map_err(TestCaseError::fail)?;
            totals.lock().expect("not poisoned").add(&world.seen);
            Ok(())
        });
        outcome.map_err(|error| match error {
            TestError::Fail(reason, case) => format!(
                "seed {seed}: {reason}\n{}\ncalls since the last power cut:\n{}\nagain: OUTLAST_TEST_SEED={seed} cargo test --features \
                 cli,testing,zstd,tls,planted --test model -- --exact {} --nocapture",
                listed(&case),
                calls(directory, ledger, &case),
                self.name
            ),
            TestError::Abort(reason) => format!("seed {seed}: aborted: {reason}"),
        })
    }
}

fn runner(seed: u64) -> TestRunner {
    let max_shrink_iters = if number("OUTLAST_TEST_SHRINK") == Some(0) { 0 } else { 20_000 };
    let config = Config { cases: 1, failure_persistence: None, max_shrink_iters, verbose: 0, ..Config::default() };
    // Neighbours would begin alike.
    let mut dice = fastrand::Rng::with_seed(seed);
    let mut bytes = [0; 16];
    bytes.fill_with(|| dice.u8(..));
    TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::XorShift, &bytes))
}

/// What a seed calls since its last power cut, and the disk it leaves.
pub fn outcome(seed: u64, directory: &Arc<Directory>) -> (Vec<Operation>, Vec<(PathBuf, Vec<u8>)>) {
    let case = case().new_tree(&mut runner(seed)).expect("every case is one").current();
    let mut world = World::new(directory, &Ledger::none, &case).traced();
    if let Err(said) = world.run(&case.ops) {
        panic!("seed {seed}: {said}");
    }
    (world.trace(), world.disk())
}

fn calls(directory: &Arc<Directory>, ledger: &dyn Fn() -> Ledger, case: &Case) -> String {
    let mut world = World::new(directory, ledger, case).traced();
    // It failed before, and that is told already.
    let _ = world.run(&case.ops);
    world.trace().iter().map(|call| format!("  {call:?}\n")).collect()
}

fn listed(case: &Case) -> String {
    let ops = case.ops.iter().map(|op| format!("  {op:?}\n")).collect::<String>();
    format!("{:?}, dice {}\n{ops}", case.limits, case.dice)
}
