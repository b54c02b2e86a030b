//! The demonstration, as somebody new would run it.
#![cfg(all(feature = "cli", feature = "kafka"))]

mod common;

use std::time::{Duration, Instant};

use common::{log_lines, run};

#[test]
fn the_demonstration_loses_nothing_and_takes_less_than_a_minute() {
    let begin = Instant::now();
    let output = run(&["demo"], b"");
    assert_eq!(output.code, Some(0), "{}\n{}", output.stdout, output.stderr);
    assert!(output.stdout.contains("Nothing was lost, and every key is in order."), "{}", output.stdout);
    assert!(begin.elapsed() < Duration::from_secs(60), "it took {:?}", begin.elapsed());
}

#[test]
fn the_demonstration_takes_lines_of_the_users_own() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("lines");
    std::fs::write(&file, log_lines(1, 2_000).join(&b'\n')).unwrap();
    let output = run(&["demo", file.to_str().unwrap()], b"");
    assert_eq!(output.code, Some(0), "{}\n{}", output.stdout, output.stderr);
    let words: Vec<&str> = output.stdout.split_whitespace().collect();
    assert!(words.windows(5).any(|words| words == ["lines", "acknowledged", "2,000", "records", "at"]), "{words:?}");
    assert!(words.windows(3).any(|words| words == ["lines", "lost", "0"]), "{words:?}");

    let output = run(&["demo", "/nonexistent/lines"], b"");
    assert_eq!(output.code, Some(2), "{output:?}");
}
