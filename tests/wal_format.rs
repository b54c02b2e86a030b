//! A second reader of the log, written from `src/wal/FORMAT.md` alone (std and CRC-32, nothing of the crate), reads what
//! the crate writes: golden files of version 1, and fresh logs.
#![cfg(feature = "testing")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use outlast::internals::wal::{DeadLetter, EntryRef, Mark, ModelStorage, Options, RouteTotal, Settled, Turn, Wal};
use outlast::{Body, Lane, Message, MessageId, Outgoing, Route};

mod by_hand {
    //! The reader. It panics on anything that is not as FORMAT.md says.

    pub struct Bytes<'a>(pub &'a [u8]);

    impl<'a> Bytes<'a> {
        pub fn take(&mut self, length: usize) -> &'a [u8] {
            let (taken, rest) = self.0.split_at(length);
            self.0 = rest;
            taken
        }

        pub fn int(&mut self, size: usize) -> u64 {
            self.take(size).iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
        }

        pub fn text(&mut self, length: usize) -> String {
            String::from_utf8(self.take(length).to_vec()).expect("UTF-8")
        }

        pub fn number(&mut self) -> u64 {
            match self.int(1) {
                251 => self.int(2),
                252 => self.int(4),
                253 => self.int(8),
                small if small <= 250 => small,
                other => panic!("{other} begins no number"),
            }
        }

        pub fn signed(&mut self) -> i64 {
            let number = self.number();
            if number.is_multiple_of(2) { (number / 2) as i64 } else { -((number / 2) as i64) - 1 }
        }

        pub fn bytes(&mut self) -> Vec<u8> {
            let length = self.number() as usize;
            self.take(length).to_vec()
        }

        pub fn option<T>(&mut self, value: impl FnOnce(&mut Self) -> T) -> Option<T> {
            match self.int(1) {
                0 => None,
                1 => Some(value(self)),
                other => panic!("{other} is no option"),
            }
        }
    }

    fn crc(salt: u64, bytes: &[u8]) -> u64 {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&salt.to_le_bytes());
        hasher.update(bytes);
        u64::from(hasher.finalize())
    }

    #[derive(Debug, Default)]
    pub struct Segment {
        pub outbox: Vec<u8>,
        pub incarnation: u64,
        pub number: u64,
        pub salt: u64,
        pub first_lsn: u64,
        pub last_acked: u64,
        pub previous: u64,
        pub previous_end: u64,
        pub start: u64,
        pub frames: Vec<Frame>,
    }

    #[derive(Debug)]
    pub struct Frame {
        pub kind: u64,
        pub first_lsn: u64,
        pub durable: u64,
        pub time: u64,
        pub offset: u64,
        pub synced_end: u64,
        pub count: u64,
        pub records: Vec<Record>,
    }

    #[derive(Debug, PartialEq)]
    pub enum Record {
        Message(Message),
        Dead { lsn: u64, attempts: u64, reason: String, first: u64, last: u64, message: Message },
        Settled { mark: u64, ranges: Vec<(u64, u64)>, totals: Vec<(u64, u64, String, String)> },
        Ranges { prefix: u64, ranges: Vec<(u64, u64)> },
        Route { count: u64, bytes: u64, oldest: u64, transport: String, destination: String },
        Segments(Vec<[u64; 5]>),
        End(u64, u64, u64),
        Seal(u64),
    }

    #[derive(Debug, PartialEq)]
    pub struct Message {
        pub id: Vec<u8>,
        pub lane: Vec<u8>,
        pub timestamp: u64,
        pub flags: u64,
        pub transport: String,
        pub destination: String,
        pub partition: Option<i64>,
        pub headers: Vec<(String, Option<Vec<u8>>)>,
        pub body: u64,
        pub fields: Vec<(u64, u64)>,
        pub key: Vec<u8>,
        pub payload: Vec<u8>,
    }

    pub fn segment(bytes: &[u8]) -> Segment {
        let mut header = Bytes(&bytes[..104]);
        assert_eq!(header.take(8), b"OUTLSEG\x01");
        assert_eq!((header.int(1), header.int(3)), (1, 0));
        assert_eq!(header.int(4), bytes.len() as u64);
        let mut segment = Segment {
            outbox: header.take(16).to_vec(),
            incarnation: header.int(8),
            number: header.int(8),
            salt: header.int(8),
            first_lsn: header.int(8),
            last_acked: header.int(8),
            previous: header.int(8),
            previous_end: header.int(4),
            start: header.int(4),
            frames: Vec::new(),
        };
        assert_eq!(header.take(12), [0; 12]);
        assert_eq!(header.int(4), crc(segment.salt, &bytes[..100]));
        let mut at = 4096;
        while at + 80 <= bytes.len() && bytes[at..at + 4] == *b"OLFR" {
            let (frame, length) = frame(&bytes[at..], &segment, at as u64);
            segment.frames.push(frame);
            at += length.div_ceil(4096) * 4096;
        }
        segment
    }

    fn frame(bytes: &[u8], segment: &Segment, at: u64) -> (Frame, usize) {
        let mut header = Bytes(&bytes[4..80]);
        assert_eq!(header.int(1), 1, "version");
        let kind = header.int(1);
        assert_eq!(header.int(2), 0, "flags");
        assert_eq!((header.int(8), header.int(8)), (segment.number, segment.salt));
        let (first_lsn, durable, time) = (header.int(8), header.int(8), header.int(8));
        let (offset, synced_end, count, records) = (header.int(4), header.int(4), header.int(4), header.int(4));
        let length = header.int(4) as usize;
        assert_eq!(header.int(4), 0, "reserved");
        let body = &bytes[80..80 + length];
        assert_eq!(header.int(4), crc(segment.salt, body));
        assert_eq!(header.int(4), crc(segment.salt, &bytes[..76]));
        assert_eq!(offset, at);
        let mut rest = Bytes(body);
        let records: Vec<Record> = (0..records).map(|_| record(&mut rest)).collect();
        assert!(rest.0.is_empty());
        let with_lsn = records.iter().filter(|r| matches!(r, Record::Message(_) | Record::Dead { .. })).count();
        assert_eq!(with_lsn as u64, count);
        (Frame { kind, first_lsn, durable, time, offset, synced_end, count, records }, 80 + length)
    }

    fn record(bytes: &mut Bytes<'_>) -> Record {
        let (tag, flags, length) = (bytes.int(1), bytes.int(3), bytes.int(4));
        assert_eq!(flags, 0);
        let mut content = Bytes(bytes.take(length as usize));
        let c = &mut content;
        let record = match tag {
            1 => Record::Message(message(c)),
            2 => {
                let (lsn, attempts, reason) = (c.int(8), c.int(4), c.int(4) as usize);
                let (first, last) = (c.int(8), c.int(8));
                Record::Dead { lsn, attempts, reason: c.text(reason), first, last, message: message(c) }
            }
            16 => {
                let (mark, _, ranges, totals) = (c.int(1), c.take(3), c.int(4), c.int(4));
                let ranges = (0..ranges).map(|_| (c.int(8), c.int(8))).collect();
                let totals = (0..totals).map(|_| {
                    let (count, bytes, t, d) = (c.int(8), c.int(8), c.int(4) as usize, c.int(4) as usize);
                    (count, bytes, c.text(t), c.text(d))
                });
                Record::Settled { mark, ranges, totals: totals.collect() }
            }
            17 => {
                let (prefix, count) = (c.int(8), c.int(4));
                Record::Ranges { prefix, ranges: (0..count).map(|_| (c.int(8), c.int(8))).collect() }
            }
            18 => {
                let (count, bytes, oldest, t, d) = (c.int(8), c.int(8), c.int(8), c.int(4) as usize, c.int(4) as usize);
                Record::Route { count, bytes, oldest, transport: c.text(t), destination: c.text(d) }
            }
            19 => {
                let count = c.int(4);
                let segment = |c: &mut Bytes<'_>| [c.int(8), c.int(8), c.int(8), c.int(4), c.int(4)];
                Record::Segments((0..count).map(|_| segment(c)).collect())
            }
            20 => Record::End(c.int(8), c.int(8), c.int(8)),
            21 => Record::Seal(c.int(8)),
            other => panic!("tag {other}"),
        };
        assert!(content.0.is_empty(), "{record:?} is followed by something");
        record
    }

    fn message(bytes: &mut Bytes<'_>) -> Message {
        let (id, lane, timestamp) = (bytes.take(16).to_vec(), bytes.take(16).to_vec(), bytes.int(8));
        let (flags, reserved) = (bytes.int(2), bytes.int(2));
        assert_eq!((flags >> 5, reserved), (0, 0));
        let (metadata, key, payload) = (bytes.int(4) as usize, bytes.int(4) as usize, bytes.int(4) as usize);
        let mut m = Bytes(bytes.take(metadata));
        let transport = String::from_utf8(m.bytes()).expect("UTF-8");
        let destination = String::from_utf8(m.bytes()).expect("UTF-8");
        let partition = m.option(Bytes::signed);
        let headers = m.number();
        let header = |m: &mut Bytes<'_>| (String::from_utf8(m.bytes()).expect("UTF-8"), m.option(Bytes::bytes));
        let headers = (0..headers).map(|_| header(&mut m)).collect();
        let body = m.int(1);
        let fields = if body == 2 { m.number() } else { 0 };
        let fields = (0..fields).map(|_| (m.number(), m.number())).collect();
        assert!(m.0.is_empty());
        let (key, payload) = (bytes.take(key).to_vec(), bytes.take(payload).to_vec());
        Message { id, lane, timestamp, flags, transport, destination, partition, headers, body, fields, key, payload }
    }
}

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
