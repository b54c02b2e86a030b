//! A log whose threads' work is done turn by turn, on a disk in memory.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::tests::message;
use super::*;

/// Turns after which a log counts as never coming to rest.
const MOST_TURNS: u32 = 5_000;

pub(super) fn directory() -> PathBuf {
    PathBuf::from("/wal")
}

pub(super) type Outcomes = Arc<Mutex<Vec<(Lsn, Result<Lsn, Arc<WalError>>)>>>;

/// See the module.
pub(super) struct Rig {
    pub storage: ModelStorage,
    pub wal: Wal,
    pub recovered: Recovered,
    pub stepper: Stepper,
    pub now: Instant,
    pub outcomes: Outcomes,
    next: u64,
}

impl Rig {
    pub fn new(storage: &ModelStorage, options: Options) -> Self {
        Self::on(storage, Arc::new(storage.clone()), options)
    }

    /// On a disk that is seen through another.
    pub fn on(storage: &ModelStorage, seen: Arc<dyn Storage>, options: Options) -> Self {
        let storage = storage.clone();
        let (wal, recovered, stepper) = Wal::open_stepped(seen, &directory(), options).expect("opens");
        Self { storage, wal, recovered, stepper, now: Instant::now(), outcomes: Outcomes::default(), next: 0 }
    }

    pub fn append(&mut self, bytes: usize) -> Lsn {
        self.append_to("orders", bytes)
    }

    pub fn append_to(&mut self, destination: &str, bytes: usize) -> Lsn {
        self.next += 1;
        let outgoing = message(self.next, destination, &vec![1; bytes]);
        let (outcomes, number) = (Arc::clone(&self.outcomes), self.next);
        self.wal.append(EntryRef::Message(&outgoing), move |outcome| {
            outcomes.lock().expect("not poisoned").push((number, outcome));
        })
    }

    pub fn settle(&self, first: Lsn, last: Lsn) {
        self.settle_on("orders", first, last);
    }

    pub fn settle_on(&self, destination: &str, first: Lsn, last: Lsn) {
        let route = Route { transport: "kafka".into(), destination: destination.into() };
        let totals = vec![RouteTotal { route, count: last - first + 1, bytes: 0 }];
        self.wal.settle(Settled { mark: Mark::Delivered, ranges: vec![(first, last)], totals });
    }

    pub fn run(&mut self) {
        self.turns(Stepper::prepare);
        self.turns(Stepper::commit);
    }

    fn turns(&mut self, turn: fn(&mut Stepper, Instant) -> Turn) {
        let turns = (0..MOST_TURNS).find(|_| turn(&mut self.stepper, self.now) != Turn::Again);
        assert!(turns.is_some(), "the log never comes to rest");
    }

    /// What [`Wal::sync`] says, the log being turned until it answers.
    pub fn sync(&mut self) -> Result<(), Arc<WalError>> {
        let Self { wal, stepper, now, .. } = self;
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| wal.sync());
            let begun = Instant::now();
            while begun.elapsed() < Duration::from_secs(60) {
                if waiting.is_finished() {
                    return waiting.join().expect("it returns");
                }
                stepper.commit(*now);
                *now += Duration::from_millis(10);
                std::thread::sleep(Duration::from_micros(20));
            }
            stepper.abandon(*now);
            panic!("who waits for the log is never answered")
        })
    }

    pub fn wait(&mut self, millis: u64) {
        self.now += Duration::from_millis(millis);
        self.run();
    }

    pub fn outcomes(&self) -> Vec<(Lsn, Result<Lsn, Arc<WalError>>)> {
        std::mem::take(&mut *self.outcomes.lock().expect("not poisoned"))
    }

    pub fn accepted(&self) -> Vec<Lsn> {
        self.outcomes().into_iter().map(|(_, outcome)| outcome.expect("accepted")).collect()
    }

    pub fn fail(&self, mut which: impl FnMut(&Operation) -> bool + Send + 'static) {
        self.storage.on_call(move |_, call| which(call).then_some(Fault::Error(5)));
    }
}
