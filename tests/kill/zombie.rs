//! One outbox, two processes: the second is refused, and a stopped holder is not robbed. And a stopped holder whose
//! `LOCK` was taken from beneath it is fenced when it wakes: it acknowledges nothing that the new owner does not have,
//! and touches nothing of the new owner's (RELIABILITY.md 20).

use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use outlast::testing::Broker;
use outlast::{OpenErrorKind, SendErrorKind};
use rustix::process::{Pid, Signal, kill_process};

use crate::life::{self, Life, REDELIVERY};
use crate::oracle::{self, Bounds, Tally};
use crate::rounds;
use crate::shows::LONG;

/// What somebody does to the outbox of a stopped process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Robbery {
    /// The lock file is removed.
    Removed,
    /// Another file takes its place.
    Replaced,
    /// The outbox is replaced by a copy of itself, as a restore does.
    Restored,
    /// It is moved away, and a new one made.
    Moved,
}

const ROBBERIES: [Robbery; 4] = [Robbery::Removed, Robbery::Replaced, Robbery::Restored, Robbery::Moved];

fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

/// Waits until something is so. Polled, because what is waited for happens in another process.
#[track_caller]
fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < LONG, "{what}: not within {LONG:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// SIGSTOP; returns once every thread has stopped.
fn stop(child: &Child) {
    signal(child, Signal::STOP);
    wait_until("every thread has stopped", || {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", child.id())).unwrap();
        let mut states = tasks.flatten().filter_map(|task| std::fs::read_to_string(task.path().join("stat")).ok());
        states.all(|stat| stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T')))
    });
}

fn sending(dir: &Path, life: u64, seed: u64) -> Life {
    let for_ever = u32::MAX.to_string();
    life::start(dir, life, &[&"send", &dir, &seed.to_string(), &life.to_string(), &for_ever])
}

/// A process that sends, its outbox open.
fn sender(dir: &Path, life: u64, seed: u64) -> Life {
    let mut child = sending(dir, life, seed);
    life::wait_for_open(dir, life, &mut child);
    child
}

/// A second opening is refused, and says who has the outbox.
#[track_caller]
fn assert_refused(dir: &Path, holder: &Child) {
    let second = life::builder(dir, &Broker::new()).lock_wait(Duration::ZERO).open_blocking();
    let error = second.expect_err("a second owner");
    assert!(matches!(error.kind(), OpenErrorKind::Held { .. }), "{error}");
    assert!(error.to_string().contains(&format!("pid {}", holder.id())), "{error} does not name {}", holder.id());
}

#[test]
fn an_outbox_has_one_owner_and_a_stopped_one_is_not_robbed() {
    let name = "zombie::an_outbox_has_one_owner_and_a_stopped_one_is_not_robbed";
    rounds::run(name, rounds::count(20), 1, |dir, seed| {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut holder = sender(dir, 1, rng.u64(..));
        assert_refused(dir, &holder);
        std::thread::sleep(Duration::from_micros(rng.u64(..20_000)));
        stop(&holder);
        assert_refused(dir, &holder);
        let told = oracle::answered(dir);
        signal(&holder, Signal::CONT);
        wait_until("it goes on", || oracle::answered(dir) > told);
        // Whoever waits gets the outbox when its holder is gone.
        let mut successor = sending(dir, 2, rng.u64(..));
        life::kill(dir, 1, &mut holder);
        life::wait_for_open(dir, 2, &mut successor);
        assert_refused(dir, &successor);
        life::kill(dir, 2, &mut successor);
        life::drain_and_judge(dir, 2, false)
    });
}

fn rob(dir: &Path, robbery: Robbery) {
    let (outbox, aside) = (dir.join("outbox"), dir.join("aside"));
    match robbery {
        Robbery::Removed => std::fs::remove_file(outbox.join("LOCK")).unwrap(),
        Robbery::Replaced => {
            std::fs::write(dir.join("other"), "").unwrap();
            std::fs::rename(dir.join("other"), outbox.join("LOCK")).unwrap();
        }
        Robbery::Moved => std::fs::rename(&outbox, &aside).unwrap(),
        Robbery::Restored => {
            std::fs::rename(&outbox, &aside).unwrap();
            let copied = Command::new("cp").arg("-a").args([&aside, &outbox]).status().unwrap();
            assert!(copied.success(), "{copied}");
        }
    }
}

/// Drains the outbox that was moved away: what the zombie stored lies there.
fn drain_moved(dir: &Path) {
    let (outbox, aside, new) = (dir.join("outbox"), dir.join("aside"), dir.join("new"));
    std::fs::rename(&outbox, &new).unwrap();
    std::fs::rename(&aside, &outbox).unwrap();
    life::drain(dir, true);
    std::fs::remove_dir_all(&outbox).unwrap();
    std::fs::rename(&new, &outbox).unwrap();
}

/// Stops a sender, robs it, lets another one take over, and wakes it.
fn wake_beside_its_successor(dir: &Path, seed: u64) -> Tally {
    let mut rng = fastrand::Rng::with_seed(seed);
    let robbery = ROBBERIES[seed as usize % ROBBERIES.len()];
    let mut zombie = sender(dir, 1, rng.u64(..));
    std::thread::sleep(Duration::from_micros(rng.u64(..40_000)));
    stop(&zombie);
    rob(dir, robbery);
    let mut owner = sender(dir, 2, rng.u64(..));
    std::thread::sleep(Duration::from_micros(rng.u64(..20_000)));
    signal(&zombie, Signal::CONT);
    wait_until("the zombie is fenced", || oracle::refusals(dir, "Storage") > 0);
    let told = oracle::answered(dir);
    wait_until("the owner goes on", || oracle::answered(dir) > told + 20);
    life::kill(dir, 1, &mut zombie);
    life::kill(dir, 2, &mut owner);
    if robbery == Robbery::Moved {
        drain_moved(dir);
    }
    life::drain(dir, true);
    // The zombie sees its stored messages as pending for ever: it delivers a window of them once more.
    let refusals = &[SendErrorKind::Full, SendErrorKind::Storage];
    let bounds = Bounds { refusals, side_by_side: true, ..Bounds::new(3, REDELIVERY) };
    let tally = oracle::judge(dir, &bounds);
    Tally { kills: 2, ..tally }
}

#[test]
fn a_stopped_owner_that_was_robbed_is_fenced_when_it_wakes() {
    let name = "zombie::a_stopped_owner_that_was_robbed_is_fenced_when_it_wakes";
    rounds::run(name, rounds::count(20), 1, wake_beside_its_successor);
}
