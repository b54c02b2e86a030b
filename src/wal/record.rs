//! A message as bytes: a fixed header by hand, the metadata with bincode, key and payload raw.
//!
//! Decoding borrows from the frame; a message that is kept is copied out of it, so that a small one does not pin a
//! frame of megabytes.

use std::sync::Arc;

use bincode::config::{Configuration, standard};
use bytes::Bytes;

use super::codec::Input;
use super::error::DecodeError;
use super::{DeadLetter, EntryRef, Lsn};
use crate::config::{MAX_FIELDS, MAX_HEADERS};
use crate::message::{Body, Header, Lane, Message, MessageId, Outgoing, Route};

/// Bytes of a record's header: tag, flags, length.
pub(super) const RECORD_HEADER: usize = 8;
/// Bytes of a message's fixed part.
const FIXED: usize = 56;
/// Bytes of a dead letter before its reason.
const DEAD_FIXED: usize = 32;

/// Tags of records. Explicit, never reused; 3 is reserved for a held message with the LSN it had.
pub(super) const MESSAGE: u8 = 1;
pub(super) const DEAD: u8 = 2;

const HAS_LANE: u16 = 1;
const HAS_KEY: u16 = 2;
const NAMED_TRANSPORT: u16 = 4;
const GIVEN_TIMESTAMP: u16 = 8;
const GIVEN_ID: u16 = 16;
/// Flags this version knows. 32 is reserved for the source position of exactly-once sending.
const KNOWN: u16 = 31;

const PAYLOAD: u8 = 0;
const TOMBSTONE: u8 = 1;
const FIELDS: u8 = 2;

const BINCODE: Configuration = standard();

/// At most what the record takes in a frame, its header included; cheap to say.
pub(super) fn encoded_bound(entry: EntryRef<'_>) -> u64 {
    match entry {
        EntryRef::Message(outgoing) => bound(outgoing, 0),
        EntryRef::Dead(dead) => dead_bound(&dead.outgoing, dead.reason.len()),
    }
}

/// The same of a message with a reason of so many bytes.
pub(super) fn dead_bound(outgoing: &Outgoing, reason: usize) -> u64 {
    bound(outgoing, DEAD_FIXED + reason)
}

fn bound(outgoing: &Outgoing, extra: usize) -> u64 {
    // A length or number of bincode takes at most nine bytes.
    const NUMBER: usize = 9;
    let message = &outgoing.message;
    let fields = match &message.body {
        Body::Payload(_) => 0,
        Body::Fields(fields) => fields.len() * 2 * NUMBER,
    };
    let names = outgoing.route.transport.len() + outgoing.route.destination.len();
    let metadata = names + 5 * NUMBER + 1 + message.headers.len() * (2 * NUMBER + 1) + fields;
    (RECORD_HEADER + FIXED + extra + metadata + message.size()) as u64
}

/// Appends the record to a buffer.
pub(super) fn encode(buffer: &mut Vec<u8>, entry: EntryRef<'_>) -> Result<(), DecodeError> {
    let start = buffer.len();
    let (tag, outgoing) = match entry {
        EntryRef::Message(outgoing) => (MESSAGE, outgoing),
        EntryRef::Dead(dead) => (DEAD, &dead.outgoing),
    };
    begin_record(buffer, tag);
    if let EntryRef::Dead(dead) = entry {
        buffer.extend_from_slice(&dead.lsn.to_le_bytes());
        buffer.extend_from_slice(&dead.attempts.to_le_bytes());
        buffer.extend_from_slice(&(dead.reason.len() as u32).to_le_bytes());
        buffer.extend_from_slice(&dead.first_failure.to_le_bytes());
        buffer.extend_from_slice(&dead.last_failure.to_le_bytes());
        buffer.extend_from_slice(dead.reason.as_bytes());
    }
    if let Err(error) = encode_message(buffer, outgoing) {
        buffer.truncate(start);
        return Err(error);
    }
    end_record(buffer, start);
    Ok(())
}

/// Writes a record's header; [`end_record`] fills in the length.
pub(super) fn begin_record(buffer: &mut Vec<u8>, tag: u8) {
    buffer.extend_from_slice(&[tag, 0, 0, 0, 0, 0, 0, 0]);
}

pub(super) fn end_record(buffer: &mut [u8], start: usize) {
    let length = (buffer.len() - start - RECORD_HEADER) as u32;
    buffer[start + 4..start + 8].copy_from_slice(&length.to_le_bytes());
}

fn encode_message(buffer: &mut Vec<u8>, outgoing: &Outgoing) -> Result<(), DecodeError> {
    let message = &outgoing.message;
    let flag = |set: bool, flag: u16| if set { flag } else { 0 };
    let flags = flag(outgoing.lane.is_some(), HAS_LANE)
        | flag(message.key.is_some(), HAS_KEY)
        | flag(message.via.is_some(), NAMED_TRANSPORT)
        | flag(message.timestamp.is_some(), GIVEN_TIMESTAMP)
        | flag(message.id.is_some(), GIVEN_ID);
    buffer.extend_from_slice(&outgoing.id.to_bytes());
    buffer.extend_from_slice(&outgoing.lane.map_or(0, Lane::hash).to_le_bytes());
    buffer.extend_from_slice(&outgoing.timestamp.to_le_bytes());
    buffer.extend_from_slice(&flags.to_le_bytes());
    buffer.extend_from_slice(&[0; 2]);
    let lengths = buffer.len();
    buffer.extend_from_slice(&[0; 12]);
    let metadata = buffer.len();
    encode_metadata(buffer, outgoing)?;
    let key = buffer.len();
    buffer.extend_from_slice(message.key.as_deref().unwrap_or_default());
    let payload = buffer.len();
    match &message.body {
        Body::Payload(bytes) => buffer.extend_from_slice(bytes.as_deref().unwrap_or_default()),
        Body::Fields(fields) => fields.iter().for_each(|(name, value)| {
            buffer.extend_from_slice(name);
            buffer.extend_from_slice(value);
        }),
    }
    let end = buffer.len();
    for (at, length) in [(0, key - metadata), (4, payload - key), (8, end - payload)] {
        buffer[lengths + at..lengths + at + 4].copy_from_slice(&(length as u32).to_le_bytes());
    }
    Ok(())
}

fn encode_metadata(buffer: &mut Vec<u8>, outgoing: &Outgoing) -> Result<(), DecodeError> {
    fn put(buffer: &mut Vec<u8>, value: impl bincode::Encode) -> Result<(), DecodeError> {
        let encoded = bincode::encode_into_std_write(value, buffer, BINCODE);
        encoded.map(drop).map_err(|e| unreadable(0, e.to_string()))
    }
    let message = &outgoing.message;
    put(buffer, (&*outgoing.route.transport, &*outgoing.route.destination, message.partition))?;
    put(buffer, message.headers.len() as u64)?;
    for header in &message.headers {
        put(buffer, (&*header.name, header.value.as_deref()))?;
    }
    match &message.body {
        Body::Payload(Some(_)) => buffer.push(PAYLOAD),
        Body::Payload(None) => buffer.push(TOMBSTONE),
        Body::Fields(fields) => {
            buffer.push(FIELDS);
            put(buffer, fields.len() as u64)?;
            for (name, value) in fields {
                put(buffer, (name.len() as u64, value.len() as u64))?;
            }
        }
    }
    Ok(())
}

fn unreadable(offset: usize, reason: String) -> DecodeError {
    DecodeError::Unreadable { what: "metadata of a message", offset, reason }
}

/// A message, or a dead letter, still in the frame's bytes.
#[derive(Debug)]
pub(super) struct MessageView<'a> {
    pub transport: &'a str,
    pub destination: &'a str,
    pub timestamp: i64,
    id: MessageId,
    lane: Option<Lane>,
    flags: u16,
    partition: Option<i32>,
    headers: Vec<(&'a str, Option<&'a [u8]>)>,
    shape: Shape,
    key_length: usize,
    /// Key and payload.
    raw: &'a [u8],
    dead: Option<DeadView<'a>>,
}

#[derive(Debug)]
enum Shape {
    Payload,
    Tombstone,
    Fields(Vec<(u64, u64)>),
}

#[derive(Debug)]
struct DeadView<'a> {
    lsn: Lsn,
    attempts: u32,
    first_failure: i64,
    last_failure: i64,
    reason: &'a str,
}

/// Reads the content of a record with the tag [`MESSAGE`] or [`DEAD`].
pub(super) fn decode(tag: u8, content: &[u8]) -> Result<MessageView<'_>, DecodeError> {
    let mut input = Input::new(content);
    let dead = if tag == DEAD { Some(decode_dead(&mut input)?) } else { None };
    let id = MessageId::from_bytes(input.bytes16("message id")?);
    let lane = input.u128("lane")?;
    let timestamp = input.i64("timestamp")?;
    let flags = input.u16("message flags")?;
    if flags & !KNOWN != 0 {
        return Err(DecodeError::Newer { what: "message flags", found: u64::from(flags) });
    }
    let reserved = input.u16("reserved")?;
    input.exactly("reserved", u64::from(reserved), 0)?;
    let metadata_length = input.u32("metadata length")?;
    let key_length = input.u32("key length")?;
    let payload_length = input.u32("payload length")?;
    let metadata_at = input.offset();
    let metadata = input.take("metadata", u64::from(metadata_length))?;
    let raw = input.take("key and payload", u64::from(key_length) + u64::from(payload_length))?;
    input.end("message")?;
    let mut rest = Metadata { bytes: metadata, at: 0, offset: metadata_at };
    let (transport, destination, partition) = rest.value()?;
    let headers = rest.list(2, MAX_HEADERS as u64)?;
    let shape = rest.shape(u64::from(payload_length))?;
    if rest.at != metadata.len() {
        let left = (metadata.len() - rest.at) as u64;
        return Err(DecodeError::Trailing { what: "metadata", offset: metadata_at + rest.at, left });
    }
    if flags & HAS_KEY == 0 {
        input.exactly("length of an absent key", u64::from(key_length), 0)?;
    }
    if flags & HAS_LANE == 0 && lane != 0 {
        // The low half will do to show what is there.
        return Err(DecodeError::Value { what: "hash of an absent lane", offset: 16, expected: 0, found: lane as u64 });
    }
    let lane = (flags & HAS_LANE != 0).then_some(Lane(lane));
    let key_length = key_length as usize;
    Ok(MessageView {
        transport,
        destination,
        timestamp,
        id,
        lane,
        flags,
        partition,
        headers,
        shape,
        key_length,
        raw,
        dead,
    })
}

fn decode_dead<'a>(input: &mut Input<'a>) -> Result<DeadView<'a>, DecodeError> {
    let lsn = input.u64("LSN of a dead letter")?;
    let attempts = input.u32("attempts")?;
    let reason_length = input.u32("reason length")?;
    let first_failure = input.i64("first failure")?;
    let last_failure = input.i64("last failure")?;
    let reason = input.text("reason", u64::from(reason_length))?;
    Ok(DeadView { lsn, attempts, first_failure, last_failure, reason })
}

/// Bincode values, one after the other. Read singly, so that a count that lies costs no memory: a list grows with what
/// was read, and text and bytes are borrowed.
struct Metadata<'a> {
    bytes: &'a [u8],
    at: usize,
    offset: usize,
}

impl<'a> Metadata<'a> {
    fn value<T: bincode::BorrowDecode<'a, ()>>(&mut self) -> Result<T, DecodeError> {
        let rest = &self.bytes[self.at..];
        let (value, taken) = bincode::borrow_decode_from_slice(rest, BINCODE)
            .map_err(|e| unreadable(self.offset + self.at, e.to_string()))?;
        self.at += taken;
        Ok(value)
    }

    /// A list whose items take at least `each` bytes, and of which there are at most so many.
    fn list<T: bincode::BorrowDecode<'a, ()>>(&mut self, each: u64, most: u64) -> Result<Vec<T>, DecodeError> {
        let offset = self.offset + self.at;
        let count: u64 = self.value()?;
        if count > most {
            return Err(DecodeError::Value { what: "length of a list", offset, expected: most, found: count });
        }
        let left = (self.bytes.len() - self.at) as u64;
        if count.saturating_mul(each) > left {
            let (what, offset, needed) = ("list in metadata", self.offset + self.at, count.saturating_mul(each));
            return Err(DecodeError::Short { what, offset, needed, left });
        }
        (0..count).map(|_| self.value()).collect()
    }

    fn shape(&mut self, payload_length: u64) -> Result<Shape, DecodeError> {
        let offset = self.offset + self.at;
        let (shape, length) = match self.value::<u8>()? {
            PAYLOAD => (Shape::Payload, payload_length),
            TOMBSTONE => (Shape::Tombstone, 0),
            FIELDS => {
                let fields: Vec<(u64, u64)> = self.list(2, MAX_FIELDS as u64)?;
                let length = fields.iter().fold(0u64, |sum, (k, v)| sum.saturating_add(*k).saturating_add(*v));
                (Shape::Fields(fields), length)
            }
            found => return Err(DecodeError::Newer { what: "body of a message", found: u64::from(found) }),
        };
        if length != payload_length {
            let what = "payload length";
            return Err(DecodeError::Value { what, offset, expected: length, found: payload_length });
        }
        Ok(shape)
    }
}

impl MessageView<'_> {
    /// What [`Message::size`] says of it.
    pub fn size(&self) -> u64 {
        let headers = self.headers.iter().map(|(name, value)| name.len() + value.map_or(0, <[u8]>::len));
        (self.raw.len() + headers.sum::<usize>()) as u64
    }

    /// Copies the message out. `last` is the route of the one before, whose names are shared if they are the same.
    pub fn to_owned(&self, last: &mut Option<Route>) -> super::Entry {
        let route = match last {
            Some(route) if &*route.transport == self.transport && &*route.destination == self.destination => {
                route.clone()
            }
            _ => last.insert(Route { transport: self.transport.into(), destination: self.destination.into() }).clone(),
        };
        let raw = Bytes::copy_from_slice(self.raw);
        let payload = raw.slice(self.key_length..);
        let body = match &self.shape {
            Shape::Payload => Body::Payload(Some(payload)),
            Shape::Tombstone => Body::Payload(None),
            Shape::Fields(lengths) => Body::Fields(cut(&payload, lengths)),
        };
        let header = |(name, value): &(&str, Option<&[u8]>)| Header {
            name: Arc::from(*name),
            value: value.map(Bytes::copy_from_slice),
        };
        let has = |flag: u16| self.flags & flag != 0;
        let message = Message {
            via: has(NAMED_TRANSPORT).then(|| route.transport.clone()),
            to: route.destination.clone(),
            key: has(HAS_KEY).then(|| raw.slice(..self.key_length)),
            body,
            headers: self.headers.iter().map(header).collect(),
            timestamp: has(GIVEN_TIMESTAMP).then_some(self.timestamp),
            partition: self.partition,
            id: has(GIVEN_ID).then_some(self.id),
        };
        let outgoing = Outgoing { id: self.id, route, lane: self.lane, timestamp: self.timestamp, message };
        match &self.dead {
            None => super::Entry::Message(outgoing),
            Some(dead) => super::Entry::Dead(DeadLetter {
                lsn: dead.lsn,
                outgoing,
                reason: dead.reason.to_owned(),
                attempts: dead.attempts,
                first_failure: dead.first_failure,
                last_failure: dead.last_failure,
            }),
        }
    }
}

/// Cuts the fields out of their bytes; the decoder has checked that the lengths add up to them.
fn cut(bytes: &Bytes, lengths: &[(u64, u64)]) -> Vec<(Bytes, Bytes)> {
    let mut at = 0;
    let mut next = |length: u64| {
        let start = at;
        at += length as usize;
        bytes.slice(start..at)
    };
    lengths.iter().map(|&(name, value)| (next(name), next(value))).collect()
}
