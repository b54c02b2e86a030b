//! SIGKILL at random times, and what was not synced is lost: what was acknowledged is delivered, per key in order,
//! nothing is invented (RELIABILITY.md 5).
//!
//! Duplicates are counted and not bounded: a life is shorter than the second that settlements may wait for their sync,
//! so all that it delivered may come again (DESIGN.md 1.4).

use crate::life::Log;
use crate::rounds::{End, many};
use crate::shows::setting;

#[test]
fn what_was_acknowledged_survives_the_loss_of_unsynced_writes() {
    let cuts = setting("OUTLAST_TEST_ROUNDS", 200);
    let seed = setting("OUTLAST_TEST_SEED", fastrand::u64(..));
    println!("OUTLAST_TEST_SEED={seed} OUTLAST_TEST_ROUNDS={cuts}");
    let tally = many(Log::Outbox, End::PowerCut, cuts, seed, |seed, outcome| {
        let again = "cargo test --features cli,testing,zstd,tls,planted --test lost_writes power_cut";
        outcome.verdict.assert_clean(&format!("OUTLAST_TEST_SEED={seed} OUTLAST_TEST_ROUNDS=1 {again}"));
    });
    println!(
        "{} power cuts, {} acknowledged, {} lost, {} twice; {:.1} s",
        tally.ends, tally.acked, tally.lost, tally.duplicates, tally.seconds
    );
    assert!(tally.acked as u64 > tally.ends, "the children did not get far enough to prove anything");
}
