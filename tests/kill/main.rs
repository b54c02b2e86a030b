//! Processes that end without a word, and what was acknowledged all the same: killed at random times and at each call
//! to the disk, killed again while they recover, out of memory, stopped and robbed of their outbox (DESIGN.md 1;
//! RELIABILITY.md 1, 2, 3, 16 and 20).
//!
//! `OUTLAST_TEST_ROUNDS` says how many rounds instead of the short form, `OUTLAST_TEST_SEED` with which seed to begin;
//! `scripts/torture` runs the long forms. The seed fixes what is sent, when the kill comes and how the broker behaves;
//! which thread comes first it does not.

#![cfg(all(feature = "testing", target_os = "linux"))]

mod calls;
mod double;
mod life;
mod memory;
mod oracle;
#[cfg(feature = "planted")]
mod planted;
mod rounds;
#[path = "../shows/mod.rs"]
mod shows;
mod storage;
mod strace;
mod zombie;

use std::path::Path;

/// Kills of an outbox before it is drained and judged.
const LIVES: u64 = 5;

#[test]
#[ignore = "run by the other tests as a child process"]
fn child() {
    let Some(work) = shows::work() else { return };
    let words: Vec<&str> = work.iter().map(String::as_str).collect();
    let number = |word: &str| word.parse().expect("a number");
    match words[..] {
        ["send", dir, seed, life, answers] => {
            life::send(Path::new(dir), number(seed), number(life), number(answers) as usize, || {});
        }
        ["starve", dir, seed, life, how] => memory::send(Path::new(dir), number(seed), number(life), how),
        ["mend", dir, what] => life::mend(Path::new(dir), what),
        ["script", dir, at, when] => calls::script(Path::new(dir), number(at), storage::When::parse(when)),
        ["recover", dir, at, when] => double::recover(Path::new(dir), number(at), storage::When::parse(when)),
        _ => panic!("{words:?}?"),
    }
}

#[test]
fn what_was_acknowledged_survives_sigkill_at_any_time() {
    let kills = rounds::count(300);
    let totals =
        rounds::run("what_was_acknowledged_survives_sigkill_at_any_time", kills.div_ceil(LIVES), LIVES, |dir, seed| {
            let mut rng = fastrand::Rng::with_seed(seed);
            (1..=LIVES).for_each(|life| life::live_and_die(dir, life, &mut rng));
            life::drain_and_judge(dir, LIVES as usize, rng.bool())
        });
    assert!(totals.acked > totals.kills * 2, "the children did not get far enough to prove anything");
}
