//! Claims about the whole log, on a disk.

use std::io;
use std::path::Path;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::*;
use crate::message::{Lane, Message, MessageId};

pub(super) fn message(number: u64, destination: &str, payload: &[u8]) -> Outgoing {
    let route = Route { transport: "kafka".into(), destination: destination.into() };
    let key = format!("key-{}", number % 7);
    let message = Message::to(destination).key(key.clone()).payload(payload.to_vec()).header("trace", "4bf9");
    let lane = Some(Lane::of(&route, Some(key.as_bytes())));
    Outgoing { id: MessageId::new(0xfeed, number), route, lane, timestamp: 1_700_000_000_000 + number as i64, message }
}

pub(super) fn options() -> Options {
    Options::new([7; 16], 0xfeed).with_segment_bytes(64 << 10)
}

fn append(wal: &Wal, number: u64, bytes: usize) -> Lsn {
    let (tell, told) = channel();
    let outgoing = message(number, "orders", &vec![number as u8; bytes]);
    let lsn = wal.append(EntryRef::Message(&outgoing), move |outcome| tell.send(outcome).expect("the test waits"));
    assert_eq!(told.recv().expect("done is called").expect("the disk works"), lsn);
    lsn
}

fn delivered(first: Lsn, last: Lsn, bytes: u64) -> Settled {
    let route = Route { transport: "kafka".into(), destination: "orders".into() };
    let count = last - first + 1;
    let totals = vec![RouteTotal { route, count, bytes: count * bytes }];
    Settled { mark: Mark::Delivered, ranges: vec![(first, last)], totals }
}

pub(super) fn read_all(reader: &Reader, from: Lsn) -> (Vec<StoredRecord>, Vec<Damage>) {
    let mut cursor = reader.seek(from, None).expect("readable");
    let (mut all, mut damage) = (Vec::new(), Vec::new());
    loop {
        match reader.next(&mut cursor).expect("readable") {
            Step::Frame { records, .. } => all.extend(records),
            Step::Damaged(lost) => damage.push(lost),
            Step::End => return (all, damage),
        }
    }
}

#[test]
fn what_was_acknowledged_is_read_back_before_and_after_a_restart() {
    let dir = tempfile::tempdir().expect("a directory");
    let size = message(1, "orders", &[0; 1000]).message.size() as u64;
    let (wal, recovered) = Wal::open(Arc::new(DiskStorage), dir.path(), options()).expect("opens");
    assert_eq!((recovered.next_lsn, recovered.segments), (1, 0));
    for number in 1..=300 {
        assert_eq!(append(&wal, number, 1000), number);
    }
    let (records, damage) = read_all(&wal.reader(), 1);
    assert!(damage.is_empty(), "{damage:?}");
    assert_eq!(records.iter().map(|r| r.lsn).collect::<Vec<_>>(), (1..=300).collect::<Vec<_>>());
    assert_eq!(records[41].body.outgoing().message, message(42, "orders", &[42; 1000]).message);
    wal.settle(delivered(1, 250, size));
    wal.sync().expect("syncs");
    wal.close().expect("closes");
    let (wal, recovered) = Wal::open(Arc::new(DiskStorage), dir.path(), options()).expect("opens");
    assert_eq!(recovered.damage, []);
    assert_eq!((recovered.next_lsn, recovered.state.settled.prefix()), (301, 250));
    let pending: Vec<_> = recovered.state.routes.values().copied().collect();
    assert_eq!((pending[0].count, pending[0].bytes), (50, 50 * size));
    assert_eq!(append(&wal, 301, 1000), 301);
    let (records, damage) = read_all(&wal.reader(), 251);
    assert!(damage.is_empty(), "{damage:?}");
    assert_eq!(
        records.iter().map(|r| r.lsn).filter(|&lsn| lsn > 250).collect::<Vec<_>>(),
        (251..=301).collect::<Vec<_>>()
    );
}

#[test]
fn segments_are_recycled_and_the_log_stays_short() {
    let dir = tempfile::tempdir().expect("a directory");
    let size = message(1, "orders", &[0; 3000]).message.size() as u64;
    let (wal, _) =
        Wal::open(Arc::new(DiskStorage), dir.path(), Options { max_segments: 5, ..options() }).expect("opens");
    wal.request(64 << 10);
    for number in 1..=500 {
        append(&wal, number, 3000);
        wal.settle(delivered(number, number, size));
    }
    wal.close().expect("closes");
    assert!(std::fs::read_dir(dir.path()).expect("lists").count() <= 8, "five, and three for settlements");
}

/// Segments were never used again in a steady flow: what rotation took was made anew at once, because so much was asked
/// for, and when a used one came free it was one too many and removed. So every segment was a new file, whose blocks
/// had never been written.
#[test]
fn a_steady_flow_makes_no_new_segments() {
    let dir = tempfile::tempdir().expect("a directory");
    let size = message(1, "orders", &[0; 3000]).message.size() as u64;
    let storage = Arc::new(Counting::default());
    let (wal, _) = Wal::open(storage.clone(), dir.path(), Options { max_segments: 8, ..options() }).expect("opens");
    wal.request(100_000);
    for number in 1..=1_000 {
        append(&wal, number, 3000);
        if number > 40 {
            wal.settle(delivered(number - 40, number - 40, size));
        }
    }
    let (made, last) = (*storage.0.lock().expect("not poisoned"), wal.state().next_lsn - 1);
    wal.close().expect("closes");
    assert_eq!(last, 1_000);
    // Sixteen fit into each: some sixty rotations.
    assert!(made <= 12, "{made} segments were made");
}

/// A disk that counts the files made.
#[derive(Default)]
struct Counting(Mutex<usize>);

impl Storage for Counting {
    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        *self.0.lock().expect("not poisoned") += 1;
        DiskStorage.create_new(path)
    }
    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        DiskStorage.open(path)
    }
    fn open_read(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        DiskStorage.open_read(path)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        DiskStorage.rename(from, to)
    }
    fn unlink(&self, path: &Path) -> io::Result<()> {
        DiskStorage.unlink(path)
    }
    fn list(&self, directory: &Path) -> io::Result<Vec<String>> {
        DiskStorage.list(directory)
    }
    fn sync_directory(&self, directory: &Path) -> io::Result<()> {
        DiskStorage.sync_directory(directory)
    }
}

#[test]
fn what_is_asked_for_is_prepared() {
    let dir = tempfile::tempdir().expect("a directory");
    let changes = Arc::new((Mutex::new(0), std::sync::Condvar::new()));
    let told = Arc::clone(&changes);
    let on_change = Arc::new(move || {
        *told.0.lock().expect("not poisoned") += 1;
        told.1.notify_all();
    });
    let (wal, _) = Wal::open(Arc::new(DiskStorage), dir.path(), Options { on_change, ..options() }).expect("opens");
    wal.request(150_000);
    let guard = changes.0.lock().expect("not poisoned");
    let waited = changes.1.wait_timeout_while(guard, Duration::from_secs(10), |_| wal.usable() < 150_000);
    assert!(!waited.expect("not poisoned").1.timed_out(), "{:?}", wal.space());
    wal.close().expect("closes");
}

#[test]
fn what_is_pending_is_counted_as_a_restart_would_count_it() {
    let storage = ModelStorage::new(11);
    let mut rig = rig::Rig::new(&storage, options());
    // One group, cut where a segment ends: some routes are on both sides, some on one.
    for number in 0..150 {
        rig.append_to(["orders", "bills", "late"][if number < 100 { number % 2 } else { 2 }], 600 + number);
    }
    rig.run();
    assert_eq!(rig.accepted(), (1..=150).collect::<Vec<_>>());
    let (reader, mut frames) = (rig.wal.reader(), 0);
    let mut cursor = reader.seek(1, None).expect("readable");
    while let Step::Frame { time, records, .. } = reader.next(&mut cursor).expect("readable") {
        assert_eq!(time, records[0].body.outgoing().timestamp, "that of the first message");
        frames += 1;
    }
    assert!(frames > 2, "{frames}");
    rig.settle_on("late", 120, 150);
    rig.append_to("bills", 10);
    rig.run();
    rig.sync().expect("syncs");
    let routes = rig.wal.state().routes;
    let counts: Vec<_> = routes.iter().map(|(route, pending)| (&*route.destination, pending.count)).collect();
    assert_eq!(counts, [("bills", 51), ("late", 19), ("orders", 50)]);
    drop(rig);
    let again = rig::Rig::new(&storage, options());
    assert_eq!(again.recovered.state.routes.into_iter().collect::<Vec<_>>(), routes);
}
