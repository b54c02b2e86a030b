//! A reader of the log, written from `src/wal/FORMAT.md` alone. It panics on anything that is not as it says there.

// Each test file uses its part of it.
#![allow(dead_code)]

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
