//! Any sequence of appends, settlements, turns of the workers, kills, power cuts and restarts, against a model.
//!
//! After each restart: what was acknowledged and not settled is there; what is there was submitted under its LSN;
//! nothing is settled that nobody settled; the counts by route are those of the records; no LSN is given out twice;
//! no damage is seen, because there was none.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use outlast::Outgoing;
use outlast::internals::wal::{Fault, Lsn, Mark, ModelStorage, Options, RouteTotal, Settled};

use super::examine::{self, Life};
use super::input::Input;

/// Operations of one input, at most.
const MOST: usize = 60;

/// What the outside world knows.
#[derive(Default)]
struct Known {
    /// Numbers of the messages that were ever given an LSN: two after a restart that burnt nothing.
    submitted: BTreeMap<Lsn, Vec<u64>>,
    acknowledged: BTreeMap<Lsn, Outgoing>,
    settled: BTreeSet<Lsn>,
    messages: u64,
}

struct World {
    storage: ModelStorage,
    options: Options,
    life: Life,
    told: Arc<Mutex<BTreeMap<Lsn, Outgoing>>>,
    known: Known,
}

pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let seed = input.u64();
    let storage = ModelStorage::new(seed);
    let tail_bytes = if input.flag() { 20_000 } else { 0 };
    let options = Options { tail_bytes, max_segments: 4 + u32::from(input.below(12)), ..examine::options() };
    let life = Life::begin_with(&storage, options.clone()).expect("an empty log opens");
    let mut world = World { storage, options, life, told: Arc::default(), known: Known::default() };
    for _ in 0..MOST {
        if input.is_empty() {
            break;
        }
        world.step(&mut input);
    }
    world.restart(None);
}

impl World {
    fn step(&mut self, input: &mut Input<'_>) {
        match input.below(16) {
            0..5 => {
                let length = [10, 500, 2000, 7000][usize::from(input.below(4))];
                self.append(length + usize::from(input.u8()));
            }
            5..8 => {
                let (which, count) = (input.u8(), input.below(4));
                self.settle(which, count);
            }
            8 => self.life.wal.request(u64::from(input.u16()) * 4),
            9..11 => self.turn(Duration::from_millis(u64::from(input.u8())), input.below(4)),
            11..13 => self.life.run(),
            13 => {
                // The process dies at one of the next calls to the disk.
                let stop = usize::from(input.u8());
                self.storage.on_call(move |number, _| (number >= stop).then_some(Fault::Stop));
            }
            14 => self.restart(None),
            _ => {
                let seed = u64::from(input.u16());
                self.restart(Some(seed));
            }
        }
        self.collect();
    }

    fn append(&mut self, length: usize) {
        self.known.messages += 1;
        let number = self.known.messages;
        let lsn = self.life.append(&examine::message(number, &vec![number as u8; length]), &self.told);
        self.known.submitted.entry(lsn).or_default().push(number);
    }

    /// Settles a few messages, from the oldest that is pending or from further on.
    fn settle(&mut self, which: u8, count: u8) {
        let open: Vec<Lsn> =
            self.known.acknowledged.keys().filter(|lsn| !self.known.settled.contains(lsn)).copied().collect();
        if open.is_empty() {
            return;
        }
        let from = usize::from(which) % open.len();
        for lsn in open.into_iter().skip(from).take(1 + usize::from(count)) {
            let Some(outgoing) = self.known.acknowledged.get(&lsn) else { continue };
            let total = RouteTotal { route: outgoing.route.clone(), count: 1, bytes: outgoing.message.size() as u64 };
            self.life.wal.settle(Settled { mark: Mark::Delivered, ranges: vec![(lsn, lsn)], totals: vec![total] });
            self.known.settled.insert(lsn);
        }
    }

    fn turn(&mut self, by: Duration, prepares: u8) {
        self.life.now += by;
        for _ in 0..prepares {
            self.life.stepper.prepare(self.life.now);
        }
        self.life.stepper.commit(self.life.now);
    }

    fn collect(&mut self) {
        for (lsn, outgoing) in std::mem::take(&mut *self.told.lock().expect("not poisoned")) {
            let other = self.known.acknowledged.insert(lsn, outgoing);
            assert!(other.is_none(), "LSN {lsn} was acknowledged twice");
        }
    }

    /// The process dies, or the power is cut; then it is started again, and everything is compared.
    fn restart(&mut self, cut: Option<u64>) {
        self.collect();
        if let Some(seed) = cut {
            self.storage = self.storage.crash(seed);
        }
        self.storage.kill();
        let now = self.life.now;
        self.life = Life::begin_with(&self.storage, self.options.clone()).expect("what was written opens");
        self.life.now = now;
        self.told = Arc::default();
        self.compare();
    }

    fn compare(&mut self) {
        let (found, damage) = self.life.read();
        assert!(damage.is_empty() && self.life.damage.is_empty(), "{damage:?} {:?}", self.life.damage);
        let known = &mut self.known;
        for (lsn, outgoing) in &known.acknowledged {
            if self.life.settled(*lsn) {
                assert!(known.settled.contains(lsn), "LSN {lsn} is settled, and nobody settled it");
            } else {
                let there = found.contains_key(&(*lsn, outgoing.id));
                assert!(there, "LSN {lsn} was acknowledged and is gone");
            }
        }
        let lsns: BTreeSet<Lsn> = found.keys().map(|(lsn, _)| *lsn).collect();
        assert_eq!(lsns.len(), found.len(), "an LSN was read twice");
        let state = self.life.wal.state();
        let last = known.acknowledged.keys().next_back().copied().unwrap_or(0);
        assert!(state.next_lsn > last, "LSN {last} would be given out again");
        let mut counts: BTreeMap<String, (u64, u64)> = BTreeMap::new();
        for (&(lsn, _), outgoing) in &found {
            let submitted = known.submitted.get(&lsn).is_some_and(|all| all.contains(&outgoing.id.number()));
            assert!(submitted, "LSN {lsn} holds {:?}, which was never given it", outgoing.id);
            if self.life.settled(lsn) {
                continue;
            }
            let count = counts.entry(outgoing.route.destination.to_string()).or_default();
            *count = (count.0 + 1, count.1 + outgoing.message.size() as u64);
            // Never answered, but there: accepted from now on.
            known.acknowledged.insert(lsn, outgoing.clone());
        }
        let said: BTreeMap<String, (u64, u64)> =
            state.routes.iter().map(|(r, p)| (r.destination.to_string(), (p.count, p.bytes))).collect();
        assert_eq!(said, counts, "the counts are not those of the records");
        // Settlements that were lost are made again.
        known.settled.retain(|lsn| self.life.settled(*lsn));
    }
}
