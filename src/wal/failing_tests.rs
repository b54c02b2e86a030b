//! What single errors of the disk once did to the log.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use super::tests::{message, options, read_all};
use super::*;

const EIO: i32 = 5;
const ENOSPC: i32 = 28;
const LIMIT: Duration = Duration::from_secs(20);

fn append(wal: &Wal, number: u64) {
    let (tell, told) = channel();
    wal.append(EntryRef::Message(&message(number, "orders", b"x")), move |outcome| {
        tell.send(outcome).expect("awaited")
    });
    told.recv_timeout(LIMIT).expect("done is called").expect("the disk works");
}

/// Closing an outbox syncs its log first. The sync of the seal that goes with it failed, the segment was given up, and
/// the committer went to sleep with the caller unanswered: `close` hung for ever on a disk that was full or broken.
#[test]
fn who_waits_for_a_sync_is_answered_though_the_seal_failed() {
    let storage = ModelStorage::new(1);
    let quiet = Options { seal_after: Duration::from_secs(3_600), ..options() };
    let (wal, _) = Wal::open(Arc::new(storage.clone()), Path::new("/wal"), quiet).expect("opens");
    append(&wal, 1);
    storage.on_call(|_, call| matches!(call, Operation::Sync(_)).then_some(Fault::Error(EIO)));
    let wal = Arc::new(wal);
    let (tell, told) = channel();
    let waiting = Arc::clone(&wal);
    std::thread::spawn(move || tell.send(waiting.sync()).expect("awaited"));
    let answer = told.recv_timeout(LIMIT).expect("it is answered");
    assert!(answer.is_ok(), "all that was submitted is durable: {answer:?}");
}

/// The thread that writes was gone after a panic: whoever appended waited for ever.
#[test]
fn a_panic_on_the_logs_thread_leaves_nobody_waiting() {
    for nth in 1..12 {
        let storage = ModelStorage::new(1);
        let (wal, _) = Wal::open(Arc::new(storage.clone()), Path::new("/wal"), options()).expect("opens");
        append(&wal, 1);
        let calls = AtomicUsize::new(0);
        storage.on_call(move |_, _| {
            assert!(calls.fetch_add(1, Ordering::Relaxed) != nth, "planted");
            None
        });
        // Enough for a rotation, which concerns the other thread, too.
        let (tell, told) = channel();
        for number in 2..200 {
            let tell = tell.clone();
            wal.append(EntryRef::Message(&message(number, "orders", &[b'x'; 300])), move |outcome| {
                tell.send(outcome.is_ok()).expect("awaited");
            });
        }
        let answers: Vec<bool> = (2..200).map(|_| told.recv_timeout(LIMIT).expect("all are answered")).collect();
        let begun = Instant::now();
        while !wal.health().is_some_and(|trouble| trouble.reason.contains("panicked")) {
            assert!(begun.elapsed() < LIMIT, "call {nth}: {:?}", wal.health());
            std::thread::yield_now();
        }
        assert!(wal.sync().is_err());
        let _ = wal.close();
        drop(wal);
        // What was acknowledged is there.
        storage.on_call(|_, _| None);
        let (wal, _) = Wal::open(Arc::new(storage), Path::new("/wal"), options()).expect("opens again");
        let acknowledged = 1 + answers.iter().filter(|ok| **ok).count();
        let (found, damage) = read_all(&wal.reader(), 1);
        assert!(found.len() >= acknowledged && damage.is_empty(), "call {nth}: {} of {acknowledged}", found.len());
    }
}

/// A disk in memory that reads, while it is told not to, nothing but headers of segments.
struct HeadersOnly {
    disk: ModelStorage,
    on: Arc<AtomicBool>,
}

struct HeaderOnly {
    file: Arc<dyn File>,
    on: Arc<AtomicBool>,
}

impl HeadersOnly {
    fn file(&self, file: Arc<dyn File>) -> Arc<dyn File> {
        Arc::new(HeaderOnly { file, on: Arc::clone(&self.on) })
    }
}

impl Storage for HeadersOnly {
    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        self.disk.create_new(path)
    }
    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        self.disk.open(path)
    }
    fn open_read(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        Ok(self.file(self.disk.open_read(path)?))
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.disk.rename(from, to)
    }
    fn unlink(&self, path: &Path) -> io::Result<()> {
        self.disk.unlink(path)
    }
    fn list(&self, directory: &Path) -> io::Result<Vec<String>> {
        self.disk.list(directory)
    }
    fn sync_directory(&self, directory: &Path) -> io::Result<()> {
        self.disk.sync_directory(directory)
    }
}

impl File for HeaderOnly {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        // The header and the checkpoint behind it, which is one block here.
        if self.on.load(Ordering::Acquire) && offset >= 2 * u64::from(BLOCK) {
            return Err(io::Error::from_raw_os_error(EIO));
        }
        self.file.read_at(buffer, offset)
    }
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_at(bytes, offset)
    }
    fn allocate(&self, length: u64) -> io::Result<()> {
        self.file.allocate(length)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }
    fn forget_pages(&self) -> io::Result<()> {
        self.file.forget_pages()
    }
    fn length(&self) -> io::Result<u64> {
        self.file.length()
    }
}

/// Looking for the first frame of the last segment, recovery passed over blocks that could not be read. When none could,
/// it took the segment for one that was begun and never used: the open succeeded, without what was acknowledged in
/// there, and removed the file as of no use. A dead letter was lost so, for good, by one error of the disk.
#[test]
fn a_segment_that_cannot_be_read_now_is_no_empty_one() {
    let disk = ModelStorage::new(2);
    let on = Arc::new(AtomicBool::new(false));
    let storage = Arc::new(HeadersOnly { disk: disk.clone(), on: Arc::clone(&on) });
    let open = || Wal::open(Arc::clone(&storage) as Arc<dyn Storage>, Path::new("/wal"), options());
    let (wal, _) = open().expect("opens");
    append(&wal, 1);
    wal.close().expect("closes");
    drop(wal);
    on.store(true, Ordering::Release);
    match open().map(|(_, recovered)| recovered) {
        Err(WalError::Io { op: "read", .. }) => {}
        other => panic!("an error that names the call was expected: {other:?}"),
    }
    on.store(false, Ordering::Release);
    let (wal, _) = open().expect("opens");
    let (records, damage) = read_all(&wal.reader(), 1);
    assert_eq!((records.len(), damage), (1, vec![]));
}

/// A segment could not be made on a full disk, then was not needed any more: nobody tried again, and health went on to
/// say that the disk was full for as long as the process lived.
#[test]
fn a_disk_is_not_called_full_when_nothing_is_wanted_of_it() {
    let storage = ModelStorage::new(3);
    let (wal, _, mut stepper) =
        Wal::open_stepped(Arc::new(storage.clone()), Path::new("/wal"), options()).expect("opens");
    let now = Instant::now();
    storage.on_call(|_, call| matches!(call, Operation::Allocate(_)).then_some(Fault::Error(ENOSPC)));
    wal.request(10_000);
    assert_eq!(stepper.prepare(now), Turn::Again);
    assert!(wal.space().last_error.expect("it is told").no_space);
    storage.kill();
    wal.request(0);
    stepper.prepare(now + LIMIT);
    assert_eq!(wal.space().last_error, None);
}

/// A write-back failed, and the process was killed before it could hear of it. The next one's first sync of that segment
/// reports it, and the log did not open, though nothing that was acknowledged is missing.
#[test]
fn a_write_back_that_failed_before_the_start_keeps_no_log_from_opening() {
    let storage = ModelStorage::new(1);
    let (wal, _, mut stepper) =
        Wal::open_stepped(Arc::new(storage.clone()), Path::new("/wal"), options()).expect("opens");
    let send = |number| wal.append(EntryRef::Message(&message(number, "orders", b"x")), |_| ());
    send(1);
    for _ in 0..4 {
        stepper.prepare(Instant::now());
        stepper.commit(Instant::now());
    }
    storage.on_call(|_, call| match call {
        Operation::Write { .. } => Some(Fault::WriteBack(EIO)),
        Operation::Sync(_) => Some(Fault::Stop),
        _ => None,
    });
    send(2);
    stepper.commit(Instant::now());
    storage.kill();
    drop((wal, stepper));
    let (wal, recovered) = Wal::open(Arc::new(storage.clone()), Path::new("/wal"), options()).expect("it opens");
    assert_eq!((recovered.damage.len(), read_all(&wal.reader(), 1).0[0].lsn), (0, 1));
}
