//! What the fuzz targets do with bytes from anywhere. Each is a function that panics when a claim does not hold; the
//! libFuzzer programs in `fuzz_targets/` and the test `tests/fuzz_corpus.rs` call the same ones.
//!
//! Common claims: no decoder panics or hangs, and none allocates by a length it was told. The last is seen by
//! [`memory`], because libFuzzer's own limit on allocations needs a sanitizer.

pub mod args;
pub mod config;
mod examine;
pub mod frame;
pub mod identity;
mod input;
pub mod ledger;
pub mod lines;
pub mod log;
pub mod memory;
pub mod operations;
pub mod outbox;
pub mod record;
pub mod round_trip;
pub mod seeds;
pub mod segment;
pub mod status;
pub mod url;

/// A target.
pub type Target = fn(&[u8]);

/// All of them, by the names of their programs and of their folders in `corpus/`.
pub const TARGETS: [(&str, Target); 13] = [
    ("config", config::run),
    ("frame", frame::run),
    ("identity", identity::run),
    ("ledger", ledger::run),
    ("lines", lines::run),
    ("log", log::run),
    ("operations", operations::run),
    ("outbox", outbox::run),
    ("record", record::run),
    ("round_trip", round_trip::run),
    ("segment", segment::run),
    ("status", status::run),
    ("url", url::run),
];

/// Runs a target and sees how much memory it takes.
pub fn run(target: Target, data: &[u8]) {
    let before = memory::begin();
    target(data);
    memory::check(before);
}
