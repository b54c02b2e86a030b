//! The instruments catch what they are there for: each fault is planted in a child that runs the test which has to fail.

use std::process::Command;

/// Runs a test of this program in a process of its own, and gives what it said if it failed.
fn failure_of(test: &str, fault: &str, environment: &[(&str, &str)]) -> Option<String> {
    let mut command = Command::new(std::env::current_exe().expect("the test binary's path"));
    command.args([test, "--exact", "--nocapture"]).envs(environment.iter().copied());
    command.env("OUTLAST_PLANTED", fault).env("RUST_BACKTRACE", "0");
    let output = command.output().expect("it runs");
    let said = [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned()).concat();
    assert!(said.contains("running 1 test"), "there is no test {test}: {said}");
    (!output.status.success()).then_some(said)
}

/// Fails unless the test fails with the fault, for one of the reasons. That it passes without is seen when it runs by
/// itself.
#[track_caller]
fn is_caught(fault: &str, test: &str, environment: &[(&str, &str)], reasons: &[&str]) {
    let said = failure_of(test, fault, environment);
    let said = said.unwrap_or_else(|| panic!("{test} did not notice {fault}"));
    assert!(reasons.iter().any(|reason| said.contains(reason)), "{test} failed for another reason: {said}");
}

const POWER_CUT: &str = "power_cut::what_was_acknowledged_survives_the_loss_of_unsynced_writes";
const FAILED_SYNC: &str = "failed_sync::no_ok_for_what_a_failed_sync_was_to_make_durable";
/// Power cuts that are enough: it takes 10 to 100 of them, and ends with the first that shows something. Where a process
/// is when its power goes is not up to the seed.
const CUTS: [(&str, &str); 2] = [("OUTLAST_TEST_ROUNDS", "2000"), ("OUTLAST_TEST_SEED", "1")];

#[test]
fn planted_ack_before_sync_is_caught() {
    is_caught("ack-before-sync", POWER_CUT, &CUTS, &[" lost: [", "damages nothing"]);
}

#[test]
fn planted_skip_directory_sync_is_caught() {
    is_caught("skip-directory-sync", POWER_CUT, &CUTS, &[" lost: [", "damages nothing"]);
}

#[test]
fn planted_retry_failed_sync_is_caught() {
    let some = [("OUTLAST_TEST_SITE", "outbox/wal/#.seg"), ("OUTLAST_TEST_RUNS", "40")];
    is_caught("retry-failed-sync", FAILED_SYNC, &some, &[" lost: ["]);
}
