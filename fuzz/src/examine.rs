//! A log made of bytes from an input, and what must hold of it whatever they are.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use outlast::internals::wal::{
    Damage, Entry, EntryRef, Lsn, Mark, ModelStorage, Options, Reader, RouteTotal, Settled, Step, Stepper, Turn, Wal,
    WalError, probe, segment_path,
};
use outlast::{Lane, Message, MessageId, Outgoing, Route};

use super::input::Input;

/// Where the log lies in memory.
pub const DIRECTORY: &str = "/wal";
/// The outbox of the golden files, which the corpus is made from.
pub const OUTBOX: [u8; 16] = [0xab; 16];
/// The least there may be.
pub const SEGMENT: u32 = 32 << 10;

const BLOCK: usize = 4096;
/// A file is no longer than two segments.
const LONGEST: usize = 2 * SEGMENT as usize;

/// A file of a log, from pieces that begin on block boundaries, in so few bytes that a fuzzer can work on them.
///
/// With the flag 1 its checksums are made to match, with 4 its frames are such as belong to this segment and place;
/// with 2 it ends with its last piece, else it has its full length.
pub fn file(input: &mut Input<'_>, number: u64) -> Vec<u8> {
    let flags = input.u8();
    let mut bytes = Vec::new();
    for _ in 0..input.below(20) {
        let start = bytes.len().next_multiple_of(BLOCK) + usize::from(input.below(4)) * BLOCK;
        let piece = input.counted();
        if start + piece.len() > LONGEST {
            break;
        }
        bytes.resize(start, 0);
        bytes.extend_from_slice(piece);
    }
    if flags & 2 == 0 {
        bytes.resize(bytes.len().max(SEGMENT as usize), 0);
    }
    if flags & 4 != 0 {
        place(&mut bytes, number);
    }
    if flags & 1 != 0 {
        probe::mend(&mut bytes);
    }
    bytes
}

/// Whether the header of a segment names a first LSN that is beyond those of its frames.
pub fn contradicts(segment: &[u8]) -> bool {
    let number = |bytes: &[u8], at: usize| bytes[at..at + 8].iter().rev().fold(0, |sum, &b| sum << 8 | u64::from(b));
    let frames = segment.chunks(BLOCK).skip(1).filter(|frame| frame.len() >= 80 && frame.starts_with(b"OLFR"));
    segment.len() >= 104 && frames.map(|frame| number(frame, 24)).any(|first| first < number(segment, 56))
}

/// Writes into headers what recovery expects to find there.
fn place(bytes: &mut [u8], number: u64) {
    if bytes.len() < 104 {
        return;
    }
    bytes[16..32].copy_from_slice(&OUTBOX);
    bytes[40..48].copy_from_slice(&number.to_le_bytes());
    let salt: [u8; 8] = std::array::from_fn(|at| bytes[48 + at]);
    for (at, frame) in bytes.chunks_mut(BLOCK).enumerate().skip(1) {
        if frame.len() >= 80 && frame.starts_with(b"OLFR") {
            frame[8..16].copy_from_slice(&number.to_le_bytes());
            frame[16..24].copy_from_slice(&salt);
            frame[48..52].copy_from_slice(&((at * BLOCK) as u32).to_le_bytes());
        }
    }
}

/// The path of a segment, or of a free one.
pub fn path(number: u64, free: bool) -> std::path::PathBuf {
    if free {
        Path::new(DIRECTORY).join(format!("free-{number:016x}.seg"))
    } else {
        segment_path(Path::new(DIRECTORY), number)
    }
}

/// Everything that was read: by LSN and id, because an LSN may be there twice where nobody wrote it.
type Records = BTreeMap<(Lsn, MessageId), Outgoing>;

/// Opens, reads, writes, settles, and opens again after a kill or a power cut.
///
/// What cannot be opened has a typed error and stays as it is. What can be opened is readable to its end without
/// going in circles; takes messages; and opens again: what was acknowledged in between is there. So is what was read and
/// not settled, or it is reported as lost, unless the log contradicts itself, as no damage makes of what was written: a
/// header that names other LSNs than its frames have ([`contradicts`]), counts that are not those of the records.
pub fn examine(storage: &ModelStorage, crash: Option<u64>, mut contradicts: bool) {
    let Ok(mut first) = Life::begin(storage) else { return };
    let (mut expected, damage) = first.read();
    for lost in first.damage.iter().chain(&damage) {
        assert!(!lost.reason.is_empty());
    }
    // What lies beyond the end that the last segment names is no part of the log's order.
    let end = first.wal.state().next_lsn;
    expected.retain(|&(lsn, _), _| lsn < end && !first.settled(lsn));
    let pending: u64 = first.wal.state().routes.iter().map(|(_, pending)| pending.count).sum();
    contradicts |= pending != expected.len() as u64;
    if contradicts {
        expected.clear();
    }
    let acknowledged = Arc::new(Mutex::new(BTreeMap::new()));
    for number in 1..=2 {
        first.append(&message(number, &[7; 300]), &acknowledged);
        first.run();
    }
    if let Some((&(lsn, _), outgoing)) = expected.iter().next() {
        let totals =
            vec![RouteTotal { route: outgoing.route.clone(), count: 1, bytes: outgoing.message.size() as u64 }];
        first.wal.settle(Settled { mark: Mark::Delivered, ranges: vec![(lsn, lsn)], totals });
        expected.retain(|&(other, _), _| other != lsn);
    }
    first.run();
    let next_lsn = first.wal.state().next_lsn;
    for (lsn, outgoing) in acknowledged.lock().expect("not poisoned").iter() {
        assert!(*lsn >= end, "LSN {lsn} was given out twice");
        expected.insert((*lsn, outgoing.id), outgoing.clone());
    }
    let first_damage = std::mem::take(&mut first.damage);
    drop(first);
    let storage = match crash {
        Some(seed) => storage.crash(seed),
        None => storage.clone(),
    };
    storage.kill();
    let second = match Life::begin(&storage) {
        Ok(second) => second,
        // It opened just below the greatest numbers there may be, and what was written since is beyond.
        Err(WalError::Exhausted { found, most, .. }) if found - most < 1 << 32 => return,
        Err(error) => panic!("it opened once and not again: {error}"),
    };
    let next_again = second.wal.state().next_lsn;
    assert!(next_again >= next_lsn, "LSNs would be given out again: {next_lsn} came next, now {next_again} does");
    let (found, more_damage) = second.read();
    let reports: Vec<Damage> = [damage, first_damage, second.damage, more_damage].concat();
    for (place, outgoing) in expected {
        let reported = reports.iter().any(|lost| (lost.first_lsn..=lost.last_lsn).contains(&place.0));
        let Some(again) = found.get(&place) else {
            assert!(reported && place.0 < end, "{place:?} was there and is gone without a word");
            continue;
        };
        assert_eq!(again.message, outgoing.message);
    }
}

/// A log that is open, without threads.
pub struct Life {
    pub wal: Wal,
    pub stepper: Stepper,
    pub now: Instant,
    pub damage: Vec<Damage>,
    state: outlast::internals::wal::State,
}

impl Life {
    pub fn begin(storage: &ModelStorage) -> Result<Self, WalError> {
        Self::begin_with(storage, options_salted(0x5851_f42d_4c95_7f2d))
    }

    pub fn begin_with(storage: &ModelStorage, options: Options) -> Result<Self, WalError> {
        let opened = Wal::open_stepped(Arc::new(storage.clone()), Path::new(DIRECTORY), options);
        let (wal, recovered, stepper) = opened?;
        assert_eq!(wal.state().next_lsn, recovered.next_lsn);
        Ok(Self { wal, stepper, now: Instant::now(), damage: recovered.damage, state: recovered.state })
    }

    /// Whether an LSN was settled when it was opened.
    pub fn settled(&self, lsn: Lsn) -> bool {
        self.state.settled.contains(lsn)
    }

    /// Everything there is, and what is damaged.
    pub fn read(&self) -> (Records, Vec<Damage>) {
        read(&self.wal.reader())
    }

    /// Appends a message, which is noted once it is acknowledged.
    pub fn append(&self, outgoing: &Outgoing, acknowledged: &Arc<Mutex<BTreeMap<Lsn, Outgoing>>>) -> Lsn {
        let (noted, acknowledged) = (outgoing.clone(), Arc::clone(acknowledged));
        self.wal.append(EntryRef::Message(outgoing), move |outcome| {
            if let Ok(lsn) = outcome {
                acknowledged.lock().expect("not poisoned").insert(lsn, noted);
            }
        })
    }

    /// Turns both workers until they have nothing to do.
    pub fn run(&mut self) {
        for _ in 0..500 {
            self.now += Duration::from_millis(500);
            let turns = [self.stepper.prepare(self.now), self.stepper.commit(self.now)];
            if turns == [Turn::Idle, Turn::Idle] {
                return;
            }
        }
    }
}

/// Options of a log that is as small as it may be.
pub fn options() -> Options {
    options_salted(1)
}

/// Likewise. Salts are drawn at random, so that nobody can write frames for a segment that is yet to come: what is made
/// into a segment of [`examine`] must have other salts than the corpus, which is written with [`options`]. Otherwise
/// what lies in a free file, of a later release say, would be taken for its frames.
fn options_salted(first: u64) -> Options {
    let salts = AtomicU64::new(first);
    let salt = Arc::new(move || salts.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed));
    Options { salt, max_segments: 12, tail_bytes: 0, ..Options::new(OUTBOX, 1) }.with_segment_bytes(SEGMENT)
}

/// Everything there is, and what is damaged. It comes to an end.
fn read(reader: &Reader) -> (Records, Vec<Damage>) {
    // Each step is past a frame, or past what lies before one, and none is shorter than a block.
    let mut steps = 4 * 300 * LONGEST / BLOCK;
    let (mut found, mut damage) = (BTreeMap::new(), Vec::new());
    let mut cursor = reader.seek(1, None).expect("memory can be read");
    loop {
        assert!(steps > 0, "the reader goes in circles at {cursor:?}");
        steps -= 1;
        match reader.next(&mut cursor).expect("memory can be read") {
            Step::End => return (found, damage),
            Step::Damaged(lost) => damage.push(lost),
            Step::Frame { records, .. } => {
                for record in records {
                    if let Entry::Message(outgoing) = record.body {
                        found.insert((record.lsn, outgoing.id), outgoing);
                    }
                }
            }
        }
    }
}

/// A message that can be told from all others.
pub fn message(number: u64, payload: &[u8]) -> Outgoing {
    let destination = ["orders", "payments", "audit"][(number % 3) as usize];
    let route = Route { transport: "kafka".into(), destination: destination.into() };
    let lane = Some(Lane::of(&route, Some(b"k")));
    let message = Message::to(destination).key("k").payload(payload.to_vec());
    Outgoing { id: MessageId::new(0xfeed, number), route, lane, timestamp: 1_700_000_000_000, message }
}
