//! How many rounds, from which seed, on how many threads; and the totals.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::judge::Verdict;

/// Always the same unless another is asked for, so that a red run is about the change.
const SEED: u64 = 13;
/// A round that takes longer hangs.
const HANG: Duration = Duration::from_secs(60);
/// Rounds a thread takes at a time.
const CHUNK: u64 = 64;

/// See the module.
pub struct Rounds {
    pub test: String,
    pub count: u64,
    pub seed: u64,
}

/// A number from the environment.
pub fn one(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok().filter(|value| !value.is_empty())?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name}={value} is no number")))
}

impl Rounds {
    /// `OUTLAST_TEST_ROUNDS` rounds, or else so many, but not more than there are.
    pub fn new(test: &str, default: u64, most: u64) -> Self {
        let seed = one("OUTLAST_TEST_SEED").unwrap_or(SEED);
        let count = one("OUTLAST_TEST_ROUNDS").unwrap_or(default).min(most);
        println!("{test}: OUTLAST_TEST_SEED={seed} OUTLAST_TEST_ROUNDS={count}");
        Self { test: test.to_owned(), count, seed }
    }

    /// What a round takes out of so many: each once if there are rounds for all, else any.
    pub fn pick(&self, round: u64, of: u64) -> u64 {
        if self.count == of { round } else { fastrand::Rng::with_seed(self.seed.wrapping_add(round)).u64(..of) }
    }

    /// Does all rounds on `OUTLAST_TEST_JOBS` threads. A round that fails says how it is repeated, and what was wrong.
    pub fn run(&self, what: &str, round: impl Fn(u64) -> Result<Verdict, (String, String)> + Sync) -> Sum {
        let jobs = one("OUTLAST_TEST_JOBS").unwrap_or(2).max(1);
        let (next, failed) = (AtomicU64::new(0), AtomicBool::new(false));
        let sum = Mutex::new(Sum::default());
        let started = Instant::now();
        std::thread::scope(|scope| {
            for _ in 0..jobs {
                scope.spawn(|| {
                    let mut mine = Sum::default();
                    loop {
                        let first = next.fetch_add(CHUNK, Ordering::Relaxed);
                        if first >= self.count || failed.load(Ordering::Relaxed) {
                            break;
                        }
                        for number in first..self.count.min(first + CHUNK) {
                            let before = Instant::now();
                            match round(number) {
                                Ok(verdict) => mine.add(verdict),
                                Err((again, wrong)) => {
                                    failed.store(true, Ordering::Relaxed);
                                    self.fail(what, &again, &wrong);
                                }
                            }
                            assert!(before.elapsed() < HANG, "{what}: round {number} took {:?}", before.elapsed());
                        }
                    }
                    sum.lock().expect("not poisoned").merge(&mine);
                });
            }
        });
        let mut sum = sum.into_inner().expect("not poisoned");
        sum.took = started.elapsed();
        sum
    }

    fn fail(&self, what: &str, again: &str, wrong: &str) -> ! {
        panic!(
            "{what}: {wrong}\nrepeat: {again} cargo test --features cli,testing,zstd,tls,planted --test corruption -- \
             --exact {} --nocapture",
            self.test
        )
    }
}

/// What became of all rounds.
#[derive(Clone, Debug, Default)]
pub struct Sum {
    pub rounds: u64,
    pub verdict: Verdict,
    /// Rounds in which something was lost and reported.
    pub losing: u64,
    pub took: Duration,
}

impl Sum {
    fn add(&mut self, verdict: Verdict) {
        self.rounds += 1;
        self.losing += u64::from(verdict.reported > 0);
        self.count(&verdict);
    }

    fn merge(&mut self, other: &Self) {
        self.rounds += other.rounds;
        self.losing += other.losing;
        self.count(&other.verdict);
    }

    fn count(&mut self, more: &Verdict) {
        self.verdict.delivered += more.delivered;
        self.verdict.reported += more.reported;
        self.verdict.torn += more.torn;
        self.verdict.again += more.again;
    }
}

/// The totals, on one line.
pub fn tell(what: &str, count: u64, of: u64, sum: &Sum) {
    let Verdict { delivered, reported, torn, again } = sum.verdict;
    let seconds = sum.took.as_secs_f64();
    assert_eq!(sum.rounds, count);
    println!(
        "{what}: {count} of {of} rounds, {delivered} messages delivered, {reported} lost and reported (in {} rounds), \
         0 lost in silence, {torn} like a torn write, {again} settled and pending again, {seconds:.1} s ({:.3} ms each)",
        sum.losing,
        seconds * 1000.0 / count.max(1) as f64,
    );
}
