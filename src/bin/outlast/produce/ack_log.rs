//! The file of `--ack-log`: what was accepted, one line each, in the order of the input.
//!
//! It is flushed a batch and never synced: a killed process loses no line that the file system took. Only whole
//! lines are handed to it; what a kill cut off all the same was never said, and the next run takes it away.
//!
//! Every line of the input up to the last one in it was accepted, or was no message and skipped as such: a run that goes
//! on behind that line leaves none out. The last one may lack its newline in the input; the log says so (`unterminated`),
//! because that line may have grown since.
//!
//! Others may rotate the file while it is written: everything is appended, so a file that was cut has no hole, and one that
//! was moved away is followed by a new one. Both are noted for the user.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Lines are written out when this much has gathered, ready or not.
const BUFFER: usize = 64 << 10;
/// More than two of the longest lines: twenty digits, two tabs, two words, the end of a line.
const TAIL: u64 = 128;
/// Zeros at the end of the file, at most, that are taken for what a power cut leaves where lines were.
const ZEROS: u64 = 16 << 20;
/// What became of a line.
const STATES: [&[u8]; 2] = [b"delivered", b"stored"];
/// The input ended in the middle of the line, as far as anyone can see.
const UNTERMINATED: &[u8] = b"unterminated";

/// The last line in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Last {
    /// Its number in the input.
    pub line: u64,
    /// It had no newline when it was sent.
    pub unterminated: bool,
}

/// The log, open at its end.
pub struct AckLog {
    /// The last line it had when it was opened, if it had any.
    pub last: Option<Last>,
    /// None if there is no log, or it can no longer be written.
    target: Option<Target>,
    buffer: Vec<u8>,
    /// The last line in the buffer or the file.
    noted: Option<u64>,
    ended: bool,
    notes: Vec<String>,
}

/// The file, and what it was like when it was last written.
struct Target {
    path: PathBuf,
    file: File,
    /// Its bytes; none are counted in what is no regular file: it cannot be cut, and is not looked at again.
    length: Option<u64>,
}

impl AckLog {
    /// Opens the log, or a nameless one that keeps nothing.
    pub fn open(path: Option<&Path>) -> io::Result<Self> {
        let mut log =
            Self { last: None, target: None, buffer: Vec::new(), noted: None, ended: false, notes: Vec::new() };
        if let Some(path) = path {
            let (target, found) = Target::open(path)?;
            log.buffer.reserve(BUFFER + 64);
            log.last = found.last;
            log.noted = found.last.map(|last| last.line);
            if found.begins_with_zeros {
                log.notes.push(
                    "the log of acknowledgements begins with zeros: it was cut while it was written; what it still shows \
                     is used"
                        .into(),
                );
            }
            log.target = Some(target);
        }
        Ok(log)
    }

    /// Notes that a line was accepted.
    pub fn accepted(&mut self, line: u64, delivered: bool, unterminated: bool) -> io::Result<()> {
        if self.ended || self.target.is_none() {
            return Ok(());
        }
        let state = if delivered { "delivered" } else { "stored" };
        writeln!(self.buffer, "{line}\t{state}{}", if unterminated { "\tunterminated" } else { "" })?;
        self.noted = Some(line);
        if self.buffer.len() >= BUFFER { self.flush() } else { Ok(()) }
    }

    /// Hands everything noted to the file system.
    pub fn flush(&mut self) -> io::Result<()> {
        if self.target.is_none() || self.buffer.is_empty() {
            return Ok(());
        }
        let written = self.follow().and_then(|()| match &mut self.target {
            Some(target) => target.append(&self.buffer),
            None => Ok(()),
        });
        self.buffer.clear();
        if written.is_err() {
            // What comes later would stand behind a gap.
            self.target = None;
        }
        written
    }

    /// The last flush: a log that was cut since the one before is noted, too.
    pub fn finish(&mut self) -> io::Result<()> {
        self.flush()?;
        if let Some(target) = &self.target
            && target.was_cut()?
        {
            self.note_cut();
        }
        Ok(())
    }

    /// What the user should know about the file, once each.
    pub fn notes(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notes)
    }

    /// A line was not accepted: what was noted before it is written with the next flush, and nothing that comes later,
    /// for the log would say that this line, too, is done with.
    pub fn end(&mut self) {
        self.ended = true;
    }

    /// Goes on at the end of the file that is there now under the log's name.
    fn follow(&mut self) -> io::Result<()> {
        let Some(target) = &mut self.target else { return Ok(()) };
        if target.was_moved()? {
            let path = target.path.clone();
            (*target, _) = Target::open(&path)?;
            self.notes
                .push(format!("the log of acknowledgements was moved away; it goes on in a new {}", path.display()));
        } else if target.was_cut()? {
            let found = go_behind_last_line(&mut target.file)?;
            target.length = Some(found.length);
            self.note_cut();
        }
        Ok(())
    }

    fn note_cut(&mut self) {
        let up_to = self.noted.map_or(String::new(), |line| format!("; lines up to {line} were accepted"));
        self.notes.push(format!("the log of acknowledgements was cut while it was written{up_to}"));
    }
}

impl Target {
    fn open(path: &Path) -> io::Result<(Self, Found)> {
        // Appended to, because a writer with a place of its own leaves a hole where the file was cut before that place.
        let mut file = OpenOptions::new().read(true).append(true).create(true).open(path)?;
        let (found, length) = match file.metadata()?.is_file() {
            true => {
                let found = go_behind_last_line(&mut file)?;
                let length = Some(found.length);
                (found, length)
            }
            false => (Found::default(), None),
        };
        Ok((Self { path: path.to_owned(), file, length }, found))
    }

    fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        self.file.write_all(lines)?;
        self.length = self.length.map(|length| length + lines.len() as u64);
        Ok(())
    }

    fn was_cut(&self) -> io::Result<bool> {
        let Some(length) = self.length else { return Ok(false) };
        Ok(self.file.metadata()?.len() < length)
    }

    /// Whether its name leads to another file by now, or to none.
    fn was_moved(&self) -> io::Result<bool> {
        if self.length.is_none() {
            return Ok(false);
        }
        let own = self.file.metadata()?;
        match fs::metadata(&self.path) {
            Ok(there) => Ok((there.dev(), there.ino()) != (own.dev(), own.ino())),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(true),
            // Nobody can say; the file that is open takes lines all the same.
            Err(_) => Ok(false),
        }
    }
}

/// What a log was like when it was opened.
#[derive(Default)]
struct Found {
    last: Option<Last>,
    length: u64,
    begins_with_zeros: bool,
}

/// Goes behind the last whole line and makes that the end of the file; leaves a file alone that ends in anything else
/// than such lines.
fn go_behind_last_line(file: &mut File) -> io::Result<Found> {
    let length = file.seek(SeekFrom::End(0))?;
    let written = length - zeros_at_end(file, length)?;
    let from = written.saturating_sub(TAIL);
    let tail = read_at(file, from, written - from)?;
    let begins_with_zeros = read_at(file, 0, 1)?.first() == Some(&0);
    let half = tail.iter().rposition(|byte| *byte == b'\n').map_or(0, |newline| newline + 1);
    let line =
        tail[..half].strip_suffix(b"\n").map(|lines| lines.rsplit(|byte| *byte == b'\n').next().unwrap_or(lines));
    // Behind zeros at the file's beginning there may be a line: that is what a writer left that did not append.
    let line = line.map(|line| match line.iter().position(|byte| *byte != 0) {
        Some(zeros) if begins_with_zeros => &line[zeros..],
        _ => line,
    });
    let last = line.and_then(whole);
    // With no newline in sight, this is a log only if it is the beginning of its first line.
    let known = if line.is_some() { last.is_some() } else { from == 0 && (written > 0 || length == 0) };
    if !known || !is_beginning(&tail[half..]) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "this is not a log of acknowledgements: it does not end in LINE<TAB>delivered or LINE<TAB>stored; name \
             another file, or move this one away",
        ));
    }
    let end = from + half as u64;
    if end < length {
        file.set_len(end)?;
    }
    Ok(Found { last, length: end, begins_with_zeros })
}

/// The zeros that the file ends in. A power cut leaves some where the length of a file had reached the disk and its
/// content had not.
fn zeros_at_end(file: &mut File, length: u64) -> io::Result<u64> {
    const STEP: u64 = 64 << 10;
    let mut zeros = 0;
    while zeros < length.min(ZEROS) {
        let step = STEP.min(length - zeros);
        let bytes = read_at(file, length - zeros - step, step)?;
        let found = bytes.iter().rev().take_while(|byte| **byte == 0).count() as u64;
        zeros += found;
        if found < step {
            break;
        }
    }
    Ok(zeros)
}

fn read_at(file: &mut File, from: u64, length: u64) -> io::Result<Vec<u8>> {
    file.seek(SeekFrom::Start(from))?;
    let mut bytes = Vec::new();
    file.take(length).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// A line of the log: a number, a state, and the word for a line without its newline. An editor may have put a carriage
/// return behind it.
fn whole(line: &[u8]) -> Option<Last> {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let fields: Vec<&[u8]> = line.split(|byte| *byte == b'\t').collect();
    let unterminated = match fields[..] {
        [_, state] if STATES.contains(&state) => false,
        [_, state, UNTERMINATED] if STATES.contains(&state) => true,
        _ => return None,
    };
    if !fields[0].iter().all(u8::is_ascii_digit) {
        return None;
    }
    let line = std::str::from_utf8(fields[0]).ok()?.parse().ok()?;
    Some(Last { line, unterminated })
}

/// Whether a line of the log may begin like this.
fn is_beginning(half: &[u8]) -> bool {
    let half = half.strip_suffix(b"\r").unwrap_or(half);
    let fields: Vec<&[u8]> = half.split(|byte| *byte == b'\t').collect();
    let states = |fits: &dyn Fn(&[u8]) -> bool| STATES.iter().any(|state| fits(state));
    fields[0].iter().all(u8::is_ascii_digit)
        && match fields[1..] {
            [] => true,
            [begun] => states(&|state| state.starts_with(begun)),
            [said, begun] => states(&|state| state == said) && UNTERMINATED.starts_with(begun),
            _ => false,
        }
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
            ("6\tdelivered\n7\tstored\tunterm", "6\tdelivered\n8\tstored\n"),
            // An editor's ends of lines; zeros that a power cut left; a hole that a writer left which did not append.
            ("6\tdelivered\r\n7\tstored\r\n", "6\tdelivered\r\n7\tstored\r\n8\tstored\n"),
            ("6\tdelivered\n7\tst\0\0\0", "6\tdelivered\n8\tstored\n"),
            ("\0\0\x007\tstored\n", "\0\0\x007\tstored\n8\tstored\n"),
        ] {
            std::fs::write(&path, before).unwrap();
            let mut log = AckLog::open(Some(&path)).unwrap();
            assert_eq!(
                log.last.map(|last| last.line),
                before.rfind('\n').map(|_| if before.contains("7\tstored\n") || before.contains("7\tstored\r") {
                    7
                } else {
                    6
                }),
                "{before:?}"
            );
            log.accepted(8, false, false).unwrap();
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
        log.accepted(1, true, false).unwrap();
        log.end();
        log.accepted(3, true, false).unwrap();
        log.flush().unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "1\tdelivered\n");
    }

    fn opened(path: &Path) -> AckLog {
        AckLog::open(Some(path)).unwrap()
    }

    fn note(log: &mut AckLog, line: u64, unterminated: bool) -> Vec<String> {
        log.accepted(line, false, unterminated).unwrap();
        log.flush().unwrap();
        log.notes()
    }

    #[test]
    fn a_last_line_without_its_newline_is_said_and_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("acks");
        let mut log = opened(&path);
        note(&mut log, 1, false);
        note(&mut log, 2, true);
        assert_eq!(fs::read_to_string(&path).unwrap(), "1\tstored\n2\tstored\tunterminated\n");
        assert_eq!(opened(&path).last, Some(Last { line: 2, unterminated: true }));
        fs::write(&path, "2\tdelivered\tunterminated\r\n").unwrap();
        assert_eq!(opened(&path).last, Some(Last { line: 2, unterminated: true }));
    }

    /// `copytruncate`: the next line was written where the file had ended, behind a hole, and the next run took the file
    /// for none of ours.
    #[test]
    fn a_log_that_is_cut_goes_on_without_a_hole_and_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("acks");
        let mut log = opened(&path);
        assert_eq!(note(&mut log, 1, false), [""; 0]);
        note(&mut log, 2, false);
        for (left, line, expected) in [(0, 3, "3\tstored\n"), (4, 4, "4\tstored\n")] {
            File::options().write(true).open(&path).unwrap().set_len(left).unwrap();
            let notes = note(&mut log, line, false);
            assert!(notes.len() == 1 && notes[0].contains("was cut"), "{notes:?}");
            assert_eq!(fs::read_to_string(&path).unwrap(), expected);
        }
        assert_eq!(note(&mut log, 5, false), [""; 0], "once");
        File::create(&path).unwrap();
        log.finish().unwrap();
        assert!(log.notes()[0].contains("lines up to 5 were accepted"));
        assert_eq!(opened(&path).last, None);
    }

    #[test]
    fn a_log_that_is_moved_away_or_removed_goes_on_under_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let (path, old) = (dir.path().join("acks"), dir.path().join("acks.1"));
        let mut log = opened(&path);
        note(&mut log, 1, false);
        fs::rename(&path, &old).unwrap();
        let notes = note(&mut log, 2, false);
        assert!(notes.len() == 1 && notes[0].contains("moved away"), "{notes:?}");
        fs::remove_file(&path).unwrap();
        // As a rotation makes it.
        File::create(&path).unwrap();
        assert_eq!(note(&mut log, 3, false).len(), 1);
        assert_eq!(note(&mut log, 4, false).len(), 0);
        assert_eq!(fs::read_to_string(&old).unwrap(), "1\tstored\n");
        assert_eq!(fs::read_to_string(&path).unwrap(), "3\tstored\n4\tstored\n");
        // A name that cannot be written to is a log that cannot be written.
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        log.accepted(5, false, false).unwrap();
        assert!(log.flush().is_err());
    }

    #[test]
    fn what_is_no_regular_file_is_only_written() {
        let mut log = opened(Path::new("/dev/null"));
        assert_eq!(note(&mut log, 1, false), [""; 0]);
        assert_eq!(note(&mut log, 2, false), [""; 0]);
        log.finish().unwrap();
    }

    #[test]
    fn somebody_elses_file_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data");
        for content in ["one\n", "one\ntwo", "1\tstored\n2\tlost", "7\n", "\0\0", "a\x007\tstored\n", &"x".repeat(1000)]
        {
            std::fs::write(&path, content).unwrap();
            assert!(AckLog::open(Some(&path)).is_err());
            assert_eq!(std::fs::read_to_string(&path).unwrap(), content);
        }
    }
}
