//! The thread that reads the input, so that nobody else ever waits for it.
//!
//! It reads only what it is asked for: so many lines and no more are ever read past the last acknowledged one.

use std::io::Read;
use std::sync::mpsc as std_mpsc;
use std::task::{Context, Poll};
use std::thread;

use outlast::Message;
use tokio::sync::mpsc;

use super::key::Composer;
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
}

/// How the input ended.
#[derive(Debug)]
pub enum End {
    /// At its end, behind so many lines.
    Input {
        /// Lines it has, those before the first that was asked for too.
        lines: u64,
    },
    /// It cannot be read any further.
    Error(String),
}

/// The input, read ahead by request.
pub struct Feed {
    requests: std_mpsc::Sender<usize>,
    batches: mpsc::UnboundedReceiver<Batch>,
    asked: bool,
    ended: bool,
}

impl Feed {
    /// Starts reading `input` at line `from`, in a thread that ends with the input (or, if that never comes, with
    /// the process).
    pub fn start(
        input: impl Read + Send + 'static,
        from: u64,
        limit: usize,
        composer: Composer,
    ) -> std::io::Result<Self> {
        let (requests, requested) = std_mpsc::channel::<usize>();
        let (sender, batches) = mpsc::unbounded_channel();
        thread::Builder::new().name("input".into()).spawn(move || {
            let mut lines = Lines::new(input, limit);
            let mut skipped = lines.skip_to(from);
            for most in requested {
                let batch = match skipped {
                    Ok(()) => read_batch(&mut lines, most.min(BATCH_LINES), limit, &composer),
                    Err(e) => Batch { lines: Vec::new(), end: Some(End::Error(e.to_string())) },
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
        let batch = batch.unwrap_or_else(|| Batch {
            lines: Vec::new(),
            end: Some(End::Error("the thread that reads it is gone".into())),
        });
        self.ended = batch.end.is_some();
        Poll::Ready(batch)
    }
}

/// Waits for one line, then takes what has come along with it.
fn read_batch<R: Read>(lines: &mut Lines<R>, most: usize, limit: usize, composer: &Composer) -> Batch {
    let mut batch = Batch { lines: Vec::with_capacity(most), end: None };
    let mut bytes = 0;
    while batch.lines.len() < most && bytes < BATCH_BYTES && (batch.lines.is_empty() || lines.has_buffered()) {
        match lines.next() {
            Ok(Some((number, Line::Whole(line)))) => {
                bytes += line.len();
                batch.lines.push((number, composer.compose(line).and_then(|message| within(limit, message))));
            }
            Ok(Some((number, Line::TooLong))) => {
                batch.lines.push((number, Err(format!("longer than a message may be ({limit} bytes)"))));
            }
            Ok(None) => {
                batch.end = Some(End::Input { lines: lines.read() });
                break;
            }
            Err(e) => {
                batch.end = Some(End::Error(e.to_string()));
                break;
            }
        }
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
        let mut feed = Feed::start(std::io::Cursor::new(input), 1, 100, composer).unwrap();
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
                assert!(matches!(end, End::Input { lines: 1000 }));
                break;
            }
        }
        assert_eq!(read, 1000);
    }
}
