//! Several lives of one log, each ended by force, and what must hold at the end.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use fastrand::Rng;

use crate::children::Running;
use crate::disk::{Disk, Faults, Image, Loss};
use crate::life::{Life, Log, UNREADABLE};
use crate::oracle::{Verdict, acked_bytes, forget_acks, judge};

/// Lives of a log before it is drained and judged.
pub const LIVES: u64 = 5;
/// Logs that are tormented side by side: a life mostly waits for its end.
const ABREAST: usize = 4;

/// What a sync takes in a life, in milliseconds: on a disk that is too fast nothing happens between a write and its sync.
const SYNCS: [u64; 4] = [0, 1, 3, 10];

/// Bytes of acknowledgements, of 40 to 50 each, that a life is given at most before its end, and how long for them.
const ACKS: u64 = 5_000;
const PATIENCE: Duration = Duration::from_millis(500);

/// How lives end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// SIGKILL: everything written stays.
    Killed,
    /// SIGKILL, and mostly what was not synced is lost, whole or in part. Where it is not, the next life begins on writes
    /// that may still be lost.
    PowerCut,
}

/// What became of one log.
#[derive(Debug)]
pub struct Outcome {
    pub ends: u64,
    pub verdict: Verdict,
    /// Why it could not be opened or read any more.
    pub unreadable: Option<String>,
}

fn start(life: &Life) -> Running {
    Running::start(&life.words(), &life.notes, &format!("stderr-{}", life.number))
}

/// One life, ended by force while it opens its log or while it sends. The image at its end, if that is a power cut: what
/// the process does between the cut and its death is none of the disk's business, and what it acknowledges there does not
/// count.
fn live_and_die(life: &Life, disk: &Disk, cut: bool, rng: &mut Rng) -> Result<Option<Image>, String> {
    let (while_sending, delay) = (rng.u8(..3) > 0, Duration::from_micros(rng.u64(..60_000)));
    disk.set(Faults { delay: Duration::from_millis(*rng.choice(&SYNCS).unwrap_or(&0)), ..Faults::default() });
    let mut child = start(life);
    if while_sending {
        child.wait_for_line("open");
        // So far it gets on a busy machine, too, unless nothing is acknowledged.
        let (wanted, begun) = (acked_bytes(&life.notes) + rng.u64(..ACKS), Instant::now());
        while acked_bytes(&life.notes) < wanted && begun.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_micros(200));
        }
        std::thread::sleep(delay / 10);
    } else {
        std::thread::sleep(delay);
    }
    let ended = child.process.try_wait().expect("it can be waited for");
    let (acked, image) = (acked_bytes(&life.notes), cut.then(|| disk.image()));
    if ended.is_none() {
        child.process.kill().expect("it can be killed");
        child.process.wait().expect("it can be waited for");
    }
    if cut {
        forget_acks(&life.notes, acked);
    }
    let said = child.said();
    match ended {
        // sled may panic instead of telling.
        Some(status) if status.code() == Some(UNREADABLE) || life.log != Log::Outbox => Err(said),
        Some(status) => panic!("life {} ended by itself, {status}: {said}", life.number),
        None => {
            assert!(!said.contains("panicked") || life.log != Log::Outbox, "life {}: {said}", life.number);
            Ok(image)
        }
    }
}

/// The last life: drains the log.
fn drain(life: &Life) -> Result<(), String> {
    let mut child = start(life);
    if life.log != Log::Outbox {
        // sled may hang on what a power cut left.
        return match child.end() {
            Some(status) if status.success() => Ok(()),
            Some(_) => Err(child.said()),
            None => Err("it hangs".to_owned()),
        };
    }
    match child.wait().code() {
        Some(0) => Ok(()),
        code if code == Some(UNREADABLE) || life.log != Log::Outbox => Err(child.said()),
        code => panic!("it did not drain, {code:?}: {}", child.said()),
    }
}

/// The lives of one log, as the seed has it.
pub fn torment(log: Log, end: End, seed: u64) -> Outcome {
    let mut rng = Rng::with_seed(seed);
    let notes = tempfile::TempDir::new().expect("a directory");
    let mut image = Image::new();
    let life = |number: u64, disk: &Path, rng: &mut Rng| {
        let (notes, disk) = (notes.path().to_owned(), disk.to_owned());
        Life { notes, disk, log, seed: rng.u64(..), number }
    };
    let mut ends = 0;
    let mut unreadable = None;
    for number in 1..=LIVES {
        let disk = Disk::mount(image);
        let cut = end == End::PowerCut && rng.u8(..4) > 0;
        let lived = live_and_die(&life(number, disk.root(), &mut rng), &disk, cut, &mut rng);
        image = disk.unmount();
        ends += 1;
        match lived {
            Ok(Some(at_the_cut)) => image = at_the_cut.cut(Loss::draw(&mut rng), &mut rng),
            Ok(None) => {}
            Err(why) => {
                unreadable = Some(why);
                break;
            }
        }
    }
    if unreadable.is_none() {
        let disk = Disk::mount(image);
        unreadable = drain(&life(0, disk.root(), &mut rng)).err();
        disk.unmount();
    }
    Outcome { ends, verdict: judge(notes.path()), unreadable }
}

/// Figures of many logs.
#[derive(Debug, Default)]
pub struct Tally {
    pub logs: u64,
    pub ends: u64,
    pub acked: usize,
    pub lost: usize,
    pub duplicates: usize,
    /// Logs that could not be opened or read any more, and why the first could not.
    pub unreadable: u64,
    pub why: String,
    /// Logs that could, and said nothing, and had lost something.
    pub silently_shorter: u64,
    /// Messages out of order, changed or invented.
    pub wrong: usize,
    pub seconds: f64,
}

impl Tally {
    fn add(&mut self, outcome: Outcome) {
        let verdict = outcome.verdict;
        self.logs += 1;
        self.ends += outcome.ends;
        self.acked += verdict.acked;
        self.lost += verdict.lost.len();
        self.duplicates += verdict.duplicates;
        self.wrong += verdict.wrong.len();
        match outcome.unreadable {
            Some(why) => {
                self.unreadable += 1;
                if self.why.is_empty() {
                    let told = why.lines().filter(|line| !line.is_empty() && !line.starts_with("note: "));
                    self.why = told.collect::<Vec<_>>().join(" ");
                }
            }
            None => self.silently_shorter += u64::from(!verdict.lost.is_empty()),
        }
    }
}

/// A test that has failed need not go through the logs that are left.
struct OverIfItPanics<'a> {
    next: &'a AtomicU64,
    logs: u64,
}

impl Drop for OverIfItPanics<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.next.store(self.logs, Ordering::Release);
        }
    }
}

/// As many logs as it takes to end `ends` lives, side by side, with seeds that count from `seed`. `look` sees each
/// outcome first, and may fail the test.
pub fn many(log: Log, end: End, ends: u64, seed: u64, look: impl Fn(u64, &Outcome) + Sync) -> Tally {
    let (begun, next, tally) = (Instant::now(), AtomicU64::new(0), Mutex::new(Tally::default()));
    let logs = ends.div_ceil(LIVES);
    std::thread::scope(|scope| {
        for _ in 0..ABREAST {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::AcqRel);
                    if number >= logs {
                        return;
                    }
                    let seed = seed.wrapping_add(number);
                    let outcome = torment(log, end, seed);
                    let _over = OverIfItPanics { next: &next, logs };
                    look(seed, &outcome);
                    tally.lock().unwrap_or_else(PoisonError::into_inner).add(outcome);
                }
            });
        }
    });
    let mut tally = tally.into_inner().unwrap_or_else(PoisonError::into_inner);
    tally.seconds = begun.elapsed().as_secs_f64();
    tally
}
