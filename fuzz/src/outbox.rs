//! A whole outbox directory of any files, on the disk (in memory where there is a `/dev/shm`).
//!
//! Looking at it gives counts, messages and dead letters, or a typed error, and changes no file of the log. Opening it
//! as a producer does takes it over or refuses it; what is damaged is set aside; what is pending can be read, and
//! settled, and it closes. The ledger is off: sled takes a hundred times as long as all the rest.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use outlast::admin;
use outlast::internals::outbox::ledger::LedgerOptions;
use outlast::internals::outbox::{Outbox, OutboxOptions, Scanned, probe};
use outlast::internals::wal::{Entry, Mark};

use super::examine;
use super::input::Input;

pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let mode = input.u8();
    let root = Root::new();
    for _ in 0..=input.below(6) {
        root.write(&mut input);
        if input.is_empty() {
            break;
        }
    }
    let before = root.logs();
    let inspected = admin::inspect(root.path());
    let looked = [admin::peek(root.path(), 100).is_ok(), admin::dead_letters(root.path()).is_ok()];
    assert!(inspected.is_err() || looked[0], "it can be counted but not looked at");
    assert_eq!(before, root.logs(), "looking changed something");
    if mode & 1 == 1 {
        open(root.path());
    }
}

fn open(path: &Path) {
    let off = Arc::new(|_: &'static str| Err("off".to_owned()));
    let options = OutboxOptions {
        segment_bytes: 64 << 10,
        max_bytes: Some(1 << 20),
        max_message_bytes: 4 << 10,
        ledger: LedgerOptions { hook: Some(off), ..LedgerOptions::default() },
        ..OutboxOptions::new(path)
    };
    let Ok(outbox) = Outbox::open(&options) else { return };
    for damage in outbox.found().damage.clone() {
        outbox.set_aside(&damage);
    }
    let mut scan = outbox.scan(outbox.first_pending());
    for _ in 0..1000 {
        match scan.advance(|_| None).expect("it can be read") {
            Scanned::End => break,
            Scanned::Damaged(damage) => {
                outbox.set_aside(&damage);
            }
            Scanned::Frame { records, .. } => {
                for record in records {
                    if let Entry::Message(outgoing) = record.body {
                        outbox.settle(Mark::Delivered, record.lsn, &outgoing);
                    }
                }
            }
        }
    }
    let _ = outbox.snapshot();
    // A disk that is too full for the hostile checkpoint is told, not waited for.
    let _ = outbox.close();
}

/// A directory that is gone when it is dropped.
struct Root(PathBuf);

impl Root {
    fn new() -> Self {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let shared = Path::new("/dev/shm");
        let base = if shared.is_dir() { shared.to_path_buf() } else { std::env::temp_dir() };
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let root = base.join(format!("outlast-fuzz-{}-{number}", std::process::id()));
        // Of an earlier process of this number that was killed.
        let _ = fs::remove_dir_all(&root);
        fs::create_dir(&root).expect("a directory");
        Self(root)
    }

    fn path(&self) -> &Path {
        &self.0
    }

    fn write(&self, input: &mut Input<'_>) {
        let (kind, number) = (input.below(9), u64::from(input.u8()));
        let segment = |free: bool| examine::path(number, free).file_name().map(PathBuf::from).unwrap_or_default();
        let (name, bytes) = match kind {
            0 => ("IDENTITY".into(), input.counted().to_vec()),
            1 => ("IDENTITY".into(), probe::encode_identity(&examine::OUTBOX).into_bytes()),
            2 => ("status".into(), input.counted().to_vec()),
            3 => ("LOCK".into(), input.counted().to_vec()),
            4 => (Path::new("dead").join(segment(false)), examine::file(input, number)),
            5 => (Path::new("wal").join(segment(true)), examine::file(input, number)),
            6 => (Path::new("damaged").join(input.text().replace(['/', '\0'], "_")), input.counted().to_vec()),
            _ => (Path::new("wal").join(segment(false)), examine::file(input, number)),
        };
        let path = self.0.join(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).expect("a directory");
        }
        // A name may be too long, or that of a directory.
        let _ = fs::write(path, bytes);
    }

    /// All that lies in the logs.
    fn logs(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let mut files = Vec::new();
        for log in ["wal", "dead"] {
            let Ok(entries) = fs::read_dir(self.0.join(log)) else { continue };
            files.extend(entries.flatten().map(|entry| (entry.path(), fs::read(entry.path()).unwrap_or_default())));
        }
        files.sort();
        files
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
