//! The state machine catches what it is there for: each planted fault that lies in the outbox's reach, as a process of
//! its own, because a fault is the whole process's.

use std::process::Command;

/// The test that is run in the process with the fault.
const SUBJECT: &str = "no_crash_and_no_failing_disk_loses_or_invents_anything";
/// Seeds within which each is caught; the last needs some 700.
const ROUNDS: &str = "4000";

/// Asserts that the state machine fails with this fault, and with one of these claims.
fn is_caught(fault: &str, claims: &[&str]) {
    let subject = std::env::current_exe().expect("the test knows its own file");
    let run = Command::new(subject)
        .args([SUBJECT, "--exact", "--nocapture"])
        .env("OUTLAST_PLANTED", fault)
        .env("OUTLAST_TEST_ROUNDS", ROUNDS)
        .env("OUTLAST_TEST_SHRINK", "0")
        .env_remove("OUTLAST_TEST_SEED")
        .output()
        .expect("the test runs once more");
    let said = format!("{}{}", String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    assert!(said.contains(&format!("planted: {fault}")), "the fault was not there: {said}");
    assert!(!run.status.success(), "{fault} was not caught in {ROUNDS} seeds");
    let told = said.lines().find(|line| line.starts_with("seed ")).unwrap_or(&said);
    assert!(claims.iter().any(|claim| told.contains(claim)), "{fault} was caught by another claim: {told}");
    println!("{fault}: {told}");
}

const DAMAGED: &str = "but nothing was damaged";
const GONE: &str = "was acknowledged and is gone";
const UNSAID: &str = "was acknowledged and is settled, and nobody said so";

#[test]
fn planted_ack_before_sync_is_caught() {
    is_caught("ack-before-sync", &[DAMAGED, GONE, UNSAID, "and comes back"]);
}

#[test]
fn planted_skip_directory_sync_is_caught() {
    is_caught("skip-directory-sync", &[DAMAGED, GONE, UNSAID]);
}

#[test]
fn planted_retry_failed_sync_is_caught() {
    is_caught("retry-failed-sync", &[DAMAGED, GONE, UNSAID]);
}

#[test]
fn planted_recycle_on_ledgers_word_is_caught() {
    is_caught("recycle-on-ledgers-word", &["the segment is missing", GONE]);
}

#[test]
fn planted_reuse_acked_lsn_is_caught() {
    is_caught("reuse-acked-lsn", &["is given out, and", "is acknowledged twice", DAMAGED]);
}

#[test]
fn planted_write_into_found_is_caught() {
    // Or the room that was promised in segments of its own is not there.
    is_caught("write-into-found", &[DAMAGED, GONE, UNSAID, "found none"]);
}

#[test]
fn planted_stale_frame_is_live_is_caught() {
    is_caught("stale-frame-is-live", &[DAMAGED, "is settled, and nobody said so", "never"]);
}
