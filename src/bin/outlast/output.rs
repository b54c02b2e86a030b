//! Text for standard output: results, in words or JSON, and bytes made readable. Words on standard error.
//!
//! Whoever does not read what is said changes nothing of what is done, nor of the exit code.

use std::fmt::Display;
use std::io::{ErrorKind, Write};
use std::time::{Duration, SystemTime};

use crate::exit::Problem;

/// Says something on standard error. Not with `eprintln!`, which panics where nobody reads: a terminal that was closed,
/// a pipe whose reader ended.
pub fn say(text: impl Display) {
    let _ = writeln!(std::io::stderr().lock(), "outlast: {text}");
}

/// Prints a line on standard output. A reader that went away (`| head`) misses it, and that is all.
pub fn line(text: &str) -> Result<(), Problem> {
    let mut stdout = std::io::stdout().lock();
    match writeln!(stdout, "{text}").and_then(|()| stdout.flush()) {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => Err(Problem::failed(format!("standard output: {e}"))),
        _ => Ok(()),
    }
}

/// Prints a value as a line of JSON.
pub fn json(value: &impl serde::Serialize) -> Result<(), Problem> {
    let text = serde_json::to_string(value).map_err(|e| Problem::failed(format!("JSON: {e}")))?;
    line(&text)
}

/// A number with its thousands set apart.
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (place, digit) in digits.char_indices() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `1 message`, `1,204 messages`.
pub fn counted(number: u64, one: &str) -> String {
    format!("{} {one}{}", count(number), if number == 1 { "" } else { "s" })
}

/// Bytes in the unit that fits.
pub fn bytes(number: u64) -> String {
    indicatif::HumanBytes(number).to_string()
}

/// How long ago something was, to the second; nothing if the clock was set back since.
pub fn age(then: SystemTime) -> String {
    let age = SystemTime::now().duration_since(then).unwrap_or_default();
    humantime::format_duration(Duration::from_secs(age.as_secs())).to_string()
}

/// Bytes as text, at most `limit` of them: what is not printable is escaped, so that no payload can drive the
/// terminal.
pub fn excerpt(bytes: &[u8], limit: usize) -> String {
    let shown = &bytes[..bytes.len().min(limit)];
    let mut text = String::with_capacity(shown.len());
    for chunk in shown.utf8_chunks() {
        for c in chunk.valid().chars() {
            if c.is_control() { text.extend(c.escape_default()) } else { text.push(c) }
        }
        for byte in chunk.invalid() {
            text.push_str(&format!("\\x{byte:02x}"));
        }
    }
    if shown.len() < bytes.len() {
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_set_apart() {
        assert_eq!(count(0), "0");
        assert_eq!(count(999), "999");
        assert_eq!(count(1_000), "1,000");
        assert_eq!(count(1_234_567), "1,234,567");
        assert_eq!([0, 1, 1_000].map(|n| counted(n, "line")), ["0 lines", "1 line", "1,000 lines"]);
    }

    #[test]
    fn a_payload_cannot_drive_the_terminal() {
        assert_eq!(excerpt(b"a\x1b[2J\xffz", 99), "a\\u{1b}[2J\\xffz");
        assert_eq!(excerpt("grün".as_bytes(), 99), "grün");
        assert_eq!(excerpt(b"abcdef", 3), "abc…");
    }
}
