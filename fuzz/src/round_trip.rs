//! Any message: what is encoded decodes to the same, within the bound that space is reserved by.

use std::sync::Arc;

use bytes::Bytes;
use outlast::internals::wal::{DeadLetter, Entry, EntryRef, Identity, Wal, decode_frame, probe, wrap};
use outlast::{Lane, Message, MessageId, Outgoing, Route};

use super::input::Input;

/// Bytes of a record in front of its content.
const RECORD_HEADER: usize = 8;

pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let dead = input.flag();
    let outgoing = outgoing(&mut input);
    if !dead {
        let record = written(EntryRef::Message(&outgoing));
        let Ok(Entry::Message(read)) = probe::decode_record(1, &record[RECORD_HEADER..]) else { panic!("unreadable") };
        same(&read, &outgoing);
        return;
    }
    let (lsn, attempts) = (input.u64(), input.u32());
    let (first_failure, last_failure) = (input.u64() as i64, input.u64() as i64);
    let letter = DeadLetter { lsn, outgoing, reason: input.text(), attempts, first_failure, last_failure };
    let record = written(EntryRef::Dead(&letter));
    let Ok(Entry::Dead(read)) = probe::decode_record(2, &record[RECORD_HEADER..]) else { panic!("unreadable") };
    same(&read.outgoing, &letter.outgoing);
    assert_eq!((read.lsn, &read.reason, read.attempts), (lsn, &letter.reason, attempts));
    assert_eq!((read.first_failure, read.last_failure), (first_failure, last_failure));
}

/// The record, which alone in a frame takes no more than its footprint and is read from it.
fn written(entry: EntryRef<'_>) -> Vec<u8> {
    let record = probe::encode_record(entry).expect("any message can be written");
    let identity = Identity { segment: 1, salt: Some(2), offset: 4096, limit: 64 << 20 };
    let frame = wrap(&record, 1, 1, &identity);
    assert!(frame.len() as u64 <= Wal::footprint(entry), "{} bytes are more than the footprint", frame.len());
    let read = decode_frame(&frame, &identity).expect("a good frame");
    assert_eq!(read.entries().expect("good records").len(), 1);
    record
}

fn outgoing(input: &mut Input<'_>) -> Outgoing {
    let route = Route { transport: input.text().into(), destination: input.text().into() };
    let has = input.u8();
    let mut message = Message::to(route.destination.clone());
    if has & 1 != 0 {
        message = message.via(route.transport.clone());
    }
    if has & 2 != 0 {
        message = message.key(bytes(input.counted()));
    }
    for _ in 0..input.below(6) {
        let name: Arc<str> = input.text().into();
        message = if input.flag() { message.header(name, bytes(input.counted())) } else { message.null_header(name) };
    }
    if has & 4 != 0 {
        message = message.partition(input.u32() as i32);
    }
    let mut timestamp = input.u64() as i64;
    if has & 8 != 0 {
        timestamp = timestamp.wrapping_mul(1000);
        message = message.timestamp(timestamp);
    }
    message = match input.below(3) {
        0 => message.payload(bytes(input.counted())),
        1 => message.tombstone(),
        _ => {
            let count = input.below(40);
            let fields: Vec<_> = (0..count).map(|_| (bytes(input.counted()), bytes(input.counted()))).collect();
            message.fields(fields)
        }
    };
    let lane = (has & 16 != 0).then(|| Lane::of(&route, message.key_bytes().map(|key| &key[..])));
    let id = MessageId::new(input.u64(), input.u64());
    Outgoing { id, route, lane, timestamp, message }
}

fn bytes(slice: &[u8]) -> Bytes {
    Bytes::copy_from_slice(slice)
}

fn same(read: &Outgoing, sent: &Outgoing) {
    assert_eq!((read.id, &read.route, read.lane, read.timestamp), (sent.id, &sent.route, sent.lane, sent.timestamp));
    assert_eq!(read.message, sent.message);
}
