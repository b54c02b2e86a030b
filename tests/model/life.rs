//! One life of a process on an outbox, without threads: what its threads would do is done turn by turn, at times that
//! the test decides.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use outlast::Outgoing;
use outlast::internals::outbox::ledger::{EntryRow, Ledger, LedgerState, ParkedKey, ParkedRow, ParkedScope};
use outlast::internals::outbox::{Directory, Outbox, Reservation};
use outlast::internals::wal::{
    DeadLetter, Lsn, Mark, ModelStorage, Options, Place, ReadError, Stepper, StoredRecord, Turn, WalError,
};

use super::case::Limits;
use super::oracle::Shown;
use outlast::internals::outbox::Scanned;

/// Turns that a wait may take, or a log that is left alone, before it counts as hanging.
const PATIENCE: u32 = 3_000;

/// The route under which messages are parked.
const PARKED: u64 = 7;
/// Rows that are looked at.
const MOST_PARKED: usize = 10_000;

/// How long a ledger may take to close.
const LEDGER_GRACE: Duration = Duration::from_secs(10);

static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// The time, which passes when the test says so.
#[derive(Clone, Default)]
pub struct Clock(Arc<AtomicU64>);

impl Clock {
    pub fn now(&self) -> Instant {
        *START + Duration::from_millis(self.0.load(Ordering::Relaxed))
    }

    pub fn pass(&self, millis: u64) -> Instant {
        self.0.fetch_add(millis, Ordering::Relaxed);
        self.now()
    }
}

/// What a caller was told.
pub enum Told {
    Appended { lsn: Lsn, message: usize, accepted: bool, settled: bool },
    Buried { number: usize, accepted: bool },
}

type Steppers = Arc<Mutex<Option<[Stepper; 2]>>>;

/// See the module.
pub struct Life {
    pub outbox: Arc<Outbox>,
    /// There is a ledger.
    ledger: bool,
    clock: Clock,
    steppers: Steppers,
    told: Arc<Mutex<Vec<Told>>>,
    /// Messages that were reported delivered while they were still written.
    early: Arc<Mutex<BTreeSet<Lsn>>>,
    pub in_flight: Vec<Lsn>,
    pub held: Vec<Reservation>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One turn of each of the threads.
fn turn(steppers: &Steppers, now: Instant) -> [Turn; 4] {
    let mut steppers = lock(steppers);
    let Some([wal, dead]) = steppers.as_mut() else { return [Turn::Done; 4] };
    [wal.prepare(now), wal.commit(now), dead.prepare(now), dead.commit(now)]
}

impl Life {
    pub fn begin(
        directory: &Arc<Directory>,
        storage: &ModelStorage,
        limits: &Limits,
        clock: &Clock,
        salts: fastrand::Rng,
        ledger: Ledger,
    ) -> Result<Self, WalError> {
        let steppers = Steppers::default();
        let wal = options(*directory.id(), limits, clock, &steppers, salts);
        // A dead letter has room for whatever message the log takes, and its reason.
        let dead =
            Options { record_bytes: 2 * wal.record_bytes, ..wal.clone().with_segment_bytes(2 * wal.segment_bytes) };
        let (outbox, opened) =
            Outbox::open_stepped(Arc::clone(directory), Arc::new(storage.clone()), wal, dead, ledger)?;
        *lock(&steppers) = Some(opened);
        let ledger = !matches!(outbox.ledger().health().state, LedgerState::Off { .. });
        Ok(Self {
            outbox: Arc::new(outbox),
            ledger,
            clock: clock.clone(),
            steppers,
            told: Arc::default(),
            early: Arc::default(),
            in_flight: Vec::new(),
            held: Vec::new(),
        })
    }

    /// Stores a message. Its reservation is given back when the log has answered, as the producer does.
    pub fn append(&mut self, message: usize, outgoing: &Outgoing, reservation: Option<Reservation>) -> Lsn {
        let (told, early) = (Arc::clone(&self.told), Arc::clone(&self.early));
        let (outbox, content) = (Arc::downgrade(&self.outbox), outgoing.clone());
        let given = Arc::new(AtomicU64::new(0));
        let known = Arc::clone(&given);
        let lsn = self.outbox.append(outgoing, move |result| {
            let lsn = known.load(Ordering::Relaxed);
            let mut settled = false;
            if let Some(outbox) = outbox.upgrade() {
                match &result {
                    // What was reported during the append counts from now on.
                    Ok(_) if lock(&early).remove(&lsn) => {
                        outbox.settle(Mark::Delivered, lsn, &content);
                        settled = true;
                    }
                    Ok(_) => {}
                    Err(_) => outbox.forget(lsn, &content),
                }
            }
            drop(reservation);
            lock(&told).push(Told::Appended { lsn, message, accepted: result.is_ok(), settled });
        });
        given.store(lsn, Ordering::Relaxed);
        self.in_flight.push(lsn);
        lsn
    }

    /// A broker has a message that the log still writes.
    pub fn deliver_early(&self, lsn: Lsn) {
        lock(&self.early).insert(lsn);
    }

    pub fn bury(&self, letter: DeadLetter) {
        let (told, number) = (Arc::clone(&self.told), letter.attempts as usize);
        self.outbox.bury(letter, move |result| lock(&told).push(Told::Buried { number, accepted: result.is_ok() }));
    }

    pub fn told(&mut self) -> Vec<Told> {
        let told = std::mem::take(&mut *lock(&self.told));
        for answer in &told {
            if let Told::Appended { lsn, .. } = answer {
                self.in_flight.retain(|other| other != lsn);
            }
        }
        told
    }

    pub fn turns(&self, turns: u8, millis: u16) {
        self.clock.pass(u64::from(millis));
        for _ in 0..turns {
            turn(&self.steppers, self.clock.now());
        }
    }

    /// Lets the threads work until they have nothing left to do; false if they never come to rest.
    pub fn quiet(&self) -> bool {
        self.outbox.flush_settlements();
        for _ in 0..PATIENCE {
            match turn(&self.steppers, self.clock.now()) {
                [Turn::Idle, Turn::Idle, Turn::Idle, Turn::Idle] => return true,
                turns if turns.contains(&Turn::Again) => {}
                turns if turns.contains(&Turn::Done) => return false,
                _ => _ = self.clock.pass(250),
            }
        }
        false
    }

    /// Everything that can be read of an outbox. What is damaged is set aside, as the drainer does.
    pub fn show(&self) -> Result<Shown, ReadError> {
        let outbox = &self.outbox;
        let (mut records, mut dead) = (Vec::new(), Vec::new());
        let mut damage = outbox.found().damage.clone();
        let mut scan = outbox.scan(outbox.first_pending());
        loop {
            match scan.advance(|lsn| outbox.hint(lsn))? {
                Scanned::Frame { place, bytes, time, records: more } => {
                    self.note(place, bytes, time, &more);
                    records.extend(more);
                }
                Scanned::Damaged(lost) => {
                    outbox.set_aside(&lost);
                    damage.push(lost);
                }
                Scanned::End => break,
            }
        }
        let read = outbox.each_dead(|_, letter| {
            dead.push(letter);
            Ok(())
        });
        match read {
            Ok(()) => Ok(Shown { records, damage, dead }),
            Err(outlast::internals::outbox::DeadError::Read(error)) => Err(error),
            Err(error) => unreachable!("nothing is written: {error}"),
        }
    }

    /// Where a frame lies, for the ledger, if there is one; and, as if the drainer passed over all of it, where its messages
    /// are parked.
    fn note(&self, place: Place, bytes: u64, time: i64, records: &[StoredRecord]) {
        if !self.ledger {
            return;
        }
        if let Some(first) = records.first() {
            let count = records.len() as u32;
            let row = EntryRow { segment: place.segment, offset: place.offset, count, bytes, time };
            self.outbox.ledger().entry(first.lsn, row);
        }
        for record in records {
            let Place { segment, offset, index } = record.place;
            let row = ParkedRow { segment, offset, index, partition: -1 };
            self.outbox.ledger().park(ParkedKey { route: PARKED, lane: 0, lsn: record.lsn }, row);
        }
    }

    /// Where the ledger says that messages are parked: in this log, or in one of another history. Half of the rows of
    /// messages that are not pending stay.
    pub fn parked(&self, is_pending: impl Fn(Lsn) -> bool) -> HashMap<Lsn, Place> {
        if !self.ledger {
            return HashMap::new();
        }
        let ledger = self.outbox.ledger();
        let rows = ledger.parked(ParkedScope::Route(PARKED), None, MOST_PARKED).unwrap_or_default();
        rows.into_iter()
            .map(|(key, ParkedRow { segment, offset, index, .. })| {
                if key.lsn.is_multiple_of(2) && !is_pending(key.lsn) {
                    ledger.unpark(key);
                }
                (key.lsn, Place { segment, offset, index })
            })
            .collect()
    }

    /// The process is gone; whoever waited hears nothing. The storage has to be stopped before.
    pub fn end(self) {
        // Two sleds on one directory would not be a crash, but a mistake of the test's.
        self.outbox.ledger().close(LEDGER_GRACE);
        if let Some(mut steppers) = lock(&self.steppers).take() {
            steppers.iter_mut().for_each(|stepper| stepper.abandon(self.clock.now()));
        }
    }
}

fn options(outbox: [u8; 16], limits: &Limits, clock: &Clock, steppers: &Steppers, salts: fastrand::Rng) -> Options {
    let salts = Mutex::new(salts);
    let (waiting, time, waited) = (Arc::clone(steppers), clock.clone(), AtomicU64::new(0));
    let base = Options::new(outbox, 0xfeed).with_segment_bytes(limits.segment_bytes);
    let now = clock.clone();
    Options {
        frame_bytes: limits.frame_bytes.min(base.frame_bytes),
        max_segments: limits.max_segments,
        max_ranges: limits.max_ranges.min(base.max_ranges),
        tail_bytes: limits.tail_bytes,
        salt: Arc::new(move || lock(&salts).u64(..)),
        clock: Arc::new(move || now.now()),
        while_waiting: Some(Arc::new(move || {
            let turns = waited.fetch_add(1, Ordering::Relaxed);
            assert!(turns < u64::from(PATIENCE), "a wait for the log never ends");
            if !turn(&waiting, time.now()).contains(&Turn::Again) {
                time.pass(25);
            }
        })),
        ..base
    }
}
