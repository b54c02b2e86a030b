//! A second reader of the log, written from `src/wal/FORMAT.md` alone (std and CRC-32, nothing of the crate), reads what
//! the crate writes: golden files of version 1, and fresh logs.
#![cfg(feature = "testing")]

mod by_hand;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use outlast::internals::wal::{DeadLetter, EntryRef, Mark, ModelStorage, Options, RouteTotal, Settled, Turn, Wal};
use outlast::{Body, Lane, Message, MessageId, Outgoing, Route};

/// What the second reader should find of a message.
fn expected(outgoing: &Outgoing) -> by_hand::Message {
    let message = &outgoing.message;
    let flags = u64::from(outgoing.lane.is_some())
        | u64::from(message.key_bytes().is_some()) << 1
        | u64::from(message.transport().is_some()) << 2
        | u64::from(message.timestamp_millis().is_some()) << 3
        | u64::from(message.id().is_some()) << 4;
    let (body, fields, payload) = match message.body() {
        Body::Payload(Some(payload)) => (0, vec![], payload.to_vec()),
        Body::Payload(None) => (1, vec![], vec![]),
        Body::Fields(fields) => {
            let lengths = fields.iter().map(|(k, v)| (k.len() as u64, v.len() as u64)).collect();
            (2, lengths, fields.iter().flat_map(|(k, v)| [k, v]).flatten().copied().collect())
        }
        other => panic!("{other:?}"),
    };
    by_hand::Message {
        id: outgoing.id.to_bytes().to_vec(),
        lane: outgoing.lane.map_or(0, Lane::hash).to_le_bytes().to_vec(),
        timestamp: outgoing.timestamp as u64,
        flags,
        transport: outgoing.route.transport.to_string(),
        destination: outgoing.route.destination.to_string(),
        partition: message.chosen_partition().map(i64::from),
        headers: message.headers().iter().map(|h| (h.name.to_string(), h.value.as_ref().map(|v| v.to_vec()))).collect(),
        body,
        fields,
        key: message.key_bytes().map(|key| key.to_vec()).unwrap_or_default(),
        payload,
    }
}

fn outgoing(number: u64, message: Message) -> Outgoing {
    let transport = message.transport().unwrap_or("kafka").into();
    let route = Route { transport, destination: message.destination().into() };
    let lane = message.key_bytes().map(|key| Lane::of(&route, Some(key)));
    let timestamp = message.timestamp_millis().unwrap_or(1_700_000_000_000 + number as i64);
    Outgoing { id: MessageId::new(0x0123_4567_89ab_cdef, number), route, lane, timestamp, message }
}

/// One message of every kind, and then some to fill a segment.
fn samples() -> Vec<Outgoing> {
    let mut samples = vec![
        Message::to("orders").key("cust-42").payload(r#"{"sku":17}"#).header("trace", "4bf9").null_header("none"),
        Message::to("orders").key("").tombstone().partition(-7).timestamp(-1),
        Message::to("Ereignisse-ü").payload(vec![0; 300]).partition(i32::MAX),
        Message::to("events").via("redis").fields([("type", "login"), ("", ""), ("user", "né")]),
        Message::to("events").via("redis").key(vec![0xff; 70_000 % 260]).payload("").header("h", vec![1; 251]),
    ];
    samples.extend((0..20).map(|n| Message::to("orders").key(format!("cust-{n}")).payload(vec![n; 1500])));
    samples.into_iter().zip(1..).map(|(message, number)| outgoing(number, message)).collect()
}

struct Log {
    wal: Wal,
    stepper: outlast::internals::wal::Stepper,
    storage: ModelStorage,
    now: Instant,
}

impl Log {
    /// A log whose bytes depend on nothing but what is written: salts are drawn from a seed.
    fn new(seed: u64) -> Self {
        let storage = ModelStorage::new(seed);
        let salts = Mutex::new(fastrand::Rng::with_seed(seed));
        let salt = Arc::new(move || salts.lock().expect("not poisoned").u64(..));
        let options = Options { salt, ..Options::new([0xab; 16], 0x0123_4567_89ab_cdef) }.with_segment_bytes(32 << 10);
        let opened = Wal::open_stepped(Arc::new(storage.clone()), Path::new("/wal"), options);
        let (wal, _, stepper) = opened.expect("opens");
        Self { wal, stepper, storage, now: Instant::now() }
    }

    fn run(&mut self, millis: u64) {
        self.now += Duration::from_millis(millis);
        while self.stepper.commit(self.now) == Turn::Again {}
    }

    fn append(&mut self, entry: EntryRef<'_>) {
        self.wal.append(entry, |outcome| assert!(outcome.is_ok(), "{outcome:?}"));
        self.run(0);
    }

    fn settle(&mut self, mark: Mark, ranges: Vec<(u64, u64)>, route: &Route) {
        let count = ranges.iter().map(|(first, last)| last - first + 1).sum();
        let totals = vec![RouteTotal { route: route.clone(), count, bytes: 11 }];
        self.wal.settle(Settled { mark, ranges, totals });
    }

    fn segments(&mut self) -> BTreeMap<PathBuf, Vec<u8>> {
        self.run(5000);
        let paths = self.storage.paths().into_iter();
        paths.filter_map(|path| Some((path.file_name()?.into(), self.storage.bytes(&path)?))).collect()
    }
}

/// The logs the golden files hold: one of messages, one of dead letters.
fn golden_logs() -> [(&'static str, BTreeMap<PathBuf, Vec<u8>>); 2] {
    let samples = samples();
    let mut wal = Log::new(1);
    for sample in &samples[..10] {
        wal.append(EntryRef::Message(sample));
    }
    wal.settle(Mark::Delivered, vec![(1, 2), (4, 4)], &samples[0].route);
    wal.settle(Mark::Dead, vec![(6, 7)], &samples[5].route);
    for sample in &samples[10..] {
        wal.append(EntryRef::Message(sample));
    }
    let mut dead = Log::new(2);
    for (sample, lsn) in samples[..3].iter().zip(100..) {
        let reason = format!("too large: {lsn} bytes – 10 allowed");
        let letter =
            DeadLetter { lsn, outgoing: sample.clone(), reason, attempts: 3, first_failure: 5, last_failure: -6 };
        dead.append(EntryRef::Dead(&letter));
    }
    dead.settle(Mark::Requeued, vec![(1, 1)], &samples[0].route);
    dead.settle(Mark::Purged, vec![(3, 3)], &samples[2].route);
    [("v1-wal", wal.segments()), ("v1-dead", dead.segments())]
}

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

#[test]
#[ignore = "makes the golden files; a new version of the format gets new ones, the old ones stay"]
fn make_golden_files() {
    for (name, segments) in golden_logs() {
        fs::create_dir_all(golden(name)).expect("created");
        for (file, bytes) in segments {
            fs::write(golden(name).join(file), bytes).expect("written");
        }
    }
}

#[test]
fn this_release_writes_version_1_byte_for_byte() {
    for (name, segments) in golden_logs() {
        assert_eq!(fs::read_dir(golden(name)).expect("golden files").count(), segments.len(), "{name}");
        for (file, bytes) in segments {
            let golden = fs::read(golden(name).join(&file)).expect("a golden file");
            let differ = golden.iter().zip(&bytes).position(|(a, b)| a != b);
            assert_eq!((golden.len(), differ), (bytes.len(), None), "{name}/{}", file.display());
        }
    }
}

fn read_golden(name: &str) -> Vec<by_hand::Segment> {
    let mut files: Vec<_> =
        fs::read_dir(golden(name)).expect("golden files").map(|f| f.expect("a file").path()).collect();
    files.sort();
    files.iter().map(|file| by_hand::segment(&fs::read(file).expect("readable"))).collect()
}

#[test]
fn the_second_reader_reads_the_golden_log() {
    use by_hand::Record;
    let samples = samples();
    let segments = read_golden("v1-wal");
    assert!(segments.len() >= 3, "{}", segments.len());
    let mut lsn = 1;
    for (segment, number) in segments.iter().zip(1..) {
        assert_eq!((segment.number, segment.previous), (number, number - 1));
        assert_eq!((segment.outbox.as_slice(), segment.incarnation), ([0xab; 16].as_slice(), 0x0123_4567_89ab_cdef));
        assert_eq!((segment.first_lsn, segment.last_acked), (lsn, lsn - 1));
        if let Some(before) = segments.get(segment.previous as usize - usize::from(segment.previous > 0)) {
            let last = before.frames.last().map_or(0, |frame| frame.offset);
            assert!(segment.previous == 0 || segment.previous_end > last, "all of it was acknowledged");
        }
        let groups = segment.frames.iter().filter(|frame| frame.kind == 0);
        assert_eq!(segment.frames.iter().find(|frame| frame.kind == 0).map(|frame| frame.offset), Some(segment.start));
        for frame in groups {
            assert_eq!(frame.first_lsn, lsn);
            assert!(frame.durable < frame.first_lsn && frame.synced_end <= frame.offset);
            for record in &frame.records {
                if let Record::Message(message) = record {
                    assert_eq!(*message, expected(&samples[lsn as usize - 1]), "LSN {lsn}");
                    lsn += 1;
                }
            }
            assert_eq!(frame.count > 0, frame.time > 0);
        }
    }
    assert_eq!(lsn, 26);
    let records = || segments.iter().flat_map(|segment| &segment.frames).flat_map(|frame| &frame.records);
    let settled: Vec<_> = records().filter(|record| matches!(record, Record::Settled { .. })).collect();
    let totals = |count| vec![(count, 11, "kafka".to_owned(), "orders".to_owned())];
    let delivered = Record::Settled { mark: 1, ranges: vec![(1, 2), (4, 4)], totals: totals(3) };
    assert_eq!(settled, [&delivered, &Record::Settled { mark: 2, ranges: vec![(6, 7)], totals: totals(2) }]);
    let last = segments.last().expect("a segment");
    let checkpoint: Vec<_> = last.frames.iter().filter(|frame| frame.kind == 1).flat_map(|f| &f.records).collect();
    assert_eq!(checkpoint[0], &Record::Ranges { prefix: 2, ranges: vec![(4, 4), (6, 7)] });
    assert!(matches!(checkpoint[1], Record::Route { transport, .. } if transport == "kafka"));
    let Record::Segments(older) = checkpoint[checkpoint.len() - 2] else { panic!("{checkpoint:?}") };
    assert_eq!(older.len() as u64, last.number - 1);
    assert_eq!((older[0][0], older[0][1], older[0][4]), (1, 1, 0));
    assert_eq!(checkpoint[checkpoint.len() - 1], &Record::End(2, checkpoint.len() as u64 - 3, last.number - 1));
    assert_eq!(last.frames.last().map(|frame| (frame.kind, &frame.records[..])), Some((2, &[Record::Seal(25)][..])));
}

#[test]
fn the_second_reader_reads_the_golden_dead_letters() {
    use by_hand::Record;
    let samples = samples();
    let segments = read_golden("v1-dead");
    let records: Vec<_> =
        segments.iter().flat_map(|s| &s.frames).filter(|f| f.kind == 0).flat_map(|f| &f.records).collect();
    for (at, lsn) in [(0, 100), (1, 101), (2, 102)] {
        let reason = format!("too large: {lsn} bytes – 10 allowed");
        let message = expected(&samples[at]);
        let last = (-6i64) as u64;
        assert_eq!(records[at], &Record::Dead { lsn, attempts: 3, reason, first: 5, last, message });
    }
    assert!(
        matches!(records[3], Record::Settled { mark: 4, .. }) && matches!(records[4], Record::Settled { mark: 5, .. })
    );
}

#[test]
fn the_crate_reads_the_golden_log() {
    let storage = ModelStorage::new(1);
    for file in fs::read_dir(golden("v1-wal")).expect("golden files") {
        let file = file.expect("a file").path();
        storage
            .set_bytes(&Path::new("/wal").join(file.file_name().expect("a name")), fs::read(&file).expect("readable"));
    }
    let options = Options::new([0xab; 16], 1).with_segment_bytes(32 << 10);
    let (wal, recovered, _stepper) = Wal::open_stepped(Arc::new(storage), Path::new("/wal"), options).expect("opens");
    assert_eq!((recovered.next_lsn, recovered.damage.len()), (26, 0));
    let reader = wal.reader();
    let mut cursor = reader.seek(1, None).expect("readable");
    let mut read = Vec::new();
    while let outlast::internals::wal::Step::Frame { records, .. } = reader.next(&mut cursor).expect("readable") {
        read.extend(records);
    }
    let samples = samples();
    assert_eq!(read.len(), samples.len());
    for (record, sample) in read.iter().zip(&samples) {
        let outgoing = record.body.outgoing();
        assert_eq!((outgoing.id, &outgoing.route, outgoing.lane), (sample.id, &sample.route, sample.lane));
        assert_eq!((outgoing.timestamp, &outgoing.message), (sample.timestamp, &sample.message));
    }
}

#[test]
fn the_second_reader_reads_what_is_written_today() {
    for seed in 0..60 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut log = Log::new(seed);
        let mut sent = Vec::new();
        for number in 1..rng.u64(2..60) {
            let mut bytes = |most: usize| (0..rng.usize(..most)).map(|_| rng.u8(..)).collect::<Vec<u8>>();
            let mut message = Message::to(["a", "b", "c"][number as usize % 3]).payload(bytes(2500));
            message = message.header("h", bytes(20)).key(bytes(30));
            if number % 5 == 0 {
                message = message.fields([(bytes(10), bytes(300)), (bytes(10), bytes(3))]).via("redis");
            }
            let message = outgoing(number, message);
            log.wal.append(EntryRef::Message(&message), |outcome| assert!(outcome.is_ok(), "{outcome:?}"));
            sent.push(expected(&message));
            if rng.bool() {
                log.run(rng.u64(..200));
            }
        }
        let mut read = Vec::new();
        for (name, bytes) in log.segments() {
            if name.to_string_lossy().starts_with("free-") {
                continue;
            }
            for frame in by_hand::segment(&bytes).frames {
                read.extend(frame.records.into_iter().filter_map(|record| match record {
                    by_hand::Record::Message(message) => Some(message),
                    _ => None,
                }));
            }
        }
        assert_eq!(read, sent, "seed {seed}");
    }
}
