//! What an application hands over: a [`Message`], and what the library makes of it once it is accepted.
//!
//! Plain types. Nothing here knows a broker, the log or a lock; bytes that came in go out unchanged.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use xxhash_rust::xxh3::Xxh3;

/// The name of the Kafka header and of the Redis field that carries the [`MessageId`].
///
/// A message that brings a header or field of this name is refused: the name is the library's.
pub const ID_HEADER: &str = "outlast-id";

/// The name of the Kafka header that carries the time of a message whose record has another: the time of delivery.
///
/// In milliseconds since 1970, in decimal digits. Only such records have it: the topic's settings would have had the
/// broker refuse the message's own time, or delete the record soon. The time is that of acceptance, or, where the
/// application gave one and `expired-times=restamp` or `dead requeue --restamp` gave it up, the application's. A message
/// that brings a header or field of this name is refused: the name is the library's.
pub const ACCEPTED_HEADER: &str = "outlast-accepted";

/// A message's identity: the same in every attempt, so a duplicate can be told from a second message.
///
/// 128 bits: the incarnation of the outbox that accepted it, drawn at random at each open, and a number
/// that counts from one within it. It travels as a Kafka header of 16 bytes (big-endian), and as 32
/// hexadecimal digits in Redis, JSON and the program.
///
/// ```
/// use outlast::MessageId;
/// let id = MessageId::new(0xfeed, 7);
/// assert_eq!(id.to_string(), "000000000000feed0000000000000007");
/// assert_eq!(id.to_string().parse(), Ok(id));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MessageId(u128);

impl MessageId {
    /// The `number`th message of an incarnation.
    pub const fn new(incarnation: u64, number: u64) -> Self {
        Self(((incarnation as u128) << 64) | number as u128)
    }

    /// The incarnation of the outbox that accepted the message first.
    pub const fn incarnation(self) -> u64 {
        (self.0 >> 64) as u64
    }

    /// The message's number within its incarnation, from one.
    pub const fn number(self) -> u64 {
        self.0 as u64
    }

    /// The 16 bytes of the Kafka header, big-endian.
    pub const fn to_bytes(self) -> [u8; 16] {
        self.0.to_be_bytes()
    }

    /// Reads back what [`to_bytes`](Self::to_bytes) wrote.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(u128::from_be_bytes(bytes))
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Text that is not the 32 hexadecimal digits of a [`MessageId`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a message id is 32 hexadecimal digits")]
pub struct ParseMessageIdError;

impl FromStr for MessageId {
    type Err = ParseMessageIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() != 32 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(ParseMessageIdError);
        }
        u128::from_str_radix(text, 16).map(Self).map_err(|_| ParseMessageIdError)
    }
}

impl Serialize for MessageId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for MessageId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A header: a name and a value, which may be null.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The name; not empty, not [`ID_HEADER`] nor [`ACCEPTED_HEADER`]. Names may repeat.
    pub name: Arc<str>,
    /// The value; `None` is Kafka's null, which is not the empty value.
    pub value: Option<Bytes>,
}

/// What a message carries.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Body {
    /// Bytes, or null: a tombstone in a compacted topic.
    Payload(Option<Bytes>),
    /// The fields of a Redis stream entry, in order, as they are. Kafka refuses such a message.
    Fields(Vec<(Bytes, Bytes)>),
}

/// What an application hands over.
///
/// ```
/// use outlast::Message;
/// let order = Message::to("orders").key("cust-42").payload(r#"{"sku":17}"#).header("trace", "4bf9");
/// assert_eq!(order.destination(), "orders");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    pub(crate) via: Option<Arc<str>>,
    pub(crate) to: Arc<str>,
    pub(crate) key: Option<Bytes>,
    pub(crate) body: Body,
    pub(crate) headers: Vec<Header>,
    pub(crate) timestamp: Option<i64>,
    pub(crate) partition: Option<i32>,
    pub(crate) id: Option<MessageId>,
}

impl Message {
    /// A message for a topic or stream, with an empty payload. The name must be one that the broker allows (Kafka: at
    /// most 249 of `a-z A-Z 0-9 . _ -`), or [`Invalid`](crate::SendErrorKind::Invalid) is what `send` says.
    pub fn to(destination: impl Into<Arc<str>>) -> Self {
        Self {
            via: None,
            to: destination.into(),
            key: None,
            body: Body::Payload(Some(Bytes::new())),
            headers: Vec::new(),
            timestamp: None,
            partition: None,
            id: None,
        }
    }

    /// Names the transport; without it the first configured one takes the message.
    pub fn via(mut self, transport: impl Into<Arc<str>>) -> Self {
        self.via = Some(transport.into());
        self
    }

    /// Sets the key: messages of one key keep their order (see [`Order`](crate::Order)).
    pub fn key(mut self, key: impl Into<Bytes>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// Sets the payload.
    pub fn payload(mut self, payload: impl Into<Bytes>) -> Self {
        self.body = Body::Payload(Some(payload.into()));
        self
    }

    /// Makes the payload null: a tombstone. Redis, which knows no null, gets an entry without a payload field.
    pub fn tombstone(mut self) -> Self {
        self.body = Body::Payload(None);
        self
    }

    /// Sets the payload to the JSON text of a value.
    ///
    /// # Errors
    /// The value cannot be written as JSON (a map with keys that are not text, say).
    #[cfg(feature = "json")]
    pub fn json(self, value: &impl Serialize) -> Result<Self, serde_json::Error> {
        Ok(self.payload(serde_json::to_vec(value)?))
    }

    /// Sets the fields of a Redis stream entry, written as they are; at most 65,536; replaces the payload.
    pub fn fields<K: Into<Bytes>, V: Into<Bytes>>(mut self, fields: impl IntoIterator<Item = (K, V)>) -> Self {
        self.body = Body::Fields(fields.into_iter().map(|(k, v)| (k.into(), v.into())).collect());
        self
    }

    /// Adds a header, behind those there are; at most 1,000. The name must not be empty, nor [`ID_HEADER`] or
    /// [`ACCEPTED_HEADER`].
    pub fn header(mut self, name: impl Into<Arc<str>>, value: impl Into<Bytes>) -> Self {
        self.headers.push(Header { name: name.into(), value: Some(value.into()) });
        self
    }

    /// Adds a header with a null value.
    pub fn null_header(mut self, name: impl Into<Arc<str>>) -> Self {
        self.headers.push(Header { name: name.into(), value: None });
        self
    }

    /// Sets the timestamp, in milliseconds since 1970; without it the time of acceptance is stamped, and the time of
    /// delivery takes its place where the topic's settings are against it. One that is set stays; where a Kafka topic
    /// is against it, the option `expired-times` chooses (see `outlast::transport::kafka::ExpiredTimes`): by default
    /// the message waits.
    pub fn timestamp(mut self, unix_millis: i64) -> Self {
        self.timestamp = Some(unix_millis);
        self
    }

    /// Chooses the Kafka partition, from zero; without it the configured partitioner does. Redis ignores it. A message
    /// for a partition that the topic lacks waits until it has it.
    pub fn partition(mut self, partition: i32) -> Self {
        self.partition = Some(partition);
        self
    }

    /// The topic or stream.
    pub fn destination(&self) -> &str {
        &self.to
    }

    /// The transport it names, if it does.
    pub fn transport(&self) -> Option<&str> {
        self.via.as_deref()
    }

    /// The key.
    pub fn key_bytes(&self) -> Option<&Bytes> {
        self.key.as_ref()
    }

    /// What it carries.
    pub fn body(&self) -> &Body {
        &self.body
    }

    /// The payload; `None` for a tombstone and for a field map.
    pub fn payload_bytes(&self) -> Option<&Bytes> {
        match &self.body {
            Body::Payload(payload) => payload.as_ref(),
            Body::Fields(_) => None,
        }
    }

    /// The headers, in order.
    pub fn headers(&self) -> &[Header] {
        &self.headers
    }

    /// The timestamp, if it was set.
    pub fn timestamp_millis(&self) -> Option<i64> {
        self.timestamp
    }

    /// The partition, if one was chosen.
    pub fn chosen_partition(&self) -> Option<i32> {
        self.partition
    }

    /// The id, which a message has once a `send` of it has failed: sending it again keeps it.
    pub fn id(&self) -> Option<MessageId> {
        self.id
    }

    /// Bytes of key, headers and payload or fields: what `max_message_bytes` limits.
    pub fn size(&self) -> usize {
        let body = match &self.body {
            Body::Payload(payload) => payload.as_ref().map_or(0, Bytes::len),
            Body::Fields(fields) => fields.iter().map(|(k, v)| k.len() + v.len()).sum(),
        };
        let headers: usize = self.headers.iter().map(|h| h.name.len() + h.value.as_ref().map_or(0, Bytes::len)).sum();
        self.key.as_ref().map_or(0, Bytes::len) + body + headers
    }
}

/// A transport and a destination on it: a topic, a stream.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Route {
    /// The transport's name.
    pub transport: Arc<str>,
    /// The topic or stream.
    pub destination: Arc<str>,
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.transport, self.destination)
    }
}

/// The unit of order as a 128-bit hash of route and key; `None` where a message has no order to keep.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lane(pub(crate) u128);

impl Lane {
    /// The lane of a key of a route, or (without a key) of the whole route.
    ///
    /// The hash is XXH3-128 over the parts, each behind its length, so that no two different lanes share their
    /// input. It is written to the ledger: it must never change.
    pub fn of(route: &Route, key: Option<&[u8]>) -> Self {
        let mut hash = Xxh3::new();
        for part in [Some(route.transport.as_bytes()), Some(route.destination.as_bytes()), key] {
            let length = part.map_or(u64::MAX, |bytes| bytes.len() as u64);
            hash.update(&length.to_le_bytes());
            hash.update(part.unwrap_or_default());
        }
        Self(hash.digest128())
    }

    /// The hash.
    pub const fn hash(self) -> u128 {
        self.0
    }
}

impl fmt::Debug for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "lane:{:032x}", self.0)
    }
}

/// An accepted message on its way: what a [`Transport`](crate::transport::Transport) is handed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outgoing {
    /// The identity, the same in every attempt.
    pub id: MessageId,
    /// Where it goes.
    pub route: Route,
    /// The unit of order it belongs to; `None`: it may be delivered in any order.
    pub lane: Option<Lane>,
    /// Milliseconds since 1970: the application's, or the time of acceptance.
    pub timestamp: i64,
    /// Key, body, headers, chosen partition.
    pub message: Message,
}

/// Where the broker put a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Position {
    /// Kafka, and the broker of `outlast::testing`.
    Offset {
        /// The partition, from zero.
        partition: i32,
        /// The offset within it, from zero.
        offset: i64,
    },
    /// The id of a Redis stream entry.
    Entry {
        /// Milliseconds, by the server's clock.
        millis: u64,
        /// The number within the millisecond.
        sequence: u64,
    },
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Offset { partition, offset } => write!(f, "{partition}@{offset}"),
            Self::Entry { millis, sequence } => write!(f, "{millis}-{sequence}"),
        }
    }
}
