//! The file of `--ack-log`: what was accepted, one line each, in the order of the input.
//!
//! It is flushed a batch and never synced: a killed process loses no line that the file system took. Only whole
//! lines are handed to it; what a kill cut off all the same was never said, and the next run takes it away.
//!
//! Every line of the input up to the last one in it was accepted, or was no message and skipped as such: a run that goes
//! on behind that line leaves none out.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

/// Lines are written out when this much has gathered, ready or not.
const BUFFER: usize = 64 << 10;

/// The log, open at its end.
pub struct AckLog {
    /// The last line it had when it was opened, if it had any.
    pub last: Option<u64>,
    /// None if there is no log, or it can no longer be written.
    file: Option<File>,
    buffer: Vec<u8>,
    ended: bool,
}

impl AckLog {
    /// Opens the log, or a nameless one that keeps nothing.
    pub fn open(path: Option<&Path>) -> io::Result<Self> {
        let Some(path) = path else { return Ok(Self { last: None, file: None, buffer: Vec::new(), ended: false }) };
        // Not in append mode, since a device or a pipe has no end to go to.
        let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        let last = if file.metadata()?.is_file() { cut_half_line(&mut file)? } else { None };
        Ok(Self { last, file: Some(file), buffer: Vec::with_capacity(BUFFER + 64), ended: false })
    }

    /// Notes that a line was accepted.
    pub fn accepted(&mut self, line: u64, delivered: bool) -> io::Result<()> {
        if self.ended || self.file.is_none() {
            return Ok(());
        }
        writeln!(self.buffer, "{line}\t{}", if delivered { "delivered" } else { "stored" })?;
        if self.buffer.len() >= BUFFER { self.flush() } else { Ok(()) }
    }

    /// Hands everything noted to the file system.
    pub fn flush(&mut self) -> io::Result<()> {
        if let (Some(file), false) = (&mut self.file, self.buffer.is_empty()) {
            let written = file.write_all(&self.buffer);
            self.buffer.clear();
            if written.is_err() {
                // What comes later would stand behind a gap.
                self.file = None;
            }
            return written;
        }
        Ok(())
    }

    /// A line was not accepted: what was noted before it is written with the next flush, and nothing that comes later,
    /// for the log would say that this line, too, is done with.
    pub fn end(&mut self) {
        self.ended = true;
    }
}

/// Goes to the end of the last whole line and makes it the end of the file; leaves a file alone that ends in
/// anything else than such lines. Returns the number on that line.
fn cut_half_line(file: &mut File) -> io::Result<Option<u64>> {
    // Two of the longest lines: twenty digits, a tab, a word, a newline.
    const TAIL: u64 = 64;
    let length = file.seek(SeekFrom::End(0))?;
    let from = length.saturating_sub(TAIL);
    file.seek(SeekFrom::Start(from))?;
    let mut tail = Vec::new();
    file.take(TAIL).read_to_end(&mut tail)?;
    let half = tail.iter().rposition(|byte| *byte == b'\n').map_or(0, |newline| newline + 1);
    let last =
        tail[..half].strip_suffix(b"\n").map(|lines| lines.rsplit(|byte| *byte == b'\n').next().unwrap_or(lines));
    // With no newline in sight, this is a log only if it is the beginning of its first line.
    let known = last.map_or(from == 0, |line| line.len() < 32 && is_line(line, |said, word| said == word));
    if !known || !is_line(&tail[half..], |said, word| word.starts_with(said)) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "this is not a log of acknowledgements"));
    }
    let end = from + half as u64;
    if end < length {
        file.set_len(end)?;
    }
    file.seek(SeekFrom::Start(end))?;
    let number = last.and_then(|line| line.split(|byte| *byte == b'\t').next());
    Ok(number.and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok()))
}

/// Whether this is a number, and behind a tab what `matches` one of the words; a number alone is the beginning of one.
fn is_line(line: &[u8], matches: impl Fn(&[u8], &[u8]) -> bool) -> bool {
    let (number, word) = match line.iter().position(|byte| *byte == b'\t') {
        Some(tab) => (&line[..tab], &line[tab + 1..]),
        None => (line, &b""[..]),
    };
    number.iter().all(u8::is_ascii_digit) && [&b"delivered"[..], b"stored"].iter().any(|known| matches(word, known))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_run_goes_on_behind_the_last_whole_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("acks");
        for (before, after) in [
            ("", "8\tstored\n"),
            ("6\tdelivered\n7\tstored\n", "6\tdelivered\n7\tstored\n8\tstored\n"),
            ("6\tdelivered\n7\tsto", "6\tdelivered\n8\tstored\n"),
            ("7", "8\tstored\n"),
        ] {
            std::fs::write(&path, before).unwrap();
            let mut log = AckLog::open(Some(&path)).unwrap();
            assert_eq!(
                log.last,
                before.rfind('\n').map(|_| if before.contains("7\tstored") { 7 } else { 6 }),
                "{before:?}"
            );
            log.accepted(8, false).unwrap();
            log.flush().unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), after, "before: {before:?}");
        }
    }

    /// Lines behind one that was not accepted were logged, and a run that went on behind the last of them left that one
    /// out.
    #[test]
    fn nothing_is_logged_behind_a_line_that_was_not_accepted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("acks");
        let mut log = AckLog::open(Some(&path)).unwrap();
        log.accepted(1, true).unwrap();
        log.end();
        log.accepted(3, true).unwrap();
        log.flush().unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "1\tdelivered\n");
    }

    #[test]
    fn somebody_elses_file_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data");
        for content in ["one\n", "one\ntwo", "1\tstored\n2\tlost", "7\n", &"x".repeat(1000)] {
            std::fs::write(&path, content).unwrap();
            assert!(AckLog::open(Some(&path)).is_err());
            assert_eq!(std::fs::read_to_string(&path).unwrap(), content);
        }
    }
}
