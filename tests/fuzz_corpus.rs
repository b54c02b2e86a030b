//! The fuzz targets without libFuzzer: each file of their corpus, and sequences of operations from seeds. And how the
//! corpus was made.
//!
//! What a fuzzer once found stays in the corpus, under a name that begins with `found-`, so this is also where it must
//! not come back. `OUTLAST_TEST_ROUNDS` says how many seeds, `OUTLAST_TEST_SEED` from which on (with one round: which).
#![cfg(feature = "testing")]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

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

/// Held by whoever has the memory of the process looked at: the others must not take much meanwhile.
static MEMORY: Mutex<()> = Mutex::new(());

#[test]
fn every_file_of_the_corpus_keeps_what_its_target_claims() {
    let _alone = MEMORY.lock();
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

/// A header without name and value takes two bytes of the log, an empty field too, and both took forty times that in
/// memory: a record of 16 MiB made an open of the outbox hold some 500 MiB.
#[test]
fn a_record_of_nothing_but_empty_headers_or_fields_costs_no_more_memory_than_the_largest_message() {
    let _alone = MEMORY.lock();
    let number = |count: u32| [&[0xfc], &count.to_le_bytes()[..]].concat();
    let count = 8 << 20;
    // Transport, destination, no partition; then the headers, or no headers and the fields.
    let headers = [&[1, b'k', 1, b't', 0][..], &number(count), &vec![0; 2 * count as usize], &[0]].concat();
    let fields = [&[1, b'k', 1, b't', 0, 0, 2][..], &number(count), &vec![0; 2 * count as usize]].concat();
    for metadata in [headers, fields] {
        // The tag's number in the target, id, lane, timestamp, flags, and the lengths of metadata, key and payload.
        let mut record = vec![0; 1 + 44];
        record.extend_from_slice(&(metadata.len() as u32).to_le_bytes());
        record.extend_from_slice(&[0; 8]);
        record.extend_from_slice(&metadata);
        targets::run(targets::record::run, &record);
    }
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
    // Gone, or its LSN counts as never given out.
    let lost = ["was acknowledged and is gone", "is settled, and nobody settled it"];
    assert!(lost.iter().any(|lost| told.contains(lost)), "{told}");
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
