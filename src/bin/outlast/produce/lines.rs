//! Lines of any bytes, none of them changed, none longer than a message may be.
//!
//! The first end of the input is its end: what a growing file gets afterwards belongs to the next run. Read on, it would
//! become a line of its own, though it is the rest of one that was sent.

use std::io::{self, BufRead, BufReader, Read};

/// Reads lines.
pub struct Lines<R> {
    input: BufReader<Once<R>>,
    limit: usize,
    number: u64,
    unterminated: bool,
}

/// An input that ends once.
struct Once<R> {
    input: R,
    ended: bool,
}

impl<R: Read> Read for Once<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.ended {
            return Ok(0);
        }
        let read = self.input.read(buffer)?;
        self.ended = read == 0 && !buffer.is_empty();
        Ok(read)
    }
}

/// A line without its newline.
#[derive(Debug, PartialEq, Eq)]
pub enum Line {
    /// All of it.
    Whole(Vec<u8>),
    /// It has more bytes than the limit: it was read over, not kept.
    TooLong,
}

impl<R: Read> Lines<R> {
    /// Lines of `input` with at most `limit` bytes.
    pub fn new(input: R, limit: usize) -> Self {
        let input = BufReader::with_capacity(1 << 18, Once { input, ended: false });
        Self { input, limit, number: 0, unterminated: false }
    }

    /// Reads over the lines before `line`, counted from 1.
    pub fn skip_to(&mut self, line: u64) -> io::Result<()> {
        while self.number + 1 < line && self.input.skip_until(b'\n')? > 0 {
            self.number += 1;
        }
        Ok(())
    }

    /// The next line and its number. The last line may lack its newline; an empty line is a line.
    pub fn next(&mut self) -> io::Result<Option<(u64, Line)>> {
        let mut line = Vec::new();
        // One byte more than may be: the newline, or the proof that the line is too long.
        (&mut self.input).take(self.limit as u64 + 1).read_until(b'\n', &mut line)?;
        if line.is_empty() {
            return Ok(None);
        }
        self.number += 1;
        if line.last() == Some(&b'\n') {
            line.pop();
        } else if line.len() > self.limit {
            self.input.skip_until(b'\n')?;
            // The end of the input is only met by reading on where no newline was found.
            self.unterminated = self.input.get_ref().ended;
            return Ok(Some((self.number, Line::TooLong)));
        } else {
            self.unterminated = true;
        }
        Ok(Some((self.number, Line::Whole(line))))
    }

    /// Whether the line read last has no newline: then it is the last one, and the input may have ended in its middle.
    pub fn unterminated(&self) -> bool {
        self.unterminated
    }

    /// Lines read up to here, those read over too.
    pub fn read(&self) -> u64 {
        self.number
    }

    /// Whether a further line can be had without waiting for the input.
    pub fn has_buffered(&self) -> bool {
        self.input.buffer().contains(&b'\n')
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8], limit: usize, from: u64) -> Vec<(u64, Line)> {
        let mut lines = Lines::new(bytes, limit);
        lines.skip_to(from).unwrap();
        std::iter::from_fn(|| lines.next().unwrap()).collect()
    }

    fn whole(number: u64, bytes: &[u8]) -> (u64, Line) {
        (number, Line::Whole(bytes.to_vec()))
    }

    #[test]
    fn bytes_pass_unchanged_and_empty_lines_count() {
        assert_eq!(read(b"", 9, 1), []);
        assert_eq!(read(b"\n", 9, 1), [whole(1, b"")]);
        assert_eq!(read(b"\n\nx", 9, 1), [whole(1, b""), whole(2, b""), whole(3, b"x")]);
        assert_eq!(read(b"a\r\n\xff\0\n", 9, 1), [whole(1, b"a\r"), whole(2, b"\xff\0")]);
        assert_eq!(read(b"last", 9, 1), read(b"last\n", 9, 1));
    }

    #[test]
    fn a_line_over_the_limit_is_named_and_the_next_one_is_whole() {
        assert_eq!(read(b"12345\n123456\n1\n", 5, 1), [whole(1, b"12345"), (2, Line::TooLong), whole(3, b"1")]);
        assert_eq!(read(b"12345", 5, 1), [whole(1, b"12345")]);
        assert_eq!(read(b"123456", 5, 1), [(1, Line::TooLong)]);
        let long = vec![b'x'; 20 << 20];
        assert_eq!(read(&long, 1 << 20, 1), [(1, Line::TooLong)]);
    }

    #[test]
    fn a_last_line_without_its_newline_is_known() {
        for (bytes, unterminated) in
            [(&b""[..], false), (b"a\n", false), (b"a\nb", true), (b"a\n123456", true), (b"a\n123456\n", false)]
        {
            let mut lines = Lines::new(bytes, 5);
            while lines.next().unwrap().is_some() {}
            assert_eq!(lines.unterminated(), unterminated, "{bytes:?}");
        }
    }

    /// A file that grew while it was read: `b` was read, then its end, and `cd` became a line of its own.
    #[test]
    fn what_comes_behind_the_end_is_not_read() {
        struct Grows(Vec<&'static [u8]>);
        impl Read for Grows {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                let Some(bytes) = self.0.pop() else { return Ok(0) };
                buffer[..bytes.len()].copy_from_slice(bytes);
                Ok(bytes.len())
            }
        }
        let mut lines = Lines::new(Grows(vec![b"cd\ne\n", b"", b"a\nb"]), 9);
        assert_eq!(lines.next().unwrap(), Some(whole(1, b"a")));
        assert_eq!(lines.next().unwrap(), Some(whole(2, b"b")));
        assert_eq!(lines.next().unwrap(), None);
        let mut lines = Lines::new(Grows(vec![b"cd\ne\n", b"", b"a\nb"]), 9);
        lines.skip_to(3).unwrap();
        assert_eq!((lines.next().unwrap(), lines.read()), (None, 2));
    }

    #[test]
    fn a_start_past_the_end_finds_nothing() {
        assert_eq!(read(b"a\nb\nc", 9, 2), [whole(2, b"b"), whole(3, b"c")]);
        assert_eq!(read(b"a\nb\nc", 9, 3), [whole(3, b"c")]);
        assert_eq!(read(b"a\nb\nc", 9, 4), []);
        assert_eq!(read(b"a\nb\nc", 9, u64::MAX), []);
    }
}
