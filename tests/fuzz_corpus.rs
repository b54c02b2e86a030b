//! The corpus of the fuzz targets, without libFuzzer: each file through its target. And how the corpus was made.
//!
//! What a fuzzer once found stays in the corpus, so this is also where it must not come back.

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

#[test]
fn every_file_of_the_corpus_keeps_what_its_target_claims() {
    for (name, target) in targets::TARGETS {
        let files = files(&corpus(name));
        assert!(files.len() >= 3, "{name}: {} files", files.len());
        for file in &files {
            let data = fs::read(file).expect("readable");
            let held = std::panic::catch_unwind(|| targets::run(target, &data));
            assert!(held.is_ok(), "replay it with: OUTLAST_FUZZ_FILE={} cargo test --test fuzz_corpus", file.display());
        }
        println!("{name}: {} files", files.len());
    }
}

#[test]
#[ignore = "makes what the corpus begins with; files that a fuzzer found stay"]
fn make_the_corpus() {
    for (target, name, bytes) in targets::seeds::all() {
        fs::create_dir_all(corpus(target)).expect("a folder");
        fs::write(corpus(target).join(name), bytes).expect("written");
    }
}
