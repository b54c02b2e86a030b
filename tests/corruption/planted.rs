//! Faults on purpose: each test runs one of the others in a process that has the fault, and wants it to fail.

use std::process::Command;

/// Runs a test in a process of its own, with few rounds and this fault; whether it passed, and what it said.
fn run(test: &str, fault: &str) -> (bool, String) {
    let mut child = Command::new(std::env::current_exe().expect("the test binary's path"));
    child.args([test, "--exact", "--nocapture", "--test-threads=1"]);
    child.env("OUTLAST_PLANTED", fault).env("OUTLAST_TEST_ROUNDS", "100").env("OUTLAST_TEST_SEED", "1");
    let output = child.env_remove("OUTLAST_TEST_BIT").env("RUST_BACKTRACE", "0").output().expect("the test runs");
    let said = [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned()).concat();
    assert!(said.contains("running 1 test"), "{test} does not exist: {said}");
    (output.status.success(), said)
}

#[track_caller]
fn catches(test: &str, fault: &str, words: &[&str]) {
    let (passed, said) = run(test, "");
    assert!(passed, "{test} fails without a fault: {said}");
    let (passed, said) = run(test, fault);
    assert!(!passed, "{test} passes in spite of {fault}: {said}");
    assert!(words.iter().any(|words| said.contains(words)), "{test} fails for another reason: {said}");
}

#[test]
fn planted_stale_frame_is_live_is_caught() {
    let words = ["comes after", "other contents", "was never written", "nothing is damaged"];
    catches("frames_of_an_earlier_life_are_never_taken_for_live_ones", "stale-frame-is-live", &words);
}

#[test]
fn planted_reuse_acked_lsn_is_caught() {
    catches(
        "after_damage_the_log_goes_on_and_loses_nothing_more",
        "reuse-acked-lsn",
        &["and the next LSN is", "a second time"],
    );
}

#[test]
fn planted_write_into_found_is_caught() {
    catches("after_damage_the_log_goes_on_and_loses_nothing_more", "write-into-found", &["is written into"]);
}
