//! Claims about crashes and failing disks, on a disk in memory. One thread does everything, so a seed replays.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::tests::{message, options, read_all};
use super::*;

const EIO: i32 = 5;
const ENOSPC: i32 = 28;

fn directory() -> PathBuf {
    PathBuf::from("/wal")
}

/// The seeds: `OUTLAST_TEST_SEED` to begin with another one than zero, `OUTLAST_TEST_ROUNDS` for their number. Each is
/// printed when it is drawn.
fn seeds(default: u64) -> impl Iterator<Item = u64> {
    let setting = |name: &str| std::env::var(name).ok().and_then(|n| n.parse::<u64>().ok());
    let rounds = setting("OUTLAST_TEST_ROUNDS").unwrap_or(default);
    let first = setting("OUTLAST_TEST_SEED").unwrap_or(0);
    (0..rounds).map(move |round| first.wrapping_add(round)).inspect(|seed| println!("OUTLAST_TEST_SEED={seed}"))
}

/// What the outside world knows.
#[derive(Default)]
struct Oracle {
    /// LSN → numbers of the messages that were ever given it.
    submitted: BTreeMap<Lsn, Vec<u64>>,
    acked: BTreeMap<Lsn, u64>,
    refused: BTreeSet<(Lsn, u64)>,
    settled: BTreeSet<Lsn>,
    sizes: BTreeMap<u64, u64>,
    /// Records that were found after a sync of theirs had failed, or had not been made. A kernel that dropped them
    /// may have shown them, and said yes to the sync of the open, until the power was cut: nobody was promised them.
    unpromised: BTreeSet<Lsn>,
    next: u64,
}

type Outcomes = Arc<Mutex<Vec<(Lsn, u64, bool)>>>;

/// One life of a process.
struct Life {
    wal: Wal,
    stepper: Stepper,
    now: Instant,
    outcomes: Outcomes,
}

impl Life {
    fn begin(storage: &ModelStorage, options: Options, now: Instant) -> Result<(Self, Recovered), WalError> {
        let (wal, recovered, stepper) = Wal::open_stepped(Arc::new(storage.clone()), &directory(), options)?;
        Ok((Self { wal, stepper, now, outcomes: Outcomes::default() }, recovered))
    }

    fn append(&self, oracle: &mut Oracle, bytes: usize) -> Lsn {
        oracle.next += 1;
        let number = oracle.next;
        let destination = ["orders", "payments", "audit"][number as usize % 3];
        let outgoing = message(number, destination, &vec![number as u8; bytes]);
        let outcomes = Arc::clone(&self.outcomes);
        oracle.sizes.insert(number, outgoing.message.size() as u64);
        let lsn = self.wal.append(EntryRef::Message(&outgoing), move |outcome| {
            let lsn = outcome.as_ref().copied().unwrap_or_default();
            outcomes.lock().expect("not poisoned").push((lsn, number, outcome.is_ok()));
        });
        oracle.submitted.entry(lsn).or_default().push(number);
        lsn
    }

    fn settle(&self, oracle: &mut Oracle, rng: &mut fastrand::Rng) {
        let pending: Vec<_> = oracle.acked.iter().filter(|(lsn, _)| !oracle.settled.contains(lsn)).collect();
        if pending.is_empty() {
            return;
        }
        let (&lsn, &number) = pending[if rng.bool() { 0 } else { rng.usize(..pending.len()) }];
        oracle.settled.insert(lsn);
        self.settle_one(oracle, lsn, number);
    }

    fn settle_one(&self, oracle: &Oracle, lsn: Lsn, number: u64) {
        let route = message(number, ["orders", "payments", "audit"][number as usize % 3], &[]).route;
        let totals = vec![RouteTotal { route, count: 1, bytes: oracle.sizes[&number] }];
        self.wal.settle(Settled { mark: Mark::Delivered, ranges: vec![(lsn, lsn)], totals });
    }

    fn step(&mut self, oracle: &mut Oracle, rng: &mut fastrand::Rng) {
        self.now += Duration::from_millis(rng.u64(..150));
        for _ in 0..rng.usize(..3) {
            self.stepper.prepare(self.now);
        }
        self.stepper.commit(self.now);
        self.collect(oracle);
    }

    fn quiet(&mut self, oracle: &mut Oracle) {
        for _ in 0..1000 {
            self.now += Duration::from_millis(2000);
            let prepared = self.stepper.prepare(self.now);
            let committed = self.stepper.commit(self.now);
            if prepared == Turn::Idle && committed == Turn::Idle {
                break;
            }
        }
        self.collect(oracle);
    }

    fn collect(&mut self, oracle: &mut Oracle) {
        for (lsn, number, accepted) in self.outcomes.lock().expect("not poisoned").drain(..) {
            if accepted {
                let other = oracle.acked.insert(lsn, number);
                assert!(other.is_none() || oracle.unpromised.remove(&lsn), "LSN {lsn} was acknowledged twice");
            } else {
                let lsn = oracle.submitted.iter().rev().find(|(_, numbers)| numbers.contains(&number));
                let lsn = *lsn.expect("it was submitted").0;
                oracle.refused.insert((lsn, number));
            }
        }
    }
}

/// Everything that must hold after a restart.
fn check(seed: u64, faults: bool, oracle: &mut Oracle, recovered: &Recovered, wal: &Wal) {
    let (records, damage) = read_all(&wal.reader(), 1);
    for lost in recovered.damage.iter().chain(&damage) {
        let promised = (lost.first_lsn..=lost.last_lsn).find(|lsn| !oracle.unpromised.contains(lsn));
        assert!(
            promised.is_none() && lost.last_lsn >= lost.first_lsn,
            "seed {seed}: {lost:?}, but nothing was damaged"
        );
    }
    let found: BTreeMap<Lsn, u64> = records.iter().map(|r| (r.lsn, r.body.outgoing().id.number())).collect();
    assert_eq!(found.len(), records.len(), "seed {seed}: an LSN was read twice");
    let settled = &recovered.state.settled;
    for (&lsn, &number) in &oracle.acked {
        if settled.contains(lsn) {
            assert!(oracle.settled.contains(&lsn), "seed {seed}: {lsn} is settled and nobody said so");
        } else if !oracle.unpromised.contains(&lsn) {
            assert_eq!(found.get(&lsn), Some(&number), "seed {seed}: {lsn} was acknowledged and is gone");
        }
    }
    let promised = oracle.acked.keys().filter(|lsn| !oracle.unpromised.contains(lsn));
    let last_acked = promised.copied().max().unwrap_or(0);
    let mut pending: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    for record in &records {
        let (lsn, outgoing) = (record.lsn, record.body.outgoing());
        let number = outgoing.id.number();
        let submitted = oracle.submitted.get(&lsn).is_some_and(|numbers| numbers.contains(&number));
        assert!(submitted, "seed {seed}: {lsn} holds {number}, which was never given to it");
        let gone = oracle.refused.contains(&(lsn, number)) && last_acked > lsn;
        assert!(!gone, "seed {seed}: {lsn} was refused, others were accepted after it, and it is there");
        if !settled.contains(lsn) {
            let sum = pending.entry(outgoing.route.destination.to_string()).or_default();
            *sum = (sum.0 + 1, sum.1 + outgoing.message.size() as u64);
        }
    }
    let counted: BTreeMap<String, (u64, u64)> =
        recovered.state.routes.iter().map(|(r, p)| (r.destination.to_string(), (p.count, p.bytes))).collect();
    let exact = recovered.damage.is_empty() && damage.is_empty();
    assert!(
        !exact || counted == pending,
        "seed {seed}: the counts {counted:?} are not those of the records {pending:?}"
    );
    assert!(recovered.next_lsn > last_acked, "seed {seed}: an acknowledged LSN would be used again");
    // A message whose append was never answered but is there counts as accepted from now on.
    for record in records.iter().filter(|record| !settled.contains(record.lsn)) {
        let number = record.body.outgoing().id.number();
        if oracle.acked.insert(record.lsn, number).is_none() && faults {
            oracle.unpromised.insert(record.lsn);
        }
        oracle.refused.remove(&(record.lsn, number));
    }
    // Settlements that were lost will be made again.
    oracle.settled.retain(|&lsn| settled.contains(lsn));
}

/// Lives of a process, each ended by a kill or a power cut at any call, with a failing disk now and then.
fn lives(seed: u64, faults: bool) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut storage = ModelStorage::new(seed);
    let mut oracle = Oracle::default();
    let mut now = Instant::now();
    let limits = Options { max_segments: 40, tail_bytes: [0, 20_000][rng.usize(..2)], ..options() };
    let limits = limits.with_segment_bytes([32 << 10, 64 << 10][rng.usize(..2)]);
    for _ in 0..rng.usize(2..6) {
        let salts = Mutex::new(rng.fork());
        let salt = Arc::new(move || salts.lock().expect("not poisoned").u64(..));
        let limits = Options { salt, ..limits.clone() };
        let (mut life, recovered) = Life::begin(&storage, limits, now).expect("opens");
        check(seed, faults, &mut oracle, &recovered, &life.wal);
        if rng.bool() {
            life.wal.request(rng.u64(..200_000));
        }
        let stop = if rng.u8(..4) == 0 { usize::MAX } else { rng.usize(..120) };
        let mut errors = rng.fork();
        let chance = if faults { [0.0, 0.05, 0.3][rng.usize(..3)] } else { 0.0 };
        storage.on_call(move |number, _| match number {
            number if number >= stop => Some(Fault::Stop),
            _ if errors.f64() < chance => Some(Fault::Error([EIO, ENOSPC][errors.usize(..2)])),
            _ => None,
        });
        for _ in 0..rng.usize(..120) {
            for _ in 0..rng.usize(..4) {
                let bytes = if rng.u8(..8) == 0 { rng.usize(..7000) } else { rng.usize(..900) };
                life.append(&mut oracle, bytes);
            }
            for _ in 0..rng.usize(..5) {
                life.settle(&mut oracle, &mut rng);
            }
            life.step(&mut oracle, &mut rng);
        }
        if rng.bool() {
            life.quiet(&mut oracle);
        }
        now = life.now;
        drop(life);
        if rng.u8(..3) == 0 {
            storage.kill();
        } else {
            storage = storage.crash(rng.u64(..));
        }
    }
    let (life, recovered) = Life::begin(&storage, limits, now).expect("opens");
    check(seed, faults, &mut oracle, &recovered, &life.wal);
}

#[test]
fn a_crash_at_any_call_loses_nothing_acknowledged_and_invents_nothing() {
    for seed in seeds(300) {
        lives(seed, false);
    }
}

#[test]
fn a_failing_disk_and_crashes_lose_nothing_acknowledged_and_invent_nothing() {
    for seed in seeds(300) {
        lives(1_000_000 + seed, true);
    }
}
