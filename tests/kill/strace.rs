//! What the storage under test cannot see: `LOCK`, `IDENTITY`, `status`, the ledger's own files. strace kills the script
//! at its calls on them. And a trace shows that the storage sees all calls on the logs (RELIABILITY.md 2).

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Mutex;

use crate::life;
use crate::oracle::Tally;
use crate::rounds;
use crate::shows::under;

/// Calls that change a file, a name, a lock or what is on the disk.
const CHANGES: &str =
    "openat,mkdir,pwrite64,write,fdatasync,fsync,sync_file_range,fallocate,ftruncate,rename,unlink,flock";
/// Of calls that are all alike, so many are tried in the short form: the first, the last, and between.
const SAMPLE: usize = 3;

/// Runs the whole script under strace; what it printed, or `None` if it was killed.
fn script(dir: &Path, options: &[&str]) -> Option<String> {
    let mut strace = Command::new("strace");
    // Without --seccomp-bpf: with it some of the signals never come (strace 6.1).
    strace.args(["-f", "-qq"]).args(options);
    let mut command = under(strace, &[&"script", &dir, &"0", &"Before"]);
    let output =
        command.stderr(Stdio::piped()).output().unwrap_or_else(|error| panic!("strace: {error}; please install it"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!said.contains("panicked") && !said.contains("strace:"), "{options:?}: {said}");
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    printed.contains("calls ").then_some(printed)
}

/// A changing call: its name, and the outbox's file it is on, from the outbox's root.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Call {
    name: String,
    file: String,
}

/// The beginnings of the changing calls on the outbox that a trace shows.
fn calls(trace: &str, outbox: &str) -> Vec<Call> {
    let call = |line: &str| {
        let (name, arguments) = line.split_once(' ')?.1.trim_start().split_once('(')?;
        // Opening changes something only where a file may be made.
        if name == "openat" && !arguments.contains("O_CREAT") {
            return None;
        }
        let at = arguments.find(outbox)?;
        let path: String = arguments[at..].chars().take_while(|c| !"\">".contains(*c)).collect();
        let file = path.strip_prefix(outbox)?.trim_start_matches('/').to_owned();
        Some(Call { name: name.to_owned(), file })
    };
    trace.lines().filter_map(call).collect()
}

fn traced(dir: &Path) -> (Vec<Call>, u64) {
    let trace = dir.join("trace");
    let changes = format!("trace={CHANGES}");
    let printed = script(dir, &["-y", "-e", &changes, "-o", trace.to_str().unwrap()]).expect("nothing kills it");
    let seen = printed.lines().find_map(|line| line.split_once("calls ")).expect("a count").1;
    let outbox = dir.join("outbox");
    let calls = calls(&std::fs::read_to_string(trace).unwrap(), outbox.to_str().unwrap());
    (calls, seen.trim().parse().unwrap())
}

fn is_in_a_log(call: &Call) -> bool {
    let is_below = |log: &str| call.file.strip_prefix(log).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    (is_below("wal") || is_below("dead")) && call.name != "mkdir"
}

#[test]
fn the_storage_sees_every_call_on_the_logs() {
    let dir = rounds::fresh();
    let (calls, seen) = traced(dir.path());
    let mut kinds: BTreeMap<&str, u64> = BTreeMap::new();
    calls.iter().filter(|call| is_in_a_log(call)).for_each(|call| *kinds.entry(&call.name).or_default() += 1);
    assert_eq!(kinds.values().sum::<u64>(), seen, "strace saw {kinds:?}");
    println!("{seen} calls on the logs, all seen: {kinds:?}");
}

/// Kills the script at the `n`-th such call on a file, and judges; `false` if there is none.
fn kill_at(test: &str, call: &Call, n: usize, totals: &Mutex<Tally>) -> bool {
    let mut was_killed = false;
    let tally = rounds::guarded(test, n as u64, 1, rounds::fresh_in_memory(), |dir| {
        let path = dir.join("outbox").join(&call.file);
        let path = path.to_str().unwrap().trim_end_matches('/');
        let (trace, inject) = (format!("trace={}", call.name), format!("inject={}:signal=KILL:when={n}", call.name));
        let log = dir.join("trace");
        let options = ["-P", path, "-e", &trace, "-e", &inject, "-o", log.to_str().unwrap()];
        was_killed = script(dir, &options).is_none();
        life::drain_and_judge(dir, usize::from(was_killed), false)
    });
    *totals.lock().unwrap() += tally;
    was_killed
}

#[test]
fn killed_at_calls_on_the_other_files_nothing_acknowledged_is_lost() {
    let test = "strace::killed_at_calls_on_the_other_files_nothing_acknowledged_is_lost";
    let is_long = rounds::count(0) > 0;
    let (begun, dir) = (std::time::Instant::now(), rounds::fresh());
    let mut counts: BTreeMap<Call, usize> = BTreeMap::new();
    for call in traced(dir.path()).0.into_iter().filter(|call| !is_in_a_log(call)) {
        *counts.entry(call).or_default() += 1;
    }
    let mut sites: Vec<(&Call, usize)> = Vec::new();
    for (call, &count) in &counts {
        let sample: BTreeSet<usize> = if is_long {
            (1..=count).collect()
        } else {
            (0..SAMPLE).map(|i| 1 + i * (count - 1) / (SAMPLE - 1)).collect()
        };
        sites.extend(sample.into_iter().map(|n| (call, n)));
    }
    let (sites, totals, kills) = (Mutex::new(sites), Mutex::new(Tally::default()), Mutex::new(BTreeMap::new()));
    let worker = || {
        loop {
            let Some((call, n)) = sites.lock().unwrap().pop() else { return };
            if kill_at(test, call, n, &totals) {
                *kills.lock().unwrap().entry(call.file.as_str()).or_insert(0) += 1;
            }
        }
    };
    std::thread::scope(|scope| (0..rounds::SIDE_BY_SIDE).for_each(|_| drop(scope.spawn(worker))));
    let (totals, kills) = (totals.into_inner().unwrap(), kills.into_inner().unwrap());
    println!("{} calls on other files: {totals} in {:.1?}; {kills:?}", counts.values().sum::<usize>(), begun.elapsed());
    for file in ["LOCK", "IDENTITY.tmp", "status.tmp", "ledger/1/db", "wal"] {
        assert!(kills.contains_key(file), "none was killed at {file}: {kills:?}");
    }
}
