//! Any bytes as the program's input, and as the file of an earlier run's `--ack-log`.
//!
//! The program's own files are compiled in. Lines come back as they are; a log of acknowledgements goes on behind its
//! last whole line, and a file that is none is left alone.

#[path = "../../src/bin/outlast/produce/ack_log.rs"]
#[allow(dead_code, reason = "the program uses all of it")]
mod ack_log;
#[path = "../../src/bin/outlast/produce/key.rs"]
mod key;
#[path = "../../src/bin/outlast/produce/lines.rs"]
#[allow(dead_code, reason = "the program uses all of it")]
mod reader;

use std::cell::RefCell;
use std::fs;

use super::args::Format;
use super::input::Input;

pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    match input.below(4) {
        0 => acknowledgements(&input),
        1 => key_option(&mut input),
        _ => lines(&mut input),
    }
}

fn lines(input: &mut Input<'_>) {
    let (limit, from, format) = (usize::from(input.u8()), u64::from(input.below(4)), input.flag());
    let key = ["none", "field:1", "field:3", "json:/a", "json:/a/0/b"][usize::from(input.below(5))];
    let composer = key::Composer {
        destination: "orders".into(),
        format: if format { Format::Json } else { Format::Lines },
        key: key.parse().expect("a legal key"),
    };
    let text = input.rest();
    let mut reader = reader::Lines::new(text, limit);
    reader.skip_to(from).expect("memory can be read");
    let mut expected = text.split_inclusive(|byte| *byte == b'\n').zip(1u64..).skip(from.max(1) as usize - 1);
    while let Some((number, line)) = reader.next().expect("memory can be read") {
        let (whole, at) = expected.next().expect("no more lines than there are");
        let whole = whole.strip_suffix(b"\n").unwrap_or(whole);
        assert_eq!(number, at);
        match line {
            reader::Line::TooLong => assert!(whole.len() > limit),
            reader::Line::Whole(line) => {
                assert_eq!(line, whole);
                if let Ok(message) = composer.compose(number, line) {
                    assert_eq!(message.payload_bytes().map(|bytes| &bytes[..]), Some(whole), "changed");
                }
            }
        }
    }
    assert!(expected.next().is_none(), "lines are missing");
}

fn key_option(input: &mut Input<'_>) {
    if let Ok(text) = std::str::from_utf8(input.rest()) {
        let _ = text.parse::<key::KeyFrom>();
    }
}

thread_local! {
    /// In memory where there is such a place, since each input opens it.
    static FILE: RefCell<tempfile::NamedTempFile> = RefCell::new(
        tempfile::NamedTempFile::new_in("/dev/shm").or_else(|_| tempfile::NamedTempFile::new()).expect("a file")
    );
}

fn acknowledgements(input: &Input<'_>) {
    let before = input.left();
    FILE.with_borrow(|file| {
        fs::write(file.path(), before).expect("written");
        let opened = ack_log::AckLog::open(Some(file.path()));
        let Ok(mut log) = opened else {
            assert_eq!(fs::read(file.path()).expect("readable"), before, "somebody else's file was changed");
            return;
        };
        log.accepted(8, true, false).expect("noted");
        log.end();
        log.accepted(10, true, true).and_then(|()| log.flush()).expect("written");
        let after = fs::read(file.path()).expect("readable");
        let kept = after.strip_suffix(b"8\tdelivered\n").expect("the line is at the end");
        let whole = before.iter().rposition(|byte| *byte == b'\n').map_or(0, |newline| newline + 1);
        assert_eq!(kept, &before[..whole], "not behind the last whole line");
        let line = kept.strip_suffix(b"\n").and_then(|lines| lines.rsplit(|byte| *byte == b'\n').next());
        // Zeros before the first line are what a writer leaves in a file that is cut under it.
        let line = line.and_then(|line| line.rsplit(|byte| *byte == 0).next());
        let mut fields = line.into_iter().flat_map(|line| line.split(|byte| *byte == b'\t'));
        let last = fields.next().and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok());
        let unterminated = fields.nth(1).is_some();
        assert_eq!(log.last.map(|last| last.line), last, "not the number of the last whole line");
        assert_eq!(log.last.is_some_and(|last| last.unterminated), unterminated);
    });
}
