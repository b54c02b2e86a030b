//! Killed at every call to the disk, of a script that stores, delivers, rotates, recycles and buries (RELIABILITY.md 2).
//!
//! Each call is reached: the number of the fatal call rises until the script has been run to its end several times.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use outlast::testing::Broker;
use outlast::{Mode, Producer};

use crate::life;
use crate::oracle::{self, Answers, Tally};
use crate::rounds;
use crate::shows::LONG;
use crate::storage::{Fuse, Fused, When};

/// Messages the script sends.
const MESSAGES: u64 = 50;
/// Of these together, the broker down for every other lot.
const LOT: u64 = 10;
/// Runs that have to reach the end before it is believed that no later call exists: threads race a little.
const ENDS: usize = 3;

/// Sends the messages, in lots, and closes.
pub fn script(dir: &Path, at: u64, when: When) {
    let broker = oracle::broker(dir);
    let fuse = Fuse::new(at, when, &dir.join("fatal"));
    let built = life::builder(dir, &broker).storage(std::sync::Arc::new(Fused(std::sync::Arc::clone(&fuse))));
    let producer = built.mode(Mode::WriteAhead).max_bytes(512 << 10).space_wait(LONG).open_blocking().unwrap();
    let mut answers = Answers::to(dir);
    for lot in 0..MESSAGES / LOT {
        send_lot(&producer, &broker, lot, &mut answers);
    }
    producer.blocking_close(LONG).unwrap();
    println!("calls {}", fuse.calls());
}

fn send_lot(producer: &Producer, broker: &Broker, lot: u64, answers: &mut Answers) {
    if lot.is_multiple_of(2) {
        broker.down();
    }
    for number in lot * LOT..(lot + 1) * LOT {
        answers.put(number, &producer.blocking_send(oracle::message(number)));
    }
    broker.up();
    producer.blocking_drained(LONG).unwrap();
}

/// Runs the script to its fatal call; the name of that call, or `None` if it came to its end.
fn run_to(dir: &Path, at: u64, when: When) -> Option<String> {
    let mut child = life::start(dir, 1, &[&"script", &dir, &at.to_string(), &format!("{when:?}")]);
    let status = child.wait().unwrap();
    let said = life::said(dir, 1);
    let fatal = std::fs::read_to_string(dir.join("fatal")).ok();
    assert!(status.success() == fatal.is_none(), "call {at}, {when:?}: {status}, {said}");
    assert!(!said.contains("panicked"), "call {at}, {when:?}: {said}");
    fatal
}

/// Kills at one call and judges; for a write also half-way through it.
fn kill_at(test: &str, at: u64, kinds: &Mutex<BTreeMap<String, u64>>, totals: &Mutex<Tally>) -> bool {
    let is_long = rounds::count(0) > 0;
    let mut moments = vec![When::Before];
    while let Some(when) = moments.pop() {
        let mut fatal = None;
        let tally = rounds::guarded(test, at, 1, rounds::fresh_in_memory(), |dir| {
            fatal = run_to(dir, at, when);
            life::drain_and_judge(dir, usize::from(fatal.is_some()), false)
        });
        let Some(name) = fatal else { return false };
        if when == When::Before {
            if name == "write" || name == "allocate" {
                moments.push(When::Half);
            }
            // What follows a call at once is what the next call's `Before` shows, but for other threads.
            if is_long {
                moments.push(When::After);
            }
        }
        *kinds.lock().unwrap().entry(name).or_default() += 1;
        *totals.lock().unwrap() += tally;
    }
    true
}

#[test]
fn killed_at_every_call_nothing_acknowledged_is_lost() {
    let begun = std::time::Instant::now();
    let (next, ends) = (AtomicU64::new(1), AtomicU64::new(0));
    let (kinds, totals) = (Mutex::new(BTreeMap::new()), Mutex::new(Tally::default()));
    let worker = || {
        while ends.load(Ordering::SeqCst) < ENDS as u64 {
            let at = next.fetch_add(1, Ordering::SeqCst);
            if !kill_at("calls::killed_at_every_call_nothing_acknowledged_is_lost", at, &kinds, &totals) {
                ends.fetch_add(1, Ordering::SeqCst);
            }
        }
    };
    std::thread::scope(|scope| (0..rounds::SIDE_BY_SIDE).for_each(|_| drop(scope.spawn(worker))));
    let (kinds, totals) = (kinds.into_inner().unwrap(), totals.into_inner().unwrap());
    let calls = next.into_inner() - 1;
    println!("every call, {calls} of them: {totals} in {:.1?}; {kinds:?}", begun.elapsed());
    for kind in ["create", "allocate", "write", "sync", "rename", "sync directory"] {
        assert!(kinds.get(kind).is_some_and(|count| *count >= 4), "hardly any {kind} among {kinds:?}");
    }
}
