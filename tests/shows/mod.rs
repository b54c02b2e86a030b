//! What the hard tests share: themselves as child processes, numbered messages, and what must hold of them.

// Each test file uses its part of it.
#![allow(dead_code)]

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::hash::Hash;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use outlast::testing::{Broker, Delivered};
use outlast::{Builder, Message, MessageId, Producer};

/// Anything that takes longer is a hang.
pub const LONG: Duration = Duration::from_secs(60);

/// A variable that only a child has: its work, in words of the test.
const CHILD: &str = "OUTLAST_TEST_CHILD";

/// This test binary, running nothing but its test `child`, with this work.
pub fn myself(work: &[&dyn AsRef<OsStr>]) -> Command {
    with_work(Command::new(std::env::current_exe().expect("the test binary's path")), work)
}

/// The same, as the arguments of another program.
pub fn under(mut program: Command, work: &[&dyn AsRef<OsStr>]) -> Command {
    program.arg(std::env::current_exe().expect("the test binary's path"));
    with_work(program, work)
}

fn with_work(mut command: Command, work: &[&dyn AsRef<OsStr>]) -> Command {
    let words: Vec<&str> = work.iter().map(|word| word.as_ref().to_str().expect("UTF-8")).collect();
    command.args(["child", "--exact", "--ignored", "--nocapture", "--test-threads=1"]);
    command.env(CHILD, words.join("\n")).stdin(Stdio::null());
    command
}

/// In the test `child`: its work, or `None` if somebody runs all ignored tests.
pub fn work() -> Option<Vec<String>> {
    std::env::var(CHILD).ok().map(|words| words.split('\n').map(str::to_owned).collect())
}

/// A producer on a broker in memory, with small segments.
pub fn builder(dir: &Path, broker: &Broker) -> Builder {
    builder_from(Producer::builder(), dir, broker)
}

/// The same with settings that only a configuration has.
pub fn builder_from(settings: Builder, dir: &Path, broker: &Broker) -> Builder {
    settings
        .outbox(dir.join("outbox"))
        .custom_transport("memory", broker.transport())
        .segment_bytes(1 << 20)
        .max_message_bytes(64 << 10)
        .lock_wait(LONG)
}

/// The message number `number` of a key.
pub fn numbered(topic: &str, key: &str, number: u64) -> Message {
    Message::to(topic).key(key.to_owned()).payload(format!("{key}:{number}"))
}

/// Key and number of a numbered message.
pub fn number_of(delivered: &Delivered) -> (String, u64) {
    let payload = String::from_utf8(delivered.payload.clone().expect("a payload").to_vec()).expect("text");
    let (key, number) = payload.split_once(':').expect("key:number");
    assert_eq!(delivered.key.as_deref(), Some(key.as_bytes()), "payload and key belong together");
    (key.to_owned(), number.parse().expect("a number"))
}

/// The first occurrence of each message, by id.
pub fn firsts(delivered: &[Delivered]) -> Vec<&Delivered> {
    let mut seen: HashSet<MessageId> = HashSet::new();
    delivered.iter().filter(|one| seen.insert(one.id)).collect()
}

/// How many are not the first of their id.
pub fn duplicates(delivered: &[Delivered]) -> usize {
    delivered.len() - firsts(delivered).len()
}

/// Each key's numbers, in the order in which they first arrived. Fails if a number came under two ids, or a key's
/// numbers do not rise.
#[track_caller]
pub fn in_order(delivered: &[Delivered]) -> HashMap<String, Vec<u64>> {
    let mut keys: HashMap<String, Vec<u64>> = HashMap::new();
    for one in firsts(delivered) {
        let (key, number) = number_of(one);
        keys.entry(key).or_default().push(number);
    }
    for (key, numbers) in &keys {
        assert_rising(key, numbers);
    }
    keys
}

/// Fails unless the numbers rise.
#[track_caller]
pub fn assert_rising<T: PartialOrd + std::fmt::Debug + Hash>(key: &str, numbers: &[T]) {
    if let Some(at) = numbers.windows(2).position(|pair| pair[0] >= pair[1]) {
        let around = &numbers[at.saturating_sub(3)..numbers.len().min(at + 5)];
        panic!("key {key} is out of order at its message {at} of {}: … {around:?} …", numbers.len());
    }
}

/// A number from the environment, or the default.
pub fn setting(name: &str, default: u64) -> u64 {
    let value = std::env::var(name).ok();
    value.map_or(default, |value| value.parse().unwrap_or_else(|_| panic!("{name}={value} is no number")))
}

/// Runs one test of this binary in a process that has a planted fault, and fails unless the test catches it for one of
/// these reasons: words of what it panics with. Without the fault the test has to pass: it is one of those that run by
/// themselves.
#[cfg(feature = "planted")]
#[track_caller]
pub fn assert_caught(test: &str, fault: &str, rounds: u64, reasons: &[&str]) {
    let mut command = Command::new(std::env::current_exe().expect("the test binary's path"));
    command.args([test, "--exact", "--nocapture", "--include-ignored", "--test-threads=1"]);
    command.env("OUTLAST_PLANTED", fault).env("OUTLAST_TEST_ROUNDS", rounds.to_string()).stdin(Stdio::null());
    command.env("RUST_BACKTRACE", "0");
    let output = command.output().expect("the test binary runs");
    let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    assert!(said.contains("running 1 test"), "there is no test {test}:\n{said}");
    assert!(said.contains(&format!("planted: {fault}")), "{test} never comes by the planted fault:\n{said}");
    assert_eq!(output.status.code(), Some(101), "{test} does not catch {fault}:\n{said}");
    // Where it has several threads, the first that fails need not be the one that says why.
    let panics = said.find("panicked at").map_or("", |at| &said[at..]);
    let reason = reasons.iter().find(|reason| panics.contains(**reason));
    let reason = reason.unwrap_or_else(|| panic!("{test} fails with {fault}, but says none of {reasons:?}:\n{said}"));
    let line = panics.lines().find(|line| line.contains(reason)).unwrap_or_default();
    println!("{fault}: caught by {test}: {line}");
}
