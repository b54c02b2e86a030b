//! The same with everything on top: a producer writes an outbox on a disk, its files are damaged, the next one drains it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use outlast::testing::Broker;
use outlast::{Producer, admin};

#[path = "../shows/mod.rs"]
mod shows;

use shows::{LONG, builder, in_order, number_of, numbered};

const MESSAGES: u64 = 2_400;
const KEYS: u64 = 8;
const BLOCK: usize = 4096;

/// An outbox of several segments with everything pending, and nobody in it.
struct Outbox {
    dir: tempfile::TempDir,
}

impl Outbox {
    fn new() -> Self {
        let outbox = Self { dir: tempfile::tempdir().expect("a directory") };
        let broker = Broker::new();
        broker.down();
        let producer = outbox.open(&broker);
        let padding = "x".repeat(1_500);
        for first in (0..MESSAGES).step_by(40) {
            let group = (first..first + 40).map(|number| {
                let key = format!("k{}", number % KEYS);
                numbered("orders", &key, number).header("padding", padding.clone())
            });
            pollster::block_on(producer.send_all(group.collect::<Vec<_>>())).expect("stored");
        }
        // Nothing was delivered: that is said, and not what this is about.
        let _ = producer.blocking_close(Duration::from_millis(1));
        assert!(outbox.segments().len() >= 3, "{:?}", outbox.segments());
        outbox
    }

    fn open(&self, broker: &Broker) -> Producer {
        builder(self.dir.path(), broker).first_attempt(Duration::from_millis(50)).open_blocking().expect("opens")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("outbox").join(name)
    }

    fn segments(&self) -> Vec<PathBuf> {
        let files = fs::read_dir(self.path("wal")).expect("listed").map(|entry| entry.expect("a file").path());
        let is_segment = |path: &PathBuf| {
            let name = path.file_name().expect("a name").to_string_lossy();
            name.len() == "0123456789abcdef.seg".len()
        };
        let mut segments: Vec<_> = files.filter(is_segment).collect();
        segments.sort();
        segments
    }

    fn edit(&self, segment: usize, edit: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let path = &self.segments()[segment];
        let mut bytes = fs::read(path).expect("read");
        edit(&mut bytes);
        fs::write(path, &bytes).expect("written");
        bytes
    }

    /// Opens it, delivers all there is, and closes it; what is missing then, and what health said.
    fn drain(&self) -> (BTreeSet<u64>, Vec<String>) {
        let broker = Broker::new();
        let producer = self.open(&broker);
        producer.blocking_drained(LONG).expect("drained");
        let (stats, health) = (producer.stats(), producer.health());
        producer.blocking_close(LONG).expect("closed");
        let delivered = broker.delivered();
        in_order(&delivered);
        let arrived: BTreeSet<u64> = delivered.iter().map(|one| number_of(one).1).collect();
        let missing: BTreeSet<u64> = (0..MESSAGES).filter(|number| !arrived.contains(number)).collect();
        assert_eq!(arrived.len(), delivered.len(), "some came twice");
        assert!(stats.set_aside >= missing.len() as u64 || health.alerts.iter().any(|alert| alert.contains("shorter")));
        let said = admin::inspect(self.path("")).expect("inspected");
        assert_eq!((said.pending, said.set_aside), (0, stats.set_aside));
        (missing, health.alerts)
    }

    /// Another start finds nothing left to say but how much was set aside.
    fn is_mended(&self) {
        let (missing, alerts) = self.drain_again();
        assert_eq!(missing, 0);
        assert!(alerts.iter().all(|alert| alert.contains("set aside")), "{alerts:?}");
    }

    fn drain_again(&self) -> (usize, Vec<String>) {
        let broker = Broker::new();
        let producer = self.open(&broker);
        producer.blocking_drained(LONG).expect("drained");
        let alerts = producer.health().alerts;
        producer.blocking_close(LONG).expect("closed");
        (broker.delivered().len(), alerts)
    }

    fn kept(&self) -> Vec<(String, Vec<u8>)> {
        let files = fs::read_dir(self.path("damaged")).expect("listed").map(|entry| entry.expect("a file").path());
        let named = files.map(|path| {
            let name = path.file_name().expect("a name").to_string_lossy().into_owned();
            (name, fs::read(path).expect("read"))
        });
        let mut kept: Vec<_> = named.collect();
        kept.sort();
        kept
    }
}

#[track_caller]
fn told(alerts: &[String], words: &str) {
    assert!(alerts.iter().any(|alert| alert.contains(words)), "{words}: {alerts:?}");
}

/// Where the body of a frame of messages lies that is neither the first nor the last.
fn inside(bytes: &[u8]) -> usize {
    let frames = (BLOCK..bytes.len()).step_by(BLOCK).filter(|&at| bytes[at..at + 6] == *b"OLFR\x01\x00");
    frames.clone().nth(frames.count() / 2).expect("a frame") + 100
}

#[test]
fn a_flipped_bit_on_the_disk_costs_its_frame_and_its_bytes_are_kept() {
    let outbox = Outbox::new();
    let (mut at, mut frame) = (0, 0);
    let bytes = outbox.edit(0, |bytes| {
        at = inside(bytes);
        frame = at - 100;
        bytes[at] ^= 4;
    });
    let (missing, alerts) = outbox.drain();
    assert!((1..=40).contains(&missing.len()), "{missing:?}");
    told(&alerts, &format!("{} messages could not be read and were set aside", missing.len()));
    let mut kept = outbox.kept();
    kept.retain(|(name, _)| name != "MANIFEST");
    assert_eq!(kept.len(), 1, "{:?}", kept.iter().map(|(name, _)| name).collect::<Vec<_>>());
    let (name, copy) = &kept[0];
    assert!(name.starts_with(&format!("0000000000000001-{frame:08x}-")), "{name}");
    assert!(copy.len() >= missing.len() * 1_500 && bytes[frame..].starts_with(copy), "{} bytes", copy.len());
    outbox.is_mended();
}

#[test]
fn a_missing_segment_costs_what_was_in_it() {
    let outbox = Outbox::new();
    fs::remove_file(&outbox.segments()[1]).expect("removed");
    let (missing, alerts) = outbox.drain();
    assert!(missing.len() >= 400, "{}", missing.len());
    told(&alerts, &format!("{} messages could not be read", missing.len()));
    outbox.is_mended();
}

#[test]
fn an_empty_older_segment_costs_what_was_in_it() {
    let outbox = Outbox::new();
    outbox.edit(0, Vec::clear);
    let (missing, alerts) = outbox.drain();
    assert!(missing.contains(&0) && !missing.contains(&(MESSAGES - 1)), "{missing:?}");
    told(&alerts, "set aside");
    outbox.is_mended();
}

#[test]
fn a_newest_segment_with_a_bad_beginning_costs_nothing() {
    let outbox = Outbox::new();
    outbox.edit(outbox.segments().len() - 1, |bytes| bytes[..2 * BLOCK].fill(0));
    let (missing, alerts) = outbox.drain();
    assert_eq!(missing, BTreeSet::new());
    told(&alerts, "the header or the checkpoint is damaged");
    outbox.is_mended();
}

#[test]
fn a_newest_segment_that_is_cut_short_is_told_of() {
    let outbox = Outbox::new();
    outbox.edit(outbox.segments().len() - 1, |bytes| bytes.truncate(inside(bytes)));
    let (missing, alerts) = outbox.drain();
    let first = missing.first().copied().expect("some are lost");
    assert!(missing.iter().copied().eq(first..MESSAGES), "a gap in the middle: {missing:?}");
    told(&alerts, "shorter than it was made");
    outbox.is_mended();
}

#[test]
fn two_newest_segments_under_each_others_names_are_told_of_and_kept() {
    let outbox = Outbox::new();
    let segments = outbox.segments();
    let (one, two) = (&segments[segments.len() - 2], &segments[segments.len() - 1]);
    let bytes = (fs::read(one).expect("read"), fs::read(two).expect("read"));
    fs::write(one, &bytes.1).expect("written");
    fs::write(two, &bytes.0).expect("written");
    let broker = Broker::new();
    for _ in 0..3 {
        let producer = outbox.open(&broker);
        producer.blocking_drained(LONG).expect("drained");
        producer.blocking_close(LONG).expect("closed");
    }
    assert_eq!((fs::read(one).expect("read"), fs::read(two).expect("read")), (bytes.1, bytes.0));
}

#[test]
fn a_damaged_identity_is_asked_of_the_log() {
    let outbox = Outbox::new();
    let identity = fs::read(outbox.path("IDENTITY")).expect("read");
    fs::write(outbox.path("IDENTITY"), "outlast 1 nonsense\n").expect("written");
    let (missing, _) = outbox.drain();
    assert_eq!(missing, BTreeSet::new());
    assert_eq!(fs::read(outbox.path("IDENTITY")).expect("read"), identity);
    assert!(outbox.kept().iter().any(|(name, bytes)| name.starts_with("IDENTITY") && bytes.ends_with(b"nonsense\n")));
}

/// Somebody put it there: no disk does. It is refused by name, and nothing is touched.
#[test]
fn a_directory_in_the_place_of_a_segment_is_refused_and_everything_stays() {
    let outbox = Outbox::new();
    let segment = outbox.segments()[1].clone();
    let aside = outbox.dir.path().join("aside");
    fs::rename(&segment, &aside).expect("renamed");
    fs::create_dir(&segment).expect("created");
    let Err(refused) = builder(outbox.dir.path(), &Broker::new()).open_blocking() else { panic!("it opens") };
    let refused = refused.to_string();
    let name = Path::new(&segment).file_name().expect("a name").to_string_lossy().into_owned();
    assert!(refused.contains(&name), "{refused}");
    fs::remove_dir(&segment).expect("removed");
    fs::rename(&aside, &segment).expect("renamed");
    assert_eq!(outbox.drain().0, BTreeSet::new());
}
