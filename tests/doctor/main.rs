//! `outlast doctor` on set-ups that bear the promise, and on one that does not for each thing it knows: the finding's name,
//! the exit code, and that nothing is written.

#![cfg(all(
    feature = "cli",
    feature = "kafka",
    feature = "redis",
    feature = "tls",
    feature = "testing",
    target_os = "linux"
))]

#[path = "../common/mod.rs"]
mod common;
#[path = "../guarded/mod.rs"]
mod guarded;
mod kafka;
mod local;
mod redis;
#[path = "../redis_support/mod.rs"]
mod redis_support;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use outlast::{Message, Mode, Producer};
use serde_json::Value;

/// A broker that is not there: port 1 is privileged and unused.
const NOWHERE: &str = "127.0.0.1:1";

/// What the doctor said.
struct Said {
    code: Option<i32>,
    report: Value,
}

/// Asks for JSON.
fn doctor<S: AsRef<str>>(words: &[S]) -> Said {
    let words = ["doctor", "--json"].into_iter().chain(words.iter().map(AsRef::as_ref));
    let output = common::run(&words.collect::<Vec<_>>(), b"");
    let report = serde_json::from_str(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    Said { code: output.code, report }
}

/// Asks about a broker, with an outbox that is not there and would be fine.
fn ask(url: &str) -> Said {
    let dir = on_disk();
    doctor(&["--outbox", text(&dir.path().join("outbox")), "--to", url, "--timeout", "30s"])
}

impl Said {
    fn findings(&self, severity: &str) -> Vec<&Value> {
        let findings = self.report["findings"].as_array().expect("a list");
        findings.iter().filter(|finding| finding["severity"] == severity).collect()
    }

    /// The names of all problems, sorted, each once.
    fn problems(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.findings("problem").iter().filter_map(|it| it["code"].as_str()).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// The first problem of this name.
    #[track_caller]
    fn problem(&self, code: &str) -> &Value {
        assert_eq!(self.code, Some(1), "{:#}", self.report);
        let found = self.findings("problem").into_iter().find(|finding| finding["code"] == code);
        let found = found.unwrap_or_else(|| panic!("no problem {code}: {:#}", self.report));
        assert!(found["advice"].as_str().is_some_and(|advice| !advice.is_empty()), "what to do? {found}");
        found
    }

    /// That these are all the problems, and each says what to do.
    #[track_caller]
    fn problems_are(&self, codes: &[&str]) {
        let mut sorted = codes.to_vec();
        sorted.sort_unstable();
        assert_eq!(self.problems(), sorted, "{:#}", self.report);
        for code in codes {
            self.problem(code);
        }
    }

    /// That there is none.
    #[track_caller]
    fn is_healthy(&self) {
        assert_eq!((self.problems(), self.code), (Vec::new(), Some(0)), "{:#}", self.report);
    }

    #[track_caller]
    fn has_note(&self, code: &str) {
        let found = self.findings("note").iter().any(|finding| finding["code"] == code);
        assert!(found, "no note {code}: {:#}", self.report);
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

/// A directory on the disk that the tests are built on: the system's temporary files may lie in memory.
fn on_disk() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory")
}

/// An outbox with these messages pending for Kafka, which is not there.
fn outbox_with(dir: &Path, messages: Vec<Message>) -> PathBuf {
    let outbox = dir.join("outbox");
    let builder = Producer::builder().outbox(&outbox).url(format!("kafka://{NOWHERE}")).mode(Mode::WriteAhead);
    // Small, as the tests read all of it.
    let builder = builder.segment_bytes(1 << 20).max_message_bytes(100 << 10);
    let producer = builder.open_blocking().expect("an outbox");
    for message in messages {
        producer.blocking_send(message).expect("stored");
    }
    producer.blocking_close(Duration::ZERO).expect("closed");
    outbox
}

/// The program under a limit, as a shell's `ulimit` sets it.
fn limited(limit: &str, words: &[&str]) -> Said {
    let script = format!("ulimit {limit} && exec \"$0\" doctor --json \"$@\"");
    let mut shell = Command::new("sh");
    shell.args(["-c", &script, env!("CARGO_BIN_EXE_outlast")]).args(words).env_remove("OUTLAST_PASSWORD");
    let output = shell.output().expect("a shell");
    let report = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
    Said { code: output.status.code(), report }
}
