//! Killed, and killed again while it recovers: recovery can be cut short anywhere, and be done again (RELIABILITY.md 3).
//!
//! The second process dies at a random call of its opening or shortly after it, at a random time, or both come in turn;
//! it sends and delivers nothing, so what is pending and what is dead must be the same behind it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use outlast::admin;

use crate::LIVES;
use crate::life;
use crate::oracle::{self, Tally};
use crate::rounds;
use crate::storage::{Fuse, Fused, When, die};

/// Calls of an opening, about; it is killed at one of them.
const CALLS: u64 = 24;

/// Opens an outbox without a broker, and dies: at the fatal call, or a little later.
pub fn recover(dir: &Path, at: u64, when: When) {
    let broker = oracle::broker(dir);
    broker.down();
    let fuse = Fuse::new(at, when, &dir.join("fatal"));
    let opened = life::builder(dir, &broker).storage(Arc::new(Fused(fuse))).open_blocking();
    // What the opening leaves to its threads happens now.
    std::thread::sleep(Duration::from_millis(5));
    match opened {
        Ok(_still_open) => die(),
        Err(error) => panic!("it does not open: {error}"),
    }
}

/// What is pending and what is dead, by place and message.
fn contents(dir: &Path) -> BTreeMap<(&'static str, u64), String> {
    let outbox = dir.join("outbox");
    if admin::inspect(&outbox).is_err() {
        return BTreeMap::new();
    }
    let pending = admin::peek(&outbox, usize::MAX).unwrap().into_iter();
    let dead = admin::dead_letters(&outbox).unwrap().into_iter();
    let pending = pending.map(|message| (("pending", message.lsn), message.id.to_string()));
    pending.chain(dead.map(|letter| (("dead", letter.number), letter.id.to_string()))).collect()
}

/// One process that is killed while it recovers.
fn crash_in_recovery(dir: &Path, life: u64, rng: &mut fastrand::Rng) {
    let before = contents(dir);
    let at_call = rng.u8(..4) > 0;
    let (at, when) = (if at_call { rng.u64(1..CALLS) } else { 0 }, When::ALL[rng.usize(..3)]);
    let mut child = life::start(dir, life, &[&"recover", &dir, &at.to_string(), &format!("{when:?}")]);
    if !at_call {
        std::thread::sleep(Duration::from_micros(rng.u64(..25_000)));
        child.kill().unwrap();
    }
    let status = child.wait().unwrap();
    let said = life::said(dir, life);
    assert!(!status.success() && !said.contains("panicked"), "recovery {life}, call {at} {when:?}: {status}, {said}");
    let after = contents(dir);
    let changed: Vec<_> =
        before.iter().filter(|(place, id)| after.get(place) != Some(id)).chain(&after).take(5).collect();
    assert!(before == after, "recovery {life}, call {at} {when:?}, changed what is there: {changed:?}");
}

#[test]
fn killed_again_in_recovery_nothing_acknowledged_is_lost() {
    let name = "double::killed_again_in_recovery_nothing_acknowledged_is_lost";
    // A round has two lives, each with one or two crashes in the recovery behind it.
    let rounds = rounds::count(100).div_ceil(2);
    let totals = rounds::run(name, rounds, 2, |dir, seed| {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut kills = 0;
        for life in 1..=2 {
            life::live_and_die(dir, life, &mut rng);
            let crashes = 1 + u64::from(rng.u8(..3) == 0);
            (1..=crashes).for_each(|crash| crash_in_recovery(dir, LIVES * life + crash, &mut rng));
            kills += 1 + crashes as usize;
        }
        let tally = life::drain_and_judge(dir, kills, false);
        Tally { kills, ..tally }
    });
    assert!(totals.acked > totals.kills, "the children did not get far enough to prove anything");
}
