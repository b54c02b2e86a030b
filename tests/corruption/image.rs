//! Logs to be damaged, and the truth about each: what was written, what of it is settled, and where it lies.
//!
//! They are written by the crate itself and taken apart here by the numbers of FORMAT.md, without its decoders.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use outlast::internals::wal::{
    DeadLetter, Entry, EntryRef, Fault, Lsn, Mark, ModelStorage, Operation, Options, RangeSet, RouteTotal, Settled,
    Stepper, Turn, Wal,
};
use outlast::{Lane, Message, MessageId, Outgoing, Route};

use super::disk::{DIRECTORY, Files, files_of, number_of, segment_path};

pub const BLOCK: usize = 4096;
/// Bytes of a segment's header, and of a frame's.
pub const SEGMENT_HEADER: usize = 104;
pub const FRAME_HEADER: usize = 80;

/// A log and the truth about it.
pub struct Image {
    pub name: &'static str,
    pub options: Options,
    pub files: Files,
    /// Everything that was ever acknowledged.
    pub written: BTreeMap<Lsn, Entry>,
    /// What the log itself says is settled.
    pub settled: RangeSet,
    pub segments: BTreeMap<u64, Segment>,
    /// In the order in which they were written.
    pub frames: Vec<Frame>,
    /// What segments held at some time while the log was written, of this life and of earlier ones of their files.
    pub earlier: Vec<Vec<u8>>,
}

/// What a segment's header says.
#[derive(Clone, Debug)]
pub struct Segment {
    pub last_acked: Lsn,
    pub start: usize,
}

/// Where a frame lies, and what it says of others.
#[derive(Clone, Debug)]
pub struct Frame {
    pub segment: u64,
    pub offset: usize,
    pub length: usize,
    pub kind: u8,
    pub first_lsn: Lsn,
    pub count: u64,
    pub records: u64,
    pub durable: Lsn,
    pub synced_end: usize,
}

impl Frame {
    pub fn lsns(&self) -> std::ops::Range<Lsn> {
        self.first_lsn..self.first_lsn + self.count
    }

    pub fn is_checkpoint(&self) -> bool {
        self.kind == 1
    }

    pub fn has_settlements(&self) -> bool {
        self.kind == 0 && self.records > self.count
    }
}

fn int(bytes: &[u8], at: usize, size: usize) -> u64 {
    bytes[at..at + size].iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

impl Image {
    /// LSNs that were acknowledged and not settled.
    pub fn pending(&self) -> impl Iterator<Item = Lsn> + '_ {
        self.written.keys().copied().filter(|lsn| !self.settled.contains(*lsn))
    }

    pub fn last_lsn(&self) -> Lsn {
        self.written.keys().next_back().copied().unwrap_or_default()
    }

    /// The newest segment.
    pub fn newest(&self) -> u64 {
        self.segments.keys().next_back().copied().unwrap_or_default()
    }

    fn take_apart(&mut self) {
        for (path, bytes) in &self.files {
            let Some(number) = number_of(path) else { continue };
            let segment = Segment { last_acked: int(bytes, 64, 8), start: int(bytes, 84, 4) as usize };
            self.segments.insert(number, segment);
            let mut offset = BLOCK;
            while offset < bytes.len() {
                let ours = bytes[offset..offset + 4] == *b"OLFR"
                    && int(bytes, offset + 8, 8) == number
                    && bytes[offset + 16..offset + 24] == bytes[48..56];
                if !ours {
                    break;
                }
                let frame = frame_at(bytes, number, offset);
                offset = (offset + frame.length).next_multiple_of(BLOCK);
                self.frames.push(frame);
            }
        }
        // What a failed write or sync left behind is no part of the log: its group was written once more.
        let segments = self.files.iter().filter(|(path, _)| number_of(path).is_some());
        let ends: BTreeMap<u64, usize> =
            segments.map(|(_, bytes)| (int(bytes, 72, 8), int(bytes, 80, 4) as usize)).collect();
        self.frames.retain(|frame| ends.get(&frame.segment).is_none_or(|end| frame.offset < *end));
    }
}

fn frame_at(bytes: &[u8], segment: u64, offset: usize) -> Frame {
    let field = |at: usize, size: usize| int(bytes, offset + at, size);
    Frame {
        segment,
        offset,
        length: FRAME_HEADER + field(64, 4) as usize,
        kind: bytes[offset + 5],
        first_lsn: field(24, 8),
        count: field(56, 4),
        records: field(60, 4),
        durable: field(32, 8),
        synced_end: field(52, 4) as usize,
    }
}

/// Writes a log, step by step and repeatably.
pub struct Writer {
    pub rng: fastrand::Rng,
    name: &'static str,
    options: Options,
    storage: ModelStorage,
    wal: Wal,
    stepper: Stepper,
    now: Instant,
    written: BTreeMap<Lsn, Entry>,
    settled: RangeSet,
    acknowledged: Arc<Mutex<Vec<Lsn>>>,
    incarnation: u64,
    earlier: Vec<Vec<u8>>,
}

impl Writer {
    pub fn new(name: &'static str, seed: u64, options: Options) -> Self {
        let salts = Mutex::new(fastrand::Rng::with_seed(seed ^ 0x5a17));
        let salt = Arc::new(move || salts.lock().expect("not poisoned").u64(..));
        let options = Options { salt, ..options };
        let storage = ModelStorage::new(seed);
        let (wal, stepper) = open(&storage, &options);
        let (rng, now) = (fastrand::Rng::with_seed(seed), Instant::now());
        let (written, settled, acknowledged) = (BTreeMap::new(), RangeSet::new(), Arc::default());
        Self {
            rng,
            name,
            options,
            storage,
            wal,
            stepper,
            now,
            written,
            settled,
            acknowledged,
            incarnation: 1,
            earlier: Vec::new(),
        }
    }

    /// Lets the log do what is due.
    pub fn run(&mut self, millis: u64) {
        self.now += Duration::from_millis(millis);
        while self.stepper.commit(self.now) == Turn::Again {}
        while self.stepper.prepare(self.now) == Turn::Again {}
    }

    /// Appends a group of records; each must be acknowledged.
    pub fn group(&mut self, entries: Vec<Entry>) {
        let count = entries.len();
        for entry in entries {
            let told = Arc::clone(&self.acknowledged);
            let done = move |outcome: Result<Lsn, _>| told.lock().expect("not poisoned").push(outcome.expect("taken"));
            let lsn = match &entry {
                Entry::Message(outgoing) => self.wal.append(EntryRef::Message(outgoing), done),
                Entry::Dead(dead) => self.wal.append(EntryRef::Dead(dead), done),
            };
            self.written.insert(lsn, entry);
        }
        self.run(1);
        if self.rng.usize(..8) == 0 {
            let newest = self.segments().pop().unwrap_or_default();
            self.earlier.extend(self.storage.bytes(&segment_path(newest)));
        }
        assert_eq!(std::mem::take(&mut *self.acknowledged.lock().expect("not poisoned")).len(), count);
    }

    /// A group of some messages with payloads of up to so many bytes.
    pub fn messages(&mut self, count: usize, most: usize) {
        let next = self.written.keys().next_back().map_or(1, |last| last + 1);
        let incarnation = self.incarnation;
        let entries = (0..count as u64).map(|i| Entry::Message(message(&mut self.rng, incarnation, next + i, most)));
        let entries = entries.collect();
        self.group(entries);
    }

    /// The same, of dead letters.
    pub fn dead_letters(&mut self, count: usize, most: usize) {
        let next = self.written.keys().next_back().map_or(1, |last| last + 1);
        let entries = (0..count as u64).map(|i| {
            let outgoing = message(&mut self.rng, self.incarnation, next + i, most);
            let reason = format!("too large: {} bytes", self.rng.u32(..));
            let (lsn, attempts) = (1000 + next + i, self.rng.u32(1..9));
            Entry::Dead(DeadLetter { lsn, outgoing, reason, attempts, first_failure: 5, last_failure: -6 })
        });
        let entries = entries.collect();
        self.group(entries);
    }

    /// Settles what is not settled yet of these LSNs; it is logged in the next frame, or soon.
    pub fn settle(&mut self, lsns: impl Iterator<Item = Lsn>) {
        for lsn in lsns {
            let Some(entry) = self.written.get(&lsn).filter(|_| !self.settled.contains(lsn)) else { continue };
            let outgoing = entry.outgoing();
            let total = RouteTotal { route: outgoing.route.clone(), count: 1, bytes: outgoing.message.size() as u64 };
            self.settled.insert(lsn, lsn);
            self.wal.settle(Settled { mark: Mark::Delivered, ranges: vec![(lsn, lsn)], totals: vec![total] });
        }
    }

    /// The next sync of a segment fails: its group is written once more in the next.
    pub fn fail_next_sync(&mut self) {
        let mut failed = false;
        self.storage.on_call(move |_, call| {
            let fails = !failed && matches!(call, Operation::Sync(path) if number_of(path).is_some());
            failed |= fails;
            fails.then_some(Fault::Error(5))
        });
    }

    /// Bytes of the newest segment that frames have taken.
    pub fn filled(&self) -> usize {
        let paths = self.storage.paths();
        let Some(newest) = paths.iter().filter_map(|path| number_of(path)).max() else { return 0 };
        let bytes = self.storage.bytes(&segment_path(newest)).unwrap_or_default();
        let ours = |at: &usize| bytes[*at..*at + 4] == *b"OLFR" && int(&bytes, at + 8, 8) == newest;
        let last = (BLOCK..bytes.len()).step_by(BLOCK).rfind(ours);
        last.map_or(0, |at| at + FRAME_HEADER + int(&bytes, at + 64, 4) as usize)
    }

    /// Numbers of the segments that there are.
    pub fn segments(&self) -> Vec<u64> {
        self.storage.paths().iter().filter_map(|path| number_of(path)).collect()
    }

    /// Another process opens it, after a kill. What was settled is logged by then.
    pub fn restart(&mut self) {
        self.run(200);
        self.storage.kill();
        self.incarnation += 1;
        self.options.incarnation = self.incarnation;
        (self.wal, self.stepper) = open(&self.storage, &self.options);
    }

    /// Everything logged and synced, and a seal behind it.
    pub fn seal(&mut self) {
        for _ in 0..3 {
            self.run(2_000);
        }
    }

    /// What lies on the disk now.
    pub fn image(self) -> Image {
        drop(self.wal);
        let mut image = Image {
            name: self.name,
            options: self.options,
            files: files_of(&self.storage),
            written: self.written,
            settled: self.settled,
            segments: BTreeMap::new(),
            frames: Vec::new(),
            earlier: self.earlier,
        };
        image.take_apart();
        image
    }
}

fn open(storage: &ModelStorage, options: &Options) -> (Wal, Stepper) {
    let opened = Wal::open_stepped(Arc::new(storage.clone()), Path::new(DIRECTORY), options.clone());
    let (wal, recovered, stepper) = opened.expect("opens");
    assert_eq!(recovered.damage, []);
    wal.request(u64::from(options.segment_bytes) * 2);
    (wal, stepper)
}

/// A message of any kind: keys, headers and field maps come and go.
fn message(rng: &mut fastrand::Rng, incarnation: u64, number: u64, most: usize) -> Outgoing {
    let route = Route { transport: "kafka".into(), destination: ["orders", "payments", "x"][rng.usize(..3)].into() };
    let mut bytes = |most: usize| -> Vec<u8> {
        let length = rng.usize(..=most);
        std::iter::repeat_with(|| rng.u8(..)).take(length).collect()
    };
    let key = format!("key-{}", number % 7);
    let message = Message::to(&*route.destination);
    let message = match number % 11 {
        0 => message.tombstone(),
        1 => message.fields([(bytes(10), bytes(most / 2)), (bytes(10), bytes(most / 2))]).via("kafka"),
        2 => message.payload(bytes(most)).header("trace", bytes(16)).null_header("null").partition(3),
        _ => message.payload(bytes(most)),
    };
    let message = if number.is_multiple_of(5) { message } else { message.key(key.clone()) };
    let lane = message.key_bytes().is_some().then(|| Lane::of(&route, Some(key.as_bytes())));
    let timestamp = 1_700_000_000_000 + number as i64;
    Outgoing { id: MessageId::new(incarnation, number), route, lane, timestamp, message }
}
