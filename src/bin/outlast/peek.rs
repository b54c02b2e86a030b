//! `outlast peek`: the oldest pending messages of an outbox.

use outlast::admin::{self, PendingMessage};
use serde_json::{Value, json};

use crate::args::Peek;
use crate::exit::{Exit, Problem};
use crate::output;

/// Bytes of a payload shown on a line.
const EXCERPT: usize = 160;

/// Looks, changes nothing; works beside a running producer.
pub fn run(args: &Peek) -> Result<Exit, Problem> {
    for message in admin::peek(&args.outbox, args.limit).map_err(Problem::failed)? {
        if args.json {
            output::json(&as_json(&message))?;
        } else {
            output::line(&format!(
                "{} {} {}{}",
                message.lsn,
                message.id,
                message.route,
                content(&message.key, &message.payload)
            ))?;
        }
    }
    Ok(Exit::Done)
}

/// Key and payload, for a line.
pub fn content(key: &Option<bytes::Bytes>, payload: &Option<bytes::Bytes>) -> String {
    let key = key.as_ref().map_or(String::new(), |key| format!(" [{}]", output::excerpt(key, EXCERPT)));
    match payload {
        Some(payload) => format!("{key} {}", output::excerpt(payload, EXCERPT)),
        None => format!("{key} (null)"),
    }
}

fn as_json(message: &PendingMessage) -> Value {
    json!({
        "lsn": message.lsn,
        "id": message.id,
        "route": message.route,
        "key": message.key.as_ref().map(|key| bytes_as_json(key)),
        "payload": message.payload.as_ref().map(|payload| bytes_as_json(payload)),
        "headers": headers_as_json(&message.headers),
        "timestamp": message.timestamp,
    })
}

/// Headers as pairs, since names may repeat.
pub fn headers_as_json(headers: &[outlast::Header]) -> Value {
    headers
        .iter()
        .map(|header| json!([&*header.name, header.value.as_ref().map(|value| bytes_as_json(value))]))
        .collect()
}

/// Text as it is; anything else as `{"hex": "…"}`, so that the two cannot be mistaken for each other.
pub fn bytes_as_json(bytes: &[u8]) -> Value {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.into(),
        Err(_) => json!({ "hex": bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>() }),
    }
}
