//! Outboxes to damage: real ones, written by a producer whose broker is down, copied for each damage.

// Each test file uses its part of it.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use outlast::admin;
use outlast::testing::Broker;
use outlast::transport::Class;
use outlast::{Builder, Message, Producer};
use serde_json::Value;
use tempfile::TempDir;

pub const SEGMENT: usize = 64 << 10;
pub const LONG: Duration = Duration::from_secs(60);

/// An outbox on the disk.
pub struct Made {
    dir: TempDir,
}

pub fn builder(outbox: &Path, broker: &Broker) -> Builder {
    Producer::builder()
        .outbox(outbox)
        .custom_transport("memory", broker.transport())
        .segment_bytes(SEGMENT as u32)
        .max_message_bytes(8 << 10)
        .max_bytes(64 << 20)
        .lock_wait(LONG)
}

fn message(number: u64) -> Message {
    let padding = "x".repeat(1500 + number as usize % 700);
    Message::to("orders").key(format!("k{}", number % 5)).payload(format!("{number} {padding}"))
}

impl Made {
    /// `delivered` messages are delivered, three more are dead, and then `pending` are pending.
    pub fn new(delivered: u64, dead: bool, pending: u64) -> Self {
        let dir = TempDir::new().expect("a directory");
        let made = Self { dir };
        let broker = Broker::new();
        broker.down();
        let producer = builder(&made.outbox(), &broker).open_blocking().expect("opens");
        (0..delivered).for_each(|number| drop(producer.blocking_send(message(number)).expect("stored")));
        broker.up();
        producer.blocking_drained(LONG).expect("drained");
        if dead {
            broker.reject("poison", Class::Permanent);
            for number in 0..3 {
                producer.blocking_send(Message::to("poison").key("p").payload(format!("p{number}"))).expect("taken");
            }
            producer.blocking_drained(LONG).expect("drained");
        }
        broker.down();
        for number in delivered..delivered + pending {
            producer.blocking_send(message(number)).expect("stored");
        }
        producer.blocking_close(Duration::ZERO).expect("closed");
        made
    }

    pub fn outbox(&self) -> PathBuf {
        self.dir.path().join("outbox")
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.outbox().join(name)
    }

    /// Another outbox with the same files.
    pub fn copy(&self) -> Self {
        let copy = Self { dir: TempDir::new().expect("a directory") };
        copy_directory(&self.outbox(), &copy.outbox());
        copy
    }

    /// The segments of `wal` or `dead`, ascending.
    pub fn segments(&self, log: &str) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.path(log)).expect("a directory").map(|entry| entry.expect("an entry").path());
        let mut segments: Vec<PathBuf> =
            entries.filter(|path| path.file_name().is_some_and(|name| name.len() == 20)).collect();
        segments.sort();
        segments
    }

    /// Changes bytes of a file.
    pub fn edit(&self, path: &Path, edit: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = fs::read(path).expect("a file");
        edit(&mut bytes);
        fs::write(path, bytes).expect("written");
    }

    /// What can be read: the LSN and payload of each pending message.
    pub fn pending(&self) -> BTreeMap<u64, Vec<u8>> {
        let pending = admin::peek(self.outbox(), usize::MAX).expect("it can be looked at");
        pending.into_iter().map(|one| (one.lsn, one.payload.expect("a payload").to_vec())).collect()
    }

    /// Delivers everything, and returns the payloads in their order.
    pub fn deliver(&self) -> Vec<Vec<u8>> {
        let broker = Broker::new();
        let producer = builder(&self.outbox(), &broker).open_blocking().expect("opens");
        let drained = producer.blocking_drained(Duration::from_secs(20));
        drained.unwrap_or_else(|error| panic!("{error}: {:?}", producer.health()));
        producer.blocking_close(LONG).expect("closed");
        broker.delivered().into_iter().map(|one| one.payload.expect("a payload").to_vec()).collect()
    }

    /// All files and what is in them, but for the process id in `LOCK`.
    pub fn files(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut files = BTreeMap::new();
        read_directory(&self.outbox(), &mut files);
        files
    }
}

fn read_directory(directory: &Path, files: &mut BTreeMap<PathBuf, Vec<u8>>) {
    for entry in fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            read_directory(&path, files);
        } else if path.file_name().is_none_or(|name| name != "LOCK") {
            files.insert(path.clone(), fs::read(&path).expect("a file"));
        }
    }
}

fn copy_directory(from: &Path, to: &Path) {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new().mode(0o700).create(to).expect("a directory");
    for entry in fs::read_dir(from).expect("a directory") {
        let path = entry.expect("an entry").path();
        let target = to.join(path.file_name().expect("a name"));
        if path.is_dir() {
            copy_directory(&path, &target);
        } else {
            fs::copy(&path, &target).expect("copied");
        }
    }
}

/// A frame of a segment, read by FORMAT.md.
#[derive(Clone, Copy, Debug)]
pub struct Frame {
    pub offset: usize,
    pub kind: u8,
    pub first_lsn: u64,
    pub count: u64,
}

/// The frames of a segment, of its own life, in their order.
pub fn frames(path: &Path) -> Vec<Frame> {
    let bytes = fs::read(path).expect("a segment");
    let number = |at: usize, length: usize| {
        bytes[at..at + length].iter().rev().fold(0u64, |sum, &byte| sum << 8 | u64::from(byte))
    };
    let own = |at: &usize| bytes[*at..*at + 4] == *b"OLFR" && bytes[at + 8..at + 24] == bytes[40..56];
    (4096..bytes.len())
        .step_by(4096)
        .filter(own)
        .map(|at| Frame { offset: at, kind: bytes[at + 5], first_lsn: number(at + 24, 8), count: number(at + 56, 4) })
        .collect()
}

/// The group frames with messages.
pub fn groups(path: &Path) -> Vec<Frame> {
    frames(path).into_iter().filter(|frame| frame.kind == 0 && frame.count > 0).collect()
}

/// Runs the program; its exit code, and its standard output as JSON.
pub fn program(words: &[&str], outbox: &Path) -> (i32, Value) {
    let mut args = words.to_vec();
    args.extend(["--json", "--outbox", outbox.to_str().expect("UTF-8")]);
    let output = crate::common::run(&args, b"");
    let code = output.code.unwrap_or_else(|| panic!("{args:?}: {output:?}"));
    let json = serde_json::from_str(&output.stdout).unwrap_or_else(|error| panic!("{args:?}: {error}: {output:?}"));
    (code, json)
}
