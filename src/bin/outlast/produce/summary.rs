//! What a run of `produce` says at its end, and its exit code.

use std::time::Duration;

use serde::Serialize;

use super::pump::{Ended, Stopped};
use crate::args::Produce;
use crate::exit::Exit;
use crate::output::{count, counted};

/// The outcome; its fields are the JSON of `--json`.
#[derive(Debug, Serialize)]
pub struct Summary {
    /// Lines the broker acknowledged at once.
    delivered: u64,
    /// Lines that went to the outbox; `pending` says how many are there still.
    stored: u64,
    /// Lines that were not accepted.
    not_accepted: u64,
    /// Lines that were no message.
    bad_lines: u64,
    /// Lines that lacked the field that `--key` names: they have no order.
    without_key: u64,
    /// Messages the outbox still holds, those of earlier runs too.
    pending: u64,
    /// Messages that went to the dead letters during this run.
    dead: u64,
    /// The line the input has to be read from to go on; nothing if its end was reached, and nothing was left there.
    next_line: Option<u64>,
    /// The last line, if it was sent without a newline: a file that grows may add to it.
    unterminated: Option<u64>,
    seconds: f64,
    #[serde(skip)]
    ended: Ended,
}

impl Summary {
    /// The outcome of a run.
    pub fn new(ended: Ended, dead: u64, took: Duration) -> Self {
        let next_line = match (&ended.stopped, &ended.first_refused) {
            (None, _) => ended.next_line,
            // What was accepted behind it would be sent again; to leave it out would lose it.
            (Some(_), Some((line, _))) => Some(*line),
            (Some(Stopped::BadLine(line)), None) => Some(*line),
            (Some(_), None) => Some(ended.last_sent + 1),
        };
        Self {
            delivered: ended.delivered,
            stored: ended.stored,
            not_accepted: ended.refused,
            bad_lines: ended.bad,
            without_key: ended.without_key,
            pending: ended.pending,
            dead,
            next_line,
            unterminated: ended.unterminated,
            seconds: took.as_secs_f64(),
            ended,
        }
    }

    /// The exit code.
    pub fn exit(&self) -> Exit {
        if self.ended.stopped.is_some()
            || self.not_accepted > 0
            || self.bad_lines > 0
            || self.beyond().is_some()
            || self.ended.close_error.is_some()
        {
            Exit::Failed
        } else if self.pending > 0 || self.dead > 0 {
            Exit::Pending
        } else {
            Exit::Done
        }
    }

    /// The lines the input has, if it ended before the line that was to be the first.
    fn beyond(&self) -> Option<u64> {
        self.ended.input_lines.filter(|lines| *lines < self.ended.last_sent)
    }

    /// For people: what happened, and how to go on where something is left to do.
    pub fn in_words(&self, args: &Produce) -> Vec<String> {
        let outbox = args.outbox.display();
        let mut lines = vec![format!(
            "{} accepted in {:.1} s: {} delivered at once, {} stored",
            counted(self.delivered + self.stored, "line"),
            self.seconds,
            count(self.delivered),
            count(self.stored)
        )];
        for (line, reason) in &self.ended.bad_lines {
            lines.push(format!("line {line}: {reason}"));
        }
        if self.bad_lines > 0 {
            lines.push(match self.ended.stopped {
                Some(Stopped::BadLine(_)) => "stopped there; to leave such lines out: --on-bad-line skip".into(),
                _ => format!("{} skipped", counted(self.bad_lines, "bad line")),
            });
        }
        if self.without_key > 0 {
            let lacking = counted(self.without_key, "line");
            lines.push(format!("{lacking} had no such field for --key, and went without a key: they have no order"));
        }
        if let Some(has) = self.beyond() {
            lines.push(format!("the input has no line {}: it ends after {}", args.from_line, counted(has, "line")));
        }
        if let Some(line) = self.unterminated {
            let next = line.saturating_add(1);
            lines.push(match args.ack_log {
                Some(_) => format!(
                    "line {line} has no newline; if it grows, --from-line {next} with this --ack-log sends it again, whole"
                ),
                None => format!("line {line} has no newline; if it grows, --from-line {line} sends it again, whole"),
            });
        }
        if let Some(line) = self.ended.left {
            lines.push(match args.leave_unterminated {
                true => format!("line {line} has no newline, and is left for the next run (--leave-unterminated)"),
                false => format!(
                    "line {line} has no newline yet; it was sent without one before, and is sent again, whole, once it has \
                     it"
                ),
            });
        }
        if let Some((line, reason)) = &self.ended.first_refused {
            lines.push(format!("line {line} was not accepted: {reason}"));
            if self.not_accepted > 1 {
                lines.push(format!("not accepted in all: {}", counted(self.not_accepted, "line")));
            }
        }
        match &self.ended.stopped {
            Some(Stopped::Input(e)) => lines.push(format!("the input cannot be read any further: {e}")),
            Some(Stopped::Log(e)) => lines.push(format!("the log of acknowledgements cannot be written: {e}")),
            Some(Stopped::Signal) => lines.push("stopped by a signal before the end of the input".into()),
            Some(Stopped::BadLine(_) | Stopped::Refused) | None => {}
        }
        if let Some(e) = &self.ended.close_error {
            lines.push(e.clone());
        }
        if self.pending > 0 {
            lines.push(format!(
                "still in {outbox}: {}; go on with: outlast drain --to … --outbox {outbox}",
                counted(self.pending, "message")
            ));
        }
        if self.dead > 0 {
            lines.push(format!("{} more; see: outlast dead list --outbox {outbox}", counted(self.dead, "dead letter")));
        }
        if let Some(line) = self.next_line {
            lines.push(format!("to go on with the input: --from-line {line}"));
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit(ended: Ended, dead: u64) -> (Exit, Option<u64>) {
        let summary = Summary::new(ended, dead, Duration::ZERO);
        (summary.exit(), summary.next_line)
    }

    #[test]
    fn the_exit_code_says_the_worst_that_happened() {
        let sent = || Ended { delivered: 5, stored: 2, last_sent: 7, ..Ended::default() };
        assert_eq!(exit(sent(), 0), (Exit::Done, None));
        assert_eq!(exit(Ended { next_line: Some(8), input_lines: Some(8), ..sent() }, 0), (Exit::Done, Some(8)));
        assert_eq!(exit(Ended { pending: 1, ..sent() }, 0), (Exit::Pending, None));
        assert_eq!(exit(sent(), 1), (Exit::Pending, None));
        assert_eq!(exit(Ended { stopped: Some(Stopped::Signal), ..sent() }, 0), (Exit::Failed, Some(8)));
        assert_eq!(exit(Ended { bad: 1, ..sent() }, 0), (Exit::Failed, None));
        let bad = Ended { bad: 1, stopped: Some(Stopped::BadLine(9)), ..sent() };
        assert_eq!(exit(bad, 0), (Exit::Failed, Some(9)));
        let refused =
            Ended { refused: 2, first_refused: Some((6, "full".into())), stopped: Some(Stopped::Refused), ..sent() };
        assert_eq!(exit(refused, 0), (Exit::Failed, Some(6)));
    }
}
