//! From a record of rdkafka's `FutureProducer` to a [`Message`], so that an application changes over line by line.

use bytes::Bytes;
use rdkafka::message::{Headers, ToBytes};
use rdkafka::producer::FutureRecord;

use crate::message::Message;

/// Null and empty stay apart in key, payload and header values; an explicit partition and timestamp stay. A
/// timestamp of 0 means "now" in librdkafka, and so becomes none.
impl<K: ToBytes + ?Sized, P: ToBytes + ?Sized> From<FutureRecord<'_, K, P>> for Message {
    fn from(record: FutureRecord<'_, K, P>) -> Self {
        let mut message = Message::to(record.topic);
        message = match record.payload {
            Some(payload) => message.payload(Bytes::copy_from_slice(payload.to_bytes())),
            None => message.tombstone(),
        };
        if let Some(key) = record.key {
            message = message.key(Bytes::copy_from_slice(key.to_bytes()));
        }
        if let Some(headers) = &record.headers {
            for header in headers.iter() {
                message = match header.value {
                    Some(value) => message.header(header.key, Bytes::copy_from_slice(value)),
                    None => message.null_header(header.key),
                };
            }
        }
        // A negative partition is librdkafka's way to say "choose one".
        if let Some(partition) = record.partition.filter(|&partition| partition >= 0) {
            message = message.partition(partition);
        }
        if let Some(timestamp) = record.timestamp.filter(|&timestamp| timestamp != 0) {
            message = message.timestamp(timestamp);
        }
        message
    }
}

#[cfg(test)]
mod tests {
    use rdkafka::message::{Header, OwnedHeaders};

    use super::*;

    #[test]
    fn null_payloads_partitions_and_null_header_values_survive() {
        let headers = OwnedHeaders::new()
            .insert(Header { key: "trace", value: Some("4bf9") })
            .insert(Header::<&str> { key: "null", value: None })
            .insert(Header { key: "empty", value: Some("") });
        let record = FutureRecord::<str, str>::to("orders").key("k").partition(3).timestamp(7).headers(headers);
        let message = Message::from(record);
        let expected = Message::to("orders").tombstone().key("k").partition(3).timestamp(7);
        assert_eq!(message, expected.header("trace", "4bf9").null_header("null").header("empty", ""));
        let empty = FutureRecord::<str, str>::to("orders").payload("").key("");
        assert_eq!(Message::from(empty), Message::to("orders").payload("").key(""), "empty is not null");
    }

    #[test]
    fn what_librdkafka_takes_for_unset_is_unset() {
        let record = FutureRecord::<str, str>::to("orders").payload("p").partition(-1).timestamp(0);
        assert_eq!(Message::from(record), Message::to("orders").payload("p"));
    }
}
