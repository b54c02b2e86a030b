//! A disk that is full, again and again (RELIABILITY.md, row 12): what does not fit is refused, nothing that was taken is
//! lost, the backlog is delivered from the full disk, and the producer goes on by itself.
//!
//! The disk is an ext4 image of its own, in memory where there is such a place. `OUTLAST_TEST_ROUNDS=N` runs N cycles, on
//! all disks together.

#![cfg(all(feature = "testing", target_os = "linux"))]

#[allow(dead_code, reason = "shared with other test programs")]
#[path = "common/disk.rs"]
mod disk;
mod shows;

use std::collections::HashSet;
use std::io::Write;
use std::time::{Duration, Instant};

use disk::Disk;
use outlast::testing::Broker;
use outlast::{Builder, Config, Message, Producer, SendErrorKind};
use shows::{LONG, setting};

/// Large enough for a journal.
const MEGABYTES: u64 = 16;
const SEGMENT: u32 = 256 << 10;
/// Filled and drained side by side: most of a cycle is waiting until nothing more is taken.
const DISKS: u64 = 5;
/// What must be taken before it counts as full, of some 680 messages that there is room for.
const A_FILL: usize = 100;

fn disk() -> Option<Disk> {
    let directory = tempfile::TempDir::new_in("/dev/shm").or_else(|_| tempfile::TempDir::new());
    Disk::on(directory.expect("a directory"), MEGABYTES)
}

/// Somebody else takes what is left, to the last block.
fn fill_up(disk: &Disk) {
    let mut ballast = std::fs::File::create(disk.root().join("ballast")).expect("a file");
    while ballast.write_all(&[0; 4096]).is_ok() {}
    // Its blocks are taken when they are written back.
    let _ = ballast.sync_all();
}

/// Takes that away again. Blocks that were freed can be had once the file system's journal says so.
fn free(disk: &Disk) {
    disk.free();
    let root = std::fs::File::open(disk.root()).expect("a directory");
    rustix::fs::syncfs(root).expect("the disk works");
}

fn builder(disk: &Disk, broker: &Broker) -> Builder {
    let config = Config {
        space_wait: Duration::from_millis(300),
        backoff_base: Duration::from_millis(5),
        backoff_cap: Duration::from_millis(50),
        segment_bytes: SEGMENT,
        max_message_bytes: 32 << 10,
        // More than there is: the disk says when it is enough.
        max_bytes: Some(1 << 30),
        lock_wait: LONG,
        ..Config::default()
    };
    Builder::default().config(config).outbox(disk.root().join("outbox")).custom_transport("memory", broker.transport())
}

/// What was sent, and what came.
#[derive(Default)]
struct Book {
    next: u64,
    accepted: Vec<u64>,
    refused: u64,
    arrived: usize,
    duplicates: usize,
    seen: HashSet<u64>,
}

impl Book {
    /// Sends until much was taken, nothing more is, and health says that it is for the disk.
    fn fill(&mut self, producer: &Producer) {
        const TOGETHER: u64 = 32;
        let (begun, enough) = (Instant::now(), self.accepted.len() + A_FILL);
        let mut refused = 0;
        while refused < TOGETHER || self.accepted.len() < enough || !tells_of_the_disk(producer) {
            assert!(begun.elapsed() < LONG, "it does not go on: {:?} {:?}", producer.stats(), producer.health());
            let sent: Vec<_> = (0..TOGETHER)
                .map(|_| {
                    let number = self.next;
                    self.next += 1;
                    (number, producer.send(message(number)))
                })
                .collect();
            refused = 0;
            for (number, future) in sent {
                match pollster::block_on(future) {
                    Ok(_) => self.accepted.push(number),
                    Err(error) => {
                        // A disk without a block left may have none for a directory's entry either.
                        let unnamed = error.kind() == SendErrorKind::Storage && error.to_string().contains("No space");
                        let full = error.kind() == SendErrorKind::Full && !error.possibly_delivered();
                        assert!(error.is_retryable() && (full || unnamed), "{error}");
                        refused += 1;
                    }
                }
            }
            self.refused += refused;
        }
    }

    /// Everything that was taken has come, in order for each key.
    fn all_came(&mut self, broker: &Broker) {
        let delivered = broker.delivered();
        let mut last = [None; KEYS as usize];
        for one in &delivered[self.arrived..] {
            let text = String::from_utf8_lossy(one.payload.as_deref().expect("a payload"));
            let number: u64 = text.split(':').next().and_then(|number| number.parse().ok()).expect("a number");
            if !self.seen.insert(number) {
                self.duplicates += 1;
                continue;
            }
            let before = &mut last[(number % KEYS) as usize];
            assert!(before.is_none_or(|before| before < number), "{number} came after {before:?}");
            *before = Some(number);
        }
        self.arrived = delivered.len();
        let lost: Vec<&u64> = self.accepted.iter().filter(|number| !self.seen.contains(number)).collect();
        assert!(lost.is_empty(), "{} of {} are lost: {lost:?}", lost.len(), self.accepted.len());
        assert_eq!(self.seen.len(), self.accepted.len(), "what was refused did not come");
    }
}

fn tells_of_the_disk(producer: &Producer) -> bool {
    producer.health().alerts.iter().any(|alert| alert.starts_with("disk: "))
}

const KEYS: u64 = 7;

fn message(number: u64) -> Message {
    Message::to("orders").key(format!("k{}", number % KEYS)).payload(format!("{number}:{}", "x".repeat(16_000)))
}

#[track_caller]
fn drain(producer: &Producer) {
    let drained = producer.blocking_drained(LONG);
    assert!(drained.is_ok(), "{drained:?} {:?}", producer.health());
}

/// Fills the disk and drains it, so many times.
fn fill_and_drain(disk: &Disk, cycles: u64) -> Book {
    let (broker, mut book) = (Broker::new(), Book::default());
    let mut producer = builder(disk, &broker).open_blocking().unwrap();
    for cycle in 0..cycles {
        broker.down();
        book.fill(&producer);
        if cycle % 2 == 1 {
            // Somebody else takes what was left.
            fill_up(disk);
        }
        if cycle % 4 == 3 {
            // A restart while it is full.
            producer.blocking_close(Duration::ZERO).unwrap();
            producer = builder(disk, &broker).open_blocking().unwrap();
        }
        broker.up();
        drain(&producer);
        book.all_came(&broker);
        if cycle % 2 == 1 {
            free(disk);
        }
    }
    producer.blocking_close(LONG).unwrap();
    book
}

#[test]
fn a_full_disk_refuses_then_drains_then_goes_on() {
    let (begun, cycles) = (Instant::now(), setting("OUTLAST_TEST_ROUNDS", 100));
    let disks: Option<Vec<Disk>> = (0..DISKS).map(|_| disk()).collect();
    let Some(disks) = disks else { return };
    let each = cycles.div_ceil(DISKS);
    let books: Vec<Book> = std::thread::scope(|scope| {
        let running: Vec<_> = disks.iter().map(|disk| scope.spawn(move || fill_and_drain(disk, each))).collect();
        running.into_iter().map(|one| one.join().expect("it holds")).collect()
    });
    println!(
        "{} fill/drain cycles on {DISKS} disks, {} acknowledged, 0 lost, {} refused, {} duplicates, {:.0} s",
        each * DISKS,
        books.iter().map(|book| book.accepted.len()).sum::<usize>(),
        books.iter().map(|book| book.refused).sum::<u64>(),
        books.iter().map(|book| book.duplicates).sum::<usize>(),
        begun.elapsed().as_secs_f64()
    );
}

/// Each start takes a segment of its own for what it settles, and a disk that is full to the last block has no room for
/// one. Few messages are delivered in each life, so that no segment comes free of itself: after two such lives nothing
/// is settled any more, and what was delivered comes again after the next start. Health and `close` say so, and it ends
/// as soon as there is space.
#[test]
fn restarts_on_a_full_disk_lose_nothing_and_settle_once_there_is_space() {
    let Some(disk) = disk() else { return };
    let (broker, mut book) = (Broker::new(), Book::default());
    let open = |rate: u32| builder(&disk, &broker).drain_rate(rate).open_blocking().unwrap();
    broker.down();
    let mut producer = open(2);
    let others = disk.root().join("others");
    std::fs::write(&others, vec![0; 2 << 20]).unwrap();
    book.fill(&producer);
    fill_up(&disk);
    let (mut failed, mut unsettled, mut before) = (0, 0, 0);
    for restart in 1..=6 {
        let closed = producer.blocking_close(Duration::ZERO);
        if let Err(error) = &closed {
            assert!(error.to_string().contains("No space left"), "it says why: {error}");
            failed += 1;
            unsettled += broker.delivered().len() - before;
        }
        producer = open(2);
        before = broker.delivered().len();
        broker.up();
        assert!(broker.wait_for(before + 1, LONG), "restart {restart}: nothing comes: {:?}", producer.health());
        broker.down();
    }
    std::fs::remove_file(others).unwrap();
    free(&disk);
    producer.blocking_close(LONG).unwrap();
    let producer = open(u32::MAX);
    broker.up();
    drain(&producer);
    producer.blocking_close(LONG).unwrap();
    book.all_came(&broker);
    println!("{} acknowledged, 0 lost, {} duplicates, {failed} closes failed", book.accepted.len(), book.duplicates);
    assert!(book.duplicates <= unsettled, "only what a failed close did not settle comes again: {unsettled} at most");
}
