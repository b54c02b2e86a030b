//! Real write-back errors (RELIABILITY.md, row 11): a sparse image on a memory file system that is too small for it. The
//! file system on the image promises blocks that there is nothing behind; the kernel notices when it writes them back, as
//! on a thinly provisioned volume, and says so at a sync, once.
//!
//! What must hold is fail-stop: nothing is tried again until the kernel says yes, and whatever is acknowledged after the
//! first failure is there once the disk is repaired and mounted anew. Of what was acknowledged before, ext4 itself may
//! lose the end: in some runs the last message whose `fdatasync` had returned 0, before any call had failed, is torn on the
//! repaired disk, zeros from some block on (seen on Linux 6.18). That is counted, and no more than that one is allowed.
//! `OUTLAST_TEST_ROUNDS=N` runs N disks.

#![cfg(all(feature = "testing", target_os = "linux"))]

#[allow(dead_code, reason = "shared with other test programs")]
#[path = "common/disk.rs"]
mod disk;
mod shows;

use std::collections::HashSet;
use std::path::Path;
use std::time::{Duration, Instant};

use disk::{Disk, root, run, skip};
use outlast::testing::Broker;
use outlast::{Builder, Config, Message, Producer, SendErrorKind};
use shows::{LONG, myself, setting, work};

/// What the image pretends to have.
const IMAGE: u64 = 64;
/// Sent after the first failure, to see what becomes of it.
const AFTER: u64 = 40;

/// A memory file system of a size that can be changed, unmounted when this is dropped.
struct Memory(tempfile::TempDir);

impl Memory {
    /// Makes one; `None` where that cannot be done.
    fn new(megabytes: u64) -> Option<Self> {
        let memory = Self(tempfile::TempDir::new().expect("a directory"));
        match memory.mount(&["-t", "tmpfs", "-o", &format!("size={megabytes}m"), "tmpfs"]) {
            Ok(()) => Some(memory),
            Err(why) => skip(&why),
        }
    }

    fn grow(&self, megabytes: u64) {
        self.mount(&["-o", &format!("remount,size={megabytes}m")]).expect("it can grow");
    }

    fn mount(&self, options: &[&str]) -> Result<(), String> {
        run(root("mount").args(options).arg(self.0.path()))
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // What holds it goes away with the test.
        let _ = run(root("umount").arg("--lazy").arg(self.0.path()));
    }
}

fn builder(root: &Path, broker: &Broker) -> Builder {
    let config = Config {
        space_wait: Duration::from_millis(250),
        segment_bytes: 256 << 10,
        max_message_bytes: 32 << 10,
        max_bytes: Some((IMAGE / 2) << 20),
        lock_wait: LONG,
        ..Config::default()
    };
    Builder::default().config(config).outbox(root.join("outbox")).custom_transport("memory", broker.transport())
}

fn tells(producer: &Producer) -> bool {
    producer.health().alerts.iter().any(|alert| alert.starts_with("disk: "))
}

#[derive(Debug, Default)]
struct Seen {
    before: usize,
    after: usize,
    refused: usize,
    /// The last one before the first failure, where the file system lost it.
    torn: usize,
}

/// One disk, from its first message to its repair; `None` where none can be mounted.
fn live(memory: u64) -> Option<Seen> {
    let memory = Memory::new(memory)?;
    let directory = tempfile::TempDir::new_in(memory.0.path()).expect("a directory");
    let mut disk = Disk::on(directory, IMAGE)?;
    // A process of its own: what hangs on a broken disk goes away with it.
    let output = myself(&[&disk.root()]).output().expect("the test binary runs");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    let (mut accepted, mut seen) = (Vec::new(), Seen::default());
    for line in said.lines() {
        if line.contains("<refused>") {
            seen.refused += 1;
        } else if let Some(number) = line.split_once("<ok ").and_then(|(_, rest)| rest.split_once('>')) {
            accepted.push(number.0.parse::<u64>().expect("a number"));
            let count = if seen.refused == 0 { &mut seen.before } else { &mut seen.after };
            *count += 1;
        }
    }
    assert!(seen.refused > 0, "the disk was meant to fail: {said}");
    memory.grow(4 * IMAGE);
    disk.repair();
    let broker = Broker::new();
    let producer = builder(&disk.root(), &broker).open_blocking().unwrap();
    let drained = producer.blocking_drained(LONG);
    assert!(drained.is_ok(), "{drained:?} {:?}", producer.health());
    let set_aside = producer.stats().set_aside;
    producer.blocking_close(LONG).unwrap();
    let arrived: HashSet<u64> = broker
        .delivered()
        .iter()
        .map(|one| String::from_utf8_lossy(one.payload.as_deref().expect("a payload")).into_owned())
        .map(|text| text.split(':').next().and_then(|number| number.parse().ok()).expect("a number"))
        .collect();
    let lost: Vec<u64> = accepted.iter().copied().filter(|number| !arrived.contains(number)).collect();
    let last = accepted[..seen.before].last().copied();
    assert!(
        lost.iter().all(|number| Some(*number) == last),
        "acknowledged and lost ({set_aside} set aside): {lost:?} of {seen:?}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    seen.torn = lost.len();
    Some(seen)
}

#[test]
fn a_write_back_error_stops_and_is_never_tried_again_to_success() {
    let (begun, rounds) = (Instant::now(), setting("OUTLAST_TEST_ROUNDS", 2));
    let mut sum = Seen::default();
    for round in 0..rounds {
        // The disk gives out at another place each time.
        let Some(seen) = live(9 + round % 13) else { return };
        sum = Seen {
            before: sum.before + seen.before,
            after: sum.after + seen.after,
            refused: sum.refused + seen.refused,
            torn: sum.torn + seen.torn,
        };
    }
    println!(
        "{rounds} disks, {} acknowledged before the first failure and {} after it, {} torn by ext4, {} refused, {:.1} s",
        sum.before,
        sum.after,
        sum.torn,
        sum.refused,
        begun.elapsed().as_secs_f64()
    );
}

/// Stores until the disk fails, and a little longer; says what became of each message.
#[test]
#[ignore = "run by the other test as a child process"]
fn child() {
    let Some(work) = work() else { return };
    // Told by the parent if something is lost.
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_max_level(tracing::Level::WARN).init();
    let broker = Broker::new();
    broker.down();
    let producer = builder(Path::new(&work[0]), &broker).open_blocking().unwrap();
    let mut refused = 0;
    for number in 0..10_000 {
        let message = Message::to("orders").key("k").payload(format!("{number}:{}", "x".repeat(30_000)));
        match producer.blocking_send(message) {
            Ok(_) => println!("<ok {number}>"),
            // A machine that is busy may take longer to make a segment: then nobody says anything of the disk.
            Err(error) if refused == 0 && error.kind() == SendErrorKind::Full && !tells(&producer) => {}
            Err(error) => {
                // The kernel calls it EIO, or ENOSPC, as the memory file system did.
                assert!(matches!(error.kind(), SendErrorKind::Storage | SendErrorKind::Full), "{error}");
                assert!(refused > 0 || tells(&producer), "{:?}", producer.health());
                println!("<refused>");
                refused += 1;
            }
        }
        if refused == AFTER {
            break;
        }
    }
    // Nothing can be sealed on such a disk; what matters is what was acknowledged.
    println!("{:?}", producer.blocking_close(Duration::ZERO));
}
