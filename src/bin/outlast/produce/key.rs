//! What a message is keyed by, and how a line becomes a message.

use std::str::FromStr;
use std::sync::Arc;

use bytes::Bytes;
use outlast::Message;
use serde_json::Value;

use crate::args::Format;

/// The value of `--key`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyFrom {
    /// No key, no order.
    None,
    /// A blank-separated field of the line, counted from zero here, from one on the command line.
    Field(usize),
    /// A JSON pointer (RFC 6901) into the line.
    Json(String),
}

impl FromStr for KeyFrom {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "none" => Ok(Self::None),
            Some(("field", number)) => match number.parse::<usize>() {
                Ok(number) if number > 0 => Ok(Self::Field(number - 1)),
                _ => Err("fields are counted from 1, as in field:1".into()),
            },
            Some(("json", pointer)) if pointer.starts_with('/') => Ok(Self::Json(pointer.into())),
            Some(("json", _)) => Err("a JSON pointer starts with a slash, as in json:/customer/id".into()),
            _ => Err("expected none, field:N or json:/POINTER".into()),
        }
    }
}

/// Makes messages of lines.
#[derive(Clone)]
pub struct Composer {
    /// The topic or stream.
    pub destination: Arc<str>,
    /// What a line must be.
    pub format: Format,
    /// What becomes the key.
    pub key: KeyFrom,
}

impl Composer {
    /// A message whose payload is the line, unchanged.
    ///
    /// # Errors
    /// Says what the line lacks.
    pub fn compose(&self, line: Vec<u8>) -> Result<Message, String> {
        let key = match (self.format, &self.key) {
            (Format::Lines, _) => None,
            (Format::Json, KeyFrom::Json(pointer)) => {
                let value: Value = serde_json::from_slice(&line).map_err(|e| format!("not JSON: {e}"))?;
                Some(json_key(&value, pointer)?)
            }
            (Format::Json, _) => {
                // Checked to its end, but not built.
                serde_json::from_slice::<serde::de::IgnoredAny>(&line).map_err(|e| format!("not JSON: {e}"))?;
                None
            }
        };
        let payload = Bytes::from(line);
        let key = match self.key {
            // It shares the payload's memory.
            KeyFrom::Field(number) => field(&payload, number).map(|field| payload.slice_ref(field)),
            KeyFrom::None | KeyFrom::Json(_) => key,
        };
        let message = Message::to(self.destination.clone()).payload(payload);
        Ok(match key {
            Some(key) => message.key(key),
            None => message,
        })
    }
}

/// A field among those that blanks and tabs separate; a run of them counts as one.
fn field(line: &[u8], number: usize) -> Option<&[u8]> {
    line.split(|byte| *byte == b' ' || *byte == b'\t').filter(|field| !field.is_empty()).nth(number)
}

fn json_key(value: &Value, pointer: &str) -> Result<Bytes, String> {
    match value.pointer(pointer) {
        Some(Value::String(text)) => Ok(Bytes::copy_from_slice(text.as_bytes())),
        Some(plain @ (Value::Number(_) | Value::Bool(_))) => Ok(Bytes::from(plain.to_string())),
        Some(Value::Null) | None => Err(format!("nothing at {pointer} to take as the key")),
        Some(Value::Array(_) | Value::Object(_)) => {
            Err(format!("what is at {pointer} is no key: expected a string, a number or a boolean"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(format: Format, key: &str, line: &[u8]) -> Result<Option<Vec<u8>>, String> {
        let composer = Composer { destination: "orders".into(), format, key: key.parse().unwrap() };
        let message = composer.compose(line.to_vec())?;
        assert_eq!(message.payload_bytes().map(|bytes| &bytes[..]), Some(line), "the line is the payload, unchanged");
        Ok(message.key_bytes().map(|key| key.to_vec()))
    }

    #[test]
    fn a_field_is_what_blanks_separate() {
        for (line, first, second) in [
            (&b"10.0.0.1 - x"[..], Some(&b"10.0.0.1"[..]), Some(&b"-"[..])),
            (b" \ta \xff", Some(b"a"), Some(b"\xff")),
            (b"", None, None),
            (b"  ", None, None),
            (b"one", Some(b"one"), None),
        ] {
            assert_eq!(key(Format::Lines, "field:1", line).unwrap().as_deref(), first, "{line:?}");
            assert_eq!(key(Format::Lines, "field:2", line).unwrap().as_deref(), second, "{line:?}");
            assert_eq!(key(Format::Lines, "none", line).unwrap(), None);
        }
    }

    #[test]
    fn a_json_key_is_text_as_it_is_and_numbers_as_they_are_written() {
        for (line, expected) in [
            (r#"{"a":{"b":"x y"}}"#, "x y"),
            (r#"{"a":{"b":17}}"#, "17"),
            (r#"{"a":{"b":true}}"#, "true"),
            (r#" {"a":{"b":"ü"}} "#, "ü"),
        ] {
            assert_eq!(key(Format::Json, "json:/a/b", line.as_bytes()), Ok(Some(expected.into())), "{line}");
        }
    }

    #[test]
    fn a_line_that_is_no_json_or_lacks_the_key_is_refused() {
        for line in ["", "{", "{} x", r#"{"a":{}}"#, r#"{"a":{"b":null}}"#, r#"{"a":{"b":[]}}"#] {
            assert!(key(Format::Json, "json:/a/b", line.as_bytes()).is_err(), "{line}");
        }
        assert!(key(Format::Json, "none", b"{\xff}").is_err());
        assert_eq!(key(Format::Json, "none", b"[1, 2]"), Ok(None));
    }

    #[test]
    fn an_illegal_key_says_what_is_legal() {
        for text in ["", "None", "field", "field:", "field:0", "field:-1", "json:a", "json", "header:x"] {
            assert!(text.parse::<KeyFrom>().is_err(), "{text:?}");
        }
    }
}
