//! Claims about what is set aside, on a disk in memory.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::directory::{Directory, DirectoryOptions};
use super::ledger::Ledger;
use super::{Outbox, Scanned};
use crate::message::{Message, MessageId, Outgoing, Route};
use crate::wal::{Fault, Lsn, ModelStorage, Operation, Options, Stepper, Turn, segment_path};

/// An outbox on a disk in memory; its directory proper is a real one.
struct Bench {
    _place: tempfile::TempDir,
    directory: Arc<Directory>,
    storage: ModelStorage,
}

struct Open {
    outbox: Outbox,
    steppers: [Stepper; 2],
}

impl Bench {
    fn new() -> Self {
        let place = tempfile::tempdir().expect("a directory");
        let directory = Directory::open(&place.path().join("outbox"), &DirectoryOptions::default()).expect("is made");
        Self { _place: place, directory: Arc::new(directory), storage: ModelStorage::new(1) }
    }

    fn open(&self) -> Open {
        let options = Options { tail_bytes: 0, ..Options::new(*self.directory.id(), 1).with_segment_bytes(32 << 10) };
        let storage = Arc::new(self.storage.clone());
        let directory = Arc::clone(&self.directory);
        let opened = Outbox::open_stepped(directory, storage, options.clone(), options, Ledger::none());
        let (outbox, steppers) = opened.expect("opens");
        Open { outbox, steppers }
    }

    fn segment(&self) -> PathBuf {
        segment_path(&self.directory.paths().wal(), 1)
    }

    /// What lies in `damaged/`.
    fn kept(&self) -> Vec<(String, Vec<u8>)> {
        let damaged = self.directory.paths().damaged();
        let paths = self.storage.paths().into_iter().filter(|path| path.parent() == Some(&*damaged));
        let name = |path: &PathBuf| path.file_name().expect("a name").to_string_lossy().into_owned();
        paths.map(|path| (name(&path), self.storage.bytes(&path).expect("it is there"))).collect()
    }
}

impl Open {
    fn work(&mut self) {
        let mut now = Instant::now();
        for _ in 0..100 {
            now += Duration::from_secs(2);
            let turns = self.steppers.each_mut().map(|stepper| (stepper.prepare(now), stepper.commit(now)));
            if turns == [(Turn::Idle, Turn::Idle); 2] {
                return;
            }
        }
        panic!("the log never comes to rest");
    }

    fn store(&mut self, number: u64) -> Lsn {
        let outgoing = outgoing(number);
        let told = Arc::new(Mutex::new(false));
        let tell = Arc::clone(&told);
        let lsn = self.outbox.append(&outgoing, move |result| *tell.lock().expect("not poisoned") = result.is_ok());
        self.work();
        assert!(*told.lock().expect("not poisoned"), "{number} is stored");
        lsn
    }

    /// Reads everything, and sets aside what is damaged; returns the LSNs that can be read.
    fn drain(&self) -> Vec<Lsn> {
        let mut scan = self.outbox.scan(self.outbox.first_pending());
        let mut read = Vec::new();
        loop {
            match scan.advance(|_| None).expect("readable") {
                Scanned::Frame { records, .. } => read.extend(records.iter().map(|record| record.lsn)),
                Scanned::Damaged(damage) => {
                    self.outbox.set_aside(&damage);
                }
                Scanned::End => return read,
            }
        }
    }
}

fn outgoing(number: u64) -> Outgoing {
    let route = Route { transport: "kafka".into(), destination: "orders".into() };
    let message = Message::to("orders").payload(vec![number as u8; 300]);
    Outgoing { id: MessageId::new(1, number), route, lane: None, timestamp: 1, message }
}

/// Three messages in frames of their own, of which the second is damaged.
fn damaged() -> Bench {
    let bench = Bench::new();
    let mut open = bench.open();
    for number in 1..=3 {
        assert_eq!(open.store(number), number);
    }
    drop(open);
    bench.storage.kill();
    bench.storage.edit(&bench.segment(), |bytes| {
        let frame = (0..bytes.len()).step_by(4096).find(|at| bytes[at + 80 + 100..][..200] == [2; 200]);
        bytes[frame.expect("it is there") + 200] ^= 1;
    });
    bench
}

#[test]
fn what_is_damaged_is_copied_aside_with_its_bytes_and_settled_and_the_rest_is_there() {
    let bench = damaged();
    let mut open = bench.open();
    assert_eq!(open.drain(), [1, 3]);
    assert!(open.outbox.is_settled(2));
    assert_eq!(open.outbox.snapshot().set_aside, 1);
    let kept = bench.kept();
    let names: Vec<&str> = kept.iter().map(|(name, _)| name.as_str()).collect();
    let [(name, bytes), (manifest, note)] = &kept[..] else { panic!("{names:?}") };
    assert!(name.ends_with("-2-2.bytes") && manifest == "MANIFEST", "{names:?}");
    assert!(String::from_utf8_lossy(note).contains(name.as_str()), "{}", String::from_utf8_lossy(note));
    assert!(bytes.windows(50).any(|part| part == [2; 50]), "what is left of the payload");
    open.work();
    drop(open);
    let open = bench.open();
    assert_eq!(open.drain(), [1, 3]);
    assert_eq!(open.outbox.snapshot().set_aside, 1, "counted once, also after a restart");
}

/// After a kill between the copy and the settlement it was met again, and counted again.
#[test]
fn what_was_copied_aside_before_a_kill_is_counted_once() {
    let bench = damaged();
    let open = bench.open();
    open.drain();
    drop(open);
    bench.storage.kill();
    let open = bench.open();
    assert!(!open.outbox.is_settled(2), "no settlement reached the disk");
    assert_eq!(open.drain(), [1, 3]);
    assert_eq!((open.outbox.snapshot().set_aside, bench.kept().len()), (1, 2));
}

/// A damage whose copy failed was settled all the same; its segment was used again, and the last of its bytes was gone.
#[test]
fn damage_that_cannot_be_copied_aside_is_not_settled_whichever_call_fails() {
    let mut failed = 0;
    for nth in 0.. {
        let bench = damaged();
        let mut open = bench.open();
        let aside = bench.directory.paths().damaged();
        let mut calls = 0;
        let mut fails = move |operation: &Operation| {
            let about = match operation {
                Operation::Rename(_, path) | Operation::Create(path) | Operation::Unlink(path) => path.parent(),
                Operation::Sync(path) | Operation::Write { path, .. } => path.parent(),
                Operation::SyncDirectory(path) => Some(&**path),
                _ => None,
            };
            let counts = about == Some(&*aside);
            calls += usize::from(counts);
            (counts && calls == nth + 1).then_some(Fault::Error(28))
        };
        bench.storage.on_call(move |_, operation| fails(operation));
        assert_eq!(open.drain(), [1, 3], "the rest goes on");
        let settled = open.outbox.is_settled(2);
        if settled {
            // No call of the copy failed: all have had their turn.
            assert!(nth >= 5, "{nth} calls");
            break;
        }
        failed += 1;
        assert_eq!(open.outbox.snapshot().set_aside, 0);
        open.work();
        drop(open);
        // Also what a power cut leaves has it still, and the next process sets it aside.
        bench.storage.kill();
        let bench = Bench { storage: bench.storage.crash(nth as u64), ..bench };
        let open = bench.open();
        assert_eq!(open.drain(), [1, 3]);
        assert!(open.outbox.is_settled(2), "call {nth} works now");
        let kept = bench.kept();
        assert!(kept.iter().any(|(name, bytes)| name.ends_with("-2-2.bytes") && !bytes.is_empty()), "{kept:?}");
    }
    assert!(failed >= 5, "{failed} calls were made to fail");
}

#[test]
fn damage_that_cannot_even_be_read_is_not_settled() {
    let bench = damaged();
    let open = bench.open();
    let segment = bench.segment();
    let mut scan = open.outbox.scan(1);
    let damage = loop {
        match scan.advance(|_| None).expect("readable") {
            Scanned::Damaged(damage) => break damage,
            Scanned::Frame { .. } => {}
            Scanned::End => panic!("it is damaged"),
        }
    };
    bench.storage.on_read(move |_, call| {
        matches!(call, Operation::Read { path, .. } if *path == segment).then_some(Fault::Error(5))
    });
    open.outbox.set_aside(&damage);
    assert!(!open.outbox.is_settled(2));
    bench.storage.kill();
    open.outbox.set_aside(&damage);
    assert!(open.outbox.is_settled(2));
}

/// The copy for `damaged/` read the very sector that was the damage, and failed on it: neither the drainer nor `repair` ever
/// got past a block that the disk cannot read.
#[test]
fn a_sector_that_cannot_be_read_is_kept_as_zeros_and_noted() {
    let bench = damaged();
    let open = bench.open();
    let segment = bench.segment();
    let bytes = bench.storage.bytes(&segment).expect("it is there");
    let at = (0..bytes.len()).step_by(4096).find(|at| bytes[at + 80 + 150..][..50] == [2; 50]).expect("it is there");
    let bad = segment.clone();
    bench.storage.on_read(move |_, call| match call {
        Operation::Read { path, offset, length } if *path == bad => {
            (*offset..offset + *length as u64).contains(&(at as u64)).then_some(Fault::Error(5))
        }
        _ => None,
    });
    let mut scan = open.outbox.scan(1);
    let (mut read, mut failures) = (Vec::new(), 0);
    loop {
        match scan.advance(|_| None) {
            Ok(Scanned::Frame { records, .. }) => read.extend(records.iter().map(|record| record.lsn)),
            Ok(Scanned::Damaged(damage)) => assert!(open.outbox.set_aside(&damage)),
            Ok(Scanned::End) => break,
            Err(_) => failures += 1,
        }
        assert!(failures < 50, "it never gets past the sector");
    }
    assert_eq!(read, [1, 3]);
    assert!(open.outbox.is_settled(2));
    let kept = bench.kept();
    let [(_, bytes), (_, note)] = &kept[..] else { panic!("{kept:?}") };
    assert!(bytes.len() == 4096 && bytes.iter().all(|byte| *byte == 0));
    assert!(String::from_utf8_lossy(note).contains("\"unreadable\":4096"), "{}", String::from_utf8_lossy(note));
}

/// A parked message whose frame was damaged was taken for one that is gone: its row was removed, its block lifted, and nobody
/// heard of it until the next start.
#[test]
fn a_single_message_that_is_damaged_is_no_missing_one() {
    let bench = damaged();
    let mut open = bench.open();
    assert!(matches!(open.outbox.read(2, None), Err(super::ScanError::Damaged { lsn: 2, .. })));
    assert!(matches!(open.outbox.read(3, None), Ok(Some(_))));
    open.drain();
    open.work();
    assert!(matches!(open.outbox.read(2, None), Ok(None)), "it is set aside, and so settled");
}
