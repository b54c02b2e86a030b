//! The loop between input, producer and acknowledgement log.
//!
//! One task: it hands lines to the producer in their order, waits for the oldest of those on the way, and writes
//! down what was accepted, also in that order. After anything goes wrong it only settles what is on the way.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io::IsTerminal;
use std::pin::{Pin, pin};
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use outlast::{Config, NotDrained, Producer, Receipt, SendError, SendFuture};

use super::ack_log::AckLog;
use super::feed::{Batch, End, Feed, LastLine};
use super::key::{KeyFrom, Mark};
use super::progress::Progress;
use crate::args::{OnBadLine, Produce};
use crate::open::GRACE_AFTER_WAIT;
use crate::output::{self, counted};
use crate::signals::{self, Stop};

/// Bytes of lines on the way, beyond which nothing more is read. A window of long lines must not fill the memory.
const WINDOW_BYTES: usize = 64 << 20;
/// A wait for pending messages that is not worth a word.
const UNNOTICED: Duration = Duration::from_secs(1);
/// How often the end of a wait for space is looked for.
const FOR_SPACE: Duration = Duration::from_millis(100);
/// Bad lines that are remembered one by one; the rest is only counted.
const BAD_LINES_NAMED: usize = 10;
/// What happened in a run.
#[derive(Debug, Default)]
pub struct Ended {
    /// The last line handed to the producer; the one before the first if there was none.
    pub last_sent: u64,
    /// Lines the broker acknowledged.
    pub delivered: u64,
    /// Lines that went to the outbox; they may have been delivered since.
    pub stored: u64,
    /// Lines not accepted by the producer.
    pub refused: u64,
    /// The first of them, and why.
    pub first_refused: Option<(u64, String)>,
    /// Lines the input has, if its end was reached.
    pub input_lines: Option<u64>,
    /// The last line, if it was sent without a newline.
    pub unterminated: Option<u64>,
    /// The last line, if it has no newline and was left.
    pub left: Option<u64>,
    /// Where the next run goes on then.
    pub next_line: Option<u64>,
    /// Lines that went without the key `--key` asks for.
    pub without_key: u64,
    /// Lines that were no message.
    pub bad: u64,
    /// The first of these, and what is wrong with them.
    pub bad_lines: Vec<(u64, String)>,
    /// Why reading ended before the input did, if it did.
    pub stopped: Option<Stopped>,
    /// The producer could not be closed in order.
    pub close_error: Option<String>,
    /// Messages the outbox still holds, older ones too.
    pub pending: u64,
}

/// Why reading ended before the input did.
#[derive(Debug)]
pub enum Stopped {
    /// A bad line: its number.
    BadLine(u64),
    /// A line that was not accepted.
    Refused,
    /// The input cannot be read any further.
    Input(String),
    /// The log cannot be written.
    Log(String),
    /// Ctrl-C or SIGTERM.
    Signal,
}

/// A line on its way.
struct Waiting {
    line: u64,
    unterminated: bool,
    bytes: usize,
    future: Pin<Box<SendFuture>>,
}

/// How a line on the way was settled.
struct Settled {
    line: u64,
    unterminated: bool,
    result: Result<Receipt, SendError>,
}

enum Step {
    Settled(Settled),
    Read(Batch),
    Signal,
    /// Nothing comes any more.
    End,
}

/// The loop's state.
pub struct Pump<'a> {
    producer: &'a Producer,
    feed: Feed,
    log: AckLog,
    stop: Stop,
    window: usize,
    stop_timeout: Duration,
    skip_bad_lines: bool,
    wants_key: bool,
    progress: &'a Progress,
    waiting: VecDeque<Waiting>,
    waiting_bytes: usize,
    reading: bool,
    ended: Ended,
}

impl<'a> Pump<'a> {
    /// A loop that is about to begin.
    pub fn new(
        producer: &'a Producer,
        feed: Feed,
        log: AckLog,
        stop: Stop,
        args: &Produce,
        progress: &'a Progress,
    ) -> Self {
        let window = args.window as usize;
        Self {
            producer,
            feed,
            log,
            stop,
            window,
            stop_timeout: args.stop.stop_timeout,
            skip_bad_lines: args.on_bad_line == OnBadLine::Skip,
            wants_key: args.key != KeyFrom::None,
            progress,
            waiting: VecDeque::with_capacity(window.min(Config::default().window_messages)),
            waiting_bytes: 0,
            reading: true,
            ended: Ended { last_sent: args.from_line - 1, ..Ended::default() },
        }
    }

    /// Sends everything, waits up to `drain` for what is pending then, closes the producer.
    pub async fn run(mut self, drain: Duration) -> Ended {
        loop {
            match poll_fn(|cx| self.poll(cx)).await {
                Step::Settled(settled) => self.settled(settled),
                Step::Read(batch) => self.send(batch),
                Step::Signal => {
                    self.stop_reading(Stopped::Signal);
                    break;
                }
                Step::End => break,
            }
        }
        let grace = match self.ended.stopped {
            Some(Stopped::Signal) => signals::grace(self.stop_timeout),
            _ => {
                self.drain(drain).await;
                GRACE_AFTER_WAIT
            }
        };
        self.close(grace).await;
        self.ended
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Step> {
        if let Poll::Ready(settled) = self.poll_front(cx) {
            return Poll::Ready(Step::Settled(settled));
        }
        self.flush();
        if self.stop.poll(cx).is_ready() {
            return Poll::Ready(Step::Signal);
        }
        if self.reading {
            let room = if self.waiting_bytes < WINDOW_BYTES { self.window - self.waiting.len() } else { 0 };
            return self.feed.poll(cx, room).map(Step::Read);
        }
        Poll::Ready(Step::End)
    }

    /// Writes down what was accepted up to here, as a batch.
    fn flush(&mut self) {
        let flushed = self.log.flush();
        self.logged(flushed);
    }

    fn logged(&mut self, written: std::io::Result<()>) {
        for note in self.log.notes() {
            output::say(note);
        }
        if let Err(e) = written {
            self.stop_reading(Stopped::Log(e.to_string()));
        }
    }

    /// The oldest line on the way, once it is settled.
    fn poll_front(&mut self, cx: &mut Context<'_>) -> Poll<Settled> {
        let Some(front) = self.waiting.front_mut() else { return Poll::Pending };
        let Poll::Ready(result) = front.future.as_mut().poll(cx) else { return Poll::Pending };
        let settled = Settled { line: front.line, unterminated: front.unterminated, result };
        self.waiting_bytes -= front.bytes;
        self.waiting.pop_front();
        Poll::Ready(settled)
    }

    fn send(&mut self, batch: Batch) {
        if let Some(mark) = batch.mark {
            say_mark(mark);
        }
        let last = match &batch.end {
            Some(End::Input { last: LastLine::Unterminated(line), .. }) => Some(*line),
            _ => None,
        };
        for (line, message) in batch.lines {
            match message {
                Ok(message) => {
                    self.ended.without_key += u64::from(self.wants_key && message.key_bytes().is_none());
                    let bytes = message.size();
                    self.ended.last_sent = line;
                    self.waiting_bytes += bytes;
                    let unterminated = last == Some(line);
                    self.ended.unterminated = last.filter(|_| unterminated);
                    let future = Box::pin(self.producer.send(message));
                    self.waiting.push_back(Waiting { line, unterminated, bytes, future });
                }
                Err(reason) => {
                    self.ended.bad += 1;
                    if self.ended.bad_lines.len() < BAD_LINES_NAMED {
                        self.ended.bad_lines.push((line, reason));
                    }
                    if !self.skip_bad_lines {
                        // Nothing behind it was handed over: the run can go on at this very line.
                        return self.stop_reading(Stopped::BadLine(line));
                    }
                }
            }
        }
        match batch.end {
            Some(End::Input { lines, last }) => {
                self.reading = false;
                self.ended.input_lines = Some(lines);
                if let LastLine::Left { line, next } = last {
                    self.ended.left = Some(line);
                    self.ended.next_line = Some(next);
                }
            }
            Some(End::Error(e)) => self.stop_reading(Stopped::Input(e)),
            None => {}
        }
    }

    fn settled(&mut self, Settled { line, unterminated, result }: Settled) {
        let delivered = match result {
            Ok(Receipt::Delivered { .. }) => true,
            // Accepted in any case, and no claim that it was delivered.
            Ok(_) => false,
            Err(error) => {
                self.ended.refused += 1;
                if self.ended.first_refused.is_none() {
                    output::say(format_args!("line {line} was not accepted: {error}"));
                    self.ended.first_refused = Some((line, error.to_string()));
                    self.log.end();
                }
                return self.stop_reading(Stopped::Refused);
            }
        };
        let (count, shown) = match delivered {
            true => (&mut self.ended.delivered, &self.progress.delivered),
            false => (&mut self.ended.stored, &self.progress.stored),
        };
        *count += 1;
        shown.store(*count, Ordering::Relaxed);
        let noted = self.log.accepted(line, delivered, unterminated);
        self.logged(noted);
    }

    /// Reads nothing more; the first reason counts.
    fn stop_reading(&mut self, why: Stopped) {
        self.reading = false;
        self.ended.stopped.get_or_insert(why);
    }

    /// Waits until nothing is on the way or pending, the time is up, or a signal comes. The time counts from the end of the
    /// input: what is on the way then is stored when it is up (`close` does so). How it ended is told by `close`.
    async fn drain(&mut self, timeout: Duration) {
        let first = timeout.min(UNNOTICED);
        let Some(Err(waiting)) = self.drained(first).await else { return };
        // On a terminal the progress says so.
        if first < timeout && !std::io::stderr().is_terminal() {
            let timeout = humantime::format_duration(timeout);
            let messages = counted(waiting.pending, "message");
            // What they wait for was said when it happened.
            output::say(format_args!("the input is read; waiting up to {timeout} for {messages} (--drain-timeout)"));
        }
        let mut rest = timeout - first;
        // A line that waits for space is not accepted yet. Closing would refuse it, so its own deadline holds.
        loop {
            let asked = Instant::now();
            let ended = self.drained(rest).await;
            // What could not be waited for will not be by asking on and on.
            let waited = asked.elapsed() >= rest;
            if !matches!(ended, Some(Err(_))) || !waited || self.producer.stats().waiting_for_space == 0 {
                return;
            }
            rest = FOR_SPACE;
        }
    }

    /// How a wait ended, unless a signal ended it. Notes meanwhile what is accepted.
    async fn drained(&mut self, timeout: Duration) -> Option<Result<(), NotDrained>> {
        let producer = self.producer;
        let mut drained = pin!(producer.drained(timeout));
        loop {
            let step = poll_fn(|cx| {
                if let Poll::Ready(settled) = self.poll_front(cx) {
                    return Poll::Ready(Err(settled));
                }
                self.flush();
                match self.stop.poll(cx) {
                    Poll::Ready(()) => Poll::Ready(Ok(None)),
                    Poll::Pending => drained.as_mut().poll(cx).map(|drained| Ok(Some(drained))),
                }
            });
            match step.await {
                Err(settled) => self.settled(settled),
                Ok(drained) => return drained,
            }
        }
    }

    /// Closes the producer, which settles or stores what is still on the way, and notes what was accepted of that.
    async fn close(&mut self, grace: Duration) {
        let producer = self.producer;
        let mut closing = pin!(producer.close(grace));
        let mut closed = None;
        loop {
            let settled = poll_fn(|cx| {
                if let Poll::Ready(settled) = self.poll_front(cx) {
                    return Poll::Ready(Some(settled));
                }
                if closed.is_none()
                    && let Poll::Ready(result) = closing.as_mut().poll(cx)
                {
                    closed = Some(result);
                }
                if closed.is_some() && self.waiting.is_empty() { Poll::Ready(None) } else { Poll::Pending }
            });
            match settled.await {
                Some(settled) => self.settled(settled),
                None => break,
            }
        }
        let finished = self.log.finish();
        self.logged(finished);
        match closed {
            Some(Ok(closed)) => self.ended.pending = closed.pending,
            Some(Err(e)) => {
                self.ended.close_error = Some(e.to_string());
                self.ended.pending = self.producer.stats().pending;
            }
            None => {}
        }
    }
}

fn say_mark(mark: Mark) {
    output::say(match mark {
        Mark::Utf8 => {
            "the input begins with a byte order mark: line 1 is sent with it; its key and its JSON are read without it"
        }
        Mark::Wide => {
            "the input begins with a byte order mark of UTF-16, and is taken apart at bytes, not at characters: convert it \
             to UTF-8"
        }
    });
}
