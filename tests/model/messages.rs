//! The messages that are sent: of every shape the format knows, each told by its number.

use outlast::{Lane, Message, MessageId, Outgoing, Route};

const ROUTES: [(&str, &str); 3] = [("kafka", "orders"), ("kafka", "payments"), ("redis", "a-stream-with-a-long-name")];

/// The message of a number, with a body of about so many bytes.
pub fn outgoing(number: usize, route: u8, key: u8, size: u16) -> Outgoing {
    let (transport, destination) = ROUTES[usize::from(route) % ROUTES.len()];
    let route = Route { transport: transport.into(), destination: destination.into() };
    let mut message = Message::to(destination);
    let key = format!("key-{}", key % 5);
    let mut lane = None;
    if number % 7 != 3 {
        lane = Some(Lane::of(&route, Some(key.as_bytes())));
        message = message.key(key);
    }
    message = match number % 11 {
        5 => message.tombstone(),
        6 => message.fields([("a", vec![number as u8; usize::from(size) / 2]), ("b", vec![1; usize::from(size) / 2])]),
        _ => message.payload(vec![number as u8; usize::from(size)]),
    };
    if number.is_multiple_of(3) {
        message = message.header("trace", "4bf9").null_header("empty");
    }
    let timestamp = 1_700_000_000_000 + number as i64;
    Outgoing { id: MessageId::new(0xfeed, number as u64), route, lane, timestamp, message }
}
