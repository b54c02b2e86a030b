//! Calls that fail on what lies beside the logs: the outbox's directories, `IDENTITY`, `LOCK`, `status` (RELIABILITY.md, row
//! 10). strace makes the n-th call on them fail in a process that opens, stores, delivers and closes; the next process
//! finds everything.
//!
//! `OUTLAST_TEST_ROUNDS=N` runs N cases of all there are; `OUTLAST_TEST_SEED=S` draws the same ones.

#![cfg(all(feature = "testing", target_os = "linux"))]

#[allow(dead_code, reason = "shared with other test programs")]
#[path = "io_faults/runs.rs"]
mod runs;
mod shows;

use std::collections::HashSet;
use std::fmt;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use outlast::testing::Broker;
use shows::{LONG, builder, numbered, setting, under, work};

const CALLS: [&str; 8] = ["openat", "mkdir", "write", "ftruncate", "fdatasync", "fsync", "rename", "flock"];
const ERRORS: [&str; 3] = ["EIO", "ENOSPC", "EINTR"];
/// `when` of strace: each thread counts for itself.
const MOST: usize = 6;
const MESSAGES: u64 = 12;

/// A call that fails.
#[derive(Clone, Copy)]
struct Case {
    call: &'static str,
    error: &'static str,
    when: usize,
    for_good: bool,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { call, error, when, for_good } = self;
        write!(f, "inject={call}:error={error}:when={when}{}", if *for_good { "+" } else { "" })
    }
}

fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for call in CALLS {
        for error in ERRORS {
            for when in 1..=MOST {
                // A call that is interrupted for ever is rightly tried for ever.
                let lengths: &[bool] = if error == "EINTR" { &[false] } else { &[false, true] };
                all.extend(lengths.iter().map(|&for_good| Case { call, error, when, for_good }));
            }
        }
    }
    all
}

/// One process with a fault, one without. Whether the fault was met, and how many messages were accepted.
fn run(case: &Case) -> (bool, usize) {
    let dir = tempfile::TempDir::new().unwrap();
    let outbox = dir.path().join("outbox");
    let mut strace = Command::new("timeout");
    strace.args(["--signal=KILL", "90", "strace", "-f", "-qq", "-o"]).arg(dir.path().join("strace"));
    let files = ["", "wal", "dead", "damaged", "ledger", "IDENTITY", "IDENTITY.tmp", "LOCK", "status", "status.tmp"];
    for file in files {
        strace.arg("-P").arg(if file.is_empty() { outbox.clone() } else { outbox.join(file) });
    }
    strace.args(["-e", &format!("trace={}", case.call), "-e", &case.to_string()]);
    let output = under(strace, &[&dir.path()]).stdout(Stdio::piped()).stderr(Stdio::piped()).output();
    let output = output.expect("timeout runs (Debian: coreutils), and strace (Debian: apt-get install strace)");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("<end>"), "{:?}\n{said}\n{errors}", output.status);
    assert!(!errors.contains("panicked"), "{errors}");
    let met = std::fs::read_to_string(dir.path().join("strace")).is_ok_and(|trace| trace.contains("(INJECTED)"));
    let mut delivered: HashSet<String> = words(&said, "<delivered ");
    let accepted = words(&said, "<ok ");
    for refused in said.lines().filter_map(|line| line.split_once("<open ")) {
        assert!(met && refused.1.contains("outbox"), "the error names the path: {}", refused.1);
    }

    let broker = Broker::new();
    let producer = builder(dir.path(), &broker).open_blocking().expect("the next open works");
    producer.blocking_drained(LONG).unwrap();
    assert_eq!(producer.stats().set_aside, 0);
    producer.blocking_close(LONG).unwrap();
    delivered.extend(broker.delivered().iter().map(|one| {
        let (key, number) = shows::number_of(one);
        format!("{key}:{number}")
    }));
    let lost: Vec<&String> = accepted.difference(&delivered).collect();
    assert!(lost.is_empty(), "accepted and lost: {lost:?}");
    (met, accepted.len())
}

fn words(text: &str, before: &str) -> HashSet<String> {
    text.split(before).skip(1).filter_map(|rest| Some(rest.split_once('>')?.0.to_owned())).collect()
}

#[test]
fn a_failing_call_on_what_lies_beside_the_logs_loses_nothing() {
    let (seed, begun) = (setting("OUTLAST_TEST_SEED", fastrand::u64(..1 << 32)), Instant::now());
    let mut cases = cases();
    fastrand::Rng::with_seed(seed).shuffle(&mut cases);
    cases.truncate(setting("OUTLAST_TEST_ROUNDS", 24) as usize);
    let again = |_: &Case| {
        format!(
            "OUTLAST_TEST_SEED={seed} OUTLAST_TEST_ROUNDS={} cargo test --features cli,testing,zstd,tls,planted --test \
             beside_faults",
            cases.len()
        )
    };
    let seen = runs::run_all(&cases, 8, again, run);
    println!(
        "seed {seed}: {} failing calls, {} met, {} acknowledged, 0 lost, {:.0} s",
        cases.len(),
        seen.iter().filter(|(met, _)| *met).count(),
        seen.iter().map(|(_, accepted)| accepted).sum::<usize>(),
        begun.elapsed().as_secs_f64()
    );
    assert!(seen.iter().any(|(met, _)| *met), "faults were meant to be met");
}

fn say(line: &str) {
    writeln!(std::io::stdout().lock(), "{line}").unwrap();
}

/// Opens, three times if need be; stores half of the messages and has the other half delivered.
#[test]
#[ignore = "run by the other tests as a child process"]
fn child() {
    let Some(work) = work() else { return };
    let broker = Broker::new();
    broker.append_to(|one| {
        let (key, number) = shows::number_of(&one);
        say(&format!("<delivered {key}:{number}>"));
    });
    // A disk that stays full has each message refused after so long.
    let settings = || builder(Path::new(&work[0]), &broker).space_wait(Duration::from_millis(500));
    let open = |_| match settings().lock_wait(Duration::ZERO).open_blocking() {
        Ok(producer) => Some(producer),
        Err(error) => {
            say(&format!("<open {error}>"));
            None
        }
    };
    if let Some(producer) = (0..3).find_map(open) {
        broker.down();
        for number in 0..MESSAGES {
            if number == MESSAGES / 2 {
                broker.up();
            }
            let key = format!("k{}", number % 2);
            if producer.blocking_send(numbered("orders", &key, number)).is_ok() {
                say(&format!("<ok {key}:{number}>"));
            }
        }
        // The file `status` is written once a second.
        std::thread::sleep(Duration::from_millis(1_200));
        producer.blocking_drained(LONG).unwrap();
        producer.blocking_close(LONG).unwrap();
    }
    say("<end>");
}
