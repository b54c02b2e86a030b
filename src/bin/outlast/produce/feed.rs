//! The thread that reads the input, so that nobody else ever waits for it.
//!
//! It reads only what it is asked for: so many lines and no more are ever read past the last acknowledged one.

use std::io::Read;
use std::sync::mpsc as std_mpsc;
use std::task::{Context, Poll};
use std::thread;

use outlast::Message;
use tokio::sync::mpsc;

use super::key::{Composer, Mark};
use super::lines::{Line, Lines};

/// Lines a batch: enough that handing it over costs nothing beside reading it.
const BATCH_LINES: usize = 256;
/// Bytes a batch, before the line that exceeds it.
const BATCH_BYTES: usize = 1 << 20;

/// What was read.
pub struct Batch {
    /// Line numbers, and their messages or what is wrong with them.
    pub lines: Vec<(u64, Result<Message, String>)>,
    /// How the input ended, if it did.
    pub end: Option<End>,
    /// A byte order mark at its beginning, in the batch that begins there.
    pub mark: Option<Mark>,
}

impl Batch {
    fn ended(end: End) -> Self {
        Self { lines: Vec::new(), end: Some(end), mark: None }
    }
}

/// How the input ended.
#[derive(Debug)]
pub enum End {
    /// At its end, behind so many lines.
    Input {
        /// Lines it has, those before the first that was asked for too.
        lines: u64,
        /// Whether the last one has its newline.
        last: LastLine,
    },
    /// It cannot be read any further.
    Error(String),
}

/// The end of an input's last line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LastLine {
    /// Its newline, or there is no line.
    Newline,
    /// It has none, and is in the batch all the same.
    Unterminated(u64),
    /// It has none, and is in no batch.
    /// `next` is where the next run goes on: behind it if it was sent before, as the log then knows.
    Left { line: u64, next: u64 },
}

/// What is read.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    /// The first line.
    pub from: u64,
    /// Bytes that a message may have.
    pub limit: usize,
    /// A last line without its newline is left out.
    pub leave_unterminated: bool,
    /// A line that was sent before without its newline: left out for as long as it has none.
    pub sent_unterminated: Option<u64>,
}

impl Extent {
    fn leaves(&self, unterminated: u64) -> bool {
        self.leave_unterminated || self.sent_unterminated == Some(unterminated)
    }
}

/// The input, read ahead by request.
pub struct Feed {
    requests: std_mpsc::Sender<usize>,
    batches: mpsc::UnboundedReceiver<Batch>,
    asked: bool,
    ended: bool,
}

impl Feed {
    /// Starts reading `input`, in a thread that ends with the input (or, if that never comes, with the process).
    pub fn start(input: impl Read + Send + 'static, extent: Extent, composer: Composer) -> std::io::Result<Self> {
        let (requests, requested) = std_mpsc::channel::<usize>();
        let (sender, batches) = mpsc::unbounded_channel();
        thread::Builder::new().name("input".into()).spawn(move || {
            let mut lines = Lines::new(input, extent.limit);
            let mut skipped = lines.skip_to(extent.from);
            for most in requested {
                let batch = match skipped {
                    Ok(()) => read_batch(&mut lines, most.min(BATCH_LINES), &extent, &composer),
                    Err(e) => Batch::ended(End::Error(e.to_string())),
                };
                skipped = Ok(());
                let ended = batch.end.is_some();
                if sender.send(batch).is_err() || ended {
                    return;
                }
            }
        })?;
        Ok(Self { requests, batches, asked: false, ended: false })
    }

    /// The next batch of at most `room` lines; pending while there is no room, and after the end.
    pub fn poll(&mut self, cx: &mut Context<'_>, room: usize) -> Poll<Batch> {
        if self.ended || (room == 0 && !self.asked) {
            return Poll::Pending;
        }
        if !self.asked {
            // The thread ends only behind a batch that says so.
            self.asked = self.requests.send(room).is_ok();
        }
        let Poll::Ready(batch) = self.batches.poll_recv(cx) else { return Poll::Pending };
        self.asked = false;
        let batch = batch.unwrap_or_else(|| Batch::ended(End::Error("the thread that reads it is gone".into())));
        self.ended = batch.end.is_some();
        Poll::Ready(batch)
    }
}

/// Waits for one line, then takes what has come along with it.
fn read_batch<R: Read>(lines: &mut Lines<R>, most: usize, extent: &Extent, composer: &Composer) -> Batch {
    let mut batch = Batch { lines: Vec::with_capacity(most), end: None, mark: None };
    let mut bytes = 0;
    while batch.end.is_none()
        && batch.lines.len() < most
        && bytes < BATCH_BYTES
        && (batch.lines.is_empty() || lines.has_buffered())
    {
        let (number, line) = match lines.next() {
            Ok(Some(line)) => line,
            Ok(None) => {
                batch.end = Some(End::Input { lines: lines.read(), last: LastLine::Newline });
                break;
            }
            Err(e) => {
                batch.end = Some(End::Error(e.to_string()));
                break;
            }
        };
        if lines.unterminated() {
            let left = extent.leaves(number);
            let next = if extent.sent_unterminated == Some(number) { number.saturating_add(1) } else { number };
            let last = if left { LastLine::Left { line: number, next } } else { LastLine::Unterminated(number) };
            batch.end = Some(End::Input { lines: number, last });
            if left {
                break;
            }
        }
        let message = match line {
            Line::Whole(line) => {
                bytes += line.len();
                if number == 1 {
                    batch.mark = Mark::of(&line);
                }
                composer.compose(number, line).and_then(|message| within(extent.limit, message))
            }
            Line::TooLong => Err(format!("longer than a message may be ({} bytes)", extent.limit)),
        };
        // A file that still grows, probably.
        let unfinished =
            |reason| format!("{reason} (it has no newline: --leave-unterminated leaves it for the next run)");
        batch.lines.push((number, if lines.unterminated() { message.map_err(unfinished) } else { message }));
    }
    batch
}

/// A line that fits may be too long all the same: its key is sent along, and counts.
fn within(limit: usize, message: Message) -> Result<Message, String> {
    match message.size() {
        size if size > limit => Err(format!("longer, with its key, than a message may be ({size} of {limit} bytes)")),
        _ => Ok(message),
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;
    use crate::args::Format;
    use crate::produce::KeyFrom;

    #[test]
    fn no_more_is_read_than_there_is_room_for() {
        let composer = Composer { destination: "orders".into(), format: Format::Lines, key: KeyFrom::None };
        let input = b"line\n".repeat(1000);
        let extent = Extent { from: 1, limit: 100, leave_unterminated: false, sent_unterminated: None };
        let mut feed = Feed::start(std::io::Cursor::new(input), extent, composer).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let mut next = |room| runtime.block_on(poll_fn(|cx| feed.poll(cx, room)));
        assert_eq!(next(3).lines.len(), 3);
        assert_eq!(next(1).lines[0].0, 4);
        let mut read = 4;
        loop {
            let batch = next(1000);
            assert!(batch.lines.len() <= BATCH_LINES);
            read += batch.lines.len();
            if let Some(end) = batch.end {
                assert!(matches!(end, End::Input { lines: 1000, last: LastLine::Newline }));
                break;
            }
        }
        assert_eq!(read, 1000);
    }
    #[test]
    fn a_last_line_without_its_newline_is_read_or_left() {
        for (input, leave, sent, read, end) in [
            ("a\nb\n", true, None, 2, LastLine::Newline),
            ("a\nb", false, None, 2, LastLine::Unterminated(2)),
            ("a\nb", true, None, 1, LastLine::Left { line: 2, next: 2 }),
            ("a\nb", false, Some(2), 1, LastLine::Left { line: 2, next: 3 }),
            ("a\nb", false, Some(1), 2, LastLine::Unterminated(2)),
            ("a\nb\n", false, Some(2), 2, LastLine::Newline),
            ("a\n1234567", true, None, 1, LastLine::Left { line: 2, next: 2 }),
            ("a\n1234567", false, None, 2, LastLine::Unterminated(2)),
        ] {
            let composer = Composer { destination: "orders".into(), format: Format::Lines, key: KeyFrom::None };
            let extent = Extent { from: 1, limit: 5, leave_unterminated: leave, sent_unterminated: sent };
            let mut lines = Lines::new(input.as_bytes(), 5);
            let (mut count, mut last) = (0, None);
            while last.is_none() {
                let batch = read_batch(&mut lines, 9, &extent, &composer);
                count += batch.lines.len();
                last = batch.end;
            }
            assert_eq!(count, read, "{input:?}");
            assert!(matches!(last, Some(End::Input { last, .. }) if last == end), "{input:?}: {last:?}");
        }
    }
}
