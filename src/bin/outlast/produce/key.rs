//! What a message is keyed by, and how a line becomes a message.
//!
//! The payload is the line, byte for byte. For its key and as JSON it is read without what belongs to the file and not to
//! the line: a carriage return before the newline, and a byte order mark before the first line.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use bytes::Bytes;
use outlast::Message;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use crate::args::Format;

/// The value of `--key`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyFrom {
    /// No key, no order.
    None,
    /// A blank-separated field of the line, counted from zero here, from one on the command line.
    Field(usize),
    /// A value of the JSON document that the line is.
    Json(Pointer),
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
            Some(("json", pointer)) if pointer.starts_with('/') => Ok(Self::Json(Pointer::new(pointer))),
            Some(("json", _)) => Err("a JSON pointer starts with a slash, as in json:/customer/id".into()),
            _ => Err("expected none, field:N or json:/POINTER".into()),
        }
    }
}

/// A byte order mark at the beginning of some text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// Three bytes that say nothing: UTF-8 has one byte order.
    Utf8,
    /// UTF-16 or UTF-32: no text that can be taken apart at newline bytes.
    Wide,
}

impl Mark {
    /// The mark that the text begins with.
    pub fn of(text: &[u8]) -> Option<Self> {
        match text {
            [0xef, 0xbb, 0xbf, ..] => Some(Self::Utf8),
            [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => Some(Self::Wide),
            _ => None,
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
    /// A message whose payload is the line, unchanged. Lines are counted from 1.
    ///
    /// # Errors
    /// Says what the line lacks.
    pub fn compose(&self, number: u64, line: Vec<u8>) -> Result<Message, String> {
        let payload = Bytes::from(line);
        let text = without_file_marks(number, &payload);
        if self.format == Format::Json && !matches!(self.key, KeyFrom::Json(_)) {
            // Checked to its end, but not built.
            serde_json::from_slice::<IgnoredAny>(text).map_err(|e| not_json(text, e))?;
        }
        let key = match &self.key {
            // It shares the payload's memory.
            KeyFrom::Field(number) => field(text, *number).map(|field| payload.slice_ref(field)),
            KeyFrom::Json(pointer) => Some(pointer.key(text)?),
            KeyFrom::None => None,
        };
        let message = Message::to(self.destination.clone()).payload(payload.clone());
        Ok(match key {
            Some(key) => message.key(key),
            None => message,
        })
    }
}

/// The line without what belongs to the file: the mark before the first line, the carriage return before the newline.
fn without_file_marks(number: u64, line: &[u8]) -> &[u8] {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    match Mark::of(line) {
        Some(Mark::Utf8) if number == 1 => &line[3..],
        _ => line,
    }
}

/// A field among those that blanks and tabs separate; a run of them counts as one.
fn field(line: &[u8], number: usize) -> Option<&[u8]> {
    line.split(|byte| *byte == b' ' || *byte == b'\t').filter(|field| !field.is_empty()).nth(number)
}

fn not_json(text: &[u8], error: impl fmt::Display) -> String {
    let hint = match Mark::of(text) {
        Some(Mark::Utf8) => " (it begins with a byte order mark, which belongs to the beginning of a file at most)",
        Some(Mark::Wide) => " (it begins with a byte order mark of UTF-16: convert the input to UTF-8)",
        None => "",
    };
    format!("not JSON: {error}{hint}")
}

/// A JSON pointer (RFC 6901), taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pointer {
    text: String,
    tokens: Vec<String>,
}

impl Pointer {
    /// Takes one apart that begins with a slash.
    fn new(text: &str) -> Self {
        let tokens = text.split('/').skip(1).map(|token| token.replace("~1", "/").replace("~0", "~"));
        Self { text: text.into(), tokens: tokens.collect() }
    }

    /// The value it leads to, as a key: a string as the text that it stands for, a number or a boolean as it is written.
    /// A number is not read as one, for that would make one key of numbers which only a double cannot tell apart.
    fn key(&self, document: &[u8]) -> Result<Bytes, String> {
        let invalid = |error: &dyn fmt::Display| not_json(document, error);
        let text = std::str::from_utf8(document).map_err(|e| invalid(&e))?;
        let value = self.find(text).map_err(|e| invalid(&e))?.map_or("null", RawValue::get);
        let pointer = &self.text;
        match value.as_bytes().first() {
            Some(b'"') => match serde_json::from_str::<String>(value) {
                Ok(text) => Ok(Bytes::from(text)),
                Err(e) => Err(format!("what is at {pointer} is no text: {e}")),
            },
            Some(b'{' | b'[') => {
                Err(format!("what is at {pointer} is no key: expected a string, a number or a boolean"))
            }
            Some(b'n') | None => Err(format!("nothing at {pointer} to take as the key")),
            Some(_) => Ok(Bytes::copy_from_slice(value.as_bytes())),
        }
    }

    /// The text of the value it leads to. Of several members of one name the last one counts, as it does for most readers.
    fn find<'a>(&self, document: &'a str) -> serde_json::Result<Option<&'a RawValue>> {
        // Reads all of it, and so finds everything that is wrong with it.
        let mut value: &RawValue = serde_json::from_str(document)?;
        for token in &self.tokens {
            let mut reader = serde_json::Deserializer::from_str(value.get());
            let found = match value.get().as_bytes().first() {
                Some(b'{') => Member(token).deserialize(&mut reader)?,
                Some(b'[') => match index(token) {
                    Some(index) => Element(index).deserialize(&mut reader)?,
                    None => None,
                },
                _ => None,
            };
            let Some(found) = found else { return Ok(None) };
            value = found;
        }
        Ok(Some(value))
    }
}

/// As RFC 6901 has it: digits, no leading zero.
fn index(token: &str) -> Option<usize> {
    let legal = token == "0" || (token.bytes().all(|byte| byte.is_ascii_digit()) && !token.starts_with('0'));
    token.parse().ok().filter(|_| legal)
}

/// The last member of an object that has this name.
struct Member<'t>(&'t str);

impl<'de> DeserializeSeed<'de> for Member<'_> {
    type Value = Option<&'de RawValue>;

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<Self::Value, D::Error> {
        reader.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Member<'_> {
    type Value = Option<&'de RawValue>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found = None;
        while let Some(is_it) = map.next_key_seed(Is(self.0))? {
            if is_it {
                found = Some(map.next_value()?);
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(found)
    }
}

/// Whether a string is this one.
struct Is<'t>(&'t str);

impl<'de> DeserializeSeed<'de> for Is<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<bool, D::Error> {
        reader.deserialize_str(self)
    }
}

impl Visitor<'_> for Is<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_str<E>(self, text: &str) -> Result<bool, E> {
        Ok(text == self.0)
    }
}

/// The element of an array at this place.
struct Element(usize);

impl<'de> DeserializeSeed<'de> for Element {
    type Value = Option<&'de RawValue>;

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<Self::Value, D::Error> {
        reader.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Element {
    type Value = Option<&'de RawValue>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut array: A) -> Result<Self::Value, A::Error> {
        for _ in 0..self.0 {
            if array.next_element::<IgnoredAny>()?.is_none() {
                return Ok(None);
            }
        }
        let found = array.next_element()?;
        while array.next_element::<IgnoredAny>()?.is_some() {}
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(format: Format, key: &str, line: &[u8]) -> Result<Option<Vec<u8>>, String> {
        let composer = Composer { destination: "orders".into(), format, key: key.parse().unwrap() };
        let message = composer.compose(1, line.to_vec())?;
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
            // Its last field kept the carriage return of CR LF, and was another key than the same field elsewhere.
            (b"one two\r", Some(b"one"), Some(b"two")),
            (b"one \r", Some(b"one"), None),
            (b"\r", None, None),
            (b"one two\r\r", Some(b"one"), Some(b"two\r")),
            (b"one\rtwo x", Some(b"one\rtwo"), Some(b"x")),
            // What some editors put before the first line of a file.
            (b"\xef\xbb\xbfone two", Some(b"one"), Some(b"two")),
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
            ("\u{feff}{\"a\":{\"b\":17}}\r", "17"),
            (r#"{"a":{"b":"\u0041\n"}}"#, "A\n"),
            (r#"{"a":{"b":""}}"#, ""),
            // They went through a double, and were one key.
            (r#"{"a":{"b":18446744073709551616}}"#, "18446744073709551616"),
            (r#"{"a":{"b":18446744073709551617}}"#, "18446744073709551617"),
            (r#"{"a":{"b": 1e2 }}"#, "1e2"),
            (r#"{"a":{"b":1E+2}}"#, "1E+2"),
            (r#"{"a":{"b":-0}}"#, "-0"),
            (r#"{"a":{"b":0.10}}"#, "0.10"),
            (r#"{"a":{"b":1e999}}"#, "1e999"),
            // The last of one name counts.
            (r#"{"a":{"b":1},"x":[{}],"a":{"b":2,"b":3}}"#, "3"),
            (r#"{"\u0061":{"b":4}}"#, "4"),
        ] {
            assert_eq!(key(Format::Json, "json:/a/b", line.as_bytes()), Ok(Some(expected.into())), "{line}");
        }
    }

    #[test]
    fn a_pointer_leads_through_arrays_and_escapes() {
        let line = br#"{"a":[7,{"b/c":{"~":"x"}},[8]],"":{"":9}}"#;
        for (pointer, expected) in [("/a/0", "7"), ("/a/1/b~1c/~0", "x"), ("/a/2/0", "8"), ("//", "9")] {
            assert_eq!(key(Format::Json, &format!("json:{pointer}"), line), Ok(Some(expected.into())), "{pointer}");
        }
        for pointer in ["/a/3", "/a/00", "/a/+1", "/a/-", "/a/b", "/a/0/0", "/b", "/", "/a"] {
            assert!(key(Format::Json, &format!("json:{pointer}"), line).is_err(), "{pointer}");
        }
    }

    #[test]
    fn a_line_that_is_no_json_or_lacks_the_key_is_refused() {
        for line in [
            "",
            "\r",
            "{",
            "{} x",
            r#"{"a":{}}"#,
            r#"{"a":{"b":null}}"#,
            r#"{"a":{"b":[]}}"#,
            r#"{"a":{"b":{}}}"#,
            r#"{"a":{"b":1},"a":{}}"#,
            r#"{"a":{"b":1},"a":2}"#,
            r#"{"a":{"b":1},"c":01}"#,
            r#"{"a":{"b":"\ud800"}}"#,
        ] {
            assert!(key(Format::Json, "json:/a/b", line.as_bytes()).is_err(), "{line}");
        }
        assert!(key(Format::Json, "json:/a", b"{\"a\":1,\"b\":\"\xff\"}").is_err(), "no UTF-8");
        assert!(key(Format::Json, "none", b"{\xff}").is_err());
        assert_eq!(key(Format::Json, "none", b"[1, 2]"), Ok(None));
    }

    #[test]
    fn a_byte_order_mark_that_belongs_nowhere_is_named() {
        let composer = Composer { destination: "orders".into(), format: Format::Json, key: KeyFrom::None };
        let refused = |number, line: &[u8]| composer.compose(number, line.to_vec()).unwrap_err();
        assert!(composer.compose(1, b"\xef\xbb\xbf{}".to_vec()).is_ok());
        assert!(refused(2, b"\xef\xbb\xbf{}").contains("byte order mark, which belongs to the beginning of a file"));
        assert!(refused(1, b"\xff\xfe{\0}\0").contains("convert the input to UTF-8"));
    }

    #[test]
    fn an_illegal_key_says_what_is_legal() {
        for text in ["", "None", "field", "field:", "field:0", "field:-1", "json:a", "json", "header:x"] {
            assert!(text.parse::<KeyFrom>().is_err(), "{text:?}");
        }
    }
}
