//! The harness is seen to catch what it is there for: with a fault planted, it fails. Chance has a part in it, so there
//! are many rounds; the first that fails ends them.

use crate::shows::assert_caught;

const SIGKILL: &str = "what_was_acknowledged_survives_sigkill_at_any_time";
const ROUNDS: u64 = 500;
/// What the judge says of a message that is nowhere.
const LOST: &str = "acknowledged are lost";

#[test]
fn planted_settle_before_delivery_is_caught() {
    assert_caught(SIGKILL, "settle-before-delivery", ROUNDS, &[LOST]);
}

#[test]
fn planted_reuse_acked_lsn_is_caught() {
    // What the numbers were given to first may show as damage before anybody misses it.
    let damaged = "a kill damages nothing";
    assert_caught(SIGKILL, "reuse-acked-lsn", ROUNDS, &[LOST, "stands for two messages", "arrived as", damaged]);
}

#[test]
fn planted_lose_gate_is_caught() {
    assert_caught(SIGKILL, "lose-gate", ROUNDS, &["is out of order"]);
}

#[test]
fn planted_drop_with_future_is_caught() {
    assert_caught(SIGKILL, "drop-with-future", ROUNDS, &["that nobody watched"]);
}
