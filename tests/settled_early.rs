//! A delivery that is reported while the log still writes the message settles nothing before the disk has the message
//! (DESIGN.md 3.3): a settlement in the log names only LSNs that the log knew to be durable when it was written.

#![cfg(feature = "testing")]

mod by_hand;
mod shows;

use std::io;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use by_hand::Record;
use outlast::internals::wal::{DiskStorage, File, Storage};
use outlast::testing::Broker;
use outlast::{Message, Mode, Producer, RouteConfig};
use shows::{LONG, builder_from};

/// Writes wait while it is shut.
#[derive(Clone, Default)]
struct Turnstile(Arc<(Mutex<Inside>, Condvar)>);

#[derive(Default)]
struct Inside {
    shut: bool,
    waiting: usize,
}

impl Turnstile {
    fn shut(&self, shut: bool) {
        self.0.0.lock().unwrap().shut = shut;
        self.0.1.notify_all();
    }

    fn pass(&self) {
        let (inside, changed) = &*self.0;
        let mut inside = inside.lock().unwrap();
        inside.waiting += 1;
        changed.notify_all();
        inside = changed.wait_while(inside, |inside| inside.shut).unwrap();
        inside.waiting -= 1;
    }

    fn wait_until_held(&self) {
        let (inside, changed) = &*self.0;
        let (inside, timeout) =
            changed.wait_timeout_while(inside.lock().unwrap(), LONG, |inside| inside.waiting == 0).unwrap();
        assert!(!timeout.timed_out(), "the log never wrote: {}", inside.waiting);
    }
}

/// The disk, behind the turnstile.
struct Slow(Turnstile);

struct SlowFile(Arc<dyn File>, Turnstile);

impl Slow {
    fn behind(&self, file: Arc<dyn File>) -> Arc<dyn File> {
        Arc::new(SlowFile(file, self.0.clone()))
    }
}

impl Storage for Slow {
    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        Ok(self.behind(DiskStorage.create_new(path)?))
    }
    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        Ok(self.behind(DiskStorage.open(path)?))
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

impl File for SlowFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.0.read_at(buffer, offset)
    }
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.1.pass();
        self.0.write_at(bytes, offset)
    }
    fn allocate(&self, length: u64) -> io::Result<()> {
        self.0.allocate(length)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }
    fn length(&self) -> io::Result<u64> {
        self.0.length()
    }
}

#[track_caller]
fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + LONG;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::yield_now();
    }
}

/// Fails if a settlement names an LSN past what its frame knew to be durable. Returns how many LSNs were settled.
fn assert_settled_late(outbox: &Path) -> u64 {
    let mut settled = 0;
    for entry in std::fs::read_dir(outbox.join("wal")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "seg") || path.to_string_lossy().contains("free-") {
            continue;
        }
        for frame in by_hand::segment(&std::fs::read(&path).unwrap()).frames {
            let ranges = frame.records.iter().filter_map(|record| match record {
                Record::Settled { ranges, .. } => Some(ranges),
                _ => None,
            });
            for &(first, last) in ranges.flatten() {
                assert!(last <= frame.durable, "LSN {last} is settled in a frame that knows of {}", frame.durable);
                settled += last - first + 1;
            }
        }
    }
    settled
}

#[test]
fn a_delivery_reported_during_the_append_is_settled_after_the_sync() {
    let (dir, broker, turnstile) = (tempfile::TempDir::new().unwrap(), Broker::new(), Turnstile::default());
    let ahead = RouteConfig { destination: "ahead".into(), mode: Some(Mode::WriteAhead), ..RouteConfig::default() };
    let producer = builder_from(Producer::builder(), dir.path(), &broker)
        .segment_bytes(64 << 10)
        .max_message_bytes(8 << 10)
        .first_attempt(Duration::from_millis(50))
        .route(ahead)
        .storage(Arc::new(Slow(turnstile.clone())))
        .open_blocking()
        .unwrap();
    let stored = |payload: Vec<u8>| producer.send(Message::to("ahead").key("w").payload(payload));
    pollster::block_on(stored(vec![b'0'])).unwrap();
    producer.blocking_drained(LONG).unwrap();

    broker.pause();
    turnstile.shut(true);
    let held = stored(vec![b'1']);
    turnstile.wait_until_held();
    // A group of its own, which the settlement could ride in, lies before the late message's.
    let fillers: Vec<_> = (0..4).map(|_| stored(vec![b'x'; 5 << 10])).collect();
    let late = producer.send(Message::to("direct").key("a").payload("late"));
    wait_for("the late message is given to the log", || producer.stats().pending == 6);
    broker.resume();
    assert!(pollster::block_on(late).unwrap().is_delivered());
    // Nothing tells that no settlement is on its way to the log; one that is planted gets there at once.
    std::thread::sleep(Duration::from_millis(100));
    turnstile.shut(false);
    for future in std::iter::once(held).chain(fillers) {
        pollster::block_on(future).unwrap();
    }
    producer.blocking_drained(LONG).unwrap();
    producer.blocking_close(LONG).unwrap();
    drop(producer);
    assert!(assert_settled_late(&dir.path().join("outbox")) >= 6, "all were settled");
}

#[cfg(feature = "planted")]
#[test]
fn planted_settle_before_sync_is_caught() {
    let test = "a_delivery_reported_during_the_append_is_settled_after_the_sync";
    shows::assert_caught(test, "settle-before-sync", 1);
}
