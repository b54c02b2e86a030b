//! A message as the entry of a stream: the `XADD` that writes it.
//!
//! Bytes are never changed. A field map goes in as it is; a payload and a key go into fields of their own. The id
//! follows, then the headers.

use redis::Cmd;

use super::config::{RedisConfig, Trim};
use crate::message::{Body, Message, Outgoing};

/// Whether Redis could ever take the message.
pub(super) fn check(config: &RedisConfig, message: &Message) -> Result<(), String> {
    if message.destination().is_empty() {
        return Err("the name of the stream is empty".to_owned());
    }
    if let Body::Fields(fields) = message.body() {
        if fields.is_empty() {
            return Err("a field map without fields; an entry of a stream needs one at least".to_owned());
        }
        if fields.iter().any(|(name, _)| name == config.fields.id.as_bytes()) {
            return Err(format!("a field named {:?}, which is where the id goes", config.fields.id));
        }
    }
    Ok(())
}

/// The command that appends the message.
pub(super) fn command(config: &RedisConfig, outgoing: &Outgoing) -> Cmd {
    let names = &config.fields;
    let message = &outgoing.message;
    let stream = &*outgoing.route.destination;
    // Room for the command, the trim, the id and the framing of a handful of fields.
    let mut xadd = Cmd::with_capacity(16 + 2 * message.headers().len(), message.size() + stream.len() + 128);
    xadd.arg("XADD").arg(stream);
    match config.trim_of(stream) {
        None => {}
        Some(Trim::MaxLen(entries)) => {
            xadd.arg("MAXLEN").arg("~").arg(*entries);
        }
        Some(Trim::MinId(id)) => {
            xadd.arg("MINID").arg("~").arg(id);
        }
    }
    xadd.arg("*");
    match message.body() {
        Body::Fields(fields) => {
            for (name, value) in fields {
                xadd.arg(&name[..]).arg(&value[..]);
            }
        }
        Body::Payload(payload) => {
            if let Some(payload) = payload {
                xadd.arg(&names.payload).arg(&payload[..]);
            }
            if let Some(key) = message.key_bytes() {
                xadd.arg(&names.key).arg(&key[..]);
            }
        }
    }
    xadd.arg(&names.id).arg(outgoing.id.to_string());
    for header in message.headers() {
        if let Some(value) = &header.value {
            xadd.arg(format!("{}{}", names.header_prefix, header.name)).arg(&value[..]);
        }
    }
    xadd
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{MessageId, Route};

    fn words(config: &RedisConfig, message: Message) -> Vec<String> {
        let route = Route { transport: "redis".into(), destination: message.destination().into() };
        let outgoing = Outgoing { id: MessageId::new(1, 2), route, lane: None, timestamp: 0, message };
        let text = |arg| match arg {
            redis::Arg::Simple(bytes) => String::from_utf8_lossy(bytes).into_owned(),
            other => panic!("{other:?}"),
        };
        command(config, &outgoing).args_iter().map(text).collect()
    }

    const ID: &str = "00000000000000010000000000000002";

    #[test]
    fn payload_key_id_and_headers_have_their_fields() {
        let message = Message::to("s").key("k").payload("p").header("a", "1").null_header("gone").header("a", "");
        let expected = ["XADD", "s", "*", "payload", "p", "key", "k", "outlast-id", ID, "h:a", "1", "h:a", ""];
        assert_eq!(words(&RedisConfig::default(), message), expected);
    }

    #[test]
    fn a_tombstone_has_no_payload_field() {
        let words = words(&RedisConfig::default(), Message::to("s").tombstone());
        assert_eq!(words, ["XADD", "s", "*", "outlast-id", ID]);
    }

    #[test]
    fn a_field_map_goes_in_as_it_is_under_configured_names_and_trims() {
        let mut config = RedisConfig::from_url(&"redis://h?id-field=mid&maxlen=9".parse().unwrap()).unwrap();
        config.streams.insert("t".to_owned(), Trim::MinId("5-0".to_owned()));
        let message = |stream: &str| Message::to(stream).key("k").fields([("b", "2"), ("a", "1"), ("b", "3")]);
        let tail = ["*", "b", "2", "a", "1", "b", "3", "mid", ID];
        assert_eq!(words(&config, message("s")), [&["XADD", "s", "MAXLEN", "~", "9"][..], &tail].concat());
        assert_eq!(words(&config, message("t")), [&["XADD", "t", "MINID", "~", "5-0"][..], &tail].concat());
    }

    #[test]
    fn what_no_stream_can_take_is_refused() {
        let config = RedisConfig::default();
        assert!(check(&config, &Message::to("")).unwrap_err().contains("stream"));
        let none: [(&str, &str); 0] = [];
        assert!(check(&config, &Message::to("s").fields(none)).unwrap_err().contains("without fields"));
        assert!(check(&config, &Message::to("s").fields([("outlast-id", "x")])).unwrap_err().contains("outlast-id"));
        assert!(check(&config, &Message::to("s").tombstone()).is_ok());
    }
}
