//! The fuzz targets without libFuzzer: each file of their corpus, and sequences of operations from seeds. And how the
//! corpus was made.
//!
//! What a fuzzer once found stays in the corpus, under a name that begins with `found-`, so this is also where it must
//! not come back. `OUTLAST_TEST_ROUNDS` says how many seeds, `OUTLAST_TEST_SEED` from which on (with one round: which).
#![cfg(feature = "testing")]

use std::fs;
use std::path::{Path, PathBuf};

#[path = "../fuzz/src/lib.rs"]
mod targets;

// `targets::lines` compiles a file of the program in, which looks for it here.
use targets::args;

fn corpus(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target)
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> =
        fs::read_dir(directory).expect("a folder of the corpus").map(|file| file.expect("a file").path()).collect();
    files.sort();
    files
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().expect("a number"))
}

#[test]
fn every_file_of_the_corpus_keeps_what_its_target_claims() {
    let mut total = 0;
    for (name, target) in targets::TARGETS {
        let files = files(&corpus(name));
        assert!(files.len() >= 3, "{name}: {} files", files.len());
        for file in &files {
            let data = fs::read(file).expect("readable");
            let held = std::panic::catch_unwind(|| targets::run(target, &data));
            assert!(held.is_ok(), "{name} breaks on {0}; again: scripts/fuzz --replay {0} {name}", file.display());
        }
        total += files.len();
    }
    println!("{total} files of {} targets, 0 failures", targets::TARGETS.len());
}

#[test]
fn operations_from_any_seed_lose_nothing_and_invent_nothing() {
    let (first, rounds) = (number("OUTLAST_TEST_SEED").unwrap_or(1), number("OUTLAST_TEST_ROUNDS").unwrap_or(300));
    for seed in first..first + rounds {
        let mut rng = fastrand::Rng::with_seed(seed);
        let input: Vec<u8> = (0..rng.usize(20..400)).map(|_| rng.u8(..)).collect();
        let held = std::panic::catch_unwind(|| targets::operations::run(&input));
        assert!(
            held.is_ok(),
            "seed {seed} broke; again: OUTLAST_TEST_SEED={seed} OUTLAST_TEST_ROUNDS=1 cargo test --features \
             cli,testing,zstd,tls,planted --test fuzz_corpus operations"
        );
    }
    println!("{rounds} seeds from {first} on, 0 lost, 0 invented");
}

/// What the operations find in a process that has the fault.
#[cfg(feature = "planted")]
fn found_with(fault: &str) -> String {
    let child = std::process::Command::new(std::env::current_exe().expect("this program"))
        .args(["operations_from_any_seed_lose_nothing_and_invent_nothing", "--exact"])
        .env("OUTLAST_PLANTED", fault)
        .env("OUTLAST_TEST_ROUNDS", "1500")
        .env_remove("OUTLAST_TEST_SEED")
        .output()
        .expect("this program runs");
    let told = String::from_utf8_lossy(&child.stdout).into_owned() + &String::from_utf8_lossy(&child.stderr);
    assert!(!child.status.success() && told.contains("again: OUTLAST_TEST_SEED="), "{fault} was not caught: {told}");
    told
}

#[cfg(feature = "planted")]
#[test]
fn planted_ack_before_sync_is_caught() {
    let told = found_with("ack-before-sync");
    assert!(told.contains("was acknowledged and is gone"), "{told}");
}

#[cfg(feature = "planted")]
#[test]
fn planted_skip_directory_sync_is_caught() {
    let told = found_with("skip-directory-sync");
    assert!(told.contains("was acknowledged and is gone"), "{told}");
}

#[cfg(feature = "planted")]
#[test]
fn planted_reuse_acked_lsn_is_caught() {
    let told = found_with("reuse-acked-lsn");
    assert!(told.contains("would be given out again"), "{told}");
}

#[cfg(feature = "planted")]
#[test]
fn planted_stale_frame_is_live_is_caught() {
    let told = found_with("stale-frame-is-live");
    assert!(told.contains("Damage {"), "a frame of an earlier life is seen where none was written: {told}");
}

#[test]
#[ignore = "makes what the corpus begins with; files that a fuzzer found stay"]
fn make_the_corpus() {
    for (target, name, bytes) in targets::seeds::all() {
        fs::create_dir_all(corpus(target)).expect("a folder");
        fs::write(corpus(target).join(name), bytes).expect("written");
    }
}
