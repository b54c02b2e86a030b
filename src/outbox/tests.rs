//! Claims about what an outbox counts, gives up and takes out again, on a disk in memory.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::directory::{Directory, DirectoryOptions};
use super::ledger::{EntryRow, Ledger, LedgerOptions};
use super::{DeadError, Outbox};
use crate::message::{Message, MessageId, Outgoing, Route};
use crate::wal::{DeadLetter, Fault, Lsn, Mark, ModelStorage, Operation, Options, Stepper, Turn, WalError};

const EIO: i32 = 5;

/// An outbox whose threads' work is done turn by turn.
struct Bench {
    outbox: Arc<Outbox>,
    steppers: Arc<Mutex<[Stepper; 2]>>,
    storage: ModelStorage,
    now: Arc<Mutex<Instant>>,
    _place: tempfile::TempDir,
}

fn turn(steppers: &Mutex<[Stepper; 2]>, now: Instant) -> bool {
    let mut steppers = steppers.lock().expect("not poisoned");
    let turns = steppers.each_mut().map(|stepper| [stepper.prepare(now), stepper.commit(now)]);
    turns == [[Turn::Idle; 2]; 2]
}

impl Bench {
    fn new(with_ledger: bool) -> Self {
        let place = tempfile::tempdir().expect("a directory");
        let directory = Directory::open(&place.path().join("outbox"), &DirectoryOptions::default()).expect("is made");
        let (directory, storage) = (Arc::new(directory), ModelStorage::new(1));
        let opened = Arc::new(Mutex::new(None::<Arc<Mutex<[Stepper; 2]>>>));
        let now = Arc::new(Mutex::new(Instant::now()));
        let (waiting, time) = (Arc::clone(&opened), Arc::clone(&now));
        let work = move || {
            let steppers = waiting.lock().expect("not poisoned").clone().expect("it is open");
            let mut now = time.lock().expect("not poisoned");
            *now += Duration::from_millis(100);
            turn(&steppers, *now);
        };
        let wal = Options {
            while_waiting: Some(Arc::new(work)),
            max_segments: 16,
            ..Options::new(*directory.id(), 1).with_segment_bytes(64 << 10)
        };
        // As many records as the log's have room here, and a reason each.
        let dead = wal.clone().with_segment_bytes(128 << 10);
        let dead = Options { record_bytes: 32 << 10, ..dead };
        let ledger = match with_ledger {
            true => Ledger::open(&directory.paths().ledger(), LedgerOptions::default()),
            false => Ledger::none(),
        };
        let (outbox, steppers) =
            Outbox::open_stepped(directory, Arc::new(storage.clone()), wal, dead, ledger).expect("opens");
        let steppers = Arc::new(Mutex::new(steppers));
        *opened.lock().expect("not poisoned") = Some(Arc::clone(&steppers));
        Self { outbox: Arc::new(outbox), steppers, storage, now, _place: place }
    }

    fn work(&self) {
        for _ in 0..1_000 {
            let now = {
                let mut now = self.now.lock().expect("not poisoned");
                *now += Duration::from_secs(2);
                *now
            };
            if turn(&self.steppers, now) {
                return;
            }
        }
        panic!("the log never comes to rest");
    }

    /// Stores a message; the producer's part is done when the log refuses it.
    fn store(&self, number: u64, bytes: usize) -> Lsn {
        let outgoing = outgoing(number, bytes);
        let (outbox, content) = (Arc::downgrade(&self.outbox), outgoing.clone());
        let given = Arc::new(Mutex::new(0));
        let known = Arc::clone(&given);
        let lsn = self.outbox.append(&outgoing, move |result| {
            if let (Err(_), Some(outbox)) = (result, outbox.upgrade()) {
                outbox.forget(*known.lock().expect("not poisoned"), &content);
            }
        });
        *given.lock().expect("not poisoned") = lsn;
        lsn
    }

    fn bury(&self, lsn: Lsn, outgoing: &Outgoing, reason: &str) -> Option<bool> {
        let told = Arc::new(Mutex::new(None));
        let tell = Arc::clone(&told);
        let (outgoing, reason) = (outgoing.clone(), reason.to_owned());
        let letter = DeadLetter { lsn, outgoing, reason, attempts: 1, first_failure: 1, last_failure: 2 };
        self.outbox.bury(letter, move |result| *tell.lock().expect("not poisoned") = Some(result.is_ok()));
        self.work();
        self.outbox.flush_settlements();
        self.work();
        let told = told.lock().expect("not poisoned");
        *told
    }

    fn dead(&self) -> Vec<DeadLetter> {
        let mut letters = Vec::new();
        let all = self.outbox.each_dead(|_, letter| {
            letters.push(letter);
            Ok(())
        });
        all.expect("readable");
        letters
    }

    fn pending(&self) -> u64 {
        self.outbox.snapshot().pending.iter().map(|(_, pending)| pending.count).sum()
    }
}

fn outgoing(number: u64, bytes: usize) -> Outgoing {
    let route = Route { transport: "kafka".into(), destination: "orders".into() };
    let message = Message::to("orders").payload(vec![number as u8; bytes]);
    Outgoing { id: MessageId::new(1, number), route, lane: None, timestamp: 1, message }
}

/// All that was durable was settled, nothing was queued, and one message was in the log's hands, between its queue and the
/// disk: the counts were cleared with it. `drained` said yes, and the program ended with 0 and a message left.
#[test]
fn a_message_that_the_log_has_in_hand_is_counted() {
    let bench = Bench::new(false);
    let lsn = bench.store(1, 10);
    bench.work();
    bench.outbox.settle(Mark::Delivered, lsn, &outgoing(1, 10));
    let (counts, asked) = (Arc::new(Mutex::new(Vec::new())), Arc::downgrade(&bench.outbox));
    let told = Arc::clone(&counts);
    bench.storage.on_call(move |_, call| {
        if let (Operation::Sync(_), Some(outbox)) = (call, asked.upgrade()) {
            let pending = outbox.snapshot().pending;
            told.lock().expect("not poisoned").push(pending.iter().map(|(_, pending)| pending.count).sum::<u64>());
        }
        None
    });
    bench.store(2, 10);
    bench.work();
    assert!(counts.lock().expect("not poisoned").first().is_some_and(|count| *count == 1), "{counts:?}");
    bench.storage.kill();
    assert_eq!(bench.pending(), 1);
    bench.outbox.settle(Mark::Delivered, 2, &outgoing(2, 10));
    assert_eq!(bench.pending(), 0);
}

/// LSNs of messages that the disk refused stayed "the first that is not settled": whoever went by that was held up there until
/// the next start.
#[test]
fn an_lsn_that_was_refused_holds_nothing_up() {
    let bench = Bench::new(false);
    let first = bench.store(1, 10);
    bench.work();
    bench.storage.on_call(|_, call| matches!(call, Operation::Sync(_)).then_some(Fault::Error(EIO)));
    let refused = bench.store(2, 10);
    bench.work();
    bench.storage.kill();
    let last = bench.store(3, 10);
    bench.work();
    assert_eq!(bench.outbox.first_pending(), first);
    bench.outbox.settle(Mark::Delivered, first, &outgoing(1, 10));
    assert_eq!((bench.outbox.first_pending(), refused), (last, last - 1));
    bench.outbox.settle(Mark::Delivered, last, &outgoing(3, 10));
    bench.outbox.flush_settlements();
    bench.work();
    assert_eq!((bench.outbox.first_pending(), bench.pending()), (last + 1, 0));
}

/// Rows of the ledger went with the settled prefix: one message that was held up, and those of all that came after it stayed,
/// for ever more, though their segments were used again long ago.
#[test]
fn a_message_that_is_held_up_keeps_no_rows_but_those_of_segments_that_are_there() {
    let bench = Bench::new(true);
    for number in 1..=200 {
        let lsn = bench.store(number, 3_000);
        bench.work();
        bench.outbox.ledger().entry(lsn, EntryRow { segment: 1, offset: 4096, count: 1, bytes: 4096, time: 1 });
        if number > 1 {
            bench.outbox.settle(Mark::Delivered, lsn, &outgoing(number, 3_000));
            bench.outbox.flush_settlements();
            bench.work();
        }
        bench.outbox.forget_settled_entries();
    }
    let begun = Instant::now();
    let found = || bench.outbox.ledger().seek(150).map(|(lsn, _)| lsn);
    while found().is_some_and(|lsn| lsn > 100) && begun.elapsed() < Duration::from_secs(30) {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(found().is_some_and(|lsn| lsn < 40), "{:?}", found());
    assert_eq!(bench.outbox.ledger().seek(200).map(|(lsn, _)| lsn), Some(200), "what is there is known");
    assert!(bench.outbox.ledger().close(Duration::from_secs(10)));
}

/// One dead letter of a batch did not fit into the log. The others had been appended by then, and were not taken out of
/// the dead letters: each further try doubled them.
#[test]
fn a_dead_letter_that_cannot_be_requeued_does_not_double_the_others() {
    let bench = Bench::new(false);
    for number in 1..=3 {
        let lsn = bench.store(number, 10);
        bench.work();
        let large = if number == 2 { 20_000 } else { 10 };
        assert_eq!(bench.bury(lsn, &outgoing(number, large), "no"), Some(true));
    }
    assert_eq!((bench.dead().len(), bench.pending()), (3, 0));
    let done = bench.outbox.change_dead(Mark::Requeued, |_, _| true);
    assert!(matches!(done, Err(DeadError::Write(error)) if matches!(*error, WalError::TooLarge { .. })));
    bench.work();
    assert_eq!((bench.pending(), bench.outbox.snapshot().dead.0), (2, 1), "each is in one place");
    assert_eq!(bench.outbox.first_pending(), 4);
}

/// What a fault of the route had buried together was buried in any order, and pending again in that order: the order of
/// each key was lost.
#[test]
fn dead_letters_are_requeued_in_the_order_in_which_they_were_stored() {
    // As many at a time as there are, and fewer: then their log is read several times.
    for sorted in [1_000, 2] {
        let bench = Bench::new(false);
        let lsns: Vec<(u64, Lsn)> = (1..=7).map(|number| (number, bench.store(number, 10))).collect();
        bench.work();
        for at in [3, 6, 0, 5, 1, 4, 2] {
            let (number, lsn) = lsns[at];
            assert_eq!(bench.bury(lsn, &outgoing(number, 10), "no"), Some(true));
        }
        let done = bench.outbox.requeue_sorted(false, sorted, &|_, letter| letter.lsn != lsns[3].1);
        assert_eq!(done.expect("requeued"), 6);
        bench.work();
        assert_eq!((bench.pending(), bench.outbox.snapshot().dead.0), (6, 1));
        let read = |lsn| bench.outbox.read(lsn, None).expect("readable").expect("there").id.number();
        assert_eq!((8..14).map(read).collect::<Vec<_>>(), [1, 2, 3, 5, 6, 7]);
    }
}

/// The broker refused the application's time: from now on it counts as the library's, which gives way.
#[test]
fn a_restamped_letter_keeps_its_time_as_one_of_the_librarys() {
    let bench = Bench::new(false);
    let lsn = bench.store(1, 10);
    bench.work();
    let mut given = outgoing(1, 10);
    (given.timestamp, given.message.timestamp) = (1_234, Some(1_234));
    assert_eq!(bench.bury(lsn, &given, "no"), Some(true));
    assert_eq!(bench.outbox.requeue_dead(true, |_, _| true).expect("requeued"), 1);
    bench.work();
    let read = bench.outbox.read(2, None).expect("readable").expect("there");
    assert_eq!((read.timestamp, read.message.timestamp), (1_234, None));
}

/// The reason was as long as the broker had made it, and the dead letters' segments had no room for it beside a large message:
/// it could not be buried, and stopped its lane.
#[test]
fn what_fits_can_be_buried_whatever_the_reason() {
    let bench = Bench::new(false);
    let largest = (1..16_384).rev().find(|&bytes| bench.outbox.fits(&outgoing(1, bytes))).expect("some fit");
    assert!(largest > 15_000, "{largest}");
    let lsn = bench.store(1, largest);
    bench.work();
    let reason = format!("x{}", "ü".repeat(20_000));
    assert_eq!(bench.bury(lsn, &outgoing(1, largest), &reason), Some(true));
    let kept = &bench.dead()[0].reason;
    assert!(kept.len() == 4_095 && reason.starts_with(kept), "{}", kept.len());
}
